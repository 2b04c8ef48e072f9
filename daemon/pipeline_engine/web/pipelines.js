// The pipelines that jobs can name, and one of them with its graph and its steps.

import { call } from "./api.js";
import { count, facts, h, link, table, textBox } from "./dom.js";
import { drawGraph } from "./graph.js";

export async function showPipelines(place, signal) {
  const { pipelines, broken_files: broken } = await call("v1/config/pipelines", { signal });
  place.append(h("h1", {}, "Pipelines"), ...broken.map((words) => h("p", { class: "warning" }, `Not in force: ${words}`)));
  if (!pipelines.length) {
    place.append(h("p", { class: "empty" },
      "There are none yet: put definitions into the folder that ", h("code", {}, "pipelines_dir"), " names."));
  }
  place.append(h("ul", { class: "cards" }, pipelines.map((one) =>
    h("li", {}, h("h2", {}, link(["pipelines", one.type], one.type)), h("p", {}, one.description ?? ""),
      h("p", { class: "dim" }, `version ${one.version}, ${count(one.steps.length, "step")}`)))));
}

export async function showPipeline(place, signal, type) {
  const definition = await call(`v1/config/pipelines/${encodeURIComponent(type)}`, { signal });
  const step = (one) => h("tr", {}, [
    [one.name || one.id, one.name ? h("span", { class: "dim" }, ` ${one.id}`) : ""],
    one.mode === "single" ? one.kind : `${one.kind}, ${one.mode}`,
    one.depends_on.join(", "),
    one.provider_profile_id ?? "",
    one.when ?? "",
    one.export ? "yes" : "",
  ].map((content) => h("td", {}, content)));
  place.append(
    h("div", { class: "title" }, h("h1", {}, definition.type),
      h("a", { class: "button", href: `#/run/${encodeURIComponent(type)}` }, "Run")),
    h("p", {}, definition.description ?? ""),
    facts([
      ["Version", definition.version],
      ["Time limit", definition.timeout_s ? `${definition.timeout_s} s` : ""],
    ]),
    h("div", { class: "scroll" }, drawGraph(definition.steps)),
    h("h2", {}, "Steps"),
    table("", ["Step", "Kind", "Needs", "Provider", "Only when", "In the result"],
      h("tbody", {}, definition.steps.map(step))),
    h("section", { "aria-label": "Definition" },
      h("details", {}, h("summary", {}, "Definition"), textBox(JSON.stringify(definition, null, 2)))));
}
