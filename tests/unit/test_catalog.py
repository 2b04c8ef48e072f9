"""What clients change in the catalog, and what stands when they take it back."""

from __future__ import annotations

import pytest
from tests.engine_setting import Setting, open_setting
from trio.testing import MockClock

from pipeline_engine.catalog import Catalog
from pipeline_engine.decoding import Secret
from pipeline_engine.models import ProviderKind, ProviderProfile
from pipeline_engine.store.access import StoreAccess
from pipeline_engine.store.memory import MemoryStore


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


def from_environment(key: str) -> ProviderProfile:
    return ProviderProfile(
        id="env", kind=ProviderKind.OPENAI, base_uri="http://127.0.0.1:1/v1", api_key=Secret(key), default_model="one"
    )


def put_over(**fields: object) -> ProviderProfile:
    """What a client puts over it: with another model, and without a key."""
    given = {"id": "env", "kind": ProviderKind.OPENAI, "base_uri": "http://127.0.0.1:1/v1", "default_model": "two"}
    return ProviderProfile(**(given | fields))  # type: ignore[arg-type]


async def test_a_key_that_no_client_has_given_stays_the_configurations(autojump_clock: MockClock) -> None:
    store = MemoryStore()
    for key in ("A", "B"):
        async with open_setting(store=store) as setting:
            catalog = open_catalog(setting)
            catalog.use_configuration(profiles=[from_environment(key)], origins={}, pipelines=())
            await catalog.load()
            for _ in range(2):
                in_force = setting.registry.get("env")
                assert in_force is not None
                assert in_force.api_key == Secret(key)
                in_force = await catalog.put_profile(put_over())
                assert (in_force.api_key, in_force.default_model) == (Secret(key), "two")
            [(_, secrets)] = store.profiles().values()
            assert key.encode() not in secrets


@pytest.mark.parametrize("fields", [{"base_uri": "http://127.0.0.1:2"}, {"kind": ProviderKind.IMAGE, "base_uri": ""}])
async def test_a_key_of_the_configuration_stays_with_its_origin(
    autojump_clock: MockClock, fields: dict[str, object]
) -> None:
    store = MemoryStore()
    async with open_setting(store=store) as setting:
        catalog = open_catalog(setting)
        catalog.use_configuration(profiles=[from_environment("A")], origins={}, pipelines=())
        assert (await catalog.put_profile(put_over(**fields))).api_key is None
    async with open_setting(store=store) as setting:
        catalog = open_catalog(setting)
        catalog.use_configuration(profiles=[from_environment("A")], origins={}, pipelines=())
        await catalog.load()
        in_force = setting.registry.get("env")
        assert in_force is not None
        assert in_force.api_key is None


async def test_a_key_that_a_client_has_given_goes_before_the_configurations(autojump_clock: MockClock) -> None:
    store = MemoryStore()
    async with open_setting(store=store) as setting:
        catalog = open_catalog(setting)
        catalog.use_configuration(profiles=[from_environment("A")], origins={}, pipelines=())
        await catalog.put_profile(put_over(api_key=Secret("mine")))
        assert (await catalog.put_profile(put_over())).api_key == Secret("mine")
    async with open_setting(store=store) as setting:
        catalog = open_catalog(setting)
        catalog.use_configuration(profiles=[from_environment("B")], origins={}, pipelines=())
        await catalog.load()
        in_force = setting.registry.get("env")
        assert in_force is not None
        assert in_force.api_key == Secret("mine")
        catalog.use_configuration(profiles=[from_environment("C")], origins={}, pipelines=())
        assert setting.registry.get("env") == in_force


async def test_a_changed_key_of_the_configuration_is_used_at_once(autojump_clock: MockClock) -> None:
    async with open_setting() as setting:
        catalog = open_catalog(setting)
        for key in ("A", "B"):
            catalog.use_configuration(profiles=[from_environment(key)], origins={}, pipelines=())
            if key == "A":
                await catalog.put_profile(put_over())
        in_force = setting.registry.get("env")
        assert in_force is not None
        assert (in_force.api_key, in_force.default_model) == (Secret("B"), "two")
