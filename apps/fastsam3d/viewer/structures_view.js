// The panel's list of structures: choose one, add one by its name, save all.

import { make } from './dom.js';

const LONGEST_NAME = 64; // characters of a segment's label in DICOM

export class StructuresView {
  constructor(session) {
    this.session = session;
    this.name = null; // the field for a new structure's name, while there is one
  }

  /** Return the section, for the structure that the user works on or null. */
  draw(structure) {
    const { viewer } = this.session;
    const viewportId = viewer.activeViewportId();
    const segmentationId = structure?.segment[0] ?? viewer.activeSegmentation(viewportId);
    if (!segmentationId) return make('span', {}, 'The series is being opened …');
    const rows = viewer
      .segments(segmentationId, viewportId)
      .map(segment => this.#row(segmentationId, segment, structure?.segment[1]));
    return make(
      'section',
      {},
      make('h3', {}, 'Structures'),
      make('ul', {}, ...rows),
      this.name ? this.#naming(segmentationId) : '',
      make('div', { class: 'fs-row' }, this.#addButton(), this.#saveButton(structure)),
      this.#overwriteSwitch()
    );
  }

  /** Return a function that gives the field of the name the focus back, if it has it now. */
  keepFocus() {
    const { name } = this;
    return name && document.activeElement === name ? () => name.focus() : () => {};
  }

  #row(segmentationId, { number, label, color }, current) {
    return make(
      'li',
      { 'aria-current': current === number, 'data-segment': number },
      make('i', { class: 'dot', style: `background: rgb(${color.join(',')})` }),
      make(
        'span',
        { onclick: () => this.session.viewer.setActiveSegment([segmentationId, number]) },
        label ?? `Segment ${number}`
      )
    );
  }

  // --- a new structure ---------------------------------------------------------------------------

  #addButton() {
    return make('button', { onclick: () => this.askName() }, 'New structure');
  }

  /** Show the field for the name of a new structure. */
  askName() {
    this.name ??= make('input', {
      type: 'text',
      'aria-label': 'Name of the structure',
      placeholder: 'Name, then Enter',
      maxlength: LONGEST_NAME,
    });
    this.session.changed();
    // the panel draws itself with the next frame
    requestAnimationFrame(() => requestAnimationFrame(() => this.name?.focus()));
  }

  #naming(segmentationId) {
    this.name.onkeydown = event => {
      event.stopPropagation();
      if (event.key === 'Enter') this.#add(segmentationId);
      else if (event.key === 'Escape') this.#endNaming();
    };
    const add = make('button', { onclick: () => this.#add(segmentationId) }, 'Add');
    return make('div', { class: 'fs-row' }, this.name, add);
  }

  /** Add a structure of the typed name, or choose the one that has it. */
  #add(segmentationId) {
    const { viewer } = this.session;
    const label = this.name.value.trim();
    this.#endNaming();
    if (!label) return;
    const number = viewer.segmentNamed(segmentationId, label, viewer.activeViewportId());
    viewer.setActiveSegment([segmentationId, number]);
  }

  #endNaming() {
    this.name = null;
    this.session.changed();
  }

  // --- all structures ----------------------------------------------------------------------------

  #saveButton(structure) {
    const { stored, unsaved } = this.session;
    const isUnsaved = structure && unsaved.has(structure.seriesUid);
    const save = make(
      'button',
      { title: 'Save all structures on the server', onclick: () => stored.save() },
      stored.isSaving ? 'Saving …' : isUnsaved ? 'Save •' : 'Save'
    );
    save.disabled = stored.isSaving;
    return save;
  }

  #overwriteSwitch() {
    const overwrite = make('input', {
      type: 'checkbox',
      onchange: () => (this.session.masks.overwrite = overwrite.checked),
    });
    overwrite.checked = this.session.masks.overwrite;
    return make('label', {}, overwrite, ' A new mask may take voxels of other structures');
  }
}
