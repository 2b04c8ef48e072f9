"""Checks against schemas that were made to take for ever, in real processes."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from tests.worker_setting import opened_processes, program_with

from pipeline_engine.loop_lag import BOUNDS, LoopLag
from pipeline_engine.steps.schema_checks import find_faults

SLOW = "^(a+)+$"
SLOW_FOR_REGEX = r"^(x|xx)+(?<!z)y|^((x+)*)*\d$"
VICTIM = "a" * 40 + "!"
DOUBLING = {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(40)} | {"d40": {"type": "string"}}


async def test_a_heavy_check_finds_what_a_light_one_does() -> None:
    async with opened_processes() as processes:
        heavy = {"properties": {"name": {"pattern": "^[A-Z]"}, "n": {"type": "integer"}}, "required": ["n"]}
        light = {"properties": {"n": {"type": "integer"}}, "required": ["n"]}
        for value in ({"name": "Ada", "n": 1}, {"name": "Ada", "n": "x"}, {"name": "Ada"}):
            faults = await find_faults(value, light, processes=processes)
            assert await find_faults(value, heavy, processes=processes) == faults
        [fault] = await find_faults({"name": "ada", "n": 1}, heavy, processes=processes)
        assert fault == "$.name: 'ada' does not match '^[A-Z]'"


@pytest.mark.parametrize(
    ("value", "schema"),
    [
        ({VICTIM: 1}, {"patternProperties": {SLOW: {}}}),
        ({VICTIM: 1}, {"patternProperties": {SLOW: {}}, "additionalProperties": False}),
        ({VICTIM: 1}, {"patternProperties": {SLOW: {}}, "unevaluatedProperties": False}),
        ("x", {"$ref": "#/$defs/d0", "$defs": DOUBLING}),
        ([{"n": n} for n in range(10_000)], {"uniqueItems": True}),
        (["x" * 5000 + "z"] * 1000, {"items": {"anyOf": [{"pattern": SLOW_FOR_REGEX}, {}]}}),
    ],
    ids=["names", "other names", "unevaluated names", "doubling", "unique items", "many texts"],
)
async def test_a_check_that_takes_for_ever_fails_the_value_and_holds_up_nothing(
    monkeypatch: pytest.MonkeyPatch, value: Any, schema: dict[str, Any]
) -> None:
    monkeypatch.setattr("pipeline_engine.worker_processes._PROGRAM", program_with("CPU_SECONDS = 1"))
    lag = LoopLag()
    trio.lowlevel.add_instrument(lag)
    async with opened_processes() as processes:
        faults = await find_faults(value, schema, processes=processes)
        assert faults == ["$: the check takes more processor time than one may have"]
        assert await find_faults("A", {"pattern": "^[A-Z]"}, processes=processes) == []
    trio.lowlevel.remove_instrument(lag)
    assert lag.turns.counts[BOUNDS.index(0.5)] == lag.turns.counts[-1]  # none took longer
