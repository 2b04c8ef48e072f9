"""The profiles and demo pipelines that a few environment variables switch on, without any file."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from pipeline_engine.decoding import Secret
from pipeline_engine.errors import InvalidRequestError, Problem
from pipeline_engine.models import (
    OutputType,
    PipelineDef,
    Prompt,
    ProviderKind,
    ProviderProfile,
    StepDef,
    StepId,
    StepKind,
)
from pipeline_engine.providers.addresses import normalise_base_uri, ollama_base_uri

OPENAI_PROFILE = "openai-cli"
OLLAMA_PROFILE = "ollama-cli"
VARIABLES = (
    "PIPELINE_ENGINE_OPENAI_API_KEY",
    "PIPELINE_ENGINE_OPENAI_BASE_URL",
    "PIPELINE_ENGINE_OPENAI_MODEL",
    "PIPELINE_ENGINE_ENABLE_OLLAMA",
    "PIPELINE_ENGINE_OLLAMA_BASE_URL",
    "PIPELINE_ENGINE_OLLAMA_MODEL",
)

_SWITCH = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


def environment_profiles(environ: Mapping[str, str]) -> list[tuple[ProviderProfile, str]]:
    """The profiles that the environment asks for, each with the variable that does.

    Raises InvalidRequestError, with the variable and its value, for what is not an address or not a switch.
    """
    profiles = []
    switch = next((name for name in VARIABLES[:2] if environ.get(name)), None)
    if switch is not None:
        key = environ.get("PIPELINE_ENGINE_OPENAI_API_KEY", "").strip()
        profile = ProviderProfile(
            id=OPENAI_PROFILE,
            kind=ProviderKind.OPENAI,
            base_uri=_address("PIPELINE_ENGINE_OPENAI_BASE_URL", environ) or "https://api.openai.com/v1",
            api_key=Secret(key) if key else None,
            default_model=environ.get("PIPELINE_ENGINE_OPENAI_MODEL") or "gpt-4o-mini",
        )
        profiles.append((profile, switch))
    if _is_on("PIPELINE_ENGINE_ENABLE_OLLAMA", environ):
        address = _address("PIPELINE_ENGINE_OLLAMA_BASE_URL", environ)
        profile = ProviderProfile(
            id=OLLAMA_PROFILE,
            kind=ProviderKind.OLLAMA,
            base_uri=address or ollama_host(environ) or "http://127.0.0.1:11434",
            default_model=environ.get("PIPELINE_ENGINE_OLLAMA_MODEL") or "llama3",
        )
        profiles.append((profile, "PIPELINE_ENGINE_ENABLE_OLLAMA"))
    return profiles


def ollama_host(environ: Mapping[str, str]) -> str | None:
    """The address that `OLLAMA_HOST` means; None when it is not set. Raises InvalidRequestError when it is no address."""
    value = environ.get("OLLAMA_HOST", "")
    if not value.strip():
        return None
    try:
        return ollama_base_uri(value)
    except ValueError as exc:
        # The words name the value, unless there is a password in it.
        problem = Problem("OLLAMA_HOST", str(exc).removeprefix("OLLAMA_HOST "))
        raise InvalidRequestError([problem], source="environment") from exc


def _address(name: str, environ: Mapping[str, str]) -> str | None:
    value = environ.get(name, "")
    if not value.strip():
        return None
    try:
        return normalise_base_uri(value)
    except ValueError as exc:
        problem = Problem(name, str(exc).removeprefix("base_uri "))
        raise InvalidRequestError([problem], source="environment") from exc


def _is_on(name: str, environ: Mapping[str, str]) -> bool:
    value = environ.get(name, "").strip().lower()
    if value and value not in _SWITCH:
        raise InvalidRequestError([Problem(name, f"{value!r} is neither 1 nor 0")], source="environment")
    return _SWITCH.get(value, False)


def demo_pipelines(profile_ids: Collection[str]) -> list[PipelineDef]:
    """The demo pipelines of those profiles that exist."""
    pipelines = []
    if OPENAI_PROFILE in profile_ids:
        pipelines += [_summarize("openai.summarize.v1", OPENAI_PROFILE), _chain(), _fun_markdown()]
    if OLLAMA_PROFILE in profile_ids:
        pipelines.append(_summarize("ollama.summarize.v1", OLLAMA_PROFILE))
    return pipelines


_LANGUAGE = "Write in {{ options.language | default('the language of the text') }}."


def _summarize(type_: str, profile_id: str) -> PipelineDef:
    system = (
        "You summarize what you are given. Say first what it is about, then what matters most in it, and leave out "
        f"what does not. Level of detail: {{{{ options.detail_level | default('short') }}}}. {_LANGUAGE}"
    )
    step = StepDef(
        id=StepId("summary"),
        name="Summary",
        kind=StepKind.LLM,
        provider_profile_id=profile_id,
        prompt=Prompt(system=system),
        output_type=OutputType.MARKDOWN,
        export=True,
    )
    return PipelineDef(type=type_, version="v1", description="Summarizes the sources", steps=[step])


def _chain() -> PipelineDef:
    """Three steps in a row, of which only the last one's answer is seen."""
    outline = StepDef(
        id=StepId("outline"),
        name="Outline",
        kind=StepKind.LLM,
        provider_profile_id=OPENAI_PROFILE,
        prompt=Prompt(system="List the main points of the text, one a line, in the order of their weight."),
    )
    draft = StepDef(
        id=StepId("draft"),
        name="Draft",
        kind=StepKind.LLM,
        depends_on=[outline.id],
        provider_profile_id=OPENAI_PROFILE,
        prompt=Prompt(
            system=f"Turn a list of points into a few plain paragraphs. {_LANGUAGE}",
            user="{{ previous.outline[0].text }}",
        ),
    )
    polish = StepDef(
        id=StepId("polish"),
        name="Polished text",
        kind=StepKind.LLM,
        depends_on=[draft.id],
        provider_profile_id=OPENAI_PROFILE,
        prompt=Prompt(
            system="Make the text shorter and clearer. Change nothing of what it says, and answer with the text alone.",
            user="{{ previous.draft[0].text }}",
        ),
        output_type=OutputType.MARKDOWN,
        export=True,
    )
    steps = [outline, draft, polish]
    return PipelineDef(type="openai.chain.v1", version="v1", description="Outline, draft, polished text", steps=steps)


def _fun_markdown() -> PipelineDef:
    """Three independent steps, which run at the same time."""
    tasks = {
        "headline": "Give the text a headline that makes people smile, as a first-level Markdown heading.",
        "poem": "Retell the text as a short poem of four to eight lines, in Markdown.",
        "quiz": "Write a quiz of three cheerful questions on the text as a Markdown list, the answers at the end.",
    }
    steps = [
        StepDef(
            id=StepId(name),
            name=name.capitalize(),
            kind=StepKind.LLM,
            provider_profile_id=OPENAI_PROFILE,
            prompt=Prompt(system=f"{task} {_LANGUAGE}"),
            output_type=OutputType.MARKDOWN,
            export=True,
            export_tag=name,
        )
        for name, task in tasks.items()
    ]
    return PipelineDef(type="openai.funmarkdown.v1", version="v1", description="A text, three ways", steps=steps)
