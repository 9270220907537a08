// What the user does to one study: prompts of each structure, requests, masks, undo and redo.

import { runsOf } from './labelmap.js';

const BUSY_MS = 300; // a computation that takes longer is shown
const ONLY_EXCLUDED = 'There are only excluding prompts: press on the structure without Ctrl, too.';
export const SIZES = { smallest: -2, largest: 2 };

/** A structure: its prompts, its size, and the mask that is drawn for them.
 *
 * drawn: {prompts, size, mask} as of the last reply; mask: {place, runs} or null. */
class Structure {
  constructor(segment, seriesUid) {
    this.segment = segment;
    this.seriesUid = seriesUid;
    this.set({ prompts: [], size: 0, mask: null });
  }

  set(drawn) {
    this.drawn = drawn;
    this.prompts = drawn.prompts;
    this.size = drawn.size;
  }
}

export class Session extends EventTarget {
  constructor(viewer, client) {
    super();
    this.viewer = viewer;
    this.client = client;
    this.structures = new Map();
    this.segmentations = new Map(); // image ID -> promise of its segmentation's ID
    this.running = null;
    this.busy = false;
  }

  start() {
    this.viewer.onImage(viewportId => this.#prepare(viewportId));
    this.viewer.onSegments(() => this.#changed());
    this.viewer.viewportIds().forEach(id => this.#prepare(id));
  }

  stop() {
    this.#abort();
    this.viewer.stop();
  }

  /** Tell the listeners of "change" that prompts, segments or the busy state changed. */
  #changed() {
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
      this.#changed();
    } catch (error) {
      this.viewer.notify(error.message);
    }
  }

  #segmentationOf(image) {
    if (!this.segmentations.has(image.id)) {
      const made = this.client
        .describe()
        .catch(() => ({ labels: [] }))
        .then(({ labels }) =>
          this.viewer.createSegmentation(image, labels.length ? labels : ['target'])
        );
      made.catch(() => this.segmentations.delete(image.id));
      this.segmentations.set(image.id, made);
    }
    return this.segmentations.get(image.id);
  }

  /** Return the structure that the user works on in a viewport, or null if there is none. */
  structure(viewportId = this.viewer.activeViewportId()) {
    const image = this.viewer.imageOf(viewportId);
    const segmentationId = this.viewer.activeSegmentation(viewportId);
    const number = this.viewer.activeSegment(viewportId);
    if (!image || !segmentationId || number === null) return null;
    const key = `${segmentationId}:${number}`;
    if (!this.structures.has(key))
      this.structures.set(key, new Structure([segmentationId, number], image.seriesUid));
    return this.structures.get(key);
  }

  // --- prompts -----------------------------------------------------------------------------------

  /** Add a prompt {kind, include, places} to the structure of a viewport; places in LPS mm. */
  add(viewportId, prompt) {
    const structure = this.structure(viewportId);
    if (!structure) {
      this.viewer.notify('The series is still being opened; press again in a moment.', 'info');
      return;
    }
    if (this.viewer.isLocked(structure.segment)) {
      this.viewer.notify('This structure is locked; unlock it in the segment table.', 'info');
      return;
    }
    this.#change(structure, { prompts: [...structure.prompts, prompt] });
  }

  remove(structure, prompt) {
    this.#change(structure, { prompts: structure.prompts.filter(other => other !== prompt) });
  }

  clear(structure) {
    this.#change(structure, { prompts: [] });
  }

  /** Ask for the next smaller (-1) or larger (1) answer to the same prompts. */
  resize(step) {
    const structure = this.structure();
    if (!structure?.prompts.length) return;
    const size = Math.min(SIZES.largest, Math.max(SIZES.smallest, structure.size + step));
    if (size !== structure.size) this.#change(structure, { size });
  }

  #change(structure, { prompts = structure.prompts, size = structure.size }) {
    structure.prompts = prompts;
    structure.size = size;
    this.#compute(structure);
    this.#changed();
  }

  // --- computing ---------------------------------------------------------------------------------

  /** Ask for the mask of the prompts and draw it; a newer request takes the place of an older one. */
  async #compute(structure) {
    this.#abort(structure);
    const { prompts, size } = structure;
    const run = { controller: new AbortController(), structure };
    this.running = run;
    run.timer = setTimeout(() => this.#setBusy(true), BUSY_MS);
    try {
      let mask = null;
      if (prompts.some(prompt => prompt.include)) mask = await this.#request(structure, run);
      else if (prompts.length) this.viewer.notify(ONLY_EXCLUDED, 'info');
      if (this.running !== run) return;
      const earlier = structure.drawn;
      this.#draw(structure, { prompts, size, mask });
      const later = structure.drawn;
      this.viewer.remember(isUndo => {
        this.#abort();
        this.#draw(structure, isUndo ? earlier : later);
      });
    } catch (error) {
      if (error.name === 'AbortError') return;
      if (this.running === run) structure.set(structure.drawn);
      this.viewer.notify(error.message);
    } finally {
      clearTimeout(run.timer);
      if (this.running === run) {
        this.running = null;
        this.#setBusy(false);
      }
      this.#changed();
    }
  }

  async #request(structure, run) {
    const { prompts, size, seriesUid } = structure;
    const asked = { prompts, size };
    const { voxels, place, warning } = await this.client.mask(
      seriesUid,
      asked,
      run.controller.signal
    );
    if (warning && this.running === run) this.viewer.notify(warning, 'warning');
    return { place, runs: runsOf(voxels, place.size_ijk[0]) };
  }

  /** End the request that runs; prompts of another structure than `keep` go back to what is drawn. */
  #abort(keep = null) {
    const run = this.running;
    if (!run) return;
    this.running = null;
    clearTimeout(run.timer);
    run.controller.abort();
    if (run.structure !== keep) run.structure.set(run.structure.drawn);
    this.#setBusy(false);
  }

  #draw(structure, drawn) {
    const [segmentationId, number] = structure.segment;
    const labelmap = this.viewer.labelmap(segmentationId);
    const changed = labelmap.replace(number, structure.drawn.mask, drawn.mask);
    structure.set(drawn);
    if (changed.length) this.viewer.redraw(segmentationId, changed);
    this.#changed();
  }

  #setBusy(busy) {
    if (busy === this.busy) return;
    this.busy = busy;
    this.#changed();
  }
}
