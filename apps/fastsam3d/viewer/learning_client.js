// The server's routes for trainings, the versions of the model and the next sample.

import { ask, ServerError } from './server.js';

const POSTED = { method: 'POST' };

export class LearningClient {
  /** describe(): promise of {model}, as of ServerClient. */
  constructor(describe) {
    this.describe = describe;
  }

  /** Return {strategies, trainers, epochs, status, stats, versions} as of now.
   *
   * trainers: names of those that change the model, the adaptation last. epochs: default of a
   * training. status: of the last one, "" for none. stats: its trainer, progress and decision.
   * versions: of the model, or null if it is never trained here. */
  async learning() {
    const { model } = await this.describe();
    const orElse = (promise, value) => promise.then(reply => reply.json()).catch(() => value);
    const [info, task, versions] = await Promise.all([
      ask('/info/').then(reply => reply.json()),
      orElse(ask('/train/'), {}),
      orElse(ask(`/weights/${model}`), null),
    ]);
    const trainers = [model, `${model}_adapt`].filter(name => name in (info.trainers ?? {}));
    const [stats] = trainers
      .map(trainer => ({ start_ts: 0, ...info.train_stats?.[trainer], trainer }))
      .sort((one, other) => other.start_ts - one.start_ts);
    return {
      strategies: Object.keys(info.strategies ?? {}),
      trainers,
      epochs: info.trainers?.[model]?.config?.max_epochs ?? 1,
      status: task.status ?? '',
      stats: stats ?? {},
      versions,
    };
  }

  /** Start a training; return the seconds that the server expects, or null if it cannot tell. */
  async train(trainer, options) {
    const headers = { 'Content-Type': 'application/json' };
    const body = JSON.stringify(options);
    const reply = await ask(`/train/${trainer}`, { method: 'POST', headers, body });
    return (await reply.json()).estimate_seconds ?? null;
  }

  async stopTraining() {
    await ask('/train/', { method: 'DELETE' });
  }

  /** Serve a version of the model; 0: the weights that the server was started with. */
  async rollBack(version) {
    const { model } = await this.describe();
    await ask(`/weights/${model}/rollback?version=${version}`, { method: 'POST' });
  }

  /** Return the StudyInstanceUID of the image that a strategy proposes, or null for none. */
  async nextStudy(strategy) {
    const { id } = (await (await ask(`/activelearning/${strategy}`, POSTED)).json()) ?? {};
    if (!id) return null;
    // on a DICOM server an ID is that of a series; a file is a study of its own
    const value = encodeURIComponent(id);
    for (const search of [`series?SeriesInstanceUID=${value}`, `studies?PatientID=${value}`]) {
      const reply = await ask(`/dicom-web/${search}`);
      const [match] = reply.status === 200 ? await reply.json() : [];
      if (match) return match['0020000D'].Value[0];
    }
    throw new ServerError(`The image ${id} is among the studies, but is not listed.`);
  }
}
