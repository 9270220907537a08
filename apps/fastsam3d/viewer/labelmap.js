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

/** Return the runs of a number in a mask: [first voxel, length, …] in the order of its voxels.
 *
 * A run ends at the end of its row, so that it is straight in the volume. */
export function runsOf(voxels, rowLength, number = 1) {
  const runs = [];
  let at = voxels.indexOf(number); // much faster than a loop
  while (at >= 0) {
    const first = at;
    const end = first - (first % rowLength) + rowLength;
    while (at < end && voxels[at] === number) at++;
    runs.push(first, at - first);
    at = voxels.indexOf(number, at);
  }
  return Uint32Array.from(runs);
}

/** A labelmap: slices(k) returns the segment numbers of slice k; dimensions are (I, J, K). */
export class Labelmap {
  constructor(volume, slices) {
    this.volume = volume;
    this.slices = slices;
  }

  /** Draw a mask as one segment in place of an earlier one; return {changed, taken}.
   *
   * earlier, mask: {place, runs}, or null for none. mayTake(number): whether voxels of another
   * segment may be taken; those of no segment always are. taken: what the earlier mask took, which
   * goes back to its segments first. The result has what this mask took, and the slices that
   * changed. */
  replace(segment, earlier, mask, mayTake = () => false, taken = []) {
    const changed = new Set();
    const took = [];
    if (earlier)
      this.#visit(earlier, (slice, first, step, count, z) => {
        let isChanged = false;
        for (let n = 0, at = first; n < count; n++, at += step) {
          if (slice[at] !== segment) continue;
          slice[at] = 0;
          isChanged = true;
        }
        if (isChanged) changed.add(z);
      });
    for (let n = 0; n < taken.length; n += 3) {
      const slice = this.slices(taken[n]);
      if (slice[taken[n + 1]] === 0) slice[taken[n + 1]] = taken[n + 2];
    }
    if (mask)
      this.#visit(mask, (slice, first, step, count, z) => {
        let isChanged = false;
        for (let n = 0, at = first; n < count; n++, at += step) {
          const number = slice[at];
          if (number === segment) continue;
          if (number !== 0) {
            if (!mayTake(number)) continue;
            took.push(z, at, number);
          }
          slice[at] = segment;
          isChanged = true;
        }
        if (isChanged) changed.add(z);
      });
    return { changed: [...changed].sort((a, b) => a - b), taken: took };
  }

  /** Return whether a segment has just the voxels of a mask, but those of other segments. */
  holds(segment, mask) {
    let missing = 0;
    let inside = 0;
    if (mask)
      this.#visit(mask, (slice, first, step, count) => {
        for (let n = 0, at = first; n < count; n++, at += step)
          if (slice[at] === segment) inside++;
          else if (slice[at] === 0) missing++;
      });
    let all = 0;
    for (let z = 0; z < this.volume.dimensions[2]; z++) {
      const slice = this.slices(z);
      if (!slice.includes(segment)) continue; // much faster than a loop
      for (let at = 0; at < slice.length; at++) if (slice[at] === segment) all++;
    }
    return missing === 0 && inside === all;
  }

  /** Return the segment numbers on a stored grid {shape_ijk, affine_lps}, i fastest. */
  stored({ shape_ijk: shape, affine_lps: affineLps }) {
    const voxels = new Uint8Array(shape[0] * shape[1] * shape[2]);
    const rows = new Uint32Array(2 * shape[1] * shape[2]);
    for (let row = 0; row < rows.length / 2; row++) rows.set([row * shape[0], shape[0]], 2 * row);
    let next = 0;
    const whole = { place: { size_ijk: shape, affine_lps: affineLps }, runs: rows };
    this.#visit(whole, (slice, first, step, count) => {
      for (let n = 0, at = first; n < count; n++, at += step) voxels[next++] = slice[at];
    });
    return voxels;
  }

  /** Call use(slice, first, step, count, z) for the voxels of a mask, in its order.
   *
   * They are count voxels of slice number z from index first on, step apart. A call for each voxel
   * would take ten times as long. */
  #visit({ place, runs }, use) {
    const { axes, shift } = boxToVolume(place.affine_lps, this.volume);
    const [lengthI, lengthJ] = place.size_ijk;
    const [columns, rows, count] = this.volume.dimensions;
    const step = axes[0][0] + axes[0][1] * columns;
    const stepZ = axes[0][2];
    for (let run = 0; run < runs.length; run += 2) {
      const first = runs[run];
      const i = first % lengthI;
      const j = Math.floor(first / lengthI) % lengthJ;
      const k = Math.floor(first / (lengthI * lengthJ));
      let [x, y, z] = [0, 1, 2].map(
        n => shift[n] + i * axes[0][n] + j * axes[1][n] + k * axes[2][n]
      );
      if (Math.min(x, y, z) < 0 || x >= columns || y >= rows || z >= count)
        throw new Error("The server's mask reaches out of the series in the viewer.");
      const length = runs[run + 1];
      const at = x + y * columns;
      if (!stepZ) use(this.slices(z), at, step, length, z);
      else for (let n = 0; n < length; n++, z += stepZ) use(this.slices(z), at, 0, 1, z);
    }
  }
}

/** Return the file name.nrrd of segment numbers on a stored grid, compressed; a Blob. */
export async function nrrdFile(voxels, { shape_ijk: shape, affine_lps: affineLps }) {
  const vector = n => `(${[0, 1, 2].map(row => affineLps[row][n]).join(',')})`;
  const head = [
    'NRRD0004',
    'type: uint8',
    'dimension: 3',
    'space: left-posterior-superior',
    `sizes: ${shape.join(' ')}`,
    `space directions: ${[0, 1, 2].map(vector).join(' ')}`,
    'kinds: domain domain domain',
    'endian: little',
    'encoding: gzip',
    `space origin: ${vector(3)}`,
    '',
    '',
  ];
  const packed = new Blob([voxels]).stream().pipeThrough(new CompressionStream('gzip'));
  return new Blob([head.join('\n'), await new Response(packed).blob()]);
}
