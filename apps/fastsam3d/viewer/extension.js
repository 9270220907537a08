// The extension that OHIF loads at run time: it brings the panel of the prompts.

import { EXTENSION_ID, LoadingText, PANEL_NAME, panelComponent } from './ohif.js';
import { Panel } from './panel.js';
import { currentSession, onSession } from './mode.js';

function showPanel(node) {
  const panel = new Panel(node);
  if (currentSession()) panel.attach(currentSession());
  const stop = onSession(session => panel.attach(session));
  return () => {
    stop();
    panel.attach(null); // OHIF may show the panel in another node next
  };
}

export default {
  id: EXTENSION_ID,
  version: '1.0.0',

  getCustomizationModule() {
    return [{ name: 'global', value: { 'ui.loadingIndicatorProgress': { $set: LoadingText } } }];
  },

  getPanelModule() {
    return [
      {
        name: PANEL_NAME,
        iconName: 'tab-segmentation',
        iconLabel: 'FastSAM3D',
        label: 'FastSAM3D',
        component: panelComponent(showPanel),
      },
    ];
  },
};
