// Shows the view that the address names after its #, and takes the last one away.

import { forgetKey, hasKey } from "./api.js";
import { h, problem } from "./dom.js";
import { showJob } from "./job.js";
import { showJobs } from "./jobs.js";
import { showPipeline, showPipelines } from "./pipelines.js";
import { showRun } from "./run.js";
import { showProviders, showStatus } from "./status.js";

/** The views of each page, by how many parts its address has after the name. */
const VIEWS = {
  jobs: [showJobs, showJob],
  run: [showRun, showRun],
  pipelines: [showPipelines, showPipeline],
  providers: [showProviders],
  status: [showStatus],
};

const main = document.querySelector("#main");
let current = new AbortController();

async function show() {
  current.abort();
  current = new AbortController();
  const { signal } = current;
  const [name, ...rest] = location.hash.replace(/^#\/?/, "").split("/").map(decode);
  const view = VIEWS[name || "jobs"]?.[rest.length];
  document.title = "Pipeline Engine";
  for (const anchor of document.querySelectorAll("nav a")) {
    if (anchor.hash === `#/${name || "jobs"}`) anchor.setAttribute("aria-current", "page");
    else anchor.removeAttribute("aria-current");
  }
  // Each view has a place of its own: what the last one still has under way cannot touch this one.
  const place = h("div", { class: "view" });
  main.replaceChildren(place);
  try {
    if (!view) throw new Error("There is no such page.");
    await view(place, signal, ...rest);
  } catch (error) {
    if (!signal.aborted) {
      const again = h("button", { type: "button", onclick: show }, "Try again");
      place.append(problem(error), h("p", { class: "actions" }, again));
    }
  }
}

function decode(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

const forget = document.querySelector("#forget");
forget.hidden = !hasKey();
forget.onclick = () => {
  forgetKey();
  location.reload();
};
document.querySelector(".skip").onclick = (event) => {
  event.preventDefault(); // the # is ours
  main.focus();
};
addEventListener("hashchange", async () => {
  await Promise.race([show(), new Promise((resolve) => setTimeout(resolve, 300))]);
  window.scrollTo(0, 0);
  main.focus({ preventScroll: true });
});
show();
