// The server's routes as the viewer uses them. Nothing here knows OHIF.

/** Turn what is asked about one structure into the form field `params` of a request.
 *
 * asked: {prompts, size, outputs, start}. A prompt is {kind, include, places}: places are LPS mm; a point has
 * one place, a box two corners, a lasso or scribble a path. outputs: what the reply holds beside the
 * mask. start: {number, overwrite} if a mask to start from is sent with it, in which the structure has
 * this number; else null. takesPrompts: whether the server takes an ordered list; an older one takes clicks alone.
 *
 * Throws an Error with a sentence for the user if the server cannot take these prompts. */
export function requestParams({ prompts, size, outputs = [], start = null }, takesPrompts) {
  const params = { coordinates: 'lps_mm', size };
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

const SUBTYPES = { point: 'point', box: 'bounding_box', lasso: 'lasso', scribble: 'scribble' };

const POSTED = { method: 'POST' };
const PATIENCE_MS = 1000; // that a request waits for the one before, which nobody needs any more

/** An answer of the server that is no mask; the message is the server's sentence. */
export class ServerError extends Error {}

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
    const info = await (await this.#fetch('/info/')).json();
    const models = Object.keys(info.models);
    const model = models.includes('fastsam3d') ? 'fastsam3d' : models[0];
    const described = info.models[model]?.interactions ?? info.interactions;
    return { labels: info.labels ?? [], model, takesPrompts: Boolean(described) };
  }

  /** Return the image ID of a series, and let the server read it ahead; asked once. */
  image(seriesUid) {
    if (!this.images.has(seriesUid)) {
      const asked = this.#fetch(`/viewer/series/${seriesUid}`).then(async reply => {
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
    const reply = await this.#fetch(path, { method: 'POST', body: form, signal });
    return { reply, body: await reply.arrayBuffer() };
  }

  /** Return {shape_ijk, affine_lps}: the grid on which the image of a series is stored. */
  grid(seriesUid) {
    if (!this.grids.has(seriesUid)) {
      const asked = this.#fetch(`/viewer/series/${seriesUid}/grid`).then(reply => reply.json());
      asked.catch(() => this.grids.delete(seriesUid));
      this.grids.set(seriesUid, asked);
    }
    return this.grids.get(seriesUid);
  }

  /** Return [{tag, structures: [{name, idx}]}]: the labels of a series that the server has. */
  async labels(seriesUid) {
    return (await this.#fetch(`/viewer/series/${seriesUid}/labels`)).json();
  }

  /** Return {voxels, place}: a stored label in its box, i fastest. */
  async label(seriesUid, tag) {
    const reply = await this.#fetch(`/viewer/series/${seriesUid}/labels/${tag}`);
    const { arrays, place } = boxOf(reply, await reply.arrayBuffer());
    return { voxels: arrays.mask, place };
  }

  /** Save a label file of a series on the server; labels: [{name, idx, color}]. */
  async save(seriesUid, file, labels) {
    const form = new FormData();
    form.append('label', file, 'label.nrrd');
    form.append('params', JSON.stringify({ label_info: labels }));
    const query = new URLSearchParams({ image: await this.image(seriesUid) });
    await this.#fetch(`/datastore/label?${query}`, { method: 'PUT', body: form });
  }

  // --- learning ----------------------------------------------------------------------------------

  /** Return {strategies, canTrain, epochs, status, stats, versions} as of now.
   *
   * epochs: default of a training. status: of the last one, "" for none. stats: its progress and its
   * decision. versions: of the model, or null if it is never trained here. */
  async learning() {
    const { model } = await this.describe();
    const orElse = (promise, value) => promise.then(reply => reply.json()).catch(() => value);
    const [info, task, versions] = await Promise.all([
      this.#fetch('/info/').then(reply => reply.json()),
      orElse(this.#fetch('/train/'), {}),
      orElse(this.#fetch(`/weights/${model}`), null),
    ]);
    return {
      strategies: Object.keys(info.strategies ?? {}),
      canTrain: model in (info.trainers ?? {}),
      epochs: info.trainers?.[model]?.config?.max_epochs ?? 1,
      status: task.status ?? '',
      stats: info.train_stats?.[model] ?? {},
      versions,
    };
  }

  async train(options) {
    const { model } = await this.describe();
    const headers = { 'Content-Type': 'application/json' };
    const body = JSON.stringify(options);
    await this.#fetch(`/train/${model}`, { method: 'POST', headers, body });
  }

  async stopTraining() {
    await this.#fetch('/train/', { method: 'DELETE' });
  }

  /** Serve a version of the model; 0: the weights that the server was started with. */
  async rollBack(version) {
    const { model } = await this.describe();
    await this.#fetch(`/weights/${model}/rollback?version=${version}`, { method: 'POST' });
  }

  /** Return the StudyInstanceUID of the image that a strategy proposes, or null for none. */
  async nextStudy(strategy) {
    const { id } = (await (await this.#fetch(`/activelearning/${strategy}`, POSTED)).json()) ?? {};
    if (!id) return null;
    // on a DICOM server an ID is that of a series; a file is a study of its own
    const value = encodeURIComponent(id);
    for (const search of [`series?SeriesInstanceUID=${value}`, `studies?PatientID=${value}`]) {
      const reply = await this.#fetch(`/dicom-web/${search}`);
      const [match] = reply.status === 200 ? await reply.json() : [];
      if (match) return match['0020000D'].Value[0];
    }
    throw new ServerError(`The image ${id} is among the studies, but is not listed.`);
  }

  async #fetch(path, options) {
    let reply;
    try {
      reply = await fetch(path, options);
    } catch (error) {
      if (error.name === 'AbortError') throw error;
      throw new ServerError(`The server does not answer (${error.message}); is it running?`);
    }
    if (reply.ok) return reply;
    const text = await reply.text();
    let detail = `The server answers ${reply.status} to ${path}`;
    try {
      detail = String(JSON.parse(text).detail ?? detail);
    } catch {
      // not one of the server's own messages
    }
    throw new ServerError(detail);
  }
}
