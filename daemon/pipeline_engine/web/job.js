// One job: its steps, what they say while they run, what they made, and what can be done with it.

import { call, follow, jobPath } from "./api.js";
import { badge, count, duration, facts, h, labelsOf, link } from "./dom.js";
import { problem, soon, table, textBox, tokens, when } from "./dom.js";
import { drawGraph } from "./graph.js";
import { ItemList } from "./items.js";
import { LiveItems } from "./live.js";

const FINAL = ["succeeded", "failed", "cancelled"];
const isFinal = (job) => FINAL.includes(job.status);

export async function showJob(place, signal, id) {
  let { job } = await call(jobPath(id), { signal });
  const input = job.input;
  const steps = new Map(job.step_executions.map((one) => [one.step_id, one]));
  const notes = new Map(); // of steps: what goes on in them
  const definition = await definitionOf(job, signal);
  const needs = new Map(definition?.steps.map((step) => [step.id, step.depends_on]));

  const head = h("div");
  const graph = h("div", { class: "scroll" });
  const body = h("tbody");
  const rows = new Map();
  const live = new LiveItems((step) => steps.get(step)?.name || step);
  const results = new ItemList("Result", id, signal);
  const others = new ItemList("All items", id, signal);
  const message = h("div");
  const told = h("p", { class: "unseen", role: "status" }); // for those who listen: `head` is drawn each second
  const cancel = button("Cancel", "danger", async () => {
    const body = { reason: "cancelled in the web page" };
    update((await call(`${jobPath(id)}/cancel`, { method: "POST", body, signal })).job);
  });
  const rerun = h("button", { type: "button", "aria-haspopup": "dialog", onclick: () => openRerun() }, "Run again …");
  const remove = button("Delete", "danger", async () => {
    if (!confirm("Delete this job and all that it made?")) return;
    await call(jobPath(id), { method: "DELETE", signal });
    location.hash = "#/jobs";
  });
  const all = button("Show the items of all steps", null, async () => {
    const { checkpoints } = await call(`${jobPath(id)}/checkpoints`, { signal });
    others.set(checkpoints.map((one) => one.result));
    if (!checkpoints.length) message.replaceChildren(h("p", { class: "empty" }, "No step has made an item."));
  });

  place.append(
    h("div", { class: "title" }, h("h1", {}, job.pipeline_type), h("p", { class: "actions" }, cancel, rerun, remove)),
    message, told, head, graph,
    table("steps", ["Step", "Status", "Items", "Took", "Tokens", "Needs"], body),
    live.node, results.node, h("p", { class: "actions" }, all), others.node, drawInput(input));

  function update(changed) {
    job = { ...job, ...changed };
    for (const one of changed.step_executions ?? []) steps.set(one.step_id, one);
    if (isFinal(job)) results.set(job.result?.items ?? []);
    draw();
  }

  function draw() {
    document.title = `${job.status}: ${job.pipeline_type}`;
    if (told.textContent !== job.status) told.textContent = job.status;
    cancel.hidden = isFinal(job);
    remove.hidden = !isFinal(job);
    head.replaceChildren(drawFacts(job), job.error ? drawError(job.error) : "");
    if (definition) graph.replaceChildren(drawGraph(definition.steps, (step) => steps.get(step)?.status ?? ""));
    for (const one of steps.values()) {
      const row = rows.get(one.step_id) ?? h("tr");
      if (!rows.has(one.step_id)) body.append(row);
      rows.set(one.step_id, row);
      drawStep(row, one, notes.get(one.step_id), needs.get(one.step_id));
    }
  }

  /** A button that does `work`; what goes wrong is told above. */
  function button(text, kind, work) {
    const node = h("button", { type: "button", class: kind, onclick: async () => {
      node.disabled = true;
      message.replaceChildren();
      await work().catch((error) => signal.aborted || message.replaceChildren(problem(error)));
      node.disabled = false;
    } }, text);
    return node;
  }

  function openRerun() {
    const from = h("select", { id: "from" }, h("option", { value: "" }, "the beginning"),
      [...steps.values()].map((one) => h("option", { value: one.step_id }, one.name || one.step_id)));
    const reuse = h("input", { type: "checkbox", id: "reuse", checked: true });
    const wrong = h("div");
    const go = h("button", {}, "Run");
    const form = h("form", { onsubmit: (event) => {
      event.preventDefault();
      go.disabled = true;
      const body = { from_step_id: from.value || null, reuse_upstream: reuse.checked };
      call(`${jobPath(id)}/rerun`, { method: "POST", body, signal })
        .then((answer) => (dialog.close(), (location.hash = `#/jobs/${answer.job.id}`)))
        .catch((error) => (wrong.replaceChildren(problem(error)), (go.disabled = false)));
    } }, h("h2", { id: "rerun-title" }, "Run again"),
      h("label", { for: "from" }, "From ", from),
      h("label", { for: "reuse" }, reuse, " Keep what succeeded and does not depend on that"),
      wrong,
      h("p", { class: "actions" },
        h("button", { type: "button", class: "quiet", onclick: () => dialog.close() }, "Leave it"), go));
    const dialog = h("dialog", { "aria-labelledby": "rerun-title", onclose: () => dialog.remove() }, form);
    place.append(dialog);
    dialog.showModal();
  }

  const HANDLERS = {
    provider_chunk: (data) => live.add(data),
    item_started: (data) => live.at(data),
    item_completed: (data) => (live.done(data), results.add(data)),
    step_retrying: (data) => live.retry(data),
    step_progress: ({ step_id, done, total, note }) => {
      Object.assign(steps.get(step_id), { items_done: done, items_total: total });
      notes.set(step_id, note);
    },
  };

  update(job);
  if (isFinal(job)) return;
  const clock = setInterval(() => soon(draw), 1000);
  signal.addEventListener("abort", () => clearInterval(clock));
  for await (const events of follow(id, signal)) {
    for (const { event, data } of events) {
      if (HANDLERS[event]) {
        HANDLERS[event](data);
      } else if (event.startsWith("step_")) {
        steps.set(data.step_id, data);
        notes.delete(data.step_id);
        if (event !== "step_started") live.stepDone(data.step_id);
      } else if (event.startsWith("job_") && data.status) {
        update(data);
      }
    }
    soon(draw);
  }
  clearInterval(clock);
}

/** The definition as it is now, if it still has the steps of this job: only to show what depends on what. */
async function definitionOf(job, signal) {
  const path = `v1/config/pipelines/${encodeURIComponent(job.pipeline_type)}`;
  const definition = await call(path, { signal }).catch(() => null);
  const ids = (list, key) => list.map((one) => one[key]).join(" ");
  return definition && ids(definition.steps, "id") === ids(job.step_executions, "step_id") ? definition : null;
}

function drawFacts(job) {
  return facts([
    ["Status", badge(job.status)],
    ["Job", h("code", {}, job.id)],
    ["Created", when(job.created_at)],
    ["Took", duration(job.started_at, job.finished_at)],
    ["Tokens", tokens(job.usage)],
    ["Priority", job.priority || ""],
    ["Restarts", job.restarts || ""],
    ["Run again of", job.parent_job_id && link(["jobs", job.parent_job_id], job.parent_job_id)],
    ["From the step", job.rerun_from_step],
    ["Labels", labelsOf(job)],
  ]);
}

function drawStep(row, one, note, needs) {
  const items = one.items_total > 1 ? `${one.items_done} / ${one.items_total}` : one.items_done || "";
  const more = [
    note,
    one.attempts > 1 && `attempt ${one.attempts}`,
    one.reused_from && "kept",
    one.errors?.length && count(one.errors.length, "error"),
  ].filter(Boolean).join(", ");
  const took = one.started_at ? duration(one.started_at, one.finished_at) : "";
  row.replaceChildren(...[
    [
      one.name || one.step_id,
      one.reason ? h("p", { class: "dim" }, one.reason) : "",
      one.error ? h("p", { class: "problem" }, one.error.message) : "",
    ],
    [badge(one.status), h("span", { class: "dim" }, more && ` ${more}`)],
    items, took, tokens(one.usage), needs?.join(", ") ?? "",
  ].map((content) => h("td", {}, content)));
}

function drawError({ code, message, details }) {
  const more = Object.keys(details ?? {}).length > 0 &&
    h("details", {}, h("summary", {}, "Details"), textBox(JSON.stringify(details, null, 2)));
  return h("div", { class: "problem" }, h("strong", {}, code), ` ${message}`, more);
}

function drawInput({ sources, options }) {
  const source = (one) => {
    const title = h("summary", {}, one.label || one.kind, h("span", { class: "dim" }, one.label ? ` ${one.kind}` : ""));
    const details = h("details", {}, title);
    const text = one.content_base64 ? `${count(one.content_base64.length, "character")} of base64` : one.content;
    details.addEventListener("toggle", () => details.append(textBox(text)), { once: true });
    return details;
  };
  return h("section", { "aria-label": "Input" }, h("h2", {}, "Input"), sources.map(source),
    Object.keys(options).length
      ? h("details", { open: true }, h("summary", {}, "Options"), textBox(JSON.stringify(options, null, 2)))
      : "",
    !sources.length && !Object.keys(options).length ? h("p", { class: "empty" }, "None.") : "");
}
