// Learn: the next sample, a training with its progress and decision, and the versions of the model.

import { make } from './dom.js';

const POLL_MS = 2000; // between two looks at a training that runs
const RUNNING = ['SUBMITTED', 'RUNNING'];
const NOTHING_LEFT = 'There is nothing left to label: every image has a label.';

/** The state of the trainings on the server, as far as it was asked for. */
export class Learning extends EventTarget {
  constructor(viewer, client) {
    super();
    this.viewer = viewer;
    this.client = client;
    this.strategies = [];
    this.trainers = []; // names of the trainers of the model, the adaptation last
    this.epochs = 1; // of a training, unless the user says another number
    this.asked = {}; // what the last training of this page was asked for
    this.estimate = null; // seconds that it takes, as the server expected at its start
    this.status = ''; // of the last training
    this.stats = {};
    this.versions = null; // {served, versions: [{number}]}
    this.timer = 0;
  }

  stop() {
    clearTimeout(this.timer);
    this.isStopped = true;
  }

  get isRunning() {
    return RUNNING.includes(this.status);
  }

  /** Ask the server for everything; while a training runs, again and again. */
  async refresh() {
    clearTimeout(this.timer);
    try {
      Object.assign(this, await this.client.learning());
      if (!this.isRunning) this.estimate = null; // the next training may be that of another page
      if (this.isRunning && !this.isStopped)
        this.timer = setTimeout(() => this.refresh(), POLL_MS);
    } catch (error) {
      this.viewer.notify(error.message);
    }
    this.dispatchEvent(new Event('change'));
  }

  train(trainer, options) {
    this.asked = options;
    return this.#train(trainer, options);
  }

  /** Publish the student of a training that asks: nothing is trained anew. */
  accept() {
    const { trainer } = this.stats;
    return this.#train(trainer, { ...this.asked, accept: true });
  }

  stopTraining() {
    return this.#do(() => this.client.stopTraining());
  }

  /** Serve a version again. */
  rollBack(number) {
    return this.#do(async () => {
      await this.client.rollBack(number);
      this.viewer.notify(`Version ${number} is served: the next prompt uses it.`, 'success');
    });
  }

  /** Open the image that a strategy proposes. */
  nextSample(strategy) {
    return this.#do(async () => {
      const studyUid = await this.client.nextStudy(strategy);
      if (studyUid) window.location.assign(`?StudyInstanceUIDs=${studyUid}`);
      else this.viewer.notify(NOTHING_LEFT, 'info');
    });
  }

  #train(trainer, options) {
    return this.#do(async () => {
      this.estimate = await this.client.train(trainer, options);
    });
  }

  async #do(action) {
    try {
      await action();
    } catch (error) {
      this.viewer.notify(error.message);
    }
    await this.refresh();
  }
}

/** The part of the panel for it. It stays the same element, so that it keeps what was typed. */
export class LearningView {
  constructor(learning) {
    this.learning = learning;
    this.body = make('div', { class: 'fs-learn' });
    this.strategy = make('select', { 'aria-label': 'Strategy' });
    this.epochs = make('input', { type: 'number', min: 1, 'aria-label': 'Epochs' });
    this.element = make('details', {}, make('summary', {}, 'Learn'), this.body);
    this.element.addEventListener('toggle', () => this.element.open && learning.refresh());
    learning.addEventListener('change', () => this.#draw());
  }

  #draw() {
    const { stats } = this.learning;
    const parts = [this.#nextSample()];
    if (this.learning.trainers.length) parts.push(this.#training());
    if (stats.reason ?? stats.error)
      parts.push(make('p', { 'data-decision': stats.published ?? '' }, stats.error ?? stats.reason));
    if (stats.asks && !this.learning.isRunning) parts.push(this.#question());
    if (stats.curves) {
      const source = `${stats.curves}?epoch=${stats.epoch}`;
      parts.push(make('img', { src: source, alt: 'Curves of the training' }));
    }
    if (this.learning.versions) parts.push(this.#versions());
    this.body.replaceChildren(...parts);
  }

  #nextSample() {
    const { strategies } = this.learning;
    if (this.strategy.options.length !== strategies.length)
      this.strategy.replaceChildren(...strategies.map(name => make('option', {}, name)));
    const open = () => this.learning.nextSample(this.strategy.value);
    return make(
      'div',
      { class: 'fs-row' },
      make('button', { title: 'Open an image to label', onclick: open }, 'Next sample'),
      this.strategy
    );
  }

  #training() {
    const { learning } = this;
    const { epoch = 0, total_epochs: total = 0, remaining_time: left = '' } = learning.stats;
    if (learning.isRunning)
      return make(
        'div',
        { class: 'fs-row' },
        make('button', { onclick: () => learning.stopTraining() }, 'Stop'),
        make('progress', { value: epoch, max: total || 1 }),
        make('span', { 'data-epoch': epoch }, `epoch ${epoch} of ${total || '…'}`),
        this.#estimate(),
        left ? make('span', {}, `about ${left} left`) : ''
      );
    if (!this.epochs.value) this.epochs.value = learning.epochs;
    const [distillation, adaptation] = learning.trainers;
    const button = (name, title, onclick) => make('button', { title, onclick }, name);
    const start = () => learning.train(distillation, { max_epochs: Number(this.epochs.value) });
    const adapt = () => learning.train(adaptation, {});
    return make(
      'div',
      { class: 'fs-row' },
      button('Train', 'Learn from the scans and their labels', start),
      this.epochs,
      ' epochs',
      adaptation ? button('Adapt', 'Learn the saved labels in minutes', adapt) : ''
    );
  }

  #estimate() {
    const { estimate } = this.learning;
    if (estimate === null) return '';
    const minutes = Math.max(1, Math.round(estimate / 60));
    const text = `about ${minutes} minute${minutes === 1 ? '' : 's'}`;
    return make('span', { 'data-estimate': estimate }, text);
  }

  #question() {
    const accept = () => this.learning.accept();
    return make(
      'div',
      { class: 'fs-row' },
      make('button', { title: 'Serve the new student', onclick: accept }, 'Publish all the same')
    );
  }

  #versions() {
    const { served, versions } = this.learning.versions;
    const rows = [{ number: 0 }, ...versions].map(({ number }) => {
      const name = number ? `Version ${number}` : 'As the server was started';
      const isServed = number === served;
      const serve = () => this.learning.rollBack(number);
      const button = make('button', { title: 'Serve this version', onclick: serve }, 'Serve');
      button.disabled = isServed || this.learning.isRunning;
      return make(
        'li',
        { 'data-version': number, 'aria-current': isServed },
        make('span', {}, name),
        button
      );
    });
    return make('section', {}, make('h3', {}, 'Versions'), make('ul', {}, ...rows));
  }
}
