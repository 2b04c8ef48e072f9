"""The examples of the OpenAPI document: what the daemon takes, and what it answered."""

from __future__ import annotations

from typing import Any

from pipeline_engine import __version__

JsonObject = dict[str, Any]

_JSON = "application/json"

_JOB_ID = "job_01m898xbjwf54g77zp80ydnjcr"
_RERUN_ID = "job_01m898xbkhqfrbaemn0av64rn2"
_SHA256 = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
_NO_USAGE = {"prompt_tokens": 0, "completion_tokens": 0}

_LEVELS: JsonObject = {
    "type": "levels.v1",
    "description": "Counts the lines of a log by their level.",
    "steps": [
        {
            "id": "parse",
            "kind": "map",
            "mode": "fanout",
            "config": {"split": {"by": "lines"}, "map": "regex", "pattern": "^(?P<level>[A-Z]+) "},
        },
        {
            "id": "count",
            "kind": "reduce",
            "name": "Levels",
            "depends_on": ["parse"],
            "output_type": "json",
            "export": True,
            "config": {"reduce": "count_by", "by": "level"},
        },
    ],
}
_MINUTES: JsonObject = {
    "type": "minutes.v1",
    "version": "1",
    "description": "Lists what a meeting decided.",
    "steps": [
        {
            "id": "decisions",
            "kind": "llm",
            "name": "Decisions",
            "provider_profile_id": "default-ollama",
            "prompt": {
                "system": "You take minutes.",
                "user": "List the decisions in {{ options.language }}:\n{{ sources[0].content }}",
            },
            "export": True,
        }
    ],
}
_MINUTES_SHOWN: JsonObject = {
    **_MINUTES,
    "steps": [
        {**step, "mode": "single", "depends_on": [], "output_type": "text", "output_format": "text"}
        for step in _MINUTES["steps"]
    ],
}
_SOURCE = {"kind": "log", "label": "app.log", "content": "INFO started\nERROR disk full\nINFO stopped", "metadata": {}}
_ITEM: JsonObject = {
    "id": "count",
    "label": "Levels",
    "step_id": "count",
    "is_primary": True,
    "kind": "reduce",
    "content_type": "json",
    "data": {"text": '{"INFO":2,"ERROR":1}', "json": {"INFO": 2, "ERROR": 1}},
}
_SUMMARY: JsonObject = {
    "id": _JOB_ID,
    "pipeline_type": "levels.v1",
    "pipeline_version": "1",
    "status": "succeeded",
    "created_at": "2026-11-25T11:54:30.364814Z",
    "updated_at": "2026-11-25T11:54:30.366873Z",
    "started_at": "2026-11-25T11:54:30.365347Z",
    "finished_at": "2026-11-25T11:54:30.366873Z",
    "mode": "sync",
    "reuse_upstream": False,
    "labels": {"team": "ops"},
    "priority": 0,
    "usage": _NO_USAGE,
    "last_seq": 12,
    "restarts": 0,
}
_FINISHED: JsonObject = {
    **_SUMMARY,
    "input": {"sources": [_SOURCE], "options": {}},
    "result": {"items": [_ITEM], "meta": {"duration_s": 0.001567}},
    "step_executions": [
        {
            "step_id": "parse",
            "name": "parse",
            "status": "success",
            "started_at": "2026-11-25T11:54:30.365521Z",
            "finished_at": "2026-11-25T11:54:30.366065Z",
            "attempts": 0,
            "items_total": 3,
            "items_done": 3,
        },
        {
            "step_id": "count",
            "name": "Levels",
            "status": "success",
            "started_at": "2026-11-25T11:54:30.366262Z",
            "finished_at": "2026-11-25T11:54:30.366734Z",
            "attempts": 0,
            "items_total": 1,
            "items_done": 1,
        },
    ],
}
_QUEUED: JsonObject = {
    "id": _JOB_ID,
    "pipeline_type": "levels.v1",
    "pipeline_version": "1",
    "status": "queued",
    "created_at": "2026-11-25T11:54:30.364814Z",
    "updated_at": "2026-11-25T11:54:30.364814Z",
    "mode": "async",
    "input": {"sources": [_SOURCE], "options": {}},
    "step_executions": [
        {"step_id": "parse", "name": "parse", "status": "pending", "attempts": 0, "items_done": 0},
        {"step_id": "count", "name": "Levels", "status": "pending", "attempts": 0, "items_done": 0},
    ],
    "reuse_upstream": False,
    "labels": {"team": "ops"},
    "priority": 0,
    "usage": _NO_USAGE,
    "last_seq": 1,
    "restarts": 0,
}
_RERUN: JsonObject = {**_QUEUED, "id": _RERUN_ID, "mode": "rerun", "parent_job_id": _JOB_ID}
_CANCELLED: JsonObject = {
    **_QUEUED,
    "status": "cancelled",
    "updated_at": "2026-11-25T11:54:31.020405Z",
    "finished_at": "2026-11-25T11:54:31.020405Z",
    "result": {"items": [], "meta": {"duration_s": 0.000126}},
    "step_executions": [
        {**execution, "status": "cancelled", "finished_at": "2026-11-25T11:54:31.020411Z"}
        for execution in _QUEUED["step_executions"]
    ],
    "error": {"code": "cancelled", "message": "not needed any more", "details": {}},
    "last_seq": 6,
}
_PROFILE: JsonObject = {
    "id": "workstation",
    "kind": "ollama",
    "base_uri": "http://127.0.0.1:11434",
    "default_model": "llama3",
    "extra": {"first_token_timeout_s": 60},
}
_PROFILE_SHOWN = {**_PROFILE, "api_key_set": False}


def _event(seq: int, name: str, data: JsonObject) -> JsonObject:
    return {"seq": seq, "event": name, "job_id": _JOB_ID, "ts": "2026-11-25T11:54:30.366630Z", "data": data}


_COMPLETED = _event(8, "item_completed", _ITEM)
_FINISH = _event(12, "stream_finished", {"status": "succeeded", "resume_token": {"job_id": _JOB_ID, "seq": 12}})
_CHUNK = _event(
    6, "provider_chunk", {"step_id": "decisions", "attempt": 1, "index": 0, "content": "- We", "kind": "text"}
)
_HEARTBEAT = {"event": "heartbeat", "job_id": _JOB_ID, "ts": "2026-11-25T11:54:45.366630Z", "data": {}}
_LINES = {
    "chunk": {"summary": "A piece of a model's answer", "value": _CHUNK},
    "item": {"summary": "An item of the result", "value": _COMPLETED},
    "heartbeat": {"summary": "The stream is silent, and alive", "value": _HEARTBEAT},
    "end": {"summary": "The last line", "value": _FINISH},
}
_SERVER_SENT = (
    f'id: 12\nevent: stream_finished\ndata: {{"seq":12,"event":"stream_finished","job_id":"{_JOB_ID}",'
    '"ts":"2026-11-25T11:54:30.366912Z","data":{"status":"succeeded",'
    f'"resume_token":{{"job_id":"{_JOB_ID}","seq":12}}}}}}\n\n'
)
_STREAMS: dict[str, JsonObject] = {
    "application/x-ndjson": _LINES,
    "text/event-stream": {"end": {"value": _SERVER_SENT}},
}


def _one(value: Any, media_type: str = _JSON) -> dict[str, JsonObject]:
    return {media_type: {"example": {"value": value}}}


def _error(code: str, message: str, **details: Any) -> JsonObject:
    return {"value": {"error": {"code": code, "message": message, "details": details}}}


#: For each operation with a body, its examples by name.
BODIES: dict[str, JsonObject] = {
    "create_job": {
        "inline": {
            "summary": "A pipeline of its own, that needs no model; the answer waits for its end",
            "value": {"pipeline": _LEVELS, "input": {"sources": [_SOURCE]}, "mode": "sync", "labels": {"team": "ops"}},
        },
        "registered": {
            "summary": "A pipeline that the daemon knows; the answer comes at once",
            "value": {
                "pipeline_type": "minutes.v1",
                "input": {
                    "sources": [{"kind": "note", "label": "monday", "content": "We ship on Friday."}],
                    "options": {"language": "English", "max_tokens": 200},
                },
            },
        },
    },
    "cancel_job": {"reason": {"value": {"reason": "not needed any more"}}},
    "rerun_job": {
        "all": {"summary": "All steps", "value": {}},
        "step": {
            "summary": "A step and what depends on it",
            "value": {"from_step_id": "count", "reuse_upstream": True},
        },
    },
    "upsert_provider_profile": {
        "ollama": {"summary": "A server on this machine", "value": _PROFILE},
        "openai": {
            "summary": "A server that speaks OpenAI's protocol",
            "value": {
                "id": "openai",
                "kind": "openai",
                "base_uri": "https://api.openai.com/v1",
                "api_key": "sk-…",
                "default_model": "gpt-4o-mini",
                "extra": {"max_concurrency": 4},
            },
        },
    },
    "put_pipeline": {"minutes": {"value": _MINUTES}},
    "validate_pipeline": {"levels": {"value": _LEVELS}},
    "update_engine_config": {"debug": {"value": {"log_level": "debug"}}},
}

_LINKS = {"health": "/health", "openapi": "/openapi.json", "ui": "/ui/"}

#: For each operation and status, its examples by media type and name.
ANSWERS: dict[tuple[str, int], dict[str, JsonObject]] = {
    ("create_job", 200): {**_one({"job": _FINISHED}), **_STREAMS},
    ("create_job", 202): _one({"job": _QUEUED}),
    ("list_jobs", 200): _one({"jobs": [_SUMMARY], "next_cursor": None}),
    ("get_job", 200): _one({"job": _FINISHED}),
    ("list_checkpoints", 200): _one({"checkpoints": [{"job_id": _JOB_ID, "step_id": "count", "result": _ITEM}]}),
    ("cancel_job", 200): _one({"job": _CANCELLED}),
    ("rerun_job", 202): _one({"job": _RERUN}),
    ("follow_job", 200): _STREAMS,
    ("list_events", 200): _one({"events": [_COMPLETED], "last_seq": 12}),
    ("list_providers", 200): _one({"providers": [_PROFILE_SHOWN]}),
    ("upsert_provider_profile", 200): _one(_PROFILE_SHOWN),
    ("list_pipelines", 200): _one({"pipelines": [_MINUTES_SHOWN], "broken_files": []}),
    ("get_pipeline", 200): _one(_MINUTES_SHOWN),
    ("put_pipeline", 200): _one(_MINUTES_SHOWN),
    ("put_pipeline", 201): _one(_MINUTES_SHOWN),
    ("validate_pipeline", 200): {
        _JSON: {
            "good": {"value": {"valid": True, "errors": []}},
            "bad": {
                "value": {
                    "valid": False,
                    "errors": [
                        {
                            "path": "steps[0].depends_on[0]",
                            "message": "step 'count' depends on 'parse', which does not exist",
                        }
                    ],
                }
            },
        }
    },
    ("get_pipeline_graph", 200): _one('flowchart TD\n    s0(["Decisions (llm)"])\n', "text/plain"),
    ("update_engine_config", 200): _one({"log_level": "debug", "http.heartbeat_s": 15.0}),
    ("get_index", 200): _one({"name": "Pipeline Engine", "version": __version__, "links": _LINKS}),
    ("get_health", 200): _one({"status": "ok", "version": __version__, "uptime_sec": 81.25}),
    ("get_readiness", 200): _one({"status": "ready"}),
    ("get_metrics", 200): _one(
        {
            "provider_call_count": {"openai": 0, "ollama": 3, "image": 0, "local_tool": 1},
            "provider_call_latency": {"openai": 0, "ollama": 4210, "image": 0, "local_tool": 12},
            "provider_call_errors": {"openai": 0, "ollama": 0, "image": 0, "local_tool": 0},
            "provider_chunk_count": {"openai": 0, "ollama": 318, "image": 0, "local_tool": 1},
        }
    ),
    ("get_prometheus_metrics", 200): _one(
        "# HELP pipeline_engine_followers Followers of unfinished jobs.\n"
        "# TYPE pipeline_engine_followers gauge\n"
        "pipeline_engine_followers 0\n",
        "text/plain",
    ),
}

#: Errors by their codes.
ERRORS: dict[str, JsonObject] = {
    "invalid_request": _error(
        "invalid_request",
        "priority: expected int <= 100 (it is 101)",
        problems=[{"path": "priority", "message": "expected int <= 100 (it is 101)"}],
        path="priority",
    ),
    "unknown_pipeline": _error(
        "unknown_pipeline", "there is no pipeline 'minuts.v1'; known: minutes.v1", known=["minutes.v1"]
    ),
    "unauthorized": _error("unauthorized", "this call needs the API key: Authorization: Bearer KEY"),
    "forbidden": _error("forbidden", "a request from another site is not allowed"),
    "not_found": _error("not_found", "there is no job job_x"),
    "conflict": _error("conflict", f"job {_JOB_ID} is not finished; cancel it first"),
    "gone": _error(
        "gone", f"events of {_JOB_ID} up to 40 were pruned; begin with after_seq=40", pruned_seq=40, last_seq=52
    ),
    "payload_too_large": _error("payload_too_large", "the body is too large (limits.max_body_bytes)"),
    "unsupported_media_type": _error("unsupported_media_type", "the body must be JSON: Content-Type: application/json"),
    "too_many_requests": _error(
        "too_many_requests", "10000 jobs are waiting (limits.max_queued_jobs); try again later"
    ),
    "internal": _error("internal", "internal error"),
    "unavailable": _error("unavailable", "the daemon is starting"),
    "store_full": _error(
        "store_full", "the store holds 1073741824 of 1073741824 bytes (limits.max_store_bytes); delete jobs"
    ),
}
