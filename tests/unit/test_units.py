import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm import InvalidArgument, format_bytes, parse_bytes


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (1, 1),
        ("512", 512),
        ("12GiB", 12 * 2**30),
        ("12 GB", 12 * 10**9),
        (" 1.5 kib ", 1536),
        ("2TB", 2 * 10**12),
        ("7b", 7),
    ],
)
def test_sizes_that_parse(text, count):
    assert parse_bytes(text) == count


@pytest.mark.parametrize(
    "bad", ["", "GiB", "12 XB", "1e3", "-1", "1 2", "0", 0, -5, 2**62, "9999999TiB", 1.5, None, True]
)
def test_sizes_that_do_not(bad):
    with pytest.raises(InvalidArgument, match="budget"):
        parse_bytes(bad, "budget")


@given(st.integers(1, 2**50))
def test_formatted_sizes_parse_back_closely(count):
    assert parse_bytes(format_bytes(count)) == pytest.approx(count, rel=0.06, abs=1)
