"""Locks on folders and files, between processes and threads: held by the system, gone when a process dies.

They are ``flock`` on the folder or file itself, so no lock is left over as a file, and folders of earlier versions can
be locked. Where the system or the file system cannot lock a folder, a file ``.lock`` in it is locked instead.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK_FILE = ".lock"
_WAIT = 0.05  # seconds between two tries where the system cannot wait for a lock


@contextmanager
def alone(folder: Path) -> Iterator[bool]:
    """Wait until no other writer is in a folder, and keep others out of it.

    Yields:
        Whether others are kept out for certain; False where the file system has no locks at all.
    """
    descriptor = _taken(folder)
    try:
        yield descriptor is not None
    finally:
        _release(descriptor)


@contextmanager
def in_use(path: Path) -> Iterator[None]:
    """Let others know that a file or folder is being read or written; does nothing where it cannot be locked.

    Raises:
        FileNotFoundError: there is no such file or folder.
    """
    descriptor = os.open(path, os.O_RDONLY) if fcntl is not None else None
    try:
        if descriptor is not None:
            _flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        _release(descriptor)


@contextmanager
def if_unused(path: Path) -> Iterator[bool]:
    """Tells whether nobody is :func:`in_use` of a file or folder; whoever comes later waits."""
    try:
        descriptor = os.open(path, os.O_RDONLY) if fcntl is not None else None
    except OSError:  # it is gone
        descriptor = None
    try:
        yield descriptor is None or _flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB) is not False
    finally:
        _release(descriptor)


def _taken(folder: Path) -> int | None:
    """Descriptor of a folder, or of the file in it, that was locked; None if neither can be."""
    while fcntl is not None:
        descriptor = os.open(folder, os.O_RDONLY)
        if _flock(descriptor, fcntl.LOCK_EX) is None:
            os.close(descriptor)
            break
        try:
            if os.path.samestat(os.fstat(descriptor), folder.stat()):
                return descriptor
        except FileNotFoundError:
            folder.mkdir(parents=True, exist_ok=True)
        _release(descriptor)  # it was removed, and perhaps made anew, while this one waited
    descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT)
    if fcntl is not None:
        if _flock(descriptor, fcntl.LOCK_EX):
            return descriptor
        os.close(descriptor)
        return None
    import msvcrt

    library: Any = msvcrt
    while True:
        try:
            library.locking(descriptor, library.LK_NBLCK, 1)
            return descriptor
        except OSError:
            time.sleep(_WAIT)


def _flock(descriptor: int, how: int) -> bool | None:
    """True: locked; False: somebody else holds it; None: this cannot be locked."""
    try:
        fcntl.flock(descriptor, how)
        return True
    except BlockingIOError:
        return False
    except OSError:
        return None


def _release(descriptor: int | None) -> None:
    if descriptor is not None:
        if (
            fcntl is not None
        ):  # a child that was forked meanwhile holds it as well, and closing would not be enough
            _flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)
