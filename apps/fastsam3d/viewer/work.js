// The prompts of each series, kept in the browser, so that a page that is loaded again has them.
//
// No voxel and no name of a patient is kept: places, the names of structures, and the series' UID.

const PREFIX = 'fastsam3d:';
const MOST_SERIES = 100;

/** Return {names, structures: [{number, prompts, size}], isUnsaved} of a series, or null. */
export function keptWork(seriesUid) {
  try {
    return JSON.parse(localStorage.getItem(PREFIX + seriesUid))?.work ?? null;
  } catch {
    return null; // the browser keeps nothing, or something else wrote there
  }
}

/** Keep the work on a series; without any structure, forget it. */
export function keepWork(seriesUid, work) {
  try {
    if (work.structures.length)
      localStorage.setItem(PREFIX + seriesUid, JSON.stringify({ time: Date.now(), work }));
    else localStorage.removeItem(PREFIX + seriesUid);
    forgetOldest();
  } catch {
    // the browser's storage is full or off: the work is there until the page is left
  }
}

function forgetOldest() {
  const keys = Object.keys(localStorage).filter(key => key.startsWith(PREFIX));
  if (keys.length <= MOST_SERIES) return;
  const time = key => JSON.parse(localStorage.getItem(key)).time ?? 0;
  keys.sort((a, b) => time(a) - time(b));
  keys.slice(0, keys.length - MOST_SERIES).forEach(key => localStorage.removeItem(key));
}
