"""Programs of views, reads and writes on a KVTensor, against a plain tensor."""

import copy
import io
import operator
import pickle
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import example as hypothesis_example
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from isolated import Tried, search
from property_indexing import NAMES, SETTINGS, bounded_dims, entries_of, is_basic
from steps import Step, steps
from strategies import DTYPES, shapes
from twin import Twin, assert_copies, assert_no_larger, assert_same, bits, outcome, saved_and_loaded

import vmm

NAMES = {
    **NAMES,
    **{"F": F, "copy": copy, "io": io, "operator": operator, "pickle": pickle},
    "saved_and_loaded": saved_and_loaded,
    "key": lambda text: entries_of(text)[0] if len(entries_of(text)) == 1 else tuple(entries_of(text)),
}


@dataclass
class Program:
    shape: tuple[int, ...]
    dtype: str
    grow_dim: int
    fill: int
    steps: list[Step]


@st.composite
def programs(draw: Any) -> Program:
    shape = draw(shapes())
    grow_dim = draw(st.integers(-len(shape), len(shape) - 1))
    at_hand = [torch.zeros(shape)]  # as the program goes: what has which shape
    made: list[Step] = []
    for _ in range(draw(st.integers(1, 8))):
        source = draw(st.sampled_from([0, len(at_hand) - 1]) | st.integers(0, len(at_hand) - 1))
        step = draw(st.composite(steps)(at_hand[source], source))
        made.append(step)
        if step.kind == "view":
            view, error = outcome(lambda step=step: run(step.code, at_hand[step.source]))
            if not error and shares(view, at_hand[0]):
                at_hand.append(view)
    return Program(
        shape, draw(st.sampled_from(DTYPES)), grow_dim, draw(st.integers(0, shape[grow_dim])), made
    )


def run(code: str, x: Any) -> Any:
    return eval(code, NAMES, {"x": x})


def shares(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.untyped_storage()._cdata == other.untyped_storage()._cdata


@dataclass
class Node:
    kv: Any
    plain: torch.Tensor
    where: torch.Tensor

    @property
    def is_kv(self) -> bool:
        return isinstance(self.kv, vmm.KVTensor)


def regression(*codes: str, dtype: str = "float32", shape: tuple[int, int, int] = (2, 700, 3)) -> Program:
    """Each step works on the KVTensor itself, or on the first view."""
    steps_of = [Step(0, "view", "x.transpose(0, 2)")]
    for code in codes:
        source, kind, rest, touched = code.split("|")
        steps_of.append(Step(int(source), kind, rest, touched or "x"))
    return Program(shape, dtype, 1, 5, steps_of)


SCATTERED = "x.gather(1, torch.tensor([[[600]]]))"
REGRESSIONS = [
    regression("1|view|x.contiguous()|"),
    regression("1|view|x.reshape(-1)|"),
    regression("1|write|x[0].zero_()|x[:0]"),
    regression("1|view|x[0]|", "2|write|x.zero_()|x[:0]"),
    regression("1|read|copy.deepcopy(x)|x[:0]", shape=(5, 5, 5)),
    regression("1|read|saved_and_loaded(x, True)|x[:0]", shape=(5, 5, 5)),
    regression("0|write|x.copy_(x)|x[:, :5]"),
    regression("0|write|F.relu(x, inplace=True)|"),
    *[
        regression(f"0|write|x.scatter_(1, torch.tensor([[[600]]]), {value})|{SCATTERED}", dtype="bfloat16")
        for value in ("1", "torch.ones(1, 1, 1, dtype=x.dtype)")
    ],
    regression("0|view|x.view(1400, 3)|", "2|write|x.__setitem__(slice(0, 1400, 800), 1)|x[0:1400:800]"),
]


class Machine:
    def __init__(self, program: Program) -> None:
        self.twin = Twin(program.shape, getattr(torch, program.dtype), program.grow_dim)
        if program.fill:
            self.twin.fill(0, program.fill)
        self.nodes = [Node(self.twin.kv, self.twin.plain, self.twin.where)]

    def step(self, step: Step) -> bool:
        """False after a write that failed: torch may have done half of it."""
        node = self.nodes[step.source]
        before = self.twin.plain.clone()
        expected, error = outcome(lambda: run(step.code, node.plain))
        got, raised = outcome(lambda: run(step.code, node.kv))
        # torch cannot copy or pickle every dtype; a KVTensor can.
        assert raised == error or (raised is None and error is AttributeError), (got, expected)
        if error:
            self.twin.exact = False
            self.twin.touched(node.where)
            if step.kind == "write":
                now = self.twin.kv.clone()
                assert any(torch.equal(bits(now), bits(either)) for either in (before, self.twin.plain))
                return False
        elif step.kind == "view" and shares(expected, self.twin.plain):
            self.viewed(node, step, got, expected)
        elif step.kind == "write":
            assert (got is node.kv) == (expected is node.plain)
            self.wrote(node, step)
        else:
            self.read(node, step, got, expected)
        self.twin.check()
        return True

    def viewed(self, node: Node, step: Step, got: Any, expected: torch.Tensor) -> None:
        made = Node(got, expected, run(step.code, node.where))
        assert (got.shape, got.stride()) == (expected.shape, expected.stride())
        self.nodes.append(made)
        if not node.is_kv:
            return
        if plainness(self.twin, step, node.where) is not None:
            assert made.is_kv != plainness(self.twin, step, node.where), step
        if not made.is_kv:
            assert type(got) is torch.Tensor
            self.twin.touched(made.where)
            assert_no_larger(got, made.where)
            assert_same(got, expected)
            assert_copies(got, expected)

    def read(self, node: Node, step: Step, got: Any, expected: Any) -> None:
        if node.is_kv:
            self.twin.exact &= step.exact
            self.twin.touched(run(step.touched, node.where))
        assert (got is node.kv) == (expected is node.plain)
        if got is not node.kv:
            assert_same(got, expected)

    def wrote(self, node: Node, step: Step) -> None:
        if not node.is_kv:
            return
        if step.code == "x.zero_()":
            return
        if not step.exact or (step.sums and node.plain.dtype == torch.bfloat16):
            self.twin.touched(node.where)
            self.twin.exact &= step.exact
        self.twin.wrote(run(step.touched, node.where))


def plainness(twin: Twin, step: Step, where: torch.Tensor) -> bool | None:
    """Whether the view is to be a plain tensor; None where both will do."""
    code = step.code
    if code.startswith("x[") and not code.startswith("x[None].expand"):
        entries = entries_of(code[2:-1])
        dims = bounded_dims(entries, where.dim()) if is_basic(entries) else []
    elif "narrow(" in code or "select(" in code:
        names = ["dim", "start", "length"]
        asked: list[int] = []

        class Asked(torch.Tensor):
            def narrow(self, dim: int, start: int, length: int) -> Any:
                asked.append(dim)

            def select(self, dim: int, index: int) -> Any:
                asked.append(dim)

            @classmethod
            def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                asked.append((kwargs or {}).get(names[0], args[1] if len(args) > 1 else None))

        run(code, torch.zeros(0).as_subclass(Asked))
        dims = [asked[0] % where.dim()]
    else:
        return False
    if where is twin.where:
        return twin.grow_dim in dims
    answers = [twin.walks_tokens(where, dim) for dim in dims]
    return True if True in answers else None if None in answers else False


def check(program: Program) -> None:
    machine = Machine(program)
    if not all(machine.step(step) for step in program.steps):
        return
    twin = machine.twin
    for node in machine.nodes:
        if not node.is_kv:
            assert_same(node.kv, node.plain)
            twin.check()
    twin.check_contents()
    for node in machine.nodes:
        assert_same(node.kv, node.plain)


def operations(examples: int) -> None:
    def look(tried: Tried, number: int) -> None:
        @seed(number)
        @settings(SETTINGS, max_examples=examples)
        @given(programs())
        def each(program: Program) -> None:
            tried(check, program)

        for program in REGRESSIONS:
            each = hypothesis_example(program)(each)
        each()

    search(look)
