// The labels of an image: saved, listed, and drawn as what prompts start from.

import { nrrdFile, runsOf } from './labelmap.js';

const FINAL = 'final'; // tag of the label that Save writes
const CONFLICT = 409; // status of the reply if there is a newer label

export class StoredLabels {
  constructor(viewer, client, session) {
    this.viewer = viewer;
    this.client = client;
    this.session = session;
    this.lists = new Map(); // series UID -> its labels, or null while asked for
    this.versions = new Map(); // series UID -> version of the final label that the user has seen
    this.conflict = null; // {seriesUid, message} after a save that would replace a newer label
    this.isLoading = false;
    this.isSaving = false;
  }

  /** Return whether a series has a saved label that was drawn. */
  isSaved(seriesUid) {
    return Boolean(this.versions.get(seriesUid));
  }

  // --- saving ------------------------------------------------------------------------------------

  /** Save all structures of the series in the active viewport as a label on the server.
   *
   * A label that someone else saved meanwhile is not replaced, but with isForced: then it stays as an
   * earlier version. */
  async save({ isForced = false } = {}) {
    const structure = this.session.structure();
    if (!structure || this.isSaving) return;
    const { seriesUid } = structure;
    if (!isForced && this.isSaved(seriesUid) && !this.session.unsaved.has(seriesUid)) {
      this.viewer.notify('Nothing has changed since the label was saved.', 'info');
      return;
    }
    this.isSaving = true;
    this.conflict = null;
    this.session.changed();
    try {
      const names = await this.#send(structure, isForced);
      this.session.unsaved.delete(seriesUid);
      this.refresh(seriesUid);
      this.viewer.notify(`The label is saved: ${names.join(', ')}`, 'success');
    } catch (error) {
      if (error.status === CONFLICT) this.conflict = { seriesUid, message: error.message };
      else this.viewer.notify(error.message);
    } finally {
      this.isSaving = false;
      this.session.changed();
    }
  }

  /** Send the label, and return the names of its structures. */
  async #send({ segment: [segmentationId], seriesUid }, isForced) {
    await this.session.masks.settled(); // what is being computed belongs to it
    await this.session.work.flush();
    const grid = await this.client.grid(seriesUid);
    const voxels = this.viewer.labelmap(segmentationId).stored(grid);
    const used = new Set(voxels);
    const labels = this.viewer
      .segments(segmentationId, this.viewer.activeViewportId())
      .filter(({ number }) => used.has(number))
      .map(({ number, label, color }) => ({ name: label, idx: number, color }));
    if (!labels.length) throw new Error('There is nothing to save: every structure is empty.');
    const base = isForced ? null : (this.versions.get(seriesUid) ?? 0);
    const file = await nrrdFile(voxels, grid);
    const names = labels.map(({ name }) => name);
    const known = [...new Set([...names, ...this.session.work.namesOf(seriesUid)])];
    this.versions.set(seriesUid, await this.client.save(seriesUid, file, labels, known, base));
    return names;
  }

  /** Draw the structures of the newer label that the user has not drawn, so that Save keeps both. */
  async addTheirs() {
    const { seriesUid } = this.conflict;
    this.conflict = null;
    const [segmentationId] = this.session.structure()?.segment ?? [];
    if (!segmentationId) return;
    const drawn = [...this.session.structures.values()].filter(
      ({ segment, drawn: { mask } }) => segment[0] === segmentationId && mask?.runs.length
    );
    const own = new Set(drawn.map(structure => this.session.nameOf(structure)));
    await this.#draw({ tag: FINAL }, seriesUid, segmentationId, { own });
    this.session.markUnsaved(seriesUid);
  }

  // --- loading -----------------------------------------------------------------------------------

  /** Return the labels of a series as far as they are known; they are asked for once. */
  of(seriesUid) {
    if (!this.lists.has(seriesUid)) this.refresh(seriesUid);
    return this.lists.get(seriesUid) ?? [];
  }

  async refresh(seriesUid) {
    this.lists.set(seriesUid, this.lists.get(seriesUid) ?? null);
    try {
      this.lists.set(seriesUid, await this.client.labels(seriesUid));
      this.session.changed();
    } catch (error) {
      this.viewer.notify(error.message);
    }
  }

  /** Draw the saved label of a series that is opened. */
  async drawSaved(seriesUid, segmentationId) {
    const saved = (await this.client.labels(seriesUid, false)).find(({ tag }) => tag === FINAL);
    if (saved) await this.#draw(saved, seriesUid, segmentationId, { isUndoable: false });
  }

  /** Draw a label over the structures of the same names; missing ones are added. */
  async load(label) {
    const structure = this.session.structure();
    if (structure) await this.#draw(label, structure.seriesUid, structure.segment[0]);
  }

  async #draw(label, seriesUid, segmentationId, { own = new Set(), isUndoable = true } = {}) {
    if (this.isLoading) return;
    this.isLoading = true;
    this.session.changed();
    try {
      const { voxels, place } = await this.client.label(seriesUid, label.tag);
      const masks = this.#masksOf(label, voxels, place, segmentationId, seriesUid, own);
      if (!masks.length && !own.size && isUndoable) throw new Error(`The label ${label.tag} is empty.`);
      this.session.masks.startFrom(masks, { isUndoable });
      if (label.tag === FINAL) this.versions.set(seriesUid, place.version ?? 0);
    } catch (error) {
      this.viewer.notify(error.message);
    } finally {
      this.isLoading = false;
      this.session.changed();
    }
  }

  /** Return [structure, mask] of each structure of a label, but of those that are the user's own. */
  #masksOf(label, voxels, place, segmentationId, seriesUid, own) {
    const viewportId = this.viewer.activeViewportId();
    const names = new Map((place.structures ?? []).map(({ idx, name }) => [idx, name]));
    const numbers = [...new Set(voxels)].filter(Boolean).sort((a, b) => a - b);
    return numbers
      .map(number => [number, names.get(number) ?? `${label.description ?? label.tag} ${number}`])
      .filter(([, name]) => !own.has(name))
      .map(([number, name]) => {
        const segment = this.viewer.segmentNamed(segmentationId, name, viewportId);
        const runs = runsOf(voxels, place.size_ijk[0], number);
        return [this.session.structureOf([segmentationId, segment], seriesUid), { place, runs }];
      });
  }
}
