"""Who may know whom (DESIGN §3): the directions of includes and imports."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

MAY_INCLUDE = {
    "base": {"base"},
    "driver": {"driver", "base"},
    "memory": {"memory", "policy", "driver", "base"},  # its reclaiming asks the victim policy
    "policy": {"policy", "base"},
    "tier": {"tier", "driver", "base"},
    "engine": {"engine", "policy", "tier", "memory", "driver", "base"},
    "simulate": {"simulate", "engine", "policy", "tier", "memory", "driver", "base"},
    "bindings": {"bindings", "simulate", "engine", "policy", "tier", "memory", "driver", "base"},
}
# Headers that only one layer may name: the platform's virtual memory, and Python.
BELONGS_TO = {
    r"sys/mman\.h|cuda.*\.h": "driver",
    r"Python\.h|pybind11/.*": "bindings",
    r"torch/.*|ATen/.*|c10/.*": "nobody",
}


def includes(path):
    return re.findall(r'^\s*#include\s+["<]([^">]+)[">]', path.read_text(), re.MULTILINE)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "csrc").rglob("*.[ch]*")), ids=lambda p: str(p.relative_to(ROOT))
)
def test_includes_point_down(path):
    layer = path.relative_to(ROOT / "csrc").parts[0]
    for header in includes(path):
        target = header.split("/")[0]
        if target in MAY_INCLUDE and "/" in header:  # <memory> is the standard's
            assert target in MAY_INCLUDE[layer], f"{layer} includes {header}"
        for pattern, owner in BELONGS_TO.items():
            assert owner == layer or not re.fullmatch(pattern, header), f"{layer} includes {header}"


def imports(path):
    tree = ast.parse(path.read_text())
    tree.body = [node for node in tree.body if not ast.unparse(node).startswith("if TYPE_CHECKING")]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            yield node.module


def python_files(folder):
    return sorted((ROOT / folder).rglob("*.py"))


# What only users of torch use. That importing vmm imports no torch is tested in test_process.py.
KNOWS_TORCH = ("kv_cache/", "kv_tensor/", "dlpack.py", "recording.py", "stream.py", "errors.py", "range.py")


@pytest.mark.parametrize("path", python_files("vmm"), ids=lambda p: p.name)
def test_the_package_does_not_lean_on_what_stands_on_it(path):
    knows_torch = str(path.relative_to(ROOT / "vmm")).startswith(KNOWS_TORCH)
    heavy = {"torch", "transformers", "vllm"} - ({"torch"} if knows_torch else set())
    for name in imports(path):
        assert not name.startswith(("vmm.integrations", "vmm.benchmarks")), f"{path.name} imports {name}"
        assert name.split(".")[0] not in heavy, f"{path.name} imports {name}"


@pytest.mark.parametrize("path", python_files("integrations"), ids=lambda p: p.name)
def test_integrations_do_not_lean_on_benchmarks(path):
    assert not any(name.startswith("vmm.benchmarks") for name in imports(path))


def test_every_layer_is_known():
    assert {path.name for path in (ROOT / "csrc").iterdir() if path.is_dir()} == set(MAY_INCLUDE)
