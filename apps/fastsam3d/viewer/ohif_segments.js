// Calls into OHIF and cornerstone: segmentations, their segments and their voxels.

import { Labelmap } from './labelmap.js';
import { Planes } from './ohif_planes.js';

const LABELMAP = 'Labelmap';
const DRAW_TRIES = 5; // to have a segmentation drawn that was added
const DRAW_WAIT_MS = 2500; // that such a try takes at most
const SETTLED_MS = 300; // after which what is drawn stays

// COLOURS: of the segments, from 1; OHIF draws lots, and neighbours may get the same one
const COLOURS = [
  [230, 70, 70],
  [70, 200, 90],
  [80, 140, 255],
  [240, 200, 60],
  [200, 100, 240],
  [60, 210, 220],
  [250, 140, 50],
  [240, 130, 190],
  [160, 220, 60],
  [150, 110, 80],
  [130, 130, 240],
  [20, 150, 120],
  [190, 190, 190],
  [170, 50, 110],
  [120, 140, 50],
  [250, 220, 180],
];

/** The planes and the segments of the open study. All segments are [segmentation ID, segment number]. */
export class Segments extends Planes {
  isDrawing = false; // whether a change of the labelmap is ours

  /** Call changed() when a segment was added, renamed, removed or chosen. */
  onSegments(changed) {
    const service = this.services.segmentationService;
    for (const event of ['SEGMENTATION_MODIFIED', 'SEGMENTATION_REMOVED']) {
      const { unsubscribe } = service.subscribe(service.EVENTS[event], changed);
      this.ends.push(unsubscribe);
    }
  }

  /** Call edited(segmentation ID, isCertain) when others changed a labelmap, such as OHIF's brush.
   *
   * Without isCertain nothing need have changed: OHIF tells the same when it shows a labelmap. */
  onEdit(edited) {
    const { SEGMENTATION_DATA_MODIFIED } = window.cornerstoneTools.Enums.Events;
    const { eventTarget } = window.cornerstone;
    const handle = ({ detail: { segmentationId, modifiedSlicesToUse } }) =>
      this.isDrawing || edited(segmentationId, Boolean(modifiedSlicesToUse));
    eventTarget.addEventListener(SEGMENTATION_DATA_MODIFIED, handle);
    this.ends.push(() => eventTarget.removeEventListener(SEGMENTATION_DATA_MODIFIED, handle));
  }

  /** Make an empty segmentation of an image, with segments of these names; return its ID. */
  async createSegmentation(image, names) {
    const { displaySetService, segmentationService } = this.services;
    const segments = {};
    names.forEach((label, index) => {
      segments[index + 1] = { segmentIndex: index + 1, label, active: index === 0, locked: false };
    });
    const displaySet = displaySetService.getDisplaySetByUID(image.id);
    const id = await segmentationService.createLabelmapForDisplaySet(displaySet, {
      label: 'FastSAM3D',
      segments,
    });
    this.#setColours(id);
    return id;
  }

  /** Give the segments of a segmentation their colours, before it is drawn.
   *
   * To set the colour of a segment later draws all planes again, for each segment and viewport. */
  #setColours(segmentationId) {
    const { addColorLUT } = window.cornerstoneTools.segmentation.config.color;
    const colours = Array.from({ length: 255 }, (_, n) => [...COLOURS[n % COLOURS.length], 255]);
    const table = addColorLUT([[0, 0, 0, 0], ...colours]);
    this.services.segmentationService._segmentationIdToColorLUTIndexMap.set(segmentationId, table);
  }

  /** Show a segmentation in a viewport, unless it is there. */
  async showSegmentation(viewportId, segmentationId) {
    const service = this.services.segmentationService;
    const { removeSegmentationRepresentations } = window.cornerstoneTools.segmentation;
    const isShown = () =>
      service.getSegmentationRepresentations(viewportId, { segmentationId }).length > 0;
    for (let tries = 0; tries < DRAW_TRIES; tries++) {
      if (!isShown())
        await service.addSegmentationRepresentation(viewportId, { segmentationId, type: LABELMAP });
      if (await this.#becomesDrawn(viewportId, segmentationId)) break;
      // OHIF restores a series' segmentations too, and may then draw the image over them
      if (this.imageOf(viewportId)) removeSegmentationRepresentations(viewportId, { segmentationId });
    }
    if (!this.activeSegmentation(viewportId))
      service.setActiveSegmentation(viewportId, segmentationId);
  }

  #segmentsOf(segmentationId) {
    const { segments } = this.services.segmentationService.getSegmentation(segmentationId) ?? {};
    return Object.values(segments ?? {}).filter(Boolean);
  }

  /** Return whether a segmentation is drawn in a viewport after some time, or the viewport is gone. */
  async #becomesDrawn(viewportId, segmentationId) {
    for (let ms = 0; ms < DRAW_WAIT_MS; ms += SETTLED_MS) {
      await new Promise(done => setTimeout(done, SETTLED_MS));
      const viewport = this.viewport(viewportId);
      const names = viewport?.getActors().map(each => `${each.referencedId} ${each.representationUID}`);
      if (!names || names.some(name => name.includes(segmentationId))) return true;
    }
    return false;
  }

  /** Return the ID of the segmentation that the user works on in a viewport, or null.
   *
   * It must be one of the image that the viewport shows: just after a change of the series it is not.
   */
  activeSegmentation(viewportId) {
    const active = this.services.segmentationService.getActiveSegmentation(viewportId);
    const [first] = active?.representationData?.[LABELMAP]?.imageIds ?? [];
    const image = this.imageOf(viewportId);
    if (!first || !image) return null;
    const { imageIds } = this.services.displaySetService.getDisplaySetByUID(image.id);
    const { referencedImageId } = window.cornerstone.cache.getImage(first) ?? {};
    return imageIds.includes(referencedImageId) ? active.segmentationId : null;
  }

  /** Return the number of the segment that the user works on, or null. */
  activeSegment(viewportId) {
    return this.services.segmentationService.getActiveSegment(viewportId)?.segmentIndex ?? null;
  }

  setActiveSegment([segmentationId, number]) {
    this.services.segmentationService.setActiveSegment(segmentationId, number);
  }

  addSegment(segmentationId, label) {
    this.services.segmentationService.addSegment(segmentationId, label ? { label } : {});
  }

  /** Return the number of the segment with a label, which is added if there is none. */
  segmentNamed(segmentationId, label, viewportId) {
    const find = () => this.segments(segmentationId, viewportId).find(each => each.label === label);
    if (!find()) this.addSegment(segmentationId, label);
    return find().number;
  }

  isLocked([segmentationId, number]) {
    const { segments } = this.services.segmentationService.getSegmentation(segmentationId);
    return Boolean(segments[number]?.locked);
  }

  /** Return [{number, label, color, locked}] of a segmentation. */
  segments(segmentationId, viewportId) {
    const service = this.services.segmentationService;
    return this.#segmentsOf(segmentationId).map(({ segmentIndex: number, label, locked }) => {
      const color = service.getSegmentColor(viewportId, segmentationId, number) ?? [255, 0, 0];
      return { number, label, color: color.slice(0, 3), locked: Boolean(locked) };
    });
  }

  /** Return the Labelmap of a segmentation. */
  labelmap(segmentationId) {
    const { utilities } = window.cornerstoneTools;
    const volume = utilities.segmentation.getOrCreateSegmentationVolume(segmentationId);
    const slices = new Map();
    const slice = k => {
      if (!slices.has(k)) {
        // the volume's own imageIds run along k; those of the segmentation need not
        const image = window.cornerstone.cache.getImage(volume.imageIds[k]);
        slices.set(k, image.voxelManager.getScalarData());
      }
      return slices.get(k);
    };
    const { origin, spacing, dimensions } = volume;
    return new Labelmap({ origin, spacing, dimensions, direction: [...volume.direction] }, slice);
  }

  /** Draw slices of a segmentation again. */
  redraw(segmentationId, changedSlices) {
    const { triggerSegmentationEvents } = window.cornerstoneTools.segmentation;
    this.isDrawing = true;
    triggerSegmentationEvents.triggerSegmentationDataModified(segmentationId, changedSlices);
    this.isDrawing = false;
  }
}
