// A user's program on the client that openapi-typescript generates. It prints what it saw as one JSON object.
//
//     node built/program.js DAEMON_URL MODEL_SERVER_URL

import createClient from "openapi-fetch";
import type { components, paths } from "./api.js";

type Job = components["schemas"]["Job"];
type JobRequest = components["schemas"]["JobRequest"];
type EventLine = components["schemas"]["EventLine"];
type ErrorAnswer = components["schemas"]["ErrorAnswer"];

const [daemonUrl, modelUrl] = process.argv.slice(2);
if (daemonUrl === undefined || modelUrl === undefined) {
  throw new Error("usage: program.js DAEMON_URL MODEL_SERVER_URL");
}
const client = createClient<paths>({ baseUrl: daemonUrl });

const request: JobRequest = {
  pipeline: {
    type: "greeting.v1",
    steps: [
      {
        id: "greet",
        kind: "llm",
        provider_profile_id: "scripted",
        prompt: { user: "Greet {{ sources[0].content }}." },
        export: true,
      },
    ],
  },
  input: { sources: [{ kind: "note", content: "Ada" }] },
  labels: { from: "typescript" },
};

/** The answer, or the program's end: what the daemon refuses here is a mistake of ours. */
function expect<T>(answer: { data?: T; error?: ErrorAnswer }): T {
  if (answer.data === undefined) {
    throw new Error(answer.error ? `${answer.error.error.code}: ${answer.error.error.message}` : "no answer");
  }
  return answer.data;
}

async function submit(): Promise<Job> {
  const body = expect(await client.POST("/v1/jobs", { body: request }));
  if (typeof body === "string" || !("job" in body)) {
    throw new Error("a job that is not streamed is answered as a job");
  }
  return body.job;
}

/** The lines of a job's stream, each an event. */
async function* follow(id: string): AsyncGenerator<EventLine> {
  const answer = await client.GET("/v1/jobs/{id}/stream", { params: { path: { id } }, parseAs: "stream" });
  if (!answer.response.ok || !answer.data) {
    throw new Error(`the stream was refused: ${answer.response.status}`);
  }
  let rest = "";
  const decoder = new TextDecoder();
  for await (const piece of answer.data as unknown as AsyncIterable<Uint8Array>) {
    const lines = (rest + decoder.decode(piece, { stream: true })).split("\n");
    rest = lines.pop() ?? "";
    yield* lines.map((line) => JSON.parse(line) as EventLine);
  }
}

/** What a program does with an event: its name tells the type of its data. */
async function watch(id: string): Promise<{ words: string[]; last: string; items: number }> {
  const seen = { words: [] as string[], last: "", items: 0 };
  for await (const line of follow(id)) {
    switch (line.event) {
      case "provider_chunk":
        seen.words.push(line.data.content);
        break;
      case "item_completed":
        seen.items += 1;
        break;
      case "stream_finished":
        seen.last = line.data.status;
        break;
    }
  }
  return seen;
}

expect(
  await client.POST("/v1/config/providers", {
    body: { id: "scripted", kind: "openai", base_uri: modelUrl, default_model: "m", api_key: "k" },
  }),
);
const created = await submit();
const watched = await watch(created.id);
const read = expect(await client.GET("/v1/jobs/{id}", { params: { path: { id: created.id } } })).job;

const stalled = await submit();
const cancelled = expect(
  await client.POST("/v1/jobs/{id}/cancel", {
    params: { path: { id: stalled.id } },
    body: { reason: "not needed any more" },
  }),
).job;

const listed = expect(
  await client.GET("/v1/jobs", { params: { query: { label: ["from:typescript"], limit: 10 } } }),
).jobs;

const unknown = await client.GET("/v1/jobs/{id}", { params: { path: { id: "job_none" } } });
const refused = await client.POST("/v1/jobs", { body: { pipeline_type: "none.v1" } });

console.log(
  JSON.stringify({
    created: created.status,
    watched,
    text: read.result?.items[0]?.data.text,
    usage: read.usage.completion_tokens,
    cancelled: [cancelled.status, cancelled.error?.code, cancelled.error?.message],
    listed: listed.map((job) => job.status),
    unknown: [unknown.response.status, unknown.error?.error.code],
    refused: [refused.response.status, refused.error?.error.code, refused.error?.error.details["known"]],
  }),
);
