// The list of jobs: newest first, a page at a time, kept up to date while it is seen.

import { call, poll } from "./api.js";
import { badge, duration, h, labelsOf, link, table, tokens, when } from "./dom.js";

const STATUSES = ["queued", "running", "succeeded", "failed", "cancelled"];
const PAGE = 25;
const REFRESH = 2000; // milliseconds

export async function showJobs(place, signal) {
  let cursors = [""]; // of the pages up to this one
  let next = null;
  let rows = new Map();
  const status = h("select", { id: "status", onchange: () => ((cursors = [""]), load()) },
    h("option", { value: "" }, "all"), STATUSES.map((one) => h("option", {}, one)));
  const body = h("tbody");
  const empty = h("p", { class: "empty", hidden: true }, "No jobs here. ", link(["run"], "Run a pipeline"), ".");
  const newer = h("button", { type: "button", onclick: () => (cursors.pop(), load()) }, "Newer");
  const older = h("button", { type: "button", onclick: () => (cursors.push(next), load()) }, "Older");
  const pages = h("p", { class: "actions", hidden: true }, newer, older);
  place.append(
    h("div", { class: "title" }, h("h1", {}, "Jobs"), h("label", { for: "status" }, "Status ", status)),
    table("jobs", ["Status", "Pipeline", "Job", "Created", "Took", "Tokens"], body),
    empty, pages);

  async function load() {
    const asked = `${cursors.at(-1)} ${status.value}`;
    const query = new URLSearchParams({ limit: PAGE, status: status.value, cursor: cursors.at(-1) });
    const { jobs, next_cursor } = await call(`v1/jobs?${query}`, { signal });
    if (asked !== `${cursors.at(-1)} ${status.value}`) return; // another page was asked for meanwhile
    next = next_cursor;
    const kept = rows;
    rows = new Map(jobs.map((job) => [job.id, draw(job, kept.get(job.id))]));
    const wanted = [...rows.values()].map((row) => row.node);
    // Rows that stay are not moved: that would take the focus away.
    const same = wanted.length === body.children.length && wanted.every((node, index) => node === body.children[index]);
    if (!same) body.replaceChildren(...wanted);
    empty.hidden = jobs.length > 0;
    pages.hidden = cursors.length === 1 && next === null;
    newer.disabled = cursors.length === 1;
    older.disabled = next === null;
  }

  await poll(load, REFRESH, signal);
}

/** The row of a job; one that is there and says the same is kept. */
function draw(job, row) {
  const took = job.status === "queued" ? "" : duration(job.started_at, job.finished_at);
  const text = `${job.status} ${job.updated_at} ${took}`;
  if (row?.text === text) return row;
  const node = row?.node ?? h("tr");
  const cells = [badge(job.status), null, null, when(job.created_at), took, tokens(job.usage)];
  if (row) {
    cells.forEach((content, index) => content === null || node.cells[index].replaceChildren(content));
  } else {
    // These never change: so the focus can stay on a link.
    cells[1] = [link(["jobs", job.id], job.pipeline_type), " ", labelsOf(job)];
    cells[2] = job.id;
    node.append(...cells.map((content) => h("td", {}, content)));
  }
  return { node, text };
}
