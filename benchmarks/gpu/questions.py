"""Items of the GPU script: questions that the driver or a kernel answers at once. They share a process until
one of them ends its context: the next one begins in a fresh process."""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import Any

from conformance_bench import Bench
from cuda_calls import Cuda

# Modules with QUESTIONS: by name, functions of a Bench that yield (what, answer), or return it.
MODULES = ("probe_graphs", "probe_over_read", "probe_unmapped", "probe_refusals", "probe_captures")


def items() -> dict[str, Callable[[], Any]]:
    found: dict[str, Callable[[], Any]] = {}
    for module in MODULES:
        try:
            questions = importlib.import_module(f"benchmarks.gpu.{module}").QUESTIONS
        except Exception as error:  # a mistake there: it costs that module's questions only
            found[module] = partial(_raise, error)
        else:
            found |= {name: partial(answers, question) for name, question in questions.items()}
    return found


def _raise(error: Exception) -> None:
    raise error


def answers(question: Callable[[Bench], Any]) -> Generator[tuple[str, Any], None, dict[str, bool]]:
    b = Bench(Cuda(ctypes.CDLL("libcuda.so.1")))
    try:
        answer = question(b)
        if isinstance(answer, Iterator):
            yield from answer
        else:
            yield "answer", answer
    except Exception as error:
        if isinstance(error, AssertionError) and type(error) is not AssertionError:
            raise  # WrongData, Mismatch
        yield "not answered", f"{type(error).__name__}: {error}"[:300]
    health = b.cuda.cuCtxSynchronize()
    if health:
        from benchmarks.gpu.probe_what import named

        yield "the context then", named(b.cuda, health)
    return {"dirty": bool(health)}
