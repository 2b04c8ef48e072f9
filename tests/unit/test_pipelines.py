"""Which pipelines are known, and what those are told who miss one."""

from __future__ import annotations

import pytest

from pipeline_engine.errors import UnknownPipelineError
from pipeline_engine.pipelines import Pipelines


def missed(*broken_files: str) -> UnknownPipelineError:
    pipelines = Pipelines()
    pipelines.replace_fixed((), broken_files=broken_files)
    with pytest.raises(UnknownPipelineError) as caught:
        pipelines.find("p.v1")
    return caught.value


def test_who_misses_a_pipeline_is_told_of_the_files_that_cannot_be_used() -> None:
    assert "definition file" not in missed().message
    assert missed("a.yaml: no").message.endswith("; 1 definition file cannot be used: a.yaml: no")
    assert missed("a.yaml: no", "b.yaml: no").details == {"known": []}


def test_of_many_files_that_cannot_be_used_the_first_are_named_and_all_are_counted() -> None:
    message = missed(*(f"{name}.yaml: no" for name in "abcd")).message
    assert message.endswith("; 4 definition files cannot be used: a.yaml: no; b.yaml: no; c.yaml: no")
