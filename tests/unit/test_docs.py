"""Every Python snippet of a page of docs runs, in order, in one process for each page."""

import re
from pathlib import Path

import pytest

from child import run_child

DOCS = Path(__file__).parents[2] / "docs"
PAGES = {page.name: page.read_text() for page in sorted(DOCS.glob("*.md"))}
SNIPPETS = {name: re.findall(r"```python\n(.*?)```", text, re.DOTALL) for name, text in PAGES.items()}


@pytest.mark.parametrize("page", [name for name, snippets in SNIPPETS.items() if snippets])
def test_the_snippets_run(page):
    result = run_child("\n".join([*SNIPPETS[page], "print('all ran')"]))
    assert result.returncode == 0, result.stderr
    assert result.stdout == "all ran\n"


@pytest.mark.parametrize(
    ("page", "least"),
    [("kvtensor.md", 7), ("engine.md", 6), ("range.md", 4), ("testing.md", 2), ("tiers.md", 3)],
)
def test_a_page_has_snippets(page, least):
    assert len(SNIPPETS[page]) >= least


@pytest.mark.parametrize("page", PAGES)
def test_a_fence_is_run_or_has_no_language(page):
    assert set(re.findall(r"^```(\S+)", PAGES[page], re.MULTILINE)) <= {"python"}
