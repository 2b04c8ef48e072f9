// What a page can try on a server of another origin. Each attempt tells what it got: a text, or null for nothing.
// The page of the same origin, where all of this works, shows that the attempts are real.
(() => {
  const PATIENCE = 2000; // milliseconds for what may never answer

  const within = (promise) =>
    Promise.race([promise, new Promise((resolve) => setTimeout(resolve, PATIENCE, null))]).catch(() => null);

  const element = (name, fields) =>
    within(new Promise((resolve) => {
      const made = Object.assign(document.createElement(name), fields);
      made.onload = made.onloadeddata = () => resolve(`loaded ${made.naturalWidth ?? ""}`);
      made.onerror = () => resolve(null);
      document.body.append(made);
    }));

  const fetched = async (url, init) => {
    const response = await fetch(url, init);
    const text = await response.text();
    return response.status || text ? `${response.status} ${text}` : null;
  };

  const xhr = (method, url, body, type) =>
    within(new Promise((resolve) => {
      const request = new XMLHttpRequest();
      request.open(method, url);
      if (type) request.setRequestHeader("Content-Type", type);
      request.onload = () => resolve(`${request.status} ${request.responseText}`);
      request.onerror = () => resolve(null);
      request.send(body);
    }));

  const frame = (src, fields = {}) =>
    within(new Promise((resolve) => {
      const made = Object.assign(document.createElement("iframe"), { src, ...fields });
      made.onload = () => {
        try {
          resolve(made.contentDocument.body.innerText || null); // throws for another origin, is empty for an error
        } catch {
          resolve(null);
        }
      };
      document.body.append(made);
    }));

  const opened = (url) =>
    within(new Promise((resolve) => {
      const other = window.open(url);
      setTimeout(() => {
        try {
          resolve(other.document.body.innerText || null);
        } catch {
          resolve(null);
        }
      }, 500);
    }));

  const eventSource = (url) =>
    within(new Promise((resolve) => {
      const source = new EventSource(url);
      source.onmessage = source.onopen = () => resolve("open");
      source.onerror = () => (source.close(), resolve(null));
    }));

  const webSocket = (url) =>
    within(new Promise((resolve) => {
      const socket = new WebSocket(url.replace("http", "ws"));
      socket.onopen = () => resolve("open");
      socket.onerror = () => resolve(null);
    }));

  const worker = (url) =>
    within(new Promise((resolve) => {
      new Worker(url, { type: "module" }).onerror = () => resolve(null); // throws for another origin
      setTimeout(() => resolve("runs"), 500);
    }));

  // Only a page of http://127.0.0.1, localhost or https has service workers; the others get nothing, as they should.
  const serviceWorker = (url) =>
    within((async () => {
      const registration = await navigator.serviceWorker.register("/worker.js");
      await navigator.serviceWorker.ready;
      const channel = new MessageChannel();
      const answer = new Promise((resolve) => (channel.port1.onmessage = (event) => resolve(event.data)));
      registration.active.postMessage(url, [channel.port2]);
      return await answer;
    })());

  globalThis.fetchInServiceWorker = serviceWorker;

  const form = (action, enctype, fields, sandbox) => {
    // A form in a frame of its own: the page stays, and a sandboxed frame has the origin `null`.
    const made = document.createElement("iframe");
    if (sandbox) made.sandbox = "allow-forms allow-scripts";
    const inputs = Object.entries(fields).map(([name, value]) => {
      const input = document.createElement("input");
      input.setAttribute("name", name);
      input.setAttribute("value", value);
      return input.outerHTML;
    });
    made.srcdoc =
      `<meta name=referrer content=no-referrer><form method=post action="${action}" enctype="${enctype}">` +
      `${inputs.join("")}</form><script>document.forms[0].submit()</script>`;
    document.body.append(made);
    return new Promise((resolve) => setTimeout(resolve, 300, null));
  };

  globalThis.readAll = async (base, job, image) => {
    const jobs = `${base}/v1/jobs`;
    const got = {};
    for (const path of ["/health", "/v1/jobs", `/v1/jobs/${job}`, "/v1/config/providers", "/openapi.json", "/ui/", "/"]) {
      got[`fetch cors ${path}`] = await within(fetched(base + path));
    }
    got["fetch no-cors"] = await within(fetched(jobs, { mode: "no-cors" }));
    got["fetch same-origin"] = await within(fetched(jobs, { mode: "same-origin" }));
    got["fetch with credentials"] = await within(fetched(jobs, { credentials: "include" }));
    got["fetch with a key, so with a preflight"] = await within(fetched(jobs, { headers: { Authorization: "Bearer k" } }));
    got["fetch HEAD"] = await within(fetched(jobs, { method: "HEAD" }));
    got["fetch OPTIONS"] = await within(fetched(jobs, { method: "OPTIONS" }));
    got["fetch of a stream"] = await within(fetched(`${jobs}/${job}/events`));
    got["xhr"] = await xhr("GET", jobs);
    got["image"] = await element("img", { src: image });
    got["image with cors"] = await element("img", { crossOrigin: "anonymous", src: image });
    got["script"] = await element("script", { src: `${base}/ui/app.js` });
    got["script of JSON"] = await element("script", { src: `${base}/openapi.json` });
    got["module"] = await within(import(`${base}/ui/app.js`).then(() => "imported"));
    got["style sheet"] = await element("link", { rel: "stylesheet", href: `${base}/ui/style.css` });
    await element("link", { rel: "preload", as: "fetch", crossOrigin: "anonymous", href: jobs }); // is loaded by a 403 too
    got["object"] = await element("object", { data: image });
    got["video"] = await element("video", { src: image });
    got["frame"] = await frame(`${base}/v1/jobs`);
    got["frame of the page"] = await frame(`${base}/ui/`);
    got["window"] = await opened(jobs);
    got["event source"] = await eventSource(`${jobs}/${job}/stream`);
    got["web socket"] = await webSocket(`${jobs}/${job}/stream`);
    got["worker"] = await worker(`${base}/ui/app.js`);
    got["service worker of its script"] = await within(
      (async () => (await navigator.serviceWorker.register(`${base}/ui/app.js`), "registered"))(),
    );
    got["service worker that fetches"] = await serviceWorker(jobs);
    return got;
  };

  globalThis.startAll = async (base, job, request) => {
    const jobs = `${base}/v1/jobs`;
    const cancel = `${jobs}/${job}/cancel`;
    const json = JSON.stringify(request);
    const got = {};
    for (const mode of ["cors", "no-cors"]) {
      for (const type of ["application/json", "text/plain", "application/x-www-form-urlencoded"]) {
        const init = { method: "POST", mode, body: json, headers: { "Content-Type": type } };
        got[`fetch ${mode} ${type}`] = await within(fetched(jobs, init));
      }
      const blob = new Blob([json], { type: "application/json" });
      got[`fetch ${mode} of a blob`] = await within(fetched(jobs, { method: "POST", mode, body: blob }));
      got[`fetch ${mode} cancel`] = await within(fetched(cancel, { method: "POST", mode, keepalive: true }));
    }
    got["fetch rerun"] = await within(fetched(`${jobs}/${job}/rerun`, { method: "POST", mode: "no-cors" }));
    got["fetch DELETE"] = await within(fetched(`${jobs}/${job}`, { method: "DELETE" }));
    got["fetch PUT"] = await within(
      fetched(`${base}/v1/config/pipelines/evil.v1`, {
        method: "PUT",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ type: "evil.v1", steps: [{ id: "a", kind: "map", config: { map: "identity" } }] }),
      }),
    );
    got["xhr"] = await xhr("POST", jobs, json, "application/json");
    got["xhr of a simple type"] = await xhr("POST", jobs, json, "text/plain");
    for (const type of ["application/json", "text/plain"]) navigator.sendBeacon(jobs, new Blob([json], { type }));
    navigator.sendBeacon(cancel);
    for (const sandbox of [false, true]) {
      // name=value is written as it is: the = falls into a label, and what arrives is JSON
      const trick = { [json.slice(0, -1) + ',"labels":{"a":"']: '"}}' };
      await form(jobs, "text/plain", trick, sandbox);
      await form(jobs, "application/x-www-form-urlencoded", { pipeline_type: request.pipeline_type }, sandbox);
      await form(jobs, "multipart/form-data", { pipeline_type: request.pipeline_type }, sandbox);
      await form(cancel, "application/x-www-form-urlencoded", {}, sandbox);
    }
    const link = Object.assign(document.createElement("a"), { href: "#", ping: cancel });
    document.body.append(link);
    link.click();
    got["service worker"] = await serviceWorker(cancel);
    await new Promise((resolve) => setTimeout(resolve, 500)); // beacons and pings have no answer to wait for
    return got;
  };
})();
