// The labels of an image on the server: saved, listed, and loaded as what prompts start from.

import { nrrdFile, runsOf } from './labelmap.js';

export class StoredLabels {
  constructor(viewer, client, session) {
    this.viewer = viewer;
    this.client = client;
    this.session = session;
    this.lists = new Map(); // series UID -> its labels, [{tag, structures}], or null while asked for
    this.isLoading = false;
    this.isSaving = false;
  }

  /** Save all structures of the series in the active viewport as a label on the server. */
  async save() {
    const structure = this.session.structure();
    if (!structure || this.isSaving) return;
    this.isSaving = true;
    this.session.changed();
    try {
      const names = await this.#send(structure);
      this.session.isUnsaved = false;
      this.session.keep(structure.segment[0], structure.seriesUid);
      this.refresh(structure.seriesUid);
      this.viewer.notify(`The label is saved: ${names.join(', ')}`, 'success');
    } catch (error) {
      this.viewer.notify(error.message);
    } finally {
      this.isSaving = false;
      this.session.changed();
    }
  }

  /** Send the label, and return the names of its structures. */
  async #send({ segment: [segmentationId], seriesUid }) {
    const grid = await this.client.grid(seriesUid);
    const voxels = this.viewer.labelmap(segmentationId).stored(grid);
    const used = new Set(voxels);
    const labels = this.viewer
      .segments(segmentationId, this.viewer.activeViewportId())
      .filter(({ number }) => used.has(number))
      .map(({ number, label, color }) => ({ name: label, idx: number, color }));
    if (!labels.length) throw new Error('There is nothing to save: every structure is empty.');
    await this.client.save(seriesUid, await nrrdFile(voxels, grid), labels);
    return labels.map(({ name }) => name);
  }

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

  /** Draw a stored label over the structures of the same names; missing ones are added. */
  async load({ tag, structures }) {
    const structure = this.session.structure();
    if (!structure || this.isLoading) return;
    this.isLoading = true;
    this.session.changed();
    try {
      const { voxels, place } = await this.client.label(structure.seriesUid, tag);
      const [segmentationId] = structure.segment;
      const viewportId = this.viewer.activeViewportId();
      const names = new Map(structures.map(({ idx, name }) => [idx, name]));
      const numbers = [...new Set(voxels)].filter(Boolean).sort((a, b) => a - b);
      const masks = numbers.map(number => {
        const name = names.get(number) ?? `${tag} ${number}`;
        const segment = this.viewer.segmentNamed(segmentationId, name, viewportId);
        const runs = runsOf(voxels, place.size_ijk[0], number);
        const owner = this.session.structureOf([segmentationId, segment], structure.seriesUid);
        return [owner, { place, runs }];
      });
      if (!masks.length) throw new Error(`The label ${tag} is empty.`);
      this.session.startFrom(masks);
    } catch (error) {
      this.viewer.notify(error.message);
    } finally {
      this.isLoading = false;
      this.session.changed();
    }
  }
}
