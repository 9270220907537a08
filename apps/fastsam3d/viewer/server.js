// Requests to the server, and what it says when it refuses one.

/** An answer of the server that is no success; the message is the server's sentence. */
export class ServerError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status; // of the reply; 0 without one
  }

  /** Return whether the server does not take what was sent; else it cannot answer now. */
  get isRefusal() {
    return this.status >= 400 && this.status < 500;
  }
}

/** Return the reply to a request. Throws ServerError, and AbortError if options.signal ends it. */
export async function ask(path, options) {
  let reply;
  try {
    reply = await fetch(path, options);
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new ServerError(`The server does not answer (${error.message}); is it running?`);
  }
  if (reply.ok) return reply;
  const text = await reply.text();
  let detail = `The server answers ${reply.status} to ${path}`;
  try {
    detail = String(JSON.parse(text).detail ?? detail);
  } catch {
    // not one of the server's own messages
  }
  throw new ServerError(detail, reply.status);
}
