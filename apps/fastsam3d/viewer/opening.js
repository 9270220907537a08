// A series is opened: it gets a segmentation, and the work on it is drawn.

export class Opening {
  constructor(viewer, client, session) {
    this.viewer = viewer;
    this.client = client;
    this.session = session;
    this.segmentations = new Map(); // image ID -> promise of its segmentation's ID
    this.preparing = new Map(); // viewport ID -> promise that ends when it is prepared
    this.seriesOf = new Map(); // segmentation ID -> series UID
    this.opened = new Set(); // "viewport ID, image ID": our panel was shown for it
  }

  start() {
    this.viewer.onImage(viewportId => this.#next(viewportId));
    this.viewer.viewportIds().forEach(id => this.#next(id));
  }

  /** Prepare a viewport once what was begun before is done. */
  #next(viewportId) {
    const before = this.preparing.get(viewportId) ?? Promise.resolve();
    this.preparing.set(
      viewportId,
      before.then(() => this.#prepare(viewportId))
    );
  }

  /** Have an empty segmentation in a viewport before the first press: that takes a second. */
  async #prepare(viewportId) {
    const image = this.viewer.imageOf(viewportId);
    if (!image) return;
    this.viewer.drawSeldom();
    if (!this.opened.size) this.viewer.openListOfSeveral(); // later the user opens and closes it
    try {
      this.client.image(image.seriesUid).catch(() => {}); // the press shows the error
      const segmentationId = await this.#segmentationOf(image);
      await this.viewer.showSegmentation(viewportId, segmentationId);
      const key = `${viewportId}, ${image.id}`;
      if (!this.opened.has(key)) this.viewer.showPanel(); // later the user chooses the panel
      this.opened.add(key);
      this.session.changed();
      await this.session.work.restore(image.seriesUid, segmentationId);
    } catch (error) {
      this.viewer.notify(error.message);
    }
  }

  #segmentationOf(image) {
    if (!this.segmentations.has(image.id)) {
      const made = this.#make(image);
      made.catch(() => this.segmentations.delete(image.id));
      this.segmentations.set(image.id, made);
    }
    return this.segmentations.get(image.id);
  }

  async #make(image) {
    const { labels } = await this.client.describe().catch(() => ({ labels: [] }));
    const names = labels.length ? labels : ['target'];
    const segmentationId = await this.viewer.createSegmentation(image, names);
    this.seriesOf.set(segmentationId, image.seriesUid);
    return segmentationId;
  }
}
