"""What the tests of KVTensor rely on: a case that ends its process is told, and ends no other."""

import os
import signal

import pytest
from isolated import each, every, search

ENDS = {
    "right": lambda: "right",
    "raises": lambda: 1 / 0,
    "signal": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "nothing said": lambda: os._exit(0),
    "failed": lambda: os._exit(3),
    "long": lambda: "long" * 100_000,
}


def test_each_case_is_told():
    names = ["signal", "right", "nothing said", "raises", "failed", "failed", "long", "nothing said"]
    said = each(lambda name: ENDS[name](), names)
    assert "ZeroDivisionError" in said.pop(3)
    told = [
        "ended by SIGKILL", "right", "ended by exit(0)", "ended by exit(3)", "ended by exit(3)",
        "long" * 100_000, "ended by exit(0)",
    ]  # fmt: skip
    assert said == told


def test_every_names_what_is_wrong():
    every(lambda case: None, {"one": 1, "two": 2})
    with pytest.raises(AssertionError, match=r"(?s)^one\n.*ZeroDivisionError.*three\nended by SIGKILL$"):
        every(lambda case: ENDS[case]() and None, {"one": "raises", "two": "right", "three": "signal"})


def test_what_fails_in_company_is_looked_for_alone():
    def check(case):
        if case == 7:
            os.kill(os.getpid(), signal.SIGKILL)

    seeds = []

    def look(tried, seed):
        seeds.append(seed)
        for case in (1, 7, 9):
            tried(check, case)

    with pytest.raises(AssertionError, match=r"^ended by SIGKILL$"):
        search(look)
    assert len(seeds) == 1  # the first time was in a child

    parent = os.getpid()
    with pytest.raises(AssertionError, match=r"only after others"):
        search(lambda tried, seed: tried(lambda case: 1 / 0, 1) if os.getpid() != parent else None)
