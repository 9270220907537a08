// The pointer and the keys: press, box, lasso and scribble, each to include or to exclude.
//
// Everything is read from the page before cornerstone sees it. The left button includes, and
// excludes with Ctrl (or Cmd); the right button excludes. While our tool is not the active one of a
// viewport, OHIF's own tools have the pointer.

import { STILL_OPENING } from './session.js';

export const KINDS = {
  point: { label: 'Point', key: 'p', help: 'press on a structure' },
  box: { label: 'Box', key: 'o', help: 'drag around a structure' },
  lasso: { label: 'Lasso', key: 'l', help: 'draw around a structure' },
  scribble: { label: 'Scribble', key: 's', help: 'draw along a structure' },
};

export const KEYS = [
  ['Press', 'include the structure there'],
  ['Ctrl + press, or right button', 'exclude what is there'],
  ...Object.values(KINDS).map(({ label, key, help }) => [key, `${label}: ${help}`]),
  ['[ and ], Alt + wheel', 'smaller or larger answer to the same prompts'],
  ['u', 'show or hide the uncertainty of the mask'],
  ['n', 'go to the next place worth a click'],
  ['Ctrl + Z, Ctrl + Y', 'undo, redo'],
  ['a', 'add a structure: type its name'],
  ['1 … 9 with Alt', 'work on segment 1 … 9'],
  ['Shift + press', 'crosshairs'],
  ['?', 'show or hide this list'],
];

const PRESS_PX = 4; // a pointer that moved less was a press
const STEP_PX = 4; // distance of the points of a drawn path
const MIN_PATH = 3;
const MAX_PATH = 500; // the server takes 1000 places
const [LEFT, RIGHT] = [0, 2];
const CONTROLS = 'input, textarea, select, [contenteditable="true"]'; // the keys are theirs
const SWITCHES = ['checkbox', 'radio', 'range']; // but not those of these

export class PromptTools extends EventTarget {
  constructor(viewer, session) {
    super();
    this.viewer = viewer;
    this.session = session;
    this.kind = 'point';
    this.gesture = null;
    this.listeners = new AbortController();
    const options = { capture: true, signal: this.listeners.signal };
    const on = (name, handle) => document.addEventListener(name, handle.bind(this), options);
    on('pointerdown', this.#down);
    on('pointermove', this.#move);
    on('pointerup', this.#up);
    on('pointercancel', this.#cancel);
    on('mousedown', this.#keepFromOhif);
    on('contextmenu', this.#keepMenuAway);
    on('keydown', this.#key);
    document.addEventListener('wheel', this.#wheel.bind(this), { ...options, passive: false });
  }

  stop() {
    this.#cancel();
    this.listeners.abort();
  }

  /** Take the pointer for one kind of prompt. */
  choose(kind) {
    this.kind = kind;
    this.viewer.takePromptTool();
    this.dispatchEvent(new Event('change'));
  }

  /** Return whether the pointer in the active viewport belongs to our tool. */
  get isActive() {
    return this.viewer.hasPromptTool(this.viewer.activeViewportId());
  }

  // --- pointer -----------------------------------------------------------------------------------

  #down(event) {
    const viewportId = this.viewer.viewportAt(event.target);
    const isOurs = viewportId && !event.shiftKey && this.viewer.hasPromptTool(viewportId);
    if (!isOurs || ![LEFT, RIGHT].includes(event.button)) return;
    this.#cancel();
    const include = event.button === LEFT && !event.ctrlKey && !event.metaKey;
    this.gesture = {
      viewportId,
      include,
      kind: this.kind,
      points: [[event.clientX, event.clientY]],
      trace: this.kind === 'point' ? null : new Trace(include),
    };
  }

  #move(event) {
    const { gesture } = this;
    if (!gesture) return;
    const { points, kind, trace } = gesture;
    const point = [event.clientX, event.clientY];
    if (kind === 'point' || kind === 'box') points[1] = point;
    else if (distance(points.at(-1), point) >= STEP_PX) points.push(point);
    if (points.length > MAX_PATH) gesture.points = points.filter((_, n) => n % 2 === 0);
    trace?.show(kind, points);
  }

  #up(event) {
    const { gesture } = this;
    if (!gesture) return;
    this.#cancel();
    const { viewportId, include, kind, points } = gesture;
    const end = [event.clientX, event.clientY];
    const moved = points.length > 2 || distance(points[0], end) > PRESS_PX;
    if (kind === 'point' && moved) return; // the right button drags the zoom
    if (kind === 'box') points[1] = end;
    // a short stroke is a press, whatever the tool
    const short = !moved || (kind !== 'box' && kind !== 'point' && points.length < MIN_PATH);
    const used = short ? points.slice(0, 1) : points;
    this.session.add(viewportId, {
      kind: short ? 'point' : kind,
      include,
      // what is drawn may begin or end beside the image; a press there gets the server's message
      places: used.map(([x, y]) =>
        this.viewer.placeAt(viewportId, x, y, kind !== 'point' && !short)
      ),
    });
  }

  #cancel() {
    this.gesture?.trace?.remove();
    this.gesture = null;
  }

  /** The right button draws with our tools; only a press leaves the zoom to OHIF. */
  #keepFromOhif(event) {
    if (this.gesture && this.kind !== 'point' && event.button === RIGHT) event.stopPropagation();
  }

  #keepMenuAway(event) {
    const viewportId = this.viewer.viewportAt(event.target);
    if (viewportId && this.viewer.hasPromptTool(viewportId)) {
      event.preventDefault();
      event.stopPropagation();
    }
  }

  /** The wheel with Alt asks for a smaller or larger answer. */
  #wheel(event) {
    const viewportId = this.viewer.viewportAt(event.target);
    if (!event.altKey || !viewportId || !this.viewer.hasPromptTool(viewportId)) return;
    event.preventDefault();
    event.stopPropagation();
    if (event.deltaY) this.session.resize(event.deltaY < 0 ? 1 : -1);
  }

  // --- keys --------------------------------------------------------------------------------------

  #key(event) {
    const control = event.target.closest?.(CONTROLS);
    if (control && !SWITCHES.includes(control.type)) return;
    // OHIF's own undo and redo do not come from a switch that has the focus
    if (!this.#handleKey(event) && !(control && this.#handleHistory(event))) return;
    event.preventDefault();
    event.stopImmediatePropagation(); // OHIF has other uses for some of these keys
  }

  /** Return whether the key is ours. */
  #handleKey({ key, code, altKey, ctrlKey, metaKey }) {
    if (ctrlKey || metaKey) return false; // OHIF's own undo and redo
    const digit = /^Digit([1-9])$/.exec(code);
    if (altKey) {
      if (digit) this.#work(Number(digit[1]));
      return Boolean(digit);
    }
    if (key === '?') this.dispatchEvent(new Event('help'));
    else if (key === 'Escape') return this.#escape();
    else if (!this.isActive && !this.#kindOf(key)) return false;
    else if (key === '[' || key === ']') this.session.resize(key === ']' ? 1 : -1);
    else if (key === 'u') this.session.hints.toggle();
    else if (key === 'n') this.session.hints.next();
    else if (key === 'a') this.dispatchEvent(new Event('add')); // OHIF adds one without a name
    else if (this.#kindOf(key)) this.choose(this.#kindOf(key));
    else return false;
    return true;
  }

  /** Take back what is being drawn, or else hide the list of keys; return whether it was the former. */
  #escape() {
    const isDrawing = Boolean(this.gesture);
    if (isDrawing) this.#cancel();
    else this.dispatchEvent(new Event('escape'));
    return isDrawing;
  }

  #handleHistory({ key, shiftKey, ctrlKey, metaKey }) {
    if (!ctrlKey && !metaKey) return false;
    const isRedo = key === 'y' || (shiftKey && key.toLowerCase() === 'z');
    if (isRedo) this.viewer.redo();
    else if (key === 'z') this.viewer.undo();
    else return false;
    return true;
  }

  #kindOf(key) {
    return Object.keys(KINDS).find(kind => KINDS[kind].key === key);
  }

  #work(number) {
    const segmentationId = this.viewer.activeSegmentation(this.viewer.activeViewportId());
    if (segmentationId) this.viewer.setActiveSegment([segmentationId, number]);
    else this.viewer.notify(STILL_OPENING, 'info');
  }
}

function distance([x, y], [otherX, otherY]) {
  return Math.hypot(x - otherX, y - otherY);
}

/** What is being drawn, above the page until the button is released. */
class Trace {
  constructor(include) {
    const make = name => document.createElementNS('http://www.w3.org/2000/svg', name);
    this.svg = make('svg');
    this.svg.style.cssText = 'position:fixed;inset:0;width:100%;height:100%;z-index:1000';
    this.svg.style.pointerEvents = 'none';
    this.path = make('path');
    this.path.setAttribute('fill', 'none');
    this.path.setAttribute('stroke', include ? '#4ade80' : '#f87171');
    this.path.setAttribute('stroke-width', '2');
    this.svg.append(this.path);
    document.body.append(this.svg);
  }

  show(kind, points) {
    const [[left, top], [right, bottom]] = [points[0], points.at(-1)];
    const line =
      kind === 'box' ? [points[0], [right, top], points.at(-1), [left, bottom]] : points;
    const closed = kind === 'scribble' ? '' : 'Z';
    this.path.setAttribute('d', `M${line.map(point => point.join(' ')).join('L')}${closed}`);
  }

  remove() {
    this.svg.remove();
  }
}
