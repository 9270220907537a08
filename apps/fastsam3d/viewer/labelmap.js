// Masks in the viewer's labelmap. Nothing here knows OHIF: slices are plain arrays.
//
// The server's box lies on the stored image, whose axes may be those of the viewer's volume in any
// order and direction. Both grids have the same voxels, so the way between their indices is a signed
// permutation and whole shifts, which follow from the two geometries in LPS mm.

const ON_GRID = 0.05; // largest deviation of an index from a whole number

/** Return the way from an index in the box to an index in the volume: {axes, shift}.
 *
 * axes: three whole vectors, the steps in the volume for one step along i, j, k of the box. shift:
 * the volume's index of the box's first voxel. affineLps: (4, 4) of the box. volume: {origin,
 * spacing, direction, dimensions}; direction holds the unit vectors of its axes one after another.
 *
 * Throws an Error if the grids differ. */
export function boxToVolume(affineLps, volume) {
  const toIndex = vector =>
    [0, 1, 2].map(axis => {
      const unit = volume.direction.slice(3 * axis, 3 * axis + 3);
      return unit.reduce((sum, part, n) => sum + part * vector[n], 0) / volume.spacing[axis];
    });
  const column = n => [0, 1, 2].map(row => affineLps[row][n]);
  const exact = [0, 1, 2].map(n => toIndex(column(n)));
  const axes = exact.map(vector => vector.map(Math.round));
  const start = toIndex(column(3).map((mm, n) => mm - volume.origin[n]));
  const shift = start.map(Math.round);
  const isSigned = axes.every(vector => vector.reduce((sum, step) => sum + Math.abs(step), 0) === 1);
  const used = new Set(axes.map(vector => vector.findIndex(step => step !== 0)));
  // over the whole volume an axis that is a little off would add up
  const length = Math.max(...volume.dimensions);
  const drift = Math.max(...exact.flat().map((step, n) => Math.abs(step - axes.flat()[n]))) * length;
  const offset = Math.max(...start.map((place, n) => Math.abs(place - shift[n])));
  if (!isSigned || used.size !== 3 || drift > 0.5 || offset > 0.5 - ON_GRID)
    throw new Error("The server's mask lies on another grid than the series in the viewer.");
  return { axes, shift };
}

/** Return the marked runs of a mask: [first voxel, length, …] in the order of its voxels.
 *
 * A run ends at the end of its row, so that it is straight in the volume. */
export function runsOf(voxels, rowLength) {
  const runs = [];
  for (let row = 0; row < voxels.length; row += rowLength) {
    const end = row + rowLength;
    for (let at = row; at < end; at++) {
      if (!voxels[at]) continue;
      const first = at;
      while (at < end && voxels[at]) at++;
      runs.push(first, at - first);
    }
  }
  return Uint32Array.from(runs);
}

/** A labelmap: slices(k) returns the segment numbers of slice k; dimensions are (I, J, K). */
export class Labelmap {
  constructor(volume, slices) {
    this.volume = volume;
    this.slices = slices;
  }

  /** Draw a mask as one segment in place of an earlier one; return the slices that changed.
   *
   * earlier, mask: {place, runs}, or null for none. Only voxels of no segment, and those of this
   * one, are written: other segments keep theirs. */
  replace(segment, earlier, mask) {
    const changed = new Set();
    if (earlier) this.#write(earlier, segment, 0, changed);
    if (mask) this.#write(mask, 0, segment, changed);
    return [...changed].sort((a, b) => a - b);
  }

  #write({ place, runs }, from, to, changed) {
    const { axes, shift } = boxToVolume(place.affine_lps, this.volume);
    const [lengthI, lengthJ] = place.size_ijk;
    const [columns, rows, count] = this.volume.dimensions;
    const step = axes[0][0] + axes[0][1] * columns;
    for (let run = 0; run < runs.length; run += 2) {
      const first = runs[run];
      const i = first % lengthI;
      const j = Math.floor(first / lengthI) % lengthJ;
      const k = Math.floor(first / (lengthI * lengthJ));
      const [x, y, z] = [0, 1, 2].map(
        n => shift[n] + i * axes[0][n] + j * axes[1][n] + k * axes[2][n]
      );
      if (Math.min(x, y, z) < 0 || x >= columns || y >= rows || z >= count)
        throw new Error("The server's mask reaches out of the series in the viewer.");
      this.#writeRun(x + y * columns, z, step, axes[0][2], runs[run + 1], from, to, changed);
    }
  }

  #writeRun(at, z, step, stepZ, length, from, to, changed) {
    let slice = this.slices(z);
    for (let n = 0; n < length; n++, at += step) {
      if (n && stepZ) {
        z += stepZ;
        slice = this.slices(z);
      }
      if (slice[at] !== from) continue;
      slice[at] = to;
      changed.add(z);
    }
  }
}
