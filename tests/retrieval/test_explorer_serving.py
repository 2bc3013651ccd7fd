"""The explorer as it is served: maps in the background, requests that never end, bodies too large, how it ends."""

import contextlib
import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="pip install 'contrastive-representations[explore]'")
pytest.importorskip("uvicorn", reason="pip install 'contrastive-representations[explore]'")

from contrastive.evaluation import plots
from contrastive.retrieval import Index
from contrastive.retrieval.explorer import build_app, connections, guard, serve
from contrastive.retrieval.explorer.background import Background
from contrastive.retrieval.explorer.catalogue import Catalogue

MANY = 40  # connections that wait
VECTORS = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)


@pytest.fixture
def app(monkeypatch):
    monkeypatch.setattr(plots, "project", lambda vectors: (vectors[:, :2], "PCA"))
    return build_app(Index.build(VECTORS, factory="Flat"))


@contextlib.contextmanager
def serving(app):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = serve.build_server(app)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield listening.getsockname()[1]
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture
def port(app):
    with serving(app) as found:
        yield found


def ask(port, method, path, body=None, headers=()):
    """Status and JSON of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    with contextlib.closing(connection):
        connection.request(method, path, body, {"Content-Type": "application/json", **dict(headers)})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


def search(port):
    status, found = ask(port, "POST", "/api/search", json.dumps({"id": "3", "k": 4}))
    assert status == 200
    return len(found["main"]["neighbours"])


def said(connection, within=10.0):
    """All that comes through a connection until the server closes it."""
    connection.settimeout(within)
    content = b""
    while part := connection.recv(65536):
        content += part
    return content


# ---------------------------------------------------------------------- maps


def test_searches_are_answered_while_the_map_is_computed(port, monkeypatch):
    go, calls = threading.Event(), []

    def slow(vectors):
        calls.append(len(vectors))
        assert go.wait(30)
        return vectors[:, :2], "PCA"

    monkeypatch.setattr(plots, "project", slow)
    for _ in range(60):  # more than there are threads for requests
        status, told = ask(port, "GET", "/api/map")
        assert (status, told["status"]) == (202, "not yet")
    assert told["message"] == "Not yet: computing the map of 'index'."
    assert ask(port, "GET", "/api/clusters?k=4")[1]["message"].startswith(
        "Not yet: computing the 4 clusters of"
    )
    assert search(port) == 4
    go.set()
    for path in ("/api/map", "/api/clusters?k=4"):
        deadline = time.monotonic() + 30
        while (found := ask(port, "GET", path))[0] == 202:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert found[0] == 200
    assert len(found[1]) == 60
    assert calls == [60]


def test_what_failed_is_told_and_tried_again(capsys):
    background, answers = Background(), [MemoryError("too much"), 7]

    def work():
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    first = background.ask("map", work)
    assert isinstance(first.exception(timeout=10), MemoryError)
    assert background.ask("map", work) is first  # for whoever comes to hear of it
    assert background.ask("map", work).result(timeout=10) == 7
    assert background.ask("map", work).result(timeout=10) == 7
    assert "MemoryError: too much" in capsys.readouterr().err


def test_a_map_that_fails_is_a_sentence(port, monkeypatch):
    def fails(vectors):
        raise MemoryError("too much")

    monkeypatch.setattr(plots, "project", fails)
    while (found := ask(port, "GET", "/api/map"))[0] == 202:
        time.sleep(0.02)
    assert found == (500, {"error": "the map cannot be computed (MemoryError: too much)"})


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_the_explorer_ends_while_a_map_is_computed(tmp_path):
    script = (
        "import http.client, os, re, signal, sys, threading, time, numpy as np\n"
        "from contrastive.evaluation import plots\n"
        "from contrastive.retrieval import Index\n"
        "from contrastive.retrieval.explorer import explore\n"
        "plots.project = lambda vectors: time.sleep(600)\n"
        "explore(Index.build(np.eye(4, dtype=np.float32)), port=0)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as server:
        try:
            port = int(server.stdout.readline().split()[4].rsplit(":", 1)[1])
            assert ask(port, "GET", "/api/map")[0] == 202
            with socket.create_connection(("127.0.0.1", port)) as half:
                half.sendall(b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{")
                start = time.monotonic()
                server.send_signal(signal.SIGTERM)
                server.wait(20)
                assert time.monotonic() - start < 12
        finally:
            server.kill()


def test_searches_are_answered_while_images_are_encoded():
    go = threading.Event()

    def slow(content):
        assert go.wait(30)
        return np.zeros(8, np.float32)

    slow.fingerprint = None
    with serving(build_app(Index.build(VECTORS, factory="Flat"), encoder=slow)) as port:
        answers = []

        def upload():
            answers.append(ask(port, "POST", "/api/encode", b"x", {"Content-Type": "image/png"})[0])

        threads = [
            threading.Thread(target=upload) for _ in range(60)
        ]  # more than there are threads for requests
        for thread in threads:
            thread.start()
        time.sleep(0.5)  # until they wait; the search would be answered all the more if they did not yet
        assert search(port) == 4
        assert answers == []
        go.set()
        for thread in threads:
            thread.join(30)
        assert answers == [200] * 60


# ---------------------------------------------------------------------- requests that never end


@pytest.mark.parametrize(
    "beginning", [b"", b"GE", b"GET / HTTP/1.1\r\nHost: localhost\r\n", b"GET /" + b"a" * 9000]
)
def test_headers_that_never_end_are_no_connection(port, monkeypatch, beginning):
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.5)
    with contextlib.ExitStack() as opened:
        waiting = [opened.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(MANY)]
        for connection in waiting:
            connection.sendall(beginning)
        assert search(port) == 4  # nobody is kept out meanwhile
        assert [said(connection) for connection in waiting] == [b""] * MANY


def test_headers_in_drops_do_not_gain_time(port, monkeypatch):
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.6)
    with socket.create_connection(("127.0.0.1", port)) as connection:
        start = time.monotonic()
        connection.sendall(b"GET / HTTP/1.1\r\n")
        with contextlib.suppress(OSError):  # so the system tells that the other end is closed
            while time.monotonic() - start < 10:
                connection.sendall(b"A: b\r\n")
                time.sleep(0.05)
        assert 0.3 < time.monotonic() - start < 8


def test_a_second_request_on_a_connection_has_to_end_too(port, monkeypatch):
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.5)
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"GET /api/random HTTP/1.1\r\nHost: localhost\r\n\r\n")
        connection.settimeout(10)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        time.sleep(0.2)
        connection.sendall(b"GET /api/ran")
        assert b"HTTP/1.1" not in said(connection)


def test_answers_may_take_longer_than_headers(port, monkeypatch):
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.3)
    found = Catalogue.neighbours

    def slow(*given, **more):
        time.sleep(0.9)
        return found(*given, **more)

    monkeypatch.setattr(Catalogue, "neighbours", slow)
    assert search(port) == 4


def test_what_is_used_of_uvicorn_is_there(app, monkeypatch):
    """`Punctual` reads off `cycle` and `response_complete` whether a request is under way; without them, look there."""
    seen = []
    received = connections.Punctual.data_received

    def watched(self, data):
        before = getattr(self, "cycle", "gone")
        received(self, data)
        seen.append((before, getattr(self.cycle, "response_complete", "gone"), self))

    monkeypatch.setattr(connections.Punctual, "data_received", watched)
    with serving(app) as port:
        assert ask(port, "GET", "/api/random")[0] == 200
    [(before, begun, protocol)] = seen
    why = "uvicorn has renamed what contrastive.retrieval.explorer.connections uses of it: mend it there"
    assert (before, begun) == (None, False), why
    assert protocol.cycle.response_complete is True, why


def test_bodies_that_never_come_are_answered_and_closed(port, monkeypatch):
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.5)
    head = "POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(head.encode() + b'{"id": "3"')
        assert search(port) == 4
        answer = said(connection)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"the request did not arrive within 0.5 seconds; send it again" in answer


# ---------------------------------------------------------------------- bodies too large


@pytest.mark.parametrize(("path", "megabytes"), [("/api/encode", 11), ("/api/search", 20)])
def test_the_sender_of_too_much_reads_why(port, path, megabytes):
    status, told = ask(port, "POST", path, b"\0" * (megabytes << 20), {"Content-Type": "image/png"})
    assert status == 413
    assert f"{megabytes << 20:,} bytes were sent; at most" in told["error"]
    assert search(port) == 4


def test_who_asks_first_need_not_send_it(port):
    head = f"POST /api/encode HTTP/1.1\r\nHost: localhost\r\nContent-Length: {10**12}\r\nExpect: 100-continue\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(head.encode())
        connection.settimeout(10)
        answer = connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 413")
        assert b"1,000,000,000,000 bytes" in answer or b"1,000,000,000,000 bytes" in connection.recv(65536)


def test_no_more_is_read_of_a_refused_body_than_a_bound(port, monkeypatch):
    monkeypatch.setattr(guard, "LONGEST_PASSED_OVER", 1 << 20)
    head = f"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: {10**12}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.settimeout(10)
        connection.sendall(head.encode())
        sent = 0
        with contextlib.suppress(OSError):  # the connection is closed, and reset
            while sent < 1 << 30:
                sent += connection.send(b"\0" * (1 << 16))
    assert 1 << 20 <= sent < 64 << 20  # the rest lies in buffers of the system
    assert search(port) == 4


def test_all_bodies_together_are_bounded(app, port, monkeypatch):
    monkeypatch.setattr(guard, "MOST_HELD", 3 << 20)
    assert search(port) == 4
    guarded = app.middleware_stack
    while not isinstance(guarded, guard.Guard):
        guarded = guarded.app

    def until(held):
        deadline = time.monotonic() + 20
        while guarded.held != held:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    until(0)
    head = f"POST /api/encode HTTP/1.1\r\nHost: localhost\r\nContent-Length: {3 << 20}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(head + b"\0" * ((3 << 20) - 1))
        until((3 << 20) - 1)
        status, told = ask(port, "POST", "/api/encode", b"\0" * (1 << 20))
        assert status == 503
        assert "too many large requests" in told["error"]
        assert search(port) == 4  # a small one passes
    until(0)  # the sender has gone, and with it what was held
    assert ask(port, "POST", "/api/encode", b"\0" * (1 << 20))[0] == 404  # there is no encoder
