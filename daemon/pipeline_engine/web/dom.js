// Makes elements, and texts of values. Content becomes text nodes and never markup.

/** An element. Attributes that begin with `on` are listeners; those that are null, undefined or false are left out. */
export function h(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.flat(2).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

export const link = (path, ...children) => h("a", { href: `#/${path.map(encodeURIComponent).join("/")}` }, ...children);

export const badge = (status) => h("span", { class: `badge ${status}` }, status);

/** The time of an RFC 3339 text, as people here write it. */
export function when(text) {
  if (!text) return "";
  const time = new Date(text);
  const today = time.toDateString() === new Date().toDateString();
  return h("time", { datetime: text, title: text }, today ? time.toLocaleTimeString() : time.toLocaleString());
}

/** How long it took, or has taken until now. */
export function duration(from, to) {
  if (!from) return "";
  const seconds = Math.max(0, ((to ? new Date(to) : new Date()) - new Date(from)) / 1000);
  return seconds < 10 ? `${seconds.toFixed(1)} s` : spell(seconds);
}

export function spell(seconds) {
  const whole = Math.floor(seconds);
  const [minutes, hours] = [Math.floor(whole / 60), Math.floor(whole / 3600)];
  const parts = [[Math.floor(hours / 24), "d"], [hours % 24, "h"], [minutes % 60, "min"], [whole % 60, "s"]];
  const first = parts.findIndex(([count]) => count > 0);
  return first < 0 ? "0 s" : parts.slice(first, first + 2).map((part) => part.join(" ")).join(" ");
}

export const count = (number, word) => `${number.toLocaleString()} ${word}${number === 1 ? "" : "s"}`;

/** The tokens of prompts and of answers; "" if there are none. */
export const tokens = (usage) =>
  usage && usage.prompt_tokens + usage.completion_tokens > 0
    ? `${usage.prompt_tokens.toLocaleString()} in, ${usage.completion_tokens.toLocaleString()} out`
    : "";

export const labelsOf = (job) =>
  [...(job.dry_run ? [["dry run", null]] : []), ...Object.entries(job.labels)].map(([name, value]) =>
    h("span", { class: "label" }, value === null ? name : `${name}: ${value}`));

/** A table in a box that can be scrolled sideways. */
export const table = (kind, columns, body) =>
  h("div", { class: "scroll", tabindex: "0" }, h("table", { class: kind },
    h("thead", {}, h("tr", {}, columns.map((name) => h("th", { scope: "col" }, name)))), body));

const SHOWN = 100_000; // characters; more would make the page slow, and few read so far

/** A text as it is, in a box; of a very long one the beginning, and a button for the rest. */
export function textBox(text, attributes = {}) {
  const box = h("pre", { tabindex: "0", ...attributes }, text.slice(0, SHOWN));
  if (text.length <= SHOWN) return box;
  const more = h("button", { type: "button", onclick: () => (box.replaceChildren(text), more.remove()) },
    `Show all ${text.length.toLocaleString()} characters`);
  return h("div", {}, box, more);
}

export const facts = (pairs) =>
  h("dl", { class: "facts" }, pairs.filter(([, value]) => value !== undefined && value !== null && value.length !== 0)
    .map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));

export const problem = (error) => h("div", { class: "problem", role: "alert" }, error.message);

const waiting = new Set();

/** Call `draw` with the next picture of the screen: once, however often it is asked for until then. */
export function soon(draw) {
  if (!waiting.size) {
    requestAnimationFrame(() => {
      const all = [...waiting];
      waiting.clear();
      for (const one of all) one();
    });
  }
  waiting.add(draw);
}
