// What the user does to one study: prompts of each structure, requests, masks, undo and redo.

import { nrrdFile, runsOf } from './labelmap.js';
import { Opening } from './opening.js';
import { Structure, startingFrom } from './structure.js';
import { Work } from './work.js';

const BUSY_MS = 300; // a computation that takes longer is shown
const ONLY_EXCLUDED = 'There are only excluding prompts: press on the structure without Ctrl, too.';
const LEAVE =
  'Leave without saving? Unsaved work is drawn again when you come back, if the server keeps a journal.';
export const STILL_OPENING = 'The series is still being opened; try again in a moment.';
export const SIZES = { smallest: -2, largest: 2 };

export class Session extends EventTarget {
  constructor(viewer, client) {
    super();
    this.viewer = viewer;
    this.client = client;
    this.structures = new Map();
    this.edits = new Map(); // segmentation ID -> how often others, such as the brush, changed it
    this.running = null;
    this.busy = false;
    this.overwrite = false; // whether a mask takes voxels of other structures
    this.unsaved = new Set(); // series UIDs
    this.work = new Work(viewer, client, this);
    this.opening = new Opening(viewer, client, this);
    this.beforeLeaving = event => {
      this.work.flush();
      if (this.unsaved.size) event.preventDefault();
    };
  }

  start() {
    window.addEventListener('beforeunload', this.beforeLeaving);
    this.viewer.onSegments(() => {
      this.work.noteNames();
      this.changed();
    });
    const isOurs = segmentationId => this.opening.seriesOf.has(segmentationId);
    this.viewer.onStore(isOurs, () => this.stored.save());
    this.viewer.onEdit((segmentationId, isCertain) => this.#noteEdit(segmentationId, isCertain));
    this.viewer.onLeave(() => !this.unsaved.size || window.confirm(LEAVE));
    this.opening.start();
  }

  stop() {
    window.removeEventListener('beforeunload', this.beforeLeaving);
    this.#abort();
    this.work.flush();
    this.viewer.stop();
  }

  /** Tell the listeners of "change" that prompts, segments or the busy state changed. */
  changed() {
    this.dispatchEvent(new Event('change'));
  }

  markUnsaved(seriesUid) {
    this.unsaved.add(seriesUid);
  }

  // --- structures --------------------------------------------------------------------------------

  structureOf(segment, seriesUid) {
    const key = segment.join(':');
    if (!this.structures.has(key)) this.structures.set(key, new Structure(segment, seriesUid));
    return this.structures.get(key);
  }

  /** Return the name of a structure; undefined if its segment was removed. */
  nameOf({ segment: [segmentationId, number] }) {
    return this.viewer
      .segments(segmentationId, this.viewer.activeViewportId())
      .find(each => each.number === number)?.label;
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
      await this.work.isRestored(structure.seriesUid);
      if (structure.edits !== this.#editsOf(structure)) await this.#takeEdits(structure);
    } catch (error) {
      this.viewer.notify(error.message);
      return;
    }
    this.compute(structure, change());
    this.changed();
  }

  // --- what is there -----------------------------------------------------------------------------

  #noteEdit(segmentationId, isCertain) {
    const isDrawn = ({ segment, drawn }) => segment[0] === segmentationId && drawn.mask;
    if (!isCertain && ![...this.structures.values()].some(isDrawn)) return;
    this.edits.set(segmentationId, (this.edits.get(segmentationId) ?? 0) + 1);
    if (isCertain) {
      const seriesUid = this.opening.seriesOf.get(segmentationId);
      this.markUnsaved(seriesUid);
      this.work.noteEdits(segmentationId, seriesUid);
    }
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

  /** Draw masks, [structure, mask] each, from which later prompts start; one step of the history.
   *
   * Without isUndoable they are what the series is opened with, and no step. */
  startFrom(masks, { isUndoable = true } = {}) {
    if (isUndoable) this.#abort();
    const steps = masks.map(([structure, mask]) => {
      const earlier = structure.drawn;
      this.#draw(structure, startingFrom(mask));
      return { structure, earlier, later: structure.drawn };
    });
    if (!isUndoable) return;
    masks.forEach(([structure]) => this.#noteDrawn(structure));
    this.viewer.remember(isUndo => {
      this.#abort();
      for (const { structure, earlier, later } of isUndo ? [...steps].reverse() : steps) {
        this.#draw(structure, isUndo ? earlier : later);
        this.#noteDrawn(structure);
      }
    });
  }

  /** Note that a structure was drawn without a request. */
  #noteDrawn(structure) {
    this.markUnsaved(structure.seriesUid);
    this.work.note(structure);
  }

  /** Return what a request says about a structure: {prompts, size, start, name, number}. */
  async question(structure, { prompts, size, base }) {
    const { seriesUid, segment } = structure;
    const asked = { prompts, size, start: null, name: this.nameOf(structure), number: segment[1] };
    this.work.touch(seriesUid, asked.name);
    if (!base) return asked;
    base.file ??= this.client
      .grid(seriesUid)
      .then(grid => nrrdFile(this.viewer.labelmap(segment[0]).stored(grid), grid));
    base.file.catch(() => (base.file = null));
    const start = { file: await base.file, number: segment[1], overwrite: this.overwrite };
    return { ...asked, start };
  }

  // --- computing ---------------------------------------------------------------------------------

  /** Change a structure to {prompts}, {size} or both, ask for its mask and draw it.
   *
   * A newer request takes the place of an older one. Returns a promise of false if that happened to
   * this one. */
  compute(structure, change, { isUndoable = true, step = null } = {}) {
    Object.assign(structure, change);
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
      this.#draw(structure, isUndo ? step.earlier : step.later);
      if (step.later) this.#noteDrawn(structure);
      else this.work.note(structure); // the server has put the request into the journal
    } else if (step.asked) this.compute(structure, step.asked, { step });
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
      if (run.step) this.markUnsaved(structure.seriesUid);
      this.#draw(structure, { prompts, size, mask, base });
      if (canAsk) structure.recordedAs = this.nameOf(structure) ?? '';
      else this.work.note(structure);
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
    this.changed();
  }

  #setBusy(busy) {
    if (busy === this.busy) return;
    this.busy = busy;
    this.changed();
  }
}
