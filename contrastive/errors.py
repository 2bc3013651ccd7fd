"""Exceptions that the library raises in its own words, for a mistake that the caller can mend.

What decides who is at fault is the class, not the place: the command line prints the sentence of an `InputError` and
nothing else, whereas any other exception, raised in our files or elsewhere, is a fault and shows its traceback. Each
class is also the built-in exception that a caller would expect, so ``except ValueError`` goes on to work.
"""

DISTRIBUTION = "contrastive-representations"
"""What ``pip`` knows this library by; the name ``contrastive`` is another project's there."""


def install(extra: str) -> str:
    """The command that installs an extra."""
    return f"pip install '{DISTRIBUTION}[{extra}]'"


class InputError(Exception):
    """A mistake of the caller's: the message says what was given, what was expected, and what to do."""

    def __str__(self) -> str:
        # KeyError would print the sentence as a quoted literal.
        return str(self.args[0]) if len(self.args) == 1 else super().__str__()


class InvalidValue(InputError, ValueError):
    """A value that cannot be used: out of range, of a wrong shape, at odds with another one."""


class InvalidType(InputError, TypeError):
    """A value of a type that cannot be used."""


class UnknownKey(InputError, KeyError):
    """An id or a name that does not exist."""


class FileMissing(InputError, FileNotFoundError):
    """A file or folder that does not exist."""


class FileInTheWay(InputError, FileExistsError):
    """A file or folder that must not be replaced."""


class FileTrouble(InputError, OSError):
    """A file, a folder or an address that cannot be read, written or opened."""


class ExtraMissing(InputError, ImportError):
    """A package that is not installed; the message names the extra that brings it."""


class NotFinite(InputError, FloatingPointError):
    """A loss or a batch that is not finite.

    Attributes:
        everywhere: All processes of the run raise it at the same place, so that they can save a checkpoint together.
    """

    everywhere = False


class NotReady(InputError, RuntimeError):
    """A call that must come after another one."""


class ProcessLost(InputError, RuntimeError):
    """Another process of a run on several has ended, and so this one cannot go on."""


# What the system says of a disk that takes nothing, in the words of C; libraries in other languages repeat them.
_DISK = {
    "No space left on device": "make room, or name another folder",
    "Disk quota exceeded": "make room, or name another folder",
    "Read-only file system": "name a folder that can be written",
    "Permission denied": "name a folder that you may write, or ask for the right to",
    "Not a directory": "name a folder",
    "Is a directory": "name a file",
    "File name too long": "give a shorter name",
    "Input/output error": "look after the disk",
}


def disk_trouble(error: BaseException) -> str | None:
    """A sentence on an error that is the disk's, whichever library met it; None for any other.

    FAISS raises RuntimeError, safetensors an exception of its own, and Arrow an OSError that names no file.
    """
    seen: list[BaseException] = []
    while error not in seen:
        seen.append(error)
        text = f"{getattr(error, 'strerror', None) or ''} {error}"
        foreign = type(error).__name__ == "SafetensorError" or type(error) is RuntimeError
        known = (reason for reason in _DISK if reason.lower() in text.lower())
        reason = next(known, None) if isinstance(error, OSError) or foreign else None
        if reason is not None:
            path = getattr(error, "filename", None)
            what = f"{path} cannot be written or read" if path else "a file cannot be written or read"
            return f"{what} ({reason.lower()}); {_DISK[reason]}. What was there before is whole."
        error = error.__cause__ or error.__context__ or error
    return None
