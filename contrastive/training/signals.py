"""Signals that end a run: noted when they arrive, obeyed where the run can stop and lose nothing."""

import os
import signal
import threading
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException

ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Terminated(SIGTERMException):
    """A run was ended by a signal other than Ctrl-C; uncaught, it ends the process with the code of shells.

    Attributes:
        signum: The signal.
    """

    def __init__(self, signum: int = signal.SIGTERM) -> None:
        super().__init__(128 + signum)
        self.signum = signum


def stopped_by(signum: int) -> BaseException:
    """What to raise for a signal: ``KeyboardInterrupt`` for Ctrl-C, :class:`Terminated` for the others."""
    return KeyboardInterrupt() if signum == signal.SIGINT else Terminated(signum)


class Signals:
    """Takes over Ctrl-C, SIGTERM and SIGHUP, and notes which of them came.

    A second Ctrl-C raises ``KeyboardInterrupt`` at once. Further signals of the other kinds change nothing: launchers
    and clusters send them more than once, to a process that is saving already.

    Attributes:
        asked: The signal that came, 0 while there is none.
    """

    def __init__(self) -> None:
        self.asked = 0
        self._before: dict[int, Any] = {}
        self._owner = 0

    def take_over(self, trainer: Trainer) -> None:
        """Install the handlers, except where the user's program or its environment (``nohup``) has one of its own."""
        if threading.current_thread() is not threading.main_thread():
            return
        self._owner = os.getpid()
        connector = getattr(
            trainer, "_signal_connector", None
        )  # holds what was there before Lightning's own handlers
        users = getattr(connector, "_original_handlers", {})
        for signum in ENDING:
            present = signal.getsignal(signum)
            mine = signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL
            if present == self._note or users.get(signum, present) is not mine:
                continue
            self._before[signum] = present
            signal.signal(signum, self._note)

    def give_back(self) -> None:
        """Put the former handlers back and forget what was asked."""
        self.asked = 0
        for signum, handler in self._before.items():
            if signal.getsignal(signum) == self._note:
                signal.signal(signum, handler)
        self._before = {}

    def _note(self, signum: int, _: Any) -> None:
        if os.getpid() != self._owner:  # a worker that reads data, forked from the process that trains
            if signum != signal.SIGINT:
                signal.signal(signum, signal.SIG_DFL)
                os.kill(os.getpid(), signum)
            return
        self.asked = self.asked or signum
        if signum == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            rank_zero_info("\nStopping after this batch; press Ctrl-C again to stop at once.")
