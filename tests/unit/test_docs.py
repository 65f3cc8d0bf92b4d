"""Every snippet of a page of docs runs, in order, in one process of its own."""

import re
from pathlib import Path

import pytest

from child import run_child

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize(("page", "least"), [("kvtensor.md", 7), ("engine.md", 5)])
def test_the_snippets_run(page, least):
    snippets = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)
    assert len(snippets) >= least
    result = run_child("\n".join([*snippets, "print('all ran')"]))
    assert result.returncode == 0, result.stderr
    assert result.stdout == "all ran\n"
