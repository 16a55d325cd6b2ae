"""Numbers change only on purpose: golden runs give the recorded bits where they were recorded, and its NLL anywhere."""

from __future__ import annotations

import functools

import golden
import pytest

TOLERANCE = 0.01  # nats; rounding in another order moves these NLLs by less than 1e-4
train = functools.cache(golden.train)


@pytest.mark.parametrize("name", golden.RUNS)
def test_a_golden_run_gives_the_recorded_bits(name):
    here = golden.platform()
    found = [record for record in golden.records() if record["platform"] == here]
    if not found:
        pytest.skip(f"no golden run was recorded on {here}; python tests/training/golden.py records one")
    assert train(name) == found[0]["runs"][name]


@pytest.mark.parametrize("name", golden.RUNS)
def test_a_golden_run_gives_about_the_recorded_nll_on_any_platform(name):
    """Rounding differs between processors, and one unit that is drawn otherwise is enough to part two runs."""
    found = train(name)
    for record in golden.records():
        for key in ("valid_nll", "test_nll"):
            assert found[key] == pytest.approx(record["runs"][name][key], abs=TOLERANCE), record["platform"]
