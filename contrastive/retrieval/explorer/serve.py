"""Starting the explorer."""

import errno
import importlib.util
import ipaddress
import os
import socket
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING

from contrastive.errors import ExtraMissing, FileTrouble, InvalidValue, install
from contrastive.retrieval.index import Index

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

Folder = str | os.PathLike[str]


def explore(
    index: Index | Folder,
    other: Index | Folder | None = None,
    run: Folder | None = None,
    host: str = "127.0.0.1",
    port: int = 8765,
    open_browser: bool = False,
    trust: bool = False,
) -> None:
    """Serve a page over an index until interrupted.

    It shows neighbours of an item with thumbnails and columns, a map of the whole set, filters, and two indexes beside
    each other. Nobody has to log in: keep the default ``host``, which only this machine reaches, unless everyone who
    reaches the machine may see what is in the index.

    Args:
        index: an index, or the folder of a saved one.
        other: a second index, whose neighbours of the same ids are shown beside.
        run: folder of the training run that encoded the first index; images can then be uploaded.
        host: address to be reached at.
        port: port there; 0 takes a free one.
        open_browser: open the page.
        trust: build classes of others too, if the run names them; they can run any code, so only for a run whose
            author you trust.

    Raises:
        FileNotFoundError: a folder does not hold what it should.
        ImportError: a package of the extra ``explore`` is missing.
        OSError: the port is in use, or the address is not this machine's.
        ValueError: an index is empty, the run does not belong to it, or ``port`` is not one.
    """
    missing = [name for name in ("fastapi", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        raise ExtraMissing(
            f"explore needs {', '.join(missing)}, which this environment lacks: {install('explore')}"
        )
    listening = _listen(host, port)  # first, since loading may take a while
    with listening:
        from contrastive.retrieval.explorer.app import build_app
        from contrastive.retrieval.explorer.upload import ImageEncoder

        app = build_app(
            _load(index),
            None if other is None else _load(other),
            None if run is None else ImageEncoder(run, trust=trust),
            names=(_name(index, "index"), "" if other is None else _name(other, "other")),
            host=host,
        )
        port = listening.getsockname()[1]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        print(f"The explorer is at {address} (Ctrl-C ends it).", flush=True)
        if not _is_loopback(host):
            print(f"host={host}: everyone who reaches this machine can see what is in the index.", flush=True)
        if open_browser:
            webbrowser.open(address)
        build_server(app).run(sockets=[listening])


def build_server(app: "FastAPI") -> "uvicorn.Server":
    """A server that waits neither for requests that never end nor, when it is ended, for answers that take long."""
    import uvicorn

    from contrastive.retrieval.explorer.connections import Punctual

    config = uvicorn.Config(
        app, http=Punctual, ws="none", log_level="warning", timeout_keep_alive=5, timeout_graceful_shutdown=3
    )
    return uvicorn.Server(config)


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens; the port is taken from here on."""
    if not 0 <= port <= 65535:  # the system would take the remainder
        raise InvalidValue(f"explore(port={port}): give a number from 0 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
        try:
            if os.name == "posix":  # a port that was closed a moment ago is free
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(128)
        except BaseException:
            listening.close()
            raise
    except OSError as error:
        reason = error.strerror or str(error)
        advice = "give an address of this machine, as 127.0.0.1"
        if error.errno == errno.EADDRINUSE:
            reason, advice = (
                "is in use",
                f"end what uses it, or give another: port={port + 1}, or 0 for any free one",
            )
        elif error.errno == errno.EACCES:
            advice = "give one above 1023"
        raise FileTrouble(f"explore: port {port} of {host} cannot be opened ({reason}); {advice}") from error
    return listening


def _load(index: Index | Folder) -> Index:
    return index if isinstance(index, Index) else Index.load(index)


def _name(index: Index | Folder, otherwise: str) -> str:
    return otherwise if isinstance(index, Index) else Path(index).absolute().name


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
