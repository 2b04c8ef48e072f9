"""Where the calls of a step go: its profile as it is in force at each attempt, with the step's override."""

from __future__ import annotations

import msgspec

from pipeline_engine.errors import ErrorCode, ProviderError
from pipeline_engine.models import StepDef
from pipeline_engine.providers.addresses import origin_of
from pipeline_engine.providers.base import Operation, ProviderCall, Target
from pipeline_engine.providers.registry import ProviderRegistry


class StepTarget:
    """The target of one step, resolved anew only when its profile was replaced."""

    def __init__(self, registry: ProviderRegistry, step: StepDef, profile_id: str) -> None:
        self._registry = registry
        self._profile_id = profile_id
        self._override = step.provider_override
        self._profile = registry.get(profile_id)
        self._target = registry.resolve(profile_id, self._override)

    def current(self) -> Target:
        """Raises ProviderError when the profile is gone, or has moved and the step's own headers must not follow."""
        profile = self._registry.get(self._profile_id)
        if profile is not self._profile:
            target = self._registry.resolve(self._profile_id, self._override)
            self._check_headers_stay(target)
            self._profile, self._target = profile, target
        return self._target

    def renewed(self, call: ProviderCall) -> ProviderCall:
        """The call to the target as it is now. A tool's call stays: its command is rendered, and of one piece with it."""
        target = self.current()
        if target is call.target or call.operation is Operation.TOOL:
            return call
        return msgspec.structs.replace(call, target=target)

    def _check_headers_stay(self, target: Target) -> None:
        """A secret belongs to the origin that it was given for."""
        if self._override is None or not self._override.headers or self._override.base_uri:
            return
        if origin_of(target.base_uri) != origin_of(self._target.base_uri):
            words = (
                f"the profile {self._profile_id!r} leads to another server now, "
                "and the step has headers for the one that it began with"
            )
            raise ProviderError(ErrorCode.PROVIDER_ERROR, words)
