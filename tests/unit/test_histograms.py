from __future__ import annotations

from pipeline_engine.histograms import Histogram


def test_values_are_counted_at_each_bound_that_they_do_not_exceed() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 7.0):
        histogram.add(value)
    assert (histogram.counts, histogram.total) == ([2, 3, 4], 10.0)
