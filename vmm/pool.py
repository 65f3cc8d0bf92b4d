"""The pool: physical memory under a budget, shared by every cache and tensor of a device."""

from __future__ import annotations

import itertools
import logging
import operator
import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

from vmm import _core, devices, shares, sharing
from vmm.arguments import checked_number, is_number
from vmm.budgets import changed_budget_bytes, new_budget_bytes
from vmm.closing import Closing
from vmm.errors import Closed, InvalidArgument
from vmm.open_pools import remember
from vmm.pool_stats import PoolStats
from vmm.range import Range
from vmm.sharing import ExportedPage
from vmm.tiers import checked_for_tier, checked_host, checked_nvme, tier_stats
from vmm.units import format_bytes, parse_bytes

if TYPE_CHECKING:
    from vmm.tenant import Tenant

logger = logging.getLogger("vmm")
logger.addHandler(logging.NullHandler())

_LEVELS = (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR)
_WARMED_AT_ONCE = 2**28  # bytes between two looks at Ctrl-C
_AWAITED_AT_ONCE_S = 0.2  # the same

_names = itertools.count()


class Pool(Closing):
    """Physical pages under a budget, with a pager thread that maps ahead of whatever grows.

    ``budget`` is the most physical memory the pool may hold: bytes, or text like ``"12GiB"``. The default is
    ``VMM_BUDGET``, or else half of the memory now available (of the machine and its cgroup, or of the GPU).
    The pager keeps ``lookahead_pages`` mapped beyond the end of every growing extent. Pages that nobody needs
    stay mapped, because somebody may use them again; after ``idle_seconds`` (at most twice as long; None:
    never) the pool gives them back, so that others can have the memory. ``device`` is ``"cpu"``, or a GPU:
    ``"cuda"`` (torch's current device, or the first where torch is not loaded), ``"cuda:1"``, or such a
    torch.device.

    Three options are for a GPU's memory. ``peers`` are the numbers of other CUDA devices whose kernels may
    read and write it (``cudaDeviceEnablePeerAccess`` does not reach mapped memory); opening a page costs one
    more grant for each of them. ``rdma`` lets network cards access it (GPUDirect RDMA). ``shareable`` lets
    `export` give pages to other processes. The pool tries all of this with one page when it is made.

    ``share`` names a budget that processes have together: the largest of theirs. ``budget`` is then the most
    that this process may have of it, and ``minimum`` what it is promised. Whoever wants more asks the lowest
    ``priority`` first, then whoever has most, for what they do not need, or may no longer use: then ``stats``
    show pressure, new memory raises OutOfPages, and the engine over this pool must end or preempt something.
    A minimum that others still use when this process joins comes as soon as their work gives it up; nothing
    is torn away from running work. A process that dies loses all within a second. Pools of one process that
    name the same share have one part of it, with the same three figures. docs/sharing-a-device.md has the
    rules.

    ``host`` and ``nvme`` are tiers below the device, for sequences that are parked (`Sequence.park`) and for
    what closed ones leave to be found (`Sequence.commit`): so many bytes of the host's memory, and a
    directory on a disk with the bytes of a file there (``"/mnt/nvme/vmm:500GiB"``). Where memory is short,
    idle sequences are copied there, the host's memory first, in the order that the policy ``eviction`` says
    (``vmm bench policies`` compares them); with ``write_through`` they are copied as soon as they are idle.
    Every copy is checked before it is used, but for what a GPU copies to the host's memory and back: the CPU
    does not see that, unless ``verify_host`` has it look. docs/tiers.md has the rules.

    Making a pool raises InvalidArgument for a budget that does not parse or exceeds the machine's memory, for
    a device that is none of the above or not there, for ``lookahead_pages`` other than a whole number from 0
    to 65,535, for ``idle_seconds`` other than None or 0.001 to 1e9, and for peers, ``rdma`` or ``shareable``
    where there are no such devices or they say that they cannot do it. Of a share it refuses a name other
    than 1 to 64 letters, digits, dots, ``_`` or ``-``, a ``minimum`` of more than the budget or, with those
    of the share's other processes, than the largest budget, a ``priority`` other than −1,000 to 1,000, and a
    share that is full (64 processes), damaged, or another version's or user's. It raises DriverError where
    devices cannot do what they say they can, where a GPU has no CUDA driver or the system no memfd, and where
    the share's file cannot be made or written; and Forked for a GPU in a child of a process that used CUDA.
    Every method is safe from any thread. After ``close``, methods that give memory or change the budget raise
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
        share: str | None = None,
        minimum: int | str = 0,
        priority: int = 0,
        host: int | str | None = None,
        nvme: str | None = None,
        eviction: str = "predictive",
        write_through: bool = False,
        verify_host: bool = False,
    ) -> None:
        name, ordinal = devices.parsed_device(device)
        checked_number("lookahead_pages", lookahead_pages, 0, 2**16 - 1)
        idle_ns = _idle_ns(idle_seconds)
        peers = sharing.checked_peers(peers, name)
        rdma = sharing.checked_flag("rdma", rdma, name)
        shareable = sharing.checked_flag("shareable", shareable, name)
        self._share: str | None
        self._share, minimum_bytes = shares.checked_terms(share, minimum, priority)
        host_tier_bytes = checked_host(host)
        tier_directory, file_tier_bytes = checked_nvme(nvme)
        tier_bytes = host_tier_bytes + file_tier_bytes
        self._write_through = checked_for_tier("write_through", write_through, tier_bytes)
        # Making a context for each question would take long, so this one is held until the pool has its own.
        context = _core.CudaContext(ordinal) if ordinal >= 0 else None
        budget_bytes = new_budget_bytes(budget, context, shares.bytes_of_others(self._share))
        part = None
        if self._share is not None:
            part = shares.joined(self._share, budget_bytes, minimum_bytes, priority)
        core = _core.Pool(
            budget_bytes,
            shared_budget=part,  # from here on it leaves the share, also when this fails
            name=f"vmm-{next(_names)}",
            lookahead_pages=lookahead_pages,
            idle_ns=idle_ns,
            cuda_device=ordinal,
            cuda_host_accessible=devices.cuda_host_accessible,
            arena_bytes=0 if ordinal < 0 else sharing.arena_bytes(budget_bytes),
            peers=peers,
            rdma=rdma,
            shareable=shareable,
            host_tier_bytes=host_tier_bytes,
            tier_directory=tier_directory,
            file_tier_bytes=file_tier_bytes,
            eviction=eviction,
            write_through=self._write_through,
            verify_host=checked_for_tier("verify_host", verify_host, host_tier_bytes),
        )
        sharing.warn_of_old_devices(name, core.compute_capability)
        self._begin(core, name, ordinal)
        remember(self)

    @classmethod
    def _over(cls, core: _core.Pool) -> Self:
        """A pool whose core the caller has made, for tensors that torch takes for the CPU's. The caller
        closes it: it is not among the process's open pools."""
        pool = cls.__new__(cls)
        pool._share = None
        pool._write_through = False
        pool._begin(core, "cpu", -1)
        return pool

    def _begin(self, core: _core.Pool, device: str, ordinal: int) -> None:
        self._core = core
        self.device, self._ordinal = device, ordinal
        # torch's work on a GPU outlasts the calls that start it.
        self._runs_late = ordinal >= 0 and not devices.cuda_host_accessible
        self._watched_streams: set[int] = set()  # see stream.torch_stream
        self._streams_ended = 0  # what the core said when _watched_streams was last right

    @property
    def budget_bytes(self) -> int:
        """The most physical memory this pool may hold; with a share, all pools of this process together. When
        it is lowered, the pool soon gives back what nobody needs. Setting it raises InvalidArgument for more
        than what is free and what the pool (and others of its share) hold already, unless that is less than
        before, and for less than the minimum or what tenants are guaranteed; DriverError where the share's
        file fails; and Closed and Forked."""
        return self._core.budget.limit_bytes

    @budget_bytes.setter
    def budget_bytes(self, budget: int | str) -> None:
        if self.closed:
            raise Closed("this pool is closed")
        of_others = shares.bytes_of_others(self._share)
        self._core.budget.set_limit(changed_budget_bytes(budget, self._core, self._ordinal, of_others))

    @property
    def pressure_bytes(self) -> int:
        """How much of what this process's pools hold others of the share ask for now. The pool gives up what
        it does not need by itself; the rest only its engine can. Without a share it is how far the budget was
        lowered below what is held. Raises Forked."""
        return self._core.pressure_bytes()

    def await_pressure(self, timeout_s: float) -> int:
        """Waits until others of the share ask for something that this process's pools hold; returns at once
        while they do. For a thread of an engine that shrinks by itself. Returns the bytes: 0 when the time is
        over or the pool was closed. Raises InvalidArgument for a pool without a share or a ``timeout_s`` that
        is no number from 0 on, and Forked. Safe from any thread, beside all other use; Ctrl-C ends it."""
        if not is_number(timeout_s) or not timeout_s >= 0:
            raise InvalidArgument(f"timeout_s is {timeout_s!r}; expected seconds, 0 or more")
        if self._share is None:
            raise InvalidArgument(
                "await_pressure: this pool has no share, so nobody else asks for its memory"
            )
        until = time.monotonic() + timeout_s
        while not self.closed:
            left = until - time.monotonic()
            asked = self._core.await_pressure(max(0.0, min(left, _AWAITED_AT_ONCE_S)))
            if asked or left <= 0:
                return asked
        return 0

    @property
    def default_page_bytes(self) -> int:
        """The page size the driver is best at: 64 KiB on the host, 2 MiB on a GPU."""
        return self._core.default_page_bytes

    @property
    def closed(self) -> bool:
        """Whether the pool has been closed, by ``close`` or the end of a ``with`` block."""
        return self._core.closed

    def stats(self) -> PoolStats:
        """A snapshot of sizes and counters."""
        self._forward_log()
        counts: dict[str, Any] = self._core.stats()
        tiers = tier_stats(self._core.tier_stats())
        return PoolStats(stall_ms=counts.pop("stall_ns") / 1e6, tiers=tiers, **counts)

    def check(self) -> None:
        """Validates the engine's tables, which is slow and meant for tests. Raises InvariantViolation."""
        self._core.check()

    def trim(self, wanted: int | str | None = None) -> int:
        """Gives memory that nobody needs back to the system: all of it, or at least ``wanted`` bytes if there
        are so many. Waits for work under way that may still use it. Returns the bytes given back."""
        return self._core.trim(2**62 if wanted is None else parse_bytes(wanted, "wanted"))

    def warm(self, wanted: int | str, *, page_bytes: int | None = None) -> int:
        """Creates physical memory before it is needed. Afterwards ``wanted`` bytes (or text like ``"4GiB"``)
        lie free, or as much as the budget and the device have left, which is no error. The first prompts
        would wait for new memory: on a GPU creating 2 MiB takes 14–190 µs by published figures (CUDA 12,
        A100) beside 40 for mapping it; on the host a GiB takes 0.5 s, of which faulting it in takes 0.4.

        Free memory serves whoever needs pages of ``page_bytes`` (default: ``default_page_bytes``). It counts
        against the budget; ``trim`` gives it back, and so does the pool when memory is short. The size is
        rounded up to what is created as a whole: a page on a GPU, 1 MiB or more on the host. Returns the
        bytes created, which are 0 if so much lay free already. Safe from any thread, beside all other use;
        others run meanwhile, and Ctrl-C ends it.

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

    def range(
        self,
        size: int | str,
        page_bytes: int | None = None,
        *,
        zeroed: bool = True,
        tenant: Tenant | None = None,
    ) -> Range:
        """Reserves ``size`` bytes of addresses (or text like ``"64GiB"``; rounded up to whole pages), for a
        paged engine that says by number which blocks of it need memory: see `Range.blocks`. Pages have
        ``page_bytes`` (default: ``default_page_bytes``). With ``zeroed`` a page is zero whenever it has just
        been mapped; without, it may hold what another such range of this pool and ``tenant``, to whom it
        belongs, has left there.

        Raises InvalidArgument for a size that does not parse or exceeds the pool's address space, for page
        sizes the device does not have, and for what is no tenant of this pool; Closed, Forked and
        DriverError.
        """
        from vmm.tenant import pool_for

        pool_for(tenant, self)
        return Range(self, size, page_bytes, zeroed=zeroed, tenant=tenant)

    def export(self, address: int) -> ExportedPage:
        """Gives the mapped page that holds ``address`` (a tensor's ``data_ptr()``, say) to another process,
        which imports the descriptor with ``cuMemImportFromShareableHandle``. The pool must have been made
        with ``shareable=True``. Close the descriptor after passing it on.

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

    def _close_at_exit(self, patience_s: float) -> list[str]:
        """Closes this pool, if it is not the parent process's; returns the warnings that are still unsaid."""
        if self._core.in_child:
            return []
        self._forward_log()
        self._core.close(patience_s=patience_s)
        return [text for level, text in self._core.drain_log() if _LEVELS[level] >= logging.WARNING]


def _idle_ns(idle_seconds: float | None) -> int:
    if idle_seconds is None:
        return 0
    if not is_number(idle_seconds) or not 1e-3 <= idle_seconds <= 1e9:
        raise InvalidArgument(f"idle_seconds is {idle_seconds!r}; expected 0.001 to 1e9, or None")
    return int(idle_seconds * 1e9)
