"""fork and exit, each in a child of its own."""

from textwrap import dedent

from child import run_child

IMPORT = """
import copy, gc, os, pickle, signal, sys, threading, time, torch, vmm
torch.set_num_threads(1)
"""
MAKE = """
pool = vmm.Pool("32MiB")
t = vmm.KVTensor(2, 100_000, 16, pool=pool, page_bytes=4096)
t.append(torch.ones(2, 100, 16))
"""


def run(code, **options):
    return run_child(IMPORT + MAKE + dedent(code), **options)


USES = """[
    lambda: t[:, :5], lambda: t[0], lambda: t[torch.tensor([0])], lambda: t.sum(), lambda: t + 1,
    lambda: t.append(torch.ones(2, 1, 16)), lambda: t.__setitem__((0, 0), 1.0), lambda: t.reserve(10),
    lambda: t.__setitem__(torch.tensor([0]), 1.0), lambda: t.truncate(1), lambda: t.release(0, 1),
    lambda: t.release(0, 1, stream=stream), lambda: t.release(0, 1, stream=0), lambda: t.close(),
    lambda: t.mapped_bytes, lambda: t.zero_(), lambda: t.add_(1), lambda: t.clone(), lambda: t.half(),
    lambda: t.view(-1), lambda: t.copy_(t), lambda: t.copy_(torch.ones(())), lambda: torch.cat([t, t]),
    lambda: pickle.dumps(t), lambda: copy.deepcopy(t), lambda: torch.save(t, os.devnull), lambda: list(t),
    lambda: t.index_copy_(1, torch.tensor([0]), torch.ones(2, 1, 16)), lambda: vmm.Stream(pool),
    lambda: stream.synchronize(), lambda: vmm.KVTensor(2, 10, pool=pool),
    lambda: torch.ones(1).copy_(t[0, 0, 0]), lambda: t.as_subclass(torch.Tensor),
    lambda: torch.add(1, 1, out=t),
]"""


IN_THE_CHILD = f"""
uses, refused = {USES}, 0
for i, use in enumerate(uses):
    try:
        use()
    except vmm.Forked as error:
        refused += "before fork()" in str(error)
    else:
        print("accepted", i, flush=True)
repr(t), t.shape, t.dtype, t.length, t.data_ptr()
fresh = vmm.KVTensor(2, 1000, 16)
fresh.append(torch.ones(2, 10, 16))
refused += int(fresh[:, :10].sum()) - 320
del t, view, pool, stream
gc.collect()
sys.exit(len(uses) - refused)
"""


def test_a_forked_child_is_told_and_harms_nobody():
    """The second time while the tensor's lock is held and copies are under way."""
    result = run(f"""
        stream, view = vmm.Stream(pool), t[:, :50]
        big = vmm.KVTensor(1, 2**23, pool=pool)
        big.reserve(2**22)
        def hold():
            with t._memory.lock:
                time.sleep(0.5)
        for at_work in (False, True):
            if at_work:
                for _ in range(20):
                    stream.copy(big[0, 2**21:2**22], big[0, :2**21])
                threading.Thread(target=hold).start()
                time.sleep(0.05)
            child = os.fork()
            if child == 0:
                signal.alarm(120)
                exec({IN_THE_CHILD!r})
            _, status = os.waitpid(child, 0)
            print(os.waitstatus_to_exitcode(status))
        t.append(torch.full((2, 5000, 16), 2.0))
        assert view.eq(1).all() and t[:, 100:5100].eq(2).all()
        stream.synchronize()
        pool.check()
    """)
    assert (result.returncode, result.stdout) == (0, "0\n0\n"), result.stdout + result.stderr


ENDINGS = {
    "nothing but a tensor": "pass",
    "views and slices": "keep = [t[:, :50], t.transpose(0, 1), t[0, :3].detach()]",
    "in a module": "vmm.keep = [t, t[:, :9], pool]; del t, pool",
    "a stream": "stream = vmm.Stream(pool)",
    "a stream in a module": "vmm.keep = vmm.Stream(pool)",
    "copies under way": """
big = vmm.KVTensor(1, 2**22, pool=pool)
big.reserve(2**22)
stream = vmm.Stream(pool)
for _ in range(10):
    stream.copy(big[0, 2**21:], big[0, :2**21])
big.truncate(0, stream=stream)
""",
    "threads that append": """
def work():
    try:
        while True:
            t.append(torch.ones(2, 10, 16))
            if t.length > 3000:
                t.truncate(0)
    except vmm.Closed:  # the pool, by an exit hook of ours
        pass
for _ in range(3):
    threading.Thread(target=work, daemon=True).start()
time.sleep(0.1)
""",
    "an exception": "raise ZeroDivisionError",
    "gradients": "t.requires_grad_(); keep = (t[:, :3] ** 2).sum()",
    "a garbage cycle": "ring = [t, t[:, :4]]; ring.append(ring); gc.disable(); del t",
    "an exit hook": "import atexit; atexit.register(lambda: t.append(torch.ones(2, 3, 16)))",
    "a late destructor": """
class Late:
    def __init__(self, *things): self.things = things
    def __del__(self): self.things[0].sum()
vmm.keep = Late(t[:, :5])
""",
}


def test_every_exit_is_clean(tmp_path):
    """Each in a fork of one process that has imported torch, which takes longer than all of them."""
    result = run_child(
        IMPORT
        + dedent(f"""
        children = {{}}
        for name, code in {ENDINGS!r}.items():
            child = os.fork()
            if child == 0:
                os.dup2(os.open({str(tmp_path)!r} + "/" + name, os.O_CREAT | os.O_WRONLY), 2)
                signal.alarm(120)
                break
            children[name] = child
        else:
            code = ""
            for name, child in children.items():
                print(name, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), sep=": ")
        if code:
            exec({MAKE!r} + code)
        """)
    )
    expected = dict.fromkeys(ENDINGS, "0") | {"an exception": "1"}
    assert dict(line.split(": ") for line in result.stdout.splitlines()) == expected, result.stderr
    for name in ENDINGS:
        said = (tmp_path / name).read_text()
        assert ("ZeroDivisionError" in said) if name == "an exception" else not said


def test_exit_with_a_destructor_that_closes():
    result = run_child("""
        import sys, vmm
        class Late:
            def __init__(self): self.pool = vmm.Pool("1MiB")
            def __del__(self): self.pool.trim()
        sys.keep = Late()
        """, timeout=3)  # fmt: skip
    assert result.returncode == 0
