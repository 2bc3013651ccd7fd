"""What every request must pass and every response carries, whichever route it is for.

A page on another site can make a browser send requests to this machine, and by DNS rebinding even read the answers.
So the ``Host`` must be this machine's, an ``Origin`` must be the page's own, and there are no CORS headers. The content
security policy lets the page load nothing but its own inline code, known by hash, and its own images.
"""

import base64
import hashlib
import ipaddress
import json
import re
import socket
from typing import Any

MEBIBYTE = 1 << 20
LARGEST_BODY, LARGEST_UPLOAD = MEBIBYTE, 10 * MEBIBYTE
UPLOAD_PATH = "/api/encode"


class Guard:
    """ASGI middleware that refuses foreign hosts, foreign origins and large bodies, and adds security headers.

    Args:
        app: what answers the requests that pass.
        host: the address that the server is bound to.
        policy: the content security policy.
    """

    def __init__(self, app: Any, host: str, policy: str) -> None:
        self.app, self.host = app, host
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

        left = LARGEST_UPLOAD if scope["path"] == UPLOAD_PATH else LARGEST_BODY

        async def receive_counted() -> Any:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            # What a request says of its length need not be what arrives.
            return message if left >= 0 else {"type": "http.disconnect"}

        refusal = self._refusal(scope)
        if refusal is None:
            await self.app(scope, receive_counted, send_guarded)
            return
        status, sentence = refusal
        body = json.dumps({"error": sentence}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        headers.append((b"connection", b"close"))  # the body is left unread
        await send_guarded({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

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
        if b"cross-site" in given.get(b"sec-fetch-site", []):
            return 403, "the request comes from a page of another site; only this server's own page may ask"
        if scope["method"] in ("GET", "HEAD"):
            return None
        if b"transfer-encoding" in given:
            return 411, "the request has a Transfer-Encoding; send it with a Content-Length instead"
        lengths = given.get(b"content-length", [])
        if len(lengths) != 1 or not lengths[0].isdigit():
            return 411, "the request does not say how long it is; send a Content-Length"
        limit = LARGEST_UPLOAD if scope["path"] == UPLOAD_PATH else LARGEST_BODY
        if int(lengths[0]) > limit:
            return 413, f"{int(lengths[0]):,} bytes were sent; at most {limit:,} are accepted here; send less"
        return None


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
