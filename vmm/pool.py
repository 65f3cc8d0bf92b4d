"""The pool: physical memory under a budget, shared by every cache and tensor of a device."""

import atexit
import functools
import itertools
import logging
import operator
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import UnionType
from typing import Any

from vmm import _core, sharing
from vmm.closing import Closing
from vmm.errors import Closed, Forked, InvalidArgument
from vmm.host_memory import available_bytes
from vmm.sharing import ExportedPage
from vmm.units import format_bytes, parse_bytes

logger = logging.getLogger("vmm")
logger.addHandler(logging.NullHandler())

_LEVELS = (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR)
_DEFAULT_FRACTION = 0.5  # of available memory: the rest is for weights, activations and everybody else

_EXIT_PATIENCE = 5.0  # seconds, for work that is still under way at exit: it may never end
_WARMED_AT_ONCE = 2**28  # bytes between two looks at Ctrl-C

_names = itertools.count()
# The CPU can touch a GPU's pages: true only of the stand-in that the tests run on (tests/cuda_standin.py).
_cuda_host_accessible = False
_open_pools: "weakref.WeakSet[Pool]" = weakref.WeakSet()


@dataclass(frozen=True)
class PoolStats:
    """A pool at one moment. Counters run from the pool's start."""

    budget_bytes: int
    created_bytes: int  #: physical memory taken from the budget: mapped or free
    peak_created_bytes: int
    free_bytes: int  #: created, but mapped nowhere
    mapped_bytes: int
    kept_bytes: int  #: mapped and needed
    reclaimable_bytes: int  #: mapped, but needed by nobody: look-ahead, and what finished caches left mapped
    reservations_leased: int
    reservations_idle: int
    retirements_waiting: int
    runs: int
    stalls: int  #: times a caller waited because the pager was not ahead
    stall_ms: float
    pages_mapped_ahead: int  #: by the pager
    pages_mapped_waiting: int  #: while a caller waited
    pages_created: int
    pages_released: int
    pages_unmapped: int
    pages_zeroed: int
    reservations_adopted: int  #: recycled whole, still mapped
    reservations_made: int
    driver_failures: int


class Pool(Closing):
    """Physical pages under a budget, with a pager thread that maps ahead of whatever grows.

    ``budget`` is the most physical memory the pool may hold: bytes, or text like ``"12GiB"``; by default
    ``VMM_BUDGET``, else half of the memory now available (machine and cgroup, or the GPU's free memory).
    ``lookahead_pages`` are kept mapped beyond the end of every growing extent. What is mapped and needed by
    nobody stays so, because it may be used again, but is given back after ``idle_seconds`` (at most twice as
    long; None: never) so that others can have the memory. ``device`` is ``"cpu"``, or a GPU: ``"cuda"``
    (torch's current device; the first where torch is not loaded), ``"cuda:1"``, or such a torch.device.

    For a GPU's memory: ``peers`` are the numbers of other CUDA devices whose kernels may read and write it
    (``cudaDeviceEnablePeerAccess`` does not reach mapped memory); opening a page costs one more grant for
    each. ``rdma`` lets network cards at it (GPUDirect RDMA). ``shareable`` lets `export` give pages to other
    processes. All of it is tried out with one page when the pool is made.

    Raises InvalidArgument for a budget that does not parse or exceeds the machine's memory, a device that is
    none of the above or not there, ``lookahead_pages`` other than a whole number from 0 to 65,535,
    ``idle_seconds`` other than None or 0.001 to 1e9, and for peers, ``rdma`` or ``shareable`` where there are
    no such devices or they cannot do it; DriverError when they cannot although they say so, there is no CUDA
    driver for a GPU, or the system has no memfd; Forked for a GPU in a child of a process that used CUDA.
    Every method is safe from any thread. After ``close`` what gives memory or changes the budget raises
    Closed; in a forked child every method raises Forked.
    """

    def __init__(
        self,
        budget: int | str | None = None,
        *,
        device: object = "cpu",
        lookahead_pages: int = 1,
        idle_seconds: float | None = 60.0,
        peers: Sequence[int] = (),
        rdma: bool = False,
        shareable: bool = False,
    ) -> None:
        self.device, ordinal = _parsed_device(device)
        if not _is_number(lookahead_pages, int) or not 0 <= lookahead_pages < 2**16:
            raise InvalidArgument(f"lookahead_pages is {lookahead_pages!r}; expected 0 to 65535")
        idle_ns = _idle_ns(idle_seconds)
        self._ordinal = ordinal
        kind = "cpu" if ordinal < 0 else self.device
        peers = sharing.checked_peers(peers, kind)
        rdma = sharing.checked_flag("rdma", rdma, kind)
        shareable = sharing.checked_flag("shareable", shareable, kind)
        # Held until the pool has its own: to make a context for each question would take long.
        context = _core.CudaContext(ordinal) if ordinal >= 0 else None
        budget_bytes = _budget_bytes(budget, context.free_bytes if context else available_bytes)
        self._core = _core.Pool(
            budget_bytes,
            name=f"vmm-{next(_names)}",
            lookahead_pages=lookahead_pages,
            idle_ns=idle_ns,
            cuda_device=ordinal,
            cuda_host_accessible=_cuda_host_accessible,
            arena_bytes=0 if ordinal < 0 else sharing.arena_bytes(budget_bytes),
            peers=peers,
            rdma=rdma,
            shareable=shareable,
        )
        sharing.warn_of_old_devices(self.device, self._core.compute_capability)
        self._runs_late = ordinal >= 0 and not _cuda_host_accessible  # torch's work there outlasts its calls
        self._watched_streams: set[int] = set()  # see stream.torch_stream
        self._streams_ended = 0  # when that was last right
        _open_pools.add(self)

    @property
    def budget_bytes(self) -> int:
        """The most physical memory this pool may hold. Lowering it gives back what nobody needs, soon.
        Raises InvalidArgument for more than what is free and what the pool holds already, unless it is less
        than before; and, when it is set, Closed and Forked."""
        return self._core.budget.limit_bytes

    @budget_bytes.setter
    def budget_bytes(self, budget: int | str) -> None:
        if self.closed:
            raise Closed("this pool is closed")
        self._core.budget.set_limit(_changed_budget_bytes(budget, self._core, self._ordinal))

    @property
    def default_page_bytes(self) -> int:
        """The page size the driver is best at: 64 KiB on the host, 2 MiB on a GPU."""
        return self._core.default_page_bytes

    @property
    def closed(self) -> bool:
        return self._core.closed

    def stats(self) -> PoolStats:
        """A snapshot of sizes and counters."""
        self._forward_log()
        counts: dict[str, Any] = self._core.stats()
        return PoolStats(stall_ms=counts.pop("stall_ns") / 1e6, **counts)

    def check(self) -> None:
        """Validates the engine's tables; raises InvariantViolation. For tests: it is slow."""
        self._core.check()

    def trim(self, wanted: int | str | None = None) -> int:
        """Gives memory that nobody needs back to the system: all of it, or at least ``wanted`` bytes if there
        are so many. Waits for work under way that may still use it. Returns the bytes given back."""
        return self._core.trim(2**62 if wanted is None else parse_bytes(wanted, "wanted"))

    def warm(self, wanted: int | str, *, page_bytes: int | None = None) -> int:
        """Creates physical memory before it is needed: afterwards ``wanted`` bytes (or text like ``"4GiB"``)
        lie free, or as much as the budget and the device have left, which is no error. New memory is what the
        first prompts wait for: on a GPU creating 2 MiB takes 14–190 µs by published figures (CUDA 12, A100)
        beside 40 for mapping it, on the host faulting in a GiB 0.4 s of the 0.5.

        Free memory serves whoever needs pages of ``page_bytes`` (default: ``default_page_bytes``), counts
        against the budget, and is given back by ``trim`` and under pressure. Rounded up to what is created as
        a whole: a page on a GPU, 1 MiB or more on the host. Returns the bytes created: 0 if so much lay free
        already. Safe from any thread, beside all other use; others run meanwhile, and Ctrl-C ends it.

        Raises InvalidArgument for sizes that do not parse, more than the budget, and page sizes the device
        does not have; DriverError where the device fails otherwise than for lack of memory."""
        count = parse_bytes(wanted, "wanted")
        if count > (budget := self.budget_bytes):
            raise InvalidArgument(
                f"wanted is {format_bytes(count)}; expected at most {format_bytes(budget)}, the budget"
            )
        page = self.default_page_bytes if page_bytes is None else parse_bytes(page_bytes, "page_bytes")
        created = 0
        while created < count and (made := self._core.warm(count, page, _WARMED_AT_ONCE)):
            created += made
        return created

    def export(self, address: int) -> ExportedPage:
        """The mapped page that holds ``address`` (a tensor's ``data_ptr()``, say), for another process, which
        imports the descriptor with ``cuMemImportFromShareableHandle``. Only of a pool made with
        ``shareable=True``. Close the descriptor when it was passed on.

        The two processes share the memory itself: neither waits for the other's kernels, so order them
        yourself. What is exported is the page, not the tensor, with whatever neighbours the tensor has there.
        An exported page never passes to another tensor or cache: when it is unmapped its memory goes back to
        the device (once nobody has it), not to the pool's free pages. But within a KVCache the next sequence
        of the slot writes to it, and so does whatever else the page's owner does: keep the tensor or the
        sequence until the other process, of which the pool knows nothing, is done.

        Raises InvalidArgument where nothing is mapped or the pool is not shareable, DriverError, Closed and
        Forked. Safe from any thread.
        """
        try:
            number = operator.index(address)
        except TypeError:
            number = -1
        if not 0 <= number < 2**64:
            raise InvalidArgument(f"address is {address!r}; expected one of a mapped page, as a number")
        page = ExportedPage(*self._core.export_page(number))
        os.set_inheritable(page.file_descriptor, False)
        return page

    def close(self) -> None:
        """Stops the pager, waits for the pool's streams and ends them, and gives back what nobody uses.
        Tensors over the pool's memory stay valid, and their memory is given back when they die. Closing twice
        does nothing, unless something was left."""
        self._forward_log()
        self._core.close()

    def __repr__(self) -> str:
        if self._core.in_child:
            return "<vmm.Pool of the parent process>"
        state = "closed" if self.closed else f"budget {format_bytes(self.budget_bytes)}"
        return f"<vmm.Pool {self.device}, {state}>"

    def _forward_log(self) -> None:
        # The pager must not need the GIL, so what it has to say waits here for the next visitor.
        for level, text in self._core.drain_log():
            logger.log(_LEVELS[level], text)

    # What integrations stand on.

    def reserve(
        self,
        *,
        page_bytes: int,
        extent_bytes: int,
        extents: int,
        longest_bytes: int = 0,
        stream: int | None = None,
    ) -> "_core.Lease":
        """Address space for ``extents`` pieces of ``extent_bytes``, recycled and still mapped if possible.
        Recycled pieces may have up to ``longest_bytes`` each: the lease's ``extent_bytes`` tells. ``stream``:
        where it will be used first, so that it need not wait for what is there now."""
        return self._core.reserve(
            page_bytes=page_bytes,
            extent_bytes=extent_bytes,
            extents=extents,
            longest_bytes=longest_bytes,
            stream=stream,
        )

    def growth(self, parts: Sequence[tuple["_core.Lease", int, int, int]]) -> "_core.Growth":
        """What grows in lockstep: (lease, first extent, extents, bytes a token) each."""
        return _core.Growth(self._core, list(parts))


_defaults: dict[str, Pool] = {}  # by device
_default_budgets: dict[str, int | str | None] = {}
_default_lock = threading.Lock()
_is_child = False  # by fork, of a process that had imported this


def configure(*, budget: int | str | None = None, device: object = "cpu") -> None:
    """Sets the budget of a device's default pool: now, if there is one, and of those to come. ``None`` is
    ``VMM_BUDGET``, else half of the available memory. Safe from any thread. Raises InvalidArgument for a
    budget as a Pool would, or a device that is none; DriverError where a GPU cannot be asked for its free
    memory; Forked for one in a child of a process that used CUDA. Then nothing has changed."""
    name, ordinal = _parsed_device(device)
    with _default_lock:
        pool = _defaults.get(name)
        if pool is not None and not pool._core.in_child and not pool.closed:
            pool._core.budget.set_limit(_changed_budget_bytes(budget, pool._core, ordinal))
        else:
            _budget_bytes(budget, functools.partial(_free_bytes, ordinal))
        _default_budgets[name] = budget


def default_pool(device: object = "cpu") -> Pool:
    """The pool that a device's caches and tensors share when none is named: see ``configure``. Made on first
    use; remade after ``close`` or a fork. Safe from any thread. Raises what making a Pool with the configured
    budget, else ``VMM_BUDGET``, does: InvalidArgument, DriverError, Forked."""
    name, _ = _parsed_device(device)
    with _default_lock:
        pool = _defaults.get(name)
        if pool is None or pool._core.in_child or pool.closed:
            pool = _defaults[name] = Pool(_default_budgets.get(name), device=name)
        return pool


def checked_pool(pool: object, device: object) -> Pool:
    """``pool``, which must be one, and on ``device`` unless that is None. Raises InvalidArgument."""
    if not isinstance(pool, Pool):
        raise InvalidArgument(f"pool is {pool!r}; expected a vmm.Pool")
    if device is not None and (name := _parsed_device(device)[0]) != pool.device:
        raise InvalidArgument(f"device is {name}; the pool is on {pool.device}")
    return pool


def open_pools() -> "list[Pool]":
    """Of this process, on every device."""
    found = (each() for each in tuple(_open_pools.data))  # type: ignore[attr-defined] # others make some
    return [pool for pool in found if pool is not None]


def pool_of_address(address: int) -> Pool | None:
    """The pool whose address it is, mapped or not."""
    for pool in open_pools():
        if not pool._core.in_child and pool._core.holds(address):
            return pool
    return None


def _parsed_device(device: object) -> tuple[str, int]:
    """The device's name, and the CUDA device's number or -1."""
    kind, _, number = str(device).partition(":")
    if kind == "cpu" and number in {"", "0"}:
        return "cpu", -1
    if kind == "cuda" and (number == "" or number.isdecimal()):
        ordinal = int(number) if number else _current_cuda_device()
        return f"cuda:{ordinal}", ordinal
    raise InvalidArgument(f"device is {str(device)!r}; expected 'cpu', 'cuda' or 'cuda:0', 'cuda:1', …")


def _current_cuda_device() -> int:
    """torch's, in this thread; the first where torch, which vmm does not import for this, is not loaded."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return 0
    try:
        return int(torch.cuda.current_device())
    except RuntimeError as error:
        if not _is_child:
            raise
        raise Forked(f"device='cuda' in a forked child: {error}") from error


def _is_number(value: object, kind: type | UnionType) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _idle_ns(idle_seconds: float | None) -> int:
    if idle_seconds is None:
        return 0
    if not _is_number(idle_seconds, int | float) or not 1e-3 <= idle_seconds <= 1e9:
        raise InvalidArgument(f"idle_seconds is {idle_seconds!r}; expected 0.001 to 1e9, or None")
    return int(idle_seconds * 1e9)


def _free_bytes(ordinal: int) -> int:
    return available_bytes() if ordinal < 0 else _core.cuda_free_bytes(ordinal)


def _changed_budget_bytes(budget: int | str | None, core: _core.Pool, ordinal: int) -> int:
    """Of a pool, which may keep what it has, though nothing is free; and may always have less."""

    def reachable_bytes() -> int:
        free = available_bytes() if ordinal < 0 else core.device_free_bytes()
        return free + core.budget.taken_bytes

    return _budget_bytes(budget, reachable_bytes, core.budget.limit_bytes)


def _budget_bytes(budget: int | str | None, available_now: Callable[[], int], always: int = 0) -> int:
    """``always``: so much is never too much."""
    argument = "budget"
    if budget is None:
        budget = os.environ.get("VMM_BUDGET")
        argument = "VMM_BUDGET"
    if budget is None:
        return max(2**20, int(available_now() * _DEFAULT_FRACTION))
    count = parse_bytes(budget, argument)
    if count > always and count > (available := available_now()):
        raise InvalidArgument(
            f"{argument} is {format_bytes(count)}; expected at most {format_bytes(available)},"
            " the memory available now"
        )
    return count


@atexit.register
def _close_all() -> None:
    """A pool that cannot be closed, or not in time, must hold up neither the others nor the exit: nor must
    Ctrl-C meanwhile, or that there is nowhere to say so."""
    deadline = time.monotonic() + _EXIT_PATIENCE
    for pool in list(_open_pools):
        try:
            unsaid = _closed_at_exit(pool, max(0.0, deadline - time.monotonic()))
        except BaseException as error:
            unsaid = [str(error) or type(error).__name__]
        with suppress(BaseException):
            for text in unsaid:
                print(f"vmm: closing {pool.device} at exit: {text}", file=sys.stderr or sys.__stderr__)


def _closed_at_exit(pool: Pool, patience_s: float) -> list[str]:
    """What is left to be said of it."""
    if pool._core.in_child:
        return []
    pool._forward_log()
    pool._core.close(patience_s=patience_s)
    return [text for level, text in pool._core.drain_log() if _LEVELS[level] >= logging.WARNING]


def _after_fork() -> None:
    global _default_lock, _is_child
    _default_lock, _is_child = threading.Lock(), True


os.register_at_fork(after_in_child=_after_fork)
