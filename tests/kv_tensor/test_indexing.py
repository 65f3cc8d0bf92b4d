"""The rule of indexing, over every form of index and many operations, against plain tensors."""

import os

import pytest
from isolated import run

EXAMPLES = int(os.environ.get("VMM_EXAMPLES", "60"))


@pytest.mark.parametrize("kind", ["reads", "writes"])
def test_an_index_does_as_on_a_plain_tensor(kind):
    run("property_indexing", kind, EXAMPLES)


def test_programs_do_as_on_a_plain_tensor():
    run("property_operations", "operations", EXAMPLES)


def test_what_an_index_does_not_select_is_not_written():
    run("kernels", "check", "'bfloat16'")


def test_an_operation_on_more_than_the_budget_raises():
    run("budget", "check", "")
