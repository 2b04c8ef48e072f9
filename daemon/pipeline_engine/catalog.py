"""What clients may change while the daemon runs, and the store keeps: pipelines and provider profiles."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager

import msgspec
import trio

from pipeline_engine.decoding import Secret, from_stored_json, to_json, to_stored_json
from pipeline_engine.definitions import DefinitionChecker
from pipeline_engine.errors import (
    ConflictError,
    ForbiddenError,
    InvalidRequestError,
    NotFoundError,
    Problem,
    UnknownPipelineError,
)
from pipeline_engine.hidden_headers import hidden_values, known_values, sends_headers_elsewhere, with_known_headers
from pipeline_engine.models import PipelineDef, ProviderKind, ProviderProfile
from pipeline_engine.pipelines import Pipelines, RegisteredPipeline
from pipeline_engine.providers.addresses import normalise_base_uri, origin_of
from pipeline_engine.providers.registry import ProviderRegistry
from pipeline_engine.providers.targets import base_uri_of
from pipeline_engine.store.access import StoreAccess
from pipeline_engine.store.base import PutDefinition, PutProfile, RemoveDefinition, RemoveProfile
from pipeline_engine.store.writer import StoreWriter

log = logging.getLogger(__name__)


class _Secrets(msgspec.Struct):
    """What of a profile is kept apart from it."""

    api_key: Secret | None = None
    headers: dict[str, Secret] = {}


class Catalog:
    """Pipelines and profiles: those of the configuration, and over them those that clients have put.

    What a file defines can be changed in the file alone.
    """

    def __init__(
        self,
        *,
        pipelines: Pipelines,
        registry: ProviderRegistry,
        checker: DefinitionChecker,
        access: StoreAccess,
        writer: StoreWriter,
    ) -> None:
        self.pipelines = pipelines
        self.registry = registry
        self._checker = checker
        self._access = access
        self._writer = writer
        self._from_files: dict[str, str] = {}
        self._put_profiles: dict[str, ProviderProfile] = {}  # with what clients have given of secrets, and no more
        self._configured: dict[str, ProviderProfile] = {}
        self._left_out: dict[str, PipelineDef] = {}  # stored, and not in force
        self._changing = trio.Lock()

    async def load(self) -> None:
        """Take over what clients have put before.

        A definition that has become unusable meanwhile is left out, with a warning, until it is put anew or removed.
        """
        for profile_id, (text, secrets) in (await self._access.call(self._access.store.profiles)).items():
            kept = from_stored_json(secrets, _Secrets)
            profile = from_stored_json(text, ProviderProfile)
            extra = msgspec.structs.replace(profile.extra, headers=kept.headers)
            profile = msgspec.structs.replace(profile, api_key=kept.api_key, extra=extra)
            self._put_profiles[profile_id] = profile
            if profile_id not in self._from_files:
                self.registry.put(self._in_force(profile))
        for pipeline_type, text in (await self._access.call(self._access.store.definitions)).items():
            definition = from_stored_json(text, PipelineDef)
            # A / in its type is of a time when that was not refused.
            problems = [*self._checker.check(definition), *self._checker.check_tool_use(definition)]
            if problems:
                self._left_out[pipeline_type] = definition
                log.warning("the stored pipeline %r is left out: %s", pipeline_type, "; ".join(map(str, problems)))
            else:
                self.pipelines.put(definition)

    # pipelines

    def decode_pipeline(self, value: object) -> PipelineDef:
        """The value as a definition, not yet checked. Raises InvalidRequestError with all problems that can be told of it."""
        definition, problems = self._checker.decode(value)
        if definition is None:
            raise InvalidRequestError(problems)
        return definition

    def check_pipeline(self, definition: PipelineDef) -> tuple[PipelineDef, list[Problem]]:
        """The definition as it would come into force, and every problem that keeps it from that.

        A header that comes back hidden, as it was shown, is the one that the definition of the type has now.
        """
        try:
            earlier = self.pipelines.find(definition.type).definition
        except UnknownPipelineError:
            pass
        else:
            definition = with_known_headers(definition, earlier, self.registry.get)
        return definition, self._problems(definition)

    def _problems(self, definition: PipelineDef) -> list[Problem]:
        return [*self._checker.check(definition), *self._checker.check_sent(definition)]

    async def put_pipeline(self, definition: PipelineDef) -> bool:
        """Add or replace a definition; True when it is new. Raises InvalidRequestError and ConflictError."""
        async with self._change():
            definition, problems = self.check_pipeline(definition)
            if problems:
                raise InvalidRequestError(problems)
            self.pipelines.check_changeable(definition.type, must_exist=False)
            is_new = all(known.definition.type != definition.type for known in self.pipelines.all())
            await self._writer.execute(PutDefinition(definition.type, to_stored_json(definition)))
            self._left_out.pop(definition.type, None)
            self.pipelines.put(definition)
        return is_new

    async def remove_pipeline(self, pipeline_type: str) -> None:
        """Raises NotFoundError and ConflictError. Jobs keep the definition they began with."""
        async with self._change():
            self.pipelines.check_changeable(pipeline_type, must_exist=pipeline_type not in self._left_out)
            await self._writer.execute(RemoveDefinition(pipeline_type))
            self._left_out.pop(pipeline_type, None)
            self.pipelines.remove(pipeline_type)

    # profiles

    async def put_profile(self, profile: ProviderProfile) -> ProviderProfile:
        """Add or replace a profile; the answer is the profile in force. A profile without a key keeps the one it had,
        as long as it speaks to the same origin; so does a header that comes back hidden, as it was shown. One that stands
        for nothing known is refused.

        Raises InvalidRequestError, ForbiddenError for tools, which are defined in files only, and ConflictError for a file's
        profile, and for another origin while definitions that clients have put have headers which would go there.
        """
        if profile.kind is ProviderKind.LOCAL_TOOL or profile.extra.server is not None:
            what = "local_tool profiles" if profile.kind is ProviderKind.LOCAL_TOOL else "extra.server"
            raise ForbiddenError(f"{what} can be defined in configuration files only")
        if "/" in profile.id:
            raise InvalidRequestError([Problem("id", "must not hold a /: it stands in the address of the profile")])
        profile = msgspec.structs.replace(profile, base_uri=_checked_uri(profile.base_uri))
        async with self._change():
            self._check_changeable(profile.id)
            self._check_headers_stay(profile)
            profile = self._with_known_secrets(profile)
            await self._writer.execute(_put_operation(profile))
            self._put_profiles[profile.id] = profile
            if profile.id not in self._from_files:  # a file may have come to define it meanwhile
                self.registry.put(self._in_force(profile))
            return self._in_force(profile)

    def put_profile_of(self, profile_id: str) -> ProviderProfile | None:
        """What clients have put under this id, whether it is in force or a file's profile stands before it."""
        return self._put_profiles.get(profile_id)

    def _with_known_secrets(self, profile: ProviderProfile) -> ProviderProfile:
        known = self._put_profiles.get(profile.id)
        if known is not None and not _same_origin(known, profile):
            known = None  # a secret belongs to the origin that it was given for
        headers = _headers_in_force(profile.extra.headers, {} if known is None else known.extra.headers)
        return msgspec.structs.replace(
            profile,
            api_key=profile.api_key or (None if known is None else known.api_key),
            extra=msgspec.structs.replace(profile.extra, headers=headers),
        )

    def _in_force(self, put: ProviderProfile) -> ProviderProfile:
        """What clients have put; where they gave no key, with that of the configuration's profile of the same origin.

        Looked up and never stored: whoever changes the configuration's key changes this one.
        """
        configured = self._configured.get(put.id)
        if put.api_key is not None or configured is None or not _same_origin(put, configured):
            return put
        return msgspec.structs.replace(put, api_key=configured.api_key)

    async def remove_profile(self, profile_id: str) -> None:
        """What was put over a built-in profile gives way to that. Raises NotFoundError, and ConflictError for a file's
        or a built-in profile, and where headers of definitions would go to another origin by that.
        """
        async with self._change():
            if self.registry.get(profile_id) is None:
                raise NotFoundError(f"there is no provider profile {profile_id!r}")
            self._check_changeable(profile_id)
            if profile_id not in self._put_profiles:
                raise ConflictError(f"the profile {profile_id!r} is built in and cannot be removed")
            built_in = self._configured.get(profile_id)
            if built_in is not None:
                self._check_headers_stay(built_in)
            await self._writer.execute(RemoveProfile(profile_id))
            self._put_profiles.pop(profile_id, None)
            if profile_id in self._configured:
                self.registry.put(self._configured[profile_id])
            else:
                self.registry.remove(profile_id)

    def _check_changeable(self, profile_id: str) -> None:
        place = self._from_files.get(profile_id)
        if place is not None:
            raise ConflictError(f"the profile {profile_id!r} is defined by {place}; change it there")

    def _check_headers_stay(self, profile: ProviderProfile) -> None:
        """A secret belongs to the origin that it was given for: who moves a profile must not get those of definitions."""
        before = self.registry.get(profile.id)
        definitions = [*self.pipelines.put_by_clients(), *self._left_out.values()]
        moving = [repr(one.type) for one in definitions if sends_headers_elsewhere(one, before, profile)]
        if moving:
            why = "would lead to another server"
            if before is None:
                why = "is not there now, so it is not known which server it led to"
            raise ConflictError(
                f"the profile {profile.id!r} {why}, and steps of these pipelines have headers for it, which would go "
                f"along: {', '.join(moving)}; put them without these headers before, or remove them"
            )

    @asynccontextmanager
    async def _change(self) -> AsyncIterator[None]:
        """One change after the other: each is made of what those before have left, stored, and put in force.

        All of it even if the client leaves.
        """
        with trio.CancelScope(shield=True):
            async with self._changing:
                yield

    # the configuration

    def use_configuration(
        self,
        *,
        profiles: Iterable[ProviderProfile],
        origins: dict[str, str],
        pipelines: Iterable[RegisteredPipeline],
        broken_files: Sequence[str] = (),
    ) -> None:
        """Use these profiles and pipelines of the configuration instead of those so far.

        `origins` are the places (`FILE:LINE`) of the profiles that a file defines, by their ids; `broken_files` says
        what is wrong with each definition file that cannot be used. Jobs that run keep
        what they began with.
        """
        self._configured = {profile.id: profile for profile in profiles}
        self._from_files = dict(origins)
        put = [self._in_force(profile) for profile in self._put_profiles.values() if profile.id not in origins]
        wanted = self._configured | {profile.id: profile for profile in put}
        for known in self.registry.profiles():
            if known.id not in wanted:
                self.registry.remove(known.id)
        for profile in wanted.values():
            if self.registry.get(profile.id) != profile:
                self.registry.put(profile)
        self.pipelines.replace_fixed(pipelines, broken_files=broken_files)


def _same_origin(one: ProviderProfile, other: ProviderProfile) -> bool:
    return origin_of(base_uri_of(one)) == origin_of(base_uri_of(other))


def _put_operation(profile: ProviderProfile) -> PutProfile:
    secrets = _Secrets(api_key=profile.api_key, headers=profile.extra.headers)
    shown = msgspec.structs.replace(profile, api_key=None, extra=msgspec.structs.replace(profile.extra, headers={}))
    return PutProfile(profile.id, to_json(shown), to_stored_json(secrets))


def _headers_in_force(given: Mapping[str, Secret], known: Mapping[str, Secret]) -> dict[str, Secret]:
    """What a client gives, or else what was known; a value that comes back hidden is the known one.

    Raises InvalidRequestError where none is known.
    """
    if not given:
        return dict(known)
    headers = known_values(given, known)
    problems = list(hidden_values(headers, "extra.headers"))
    if problems:
        raise InvalidRequestError(problems)
    return headers


def _checked_uri(base_uri: str) -> str:
    if not base_uri:
        return base_uri
    try:
        return normalise_base_uri(base_uri)
    except ValueError as exc:
        raise InvalidRequestError([Problem("base_uri", str(exc))]) from exc
