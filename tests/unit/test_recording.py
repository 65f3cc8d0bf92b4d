"""torch.Tensor.record_stream: torch's own until a pool on a GPU has a tensor, and for others after."""

from child import run_child


def child(code):
    done = run_child(code, timeout=200)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


ON_THE_HOST = """
import torch
of_torch = torch.Tensor.record_stream
import vmm, vmm.integrations.transformers
from vmm import KVCache, KVTensor

with vmm.Pool("16MiB", device="cpu") as pool:
    t = KVTensor(1, 1000, 16, pool=pool)
    t[:, :9].sum()
    cache = KVCache(1, 2, 64, torch.float32, max_tokens=64, max_sequences=1, pool=pool)
    cache.kv(0)
    cache.close()
    assert torch.Tensor.record_stream is of_torch
    assert "record_stream" not in vars(torch.Tensor)
"""

# What there is to see of the method, as text.
TRANSPARENT = """
import inspect, pickle, threading, warnings
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import vmm
from vmm import recording

warnings.simplefilter("error")
torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1))  # imports
seen = []


class Logged(torch.Tensor):
    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        seen.append((func.__name__, inspect.getdoc(func), len(args), sorted(kwargs or {})))
        return super().__torch_function__(func, types, args, kwargs)


class Dispatched(torch.Tensor):
    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        seen.append((str(func), len(args)))


class Mode(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        seen.append(("mode", func.__name__))
        return func(*args, **(kwargs or {}))


class Below(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        seen.append(("below", str(func)))


def within(mode, work):
    with mode:
        return work()


def compiled(work, **options):
    torch._dynamo.reset()
    return torch.compile(work, backend="eager", **options)


def method():
    return torch.Tensor.record_stream


x, s = torch.ones(3), torch.Stream(device="cpu")
fake = FakeTensorMode()
with fake:
    f = torch.ones(3)
PROBES = {
    "a stream": lambda: x.record_stream(s),
    "by keyword": lambda: x.record_stream(s=s),
    "no stream": lambda: x.record_stream("no stream"),
    "nothing": lambda: x.record_stream(),
    "too much": lambda: x.record_stream(s, 1),
    "twice": lambda: x.record_stream(s, s=s),
    "another keyword": lambda: x.record_stream(stream=s),
    "no tensor": lambda: method()(1, s),
    "no argument": lambda: method()(),
    "by the class": lambda: method()(x, s),
    "a parameter": lambda: torch.nn.Parameter(x).record_stream(s),
    "meta": lambda: torch.ones(3, device="meta").record_stream(s),
    "sparse": lambda: torch.eye(3).to_sparse().record_stream(s),
    "empty": lambda: x[:0].record_stream(s),
    "fake": lambda: f.record_stream(s),
    "a fake mode": lambda: within(fake, lambda: f.record_stream(s)),
    "a subclass": lambda: x.as_subclass(Logged).record_stream(s),
    "a subclass by keyword": lambda: x.as_subclass(Logged).record_stream(s=s),
    "a wrapper": lambda: Dispatched(x).record_stream(s),
    "a mode": lambda: within(Mode(), lambda: x.record_stream(s)),
    "a dispatch mode": lambda: within(Below(), lambda: x.record_stream(s)),
    "vmap": lambda: torch.vmap(lambda row: (row.record_stream(s), row)[1])(torch.ones(2, 3)),
    "compiled": lambda: compiled(lambda x: x.record_stream(s))(x),
    "compiled whole": lambda: compiled(lambda x: (x.record_stream("no"), x + 1)[1], fullgraph=True)(x),
    "signature": lambda: inspect.signature(method()),
    "documentation": lambda: inspect.getdoc(method()),
    "name": lambda: method().__name__,
    "routine": lambda: inspect.isroutine(method()),
    "the class": lambda: pickle.loads(pickle.dumps(torch.Tensor)) is torch.Tensor,
    "pickled": lambda: pickle.loads(pickle.dumps(method())) is method(),
    "a tensor": lambda: pickle.loads(pickle.dumps(x)),
}


def probed():
    told = {}
    for name, probe in PROBES.items():
        seen.clear()
        try:
            said = repr(probe())
        except Exception as error:
            said = f"{type(error).__name__}: {error}".split("Exception raised from")[0].splitlines()[0]
        told[name] = said, list(seen)
    return told


with vmm.Pool("16MiB", device="cpu") as pool:
    t = vmm.KVTensor(1, 1000, 16, pool=pool)
    before = probed()
    threads = [threading.Thread(target=recording.install) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ours = torch.Tensor.record_stream
    recording.install()
    assert torch.Tensor.record_stream is ours and ours is not torch._C.TensorBase.record_stream
    assert ours.__wrapped__ is torch._C.TensorBase.record_stream  # not of one of ours
    after = probed()
    for name in before:
        assert before[name] == after[name], (name, before[name], after[name])
    # Over our memory: as those of a subclass and a mode, and then ours.
    watched = []
    recording.pool_of_address = lambda address: FakePool if address == there else None

    class FakePool:
        class _core:
            watch = watched.append

    piece = t[:, :3]
    there = piece.data_ptr()
    logged = piece.detach().as_subclass(Logged)
    for tensor in (piece, piece.transpose(0, 1), logged, torch.nn.Parameter(piece)):
        tensor.record_stream(7)
        tensor.record_stream(s=8)
    assert watched == [7, 8] * 4, watched
    seen.clear()
    within(Mode(), lambda: piece.record_stream(9))
    assert (seen, watched.pop()) == ([("mode", "record_stream")], 9)
"""


def test_nothing_is_replaced_on_the_host():
    child(ON_THE_HOST)


def test_other_tensors_notice_nothing():
    child(TRANSPARENT)
