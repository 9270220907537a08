// A canvas above each plane, which nothing but our own drawing changes.

/** Return the product of two vectors; the second one may be longer. */
export function dot(first, second) {
  return first.reduce((sum, part, n) => sum + part * second[n], 0);
}

/** Return {x, y, offMm}: the pixel of a place in LPS mm, and its distance from the plane.
 *
 * plane: {origin, right, down}, LPS mm of the first pixel and of a step of a pixel. */
export function pixelOf(place, { origin, right, down }) {
  const from = place.map((mm, n) => mm - origin[n]);
  const [x, y] = [right, down].map(step => dot(from, step) / dot(step, step));
  const beside = from.map((mm, n) => mm - x * right[n] - y * down[n]);
  return { x, y, offMm: Math.sqrt(dot(beside, beside)) };
}

/** The canvases of one layer, by viewport. */
export class Layer {
  constructor(className) {
    this.className = className;
    this.canvases = new Map();
  }

  /** Return the empty canvas above a plane, in the size of the plane. */
  clear(viewportId, { element, width, height }) {
    if (!this.canvases.has(viewportId)) {
      const canvas = document.createElement('canvas');
      canvas.className = this.className;
      canvas.style.cssText = 'position:absolute;left:0;top:0;pointer-events:none';
      this.canvases.set(viewportId, canvas);
    }
    const canvas = this.canvases.get(viewportId);
    if (canvas.parentNode !== element) element.append(canvas);
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    canvas.getContext('2d').clearRect(0, 0, width, height);
    return canvas;
  }

  remove(viewportId) {
    this.canvases.get(viewportId)?.remove();
  }

  stop() {
    this.canvases.forEach(canvas => canvas.remove());
    this.canvases.clear();
  }
}
