"""Text files as people have them: gzipped or not, of Windows or of an old Mac, in UTF-8 or UTF-16."""

import codecs
import gzip
import re
import zlib
from pathlib import Path

from contrastive.errors import FileMissing, InvalidValue

# Marks at the beginning of a file. That of UTF-32 begins as that of UTF-16 does, so it goes first.
_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_LONE_RETURN = re.compile(rb"\r(?!\n)")


def read_content(path: Path, call: str) -> bytes:
    """A text file without compression and mark; UTF-16 and UTF-32 become UTF-8, and lone carriage returns newlines.

    That the bytes are UTF-8 is not looked at here: whoever reads a few columns has no need of the others.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged.
    """
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "does not exist"
        raise FileMissing(f"{call}: {path.resolve()} {kind}; give a file.")
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise InvalidValue(
                f"{call}: {path} is a damaged gzip file ({error}); copy or make it again."
            ) from error
    encoding = next((name for mark, name in _MARKS.items() if content.startswith(mark)), None)
    if encoding is None and len(content) > 3 and content[:4].count(0) == 2:  # UTF-16 without a mark
        encoding = {0: "utf-16-be", 1: "utf-16-le"}[content[:4].index(0) % 2]
    if encoding == "utf-8":
        content = content.removeprefix(codecs.BOM_UTF8)
    elif encoding is not None:
        try:
            content = content.decode(encoding).encode()
        except UnicodeError as error:
            raise InvalidValue(
                f"{call}: {path} begins as {encoding.upper()[:6]} does and is none ({error}); save it as UTF-8."
            ) from error
    if b"\r" in content and _LONE_RETURN.search(content):
        content = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return content


def read_lines(path: Path, call: str) -> list[str]:
    """Lines of a text file, plain or gzipped, without their ends.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged or no UTF-8 text; names the line.
    """
    content = read_content(path, call)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        raise no_text(path, content, call) from None
    return [line.removesuffix("\r") for line in text.split("\n")]


def no_text(path: Path, content: bytes, call: str) -> InvalidValue:
    """The refusal of a file that is no UTF-8, with its first bad line."""
    try:
        content.decode("utf-8")
        line = 1
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
    return InvalidValue(
        f"{call}: line {line} of {path} is no UTF-8 text; convert the file, if it is Latin-1 with "
        "`iconv -f LATIN1 -t UTF-8`."
    )
