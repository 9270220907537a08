// The prompts of the structure that the user works on, drawn where they were made.

import { Layer, pixelOf } from './layer.js';

const [INCLUDED, EXCLUDED] = ['#4ade80', '#f87171'];
const NEAR_MM = 2; // a prompt is bright in planes that are as near
const SEEN_MM = 6; // and pale in planes that are as near; a path is drawn in its own plane only
const RADIUS_PX = 6;

/** The layer of the prompts, in all viewports. */
export class PromptMarks {
  constructor(viewer, session) {
    this.viewer = viewer;
    this.session = session;
    this.layer = new Layer('fs-marks');
    this.listeners = new AbortController();
    const options = { signal: this.listeners.signal };
    session.addEventListener('change', () => this.#drawAll(), options);
    viewer.onRendered(viewportId => this.#draw(viewportId));
  }

  stop() {
    this.listeners.abort();
    this.layer.stop();
  }

  #drawAll() {
    this.viewer.viewportIds().forEach(id => this.#draw(id));
  }

  #draw(viewportId) {
    const prompts = this.session.structure(viewportId)?.prompts ?? [];
    const plane = prompts.length ? this.viewer.planeOf(viewportId) : null;
    if (!plane) {
      this.layer.remove(viewportId);
      return;
    }
    const context = this.layer.clear(viewportId, plane).getContext('2d');
    prompts.forEach(prompt => drawPrompt(context, prompt, plane));
  }
}

function drawPrompt(context, { kind, include, places }, plane) {
  const pixels = places.map(place => pixelOf(place, plane));
  const offMm = Math.max(...pixels.map(pixel => pixel.offMm));
  if (offMm > (kind === 'point' ? SEEN_MM : NEAR_MM)) return;
  context.globalAlpha = offMm <= NEAR_MM ? 1 : 0.4;
  const path = new Path2D();
  if (kind === 'point') addSign(path, pixels[0], include);
  else if (kind === 'box') addBox(path, pixels);
  else addPath(path, pixels, kind === 'lasso');
  // dark below bright: it is seen on every tissue
  for (const [colour, width] of [['#000', 3.5], [include ? INCLUDED : EXCLUDED, 1.5]]) {
    context.strokeStyle = colour;
    context.lineWidth = width;
    context.stroke(path);
  }
  context.globalAlpha = 1;
}

/** Add a circle with a plus or a minus. */
function addSign(path, { x, y }, include) {
  const arm = RADIUS_PX / 2;
  path.arc(x, y, RADIUS_PX, 0, 2 * Math.PI);
  path.moveTo(x - arm, y);
  path.lineTo(x + arm, y);
  if (!include) return;
  path.moveTo(x, y - arm);
  path.lineTo(x, y + arm);
}

function addBox(path, [first, last]) {
  path.rect(first.x, first.y, last.x - first.x, last.y - first.y);
}

function addPath(path, pixels, isClosed) {
  pixels.forEach(({ x, y }, n) => (n ? path.lineTo(x, y) : path.moveTo(x, y)));
  if (isClosed) path.closePath();
}
