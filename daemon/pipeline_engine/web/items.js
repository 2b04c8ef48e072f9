// Shows finished items: texts, JSON, images, and what else the steps made.

import { jobPath, request } from "./api.js";
import { h, problem, textBox, tokens } from "./dom.js";

const PAGE = 50; // items that are shown at a time: a step may have ten thousand

/** A list that grows: all its items are kept, and shown a page at a time. */
export class ItemList {
  constructor(title, job, signal) {
    Object.assign(this, { job, signal, items: [], shown: 0 });
    this.list = h("div", { class: "items" });
    this.more = h("button", { type: "button", hidden: true, onclick: () => this.show(this.shown + PAGE) });
    this.node = h("section", { hidden: true, "aria-label": title }, h("h2", {}, title), this.list, this.more);
  }

  set(items) {
    const before = JSON.stringify(this.items.slice(0, this.shown).map((item) => item.id));
    this.items = items;
    if (before !== JSON.stringify(items.slice(0, this.shown).map((item) => item.id))) {
      this.list.replaceChildren();
      this.shown = 0;
    }
    this.show(Math.max(PAGE, this.shown));
  }

  add(item) {
    this.items.push(item);
    this.show(Math.max(PAGE, this.shown));
  }

  show(until) {
    const fresh = this.items.slice(this.shown, until);
    this.list.append(...fresh.map((item) => drawItem(item, this.job, this.signal)));
    this.shown += fresh.length;
    this.node.hidden = !this.items.length;
    this.more.hidden = this.shown === this.items.length;
    this.more.textContent = `Show more (${(this.items.length - this.shown).toLocaleString()})`;
  }
}

function drawItem(item, job, signal) {
  const { data } = item;
  const used = tokens(data.usage);
  const about = [
    data.provider,
    data.model,
    used && `tokens: ${used}`,
    data.latency_ms && `${(data.latency_ms / 1000).toFixed(1)} s`,
    data.finish_reason !== "stop" && data.finish_reason,
    item.tag,
  ].filter(Boolean);
  return h("article", {}, h("h3", {}, item.label, h("span", { class: "dim" }, about.join(" · "))),
    (data.warnings ?? []).map((one) => h("p", { class: "warning" }, one.message ?? one.code)),
    data.artifact ? drawArtifact(data.artifact, item.label, job, signal) : "",
    content(data),
    folded("Reasoning", data.reasoning), folded("Tool calls", data.tool_calls), folded("Prompt", data.prompt));
}

function content(data) {
  const dimensions = data.dimensions ?? data.embedding?.length;
  if (data.embedding) return h("p", { class: "dim" }, `a vector of ${dimensions} dimensions`);
  if (data.json !== undefined && data.json !== null) return textBox(JSON.stringify(data.json, null, 2));
  return data.text ? textBox(data.text) : "";
}

function folded(title, value) {
  if (!value?.length) return "";
  const details = h("details", {}, h("summary", {}, title));
  const text = typeof value === "string" ? value : JSON.stringify(value, null, 2);
  details.addEventListener("toggle", () => details.append(textBox(text)), { once: true });
  return details;
}

/** An image, or something to save. It is fetched with the key, which an address in `src` could not have. */
function drawArtifact(artifact, label, job, signal) {
  const fetched = async () => {
    const response = await request(`${jobPath(job)}/artifacts/${encodeURIComponent(artifact.id)}`, { signal });
    const address = URL.createObjectURL(await response.blob());
    signal.addEventListener("abort", () => URL.revokeObjectURL(address));
    return address;
  };
  const size = `${artifact.mime_type}, ${artifact.bytes.toLocaleString()} bytes`;
  const open = async () => h("a", { href: await fetched(), download: artifact.id }).click();
  const wrong = (error) => signal.aborted || save.replaceWith(problem(error));
  const save = h("button", { type: "button", onclick: () => open().catch(wrong) }, `Save (${size})`);
  if (!artifact.mime_type.startsWith("image/")) return save;
  const image = h("img", { alt: label, class: "artifact" });
  fetched().then(
    (address) => (image.src = address),
    (error) => signal.aborted || image.replaceWith(problem(error)),
  );
  return h("div", {}, image, h("p", {}, save));
}
