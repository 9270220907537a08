// Where the mask may be wrong: the uncertainty as an overlay, and the next place worth a click.
//
// Both are asked for after the mask, which they never hold up: the server has computed them with it.

import { Overlay } from './overlay.js';

const NOTHING_DRAWN = 'Mark a structure first: then there is a mask that may be wrong.';

/** What is known about the mask that is drawn for a structure. */
class Hint {
  constructor(drawn) {
    this.drawn = drawn;
    this.map = null; // {values, place} of the uncertainty
    this.places = []; // worth a click, LPS mm
    this.number = -1; // of the place that the planes are at
    this.answers = new Map(); // promise of each output that was asked for
  }
}

export class Hints {
  constructor(viewer, client, session) {
    this.viewer = viewer;
    this.client = client;
    this.session = session;
    this.overlay = new Overlay(viewer);
    this.isShown = false;
    this.hint = null;
    this.controller = new AbortController();
    session.addEventListener('change', () => this.#update(), { signal: this.controller.signal });
  }

  stop() {
    this.controller.abort();
    this.asking?.abort();
    this.overlay.stop();
  }

  /** Show or hide the uncertainty of the current structure. */
  toggle() {
    this.isShown = !this.isShown;
    if (this.isShown && !this.session.structure()?.drawn.prompts.length)
      this.viewer.notify(NOTHING_DRAWN, 'info');
    this.session.changed();
  }

  /** Return {number, count} of the place that is marked, from 1; null if none is. */
  get place() {
    const { number, places } = this.hint ?? {};
    return number >= 0 ? { number: number + 1, count: places.length } : null;
  }

  /** Return whether the uncertainty is to be shown and not there yet. */
  get isWaiting() {
    return this.isShown && Boolean(this.hint) && !this.hint.map;
  }

  /** Go to the next place worth a click: the first is the one that is expected to help most. */
  async next() {
    const hint = this.#current();
    if (!hint) {
      this.viewer.notify(NOTHING_DRAWN, 'info');
      return;
    }
    await this.#ask(hint, 'next_click');
    if (hint !== this.hint || !hint.places.length) return;
    hint.number = (hint.number + 1) % hint.places.length;
    this.viewer.jumpTo(hint.places[hint.number]);
    this.session.changed();
  }

  /** Return the hint of the mask that is drawn for the current structure; null if there is none. */
  #current() {
    const drawn = this.session.structure()?.drawn;
    if (this.hint?.drawn !== drawn) {
      this.asking?.abort();
      this.asking = new AbortController();
      this.hint = drawn?.prompts.length ? new Hint(drawn) : null;
    }
    return this.hint;
  }

  #update() {
    const hint = this.#current();
    if (hint && this.isShown && !this.session.structure().run) this.#ask(hint, 'uncertainty');
    const map = this.isShown ? (hint?.map ?? null) : null;
    this.overlay.show(map, hint?.places[hint.number] ?? null);
  }

  /** Ask for an output of the drawn mask, once. */
  #ask(hint, output) {
    if (!hint.answers.has(output)) hint.answers.set(output, this.#request(hint, output));
    return hint.answers.get(output);
  }

  async #request(hint, output) {
    const { signal } = this.asking;
    try {
      const structure = this.session.structure();
      const asked = { ...(await this.session.question(structure, hint.drawn)), outputs: [output] };
      const { arrays, place } = await this.client.mask(structure.seriesUid, asked, signal);
      if (output === 'uncertainty') hint.map = { values: arrays.uncertainty, place };
      else hint.places = place.next_click.places_lps_mm;
      if (hint === this.hint) this.session.changed();
    } catch (error) {
      if (signal.aborted) return;
      if (output === 'uncertainty') this.isShown = false;
      else hint.answers.delete(output);
      this.viewer.notify(error.message);
    }
  }
}
