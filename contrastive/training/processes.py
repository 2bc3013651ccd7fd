"""Processes that train together: what they decide together, and how one that fails ends all.

A process that waits for a message of another one hangs if that one has ended, or waits for something else. So whatever
changes the course of a run, a signal for instance, is shared first (:func:`agree`) and then done by all at one place.
What strikes one process alone, as an exception in its part of the data or ``kill -9``, leaves nothing to agree on: the
others end as well (:class:`Watch`), and the run is resumed from its last checkpoint.
"""

import multiprocessing
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.strategies.launchers import subprocess_script
from lightning.pytorch import Trainer
from torch import nn

from contrastive.training.signals import ENDING

PATIENCE = 40.0  # seconds in which a run that was asked to stop comes to a place where its processes agree to
GRACE = 15.0  # seconds in which a process notices by itself that another one has ended


def agree(trainer: Trainer, *values: int) -> list[int]:
    """The largest of each value over all processes; every process must call this at the same place of the run."""
    if trainer.world_size == 1:
        return list(values)
    strategy = trainer.strategy
    mine = torch.tensor(values, device=strategy.root_device)
    largest: list[int] = torch.as_tensor(strategy.reduce(mine, reduce_op="max")).tolist()
    return largest


def share_buffers(module: nn.Module) -> None:
    """Give every process the buffers of the first, batch-norm statistics for instance.

    In training, ``ddp`` does so before each pass, and the first process' are what a checkpoint holds; after the last
    step of an epoch each process has its own.
    """
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)


def lost_process(problem: BaseException) -> str | None:
    """Explain an error that says no more than that another process is gone; ``None`` if it is about something else."""
    signs = "Connection (closed|reset) by peer|Broken pipe|gloo/transport|NCCL"
    if not isinstance(problem, RuntimeError) or not re.search(signs, str(problem)):
        return None
    return (
        "another process of this run has ended, so this one stopped as well; see above, or that process's own output, "
        "for the reason. Go on from the last checkpoint with --ckpt_path=last."
    )


class Watch(threading.Thread):
    """Ends a process that waits in vain for others: for one that has ended, or for one that hears no signal.

    The process that trains cannot do this itself: while it waits inside a collective operation, no Python code runs in
    its main thread, signal handlers included. The first process watches those that it has started, these watch the
    first (:func:`end_with_parent`). A process is given :data:`GRACE` seconds to fail by itself, with an error that is
    its own, and :data:`PATIENCE` seconds after a signal.

    Args:
        children: Processes that this one has started for the run.
    """

    def __init__(self, children: Sequence["subprocess.Popen[Any]"] = ()) -> None:
        super().__init__(name="processes-that-train-together", daemon=True)
        self.children = list(children)
        self._over = threading.Event()
        self._ear, self._mouth = socket.socketpair()
        self._former_fd: int | None = None
        self._deadline, self._code, self._reason = float("inf"), 1, ""

    @classmethod
    def over(cls, trainer: Trainer) -> "Watch":
        """Begin to watch the processes of a trainer; takes the place of Lightning's observer.

        That one kills the first process wherever it is as soon as another has ended with a code other than 0, while it
        writes the checkpoint of an interrupted run for instance.
        """
        children = getattr(trainer.strategy.launcher, "procs", ())
        for thread in threading.enumerate():
            if isinstance(thread, subprocess_script._ChildProcessObserver):
                thread._child_processes = []  # with none to observe, it ends
        watch = cls([child for child in children if isinstance(child, subprocess.Popen)])
        watch.start()
        end_with_parent()
        return watch

    def start(self) -> None:
        """Begin, and listen to signals, if this is the main thread."""
        if threading.current_thread() is threading.main_thread():
            self._mouth.setblocking(False)
            self._former_fd = signal.set_wakeup_fd(self._mouth.fileno(), warn_on_full_buffer=False)
        super().start()

    def stop(self) -> None:
        """End the watch: the processes have agreed to stop, or training is over."""
        if self._former_fd is not None and threading.current_thread() is threading.main_thread():
            signal.set_wakeup_fd(self._former_fd)
            self._former_fd = None
        self._over.set()

    def end_children(self, grace: float = 5.0) -> None:
        """Wait for the processes that this one has started, and kill those that are there after ``grace`` seconds."""
        until = time.monotonic() + grace
        for child in self.children:
            try:
                child.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()

    def run(self) -> None:
        """Look twice a second."""
        while not self._over.is_set():
            if select.select([self._ear], [], [], 0.5)[0]:
                self._hear(self._ear.recv(64))
            self._look()
            if time.monotonic() > self._deadline and not self._over.is_set():
                self._end()
        self._ear.close()
        self._mouth.close()

    def _hear(self, signals: bytes) -> None:
        for signum in signals:
            if signum in ENDING and self._deadline == float("inf"):
                self._wait_until(PATIENCE, 128 + signum, f"{signal.Signals(signum).name} came")

    def _look(self) -> None:
        for number, child in enumerate(self.children, start=1):
            if child.poll():
                self._wait_until(GRACE, 1, f"process {number} has ended with code {child.returncode}")

    def _wait_until(self, seconds: float, code: int, reason: str) -> None:
        deadline = time.monotonic() + seconds
        if deadline < self._deadline:
            self._deadline, self._code, self._reason = deadline, code, reason

    def _end(self) -> None:
        self.end_children(grace=0.0)
        _end_now(self._code, self._reason)


def end_with_parent() -> None:
    """End this process soon after the one that has started it for a run, wherever it is by then.

    Does nothing in a process that nobody started for a run.
    """
    name = "end-with-parent"
    started = multiprocessing.parent_process() is not None or int(os.environ.get("LOCAL_RANK", 0)) > 0
    if not started or any(thread.name == name for thread in threading.enumerate()):
        return
    parent = os.getppid()

    def wait() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        time.sleep(GRACE)
        _end_now(1, "the process that started this one has ended")

    threading.Thread(target=wait, name=name, daemon=True).start()


def _end_now(code: int, reason: str) -> None:
    sys.stderr.write(
        f"contrastive: error: {reason}, and the processes of this run could not stop together; this one ends now. Go "
        "on from the last checkpoint with --ckpt_path=last.\n"
    )
    sys.stderr.flush()
    os._exit(code)
