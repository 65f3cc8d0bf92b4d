"""Every snippet of docs/kvtensor.md runs, in order, in one process of its own."""

import re
from pathlib import Path

from child import run_child

PAGE = Path(__file__).parents[2] / "docs" / "kvtensor.md"


def test_the_snippets_run():
    snippets = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(snippets) >= 7
    result = run_child("\n".join([*snippets, "print('all ran')"]))
    assert result.returncode == 0, result.stderr
    assert result.stdout == "all ran\n"
