"""The page over an index: what it answers, what it refuses, and how it looks to a browser."""

import csv
import datetime
import io
import json
import re
import shutil
import socket
import threading
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

from contrastive.encoders import ConvEncoder, save_encoder
from contrastive.evaluation import plots
from contrastive.retrieval import Index

pytest.importorskip("fastapi", reason="pip install 'contrastive-representations[explore]'")
pytest.importorskip("uvicorn", reason="pip install 'contrastive-representations[explore]'")
testclient = pytest.importorskip("fastapi.testclient", reason="the test client of FastAPI needs httpx")

from contrastive.retrieval.explorer import build_app, catalogue, explore, guard, serve, upload  # noqa: E402
from contrastive.retrieval.explorer.catalogue import Catalogue  # noqa: E402

HERE = "http://127.0.0.1:8765"
COUNT = 300


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return load_digits().data[:COUNT].astype(np.float32)


@pytest.fixture(scope="module")
def columns(vectors: np.ndarray) -> dict[str, list]:
    labels = load_digits().target[:COUNT].tolist()
    images = (vectors.reshape(-1, 8, 8) * 15.9).astype(np.uint8)
    return {
        "label": labels,
        "odd": [bool(label % 2) for label in labels],
        "ink": vectors.sum(axis=1).tolist(),
        "note": [f"<b>item {i}</b>" for i in range(COUNT)],
        "thumbnail": [png(image) if i != 5 else None for i, image in enumerate(images)],
    }


@pytest.fixture(scope="module")
def index(vectors: np.ndarray, columns: dict[str, list]) -> Index:
    return Index.build(vectors, ids=1000 + np.arange(COUNT), factory="Flat", metadata=columns)


@pytest.fixture(scope="module")
def other(vectors: np.ndarray) -> Index:
    """Every second pixel of the first 250 digits, by Euclidean distance, without columns."""
    return Index.build(vectors[:250, ::2], ids=1000 + np.arange(250), metric="euclidean", factory="Flat")


@pytest.fixture(autouse=True)
def _quick_map(monkeypatch: pytest.MonkeyPatch) -> None:
    """UMAP takes half a minute to compile."""
    monkeypatch.setattr(plots, "project", lambda vectors: (PCA(2).fit_transform(vectors), "PCA"))


@pytest.fixture
def client(index: Index) -> "testclient.TestClient":
    return testclient.TestClient(build_app(index), base_url=HERE)


@pytest.fixture
def pair(index: Index, other: Index) -> "testclient.TestClient":
    return testclient.TestClient(build_app(index, other, names=("pixels", "half")), base_url=HERE)


def neighbours(vectors: np.ndarray, row: int, k: int, allowed: np.ndarray) -> list[str]:
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    order = [i for i in np.argsort(-(unit @ unit[row])) if i != row and allowed[i]]
    return [str(1000 + i) for i in order[:k]]


def ready(client, path: str):
    """What is computed in the background, once it is there."""
    for _ in range(600):
        answer = client.get(path)
        if answer.status_code != 202:
            return answer
        assert answer.json()["status"] == "not yet"
        time.sleep(0.05)
    raise AssertionError(f"{path} was not computed")


def refused(answer: object, status: int, sentence: str) -> None:
    assert answer.status_code == status
    assert re.search(sentence, answer.json()["error"])


# ---------------------------------------------------------------------- answers


def test_neighbours_are_right(client, vectors, columns):
    found = client.post("/api/search", json={"id": "1007", "k": 20}).json()["main"]
    assert [item["id"] for item in found["neighbours"]] == neighbours(vectors, 7, 20, np.ones(COUNT, bool))
    scores = [item["score"] for item in found["neighbours"]]
    assert scores == sorted(scores, reverse=True)
    assert found["query"]["id"] == "1007"
    assert found["query"]["values"] == {
        name: pytest.approx(values[7]) for name, values in columns.items() if name != "thumbnail"
    }


@pytest.mark.parametrize(
    ("filter", "allowed"),
    [
        ({"label": 3}, lambda c: c["label"] == 3),
        ({"label": [3, 7.0]}, lambda c: np.isin(c["label"], [3, 7])),
        ({"odd": True, "label": [1, 2]}, lambda c: c["label"] == 1),
        ({"ink": {"low": 300, "high": None}}, lambda c: c["ink"] >= 300),
        ({"ink": {"low": 280.0, "high": 320.0}}, lambda c: (c["ink"] >= 280) & (c["ink"] <= 320)),
        ({"note": "<b>item 9</b>"}, lambda c: np.arange(COUNT) == 9),
    ],
)
def test_filters_leave_the_nearest_that_meet_them(client, vectors, columns, filter, allowed):
    mask = allowed({name: np.array(values) for name, values in columns.items() if name != "thumbnail"})
    found = client.post("/api/search", json={"id": "1007", "k": 10, "filter": filter}).json()["main"]
    assert [item["id"] for item in found["neighbours"]] == neighbours(vectors, 7, 10, mask)


def test_vector_queries_find_the_item_itself(client, vectors):
    asked = {"vector": vectors[3].tolist(), "k": 1}
    [found] = client.post("/api/search", json=asked).json()["main"]["neighbours"]
    assert found["id"] == "1003"
    assert found["score"] == pytest.approx(1, abs=1e-5)


def test_two_indexes_answer_beside_each_other(pair, vectors):
    found = pair.post("/api/search", json={"id": "1007", "k": 5}).json()
    assert len(found["main"]["neighbours"]) == 5
    half = vectors[:250, ::2]
    order = np.argsort(np.linalg.norm(half - half[7], axis=1))[1:6]
    assert [item["id"] for item in found["other"]["neighbours"]] == [str(1000 + i) for i in order]
    assert found["other"]["neighbours"][0]["values"] == {}
    absent = pair.post("/api/search", json={"id": "1299", "k": 5}).json()
    assert "no item of 'half' has the id '1299'" in absent["other"]["problem"]
    assert len(absent["main"]["neighbours"]) == 5
    filtered = pair.post("/api/search", json={"id": "1007", "filter": {"label": 3}}).json()
    assert "no column 'label' in 'half'" in filtered["other"]["problem"]
    uploaded = pair.post("/api/search", json={"vector": vectors[0].tolist()}).json()
    assert "first index only" in uploaded["other"]["problem"]


def test_columns_are_described_by_what_they_hold(client):
    info = client.get("/api/info").json()
    main = info["sides"]["main"]
    assert (main["count"], main["dim"], main["metric"], main["thumbnails"]) == (COUNT, 64, "cosine", True)
    kinds = {column["name"]: column["kind"] for column in main["columns"]}
    assert kinds == {"label": "choice", "odd": "choice", "ink": "range", "note": "text"}
    assert main["columns"][0]["values"] == list(range(10))
    assert info["upload"] is False


def test_map_has_every_item_inside_the_unit_square(client, columns):
    found = ready(client, "/api/map").json()
    points = np.array(found["points"])
    assert points.shape == (COUNT, 2)
    assert points.min() >= 0
    assert points.max() <= 1
    assert np.ptp(points, axis=0).max() == pytest.approx(1, abs=1e-3)
    assert found["ids"] == [str(1000 + i) for i in range(COUNT)]
    assert found["colours"]["label"] == columns["label"]
    assert found["method"] == "PCA"


def test_large_maps_are_samples_and_are_computed_once(index, monkeypatch):
    monkeypatch.setattr(catalogue, "MAP_POINTS", 50)
    calls = []
    monkeypatch.setattr(plots, "project", lambda v: (calls.append(len(v)), (v[:, 2:4], "PCA"))[1])
    client = testclient.TestClient(build_app(index), base_url=HERE)
    first, second = (ready(client, "/api/map").json() for _ in range(2))
    assert first == second
    assert calls == [50]
    assert first["rows"] == sorted(set(first["rows"]))
    assert len(ready(client, "/api/clusters?k=3").json()) == 50


def test_clusters_are_numbered_from_the_largest(client, columns):
    codes = np.array(ready(client, "/api/clusters?k=8").json())
    sizes = np.bincount(codes)
    assert len(codes) == COUNT
    assert (np.diff(sizes) <= 0).all()
    assert len(sizes) == 8
    for k in (1, 31):
        refused(client.get(f"/api/clusters?k={k}"), 422, "2 to 30 are possible")


def test_clusters_of_equal_vectors_are_one():
    same = Catalogue(Index.build(np.ones((20, 3), np.float32), factory="Flat"), "same")
    assert same.clusters(5) == [0] * 20


def test_thumbnails_come_from_the_table(client, columns):
    answer = client.get("/thumbnail/main/3")
    assert answer.content == columns["thumbnail"][3]
    assert answer.headers["content-type"] == "image/png"
    refused(client.get("/thumbnail/main/5"), 404, "no thumbnail")  # an empty cell
    refused(client.get(f"/thumbnail/main/{COUNT}"), 404, "no thumbnail")
    refused(client.get("/thumbnail/main/-1"), 404, "no thumbnail")
    refused(client.get("/thumbnail/other/3"), 404, "no second index")


def test_what_is_no_png_is_not_served_as_one():
    cells = [b"<script>alert(1)</script>", png(np.zeros((4, 4), np.uint8)) + b"\0" * (1 << 20)]
    index = Index.build(np.eye(2, dtype=np.float32), factory="Flat", metadata={"thumbnail": cells})
    client = testclient.TestClient(build_app(index), base_url=HERE)
    for row in range(2):
        refused(client.get(f"/thumbnail/main/{row}"), 404, "no thumbnail")


def test_selection_is_downloaded_whole(client, columns):
    answer = client.post("/api/export", json={"format": "csv", "ids": ["1007", "1003"]})
    assert answer.headers["content-disposition"] == 'attachment; filename="selection.csv"'
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert [row["id"] for row in rows] == ["1007", "1003"]
    assert list(rows[0]) == ["id", "label", "odd", "ink", "note"]
    assert rows[0]["note"] == columns["note"][7]
    answer = client.post("/api/export", json={"format": "json", "ids": ["1003"]})
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()[0]["label"] == columns["label"][3]
    refused(client.post("/api/export", json={"format": "json", "ids": ["1003", "7"]}), 404, "id '7'")


def test_a_random_item_is_one_of_them(client):
    assert {1000 <= int(client.get("/api/random").json()["id"]) < 1000 + COUNT for _ in range(20)} == {True}


def test_ids_may_be_any_text():
    names = ["../../etc/passwd", "<b>", "日本", " ", "a" * 900]
    index = Index.build(np.eye(5, dtype=np.float32), ids=names, factory="Flat")
    client = testclient.TestClient(build_app(index), base_url=HERE)
    for name in names:
        found = client.post("/api/search", json={"id": name, "k": 4}).json()["main"]
        assert found["query"]["id"] == name
        assert sorted(item["id"] for item in found["neighbours"]) == sorted(set(names) - {name})


def test_unusual_columns_are_told_as_json():
    low = datetime.datetime(2020, 1, 2, 3, 4, 5)
    table = pa.table(
        {
            "when": pa.array([low, None, low], pa.timestamp("ns")),
            "big": pa.array([2**60, -(2**60), 1]),
            "share": pa.array([float("nan"), float("inf"), 0.5]),
            "kind": pa.array(["a", "b", "a"]).dictionary_encode(),
            "long": pa.array(["x" * 10_000, "", None]),
            "vector": pa.array([[1.0], [2.0], [3.0]]),
            "blob": pa.array([b"\0", b"\1", b"\2"]),
        }
    )
    index = Index.build(np.eye(3, dtype=np.float32), factory="Flat", metadata=table)
    client = testclient.TestClient(build_app(index), base_url=HERE)
    shown = client.post("/api/search", json={"id": "0"}).json()["main"]["query"]["values"]
    assert shown["when"].startswith("2020-01-02 03:04:05")
    assert shown["big"] == str(2**60)
    assert shown["share"] is None
    assert shown["kind"] == "a"
    assert len(shown["long"]) == catalogue.LONGEST_TEXT
    assert shown.keys().isdisjoint({"vector", "blob"})
    kept = client.post("/api/export", json={"format": "json", "ids": ["0"]}).json()[0]
    assert kept["long"] == "x" * 10_000
    info = client.get("/api/info").json()["sides"]["main"]["columns"]
    assert {column["name"]: column["kind"] for column in info}["when"] == "none"
    found = client.post("/api/search", json={"id": "0", "filter": {"big": str(-(2**60))}}).json()["main"]
    assert [item["id"] for item in found["neighbours"]] == ["1"]
    found = client.post("/api/search", json={"id": "1", "filter": {"kind": "a"}}).json()["main"]
    assert sorted(item["id"] for item in found["neighbours"]) == ["0", "2"]


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        ({"id": "7"}, 404, "no item of 'index' has the id '7'"),
        ({"id": "1007.0"}, 404, "no item"),
        ({"id": "9" * 30}, 404, "no item"),
        ({"id": "٣"}, 404, "no item"),
        ({"id": "../../etc/passwd"}, 404, "no item"),
        ({"id": "a" * 1001}, 422, "id: .*1000"),
        ({"id": 1007}, 422, "id: .*string"),
        ({}, 422, "an id or a vector"),
        ({"id": "1007", "vector": [1.0]}, 422, "one of them"),
        ({"vector": [1.0, 2.0]}, 422, "2 values; this index holds vectors of 64"),
        ({"vector": ["1"] * 64}, 422, "vector.0: .*number"),
        ({"id": "1007", "k": 0}, 422, "k: .*greater"),
        ({"id": "1007", "k": 101}, 422, "k: .*less"),
        ({"id": "1007", "k": "5"}, 422, "k: .*integer"),
        ({"id": "1007", "more": 1}, 422, "more: .*not permitted"),
        ({"id": "1007", "filter": {"colour": 1}}, 422, "no column 'colour'"),
        ({"id": "1007", "filter": {"label": 11}}, 422, "'label' holds no 11"),
        ({"id": "1007", "filter": {"label": "3"}}, 422, "'label' holds no '3'"),
        ({"id": "1007", "filter": {"label": True}}, 422, "'label' holds no True"),
        ({"id": "1007", "filter": {"label": {"low": 1, "high": 2}}}, 422, "no range"),
        ({"id": "1007", "filter": {"ink": 3}}, 422, "give low and high"),
        ({"id": "1007", "filter": {"ink": {"low": 1}}}, 422, "filter.ink.*required"),
        ({"id": "1007", "filter": {"note": 3}}, 422, "give a text"),
        ({"id": "1007", "filter": {"label": {"$gt": 1}}}, 422, r"filter\.label"),
    ],
)
def test_searches_that_make_no_sense_are_refused(client, body, status, sentence):
    refused(client.post("/api/search", json=body), status, sentence)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"vector": [NaN]}', '{"vector": [1e999]}', "\0"])
def test_what_is_no_json_is_refused(client, content):
    answer = client.post("/api/search", content=content, headers={"Content-Type": "application/json"})
    refused(answer, 422, ".")


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd",
        "/..%2f..%2fetc%2fpasswd",
        "/thumbnail/main/..%2f..%2fetc%2fpasswd",
        "/thumbnail/../main/3/..",
        "/thumbnail/main/3.png",
        "/thumbnail/main/0x3",
        "/thumbnail/elsewhere/3",
        "/app.py",
        "/page.html",
        "/docs",
        "/openapi.json",
        "/static/page.html",
    ],
)
def test_nothing_else_is_there(client, path):
    assert client.get(path).status_code == 404
    assert client.get(path).json()["error"]


def test_wrong_methods_are_refused(client):
    for method, path in (("GET", "/api/search"), ("DELETE", "/"), ("POST", "/api/map")):
        assert client.request(method, path, content=b"").status_code in (405, 411)


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8765", "127.0.0.1.evil.example", "localhost@evil.example", "", "8.8.8.8"],
)
def test_foreign_hosts_are_refused(client, host):
    refused(client.get("/api/info", headers={"Host": host}), 403, "not this server")
    refused(client.post("/api/search", json={"id": "1007"}, headers={"Host": host}), 403, "not this server")


def test_own_hosts_are_known():
    for host in ("localhost", "LOCALHOST:1", "127.0.0.1:8765", "127.3.2.1", "[::1]:8765"):
        assert guard.is_own(host, "127.0.0.1")
    assert not guard.is_own("192.168.0.7", "127.0.0.1")
    assert guard.is_own("192.168.0.7:80", "192.168.0.7")
    assert guard.is_own("192.168.0.7:80", "0.0.0.0")
    assert guard.is_own(socket.gethostname(), "0.0.0.0")
    assert not guard.is_own("evil.example", "0.0.0.0")
    assert guard.is_own("box.lan:8765", "box.lan")


def test_foreign_pages_may_not_ask(client):
    for origin in ("http://evil.example", "null", "http://127.0.0.1:9999"):
        refused(client.post("/api/search", json={"id": "1007"}, headers={"Origin": origin}), 403, "own page")
    assert client.post("/api/search", json={"id": "1007"}, headers={"Origin": HERE}).status_code == 200
    preflight = client.options("/api/search", headers={"Origin": HERE, "Content-Length": "0"})
    assert not [name for name in preflight.headers if name.startswith("access-control")]


def test_long_bodies_are_refused_unread(client):
    refused(client.post("/api/search", content=b" " * (guard.LARGEST_BODY + 1)), 413, "at most 1,048,576")
    refused(client.post("/api/search", content=iter([b"{}"])), 411, "Content-Length")
    ids = ["1"] * 20_001
    refused(client.post("/api/export", json={"format": "csv", "ids": ids}), 422, "ids: .*20000")
    refused(client.post("/api/export", json={"format": "csv", "ids": []}), 422, "ids: .*1")
    refused(client.post("/api/export", json={"format": "exe", "ids": ["1"]}), 422, "format")


def test_empty_indexes_are_refused():
    with pytest.raises(ValueError, match="'index' is empty"):
        build_app(Index(4))


# ---------------------------------------------------------------------- uploads


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    encoder = ConvEncoder(in_channels=1, widths=(4, 8), blocks=(0, 0))
    save_encoder(encoder, folder / "encoder")
    data = {"source": "digits", "size": 8, "channels": 1}
    description = {"class_path": "contrastive.data.ImageData", "init_args": data}
    (folder / "config.yaml").write_text(yaml.safe_dump({"data": description}))
    return folder


@pytest.fixture(scope="module")
def uploading(run):
    """An index of random images by an encoder, and a client that can upload to it."""
    encoder = upload.ImageEncoder(run)
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8), dtype=np.uint8)
    vectors = np.stack([encoder(png(image)) for image in images])
    index = Index.build(vectors, factory="Flat", fingerprint=encoder.fingerprint)
    return testclient.TestClient(build_app(index, encoder=encoder), base_url=HERE), images, vectors


def test_uploaded_images_are_encoded_like_those_of_the_run(uploading):
    client, images, vectors = uploading
    assert client.get("/api/info").json()["upload"] is True
    for content in (png(images[4]), png(np.repeat(images[4][..., None], 3, axis=2))):
        answer = client.post("/api/encode", content=content, headers={"Content-Type": "image/png"})
        vector = answer.json()["vector"]
        assert np.allclose(vector, vectors[4], atol=1e-4)
        found = client.post("/api/search", json={"vector": vector, "k": 1}).json()["main"]
        assert found["query"] is None
        assert found["neighbours"][0]["id"] == "4"


@pytest.mark.parametrize(
    ("content", "kind", "status", "sentence"),
    [
        (b"", "image/png", 422, "not an image"),
        (b"<svg onload='alert(1)'/>", "image/svg+xml", 422, "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n", "image/eps", 422, "not an image"),
        (
            png(np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8))[:900],
            "image/png",
            422,
            "not an image",
        ),
        (png(np.zeros((4, 4), np.uint8)), "text/plain", 415, "Content-Type"),
        (b"\0" * (guard.LARGEST_UPLOAD + 1), "image/png", 413, "at most 10,485,760"),
    ],
)
def test_uploads_that_are_no_images_are_refused(uploading, content, kind, status, sentence):
    answer = uploading[0].post("/api/encode", content=content, headers={"Content-Type": kind})
    refused(answer, status, sentence)


def test_images_with_too_many_pixels_are_refused_before_decoding(uploading, monkeypatch):
    bomb = io.BytesIO()
    Image.new("1", (9000, 9000)).save(bomb, "png")
    assert len(bomb.getvalue()) < 100_000
    answer = uploading[0].post("/api/encode", content=bomb.getvalue(), headers={"Content-Type": "image/png"})
    refused(answer, 413, "9000 x 9000 pixels")


def test_uploads_need_an_encoder(client):
    answer = client.post("/api/encode", content=b"x", headers={"Content-Type": "image/png"})
    refused(answer, 404, r"run=\.\.\.")


def test_the_encoder_must_be_that_of_the_index(run, vectors):
    encoder = upload.ImageEncoder(run)
    index = Index.build(vectors, factory="Flat", fingerprint="another")
    with pytest.raises(ValueError, match=r"made with another encoder.*give the run"):
        build_app(index, encoder=encoder)


def test_a_run_without_its_data_is_refused(run, tmp_path):
    shutil.copytree(run / "encoder", tmp_path / "encoder")
    with pytest.raises(ValueError, match=r"size of the run's images is not known.*leave run out"):
        upload.ImageEncoder(tmp_path)


# ---------------------------------------------------------------------- the page


class Elements(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def test_page_needs_nothing_but_itself(client):
    answer = client.get("/")
    text = answer.text
    for tag, attributes in Elements(text).found:
        assert tag not in ("link", "iframe", "object")
        assert attributes.keys().isdisjoint({"src", "href", "style", "action"})
        assert not [name for name in attributes if name.startswith("on")]
    assert not re.search(r"https?:|@import|url\(|innerHTML|outerHTML|insertAdjacentHTML|eval\(", text)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert policy.count("sha256-") == 2
    for name, value in {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}.items():
        assert answer.headers[name] == value
    assert "access-control-allow-origin" not in answer.headers


def test_every_field_has_a_name(client):
    elements = Elements(client.get("/").text)
    identifiers = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    for tag, attributes in elements.found:
        if tag == "canvas":
            assert attributes["aria-label"]
            assert attributes["tabindex"] == "0"


# ---------------------------------------------------------------------- starting it


def test_explore_serves_saved_indexes(index, tmp_path, monkeypatch, capsys):
    import uvicorn

    served = {}

    def run(self, sockets):
        served["info"] = testclient.TestClient(self.config.app, base_url=HERE).get("/api/info").json()
        with socket.create_connection(sockets[0].getsockname()):
            served["reached"] = True

    monkeypatch.setattr(uvicorn.Server, "run", run)
    opened = []
    monkeypatch.setattr(serve.webbrowser, "open", opened.append)
    index.save(tmp_path / "digits")
    index.save(tmp_path / "again")
    explore(tmp_path / "digits", other=tmp_path / "again", port=0, open_browser=True)
    assert [side["name"] for side in served["info"]["sides"].values()] == ["digits", "again"]
    assert served["reached"]
    printed = capsys.readouterr().out
    assert re.search(r"http://127\.0\.0\.1:\d+ ", printed)
    assert opened[0] in printed
    assert "everyone" not in printed
    explore(index, host="0.0.0.0", port=0)
    assert "everyone who reaches this machine" in capsys.readouterr().out


def test_a_port_in_use_is_told(index, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=rf"port {port} of 127\.0\.0\.1 .*is in use.*port={port + 1}"):
            explore(index, port=port)
    with pytest.raises(ValueError, match="0 to 65535"):
        explore(index, port=70_000)

    def unknown(*given: object, **more: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(serve.socket, "getaddrinfo", unknown)
    with pytest.raises(OSError, match=r"Name or service not known\); give an address of this machine"):
        explore(index, host="nowhere", port=0)


def test_missing_packages_are_named(index, monkeypatch):
    monkeypatch.setattr(serve.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ImportError, match=r"fastapi, uvicorn.*pip install 'contrastive-representations\[explore\]'"
    ):
        explore(index)


# ---------------------------------------------------------------------- in a browser


@pytest.fixture
def browser(tmp_path):
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium drives the browser")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no chromium, or no chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for word in ("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run"):
        options.add_argument(f"--{word}")
    for word in ("background-networking", "component-update", "sync"):
        options.add_argument(f"--disable-{word}")
    options.add_argument(f"--user-data-dir={tmp_path / 'profile'}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield found
    found.quit()


@pytest.fixture
def address(index, other):
    app = build_app(index, other, names=("pixels", "half"))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = serve.build_server(app)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join(20)


def test_in_a_browser(browser, address, vectors, tmp_path):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import Select, WebDriverWait

    def all_of(selector):
        return browser.find_elements(By.CSS_SELECTOR, selector)

    def shown():
        return browser.execute_script(
            "return [...document.querySelectorAll('#lists > div:first-child .id')].map((e) => e.textContent)"
        )

    wait = WebDriverWait(browser, 120)  # the most that a busy machine needs
    browser.set_window_size(1280, 900)
    browser.get(f"{address}/#1007")
    everyone = np.ones(COUNT, bool)
    wait.until(lambda _: shown() == neighbours(vectors, 7, 12, everyone))
    wait.until(lambda _: browser.execute_script("return Boolean(state.maps.main && state.codes)"))
    assert "<b>item 7</b>" in all_of("#query")[0].text  # text, not markup
    assert not all_of("#query b")
    assert len(all_of("#lists > div")) == 2

    # A point of the map, where the page says that it is drawn.
    x, y, near = browser.execute_script(
        "const map = state.maps.main, p = place(map.points[3]);"
        "return [p[0] - size.width / 2, p[1] - size.height / 2, map.ids[nearest(p[0], p[1], 14)]]"
    )
    ActionChains(browser).move_to_element_with_offset(all_of("#canvas")[0], round(x), round(y)).perform()
    wait.until(lambda _: near in all_of("#tip")[0].text)
    ActionChains(browser).click().perform()
    wait.until(lambda _: shown() == neighbours(vectors, int(near) - 1000, 12, everyone))

    field = all_of("#id")[0]
    field.clear()
    field.send_keys("1020\n")
    wait.until(lambda _: shown() == neighbours(vectors, 20, 12, everyone))
    Select(all_of("#add-filter select")[0]).select_by_visible_text("label")
    Select(all_of("#filters select")[0]).select_by_visible_text("4")
    labels = load_digits().target[:COUNT]
    wait.until(lambda _: shown() == neighbours(vectors, 20, 12, labels == 4))
    browser.execute_script("arguments[0].click()", all_of("li input")[0])
    assert all_of("#count")[0].text == "1 selected"

    field.clear()
    field.send_keys("nobody\n")
    wait.until(lambda _: "has the id 'nobody'" in all_of("#problem")[0].text)
    browser.back()
    wait.until(lambda _: browser.current_url.endswith(f"#{near}"))

    for width, theme in ((1280, "light"), (800, "dark")):
        features = [{"name": "prefers-color-scheme", "value": theme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        browser.set_window_size(width, 1000)
        assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
        assert browser.save_screenshot(str(tmp_path / f"{width}-{theme}.png"))
    messages = [entry["message"] for entry in browser.get_log("browser")]
    assert [message for message in messages if "404" not in message] == []  # the id that nobody has


def test_importing_the_explorer_is_cheap():
    import subprocess
    import sys

    code = "import sys, contrastive; print([n for n in ('fastapi', 'torch', 'pyarrow') if n in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(answer.stdout.replace("'", '"')) == []
    assert (Path(serve.__file__).parent / "page.html").is_file()
