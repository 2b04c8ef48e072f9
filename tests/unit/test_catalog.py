"""What clients change in the catalog, and what stands when they take it back."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import msgspec
import pytest
import trio
from tests.engine_setting import Json, Setting, llm, open_setting
from trio.testing import MockClock, wait_all_tasks_blocked

from pipeline_engine.catalog import Catalog
from pipeline_engine.decoding import Secret, decode, to_json, to_stored_json
from pipeline_engine.errors import ConflictError, NotFoundError
from pipeline_engine.models import PipelineDef, ProviderExtra, ProviderKind, ProviderProfile
from pipeline_engine.pipelines import RegisteredPipeline
from pipeline_engine.store.access import StoreAccess
from pipeline_engine.store.base import Operation, PutDefinition, PutProfile
from pipeline_engine.store.memory import MemoryStore

StartSoon = Callable[[Callable[[], Awaitable[object]]], Awaitable[None]]


def calling(headers: Json, *, profile: str = "fake", **override: str) -> PipelineDef:
    """A definition with a step that sends these headers."""
    step = llm("a", provider_profile_id=profile, provider_override={"headers": headers, **override})
    return decode({"type": "p.v1", "steps": [step]}, PipelineDef)


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


async def test_a_file_that_defines_a_profile_while_a_client_puts_it_goes_before(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_setting() as setting:
        catalog = open_catalog(setting)
        async with at_once(setting, monkeypatch) as start:
            await start(partial(catalog.put_profile, put_over()))
            catalog.use_configuration(profiles=[from_environment("A")], origins={"env": "c.toml:1"}, pipelines=())
        assert setting.registry.get("env") == from_environment("A")
        catalog.use_configuration(profiles=[], origins={}, pipelines=())
        assert setting.registry.get("env") == put_over()


@asynccontextmanager
async def at_once(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[StartSoon, None]:
    """Changes begin in the order in which they are started, and the store takes the first when all have begun."""
    execute, all_begun = setting.writer.execute, trio.Event()

    async def wait_and_execute(operation: Operation) -> None:
        await all_begun.wait()
        await execute(operation)

    monkeypatch.setattr(setting.writer, "execute", wait_and_execute)
    async with trio.open_nursery() as nursery:

        async def start(change: Callable[[], Awaitable[object]]) -> None:
            nursery.start_soon(change)
            await wait_all_tasks_blocked()

        try:
            yield start
        finally:
            all_begun.set()


async def test_a_key_that_comes_at_the_same_time_as_a_profile_without_one_is_kept(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MemoryStore()
    async with open_setting(store=store) as setting:
        catalog = open_catalog(setting)
        headers = {"X-Token": Secret("sk-header")}
        async with at_once(setting, monkeypatch) as start:
            await start(
                partial(catalog.put_profile, put_over(api_key=Secret("K"), extra=ProviderExtra(headers=headers)))
            )
            await start(partial(catalog.put_profile, put_over(default_model="three")))
        in_force = setting.registry.get("env")
        assert in_force is not None
        assert (in_force.api_key, in_force.default_model) == (Secret("K"), "three")
        assert in_force.extra.headers == headers
        [(_, secrets)] = store.profiles().values()
        assert b'"K"' in secrets


async def test_of_definitions_that_come_at_the_same_time_the_later_replaces_the_earlier(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    are_new = []

    async def put(header: str) -> None:
        are_new.append(await catalog.put_pipeline(calling({"X-Tok": header})))

    async with open_setting() as setting:
        catalog = open_catalog(setting)
        async with at_once(setting, monkeypatch) as start:
            await start(partial(put, "sk-header"))
            await start(partial(put, "***"))
        assert are_new == [True, False]
        override = setting.pipelines.find("p.v1").definition.steps[0].provider_override
        assert override is not None
        assert override.headers == {"X-Tok": Secret("sk-header")}


async def test_what_is_removed_twice_at_the_same_time_is_found_once(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_setting() as setting:
        catalog = open_catalog(setting)
        await catalog.put_profile(put_over())
        await catalog.put_pipeline(calling({}))
        missed = []

        async def remove(change: Callable[[], Awaitable[None]]) -> None:
            try:
                await change()
            except NotFoundError as exc:
                missed.append(exc.message)

        async with at_once(setting, monkeypatch) as start:
            for _ in range(2):
                await start(partial(remove, partial(catalog.remove_profile, "env")))
                await start(partial(remove, partial(catalog.remove_pipeline, "p.v1")))
        assert missed == ["there is no provider profile 'env'", "there is no pipeline 'p.v1'"]


async def loaded(setting: Setting) -> Catalog:
    """A catalog as it is after a start, when the store has taken what the start has changed."""
    catalog = open_catalog(setting)
    await catalog.load()
    await wait_all_tasks_blocked()
    return catalog


async def test_what_was_put_with_a_slash_in_its_name_before_stays_in_force(autojump_clock: MockClock) -> None:
    store = MemoryStore()
    slashed = msgspec.structs.replace(calling({}), type="team/p.v1")
    profile = ProviderProfile(id="team/mine", kind=ProviderKind.OPENAI)
    store.write([PutDefinition(slashed.type, to_stored_json(slashed)), PutProfile(profile.id, to_json(profile), b"{}")])
    async with open_setting(store=store) as setting:
        await loaded(setting)
        assert [known.definition.type for known in setting.pipelines.all()] == ["team/p.v1"]
        assert setting.registry.get("team/mine") is not None


async def test_a_definition_that_is_left_out_can_be_removed_and_replaced(autojump_clock: MockClock) -> None:
    store, unusable = MemoryStore(), calling({}, profile="gone")
    store.write([PutDefinition(unusable.type, to_stored_json(unusable))])
    async with open_setting(store=store) as setting:
        catalog = await loaded(setting)
        assert setting.pipelines.all() == []
        await catalog.remove_pipeline("p.v1")
        assert store.definitions() == {}
        with pytest.raises(NotFoundError):
            await catalog.remove_pipeline("p.v1")
    store.write([PutDefinition(unusable.type, to_stored_json(unusable))])
    async with open_setting(store=store) as setting:
        catalog = await loaded(setting)
        assert await catalog.put_pipeline(calling({}))
        await catalog.remove_pipeline("p.v1")
        with pytest.raises(NotFoundError):
            await catalog.remove_pipeline("p.v1")


def at(port: int, profile_id: str = "mine") -> ProviderProfile:
    return ProviderProfile(id=profile_id, kind=ProviderKind.OPENAI, base_uri=f"http://127.0.0.1:{port}")


async def test_headers_of_a_definition_do_not_follow_its_profile_to_another_origin(autojump_clock: MockClock) -> None:
    async with open_setting() as setting:
        catalog = open_catalog(setting)
        await catalog.put_profile(at(1))
        await catalog.put_pipeline(calling({"Authorization": "Bearer sk-header"}, profile="mine"))
        other = calling({"X-Tok": "sk-other"}, profile="mine", base_uri="http://127.0.0.1:3")
        await catalog.put_pipeline(msgspec.structs.replace(other, type="other.v1"))
        for moved in (at(2), msgspec.structs.replace(at(1), kind=ProviderKind.OLLAMA, base_uri="")):
            with pytest.raises(ConflictError, match=r"which would go along: 'p\.v1'; put them without"):
                await catalog.put_profile(moved)
        assert setting.registry.get("mine") == at(1)
        # Neither by removing it first; and where it led is not known any more then.
        await catalog.remove_profile("mine")
        for port in (1, 2):
            with pytest.raises(ConflictError, match=r"'p\.v1'"):
                await catalog.put_profile(at(port))
        await catalog.remove_pipeline("p.v1")
        await catalog.put_profile(at(2))


async def test_a_profile_may_move_where_no_header_goes_with_it(autojump_clock: MockClock) -> None:
    async with open_setting() as setting:
        catalog = open_catalog(setting)
        await catalog.put_profile(at(1))
        await catalog.put_pipeline(calling({"X-Tok": "sk-header"}, profile="mine"))
        await catalog.put_profile(msgspec.structs.replace(at(1), default_model="m", base_uri="http://127.0.0.1:1/v1"))
        await catalog.put_profile(at(2, "another"))
        await catalog.put_pipeline(calling({}, profile="mine"))
        await catalog.put_profile(at(2))


async def test_headers_of_a_definition_do_not_go_to_the_profile_under_one_that_is_removed(
    autojump_clock: MockClock,
) -> None:
    async with open_setting() as setting:
        catalog = open_catalog(setting)
        catalog.use_configuration(profiles=[at(1)], origins={}, pipelines=())
        await catalog.put_profile(at(2))
        await catalog.put_pipeline(calling({"X-Tok": "sk-header"}, profile="mine"))
        with pytest.raises(ConflictError, match=r"'p\.v1'"):
            await catalog.remove_profile("mine")
        assert setting.registry.get("mine") == at(2)
        await catalog.remove_pipeline("p.v1")
        await catalog.remove_profile("mine")


async def test_headers_of_a_definition_that_is_left_out_do_not_wait_for_another_server(
    autojump_clock: MockClock,
) -> None:
    store, left_out = MemoryStore(), calling({"X-Tok": "sk-header"}, profile="mine")
    store.write([PutDefinition(left_out.type, to_stored_json(left_out))])
    async with open_setting(store=store) as setting:
        catalog = await loaded(setting)
        with pytest.raises(ConflictError, match=r"'p\.v1'"):
            await catalog.put_profile(at(2))
        await catalog.remove_pipeline("p.v1")
        await catalog.put_profile(at(2))


async def test_headers_of_files_definitions_go_where_their_profile_leads(autojump_clock: MockClock) -> None:
    async with open_setting() as setting:
        catalog = open_catalog(setting)
        fixed = RegisteredPipeline(calling({"X-Tok": "sk-header"}, profile="mine"), "/etc/p.yaml")
        catalog.use_configuration(profiles=[at(1)], origins={}, pipelines=[fixed])
        await catalog.put_profile(at(2))
