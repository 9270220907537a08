// A structure of a series: its prompts, its size, and the mask that is drawn for them.
//
// A state of a structure is {prompts, size, mask, base}. mask: {place, runs}, null for none, and
// undefined until the server has answered. base: what the prompts start from, {mask, file}, or null;
// file: promise of the file for the server, once needed.

/** A structure. drawn: the state whose mask is drawn. wanted: the state that the user has come to. */
export class Structure {
  constructor(segment, seriesUid) {
    this.segment = segment;
    this.seriesUid = seriesUid;
    this.taken = []; // voxels of other structures that the drawn mask took
    this.edits = 0; // of the segmentation's edits by others, those that `drawn` knows
    this.recordedAs = ''; // name under which the server's journal has it
    this.run = null; // the request for the mask of `wanted`, while there is one
    this.set(startingFrom(null));
  }

  set(state) {
    this.drawn = state;
    this.wanted = state;
  }

  get prompts() {
    return this.wanted.prompts;
  }

  get size() {
    return this.wanted.size;
  }

  get base() {
    return this.wanted.base;
  }
}

/** Return the state of a structure whose prompts will start from a mask, or from nothing. */
export function startingFrom(mask) {
  return { prompts: [], size: 0, mask, base: mask && { mask, file: null } };
}
