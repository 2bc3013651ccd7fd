"""What every request must pass and every response carries, whichever route it is for.

A page on another site can make a browser send requests to this machine, and by DNS rebinding even read the answers.
So the ``Host`` must be this machine's, an ``Origin`` must be the page's own, and there are no CORS headers. The content
security policy lets the page load nothing but its own inline code, known by hash, and its own images.

Bodies are read here, counted and within a time, before anything is done with them. A request that is refused is
answered at once, and what still comes of it passed over, so that its sender can read the answer.
"""

import asyncio
import base64
import hashlib
import ipaddress
import json
import re
import socket
from contextlib import suppress
from typing import Any

MEBIBYTE = 1 << 20
LARGEST_BODY, LARGEST_UPLOAD = MEBIBYTE, 10 * MEBIBYTE
BODY_SECONDS = 60.0  # for a body to arrive
MOST_HELD = 256 * MEBIBYTE  # of all bodies that are being read or answered
SMALL_BODY = MEBIBYTE // 16  # passes even then
LONGEST_PASSED_OVER, PASSING_SECONDS = 64 * MEBIBYTE, 10.0  # of a refused body, so that the sender reads why
UPLOAD_PATH = "/api/encode"
WITHOUT_BODY = ("GET", "HEAD")
TIMED_OUT = 408


class Guard:
    """ASGI middleware that refuses foreign hosts, foreign origins and bodies too large or too slow, and adds headers.

    Args:
        app: what answers the requests that pass.
        host: the address that the server is bound to.
        policy: the content security policy.
    """

    def __init__(self, app: Any, host: str, policy: str) -> None:
        self.app, self.host = app, host
        self.held = 0  # bytes of bodies
        self.headers = [
            (b"content-security-policy", policy.encode()),
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"no-referrer"),
            (b"cross-origin-resource-policy", b"same-origin"),
            (b"cross-origin-opener-policy", b"same-origin"),
            (b"cache-control", b"no-store"),
        ]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return  # no WebSockets

        async def send_guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *self.headers]
            await send(message)

        body, refusal = _Body(receive), self._refusal(scope)
        try:
            if refusal is None and scope["method"] not in WITHOUT_BODY:
                refusal = await self._arrived(body, _limit(scope))
            if body.gone:
                return
            if refusal is None:
                await self.app(scope, body.again, send_guarded)
                return
        finally:
            self.held -= len(body.content)
            body.content.clear()
        status, sentence = refusal
        told = json.dumps({"error": sentence}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(told)).encode())]
        headers.append((b"connection", b"close"))
        await send_guarded({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": told, "more_body": True})
        # A connection that is closed while a body still comes is reset, and the answer lost with it.
        with suppress(asyncio.TimeoutError):
            if status != TIMED_OUT:
                await asyncio.wait_for(body.pass_over(LONGEST_PASSED_OVER), PASSING_SECONDS)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _arrived(self, body: "_Body", limit: int) -> tuple[int, str] | None:
        """Wait for the whole body, whatever the request says of its length; the refusal if it does not come."""

        async def arrive() -> tuple[int, str] | None:
            while body.more:
                chunk = await body.chunk()
                if len(body.content) + len(chunk) > limit:
                    return _too_long(len(body.content) + len(chunk), limit)
                if self.held + len(chunk) > MOST_HELD and len(body.content) + len(chunk) > SMALL_BODY:
                    return 503, "too many large requests have come at once; try again in a minute"
                body.content += chunk
                self.held += len(chunk)
            return None

        try:
            return await asyncio.wait_for(arrive(), BODY_SECONDS)
        except asyncio.TimeoutError:
            return TIMED_OUT, f"the request did not arrive within {BODY_SECONDS:g} seconds; send it again"

    def _refusal(self, scope: Any) -> tuple[int, str] | None:
        given: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            given.setdefault(name.lower(), []).append(value)
        hosts = [value.decode("latin-1") for value in given.get(b"host", [])]
        if len(hosts) != 1 or not is_own(hosts[0], self.host):
            return 403, (
                f"the request is for the host {', '.join(hosts) or '(none)'}, which is not this server; open the "
                "address that it printed, by localhost or an IP address"
            )
        origins = [value.decode("latin-1") for value in given.get(b"origin", [])]
        if any(origin.partition("://")[2] != hosts[0] for origin in origins):
            return 403, f"the request comes from a page of {origins[0]}; only this server's own page may ask"
        if b"cross-site" in given.get(b"sec-fetch-site", []) and not _is_opened(scope, given):
            return 403, "the request comes from a page of another site; only this server's own page may ask"
        if scope["method"] in WITHOUT_BODY:
            return None
        if b"transfer-encoding" in given:
            return 411, "the request has a Transfer-Encoding; send it with a Content-Length instead"
        lengths = given.get(b"content-length", [])
        if len(lengths) != 1 or not lengths[0].isdigit():
            return 411, "the request does not say how long it is; send a Content-Length"
        length, limit = int(lengths[0]), _limit(scope)
        return None if length <= limit else _too_long(length, limit)


class _Body:
    """The body of a request, as it arrives.

    Attributes:
        content: what was kept of it.
        more: whether there is more to come.
        gone: whether the sender has closed the connection before the end.
    """

    def __init__(self, receive: Any) -> None:
        self._receive = receive
        self.content, self._told = bytearray(), False
        self.more, self.gone = True, False

    async def chunk(self) -> bytes:
        """The next part; empty when the sender has gone."""
        message = await self._receive()
        self.gone = message["type"] == "http.disconnect"
        self.more = bool(message.get("more_body", False))
        found: bytes = message.get("body", b"")
        return found

    async def pass_over(self, most: int) -> None:
        """Read what is still to come, and forget it."""
        while self.more and most > 0:
            most -= len(await self.chunk())

    async def again(self) -> Any:
        """What an application receives: the whole body as one message, then what comes after it."""
        if self.more or self._told:
            return await self._receive()
        self._told = True
        return {"type": "http.request", "body": bytes(self.content), "more_body": False}


def _limit(scope: Any) -> int:
    return LARGEST_UPLOAD if scope["path"] == UPLOAD_PATH else LARGEST_BODY


def _too_long(length: int, limit: int) -> tuple[int, str]:
    return 413, f"{length:,} bytes were sent; at most {limit:,} are accepted here; send less"


def _is_opened(scope: Any, given: dict[bytes, list[bytes]]) -> bool:
    """Whether somebody follows a link to the page, which tells the other site nothing."""
    return bool(
        scope["method"] == "GET"
        and scope["path"] == "/"
        and given.get(b"sec-fetch-mode") == [b"navigate"]
        and given.get(b"sec-fetch-dest", [b"document"]) == [b"document"]
    )


def is_own(header: str, bound: str) -> bool:
    """Whether a ``Host`` header names a server that is bound to the address ``bound``.

    ``localhost`` and loopback addresses do, and ``bound`` itself. A server bound to all addresses of its machine
    goes by any address, which a rebound name cannot be, and by the machine's name. The port is not compared: it changes
    where it is forwarded.
    """
    match = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[0-9A-Za-z.-]+)(?::\d{1,5})?", header)
    if match is None:
        return False
    name = match[1].strip("[]").lower()
    if name in ("localhost", bound.lower()):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return bound in ("0.0.0.0", "::") and name == socket.gethostname().lower()
    return address.is_loopback or bound in ("0.0.0.0", "::")


def content_policy(page: str) -> str:
    """The content security policy of a page, which names its inline script and style by their hashes."""

    def hashes(tag: str) -> str:
        found = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in found)
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    return (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; img-src 'self' blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
