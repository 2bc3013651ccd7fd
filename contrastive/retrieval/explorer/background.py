"""Work that takes longer than a request may: done once, by one thread, while searches are answered."""

import traceback
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any


class Background:
    """Results under their keys, computed one after the other.

    The thread is a daemon: whoever ends the explorer does not wait for a map that is half done.
    """

    def __init__(self) -> None:
        self._found: dict[Hashable, Future[Any]] = {}
        self._waiting: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()
        self._lock = Lock()
        self._thread: Thread | None = None

    def ask(self, key: Hashable, work: Callable[[], Any]) -> "Future[Any]":
        """The result of ``work``, done or not; however often it is asked for, it is computed once.

        What failed is told to the next who asks, and tried again after that.
        """
        with self._lock:
            if self._thread is None:
                self._thread = Thread(target=self._run, name="explorer: maps", daemon=True)
                self._thread.start()
            if key not in self._found:
                self._found[key] = Future()
                self._waiting.put((self._found[key], work))
            found = self._found[key]
            if found.done() and found.exception() is not None:
                del self._found[key]
        return found

    def _run(self) -> None:
        while True:
            future, work = self._waiting.get()
            try:
                future.set_result(work())
            except (
                Exception
            ) as error:  # as a lack of memory: the page says it, and whoever started us reads where
                traceback.print_exc()
                future.set_exception(error)
