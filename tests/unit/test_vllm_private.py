"""What the vLLM plugin touches of vLLM's inside is all in its compat.py, where its versions are checked."""

import ast
from pathlib import Path

import pytest

import vmm

PLUGIN = Path(vmm.__file__).parents[1] / "integrations" / "vllm"
OURS = {"_core"}  # vmm's own extension
OF_PYTHON = {"__init__", "__version__", "__getitem__"}


def private_touches(source):
    """Lines that use an underscored attribute which the file does not define, or that set an attribute of an
    object of vLLM's."""
    tree = ast.parse(source)
    nodes = list(ast.walk(tree))
    defined = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    defined |= {
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _is_self(node.value)
    }
    imported = {
        alias.asname or alias.name
        for node in nodes
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vllm")
        for alias in node.names
    }
    theirs = {
        argument.arg
        for node in nodes
        if isinstance(node, ast.FunctionDef)
        for argument in node.args.args + node.args.kwonlyargs
        if argument.annotation is not None and ast.unparse(argument.annotation) in imported
    }
    for node in nodes:
        if not isinstance(node, ast.Attribute):
            continue
        private = node.attr.startswith("_") and node.attr not in OURS | OF_PYTHON
        ours = node.attr in defined and _is_self(node.value)
        stored = isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Name)
        if (private and not ours) or (stored and node.value.id in theirs):
            yield node.lineno, ast.unparse(node)


def _is_self(node):
    return isinstance(node, ast.Name) and node.id == "self"


@pytest.mark.parametrize("file", sorted(PLUGIN.glob("*.py")), ids=lambda file: file.stem)
def test_only_compat_touches_what_is_private(file):
    found = list(private_touches(file.read_text()))
    assert bool(found) == (file.name == "compat.py"), found


def test_an_attribute_that_is_set_from_outside_is_found():
    source = "from vllm.x import Manager\ndef bind(manager: Manager):\n    manager.watermark_blocks = 1\n"
    assert list(private_touches(source)) == [(3, "manager.watermark_blocks")]
