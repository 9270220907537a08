// Every call into OHIF and cornerstone is in ohif*.js: the place to look at after an upgrade.
//
// This file: what the mode is made of, the tool, the history, messages and OHIF's own commands.
// OHIF 3.13 offers its services to extensions, and `window.cornerstone`, `window.cornerstoneTools`.
// The rest of the extension sees segments, slices, places in LPS mm and viewport IDs only.

import { Segments } from './ohif_segments.js';

export const EXTENSION_ID = '@fastsam3d/extension';
export const MODE_ID = '@fastsam3d/mode';
export const PANEL_NAME = 'prompts';
export const PANEL_ID = `${EXTENSION_ID}.panelModule.${PANEL_NAME}`;
export const TOOL_NAME = 'FastSAM3DPrompt';

const TOOL_GROUPS = ['default', 'mpr'];
const [CONTEXT, STORE] = ['CORNERSTONE', 'storeSegmentation']; // a command of OHIF
const BACK_ARROW = '[data-cy="return-to-work-list"]';
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

/** Return a React component that hands its DOM node to show(node), which returns a clean-up. */
export function panelComponent(show) {
  let close = null;
  const ref = node => {
    close?.();
    close = node ? show(node) : null;
  };
  const element = reactElement({ className: 'fastsam3d-panel' }, ref);
  return () => element;
}

/** What OHIF shows while a study is opened, in place of its moving bar.
 *
 * Without a GPU, 60 pictures of the whole window a second hold up what is being opened. */
export function LoadingText({ className = '', textBlock = 'Loading …' }) {
  const place = 'absolute top-0 left-0 z-50 flex items-center justify-center text-foreground';
  return reactElement({ className: `${place} ${className}`, children: textBlock });
}

/** Return a <div> as React 18 reads it: OHIF does not share its React. */
function reactElement(props, ref = null) {
  const brand = Symbol.for('react.element');
  return { $$typeof: brand, type: 'div', key: null, ref, props, _owner: null, _store: {} };
}

/** The open study, as the rest of the extension sees it. */
export class Viewer extends Segments {
  constructor(context) {
    super(context);
    const { HistoryMemo } = window.cornerstone.utilities;
    this.history = HistoryMemo.DefaultHistoryMemo;
    this.history.size = UNDO_STEPS; // this empties it, too
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

  /** Put a step into OHIF's history: restore(true) takes it back, restore(false) does it again.
   *
   * Returns the step for `forget`. */
  remember(restore) {
    const memo = { restoreMemo: restore };
    this.history.push(memo);
    return memo;
  }

  /** Remove a step from OHIF's history, whether it was taken back or not. */
  forget(memo) {
    const { history } = this;
    const { ring, size, position, undoAvailable, redoAvailable } = history;
    const place = n => (position + n + size) % size;
    const steps = [];
    for (let n = 1 - undoAvailable; n <= redoAvailable; n++) steps.push(ring[place(n)]);
    const at = steps.indexOf(memo);
    if (at < 0) return;
    steps.splice(at, 1);
    [...steps, undefined].forEach((step, n) => (ring[place(n + 1 - undoAvailable)] = step));
    if (at < undoAvailable) {
      history.undoAvailable--;
      history.position = place(-1);
    } else history.redoAvailable--;
  }

  undo() {
    this.history.undo();
  }

  redo() {
    this.history.redo();
  }

  /** Let save() take the place of OHIF's own dialogue for DICOM-SEG, for segmentations of ours.
   *
   * isOurs(segmentation ID) tells which; others are stored as OHIF does it. */
  onStore(isOurs, save) {
    const stock = this.commands.getCommand(STORE, CONTEXT);
    if (!stock) return;
    const store = options =>
      options.modality === 'RTSTRUCT' || !isOurs(options.segmentationId)
        ? stock.commandFn(options)
        : save();
    this.commands.registerCommand(CONTEXT, STORE, store);
    this.ends.push(() => this.commands.registerCommand(CONTEXT, STORE, stock));
  }

  /** Ask mayLeave() before OHIF's arrow leads back to the list of studies. */
  onLeave(mayLeave) {
    const handle = event => {
      if (!event.target.closest?.(BACK_ARROW) || mayLeave()) return;
      event.preventDefault();
      event.stopImmediatePropagation();
    };
    document.addEventListener('click', handle, { capture: true });
    this.ends.push(() => document.removeEventListener('click', handle, { capture: true }));
  }

  // --- messages ----------------------------------------------------------------------------------

  /** Show a message; type: error, warning, info or success. */
  notify(message, type = 'error') {
    const duration = type === 'error' || type === 'warning' ? 15000 : 5000;
    this.services.uiNotificationService.show({ title: 'FastSAM3D', message, type, duration });
  }

  /** Open the list of series at the left if the study has several; for one it would take room. */
  openListOfSeveral() {
    const { displaySetService, panelService } = this.services;
    const sets = displaySetService.getActiveDisplaySets();
    const stored = sets.map(set => set.SeriesInstanceUID).filter(Boolean); // a new segmentation has none
    if (new Set(stored).size < 2) return;
    const options = { leftPanelClosed: false };
    panelService._broadcastEvent(panelService.EVENTS.PANELS_CHANGED, { options });
  }

  /** Bring the panel of the prompts to the front. */
  showPanel() {
    this.services.panelService.activatePanel(PANEL_ID, true);
  }
}
