from __future__ import annotations

import pytest
from tests.engine_setting import ScriptedProcesses

from pipeline_engine.steps.schema_checks import find_faults
from pipeline_engine.worker_processes import WorkerError, WorkerStartError

HEAVY = {"pattern": "^a"}


async def test_a_light_check_asks_nobody() -> None:
    processes = ScriptedProcesses(WorkerError("asked"))
    assert await find_faults(1, {"type": "string"}, processes=processes) == ["$: 1 is not of type 'string'"]
    assert processes.requests == []


async def test_a_heavy_check_is_asked_of_a_process() -> None:
    processes = ScriptedProcesses({"value": ["$: no"]})
    assert await find_faults("b", HEAVY, processes=processes) == ["$: no"]
    assert processes.requests == [{"work": "validate", "value": "b", "schema": HEAVY, "purpose": "the check"}]


async def test_a_check_that_a_process_does_not_survive_is_a_fault_of_the_value() -> None:
    processes = ScriptedProcesses(WorkerError("the check takes more processor time than one may have"))
    faults = await find_faults("b", HEAVY, processes=processes)
    assert faults == ["$: the check takes more processor time than one may have"]


async def test_that_there_is_no_process_is_no_fault_of_the_value() -> None:
    processes = ScriptedProcesses(WorkerStartError("cannot start a process for the check: Cannot allocate memory"))
    with pytest.raises(WorkerStartError):
        await find_faults("b", HEAVY, processes=processes)
