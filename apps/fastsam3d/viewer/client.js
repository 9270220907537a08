// The server's routes for images, masks and labels. Nothing here knows OHIF.

import { ask } from './server.js';

/** Turn what is asked about one structure into the form field `params` of a request.
 *
 * asked: {prompts, size, outputs, start, name}. A prompt is {kind, include, places}: places are LPS mm; a point has
 * one place, a box two corners, a lasso or scribble a path. outputs: what the reply holds beside the
 * mask. start: {number, overwrite} if a mask to start from is sent with it, in which the structure has
 * this number; else null. takesPrompts: whether the server takes an ordered list; an older one takes clicks alone.
 *
 * Throws an Error with a sentence for the user if the server cannot take these prompts. */
export function requestParams({ prompts, size, outputs = [], start = null, name }, takesPrompts) {
  const params = { coordinates: 'lps_mm', size };
  // what is asked beside a mask is no work that the journal gives back
  if (name && !outputs.length) {
    const label_info = [{ name, idx: start?.number ?? 1 }];
    Object.assign(params, { label: name, label_info, client_id: browserName() });
    if (takesPrompts) params.page = PAGE;
  }
  if (takesPrompts) {
    if (outputs.length) params.outputs = outputs;
    if (start) params.overwrite = start.overwrite;
    params.prompts = prompts.map(({ kind, include, places }) => ({
      type: 'spatial',
      subtype: SUBTYPES[kind],
      prompt: kind === 'point' ? places[0] : places,
      semantic_id_key: { semantic_id: include ? (start?.number ?? 1) : 0 },
      aux: {},
    }));
    return params;
  }
  if (outputs.length) throw new Error('This server gives masks only, no uncertainty.');
  if (start) throw new Error('This server cannot start from a mask; clear the structure first.');
  if (prompts.some(prompt => prompt.kind !== 'point'))
    throw new Error('This server takes points only; remove the boxes and drawn lines.');
  const places = include =>
    prompts.filter(prompt => prompt.include === include).map(prompt => prompt.places[0]);
  return { ...params, foreground: places(true), background: places(false) };
}

/** Return the name of this browser: the user's, where nobody signs in. */
export function browserName() {
  try {
    return (localStorage[BROWSER] ??= `browser ${randomDigits(4)}`);
  } catch {
    return ''; // the browser keeps nothing: all such browsers are one user
  }
}

/** Return random bytes as hexadecimal digits. */
function randomDigits(count) {
  const made = [...crypto.getRandomValues(new Uint8Array(count))];
  return made.map(byte => byte.toString(16).padStart(2, '0')).join('');
}

/** Return a prompt of the journal as the viewer has it. */
function promptOf({ subtype, prompt, semantic_id_key }) {
  const kind = Object.keys(SUBTYPES).find(each => SUBTYPES[each] === subtype);
  const places = kind === 'point' ? [prompt] : prompt;
  return { kind, include: semantic_id_key.semantic_id !== 0, places };
}

const BROWSER = 'fastsam3d:browser'; // key in the browser's storage
const PAGE = randomDigits(8); // name of this load of the page: a save ends the work of its page alone
const SUBTYPES = { point: 'point', box: 'bounding_box', lasso: 'lasso', scribble: 'scribble' };

const RECORD_PATIENCE_MS = 10000; // that a record waits for a request that the server computes
const PATIENCE_MS = 1000; // that a request waits for the one before, which nobody needs any more

/** Return {arrays, place, warning} of a reply with a box. */
function boxOf(reply, body) {
  const place = JSON.parse(reply.headers.get('X-Mask-Box'));
  const length = place.size_ijk.reduce((product, count) => product * count, 1);
  const names = place.arrays ?? ['mask'];
  const arrays = names.map((name, n) => [name, new Uint8Array(body, n * length, length)]);
  return { arrays: Object.fromEntries(arrays), place, warning: reply.headers.get('X-Warning') };
}

export class ServerClient {
  constructor() {
    this.images = new Map();
    this.grids = new Map();
    this.restoredUntil = new Map(); // series UID -> time of the newest entry of its unsaved work
    this.info = null;
    this.sent = null; // the request for a mask that the server has not answered
  }

  /** Return {labels, model, takesPrompts} of this server; asked once. */
  describe() {
    this.info ??= this.#describe().catch(error => {
      this.info = null;
      throw error;
    });
    return this.info;
  }

  async #describe() {
    const info = await (await ask('/info/')).json();
    const models = Object.keys(info.models);
    const model = models.includes('fastsam3d') ? 'fastsam3d' : models[0];
    const described = info.models[model]?.interactions ?? info.interactions;
    return { labels: info.labels ?? [], model, takesPrompts: Boolean(described) };
  }

  /** Return the image ID of a series, and let the server read it ahead; asked once. */
  image(seriesUid) {
    if (!this.images.has(seriesUid)) {
      const asked = ask(`/viewer/series/${seriesUid}`).then(async reply => {
        return (await reply.json()).image;
      });
      asked.catch(() => this.images.delete(seriesUid));
      this.images.set(seriesUid, asked);
    }
    return this.images.get(seriesUid);
  }

  /** Return {arrays, place, warning}: arrays in a box, i fastest, and where the box lies.
   *
   * asked.start.file is the mask to start from. arrays.mask is the mask; those of the outputs are beside it, 255 for probability 1. place:
   * {offset_ijk, size_ijk, affine_lps}, and next_click if it was asked for. Throws ServerError with the server's sentence, and AbortError if the signal ends it. */
  async mask(seriesUid, asked, signal) {
    const [{ model, takesPrompts }, image] = await Promise.all([
      this.describe(),
      this.image(seriesUid),
    ]);
    const form = new FormData();
    form.append('params', JSON.stringify(requestParams(asked, takesPrompts)));
    if (asked.start) form.append('initial_mask', asked.start.file, 'mask.nrrd');
    const query = new URLSearchParams({ image, output: 'box' });
    const path = `/infer/${model}?${query}`;
    // a press does not wait for what is asked beside a mask: that may be large
    const { reply, body } = asked.outputs
      ? await this.#send(path, form, signal)
      : await this.#inTurn(path, form, signal);
    return boxOf(reply, body);
  }

  /** Send a form once the request before is answered, and return {reply, body}.
   *
   * The server goes on with a request whose connection is closed. So a request that the signal ended
   * stays open for PATIENCE_MS, and fast presses do not queue up there: of those that wait, the
   * newest alone is sent. */
  async #inTurn(path, form, signal) {
    const end = Date.now() + PATIENCE_MS;
    while (this.sent && Date.now() < end) {
      const timeout = new Promise(done => setTimeout(done, end - Date.now()));
      await Promise.race([this.sent.answered, timeout]);
    }
    signal.throwIfAborted();
    if (this.sent?.signal.aborted) this.sent.controller.abort();
    const sent = { signal, controller: new AbortController() };
    const answer = this.#send(path, form, sent.controller.signal);
    sent.answered = answer.then(
      () => {},
      () => {}
    );
    this.sent = sent;
    try {
      return await answer;
    } finally {
      if (this.sent === sent) this.sent = null;
      signal.throwIfAborted();
    }
  }

  async #send(path, form, signal) {
    const reply = await ask(path, { method: 'POST', body: form, signal });
    return { reply, body: await reply.arrayBuffer() };
  }

  /** Return {shape_ijk, affine_lps}: the grid on which the image of a series is stored. */
  grid(seriesUid) {
    if (!this.grids.has(seriesUid)) {
      const asked = ask(`/viewer/series/${seriesUid}/grid`).then(reply => reply.json());
      asked.catch(() => this.grids.delete(seriesUid));
      this.grids.set(seriesUid, asked);
    }
    return this.grids.get(seriesUid);
  }

  /** Return [{tag, version, user, description, structures: [{name, idx}]}]: the labels of a series.
   *
   * Those of the PACS, which takes longer to answer, have a description and no version. */
  async labels(seriesUid, withPacs = true) {
    return (await ask(`/viewer/series/${seriesUid}/labels?pacs=${withPacs}`)).json();
  }

  /** Return {voxels, place}: a stored label in its box, i fastest; place has its version, too. */
  async label(seriesUid, tag) {
    return this.#maskAt(`/viewer/series/${seriesUid}/labels/${tag}`);
  }

  /** Save a label file of a series on the server; labels: [{name, idx, color}]. Return its version.
   *
   * structures_of_page: names of all structures that this page has or had; their work is saved then,
   * as far as this page made or restored it.
   * base: the version that the user has seen, 0 for none; null replaces any. Throws ServerError with
   * the status 409 if there is a newer one. */
  async save(seriesUid, file, labels, structures_of_page, base) {
    const form = new FormData();
    form.append('label', file, 'label.nrrd');
    const params = {
      label_info: labels,
      structures_of_page,
      page: PAGE,
      restored_until: this.restoredUntil.get(seriesUid) ?? '',
      client_id: browserName(),
    };
    form.append('params', JSON.stringify(params));
    const query = new URLSearchParams({ image: await this.image(seriesUid) });
    if (base !== null) query.set('base', base);
    const reply = await ask(`/datastore/label?${query}`, { method: 'PUT', body: form });
    return (await reply.json()).version;
  }

  // --- unsaved work ------------------------------------------------------------------------------

  /** Return {own, others} of a series: {user, time, structures} each, others in a list.
   *
   * A structure is {name, prompts, size, mask, number}; mask: name of the mask that it starts from,
   * in which it has this number, or "". */
  async work(seriesUid) {
    const query = new URLSearchParams({ client_id: browserName() });
    const { own, others } = await (await ask(`/viewer/series/${seriesUid}/work?${query}`)).json();
    this.restoredUntil.set(seriesUid, own.time);
    for (const { structures } of [own, ...others])
      for (const structure of structures) structure.prompts = structure.prompts.map(promptOf);
    return { own, others };
  }

  /** Return {voxels, place} of a mask that a request started from. */
  keptMask(seriesUid, digest) {
    return this.#maskAt(`/viewer/series/${seriesUid}/masks/${digest}`);
  }

  /** Put prompts whose mask is drawn without a request into the journal, after those before. */
  async record(seriesUid, asked) {
    const { takesPrompts } = await this.describe();
    if (!takesPrompts) return; // an older server has no such journal
    const patience = new Promise(done => setTimeout(done, RECORD_PATIENCE_MS));
    await Promise.race([this.sent?.answered, patience]);
    const form = new FormData();
    form.append('params', JSON.stringify(requestParams(asked, true)));
    if (asked.start) form.append('initial_mask', asked.start.file, 'mask.nrrd');
    const path = `/viewer/series/${seriesUid}/work`;
    await ask(path, { method: 'POST', body: form, keepalive: !asked.start });
  }

  async #maskAt(path) {
    const reply = await ask(path);
    const { arrays, place } = boxOf(reply, await reply.arrayBuffer());
    return { voxels: arrays.mask, place };
  }
}
