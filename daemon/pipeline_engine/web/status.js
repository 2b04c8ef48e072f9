// What the daemon says of itself: its providers, its health and its counters.

import { call, poll } from "./api.js";
import { badge, facts, h, spell, table, textBox } from "./dom.js";

const REFRESH = 5000; // milliseconds

export async function showProviders(place, signal) {
  const { providers } = await call("v1/config/providers", { signal });
  const row = ({ id, kind, base_uri, default_model, api_key_set, extra }) => {
    const settings = Object.keys(extra).length > 0 &&
      h("details", {}, h("summary", {}, "show"), textBox(JSON.stringify(extra, null, 2)));
    const cells = [id, kind, base_uri, default_model, api_key_set ? "set" : "", settings || ""];
    return h("tr", {}, cells.map((content) => h("td", {}, content)));
  };
  const columns = ["Profile", "Kind", "Address", "Model", "Key", "Settings"];
  place.append(h("h1", {}, "Providers"), table("providers", columns, h("tbody", {}, providers.map(row))));
}

export async function showStatus(place, signal) {
  const content = h("div");
  place.append(h("h1", {}, "Status"), content);
  await poll(async () => {
    const ready = call("health/ready", { signal }).then(() => null, (error) => error);
    const [health, metrics, running, queued] = await Promise.all([
      call("health", { signal }),
      call("v1/metrics", { signal }),
      countOf("running", signal),
      countOf("queued", signal),
    ]);
    const reason = await ready;
    const kinds = Object.keys(metrics.provider_call_count).filter((kind) => metrics.provider_call_count[kind]);
    const row = (kind) => {
      const [calls, latency] = [metrics.provider_call_count[kind], metrics.provider_call_latency[kind]];
      const mean = `${Math.round(latency / calls).toLocaleString()} ms`;
      const cells = [kind, calls, metrics.provider_call_errors[kind], mean, metrics.provider_chunk_count[kind]];
      return h("tr", {}, cells.map((value) => h("td", {}, value.toLocaleString())));
    };
    content.replaceChildren(
      facts([
        ["Takes jobs", reason ? [badge("no"), ` ${reason.message}`] : badge("yes")],
        ["Version", health.version],
        ["Runs for", spell(health.uptime_sec)],
        ["Running jobs", running],
        ["Queued jobs", queued],
      ]),
      h("h2", {}, "Calls to providers since the start"),
      kinds.length === 0
        ? h("p", { class: "empty" }, "None.")
        : table("calls", ["Kind", "Calls", "Errors", "Mean time", "Chunks"], h("tbody", {}, kinds.map(row))));
  }, REFRESH, signal);
}

const MOST = 100;

async function countOf(status, signal) {
  const { jobs, next_cursor } = await call(`v1/jobs?status=${status}&limit=${MOST}`, { signal });
  return next_cursor ? `more than ${MOST}` : String(jobs.length);
}
