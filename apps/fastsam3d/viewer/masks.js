// Masks of structures: asked for, drawn, taken back and done again.
//
// Each change of a structure is a step of the history as soon as it is made. A newer change ends the
// request of the one before, whose mask is asked for again when undo comes back to it.

import { runsOf } from './labelmap.js';
import { startingFrom } from './structure.js';

const BUSY_MS = 300; // a computation that takes longer is shown
const ONLY_EXCLUDED = 'There are only excluding prompts: press on the structure without Ctrl, too.';

/** The request for the mask of a state. */
class Run {
  constructor(structure, state, showBusy) {
    this.structure = structure;
    this.state = state;
    this.controller = new AbortController();
    this.isLong = false;
    this.timer = setTimeout(() => {
      this.isLong = true;
      showBusy();
    }, BUSY_MS);
  }
}

export class Masks {
  constructor(viewer, client, session) {
    this.viewer = viewer;
    this.client = client;
    this.session = session;
    this.overwrite = false; // whether a mask takes voxels of other structures
    this.running = new Set();
  }

  /** Return whether a computation takes so long that the user is to see it. */
  get isBusy() {
    return [...this.running].some(run => run.isLong);
  }

  /** Return a promise that ends when no mask is computed any more. */
  async settled() {
    while (this.running.size) await Promise.all([...this.running].map(run => run.finished));
  }

  /** End all requests; their masks are not drawn. */
  stop() {
    this.running.forEach(run => this.#end(run.structure));
  }

  // --- changes -----------------------------------------------------------------------------------

  /** Change a structure to {prompts}, {size} or both, and draw its mask once it is there.
   *
   * The change is a step of the history, but without isUndoable. Returns a promise that ends when the
   * mask is drawn, or not wanted any more. */
  change(structure, change, { isUndoable = true } = {}) {
    const earlier = structure.wanted;
    const { prompts, size, base } = { ...earlier, ...change };
    const canAsk = base ? prompts.length : prompts.some(prompt => prompt.include);
    if (!canAsk && prompts.length) this.viewer.notify(ONLY_EXCLUDED, 'info');
    const mask = canAsk ? undefined : (base?.mask ?? null);
    const later = { prompts, size, base, mask, earlier, memo: null };
    if (isUndoable) later.memo = this.#remember([{ structure, earlier, later }]);
    return this.#go(structure, later, isUndoable);
  }

  /** Draw masks, [structure, mask] each, from which later prompts start; one step of the history.
   *
   * Without isUndoable they are what the series is opened with, and no step. */
  startFrom(masks, { isUndoable = true } = {}) {
    const changes = masks.map(([structure, mask]) => {
      return { structure, earlier: structure.wanted, later: startingFrom(mask) };
    });
    changes.forEach(({ structure, later }) => this.#go(structure, later, isUndoable));
    if (isUndoable) this.#remember(changes);
  }

  /** Put changes {structure, earlier, later} into the history as one step, and return its memo. */
  #remember(changes) {
    return this.viewer.remember(isUndo => {
      for (const { structure, earlier, later } of isUndo ? [...changes].reverse() : changes)
        this.#go(structure, isUndo ? earlier : later);
    });
  }

  /** Bring a structure to a state: draw its mask, or ask for it first.
   *
   * Without isWork the server has it already, as a label or in the journal. */
  async #go(structure, state, isWork = true) {
    this.#end(structure);
    structure.wanted = state;
    if (state.mask === undefined) {
      await this.#compute(structure, state, isWork);
      return;
    }
    const isNew = state !== structure.drawn;
    if (isNew && isWork) this.session.markUnsaved(structure.seriesUid);
    if (isNew) this.#draw(structure, state);
    if (isWork) this.session.work.note(structure); // the journal may have a request that was ended
    this.session.changed();
  }

  #draw(structure, state) {
    const [segmentationId, number] = structure.segment;
    const { changed, taken } = this.viewer
      .labelmap(segmentationId)
      .replace(
        number,
        structure.drawn.mask,
        state.mask,
        other => this.overwrite && !this.viewer.isLocked([segmentationId, other]),
        structure.taken
      );
    structure.taken = taken;
    structure.drawn = state;
    if (changed.length) this.viewer.redraw(segmentationId, changed);
  }

  // --- computing ---------------------------------------------------------------------------------

  #compute(structure, state, isWork) {
    const run = new Run(structure, state, () => this.session.changed());
    structure.run = run;
    this.running.add(run);
    run.finished = this.#finish(run, isWork);
    this.session.changed();
    return run.finished;
  }

  async #finish(run, isWork) {
    const { structure, state } = run;
    try {
      const mask = await this.#request(run);
      if (structure.run !== run) return;
      if (isWork) this.session.markUnsaved(structure.seriesUid);
      state.mask = mask;
      this.#draw(structure, state);
      structure.recordedAs = this.session.nameOf(structure) ?? '';
      state.earlier = null;
      this.#end(structure);
    } catch (error) {
      if (structure.run !== run) return; // nobody waits for what it says
      this.#end(structure);
      this.viewer.notify(error.message);
      this.#goBack(structure, state, error.isRefusal);
    }
    this.session.changed();
  }

  async #request({ structure, state, controller }) {
    const asked = await this.session.question(structure, state);
    const { signal } = controller;
    const { arrays, place, warning } = await this.client.mask(structure.seriesUid, asked, signal);
    if (warning && !signal.aborted) this.viewer.notify(warning, 'warning');
    return { place, runs: runsOf(arrays.mask, place.size_ijk[0], asked.start?.number) };
  }

  /** End the request for a structure's mask, if there is one. */
  #end(structure) {
    const { run } = structure;
    if (!run) return;
    clearTimeout(run.timer);
    run.controller.abort();
    structure.run = null;
    this.running.delete(run);
  }

  /** Leave a state whose mask cannot be had, which is no step of the history any more.
   *
   * isRefused: the server did not take its prompts, so that the change before is asked for. Else the
   * server gives no masks, and the last state with a mask is drawn. */
  #goBack(structure, state, isRefused) {
    let back = state;
    do {
      if (back.memo) this.viewer.forget(back.memo);
      back = back.earlier;
    } while (back.mask === undefined && !isRefused);
    this.#go(structure, back, back !== structure.drawn);
  }
}
