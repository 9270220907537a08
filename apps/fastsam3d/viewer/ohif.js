// Every call into OHIF and cornerstone: the one place to look at after an upgrade.
//
// OHIF 3.13 offers its services to extensions, and `window.cornerstone`, `window.cornerstoneTools`.
// The rest of the extension sees segments, slices, places in LPS mm and viewport IDs only.

import { Labelmap } from './labelmap.js';

export const EXTENSION_ID = '@fastsam3d/extension';
export const MODE_ID = '@fastsam3d/mode';
export const PANEL_NAME = 'prompts';
export const PANEL_ID = `${EXTENSION_ID}.panelModule.${PANEL_NAME}`;
export const TOOL_NAME = 'FastSAM3DPrompt';

const TOOL_GROUPS = ['default', 'mpr'];
const LABELMAP = 'Labelmap';
const DRAW_WAITS_MS = [300, 600, 1200, 2400]; // until a segmentation that was added is drawn
const UNDO_STEPS = 1000; // OHIF's own history ends after 50

/** Return OHIF's segmentation mode, from which ours is derived. */
export async function loadSegmentationMode(loadModules) {
  const [stock] = await loadModules(['@ohif/mode-segmentation']);
  return stock.modeFactory({});
}

/** Register the prompt tool in the mode's tool groups and give it the left button.
 *
 * The tool itself does nothing: tools.js reads the pointer from the page, because cornerstone holds
 * a press back until it is sure that it is no double click. */
export function addPromptTool({ toolGroupService }) {
  const { BaseTool, addTool, Enums } = window.cornerstoneTools;
  class PromptTool extends BaseTool {
    static toolName = TOOL_NAME;
  }
  try {
    addTool(PromptTool);
  } catch {
    // cornerstone has it since the mode was entered before
  }
  for (const id of TOOL_GROUPS) {
    const group = toolGroupService.getToolGroup(id);
    const active = group.getActivePrimaryMouseButtonTool();
    group.addTool(TOOL_NAME);
    if (active) group.setToolPassive(active);
    group.setToolActive(TOOL_NAME, {
      bindings: [{ mouseButton: Enums.MouseBindings.Primary }],
    });
  }
}

/** Return a React component that hands its DOM node to show(node), which returns a clean-up.
 *
 * OHIF does not share its React, so the element is written as React 18 reads it. */
export function panelComponent(show) {
  let close = null;
  const ref = node => {
    close?.();
    close = node ? show(node) : null;
  };
  const element = {
    $$typeof: Symbol.for('react.element'),
    type: 'div',
    key: null,
    ref,
    props: { className: 'fastsam3d-panel' },
    _owner: null,
    _store: {},
  };
  return () => element;
}

/** The open study. All segments are [segmentation ID, segment number]. */
export class Viewer {
  constructor({ servicesManager, commandsManager }) {
    this.services = servicesManager.services;
    this.commands = commandsManager;
    this.ends = [];
    this.isDrawing = false; // whether a change of the labelmap is ours
    const { HistoryMemo } = window.cornerstone.utilities;
    this.history = HistoryMemo.DefaultHistoryMemo;
    this.history.size = UNDO_STEPS; // this empties it, too
  }

  /** Call ready(viewportId) each time that a viewport shows another image. */
  onImage(ready) {
    const service = this.services.cornerstoneViewportService;
    const { unsubscribe } = service.subscribe(
      service.EVENTS.VIEWPORT_DATA_CHANGED,
      ({ viewportId }) => ready(viewportId)
    );
    this.ends.push(unsubscribe);
  }

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

  /** Stop all calls that this object was asked for. */
  stop() {
    this.ends.forEach(end => end());
    this.ends = [];
  }

  // --- viewports ---------------------------------------------------------------------------------

  activeViewportId() {
    return this.services.viewportGridService.getActiveViewportId();
  }

  viewportIds() {
    return [...this.services.viewportGridService.getState().viewports.keys()];
  }

  /** Return the ID of the viewport that a DOM node lies in, or null. */
  viewportAt(node) {
    const element = node.closest?.('[data-viewport-uid]');
    return element ? element.getAttribute('data-viewport-uid') : null;
  }

  /** Return whether a press of the left button in a viewport belongs to the prompt tool. */
  hasPromptTool(viewportId) {
    const group = this.services.toolGroupService.getToolGroupForViewport(viewportId);
    return group?.getActivePrimaryMouseButtonTool() === TOOL_NAME;
  }

  takePromptTool() {
    for (const toolGroupId of TOOL_GROUPS)
      this.commands.run('setToolActive', { toolName: TOOL_NAME, toolGroupId });
    this.services.toolbarService.refreshToolbarState({ viewportId: this.activeViewportId() });
  }

  /** Return the place in LPS mm of a point of the page in a viewport; isInside: moved into the image
   * if it lies beside it. */
  placeAt(viewportId, clientX, clientY, isInside) {
    const viewport = this.#viewport(viewportId);
    const { left, top } = viewport.element.getBoundingClientRect();
    const place = [...viewport.canvasToWorld([clientX - left, clientY - top])].map(Number);
    if (!isInside) return place;
    const { imageData, dimensions } = window.cornerstone.cache.getVolume(viewport.getVolumeId());
    const index = [...imageData.worldToIndex(place)];
    const moved = index.map((at, axis) => Math.min(Math.max(at, 0), dimensions[axis] - 1));
    return moved.every((at, axis) => at === index[axis])
      ? place
      : [...imageData.indexToWorld(moved)].map(Number);
  }

  /** Call drawn(viewportId) each time that a viewport was drawn. */
  onRendered(drawn) {
    const { IMAGE_RENDERED } = window.cornerstone.Enums.Events;
    const handle = event => drawn(event.detail.viewportId);
    document.addEventListener(IMAGE_RENDERED, handle, { capture: true });
    this.ends.push(() => document.removeEventListener(IMAGE_RENDERED, handle, { capture: true }));
  }

  /** Return {element, width, height, origin, right, down} of a plane, or null.
   *
   * element has width x height pixels; origin is the LPS mm of the first one's corner, right and down
   * are the steps to the next pixel. */
  planeOf(viewportId) {
    const viewport = this.#viewport(viewportId);
    if (!viewport?.canvasToWorld || !this.imageOf(viewportId)) return null;
    const { element } = viewport;
    const { clientWidth: width, clientHeight: height } = element;
    if (!width || !height) return null;
    const origin = [...viewport.canvasToWorld([0, 0])];
    const step = (canvas, length) =>
      [...viewport.canvasToWorld(canvas)].map((mm, axis) => (mm - origin[axis]) / length);
    const [right, down] = [step([width, 0], width), step([0, height], height)];
    return { element, width, height, origin, right, down };
  }

  /** Move all planes through a place in LPS mm; a plane that does not show it is also centred. */
  jumpTo(place) {
    for (const id of this.viewportIds()) {
      const viewport = this.#viewport(id);
      if (!viewport?.getCamera) continue;
      const { focalPoint, position, viewPlaneNormal: normal } = viewport.getCamera();
      const way = place.map((mm, axis) => mm - focalPoint[axis]);
      const depth = normal.reduce((sum, n, axis) => sum + n * way[axis], 0);
      const [x, y] = viewport.worldToCanvas(place);
      const { clientWidth, clientHeight } = viewport.element;
      const isSeen = x >= 0 && y >= 0 && x < clientWidth && y < clientHeight;
      const step = isSeen ? normal.map(n => depth * n) : way;
      const moved = from => from.map((mm, axis) => mm + step[axis]);
      viewport.setCamera({ focalPoint: moved(focalPoint), position: moved(position) });
      viewport.render();
    }
  }

  #viewport(viewportId) {
    return this.services.cornerstoneViewportService.getCornerstoneViewport(viewportId);
  }

  /** Return {id, seriesUid} of the image that a viewport shows, or null. */
  imageOf(viewportId) {
    const { viewportGridService, displaySetService } = this.services;
    for (const uid of viewportGridService.getDisplaySetsUIDsForViewport(viewportId) ?? []) {
      const displaySet = displaySetService.getDisplaySetByUID(uid);
      if (displaySet?.imageIds?.length && !['SEG', 'RTSTRUCT'].includes(displaySet.Modality))
        return { id: uid, seriesUid: displaySet.SeriesInstanceUID };
    }
    return null;
  }

  // --- segments ----------------------------------------------------------------------------------

  /** Make an empty segmentation of an image, with segments of these names; return its ID. */
  createSegmentation(image, names) {
    const { displaySetService, segmentationService } = this.services;
    const segments = {};
    names.forEach((label, index) => {
      segments[index + 1] = { segmentIndex: index + 1, label, active: index === 0, locked: false };
    });
    const displaySet = displaySetService.getDisplaySetByUID(image.id);
    return segmentationService.createLabelmapForDisplaySet(displaySet, {
      label: 'FastSAM3D',
      segments,
    });
  }

  /** Show a segmentation in a viewport, unless it is there. */
  async showSegmentation(viewportId, segmentationId) {
    const service = this.services.segmentationService;
    const { removeSegmentationRepresentations } = window.cornerstoneTools.segmentation;
    for (const wait of DRAW_WAITS_MS) {
      if (!service.getSegmentationRepresentations(viewportId, { segmentationId }).length)
        await service.addSegmentationRepresentation(viewportId, { segmentationId, type: LABELMAP });
      await new Promise(done => setTimeout(done, wait));
      const viewport = this.#viewport(viewportId);
      if (!viewport || this.#isDrawn(viewport, segmentationId)) break;
      // OHIF restores a series' segmentations too, and may then draw the image over them
      if (this.imageOf(viewportId)) removeSegmentationRepresentations(viewportId, { segmentationId });
    }
    if (!this.activeSegmentation(viewportId))
      service.setActiveSegmentation(viewportId, segmentationId);
  }

  #isDrawn(viewport, segmentationId) {
    return viewport
      .getActors()
      .some(actor => `${actor.referencedId} ${actor.representationUID}`.includes(segmentationId));
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
    const segments = service.getSegmentation(segmentationId)?.segments ?? {};
    return Object.values(segments).map(({ segmentIndex: number, label, locked }) => {
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

  /** Put a step into OHIF's history: restore(true) takes it back, restore(false) does it again.
   *
   * Returns the step for `forget`. */
  remember(restore) {
    const memo = { restoreMemo: restore };
    this.history.push(memo);
    return memo;
  }

  /** Remove a step from OHIF's history if it is the last one. */
  forget(memo) {
    const { history } = this;
    if (!history.canUndo || history.ring[history.position] !== memo) return;
    history.ring[history.position] = undefined;
    history.position = (history.position - 1 + history.size) % history.size;
    history.undoAvailable--;
  }

  undo() {
    this.history.undo();
  }

  redo() {
    this.history.redo();
  }

  // --- messages ----------------------------------------------------------------------------------

  /** Show a message; type: error, warning, info or success. */
  notify(message, type = 'error') {
    const duration = type === 'error' || type === 'warning' ? 15000 : 5000;
    this.services.uiNotificationService.show({ title: 'FastSAM3D', message, type, duration });
  }

  /** Bring the panel of the prompts to the front. */
  showPanel() {
    this.services.panelService.activatePanel(PANEL_ID, true);
  }
}
