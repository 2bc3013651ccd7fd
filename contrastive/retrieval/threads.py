"""Many threads that search beside one that changes something."""

import functools
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from contrastive.errors import NotReady

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S", bound="_Locked")


class ReadersWriter:
    """A lock that many reading threads hold together, or one writing thread alone.

        with lock.reading: ...
        with lock.writing: ...

    A writer that waits goes before readers that come later, and readers that have waited for it go before the next
    writer, so neither waits for ever (a phase-fair lock). Nobody waits busily. A thread that holds the lock may take it
    again, and one that writes may also read; one that only reads cannot begin to write. A copy, pickled or not, is a
    new lock that nobody holds.
    """

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._free = threading.Condition(self._mutex)
        self._readers: dict[int, int] = {}  # thread -> how often it holds the lock
        self._writer, self._depth = 0, 0  # thread, 0 for none
        self._writers_waiting = self._readers_waiting = 0
        self._due = 0  # readers that waited for a writer that has ended, and go before the next one
        self._phase = 0  # writers that have ended
        self.reading, self.writing = _Reading(self), _Writing(self)

    def __reduce__(self) -> tuple[type["ReadersWriter"], tuple[()]]:
        return ReadersWriter, ()

    def _wait_to_read(self) -> None:
        phase = self._phase
        self._readers_waiting += 1
        try:
            while self._writer or (self._writers_waiting and self._phase == phase):
                self._free.wait()
        finally:
            self._readers_waiting -= 1
            if self._phase != phase and self._due:
                self._due -= 1
                if not self._due:
                    self._free.notify_all()

    def _wait_to_write(self) -> None:
        self._writers_waiting += 1
        try:
            while self._writer or self._readers or self._due:
                self._free.wait()
        finally:
            self._writers_waiting -= 1
            if self._writers_waiting == 0:  # after an interruption, readers need not wait for it
                self._free.notify_all()


class _Reading:
    def __init__(self, lock: ReadersWriter) -> None:
        self._lock = lock

    def __enter__(self) -> None:
        lock, thread = self._lock, threading.get_ident()
        with lock._mutex:
            held = lock._readers.get(thread, 0)
            if not held and (lock._writer or lock._writers_waiting) and lock._writer != thread:
                lock._wait_to_read()
            lock._readers[thread] = held + 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        lock, thread = self._lock, threading.get_ident()
        with lock._mutex:
            held = lock._readers.pop(thread) - 1
            if held:
                lock._readers[thread] = held
            elif lock._writers_waiting and not lock._readers:
                lock._free.notify_all()


class _Writing:
    def __init__(self, lock: ReadersWriter) -> None:
        self._lock = lock

    def __enter__(self) -> None:
        lock, thread = self._lock, threading.get_ident()
        with lock._mutex:
            if lock._writer != thread:
                if thread in lock._readers:
                    raise NotReady("a thread that is reading cannot change what it reads; end reading first.")
                if lock._writer or lock._readers or lock._due:
                    lock._wait_to_write()
                lock._writer = thread
            lock._depth += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        lock = self._lock
        with lock._mutex:
            lock._depth -= 1
            if not lock._depth:
                lock._writer = 0
                lock._phase += 1
                lock._due = lock._readers_waiting
                if lock._readers_waiting or lock._writers_waiting:
                    lock._free.notify_all()


class _Locked(Protocol):
    _lock: ReadersWriter


def reads(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """Have a method hold ``self._lock`` for reading, beside other readers."""

    @functools.wraps(method)
    def locked(self: S, /, *args: P.args, **options: P.kwargs) -> R:
        with self._lock.reading:
            return method(self, *args, **options)

    return locked


def changes(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """Have a method hold ``self._lock`` for writing, alone."""

    @functools.wraps(method)
    def locked(self: S, /, *args: P.args, **options: P.kwargs) -> R:
        with self._lock.writing:
            return method(self, *args, **options)

    return locked
