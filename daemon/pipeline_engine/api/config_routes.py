"""The calls that show and change provider profiles, pipelines and the settings of the daemon."""

from __future__ import annotations

from typing import Any

from pipeline_engine.api.calls import TEXT, Answer, Call, Route, json_answer, text_answer
from pipeline_engine.api.context import Api
from pipeline_engine.api.profile_views import view_of
from pipeline_engine.api.wire import (
    EngineSettingsRequest,
    GraphQuery,
    PipelineList,
    ProviderList,
    ProviderView,
    Validation,
    ValidationProblem,
)
from pipeline_engine.config import parse_log_level
from pipeline_engine.diagrams import to_dot, to_mermaid
from pipeline_engine.errors import InvalidRequestError, NotFoundError, Problem, UnknownPipelineError
from pipeline_engine.models import PipelineDef, ProviderProfile


async def list_providers(api: Api, call: Call) -> Answer:
    return json_answer({"providers": [view_of(profile) for profile in api.ready_local.registry.profiles()]})


async def upsert_provider_profile(api: Api, call: Call) -> Answer:
    return json_answer(view_of(await api.ready_local.catalog.put_profile(call.body)))


async def delete_provider_profile(api: Api, call: Call) -> Answer:
    await api.ready_local.catalog.remove_profile(call.path_values["id"])
    return Answer(status=204)


async def list_pipelines(api: Api, call: Call) -> Answer:
    pipelines = api.ready_local.catalog.pipelines
    definitions = [pipeline.definition for pipeline in pipelines.all()]
    return json_answer(PipelineList(definitions, list(pipelines.broken_files)))


async def get_pipeline(api: Api, call: Call) -> Answer:
    return json_answer(_definition(api, call))


async def put_pipeline(api: Api, call: Call) -> Answer:
    definition = api.ready_local.catalog.decode_pipeline(call.body)
    if definition.type != call.path_values["type"]:
        words = f"is {definition.type!r}, but the address names {call.path_values['type']!r}"
        raise InvalidRequestError([Problem("type", words)])
    is_new = await api.ready_local.catalog.put_pipeline(definition)
    return json_answer(definition, status=201 if is_new else 200)


async def delete_pipeline(api: Api, call: Call) -> Answer:
    await api.ready_local.catalog.remove_pipeline(call.path_values["type"])
    return Answer(status=204)


async def validate_pipeline(api: Api, call: Call) -> Answer:
    catalog = api.ready_local.catalog
    try:
        _, problems = catalog.check_pipeline(catalog.decode_pipeline(call.body))
    except InvalidRequestError as exc:
        problems = list(exc.problems)
    errors = [ValidationProblem(path=problem.path, message=problem.message) for problem in problems]
    return json_answer(Validation(valid=not errors, errors=errors))


async def get_pipeline_graph(api: Api, call: Call) -> Answer:
    draw = to_dot if call.query.format == "dot" else to_mermaid
    return text_answer(draw(_definition(api, call)))


async def update_engine_config(api: Api, call: Call) -> Answer:
    if call.body.log_level is not None:
        try:
            api.set_log_level(parse_log_level(call.body.log_level))
        except ValueError as exc:
            raise InvalidRequestError([Problem("log_level", str(exc))]) from exc
    return json_answer(api.config.settings())


def _definition(api: Api, call: Call) -> PipelineDef:
    try:
        return api.ready_local.catalog.pipelines.find(call.path_values["type"]).definition
    except UnknownPipelineError as exc:
        raise NotFoundError(exc.message) from exc


_CHANGES = ("forbidden", "conflict", "store_full")

ROUTES = (
    Route(
        method="GET",
        path="/v1/config/providers",
        handler=list_providers,
        tag="providers",
        summary="List the provider profiles, without their secrets.",
        answers={200: ProviderList},
    ),
    Route(
        method="POST",
        path="/v1/config/providers",
        handler=upsert_provider_profile,
        tag="providers",
        summary="Add or replace a provider profile.",
        description="Local tools and model servers that the daemon starts are defined in configuration files only.",
        body=ProviderProfile,
        answers={200: ProviderView},
        errors=_CHANGES,
    ),
    Route(
        method="DELETE",
        path="/v1/config/providers/{id}",
        handler=delete_provider_profile,
        tag="providers",
        summary="Remove a provider profile that a client has put.",
        answers={204: None},
        errors=("not_found", "conflict", "store_full"),
    ),
    Route(
        method="GET",
        path="/v1/config/pipelines",
        handler=list_pipelines,
        tag="pipelines",
        summary="List the definitions that jobs can name.",
        answers={200: PipelineList},
    ),
    Route(
        method="POST",
        path="/v1/config/pipelines/validate",
        handler=validate_pipeline,
        tag="pipelines",
        summary="Check a definition, down to its templates.",
        description="The answer is 200 for a bad definition too, with every problem and its path; nothing is stored.",
        body=PipelineDef,
        decodes_body=False,
        answers={200: Validation},
    ),
    Route(
        method="GET",
        path="/v1/config/pipelines/{type}",
        handler=get_pipeline,
        tag="pipelines",
        summary="Show a definition.",
        answers={200: PipelineDef},
        errors=("not_found",),
    ),
    Route(
        method="PUT",
        path="/v1/config/pipelines/{type}",
        handler=put_pipeline,
        tag="pipelines",
        summary="Add or replace a definition.",
        description="Jobs that run keep the definition they began with. A definition that a file of the daemon has can only be "
        "changed there.",
        body=PipelineDef,
        decodes_body=False,
        answers={200: PipelineDef, 201: PipelineDef},
        errors=("conflict", "store_full"),
    ),
    Route(
        method="DELETE",
        path="/v1/config/pipelines/{type}",
        handler=delete_pipeline,
        tag="pipelines",
        summary="Remove a definition that a client has put.",
        answers={204: None},
        errors=("not_found", "conflict", "store_full"),
    ),
    Route(
        method="GET",
        path="/v1/config/pipelines/{type}/graph",
        handler=get_pipeline_graph,
        tag="pipelines",
        summary="Draw the steps of a definition and what they depend on.",
        query=GraphQuery,
        answers={200: TEXT.partition(";")[0]},
        errors=("not_found",),
    ),
    Route(
        method="POST",
        path="/v1/config/engine",
        handler=update_engine_config,
        tag="daemon",
        summary="Change the log level; the answer is the settings in force.",
        body=EngineSettingsRequest,
        answers={200: dict[str, Any]},
        needs_engine=False,
    ),
)
