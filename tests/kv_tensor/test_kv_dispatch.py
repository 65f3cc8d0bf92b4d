"""What reaches a KVTensor past Python: none of it may touch what is not mapped."""

import isolated
import pytest


@pytest.mark.timeout(600)
def test_every_way_to_the_dispatcher():
    isolated.run("ways", "check_fills", "")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("way", ["called", "vmap"])
def test_every_operation_that_writes(way):
    isolated.run("dispatches", "check", repr(way))
