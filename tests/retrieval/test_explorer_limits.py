"""The explorer cannot be made to read more than it accepts, to answer other sites, or to hand out formulas."""

import asyncio
import io
import struct
import threading
import time
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

pytest.importorskip("fastapi", reason="pip install 'contrastive-representations[explore]'")

from contrastive.retrieval import Index
from contrastive.retrieval.explorer import pictures, upload
from contrastive.retrieval.explorer.app import _as_csv
from contrastive.retrieval.explorer.catalogue import Catalogue
from contrastive.retrieval.explorer.guard import LARGEST_BODY, Guard
from contrastive.retrieval.explorer.pictures import PNG, TooLarge, decode, is_whole_png


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
    assert status == 413
    assert read <= LARGEST_BODY
    assert ask([(b"content-length", b"10"), (b"transfer-encoding", b"chunked")], [chunk])[0] == 411


def test_half_a_request_is_not_acted_on():
    ran = []

    async def app(scope, receive, send):
        ran.append(await receive())

    messages = [
        {"type": "http.request", "body": b'{"id": "1"}', "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def receive():
        return messages.pop(0)

    fields = [(b"host", b"localhost"), (b"content-length", b"50")]
    scope = {"type": "http", "method": "POST", "path": "/api/search", "headers": fields}
    guard = Guard(app, "127.0.0.1", "")
    asyncio.run(guard(scope, receive, receive))
    assert (ran, messages, guard.held) == ([], [], 0)


def test_other_sites_are_refused():
    assert ask([(b"sec-fetch-site", b"cross-site")], method="GET")[0] == 403
    for own in (b"same-origin", b"none", b"same-site"):
        assert ask([(b"sec-fetch-site", own)], method="GET")[0] == 200


def test_links_to_the_page_can_be_followed():
    link = [
        (b"sec-fetch-site", b"cross-site"),
        (b"sec-fetch-mode", b"navigate"),
        (b"sec-fetch-dest", b"document"),
    ]
    assert ask(link, method="GET", path="/")[0] == 200
    assert ask(link[:2], method="GET", path="/")[0] == 200
    assert ask(link, method="GET", path="/api/map")[0] == 403
    assert ask([*link, (b"content-length", b"0")], method="POST", path="/")[0] == 403
    assert ask([*link[:2], (b"sec-fetch-dest", b"iframe")], method="GET", path="/")[0] == 403
    assert ask([link[0], (b"sec-fetch-mode", b"no-cors")], method="GET", path="/")[0] == 403
    assert ask([*link, (b"origin", b"http://evil.example")], method="GET", path="/")[0] == 403


def test_cells_are_no_formulas():
    text, _ = _as_csv(
        [{"name": "=1+1", "score": -0.5}, {"name": "@x", "score": 1}, {"name": "plain", "score": 2}]
    )
    assert text.splitlines() == ["name,score", "'=1+1,-0.5", "'@x,1", "plain,2"]


def test_names_of_columns_are_no_formulas():
    text, _ = _as_csv([{"id": "a", "=cmd|'/c calc'!A1": "x", "＠sum": 1}])
    assert text.splitlines()[0] == "id,'=cmd|'/c calc'!A1,'＠sum"


def test_negative_numbers_stay_numbers():
    text, _ = _as_csv(
        [{"id": "-1", "n": -2}, {"id": "-12345678901234567890", "n": 1}, {"id": "-1+cmd", "n": 0}]
    )
    assert text.splitlines()[1:] == ["-1,-2", "-12345678901234567890,1", "'-1+cmd,0"]


def picture(width, height, kind="png", mode="L", **options):
    buffer = io.BytesIO()
    Image.new(mode, (width, height)).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [picture(8000, 7000), picture(8000, 7000, "jpeg", quality=5), picture(60_000, 1000, mode="1")],
    ids=["png", "jpeg", "bits"],
)
def test_sizes_are_read_before_anything_is_decoded(content, monkeypatch):
    def load(self):
        raise AssertionError("it was decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    with pytest.raises(
        TooLarge, match=r"the image has \d+ x \d+ pixels; at most 50,000,000 are accepted; scale"
    ):
        decode(content)


def test_bombs_that_pillow_refuses_are_too_large_as_well():
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    content = PNG
    for chunk in (b"IHDR" + header, b"IDAT"):
        content += struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    with pytest.raises(TooLarge, match="too many pixels"):
        decode(content)


def test_large_images_are_made_smaller(monkeypatch):
    monkeypatch.setattr(pictures, "KEPT_PIXELS", 10_000)
    monkeypatch.setattr(pictures, "MOST_PIXELS", 100_000)
    values = (
        np.random.default_rng(0).integers(0, 256, (60, 100, 4)).astype(np.uint8).repeat(3, 0).repeat(3, 1)
    )
    for mode, channels in (("L", 0), ("RGB", slice(3)), ("RGBA", slice(4))):
        whole = Image.fromarray(values[..., channels])
        assert whole.mode == mode
        buffer = io.BytesIO()
        whole.save(buffer, "png", exif=turned())
        found = decode(buffer.getvalue())
        assert found.size == (60, 100)  # a third, and upright
        assert (np.array(found.transpose(Image.Transpose.ROTATE_90)) == values[::3, ::3, channels]).all()
    for mode in ("1", "P", "I;16"):
        assert decode(picture(300, 180, mode=mode)).size in ((100, 60), (300, 180))
    assert decode(picture(100, 100)).size == (100, 100)


def test_jpeg_is_not_decoded_whole(monkeypatch):
    monkeypatch.setattr(pictures, "KEPT_PIXELS", 10_000)
    sizes = []
    load = ImageFile.ImageFile.load
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: (sizes.append(self.size), load(self))[1])
    assert decode(picture(400, 320, "jpeg", mode="RGB", exif=turned())).size == (80, 100)
    assert sizes
    assert set(sizes) == {(100, 80)}


def turned():
    exif = Image.Exif()
    exif[274] = 6
    return exif


def test_thumbnails_are_whole_pictures():
    good = picture(8, 8)
    assert is_whole_png(good)
    assert not is_whole_png(b"")
    assert not is_whole_png(PNG)
    assert not is_whole_png(PNG + b"<script>alert(1)</script>" * 9)
    assert not is_whole_png(good + b"<script>")
    assert not is_whole_png(b"GIF89a" + good)
    assert not is_whole_png(picture(8, 8, "jpeg"))
    assert not is_whole_png(picture(3000, 3000))
    for cut in range(len(good)):
        assert not is_whole_png(good[:cut])
    damaged = bytearray(picture(64, 64))
    damaged[60] ^= 0xFF
    assert not is_whole_png(bytes(damaged))
    index = Index.build(
        np.eye(3, dtype=np.float32), metadata={"thumbnail": [good, PNG + b"junk" * 40, good + b"PK\3\4"]}
    )
    catalogue = Catalogue(index, "index")
    assert [catalogue.thumbnail(row) for row in range(3)] == [good, None, None]


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
