// Calls the HTTP API: the key, errors, and streams that go on where they were cut.

const BASE = new URL("..", location.href); // right behind a proxy that has us under a path of its own, too
const KEY = "pipeline-engine-key";
const RETRY_FIRST = 500; // milliseconds, doubled with each failure
const RETRY_LAST = 10_000;

export class ApiError extends Error {
  constructor(status, { code, message, details }) {
    super(message);
    Object.assign(this, { status, code, details });
  }
}

/** The response, once it is a good one. Asks for the key when it is needed. Throws ApiError; status 0: no answer. */
export async function request(path, { method = "GET", body, headers = {}, signal } = {}) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const response = await fetch(new URL(path, BASE), {
      method,
      signal,
      headers: {
        ...(key ? { Authorization: `Bearer ${key}` } : {}),
        ...(body === undefined ? {} : { "Content-Type": "application/json" }),
        ...headers,
      },
      body: body === undefined ? undefined : JSON.stringify(body),
    }).catch((error) => {
      if (signal?.aborted) throw error;
      throw new ApiError(0, { code: "unreachable", message: "The daemon cannot be reached." });
    });
    if (response.ok) return response;
    const none = { error: { code: "internal", message: `The daemon answered ${response.status}.` } };
    const { error } = await response.json().catch(() => none);
    if (response.status !== 401) throw new ApiError(response.status, error);
    if (sessionStorage.getItem(KEY) === key) await askForKey(key !== null); // else it has changed meanwhile
  }
}

export const call = async (path, options) => {
  const response = await request(path, options);
  return response.status === 204 ? null : response.json();
};

export const jobPath = (id) => `v1/jobs/${encodeURIComponent(id)}`;

let asking = null;

/** Show the dialog, once for all calls that wait for the key. */
function askForKey(wasWrong) {
  asking ??= new Promise((resolve) => {
    const dialog = document.querySelector("#key-dialog");
    const input = dialog.querySelector("input");
    document.querySelector("#key-wrong").hidden = !wasWrong;
    dialog.querySelector("form").onsubmit = (event) => {
      event.preventDefault();
      sessionStorage.setItem(KEY, input.value.trim());
      document.querySelector("#forget").hidden = false;
      input.value = "";
      dialog.close();
    };
    dialog.oncancel = (event) => event.preventDefault(); // without the key there is nothing to show
    dialog.onclose = () => {
      asking = null;
      resolve();
    };
    dialog.showModal();
  });
  return asking;
}

export const hasKey = () => sessionStorage.getItem(KEY) !== null;
export const forgetKey = () => sessionStorage.removeItem(KEY);

const offline = (is) => (document.querySelector("#offline").hidden = !is);

export const pause = (milliseconds, signal) =>
  new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });

/** Resolves when the page can be seen. */
const visible = (signal) =>
  new Promise((resolve) => {
    if (!document.hidden) resolve();
    document.addEventListener("visibilitychange", () => document.hidden || resolve(), { signal });
    signal.addEventListener("abort", resolve, { once: true });
  });

/** Do `work` now and every `milliseconds` while the page is seen; seldom while the daemon does not answer. */
export async function poll(work, milliseconds, signal) {
  for (let failures = 0; !signal.aborted; ) {
    await visible(signal);
    try {
      await work();
      failures = 0;
    } catch (error) {
      if (signal.aborted) return;
      if (error.status !== 0 && error.status !== 503) throw error;
      failures += 1;
    }
    offline(failures > 0);
    await pause(Math.min(milliseconds * 2 ** failures, 30_000), signal);
  }
}

/** Batches of a job's events, each event once, to stream_finished; connects again whenever the stream is cut. */
export async function* follow(id, signal) {
  let after = 0;
  let delay = RETRY_FIRST;
  while (!signal.aborted) {
    await visible(signal); // a browser has six connections to one server: a page that nobody sees gives its own back
    const hidden = new AbortController();
    const hide = () => document.hidden && hidden.abort();
    document.addEventListener("visibilitychange", hide);
    try {
      const path = `${jobPath(id)}/stream?after_seq=${after}`;
      const response = await request(path, { signal: AbortSignal.any([signal, hidden.signal]) });
      offline(false);
      delay = RETRY_FIRST;
      for await (const lines of linesOf(response.body)) {
        const events = lines.map((line) => JSON.parse(line)).filter((event) => event.seq > after);
        if (!events.length) continue;
        after = events.at(-1).seq;
        yield events;
        if (events.at(-1).event === "stream_finished") return;
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error.code === "gone") after = error.details.pruned_seq;
      else if (error.status >= 400 && error.status < 500) throw error;
    } finally {
      document.removeEventListener("visibilitychange", hide);
    }
    if (hidden.signal.aborted) continue;
    offline(true);
    await pause(delay, signal);
    delay = Math.min(delay * 2, RETRY_LAST);
  }
}

/** The complete lines of each piece that arrives. */
async function* linesOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let parts = [];
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const end = value.lastIndexOf("\n");
      if (end < 0) {
        parts.push(value);
        continue;
      }
      const lines = (parts.join("") + value.slice(0, end)).split("\n");
      parts = [value.slice(end + 1)];
      yield lines.filter(Boolean);
    }
  } finally {
    reader.cancel().catch(() => {}); // it may be broken already
  }
}
