"""What the fields and the types of the API mean, for those who read its OpenAPI document."""

from __future__ import annotations

from pipeline_engine import models
from pipeline_engine.api import wire
from pipeline_engine.errors import ErrorCode

_SECONDS_OF_JOB = "Seconds after which the job fails with `timeout`; time in the queue does not count."

#: Types that have no docstring, or one for those who read the code.
TYPES: dict[type, str] = {
    models.JobRequest: "What is to be run, on what. It names a `pipeline_type`, brings a `pipeline`, or reruns a "
    "`parent_job_id`. An unknown key is refused.",
    models.RerunRequest: "What of an earlier job is to be run again. An unknown key is refused.",
    models.JobInput: "What a job works on.",
    models.Limits: "Reached, the job fails with `budget_exceeded`; a rerun can go on.",
    models.PipelineDef: "A pipeline: a named, versioned set of steps.",
    models.StepDef: "One node of a pipeline: a call of a model or a tool, or a transformation of what came before.",
    models.StepConfig: "What a step does; which keys it may have depends on its kind.",
    models.Retry: "How often a provider is called again, and after which pauses. Errors that another attempt cannot "
    "mend are not tried again.",
    models.Sandbox: "Where a local tool may write.",
    models.Job: "One run of a pipeline. A single job's answer has its `input`, lists do not; a finished one has its "
    "`result` or its `error`.",
    models.JobResult: "The exported items, in the order of the steps and their shards.",
    models.JobError: "Why a job, a step or an item failed.",
    models.StepExecution: "What became of a step in a job.",
    models.Usage: "Tokens, as the providers counted them.",
    models.ResultItem: "What one call of a step made.",
    models.StepMode: "`single` calls once, `fanout` once for each shard, `per_item` once for each item of an earlier "
    "step.",
    models.JobMode: "`async` answers at once, `sync` when the job is finished; `rerun` is that of reruns, in answers.",
    models.JobStatus: "The last three are final.",
    models.OutputFormat: "`json_strict` has the model asked again until its JSON fits, `json_loose` mends what it can.",
    wire.EngineSettingsRequest: "The settings to change.",
    wire.CancelRequest: "Why the job is cancelled.",
    wire.JobAnswer: "One job.",
    wire.JobList: "A page of jobs, newest first.",
    wire.EventsPage: "A page of a job's events.",
    wire.PipelineList: "The definitions, by type.",
    wire.Validation: "Whether a definition can be used, and all that is wrong with it.",
    wire.ErrorAnswer: "Why the request was refused.",
}

_SETTINGS = {
    "system_prompt": "Goes out before the system prompt of the step.",
    "options": "Merged into the request to the provider; for ollama into its `options`.",
    "headers": "Sent with each request. As secret as a key.",
    "stream": "Whether the answer is read as it is made. Default: true.",
    "keep_alive": "How long Ollama keeps the model in memory.",
    "api": "Which protocol an image server speaks. Default: `openai`.",
    "timeout_s": "Seconds for a whole call. Default: no limit.",
    "connect_timeout_s": "Seconds for the connection. Default: 10.",
    "first_token_timeout_s": "Seconds to the first token. Default: 300.",
    "idle_timeout_s": "Seconds between tokens. Default: 60.",
    "loading_timeout_s": "Seconds to wait for a server that says that it loads a model. Default: 300.",
    "max_concurrency": "Calls at a time, over all jobs. Default: no limit.",
    "requests_per_minute": "Calls a minute, over all jobs. Default: no limit.",
    "tokens_per_minute": "Tokens a minute, over all jobs. Default: no limit.",
    "env": "Variables of a local tool, besides PATH, HOME and LANG.",
    "cwd": "Where a local tool runs.",
    "grace_s": "Seconds between SIGTERM and SIGKILL when a local tool is stopped. Default: 2.",
    "max_output_bytes": "Of a longer output of a local tool, head and tail are kept. Default: 16 MiB.",
    "idempotent": "Whether a local tool may be started again after a crash. Default: true.",
}

#: The fields of the types, by name.
FIELDS: dict[type, dict[str, str]] = {
    models.JobRequest: {
        "pipeline_type": "A definition that the daemon knows.",
        "pipeline": "A definition for this job alone, instead of `pipeline_type`.",
        "parent_job_id": "Makes the request a rerun of that job.",
        "from_step_id": "Run this step and what depends on it again. Needs `parent_job_id`.",
        "reuse_upstream": "Take over what succeeded in the parent. Needs `parent_job_id`.",
        "timeout_s": _SECONDS_OF_JOB,
        "priority": "The higher, the sooner it leaves the queue. Default: 0; of a rerun: that of the parent.",
        "labels": "To find the job by: names and values, 32 at most. Default of a rerun: those of the parent.",
        "dry_run": "Render prompts and walk the steps; call no provider, tool or handler. Default: false; of a rerun: "
        "as the parent ran.",
    },
    models.RerunRequest: {
        "from_step_id": "Run this step and what depends on it again.",
        "reuse_upstream": "Take over what succeeded in the parent; without `from_step_id`, run only what did not.",
        "override_input": "Instead of the parent's input.",
        "pipeline": "The definition as it is now, or as the parent ran it.",
    },
    wire.CancelRequest: {"reason": "Stands in the error of the job."},
    wire.EngineSettingsRequest: {"log_level": "`debug`, `info`, `warning`, `error` or `critical`."},
    models.JobInput: {
        "sources": "The pieces of input.",
        "options": "Values that templates and conditions read; `max_tokens` sets the provider's limit.",
    },
    models.Source: {
        "kind": "Any word; `log`, `code`, `note` and `raw` are the usual ones. Default: `raw`.",
        "label": "What people call it.",
        "content": "A text.",
        "content_base64": "Bytes, instead of `content`.",
        "metadata": "Values of your own, for templates.",
    },
    models.PipelineDef: {
        "type": "Its name, as jobs give it.",
        "version": "Default: `1`.",
        "description": "For people.",
        "timeout_s": _SECONDS_OF_JOB,
        "options_schema": "A JSON Schema (draft 2020-12) for the `options` of the input. An option that is missing gets the `default` of its property.",
    },
    models.StepDef: {
        "id": "Unique in the pipeline: letters, digits, `_` and `-`, 64 at most.",
        "kind": "`llm` and `image` need a provider; the others run without one, or with a local tool.",
        "name": "What people call the step. Default: its id.",
        "mode": "Default: `single`.",
        "depends_on": "Ids of the steps whose items it uses.",
        "provider_profile_id": "Which profile it calls.",
        "provider_override": "Settings of the profile that this step changes.",
        "output_type": "Default: `text`.",
        "output_format": "Default: `text`.",
        "export": "Whether its items become part of the job's result. Default: false.",
        "export_tag": "The `tag` of its items.",
        "when": "A condition in the templates' language, without braces; false: the step is skipped, and so is what needs it.",
        "run_if_skipped": "Run although a step that it needs was skipped.",
        "timeout_s": "Seconds for the whole step.",
        "on_error": "`continue`: what needs the step is skipped, and the job goes on.",
        "max_concurrency": "Calls at a time, in fanout and per_item.",
        "on_item_error": "`skip`: the item is left out, and its error stands in the step's `errors`.",
    },
    models.StepConfig: {
        "split": "Cut the sources into shards.",
        "over": "Work on the elements of that step's JSON array.",
        "batch_size": "How many texts go into one call for embeddings. Default: 64.",
        "template": "For `map: template` and `reduce: template`.",
        "expression": "JMESPath for `map: select`, a condition for `map: filter`.",
        "format": "What `map: parse` reads.",
        "pattern": "A regular expression for `map: regex`; named groups become an object.",
        "separator": "What `reduce: concat` puts between the items.",
        "by": "JMESPath: what `count_by` counts, and `top` orders by.",
        "n": "How many `top` keeps.",
        "handler": "A Python function of the daemon, for a custom step.",
        "idempotent": "Whether a custom step may be started again after a crash.",
        "json_schema": "What the answer must fit (draft 2020-12).",
        "repair_attempts": "How often the model is asked again when its answer does not fit.",
    },
    models.Prompt: {
        "system": "A template for the system message.",
        "user": "A template for the user message. Default: the contents of the sources.",
        "meta": "`messages`: few-shot turns.",
    },
    models.Retry: {
        "max_attempts": "With the first one.",
        "backoff_s": "Seconds before the second attempt, at most; then twice as many each time.",
        "max_backoff_s": "No pause is longer; a server that asks for a longer one ends the attempts.",
    },
    models.ProviderProfile: {
        "id": "As steps name it.",
        "base_uri": "Where the server is; without a scheme, `http://` is meant.",
        "api_key": "Never shown again. Without one the old key stays, unless `base_uri` moves to another origin.",
        "default_model": "For steps that name none.",
    },
    models.ProviderExtra: _SETTINGS
    | {
        "server": "In configuration files only.",
        "command": "The program and arguments of a local tool, each a template. In configuration files only.",
        "sandbox": "False: the local tool is not confined. In configuration files only.",
        "max_memory_bytes": "Memory that each process of a local tool may have; 0 is no limit. In configuration files only. "
        "Default: half of the machine's.",
    },
    models.ProviderOverride: _SETTINGS
    | {
        "base_uri": "Another origin drops the profile's key and headers.",
        "default_model": "The model of this step.",
    },
    models.Job: {
        "id": "`job_` and a sortable id.",
        "status": "Where it stands.",
        "error": "Only of a job that failed or was cancelled.",
        "result": "Only of a finished job.",
        "rerun_from_step": "The `from_step_id` of a rerun.",
        "last_seq": "The seq of its last event.",
        "restarts": "How often the daemon was restarted while it ran.",
        "usage": "Summed over its steps.",
    },
    models.StepExecution: {
        "name": "The step's name, else its id.",
        "attempts": "The highest of its items.",
        "items_total": "Left out until it is known.",
        "errors": "Of items that were skipped.",
        "reused_from": "The job whose items were taken over.",
        "chunks": "Only with `include=chunks`.",
    },
    models.ResultItem: {
        "label": "The step's name, else its id; `NAME#k` (from 1) in fanout and per_item.",
        "shard_key": "`STEP-k`, from 0, in fanout and per_item.",
        "is_primary": "Whether it is of the last exported step.",
        "tag": "The step's `export_tag`.",
        "content_type": "The step's `output_type`.",
    },
    wire.ItemData: {
        "text": "The answer as text.",
        "json": "The answer as a value; null when it is not JSON.",
        "prompt": "The user message as it was sent.",
        "provider": "The id of the profile.",
        "latency_ms": "Milliseconds that the call took.",
        "warnings": "What was odd but no failure: `{code, message, …}` each.",
        "artifact": "The stored file, of images and binaries.",
        "artifacts": "All of them, when there are several.",
        "embedding": "The vector.",
        "dimensions": "The length of the vector.",
    },
    wire.Artifact: {"url": "Relative to the address of the daemon."},
    models.JobError: {
        "code": "One of " + ", ".join(f"`{code}`" for code in ErrorCode) + ". There may be more in time.",
        "details": "What is known: `step_id`, `shard_key`, `attempt`, `status`, `provider_code`, `exit_code`, "
        "`stderr`, `raw` and others.",
    },
    wire.ErrorBody: {
        "code": "Stable, for programs.",
        "message": "For people: what is wrong, and what to do.",
        "details": "For programs: `path` and `problems` of an invalid request, `known` of an unknown pipeline.",
    },
    wire.JobList: {"next_cursor": "The `cursor` of the next page; null after the last one."},
    wire.PipelineList: {
        "broken_files": "What is wrong with each definition file that cannot be used, beginning with its name. What it said "
        "before, if anything, is still in force.",
    },
    wire.EventsPage: {"last_seq": "The seq of the last event that there is."},
    wire.ProviderView: {
        "api_key_set": "Whether it has a key, which is never shown.",
        "extra": "The settings; values of headers and variables are `***`.",
    },
}
