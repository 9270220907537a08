// A structure of a series: its prompts, its size, and the mask that is drawn for them.

/** A structure.
 *
 * drawn: {prompts, size, mask, base} as of the last reply; mask: {place, runs} or null. base: what the
 * prompts start from, {mask, file}, or null; file: promise of the file for the server, once needed. */
export class Structure {
  constructor(segment, seriesUid) {
    this.segment = segment;
    this.seriesUid = seriesUid;
    this.taken = []; // voxels of other structures that the drawn mask took
    this.edits = 0; // of the segmentation's edits by others, those that `drawn` knows
    this.recordedAs = ''; // name under which the server's journal has it
    this.set(startingFrom(null));
  }

  set(drawn) {
    this.drawn = drawn;
    this.prompts = drawn.prompts;
    this.size = drawn.size;
    this.base = drawn.base;
  }
}

/** Return what is drawn for a structure whose prompts will start from a mask, or from nothing. */
export function startingFrom(mask) {
  return { prompts: [], size: 0, mask, base: mask && { mask, file: null } };
}
