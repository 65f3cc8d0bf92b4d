"""The way between a scheduler and a worker in another process of the same machine: a Unix socket.

It also works while the engine is idle, when no step carries a connector's metadata. The worker listens on an
abstract name, so there is no file to clean up, and speaks only to processes of its own user.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import struct
import time
from array import array
from multiprocessing.connection import Connection
from threading import Lock, Thread
from typing import Any

from vmm.integrations.vllm.link import Link
from vmm.integrations.vllm.mapper import Answer, Mapper, Request

logger = logging.getLogger("vmm.vllm")

_FORMAT = 1  # of the messages
_CREDENTIALS = struct.Struct("3i")  # struct ucred


def address_of(engine: str, rank: int) -> str:
    return f"\0vmm-vllm-{engine}-{rank}"


def _packed(kind: str, ids: array[int], more: dict[str, Any]) -> bytes:
    head = json.dumps([kind, more]).encode()
    return struct.pack("<I", len(head)) + head + ids.tobytes()


def _unpacked(message: bytes) -> tuple[str, array[int], dict[str, Any]]:
    (length,) = struct.unpack_from("<I", message)
    kind, more = json.loads(message[4 : 4 + length])
    ids = array("i")
    ids.frombytes(message[4 + length :])
    return kind, ids, more


class Server:
    """The worker's end. It serves one scheduler at a time."""

    def __init__(self, mapper: Mapper, address: str) -> None:
        self._mapper = mapper
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(address)
        self._listener.listen(1)
        self._connection: Connection | None = None
        self._sending = Lock()
        self._thread = Thread(target=self._serve, name="vmm-server", daemon=True)
        self._thread.start()

    def close(self) -> None:
        with contextlib.suppress(OSError):  # closed already
            self._listener.shutdown(socket.SHUT_RDWR)  # ends accept
        self._listener.close()
        with self._sending:
            connection = self._connection
        if connection is not None:
            _end(connection)
        self._thread.join()

    def _serve(self) -> None:
        while True:
            try:
                accepted, _ = self._listener.accept()
            except OSError:
                return
            _, user, _ = _CREDENTIALS.unpack(
                accepted.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            )
            if user != os.getuid():
                accepted.close()
                continue
            self._converse(Connection(accepted.detach()))

    def _converse(self, connection: Connection) -> None:
        hello = {"format": _FORMAT, **self._mapper.memory.hello()}
        with self._sending:
            self._connection = connection
        self._mapper.answer = self._answer
        try:
            connection.send_bytes(_packed("hello", array("i"), hello))
            while True:
                kind, ids, more = _unpacked(connection.recv_bytes())
                self._mapper.submit(Request(kind, ids, **more))
        except (EOFError, OSError):
            logger.debug("the scheduler of vLLM has gone")
        finally:
            self._mapper.answer = None
            with self._sending:
                self._connection = None
            connection.close()

    def _answer(self, answer: Answer) -> None:
        """Called in the mapper's thread."""
        with self._sending:
            if self._connection is None:
                return
            try:
                self._connection.send_bytes(_packed(answer.kind, answer.ids, answer.figures))
            except OSError:
                logger.debug("the scheduler of vLLM has gone")


class SocketPort:
    """The scheduler's end. A worker that goes is heard as "lost"."""

    def __init__(self, link: Link, address: str, patience_s: float = 60.0) -> None:
        self._connection = Connection(_connected(address, patience_s).detach())
        kind, _, hello = _unpacked(self._connection.recv_bytes())
        if kind != "hello" or hello["format"] != _FORMAT:
            raise RuntimeError("VmmConnector: the worker runs another version of kvmm than the scheduler")
        self.hello = hello
        self._link, self._rank = link, link.attach(self)
        self._thread = Thread(target=self._listen, name="vmm-link", daemon=True)
        self._thread.start()

    def send(self, request: Request) -> None:
        try:
            self._connection.send_bytes(_packed(request.kind, request.ids, {"row": request.row}))
        except OSError:
            logger.debug("a worker of vLLM has gone")  # which _listen hears, too

    def close(self) -> None:
        _end(self._connection)
        self._thread.join()
        self._connection.close()

    def _listen(self) -> None:
        try:
            while True:
                self._link.hear(self._rank, Answer(*_unpacked(self._connection.recv_bytes())))
        except (EOFError, OSError):
            self._link.hear(self._rank, Answer("lost", array("i"), {}))


def _connected(address: str, patience_s: float) -> socket.socket:
    """Workers listen before vLLM makes its scheduler; the patience is for an order that changes."""
    until = time.monotonic() + patience_s
    while True:
        connecting = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connecting.connect(address)
            return connecting
        except OSError as error:
            connecting.close()
            if time.monotonic() > until:
                raise RuntimeError(
                    f"VmmConnector: the scheduler found no worker at {address[1:]!r} ({error}); all"
                    " workers of an"
                    " engine must run on the scheduler's machine, in its network namespace"
                ) from None
        time.sleep(0.05)


def _end(connection: Connection) -> None:
    """Ends a recv_bytes in another thread, which closing would not."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as both:
        both.shutdown(socket.SHUT_RDWR)  # unless it has ended already
