// The mode "FastSAM3D": OHIF's segmentation mode in three planes, with the prompt tool on.

import { MODE_ID, PANEL_ID, Viewer, addPromptTool, loadSegmentationMode } from './ohif.js';
import { ServerClient } from './client.js';
import { Hints } from './hints.js';
import { Session } from './session.js';
import { Learning } from './learning.js';
import { LearningClient } from './learning_client.js';
import { PromptMarks } from './marks.js';
import { StoredLabels } from './stored.js';
import { PromptTools } from './tools.js';

let session = null;
const listeners = new Set();

/** Return the session of the study that is open, or null. */
export function currentSession() {
  return session;
}

/** Call listener with each session that starts, and with null when it ends; returns a function
 * that stops that. */
export function onSession(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

const NOT_VOLUMES = ['SEG', 'RTSTRUCT', 'RTPLAN', 'PR', 'SR', 'SM', 'ECG', 'DOC', 'US', 'XA', 'DX'];

/** Return whether a study of these modalities, "CT\\SEG", may have a volume; "": nobody knows. */
function isValidMode({ modalities }) {
  const valid = modalities.split('\\').some(modality => !NOT_VOLUMES.includes(modality));
  return { valid, description: 'FastSAM3D needs a volume, such as a CT or an MR' };
}

function start(context) {
  const viewer = new Viewer(context);
  const client = new ServerClient();
  session = new Session(viewer, client);
  session.stored = new StoredLabels(viewer, client, session);
  session.learning = new Learning(viewer, new LearningClient(() => client.describe()));
  session.hints = new Hints(viewer, client, session);
  session.marks = new PromptMarks(viewer, session);
  session.tools = new PromptTools(viewer, session);
  listeners.forEach(listener => listener(session));
  session.start();
}

function end() {
  session?.tools.stop();
  session?.marks.stop();
  session?.hints.stop();
  session?.learning.stop();
  session?.stop();
  session = null;
  listeners.forEach(listener => listener(null));
}

export default {
  id: MODE_ID,

  async modeFactory({ loadModules }) {
    const stock = await loadSegmentationMode(loadModules);
    const route = stock.routes[0];
    const layout = {
      ...route.layoutInstance,
      props: {
        ...route.layoutInstance.props,
        leftPanelClosed: true, // opening.js opens it if there is something to choose
        rightPanels: [PANEL_ID, ...route.layoutInstance.props.rightPanels],
      },
    };
    return {
      ...stock,
      id: MODE_ID,
      routeName: 'fastsam3d',
      displayName: 'FastSAM3D',
      hangingProtocol: 'mpr',
      isValidMode,
      // else OHIF computes statistics of the whole volume after each change
      modeCustomizations: { 'panelSegmentation.disableUpdateSegmentationStats': true },
      initToolGroups(context) {
        stock.initToolGroups(context);
        addPromptTool(context);
      },
      onModeEnter(context) {
        stock.onModeEnter.call(this, context);
        start(context);
      },
      onModeExit(context) {
        end();
        stock.onModeExit.call(this, context);
      },
      routes: [{ ...route, path: 'fastsam3d', layoutInstance: layout }],
    };
  },
};
