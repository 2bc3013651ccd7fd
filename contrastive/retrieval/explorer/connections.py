"""Connections on which no request comes to an end are closed.

Uvicorn closes a connection that is silent between two requests, and has no limit of time for one whose headers have
begun or never begin. Its protocol is a class that may be replaced (``uvicorn.Config(http=...)``), and this one adds a
clock. Whether a request is under way it reads off ``cycle`` and ``cycle.response_complete``: these two names are all
that is used of uvicorn beyond what ``asyncio.Protocol`` promises. A bound on connections would be no help: those that
wait would keep others out.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS = 15.0  # from a connection, or the first byte of its next request, to the end of the headers


class Punctual(H11Protocol):
    """HTTP/1.1, with :data:`HEADER_SECONDS` for the headers of a request. Bodies are the guard's."""

    _clock: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Start the clock."""
        super().connection_made(transport)
        self._start()

    def data_received(self, data: bytes) -> None:
        """Stop the clock if the headers are here; start it if something else is, as half of them."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop()
        elif self._clock is None:
            self._start()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._stop()
        super().connection_lost(exc)

    def _start(self) -> None:
        self._clock = asyncio.get_running_loop().call_later(HEADER_SECONDS, self.transport.close)

    def _stop(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None
