// The panel: tools, size, structures, and the prompts of the structure that the user works on.

import { make } from './dom.js';
import { KEY_LIST_STYLE, KeyList } from './key_list.js';
import { LearningView } from './learning.js';
import { SIZES } from './session.js';
import { StructuresView } from './structures_view.js';
import { KINDS } from './tools.js';

const STYLE = `
.fastsam3d-panel { flex: 1 1 0; min-height: 0; overflow-y: auto }
.fs { color: #e5e7eb; font-size: 13px; padding: 8px; display: flex; flex-direction: column; gap: 8px }
.fs button { background: #1e293b; border-radius: 4px; padding: 3px 8px; color: inherit }
.fs button:hover { background: #334155 }
.fs button[aria-pressed=true] { background: #0369a1 }
.fs button:disabled { opacity: .4 }
.fs .fs-row { display: flex; flex-wrap: wrap; gap: 4px; align-items: center }
.fs section { display: flex; flex-direction: column; gap: 6px }
.fs section > button { align-self: flex-start }
.fs ul { max-height: 30vh; overflow-y: auto; display: flex; flex-direction: column; gap: 2px }
.fs li { display: flex; gap: 6px; align-items: center; padding: 2px 4px; border-radius: 4px }
.fs li[aria-current=true] { background: #0c4a6e }
.fs li > span { flex: 1; cursor: pointer; overflow: hidden; text-overflow: ellipsis }
.fs .dot { width: 12px; height: 12px; border-radius: 6px; flex: none }
.fs-alert { background: #7f1d1d; border-radius: 4px; padding: 6px }
.fs h3 { color: #94a3b8 }
.fs input[type=text] { background: #1e293b; padding: 3px 6px; flex: 1; min-width: 0 }
.fs input[type=number], .fs select { background: #1e293b; width: 6em; padding: 2px 4px }
.fs img { width: 100% }
.fs summary { color: #94a3b8; cursor: pointer }
.fs-learn { display: flex; flex-direction: column; gap: 8px; padding-top: 8px }
[data-sonner-toast] { pointer-events: none !important }
[data-sonner-toast] button { pointer-events: auto !important }
.fs-busy { position: fixed; top: 60px; left: 50%; transform: translateX(-50%); z-index: 1000;
  background: #0369a1; color: white; padding: 4px 12px; border-radius: 12px; pointer-events: none }${KEY_LIST_STYLE}`;

export class Panel {
  constructor(node) {
    this.root = make('div', { class: 'fs' });
    node.replaceChildren(make('style', {}, STYLE), this.root);
    this.busy = make('div', { class: 'fs-busy', role: 'status' }, 'Computing …');
    this.keys = new KeyList();
    this.detach = () => {};
  }

  /** Show a session, or nothing for null. */
  attach(session) {
    this.detach();
    this.root.replaceChildren();
    this.busy.remove();
    this.keys.hide();
    this.detach = () => {};
    this.session = session;
    if (!session) return;
    this.learning = new LearningView(session.learning);
    this.structures = new StructuresView(session);
    const listeners = new AbortController();
    const redraw = () => this.#schedule();
    const options = { signal: listeners.signal };
    session.addEventListener('change', redraw, options);
    session.tools.addEventListener('change', redraw, options);
    session.tools.addEventListener('help', () => this.keys.toggle(), options);
    session.tools.addEventListener('add', () => this.#addStructure(), options);
    session.tools.addEventListener('escape', () => this.keys.hide(), options);
    this.detach = () => listeners.abort();
    this.#schedule();
  }

  #addStructure() {
    this.session.viewer.showPanel();
    this.structures.askName();
  }

  #schedule() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      if (this.session) this.#draw();
    });
  }

  #draw() {
    const { session } = this;
    const structure = session.structure();
    if (session.masks.isBusy) document.body.append(this.busy);
    else this.busy.remove();
    const focusAgain = this.structures.keepFocus();
    this.root.replaceChildren(
      this.#tools(),
      this.#size(structure),
      this.#conflict(structure),
      this.#others(structure),
      this.structures.draw(structure),
      this.#prompts(structure),
      this.#hints(),
      this.#stored(structure),
      this.learning.element,
      this.#foot()
    );
    focusAgain();
  }

  #tools() {
    const { tools } = this.session;
    const isActive = tools.isActive;
    const buttons = Object.entries(KINDS).map(([kind, { label, key, help }]) =>
      make(
        'button',
        {
          title: `${help} (${key}); Ctrl or the right button excludes`,
          'aria-pressed': isActive && tools.kind === kind,
          'data-kind': kind,
          onclick: () => tools.choose(kind),
        },
        label
      )
    );
    return make('div', { class: 'fs-row' }, ...buttons);
  }

  #size(structure) {
    const { session } = this;
    const size = structure?.size ?? 0;
    const button = (text, step, isLast) => {
      const made = make('button', { onclick: () => session.resize(step) }, text);
      made.disabled = !structure?.prompts.length || isLast;
      return made;
    };
    return make(
      'div',
      { class: 'fs-row' },
      button('[ smaller', -1, size === SIZES.smallest),
      make('span', { 'data-size': size }, size > 0 ? `+${size}` : `${size}`),
      button('larger ]', 1, size === SIZES.largest),
      make('button', { title: 'Ctrl + Z', onclick: () => session.viewer.undo() }, 'Undo'),
      make('button', { title: 'Ctrl + Y', onclick: () => session.viewer.redo() }, 'Redo')
    );
  }

  #prompts(structure) {
    if (!structure?.prompts.length)
      return make(
        'span',
        {},
        structure?.base ? 'Prompts start from this mask.' : 'Press on the structure in any plane. Ctrl + press excludes.'
      );
    const { session } = this;
    const rows = structure.prompts.map((prompt, index) => {
      const sign = prompt.include ? '+' : '−';
      const text = `${index + 1}. ${sign} ${KINDS[prompt.kind].label}`;
      return make(
        'li',
        { 'data-prompt': index },
        make('span', { onclick: () => session.viewer.jumpTo(prompt.places[0]) }, text),
        make(
          'button',
          { title: 'Remove this prompt', onclick: () => session.remove(structure, prompt) },
          '✕'
        )
      );
    });
    const clear = make('button', { onclick: () => session.clear(structure) }, 'Remove all');
    return make('section', {}, make('h3', {}, 'Prompts'), make('ul', {}, ...rows), clear);
  }

  /** What to do when someone else saved a label meanwhile. */
  #conflict(structure) {
    const { stored } = this.session;
    if (!stored.conflict || stored.conflict.seriesUid !== structure?.seriesUid) return '';
    const button = (title, text, onclick) => make('button', { title, onclick }, text);
    return make(
      'section',
      { role: 'alert', class: 'fs-alert' },
      make('p', {}, `Not saved: ${stored.conflict.message.split(';')[0]}.`),
      make(
        'div',
        { class: 'fs-row' },
        button('Draw their structures beside yours; then save', 'Add theirs', () =>
          stored.addTheirs()
        ),
        button('Save yours; theirs stays as an earlier version', 'Replace theirs', () =>
          stored.save({ isForced: true })
        )
      )
    );
  }

  /** The unsaved work of other users of this image. */
  #others(structure) {
    const { work } = this.session;
    const others = structure ? (work.others.get(structure.seriesUid) ?? []) : [];
    if (!others.length) return '';
    const rows = others.map(other => {
      const names = other.structures.map(({ name }) => name).join(', ');
      const time = new Date(other.time).toLocaleString();
      const go = () => work.continueWith(other, structure.seriesUid, structure.segment[0]);
      return make(
        'div',
        { class: 'fs-row', 'data-other': other.user },
        make('span', { title: time }, `${other.user || 'unknown user'}: ${names}`),
        make('button', { title: 'Draw these structures and go on', onclick: go }, 'Continue')
      );
    });
    return make('section', {}, make('h3', {}, 'Unsaved work of others'), ...rows);
  }

  #stored(structure) {
    const { stored } = this.session;
    const labels = structure ? stored.of(structure.seriesUid) : [];
    if (!labels.length) return '';
    const buttons = labels.map(label => {
      const names = label.structures.map(({ name }) => name).join(', ');
      const title = names || (label.description === undefined ? 'one structure' : 'from the PACS');
      const text = label.description ?? label.tag;
      const button = make('button', { title, onclick: () => stored.load(label) }, text || 'DICOM-SEG');
      button.disabled = stored.isLoading;
      return button;
    });
    return make(
      'section',
      { 'data-stored': labels.length },
      make('h3', {}, 'Start from a stored label'),
      make('div', { class: 'fs-row' }, ...buttons)
    );
  }

  #hints() {
    const { hints } = this.session;
    const { place } = hints;
    return make(
      'div',
      { class: 'fs-row' },
      make(
        'button',
        {
          title: 'Show where the mask may be wrong (u)',
          'aria-pressed': hints.isShown,
          'aria-busy': hints.isWaiting,
          onclick: () => hints.toggle(),
        },
        hints.isWaiting ? 'Uncertainty …' : 'Uncertainty'
      ),
      make(
        'button',
        { title: 'Go to the next place worth a click (n)', onclick: () => hints.next() },
        'Next place'
      ),
      make('span', { 'data-place': place?.number ?? 0 }, place ? `${place.number} of ${place.count}` : '')
    );
  }

  #foot() {
    const keys = make('button', { onclick: () => this.keys.toggle() }, '? Keys');
    const licences = make('a', { href: '/viewer/licences.txt', target: '_blank' }, 'Licences');
    return make('div', { class: 'fs-row' }, keys, licences);
  }
}
