// What the user does to one study: prompts of each structure, requests, masks, undo and redo.

import { nrrdFile, runsOf } from './labelmap.js';
import { keptWork, keepWork } from './work.js';

const BUSY_MS = 300; // a computation that takes longer is shown
const RESTORE_TRIES = 5;
const ONLY_EXCLUDED = 'There are only excluding prompts: press on the structure without Ctrl, too.';
export const STILL_OPENING = 'The series is still being opened; try again in a moment.';
export const SIZES = { smallest: -2, largest: 2 };

/** A structure: its prompts, its size, and the mask that is drawn for them.
 *
 * drawn: {prompts, size, mask, base} as of the last reply; mask: {place, runs} or null. base: what the
 * prompts start from, {mask, file}, or null; file: promise of the file for the server, once needed. */
class Structure {
  constructor(segment, seriesUid) {
    this.segment = segment;
    this.seriesUid = seriesUid;
    this.taken = []; // voxels of other structures that the drawn mask took
    this.edits = 0; // of the segmentation's edits by others, those that `drawn` knows
    this.set({ prompts: [], size: 0, mask: null, base: null });
  }

  set(drawn) {
    this.drawn = drawn;
    this.prompts = drawn.prompts;
    this.size = drawn.size;
    this.base = drawn.base;
  }
}

/** Return what is drawn for a structure whose prompts will start from a mask, or from nothing. */
function startingFrom(mask) {
  return { prompts: [], size: 0, mask, base: mask && { mask, file: null } };
}

export class Session extends EventTarget {
  constructor(viewer, client) {
    super();
    this.viewer = viewer;
    this.client = client;
    this.structures = new Map();
    this.restored = new Set(); // series whose kept prompts were asked for
    this.segmentations = new Map(); // image ID -> promise of its segmentation's ID
    this.edits = new Map(); // segmentation ID -> how often others, such as the brush, changed it
    this.running = null;
    this.busy = false;
    this.overwrite = false; // whether a mask takes voxels of other structures
    this.isUnsaved = false;
    this.askBeforeLeaving = event => this.isUnsaved && event.preventDefault();
  }

  start() {
    window.addEventListener('beforeunload', this.askBeforeLeaving);
    this.viewer.onImage(viewportId => this.#prepare(viewportId));
    this.viewer.onSegments(() => this.changed());
    this.viewer.onEdit((segmentationId, isCertain) => this.#noteEdit(segmentationId, isCertain));
    this.viewer.viewportIds().forEach(id => this.#prepare(id));
  }

  stop() {
    window.removeEventListener('beforeunload', this.askBeforeLeaving);
    this.#abort();
    this.viewer.stop();
  }

  /** Tell the listeners of "change" that prompts, segments or the busy state changed. */
  changed() {
    this.dispatchEvent(new Event('change'));
  }

  // --- segmentations -----------------------------------------------------------------------------

  /** Have an empty segmentation in a viewport before the first press: that takes a second. */
  async #prepare(viewportId) {
    const image = this.viewer.imageOf(viewportId);
    if (!image) return;
    try {
      this.client.image(image.seriesUid).catch(() => {}); // the press shows the error
      const segmentationId = await this.#segmentationOf(image);
      await this.viewer.showSegmentation(viewportId, segmentationId);
      this.viewer.showPanel();
      this.changed();
      await this.#restore(image.seriesUid, segmentationId);
    } catch (error) {
      this.viewer.notify(error.message);
    }
  }

  #segmentationOf(image) {
    if (!this.segmentations.has(image.id)) {
      const made = this.client
        .describe()
        .catch(() => ({ labels: [] }))
        .then(({ labels }) => {
          const names = keptWork(image.seriesUid)?.names ?? labels;
          return this.viewer.createSegmentation(image, names.length ? names : ['target']);
        });
      made.catch(() => this.segmentations.delete(image.id));
      this.segmentations.set(image.id, made);
    }
    return this.segmentations.get(image.id);
  }

  /** Ask once for the masks of the prompts that this browser keeps for a series. */
  async #restore(seriesUid, segmentationId) {
    if (this.restored.has(seriesUid)) return;
    this.restored.add(seriesUid);
    const kept = keptWork(seriesUid);
    this.isUnsaved ||= Boolean(kept?.isUnsaved);
    for (const { number, prompts, size } of kept?.structures ?? []) {
      const structure = this.structureOf([segmentationId, number], seriesUid);
      let isDone = structure.prompts.length > 0;
      for (let tries = 0; !isDone && tries < RESTORE_TRIES; tries++) {
        await this.running?.finished; // a press of the user comes first
        Object.assign(structure, { prompts, size });
        isDone = await this.#compute(structure, { isUndoable: false });
      }
    }
  }

  structureOf(segment, seriesUid) {
    const key = segment.join(':');
    if (!this.structures.has(key)) this.structures.set(key, new Structure(segment, seriesUid));
    return this.structures.get(key);
  }

  /** Return the structure that the user works on in a viewport, or null if there is none. */
  structure(viewportId = this.viewer.activeViewportId()) {
    const image = this.viewer.imageOf(viewportId);
    const segmentationId = this.viewer.activeSegmentation(viewportId);
    const number = this.viewer.activeSegment(viewportId);
    if (!image || !segmentationId || number === null) return null;
    return this.structureOf([segmentationId, number], image.seriesUid);
  }

  // --- prompts -----------------------------------------------------------------------------------

  /** Add a prompt {kind, include, places} to the structure of a viewport; places in LPS mm. */
  add(viewportId, prompt) {
    const structure = this.structure(viewportId);
    if (!structure) {
      this.viewer.notify(STILL_OPENING, 'info');
      return;
    }
    if (this.viewer.isLocked(structure.segment)) {
      this.viewer.notify('This structure is locked; unlock it in the segment table.', 'info');
      return;
    }
    this.#change(structure, () => ({ prompts: [...structure.prompts, prompt] }));
  }

  remove(structure, prompt) {
    this.#change(structure, () => ({ prompts: structure.prompts.filter(each => each !== prompt) }));
  }

  clear(structure) {
    this.#change(structure, () => ({ prompts: [] }));
  }

  /** Ask for the next smaller (-1) or larger (1) answer to the same prompts. */
  resize(step) {
    const structure = this.structure();
    if (!structure?.prompts.length) return;
    const size = Math.min(SIZES.largest, Math.max(SIZES.smallest, structure.size + step));
    if (size !== structure.size) this.#change(structure, () => ({ size }));
  }

  /** Change a structure to what change() returns, {prompts} or {size}, and compute its mask. */
  async #change(structure, change) {
    try {
      if (structure.edits !== this.#editsOf(structure)) await this.#takeEdits(structure);
    } catch (error) {
      this.viewer.notify(error.message);
      return;
    }
    Object.assign(structure, change());
    this.#compute(structure);
    this.changed();
  }

  // --- what is there -----------------------------------------------------------------------------

  #noteEdit(segmentationId, isCertain) {
    const isDrawn = ({ segment, drawn }) => segment[0] === segmentationId && drawn.mask;
    if (!isCertain && ![...this.structures.values()].some(isDrawn)) return;
    this.edits.set(segmentationId, (this.edits.get(segmentationId) ?? 0) + 1);
    this.isUnsaved ||= isCertain;
    this.changed();
  }

  #editsOf({ segment }) {
    return this.edits.get(segment[0]) ?? 0;
  }

  /** Let prompts start from what others, such as the brush, made of a structure. */
  async #takeEdits(structure) {
    const grid = await this.client.grid(structure.seriesUid);
    const edits = this.#editsOf(structure);
    if (structure.edits === edits) return; // another change of the structure waited, too
    structure.edits = edits;
    const [segmentationId, number] = structure.segment;
    const labelmap = this.viewer.labelmap(segmentationId);
    if (labelmap.holds(number, structure.drawn.mask)) return;
    this.#abort();
    const place = { size_ijk: grid.shape_ijk, affine_lps: grid.affine_lps };
    const runs = runsOf(labelmap.stored(grid), grid.shape_ijk[0], number);
    structure.set(startingFrom(runs.length ? { place, runs } : null));
  }

  /** Draw masks, [structure, mask] each, from which later prompts start; one step of the history. */
  startFrom(masks) {
    this.#abort();
    const steps = masks.map(([structure, mask]) => {
      const earlier = structure.drawn;
      this.#draw(structure, startingFrom(mask));
      return { structure, earlier, later: structure.drawn };
    });
    this.viewer.remember(isUndo => {
      this.#abort();
      for (const { structure, earlier, later } of isUndo ? [...steps].reverse() : steps)
        this.#draw(structure, isUndo ? earlier : later);
    });
  }

  /** Return what a request says about a structure: {prompts, size, start}. */
  async question({ seriesUid, segment }, { prompts, size, base }) {
    if (!base) return { prompts, size, start: null };
    base.file ??= this.client
      .grid(seriesUid)
      .then(grid => nrrdFile(this.viewer.labelmap(segment[0]).stored(grid), grid));
    base.file.catch(() => (base.file = null));
    const start = { file: await base.file, number: segment[1], overwrite: this.overwrite };
    return { prompts, size, start };
  }

  // --- computing ---------------------------------------------------------------------------------

  /** Ask for the mask of the prompts and draw it; a newer request takes the place of an older one.
   *
   * Returns a promise of false if that happened to this one. */
  #compute(structure, { isUndoable = true, step = null } = {}) {
    const replaced = this.#abort(structure);
    const run = { controller: new AbortController(), structure, step: step ?? replaced?.step };
    if (isUndoable) run.step ??= this.#newStep(structure);
    this.running = run;
    run.finished = this.#finish(run);
    return run.finished;
  }

  // --- undo and redo -----------------------------------------------------------------------------

  /** Put a step into the history: it can be taken back before its mask is there. */
  #newStep(structure) {
    const step = { structure, earlier: structure.drawn, later: null, asked: null };
    step.memo = this.viewer.remember(isUndo => this.#restoreStep(step, isUndo));
    return step;
  }

  #restoreStep(step, isUndo) {
    const { structure } = step;
    const isRunning = this.running?.step === step;
    if (isRunning) {
      const { prompts, size, base } = structure;
      step.asked = { prompts, size, base };
    }
    this.#abort(isRunning ? structure : null);
    if (isUndo || step.later) {
      this.isUnsaved ||= Boolean(step.later);
      this.#draw(structure, isUndo ? step.earlier : step.later);
    } else if (step.asked) {
      Object.assign(structure, step.asked);
      this.#compute(structure, { step });
    }
  }

  async #finish(run) {
    const { structure } = run;
    const { prompts, size, base } = structure;
    run.timer = setTimeout(() => this.#setBusy(true), BUSY_MS);
    try {
      let mask = base?.mask ?? null;
      const canAsk = base ? prompts.length : prompts.some(prompt => prompt.include);
      if (canAsk) mask = await this.#request(structure, run);
      else if (prompts.length) this.viewer.notify(ONLY_EXCLUDED, 'info');
      if (this.running !== run) return false;
      if (run.step) this.isUnsaved = true;
      this.#draw(structure, { prompts, size, mask, base });
      if (run.step) run.step.later = structure.drawn;
      return true;
    } catch (error) {
      if (this.running !== run) return false; // what a request says that nobody waits for
      this.#takeBack(run);
      this.viewer.notify(error.message);
      return true;
    } finally {
      clearTimeout(run.timer);
      if (this.running === run) {
        this.running = null;
        this.#setBusy(false);
      }
      this.changed();
    }
  }

  async #request(structure, run) {
    const asked = await this.question(structure, structure);
    const { signal } = run.controller;
    const { arrays, place, warning } = await this.client.mask(structure.seriesUid, asked, signal);
    if (warning && this.running === run) this.viewer.notify(warning, 'warning');
    return { place, runs: runsOf(arrays.mask, place.size_ijk[0], asked.start?.number) };
  }

  /** End the request that runs, and return it; that of another structure than `keep` is taken back. */
  #abort(keep = null) {
    const run = this.running;
    if (!run) return null;
    this.running = null;
    clearTimeout(run.timer);
    run.controller.abort();
    if (run.structure !== keep) this.#takeBack(run);
    this.#setBusy(false);
    return run;
  }

  /** Let the prompts be those of the drawn mask again, as if the request had not been made. */
  #takeBack({ structure, step }) {
    structure.set(structure.drawn);
    if (step) this.viewer.forget(step.memo);
  }

  #draw(structure, drawn) {
    const [segmentationId, number] = structure.segment;
    const { changed, taken } = this.viewer
      .labelmap(segmentationId)
      .replace(
        number,
        structure.drawn.mask,
        drawn.mask,
        other => this.overwrite && !this.viewer.isLocked([segmentationId, other]),
        structure.taken
      );
    structure.taken = taken;
    structure.set(drawn);
    if (changed.length) this.viewer.redraw(segmentationId, changed);
    this.keep(segmentationId, structure.seriesUid);
    this.changed();
  }

  /** Keep the prompts of a series in the browser, for a page that is loaded again. */
  keep(segmentationId, seriesUid) {
    const viewportId = this.viewer.activeViewportId();
    const names = this.viewer.segments(segmentationId, viewportId).map(({ label }) => label);
    const structures = [...this.structures.values()]
      .filter(({ segment }) => segment[0] === segmentationId)
      .filter(({ drawn }) => drawn.prompts.length && !drawn.base) // a mask is not kept here
      .map(({ segment, drawn }) => ({
        number: segment[1],
        prompts: drawn.prompts,
        size: drawn.size,
      }));
    keepWork(seriesUid, { names, structures, isUnsaved: this.isUnsaved });
  }

  #setBusy(busy) {
    if (busy === this.busy) return;
    this.busy = busy;
    this.changed();
  }
}
