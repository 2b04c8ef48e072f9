"""Whether a provider profile works: its server is reached, and a token comes back."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from pipeline_engine.config import Config
from pipeline_engine.errors import ErrorCode, PipelineEngineError, ProviderError
from pipeline_engine.models import ProviderKind, ProviderProfile
from pipeline_engine.providers.base import Chunk, Message, ProviderCall
from pipeline_engine.providers.local_tool import LocalToolProvider
from pipeline_engine.providers.process import base_environment
from pipeline_engine.providers.registry import ProviderRegistry, open_registry

LIST_TIMEOUT = 30.0  # seconds
PROMPT = "Say hello."
MAX_TOKENS = 16  # the first one is enough, but a server that does not stream sends them all

_PROTOCOL_HINT = "check base_uri: for OpenAI's protocol it usually ends in /v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one check found; `message` is for people, `value` for programs."""

    check: str
    ok: bool
    message: str
    seconds: float
    code: str | None = None
    value: Any = None


async def check_profile(config: Config, profile: ProviderProfile, report: Callable[[Finding], None]) -> bool:
    """Make the checks that fit the profile, and report each; whether all that matters is fine."""
    if profile.kind is ProviderKind.LOCAL_TOOL:
        finding = _find_program(profile)
        report(finding)
        return finding.ok
    proxies = {name.removesuffix("_proxy"): value for name, value in config.proxies.items()}
    tool = LocalToolProvider(environment=os.environ)
    fine = True
    async with open_registry([profile], local_tool=tool, proxies=proxies, environ=os.environ) as registry:
        async for finding in _ask(registry, profile):
            report(finding)
            fine = finding.ok
    return fine


async def _ask(registry: ProviderRegistry, profile: ProviderProfile) -> AsyncIterator[Finding]:
    """The findings, of which the last one decides."""
    listed = await _list_models(registry, profile)
    yield listed
    if listed.ok and profile.kind is ProviderKind.IMAGE:
        return
    # A server need not have a list of models; only one that is not there can give no token.
    if not listed.ok and (listed.code == ErrorCode.PROVIDER_UNREACHABLE or profile.kind is ProviderKind.IMAGE):
        return
    yield await _first_token(registry, profile)


async def _list_models(registry: ProviderRegistry, profile: ProviderProfile) -> Finding:
    began = trio.current_time()
    try:
        with trio.fail_after(LIST_TIMEOUT + (profile.extra.server.start_timeout_s if profile.extra.server else 0)):
            models = await registry.list_models(profile.id)
    except ProviderError as exc:
        return _failed("models", exc, began)
    except trio.TooSlowError:
        slow = ProviderError(ErrorCode.TIMEOUT, f"no list of models within {LIST_TIMEOUT:g} s")
        return _failed("models", slow, began)
    message = f"the server lists {len(models)} model{'' if len(models) == 1 else 's'}"
    wanted = registry.resolve(profile.id).model
    if wanted and models and not {wanted, f"{wanted}:latest"} & set(models):
        message += f"; default_model {wanted!r} is not among them"
    return Finding(check="models", ok=True, message=message, seconds=trio.current_time() - began, value=models)


async def _first_token(registry: ProviderRegistry, profile: ProviderProfile) -> Finding:
    began = trio.current_time()
    try:
        target = registry.resolve(profile.id)
        call = ProviderCall(target=target, messages=[Message("user", PROMPT)], max_tokens=MAX_TOKENS)
        async with registry.stream(call, job_id="test") as batches:
            async for batch in batches:
                for part in batch:
                    if isinstance(part, Chunk):
                        message = f"{target.model} answers: its first token is {part.content!r}"
                        seconds = trio.current_time() - began
                        return Finding(check="token", ok=True, message=message, seconds=seconds, value=part.content)
    except PipelineEngineError as exc:
        return _failed("token", exc, began)
    return _failed("token", ProviderError(ErrorCode.PROVIDER_EMPTY, "the answer holds no text"), began)


def _find_program(profile: ProviderProfile) -> Finding:
    program, cwd = profile.extra.command[0], profile.extra.cwd
    # As its child is started: with the PATH that the profile sets, if it does.
    path = profile.extra.env.get("PATH") or base_environment(os.environ)["PATH"]
    if "{" in program or ("/" not in program and "{" in path):
        return Finding(check="program", ok=True, message=f"{program} is known only when a step runs", seconds=0.0)
    place, words = None, f"the program {program!r}"
    if "/" not in program:
        place = shutil.which(program, path=path)
        words += " is not on PATH"
    elif Path(program).is_absolute():
        place = shutil.which(program)
        words += " is not there, or not executable"
    elif cwd is None:
        words += (
            " would be looked for in the empty folder in which the tool works: give its full path, or set extra.cwd"
        )
    else:
        place = shutil.which(Path(cwd, program))
        words += f" is not in {cwd}, where the tool works (extra.cwd), or not executable: give its full path"
    if place is not None and cwd is not None and not Path(cwd).is_dir():
        place, words = None, f"there is no folder {cwd} (extra.cwd), where the tool works"
    message = f"the program {program!r} is {place}" if place is not None else words
    return Finding(check="program", ok=place is not None, message=message, seconds=0.0, value=place)


def _failed(check: str, exc: PipelineEngineError, began: float) -> Finding:
    message = f"{exc.message}; {_PROTOCOL_HINT}" if exc.code == ErrorCode.PROVIDER_PROTOCOL else exc.message
    return Finding(check=check, ok=False, message=message, seconds=trio.current_time() - began, code=str(exc.code))
