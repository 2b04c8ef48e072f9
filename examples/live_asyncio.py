"""Prints the tokens of a job of the daemon as they come, on asyncio; Ctrl-C cancels the job."""

import asyncio
import sys

from pipeline_engine_sdk import AsyncPipelineEngineClient

STEP = {"id": "tell", "kind": "llm", "provider_profile_id": "default-ollama", "prompt": {"user": "Tell a long story."}}
REQUEST = {"pipeline": {"type": "story.v1", "steps": [STEP]}, "input": {"sources": []}}


async def main() -> None:
    async with AsyncPipelineEngineClient() as client, client.stream_job(REQUEST) as events:
        try:
            async for event in events:
                if event.event == "provider_chunk":
                    print(event.data["content"], end="", flush=True)
        finally:
            if events.job_id is not None:
                await client.cancel_job(events.job_id)  # a finished job stays as it is


try:
    asyncio.run(main())
except KeyboardInterrupt:
    sys.exit("\ncancelled")
