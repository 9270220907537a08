// Calls into OHIF and cornerstone: viewports, the images that they show, and places in their planes.

const DRAW_EVERY_MS = 1000; // while a volume is loaded
const INPUT_MS = 500; // what is drawn so soon after an input is what the user waits for
const INPUTS = ['pointerdown', 'pointermove', 'wheel', 'keydown'];

/** The planes of the open study. */
export class Planes {
  constructor({ servicesManager, commandsManager }) {
    this.services = servicesManager.services;
    this.commands = commandsManager;
    this.ends = [];
  }

  /** Call ready(viewportId) each time that a viewport shows another image, or that image anew. */
  onImage(ready) {
    const service = this.services.cornerstoneViewportService;
    const { unsubscribe } = service.subscribe(
      service.EVENTS.VIEWPORT_DATA_CHANGED,
      ({ viewportId }) => ready(viewportId)
    );
    // OHIF may give a viewport its volume again, which removes what is drawn over it
    const { VOLUME_VIEWPORT_NEW_VOLUME: renewed } = window.cornerstone.Enums.Events;
    const handle = event => ready(event.detail.viewportId);
    document.addEventListener(renewed, handle, { capture: true });
    this.ends.push(unsubscribe, () =>
      document.removeEventListener(renewed, handle, { capture: true })
    );
  }

  /** Stop all calls that this object was asked for. */
  stop() {
    this.ends.forEach(end => end());
    this.ends = [];
  }

  activeViewportId() {
    return this.services.viewportGridService.getActiveViewportId();
  }

  viewportIds() {
    return [...this.services.viewportGridService.getState().viewports.keys()];
  }

  /** Draw the planes once a second while a volume is loaded, and at once after an input.
   *
   * cornerstone and OHIF would draw them 60 times. Without a GPU that takes longer than to load the
   * slices. */
  drawSeldom() {
    const engine = this.services.cornerstoneViewportService.getRenderingEngine();
    if (Object.hasOwn(engine, '_render')) return;
    const draw = engine._render.bind(engine); // draws what is marked for it, with the next frame
    let [next, timer, input] = [performance.now() + DRAW_EVERY_MS, null, -INPUT_MS];
    const drawNow = () => {
      clearTimeout(timer);
      timer = null;
      next = performance.now() + DRAW_EVERY_MS;
      if (!engine.hasBeenDestroyed) draw();
    };
    engine._render = () => {
      const now = performance.now();
      if (now >= next || now < input + INPUT_MS || !this.#isLoading(engine)) drawNow();
      else timer ??= setTimeout(drawNow, next - now);
    };
    const noteInput = () => (input = performance.now());
    const options = { capture: true, passive: true };
    INPUTS.forEach(name => document.addEventListener(name, noteInput, options));
    this.ends.push(() => {
      clearTimeout(timer);
      delete engine._render;
      INPUTS.forEach(name => document.removeEventListener(name, noteInput, options));
    });
  }

  /** Return whether a volume that is shown is not loaded yet. */
  #isLoading(engine) {
    return engine.getViewports().some(viewport => {
      const volumeId = viewport.getVolumeId?.();
      const { loadStatus } = (volumeId && window.cornerstone.cache.getVolume(volumeId)) || {};
      return loadStatus && !loadStatus.loaded && !loadStatus.cancelled;
    });
  }

  /** Return the ID of the viewport that a DOM node lies in, or null. */
  viewportAt(node) {
    const element = node.closest?.('[data-viewport-uid]');
    return element ? element.getAttribute('data-viewport-uid') : null;
  }

  /** Return the place in LPS mm of a point of the page in a viewport; isInside: moved into the image
   * if it lies beside it. */
  placeAt(viewportId, clientX, clientY, isInside) {
    const viewport = this.viewport(viewportId);
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
    const viewport = this.viewport(viewportId);
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
      const viewport = this.viewport(id);
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

  viewport(viewportId) {
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
}
