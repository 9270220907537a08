// The list of the keys, above the page.

import { make } from './dom.js';
import { KEYS } from './tools.js';

export const KEY_LIST_STYLE = `
.fs-keys { position: fixed; top: 80px; left: 50%; transform: translateX(-50%); z-index: 1000;
  max-height: calc(100vh - 120px); overflow-y: auto; background: #0f172a; color: #e5e7eb;
  border: 1px solid #0369a1; border-radius: 8px; padding: 16px 20px; font-size: 14px }
.fs-keys header { display: flex; justify-content: space-between; padding-bottom: 8px }
.fs-keys dl { display: grid; grid-template-columns: auto auto; gap: 4px 20px }
.fs-keys dt { color: #7dd3fc; white-space: nowrap }`;

export class KeyList {
  constructor() {
    const rows = KEYS.flatMap(([key, text]) => [make('dt', {}, key), make('dd', {}, text)]);
    const close = make('button', { 'aria-label': 'Close', onclick: () => this.hide() }, '✕');
    const head = make('header', {}, make('h3', {}, 'Keys'), close);
    this.element = make(
      'div',
      { class: 'fs-keys', role: 'dialog', 'aria-label': 'Keys' },
      head,
      make('dl', {}, ...rows)
    );
  }

  toggle() {
    if (this.element.isConnected) this.hide();
    else document.body.append(this.element);
  }

  hide() {
    this.element.remove();
  }
}
