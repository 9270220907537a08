// The work on a series in the server's journal: restored when the series is opened.
//
// The server writes each request for a mask into the journal by itself. What is drawn without a
// request (undo, removal, a loaded label, OHIF's brush) is recorded here a moment later. The browser
// keeps nothing but a name for itself, which stands for the user where nobody signs in.

import { nrrdFile, runsOf } from './labelmap.js';

const RECORD_AFTER_MS = 800; // of a change: several steps of undo are one record
const RESTORE_PATIENCE_MS = 3000; // that a press waits until the work is drawn

/** Return whether a structure of the journal has something to draw. */
function hasMask({ prompts, mask }) {
  return prompts.length > 0 || mask !== '';
}

export class Work {
  constructor(viewer, client, session) {
    this.viewer = viewer;
    this.client = client;
    this.session = session;
    this.restored = new Map(); // series UID -> promise that ends when its work is drawn
    this.others = new Map(); // series UID -> unsaved work of other users, [{user, time, structures}]
    this.names = new Map(); // series UID -> names of the structures that this page worked on
    this.waiting = new Map(); // what is to be recorded -> its timer
    this.sending = new Set();
  }

  /** Note that this page works on a structure of this name. */
  touch(seriesUid, name) {
    if (!this.names.has(seriesUid)) this.names.set(seriesUid, new Set());
    if (name) this.names.get(seriesUid).add(name);
  }

  /** Return the names of the structures of a series that this page worked on. */
  namesOf(seriesUid) {
    return [...(this.names.get(seriesUid) ?? [])];
  }

  /** Draw the saved label and the own unsaved work of a series, once. */
  restore(seriesUid, segmentationId) {
    if (!this.restored.has(seriesUid))
      this.restored.set(seriesUid, this.#restore(seriesUid, segmentationId));
    return this.restored.get(seriesUid);
  }

  /** Return a promise that ends when the work is drawn, or after some seconds. */
  isRestored(seriesUid) {
    const patience = new Promise(done => setTimeout(done, RESTORE_PATIENCE_MS));
    return Promise.race([this.restored.get(seriesUid)?.catch(() => {}), patience]);
  }

  async #restore(seriesUid, segmentationId) {
    await this.session.stored.drawSaved(seriesUid, segmentationId);
    const { own, others } = await this.client.work(seriesUid);
    this.others.set(seriesUid, others);
    // what was undone or removed is a change if there is a saved label
    if (own.structures.some(hasMask) || (own.structures.length && this.session.stored.isSaved(seriesUid)))
      this.session.markUnsaved(seriesUid);
    await this.#draw(seriesUid, segmentationId, own.structures, false);
    this.session.changed();
  }

  /** Go on with the unsaved work of another user; each structure is a step of the history. */
  async continueWith(work, seriesUid, segmentationId) {
    this.others.set(
      seriesUid,
      this.others.get(seriesUid).filter(other => other !== work)
    );
    this.session.changed();
    try {
      await this.#draw(seriesUid, segmentationId, work.structures.filter(hasMask), true);
    } catch (error) {
      this.viewer.notify(error.message);
    }
  }

  async #draw(seriesUid, segmentationId, structures, isUndoable) {
    for (const kept of structures)
      try {
        await this.#drawOne(seriesUid, segmentationId, kept, isUndoable);
      } catch (error) {
        this.viewer.notify(`${kept.name} is not restored: ${error.message}`);
      }
  }

  async #drawOne(seriesUid, segmentationId, { name, prompts, size, mask, number }, isUndoable) {
    const { session } = this;
    const viewportId = this.viewer.activeViewportId();
    const segment = this.viewer.segmentNamed(segmentationId, name, viewportId);
    const structure = session.structureOf([segmentationId, segment], seriesUid);
    if (structure.prompts.length && !isUndoable) return; // a press of the user came first
    const base = mask ? await this.#keptMask(seriesUid, mask, number) : null;
    structure.recordedAs = name;
    this.touch(seriesUid, name);
    session.masks.startFrom([[structure, base]], { isUndoable });
    if (prompts.length) await session.masks.change(structure, { prompts, size }, { isUndoable });
  }

  async #keptMask(seriesUid, digest, number) {
    const { voxels, place } = await this.client.keptMask(seriesUid, digest);
    return { place, runs: runsOf(voxels, place.size_ijk[0], number) };
  }

  // --- recording ---------------------------------------------------------------------------------

  /** Record what is drawn for a structure, in a moment. */
  note(structure) {
    this.#later(structure, () => this.#record(structure));
  }

  /** Record what others, such as OHIF's brush, made of a segmentation, in a moment. */
  noteEdits(segmentationId, seriesUid) {
    this.#later(segmentationId, () => this.#recordEdits(segmentationId, seriesUid));
  }

  /** Record the structures whose name changed or whose segment is gone. */
  noteNames() {
    for (const structure of this.session.structures.values()) {
      const { recordedAs } = structure;
      const name = this.session.nameOf(structure) ?? '';
      if (!recordedAs || name === recordedAs) continue;
      structure.recordedAs = name;
      this.#later(`${structure.seriesUid} ${recordedAs}`, () => this.#forget(structure, recordedAs));
      if (name) this.note(structure);
    }
  }

  #later(key, record) {
    clearTimeout(this.waiting.get(key)?.timer);
    const send = () => {
      clearTimeout(this.waiting.get(key)?.timer);
      this.waiting.delete(key);
      const sent = record().catch(error => this.viewer.notify(error.message, 'warning'));
      this.sending.add(sent);
      sent.finally(() => this.sending.delete(sent));
    };
    this.waiting.set(key, { send, timer: setTimeout(send, RECORD_AFTER_MS) });
  }

  /** Record what waits now; the promise ends when the journal has it. */
  async flush() {
    [...this.waiting.values()].forEach(({ send }) => send());
    await Promise.all(this.sending);
  }

  async #record(structure) {
    const name = this.session.nameOf(structure);
    if (!name) return;
    structure.recordedAs = name;
    await structure.run?.finished; // the journal has its request, which is older than this record
    const asked = await this.session.question(structure, structure.drawn);
    await this.client.record(structure.seriesUid, asked);
  }

  #forget({ seriesUid, segment }, name) {
    this.touch(seriesUid, name);
    const asked = { prompts: [], size: 0, start: null, name, number: segment[1] };
    return this.client.record(seriesUid, asked);
  }

  async #recordEdits(segmentationId, seriesUid) {
    const labelmap = this.viewer.labelmap(segmentationId);
    const changed = this.viewer
      .segments(segmentationId, this.viewer.activeViewportId())
      .map(({ number }) => this.session.structureOf([segmentationId, number], seriesUid))
      .filter(({ segment, drawn }) => !labelmap.holds(segment[1], drawn.mask));
    if (!changed.length) return;
    const grid = await this.client.grid(seriesUid);
    const file = await nrrdFile(labelmap.stored(grid), grid);
    for (const structure of changed) {
      const { segment } = structure;
      const name = this.session.nameOf(structure);
      structure.recordedAs = name;
      this.touch(seriesUid, name);
      const start = { file, number: segment[1], overwrite: false };
      await this.client.record(seriesUid, { prompts: [], size: 0, start, name, number: segment[1] });
    }
  }
}
