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
