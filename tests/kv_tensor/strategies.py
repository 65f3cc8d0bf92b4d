"""Shapes, and index expressions of every form that torch knows, as Python source."""

import math
from typing import Any

from hypothesis import strategies as st

DTYPES = ["float32", "bfloat16", "int64", "bool", "float8_e4m3fn"]
_MOST_ELEMENTS = 100_000


@st.composite
def shapes(draw: Any) -> tuple[int, ...]:
    sizes: list[int] = []
    for _ in range(draw(st.integers(1, 4))):
        room = _MOST_ELEMENTS // max(1, math.prod(sizes))
        sizes.append(draw(st.integers(1, min(70, room)) | st.sampled_from([1, 2, 3, min(64, room)])))
    return tuple(sizes)


def chance(draw: Any, of: int) -> bool:
    return draw(st.integers(0, of - 1)) == of - 1


def position(draw: Any, size: int) -> int:
    """Of an element, from either end; rarely just outside."""
    if chance(draw, 60):
        return draw(st.sampled_from([size, -size - 1]))
    return draw(st.integers(-size, size - 1)) if size else 0


def _bound(draw: Any, size: int) -> str:
    return str(draw(st.integers(-size - 2, size + 2)))


def a_slice(draw: Any, size: int) -> str:
    start = _bound(draw, size) if draw(st.booleans()) else ""
    stop = _bound(draw, size) if chance(draw, 2) else ""
    step = f":{draw(st.sampled_from([1, 2, 3, 7, -1] if chance(draw, 10) else [1, 2, 3]))}"
    return f"{start}:{stop}" + (step if chance(draw, 3) else "")


def _nested(draw: Any, size: int, shape: tuple[int, ...]) -> Any:
    if not shape:
        return position(draw, size)
    return [_nested(draw, size, shape[1:]) for _ in range(shape[0])]


def _mask(draw: Any, shape: tuple[int, ...]) -> str:
    kept = draw(st.sampled_from([0, 1, 4, 10]))
    seed = draw(st.integers(0, 3))
    return f"mask({shape}, {kept}, {seed})"


def an_integer(draw: Any, size: int) -> str:
    form = draw(st.sampled_from(["{}"] * 4 + ["np.int64({})", "torch.tensor({})", "np.array({})"]))
    if size > 2 and chance(draw, 20):
        form = draw(st.sampled_from(["torch.tensor({}.5)", "{}.5", "torch.tensor({}, dtype=torch.int16)"]))
    return form.format(position(draw, size))


def integers(draw: Any, size: int, base: tuple[int, ...]) -> str:
    """Several positions, which broadcast to ``base``."""
    shape = base[draw(st.integers(0, len(base))) :]
    shape = tuple(1 if chance(draw, 4) else part for part in shape)
    if chance(draw, 60):
        shape = (5,)
    form = draw(
        st.sampled_from(
            ["torch.tensor({}, dtype=torch.int64)"] * 4
            + ["torch.tensor({}, dtype=torch.int32)", "np.array({}, dtype=np.int64)", "{}", "{}"]
        )
    )
    if not shape:
        form = "torch.tensor({})"
    return form.format(_nested(draw, size, shape))


@st.composite
def basic_indices(draw: Any, shape: tuple[int, ...]) -> str:
    return _index(draw, shape, ["integer", "slice", "slice", "slice", "None"])


@st.composite
def advanced_indices(draw: Any, shape: tuple[int, ...]) -> str:
    kinds = [
        "integer",
        "slice",
        "slice",
        "None",
        "integers",
        "integers",
        "mask",
        "numpy mask",
        "bool",
        "list",
    ]
    return _index(draw, shape, kinds)


def indices(shape: tuple[int, ...]) -> st.SearchStrategy[str]:
    return basic_indices(shape) | advanced_indices(shape)


def _index(draw: Any, shape: tuple[int, ...], kinds: list[str]) -> str:
    """The text between the brackets."""
    addressed = draw(st.integers(0, len(shape)))
    ahead = draw(st.integers(0, addressed)) if draw(st.booleans()) else addressed
    base = draw(st.sampled_from([(3,), (2, 3), (2, 1), (1,), (0,), (2, 2, 2)]))
    ellipsis = ahead < addressed or chance(draw, 4)
    entries = _entries(draw, shape[:ahead], kinds, base)
    if ellipsis:
        entries.append("...")
        entries += _entries(draw, shape[len(shape) - addressed + ahead :], kinds, base)
    if chance(draw, 60):
        entries += ["0"] * (len(shape) + 1)  # too many
    return f"({', '.join(entries)})" if not entries else ", ".join(entries) + "," * chance(draw, 2)


def _entries(draw: Any, shape: tuple[int, ...], kinds: list[str], base: tuple[int, ...]) -> list[str]:
    out: list[str] = []
    dim = 0
    while dim < len(shape):
        kind, size = draw(st.sampled_from(kinds)), shape[dim]
        dim += 1
        if kind in {"None", "bool"}:
            dim -= 1
            out.append(
                "None" if kind == "None" else draw(st.sampled_from(["True", "False", "torch.tensor(True)"]))
            )
        elif kind == "integer":
            out.append(an_integer(draw, size))
        elif kind == "slice":
            out.append(a_slice(draw, size))
        elif kind == "integers":
            out.append(integers(draw, size, base))
        elif kind == "list":
            out.append(draw(st.sampled_from(["range(1)", "[]", "[0, -1]", "(0, -1)", "[True] + [False] * "])))
            if out[-1].endswith("* "):
                out[-1] += str(size - 1)
        else:
            # torch counts the dimensions of a numpy mask wrongly where an Ellipsis is about.
            over = 1 if kind == "numpy mask" else draw(st.integers(1, len(shape) - dim + 1))
            text = _mask(draw, shape[dim - 1 : dim - 1 + over])
            out.append(f"{text}.numpy()" if kind == "numpy mask" else text)
            dim += over - 1
    return out
