// Shows what models are saying: tokens are added with each picture of the screen, not one by one.

import { h, soon } from "./dom.js";

const BLOCK = 2000; // characters; only the last block is laid out again when something is added
const MOST = 50; // items that are shown at a time

/** A text that grows. The cost of adding does not depend on what is there already. */
class GrowingText {
  constructor(attributes) {
    this.node = h("div", attributes);
    this.waiting = [];
    this.clear();
  }

  clear() {
    this.waiting = [];
    this.node.replaceChildren();
    this.last = null;
  }

  add(text) {
    this.waiting.push(text);
    soon(() => this.draw());
  }

  draw() {
    const { scrollHeight, scrollTop, clientHeight } = this.node;
    const atEnd = scrollHeight - scrollTop - clientHeight < 40; // pixels: who has scrolled up to read stays there
    let text = this.waiting.join("");
    this.waiting = [];
    while (text) {
      if (!this.last) this.node.append(h("div", {}, (this.last = document.createTextNode(""))));
      // A block ends with a line, whose break the end of the block is.
      const room = BLOCK - this.last.length;
      const end = text.length > room ? text.indexOf("\n", Math.max(0, room)) : -1;
      this.last.appendData(end < 0 ? text : text.slice(0, end) || "\n");
      text = end < 0 ? "" : text.slice(end + 1);
      if (end >= 0) this.last = null;
    }
    if (atEnd) this.node.scrollTop = this.node.scrollHeight;
  }
}

/** The items that are being made. `titleOf` gives the title of a step by its id. */
export class LiveItems {
  constructor(titleOf) {
    this.titleOf = titleOf;
    this.list = h("div", { class: "live" });
    this.more = h("p", { class: "dim", hidden: true });
    this.node = h("section", { hidden: true, "aria-label": "In progress" },
      h("h2", {}, "In progress"), this.list, this.more);
    this.items = new Map();
    this.unseen = new Set();
  }

  /** An attempt at an item begins, or goes on: what an earlier attempt said is void, and of no more interest. */
  at({ step_id, shard_key = "", attempt }) {
    const key = `${step_id} ${shard_key}`;
    let item = this.items.get(key);
    if (!item) {
      if (this.items.size >= MOST) return this.count(key);
      item = this.make(key, step_id, shard_key);
    }
    if (attempt > item.attempt) {
      item.attempt = attempt;
      item.said.clear();
      item.thought.clear();
      item.note.textContent = attempt > 1 ? `attempt ${attempt}` : "";
    }
    return attempt < item.attempt ? null : item;
  }

  make(key, step, shard) {
    const item = {
      attempt: 0,
      step,
      said: new GrowingText({ class: "said", tabindex: "0", "data-item": key.trim() }),
      thought: new GrowingText({ class: "thought" }),
      note: h("span", { class: "dim" }),
    };
    const title = h("summary", {}, this.titleOf(step), shard ? ` ${shard} ` : " ", item.note);
    item.node = h("details", { open: true }, title, item.thought.node, item.said.node);
    this.items.set(key, item);
    this.list.append(item.node);
    this.node.hidden = false;
    return item;
  }

  count(key) {
    this.unseen.add(key);
    this.more.hidden = false;
    this.more.textContent = `${this.unseen.size} more at work`;
    return null;
  }

  add(chunk) {
    const item = this.at(chunk);
    if (item) (chunk.kind === "reasoning" ? item.thought : item.said).add(chunk.content);
  }

  /** What failed stays in sight until the next attempt begins. */
  retry({ step_id, shard_key = "", attempt, delay_s, error }) {
    const item = this.items.get(`${step_id} ${shard_key}`);
    if (item) item.note.textContent = `attempt ${attempt} in ${delay_s.toFixed(1)} s: ${error.message}`;
  }

  done({ step_id, shard_key = "" }) {
    const key = `${step_id} ${shard_key}`;
    this.items.get(key)?.node.remove();
    this.items.delete(key);
    if (this.unseen.delete(key)) this.more.hidden = !this.unseen.size;
    this.node.hidden = !this.items.size;
  }

  stepDone(step) {
    for (const [key, item] of this.items) {
      if (item.step === step) this.done({ step_id: step, shard_key: key.slice(step.length + 1) });
    }
    for (const key of [...this.unseen]) if (key.startsWith(`${step} `)) this.unseen.delete(key);
    this.more.hidden = !this.unseen.size;
  }
}
