"""The tools for pipelines: list, show, check."""

from __future__ import annotations

from typing import Any

from pipeline_engine.jsontext import dumps_compact
from pipeline_engine.mcp_server import arguments as args
from pipeline_engine.mcp_server import views
from pipeline_engine.mcp_server.bounds import ANSWER, cut_value, first_of
from pipeline_engine.mcp_server.tool import READS, Answer, Call, Tool

MOST_PIPELINES = 100  # in one answer
MOST_PROBLEMS = 50  # in one answer


async def list_pipelines(call: Call, arguments: args.ListPipelines) -> Answer:
    wanted = arguments.contains.casefold()
    found = [one for one in await call.client.list_pipelines() if wanted in f"{one.type}\n{one.description}".casefold()]
    pipelines = first_of(map(views.view_pipeline, found), MOST_PIPELINES)
    return Answer(output=views.PipelinesAnswer(pipelines=pipelines, total=len(found)))


async def get_pipeline(call: Call, arguments: args.GetPipeline) -> Answer:
    definition = (await call.client.get_pipeline(arguments.pipeline_type)).to_dict()
    if len(dumps_compact(definition)) <= ANSWER:
        return Answer(output=views.PipelineAnswer(pipeline=definition))
    note = f"Long texts and lists are cut; the resource {views.uri_of_pipeline(arguments.pipeline_type)} has all of it."
    return Answer(output=views.PipelineAnswer(pipeline=cut_value(definition), note=note))


async def validate_pipeline(call: Call, arguments: args.ValidatePipeline) -> Answer:
    checked = await call.client.validate_pipeline(arguments.pipeline)
    errors = [{"path": problem.path, "message": problem.message} for problem in checked.errors]
    first = first_of(errors, MOST_PROBLEMS)
    return Answer(output=views.ValidationAnswer(valid=checked.valid, errors=first, errors_total=len(errors)))


TOOLS: tuple[Tool[Any], ...] = (
    Tool(
        title="List pipelines",
        description=(
            "The pipelines that run_pipeline and submit_job can name: what each is for, its steps, and the schema of "
            "its options. Call this first."
        ),
        arguments=args.ListPipelines,
        output=views.PipelinesAnswer,
        annotations=READS,
        function=list_pipelines,
    ),
    Tool(
        title="Get a pipeline",
        description="The whole definition of a pipeline: its steps with prompts, models and settings.",
        arguments=args.GetPipeline,
        output=views.PipelineAnswer,
        annotations=READS,
        function=get_pipeline,
    ),
    Tool(
        title="Validate a pipeline",
        description=(
            "Check a definition with what the daemon knows: its fields, steps, templates, profiles and handlers. "
            "Nothing is stored and nothing runs. Every problem comes with its path."
        ),
        arguments=args.ValidatePipeline,
        output=views.ValidationAnswer,
        annotations=READS,
        function=validate_pipeline,
    ),
)
