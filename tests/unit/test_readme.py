"""The README's examples run as they stand, one after the other, and it stays short."""

import re
from pathlib import Path

import torch

README = Path(__file__).parents[2] / "README.md"


def test_the_examples_run(capsys):
    examples = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(examples) == 3
    torch.manual_seed(0)  # else one run in twenty meets the end-of-text token
    names = {}
    for example in examples:
        assert len(example.splitlines()) <= 12
        exec(compile(example, str(README), "exec"), names)
    assert "CacheStats(tokens=549" in capsys.readouterr().out
    assert names["keys"].shape == (2, 10, 8, 128)
    assert bool((names["keys"] == 1).all())
    assert names["k"].shape == (100, 8, 64)


def test_it_can_be_read_at_once():
    assert len(README.read_text().splitlines()) <= 90
