"""What clients change in the catalog, and what stands when they take it back."""

from __future__ import annotations

from tests.engine_setting import Setting, open_setting
from trio.testing import MockClock

from pipeline_engine.catalog import Catalog
from pipeline_engine.models import ProviderKind, ProviderProfile
from pipeline_engine.store.access import StoreAccess


def open_catalog(setting: Setting) -> Catalog:
    return Catalog(
        pipelines=setting.pipelines,
        registry=setting.registry,
        checker=setting.engine.admission.checker,
        access=StoreAccess(setting.store, threads=1),
        writer=setting.writer,
    )


async def test_a_built_in_profile_is_back_when_what_was_put_over_it_is_removed(autojump_clock: MockClock) -> None:
    built_in = ProviderProfile(id="fake", kind=ProviderKind.OPENAI, base_uri="http://127.0.0.1:1")
    async with open_setting() as setting:
        catalog = open_catalog(setting)
        catalog.use_configuration(profiles=[built_in], origins={}, pipelines=())
        put = await catalog.put_profile(
            ProviderProfile(id="fake", kind=ProviderKind.OLLAMA, base_uri="http://127.0.0.1:2")
        )
        assert setting.registry.get("fake") == put
        await catalog.remove_profile("fake")
        assert setting.registry.get("fake") == built_in
