"""A process that has imported torch and forks for each property: run() of isolated.py asks it.

It takes a line of JSON on stdin, (module, function, argument as code, file), and answers with the status of
the child that called the function, whose output is in the file.
"""

import importlib
import json
import os
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any, NoReturn

sys.path[:0] = [str(Path(__file__).parent)]


def serve() -> None:
    warnings.simplefilter("ignore")
    import torch

    torch.set_num_threads(1)  # none may run when it forks
    for module in ("hypothesis", "vmm.kv_tensor"):
        importlib.import_module(module)
    _import_lazily(torch)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            _call(*json.loads(line))
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        print(status, flush=True)


def _import_lazily(torch: Any) -> None:
    """What torch imports on first use, once for all children."""
    x = torch.ones(2)
    for transform in (torch.vmap, torch.func.grad, torch.func.functionalize):
        transform(lambda x: x.sum() + 0)(x)
    torch.func.jvp(lambda x: x * 2, (x,), (x,))
    torch.library.custom_op("vmm_test::nothing", lambda x: None, mutates_args=(), schema="(Tensor x) -> ()")(
        x
    )


def _call(module: str, function: str, argument: str, file: str) -> NoReturn:
    status = 1
    try:
        out = os.open(file, os.O_WRONLY)
        for number in (1, 2):
            os.dup2(out, number)
        getattr(importlib.import_module(module), function)(*eval(f"({argument},)" if argument else "()"))
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    serve()
