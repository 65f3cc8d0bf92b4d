"""Three engines of one pool in simulated time, with everything checked after every step, against a model that
knows only lengths."""

import pytest

from vmm import _core


@pytest.mark.parametrize("seed", range(1, 7))
def test_no_promise_is_broken(seed):
    neighbours = _core.Neighbours(seed, check=True)
    neighbours.run(120)
    figures = {each["name"]: each for each in neighbours.figures()}
    assert [each["violations"] for each in figures.values()] == [0, 0, 0]
    assert figures["greedy"]["completed"] > 0
    assert len(figures["bursty"]["to_guarantee_ns"]) > 0


def test_without_tenants_there_is_no_promise():
    neighbours = _core.Neighbours(1, isolated=False, check=True)
    neighbours.run(450)
    assert sum(each["violations"] for each in neighbours.figures()) > 0
    assert neighbours.pages_zeroed == 0
