"""The download script against small copies of its sources on disk and on a local server."""

import gzip
import http.server
import importlib.util
import io
import json
import os
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest

from recsys import SequenceData

SCRIPT = Path(__file__).parents[2] / "scripts" / "fetch_recsys.py"

RATINGS = [(1, 10, 5, 300), (2, 11, 4, 200), (1, 11, 3, 100), (2, 10, 1, 200)]


@pytest.fixture
def script(monkeypatch):
    spec = importlib.util.spec_from_file_location("fetch_recsys", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    small = {name: (*source[:2], (2, 2, 4)) for name, source in module.SOURCES.items()}
    monkeypatch.setattr(module, "SOURCES", small)
    return module


def archive(path, files):
    with zipfile.ZipFile(path, "w") as file:
        for name, text in files.items():
            file.writestr(name, text.encode("latin-1"))


@pytest.fixture
def mirror(tmp_path):
    folder = tmp_path / "mirror"
    folder.mkdir()
    ratings = "".join("\t".join(map(str, row)) + "\n" for row in RATINGS)
    films = "10|Café (1994)|1-Jan|||" + "0|1|1\n" + "11|Nameless|||" + "|1|0|0\n"
    files = {"u.data": ratings, "u.item": films, "u.genre": "unknown|0\nDrama|1\nWar|2\n\n"}
    archive(folder / "ml-100k.zip", {f"ml-100k/{name}": text for name, text in files.items()})
    files = {
        "ratings.dat": ratings.replace("\t", "::"),
        "movies.dat": "10::Café (1994)::Drama|War\n11::Nameless::unknown\n",
    }
    archive(folder / "ml-1m.zip", {f"ml-1m/{name}": text for name, text in files.items()})
    reviews = [
        {"reviewerID": f"U{user}", "asin": f"B{item}", "overall": stars, "unixReviewTime": time}
        for user, item, stars, time in RATINGS
    ]
    lines = "".join(json.dumps(review) + "\n" for review in reviews)
    (folder / "reviews_Beauty_5.json.gz").write_bytes(gzip.compress(lines.encode()))
    products = [
        {"asin": "B11", "title": "It's a\tbrush", "categories": [["Beauty"], ["Beauty", "Tools"]]},
        {"asin": "B99", "title": "Other"},
        {"asin": "B10", "price": 1.5},
    ]
    (folder / "meta_Beauty.json.gz").write_bytes(
        gzip.compress("".join(f"{p!r}\n" for p in products).encode())
    )
    return folder


def histories(data):
    return [data.decode(data.sequences[row]).tolist() for row in range(data.num_users)]


@pytest.mark.parametrize("name", ["ml-100k", "ml-1m"])
def test_movielens(script, mirror, tmp_path, name, capsys):
    script.fetch(name, str(tmp_path / "new" / "out"), texts=True, mirror=mirror.as_uri())
    out = tmp_path / "new" / "out"
    data = SequenceData.read(out / f"{name}.seq.tsv.gz", items=out / f"{name}.items.tsv.gz")
    assert histories(data) == [[11, 10], [11, 10]]  # by time; equal times in the order of the file
    assert data.user_ids.tolist() == [1, 2]
    assert data.texts == [None, "Café (1994). Genres: Drama War", "Nameless. Genres: unknown"]
    assert "2 users, 2 items, 4 interactions" in capsys.readouterr().out
    assert sorted(os.listdir(out)) == [f"{name}.items.tsv.gz", f"{name}.seq.tsv.gz"]


def test_amazon(script, mirror, tmp_path):
    script.fetch("amazon-beauty", str(tmp_path), texts=True, mirror=mirror.as_uri())
    items = tmp_path / "amazon-beauty.items.tsv.gz"
    data = SequenceData.read(tmp_path / "amazon-beauty.seq.tsv.gz", items=items)
    assert data.user_ids.tolist() == ["U1", "U2"]
    assert histories(data) == [["B11", "B10"], ["B11", "B10"]]
    assert data.texts == [None, None, "It's a brush. Genres: Beauty Tools"]


def test_over_the_network(script, mirror, tmp_path):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(mirror))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            address = f"http://127.0.0.1:{server.server_port}"
            script.fetch("ml-1m", str(tmp_path), mirror=address)
            with pytest.raises(
                ConnectionError, match=r"cannot download .*reviews_Toys_and_Games_5.json.gz .*404"
            ):
                script.fetch("amazon-toys", str(tmp_path), mirror=address)
        finally:
            server.shutdown()
            thread.join()
        with pytest.raises(ConnectionError, match="Without a network, fetch the file elsewhere"):
            script._download(f"http://127.0.0.1:1/{server.server_port}")
        with pytest.raises(ConnectionError, match="give its folder as --mirror file:///folder"):
            script._download("ml-1m.zip")
    assert SequenceData.read(tmp_path / "ml-1m.seq.tsv.gz").num_interactions == 4
    assert not (tmp_path / "ml-1m.items.tsv.gz").exists()


def test_an_answer_that_is_cut_short(script, monkeypatch):
    answer = io.BytesIO(b"half")
    answer.headers = {"Content-Length": "100"}
    monkeypatch.setattr(script.urllib.request, "urlopen", lambda *_, **__: answer)
    with pytest.raises(ValueError, match=r"4 bytes came instead of 100"):
        script._download("http://x")


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("ml-1m", "ml-1m.zip", b"<html>", "no archive of ml-1m"),
        ("ml-1m", "ml-1m.zip", {"ml-1m/ratings.dat": "1::2::3::4\n"}, r"no archive of ml-1m .*movies.dat"),
        (
            "ml-1m",
            "ml-1m.zip",
            {"ml-1m/ratings.dat": "1::2::3::4\n1::2\n", "ml-1m/movies.dat": ""},
            r"line 2 of ratings.dat is '1::2'",
        ),
        (
            "ml-1m",
            "ml-1m.zip",
            {"ml-1m/ratings.dat": "1::2::3::4\n", "ml-1m/movies.dat": ""},
            r"ml-1m has \(1, 1, 1\) users, items and interactions, expected \(2, 2, 4\)",
        ),
        ("amazon-beauty", "reviews_Beauty_5.json.gz", b"no gzip", "damaged gzip file"),
        (
            "amazon-beauty",
            "reviews_Beauty_5.json.gz",
            gzip.compress(b'{"asin": 1}\n', mtime=0),
            "line 1 is no review",
        ),
        (
            "amazon-beauty",
            "meta_Beauty.json.gz",
            gzip.compress(b"{'asin': 'B10', 'title': \n", mtime=0),
            "line 1 is no product",
        ),
    ],
)
def test_refuses_what_is_not_the_data(script, mirror, tmp_path, name, file, content, message):
    if isinstance(content, dict):
        archive(mirror / file, content)
    else:
        (mirror / file).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        script.fetch(name, str(tmp_path / "out"), texts=True, mirror=mirror.as_uri())
    assert not (tmp_path / "out").exists()


def test_the_command(tmp_path):
    command = [sys.executable, str(SCRIPT), "--name", "ml-1m", "--mirror", (tmp_path / "none").as_uri()]
    found = subprocess.run(
        command,
        cwd=SCRIPT.parents[1],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": "."},
    )
    assert found.returncode == 1
    assert "ConnectionError: cannot download file:///" in found.stderr
