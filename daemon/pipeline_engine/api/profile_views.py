"""Provider profiles as anybody may see them."""

from __future__ import annotations

import msgspec

from pipeline_engine.api.wire import ProviderView
from pipeline_engine.decoding import to_json
from pipeline_engine.models import ProviderProfile
from pipeline_engine.redaction import without_secrets


def view_of(profile: ProviderProfile) -> ProviderView:
    """The profile without secrets: whether it has a key, and of its headers and variables the names alone."""
    extra = msgspec.json.decode(to_json(profile.extra))
    if "env" in extra:  # of a tool or a model server: often the only way to hand it a key
        extra["env"] = dict.fromkeys(extra["env"], "***")
    return ProviderView(
        id=profile.id,
        kind=profile.kind,
        base_uri=without_secrets(profile.base_uri),
        api_key_set=profile.api_key is not None,
        default_model=profile.default_model,
        extra=extra,
    )
