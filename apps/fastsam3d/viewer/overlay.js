// What is drawn above the planes: the uncertainty as a veil, and the place that is worth a click.
//
// It is no segmentation of OHIF: it cannot be saved by mistake, and is no row in the segment table.

import { Layer, dot, pixelOf } from './layer.js';

const STEP_PX = 2; // the veil has a cell for so many pixels of the plane, in each direction
const COLOUR = [255, 160, 0];
const OPAQUE = 200; // opacity of 255 where a label is as uncertain as can be
const LIMIT = 128; // value of probability 1/2: a label that is wrong with more would be the other one
const NEAR_MM = 4; // a marker is bright in planes that are as near

/** Return the way from LPS mm to the voxels of a box with this affine (4, 4): 3 rows [a, b, c, d]. */
export function toVoxels(affineLps) {
  const [a, b, c] = affineLps;
  const cross = (n, m) => [
    n[1] * m[2] - n[2] * m[1],
    n[2] * m[0] - n[0] * m[2],
    n[0] * m[1] - n[1] * m[0],
  ];
  const column = n => [a[n], b[n], c[n]];
  const rows = [cross(column(1), column(2)), cross(column(2), column(0)), cross(column(0), column(1))];
  const volume = dot(rows[0], column(0));
  return rows.map(row => {
    const unit = row.map(part => part / volume);
    return [...unit, -dot(unit, column(3))];
  });
}

/** Return the values of a map at the cells of a plane, Uint8Array, row after row; 0 beside the box.
 *
 * map: {values, place}, i fastest. plane: {origin, right, down}, LPS mm of the first pixel and of a
 * step of a pixel. */
export function sample({ values, place }, { origin, right, down }, columns, rows, step) {
  const [lengthI, lengthJ, lengthK] = place.size_ijk;
  const axes = toVoxels(place.affine_lps);
  const alongX = axes.map(axis => dot(right, axis) * step);
  const alongY = axes.map(axis => dot(down, axis) * step);
  // at the centre of a cell; for the nearest voxel half a voxel is added, and the rest is cut off
  const first = axes.map(
    (axis, n) => dot(origin, axis) + axis[3] + 0.5 + (alongX[n] + alongY[n]) / 2
  );
  const sampled = new Uint8Array(columns * rows);
  for (let y = 0, at = 0; y < rows; y++) {
    let [i, j, k] = first.map((start, n) => start + y * alongY[n]);
    for (let x = 0; x < columns; x++, at++, i += alongX[0], j += alongX[1], k += alongX[2]) {
      if (i < 0 || j < 0 || k < 0 || i >= lengthI || j >= lengthJ || k >= lengthK) continue;
      const voxel = Math.floor(i) + lengthI * (Math.floor(j) + lengthJ * Math.floor(k));
      sampled[at] = values[voxel];
    }
  }
  return sampled;
}

/** The layer of all viewports; `show` replaces what it shows. */
export class Overlay {
  constructor(viewer) {
    this.viewer = viewer;
    this.layer = new Layer('fs-overlay');
    this.map = null;
    this.marker = null;
    viewer.onRendered(viewportId => this.#draw(viewportId));
  }

  /** Show a map {values, place} of uint8, 255 for probability 1, and a place in LPS mm; or null. */
  show(map, marker) {
    if (map === this.map && marker === this.marker) return;
    this.map = map;
    this.marker = marker;
    this.viewer.viewportIds().forEach(id => this.#draw(id));
  }

  stop() {
    this.layer.stop();
  }

  #draw(viewportId) {
    const isEmpty = !this.map && !this.marker;
    const plane = isEmpty ? null : this.viewer.planeOf(viewportId);
    if (!plane) {
      this.layer.remove(viewportId);
      return;
    }
    const context = this.layer.clear(viewportId, plane).getContext('2d');
    if (this.map) this.#drawMap(context, plane);
    if (this.marker) this.#drawMarker(context, plane);
  }

  #drawMap(context, plane) {
    const [columns, rows] = [Math.ceil(plane.width / STEP_PX), Math.ceil(plane.height / STEP_PX)];
    const sampled = sample(this.map, plane, columns, rows, STEP_PX);
    const image = new ImageData(columns, rows);
    sampled.forEach((value, at) => {
      image.data.set(COLOUR, 4 * at);
      image.data[4 * at + 3] = (OPAQUE * Math.min(value, LIMIT)) / LIMIT;
    });
    const small = new OffscreenCanvas(columns, rows);
    small.getContext('2d').putImageData(image, 0, 0);
    context.drawImage(small, 0, 0, columns * STEP_PX, rows * STEP_PX);
  }

  #drawMarker(context, plane) {
    const { x, y, offMm } = pixelOf(this.marker, plane);
    context.globalAlpha = offMm <= NEAR_MM ? 1 : 0.3;
    context.strokeStyle = '#22d3ee';
    context.lineWidth = 2;
    context.beginPath();
    context.arc(x, y, 9, 0, 2 * Math.PI);
    context.stroke();
    context.globalAlpha = 1;
  }
}
