"""The explorer cannot be made to read more than it accepts, to answer other sites, or to hand out formulas."""

import asyncio
import threading
import time

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="pip install 'contrastive-representations[explore]'")

from contrastive.retrieval.explorer import upload
from contrastive.retrieval.explorer.app import _as_csv
from contrastive.retrieval.explorer.guard import LARGEST_BODY, Guard


def ask(headers, chunks=(), method="POST", path="/api/search"):
    """Send a request through the guard; returns the status and how many bytes came through."""
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    messages.append({"type": "http.request", "body": b"", "more_body": False})
    sent, read = [], []

    async def app(scope, receive, send):
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            read.append(len(message["body"]))
            if not message["more_body"]:
                break
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def receive():
        return messages.pop(0)

    async def send(message):
        sent.append(message)

    fields = [(b"host", b"localhost"), *headers]
    scope = {"type": "http", "method": method, "path": path, "headers": fields}
    asyncio.run(Guard(app, "127.0.0.1", "default-src 'none'")(scope, receive, send))
    return (sent[0]["status"] if sent else None), sum(read)


def test_bodies_are_counted_as_they_arrive():
    chunk = b"x" * (LARGEST_BODY // 4)
    assert ask([(b"content-length", b"10")], [chunk] * 3) == (200, 3 * len(chunk))
    status, read = ask([(b"content-length", b"10")], [chunk] * 8)
    assert status is None
    assert read <= LARGEST_BODY
    assert ask([(b"content-length", b"10"), (b"transfer-encoding", b"chunked")], [chunk])[0] == 411


def test_other_sites_are_refused():
    assert ask([(b"sec-fetch-site", b"cross-site")], method="GET")[0] == 403
    for own in (b"same-origin", b"none", b"same-site"):
        assert ask([(b"sec-fetch-site", own)], method="GET")[0] == 200


def test_cells_are_no_formulas():
    text, _ = _as_csv(
        [{"name": "=1+1", "score": -0.5}, {"name": "@x", "score": 1}, {"name": "plain", "score": 2}]
    )
    assert text.splitlines() == ["name,score", "'=1+1,-0.5", "'@x,1", "plain,2"]


def test_few_images_are_decoded_at_a_time(monkeypatch):
    running, most = [], []

    def slow(content):
        running.append(1)
        most.append(len(running))
        time.sleep(0.02)
        running.pop()
        raise upload.InvalidValue("no image")

    monkeypatch.setattr(upload, "decode", slow)
    encoder = object.__new__(upload.ImageEncoder)
    encoder._decoders = threading.BoundedSemaphore(upload.DECODERS)
    encoder.shape, encoder._decoding = (1, 8, 8), {}

    def one():
        with pytest.raises(ValueError, match="no image"):
            encoder(b"")

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 8
    assert np.max(most) <= upload.DECODERS
