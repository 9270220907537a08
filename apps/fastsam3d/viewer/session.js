// What the user does to one study: prompts of each structure, and what others draw.

import { nrrdFile, runsOf } from './labelmap.js';
import { Masks } from './masks.js';
import { Opening } from './opening.js';
import { Structure, startingFrom } from './structure.js';
import { Work } from './work.js';

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
    this.unsaved = new Set(); // series UIDs
    this.masks = new Masks(viewer, client, this);
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
    this.masks.stop();
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
      await this.masks.change(structure, change());
    } catch (error) {
      this.viewer.notify(error.message);
    }
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
    await structure.run?.finished; // its mask is among what is there
    const grid = await this.client.grid(structure.seriesUid);
    const edits = this.#editsOf(structure);
    if (structure.edits === edits) return; // another change of the structure waited, too
    structure.edits = edits;
    const [segmentationId, number] = structure.segment;
    const labelmap = this.viewer.labelmap(segmentationId);
    if (labelmap.holds(number, structure.drawn.mask)) return;
    const place = { size_ijk: grid.shape_ijk, affine_lps: grid.affine_lps };
    const runs = runsOf(labelmap.stored(grid), grid.shape_ijk[0], number);
    structure.set(startingFrom(runs.length ? { place, runs } : null));
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
    const start = { file: await base.file, number: segment[1], overwrite: this.masks.overwrite };
    return { ...asked, start };
  }
}
