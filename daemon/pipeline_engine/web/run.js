// The form that submits a job: a pipeline, its options, and sources that are pasted or dropped.

import { call } from "./api.js";
import { h, link, problem } from "./dom.js";

const KINDS = ["raw", "log", "code", "note"]; // the usual ones: a kind is any word
const SIMPLE = ["string", "number", "integer", "boolean"];

export async function showRun(place, signal, chosen) {
  const { pipelines } = await call("v1/config/pipelines", { signal });
  place.append(h("h1", {}, "Run a pipeline"));
  if (!pipelines.length) {
    place.append(h("p", { class: "empty" }, "There is no pipeline yet. See ", link(["pipelines"], "Pipelines"), "."));
    return;
  }
  const type = h("select", { id: "type", onchange: () => choose() },
    pipelines.map((one) => h("option", { selected: one.type === chosen }, one.type)));
  const description = h("p", { class: "dim" });
  const options = h("div");
  const sources = h("div", { class: "sources" });
  const dryRun = h("input", { type: "checkbox", id: "dry" });
  const priority = h("input", { type: "number", id: "priority", min: -100, max: 100, value: 0 });
  const labels = h("input", { id: "labels", placeholder: "team=docs, run=nightly" });
  const message = h("div");
  const submit = h("button", { class: "primary" }, "Run");
  const files = h("input", { type: "file", id: "files", multiple: true, onchange: () => addFiles([...files.files]) });
  let readOptions = () => ({});

  function choose() {
    const definition = pipelines.find((one) => one.type === type.value);
    description.textContent = definition.description ?? "";
    const made = optionFields(definition.options_schema);
    options.replaceChildren(...made.nodes);
    readOptions = made.read;
  }

  function addSource({ kind = "raw", label = "", content = "", content_base64 } = {}) {
    const number = sources.children.length + 1;
    const field = (name, value, more) => h("label", {}, name, h("input", { name: name.toLowerCase(), value, ...more }));
    const placeholder = "Paste a text here, or drop files anywhere on this form";
    const text = h("textarea", { rows: 6, "aria-label": `Text of source ${number}`, placeholder });
    text.value = content_base64 ? "(a file that is not text)" : content;
    text.disabled = Boolean(content_base64);
    const remove = h("button", { type: "button", class: "quiet", onclick: () => box.remove() }, "Remove");
    const fields = h("div", { class: "row" }, field("Label", label), field("Kind", kind, { list: "kinds" }), remove);
    const box = h("fieldset", { "aria-label": `Source ${number}` }, text, fields);
    box.read = () => ({
      kind: box.querySelector("[name=kind]").value,
      label: box.querySelector("[name=label]").value,
      ...(content_base64 ? { content_base64 } : { content: text.value }),
    });
    box.isEmpty = () => !content_base64 && !text.value;
    sources.append(box);
  }

  async function addFiles(list) {
    for (const box of [...sources.children]) if (box.isEmpty()) box.remove();
    for (const file of list) addSource({ label: file.name, ...(await contentOf(file)) });
    files.value = "";
  }

  async function send(event) {
    event.preventDefault();
    submit.disabled = true;
    message.replaceChildren();
    try {
      const given = [...sources.children].filter((box) => !box.isEmpty()).map((box) => box.read());
      const body = {
        pipeline_type: type.value,
        input: { sources: given, options: readOptions() },
        priority: Number(priority.value),
        labels: readLabels(labels.value),
        dry_run: dryRun.checked,
      };
      const { job } = await call("v1/jobs", { method: "POST", body, signal });
      location.hash = `#/jobs/${job.id}`;
    } catch (error) {
      message.replaceChildren(problem(error));
      submit.disabled = false;
    }
  }

  const form = h("form", { class: "run", onsubmit: send,
    ondragover: (event) => (event.preventDefault(), form.classList.add("dropping")),
    ondragleave: (event) => form.contains(event.relatedTarget) || form.classList.remove("dropping"),
    ondrop: (event) => {
      event.preventDefault();
      form.classList.remove("dropping");
      addFiles([...event.dataTransfer.files]);
    } },
    h("label", { for: "type" }, "Pipeline ", type), description,
    h("h2", {}, "Sources"), sources,
    h("datalist", { id: "kinds" }, KINDS.map((one) => h("option", { value: one }))),
    h("p", { class: "actions" },
      h("button", { type: "button", onclick: () => addSource() }, "Add a source"),
      h("label", { for: "files", class: "button files" }, "Add files …", files)),
    options,
    h("details", {}, h("summary", {}, "Priority and labels"), h("div", { class: "row" },
      h("label", { for: "priority" }, "Priority ", priority), h("label", { for: "labels" }, "Labels ", labels))),
    h("label", { for: "dry", class: "check" }, dryRun, " Dry run: show the prompts, and call nobody"),
    message, h("p", { class: "actions" }, submit));
  place.append(form);
  choose();
  addSource();
}

/** A field for each simple property of a JSON schema, and one for all the others as JSON. */
function optionFields(schema) {
  const isSimple = (one) => one.enum || SIMPLE.includes(one.type);
  const properties = Object.entries(schema?.properties ?? {}).filter(([, one]) => isSimple(one));
  const inputs = properties.map(([name, one], index) => {
    const id = `option-${index}`;
    const required = schema.required?.includes(name);
    const choices = one.enum ?? (one.type === "boolean" ? [true, false] : null);
    const unset = one.default === undefined ? "" : `default: ${JSON.stringify(one.default)}`;
    const input = choices
      ? h("select", { id, required }, h("option", { value: "" }, unset || "–"),
          choices.map((choice) => h("option", { value: JSON.stringify(choice) }, String(choice))))
      : one.type === "string"
        ? h("input", { id, required, placeholder: unset })
        : h("input", { id, required, placeholder: unset, type: "number", min: one.minimum, max: one.maximum,
            step: one.type === "integer" ? 1 : "any" });
    const read = () => (choices ? JSON.parse(input.value) : one.type === "string" ? input.value : Number(input.value));
    const title = h("span", {}, one.title ?? name, required ? " *" : "");
    const node = h("label", { for: id }, title, input, one.description ? h("small", {}, one.description) : "");
    return { name, input, read, node };
  });
  const json = h("textarea", { id: "options", rows: 2, placeholder: '{"max_tokens": 500}' });
  const box = h("label", { for: "options" }, properties.length ? "Other options, as JSON" : "Options, as JSON", json);
  const isWhole = properties.length === Object.keys(schema?.properties ?? {}).length;
  const isClosed = schema?.additionalProperties === false && isWhole;
  return {
    nodes: [
      h("h2", {}, "Options"),
      h("div", { class: "options" }, inputs.map((one) => one.node)),
      ...(isClosed ? [] : [box]),
    ],
    read: () => ({
      ...parseOptions(json.value),
      ...Object.fromEntries(inputs.filter((one) => one.input.value !== "").map((one) => [one.name, one.read()])),
    }),
  };
}

function parseOptions(text) {
  if (!text.trim()) return {};
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Error(`The options are not JSON: ${error.message}`);
  }
}

const readLabels = (text) =>
  Object.fromEntries(text.split(",").map((part) => part.trim()).filter(Boolean).map((part) => {
    const [name, ...value] = part.split("=");
    return [name.trim(), value.join("=").trim()];
  }));

async function contentOf(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  try {
    return { content: new TextDecoder("utf-8", { fatal: true }).decode(bytes) };
  } catch {
    const url = await new Promise((resolve) => {
      const reader = new FileReader();
      reader.onload = () => resolve(reader.result);
      reader.readAsDataURL(file);
    });
    return { content_base64: url.slice(url.indexOf(",") + 1) };
  }
}
