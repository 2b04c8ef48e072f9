"""Secret headers, which are shown as `***`, keep what they were and stay with the origin that they were given for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import msgspec

from pipeline_engine.decoding import Secret
from pipeline_engine.errors import Problem, ProviderError
from pipeline_engine.models import PipelineDef, ProviderProfile, StepDef
from pipeline_engine.providers.addresses import origin_of
from pipeline_engine.providers.targets import resolve
from pipeline_engine.redaction import HIDDEN

Profiles = Callable[[str], ProviderProfile | None]


def hidden_headers(step: StepDef, where: str) -> Iterator[Problem]:
    """A problem for each header of the step, which stands at `where`, whose value is hidden."""
    headers = {} if step.provider_override is None else step.provider_override.headers
    yield from hidden_values(headers, f"{where}.provider_override.headers")


def hidden_values(headers: Mapping[str, Secret], where: str) -> Iterator[Problem]:
    """A problem for each of the headers, which stand at `where`, whose value is hidden."""
    for name in _hidden_names(headers):
        yield Problem(f"{where}.{name}", f"is {HIDDEN}, which stands for a secret; write it out")


def known_values(given: Mapping[str, Secret], known: Mapping[str, Secret]) -> dict[str, Secret]:
    """The headers that are given, where a hidden one has the value that is known of it, if one is."""
    return {**given, **{name: known[name] for name in _hidden_names(given) if name in known}}


def with_known_headers(definition: PipelineDef, earlier: PipelineDef, profiles: Profiles) -> PipelineDef:
    """The definition with the values that the earlier one has in the same step for headers which are hidden.

    Only for calls to the same origin: a secret belongs to the one that it was given for.
    """
    known = {step.id: step for step in earlier.steps}
    steps = [
        _with_headers_of(known[step.id], step, profiles) if step.id in known else step for step in definition.steps
    ]
    return msgspec.structs.replace(definition, steps=steps)


def _with_headers_of(earlier: StepDef, step: StepDef, profiles: Profiles) -> StepDef:
    override, origin = step.provider_override, _origin(step, profiles)
    if override is None or earlier.provider_override is None or origin is None or origin != _origin(earlier, profiles):
        return step
    headers = known_values(override.headers, earlier.provider_override.headers)
    return msgspec.structs.replace(step, provider_override=msgspec.structs.replace(override, headers=headers))


def sends_headers_elsewhere(definition: PipelineDef, before: ProviderProfile | None, after: ProviderProfile) -> bool:
    """Whether a step has headers of its own that would go to another origin once the profile is not as before.

    Where there was no profile before, nobody can tell what origin they were given for.
    """
    return any(
        step.provider_profile_id == after.id
        and step.provider_override is not None
        and step.provider_override.headers
        and not step.provider_override.base_uri  # else they go there, whatever the profile says
        and _origin(step, lambda _: before) != _origin(step, lambda _: after)
        for step in definition.steps
    )


def _hidden_names(headers: Mapping[str, Secret]) -> list[str]:
    return [name for name, value in headers.items() if value.reveal() == HIDDEN]


def _origin(step: StepDef, profiles: Profiles) -> tuple[str, str, int] | None:
    """Where the calls of the step go; None where that cannot be told."""
    profile = None if step.provider_profile_id is None else profiles(step.provider_profile_id)
    if profile is None:
        return None
    try:
        return origin_of(resolve(profile, step.provider_override).base_uri)
    except ProviderError:
        return None
