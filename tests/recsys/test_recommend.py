"""Recommendations against the full ranking, filters, new items, saved folders, and the command."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml

from contrastive import save_encoder
from contrastive.cli import main
from recsys.data import SequenceData, Sequences
from recsys.encoders import GRU4Rec, SASRec, SequenceEncoder
from recsys.recommend import Recommender


class Last(SequenceEncoder):
    """The state after a history is the vector of its last item."""

    def __init__(self, num_items, dim=8, max_length=5):
        super().__init__(num_items, dim, max_length)
        self.config = {"num_items": num_items, "dim": dim, "max_length": max_length}
        torch.nn.init.normal_(self.item_embedding.weight)

    def forward(self, items, lengths):
        return self.item_embedding(items)


@pytest.fixture(scope="module")
def data():
    """Histories over 60 items with string ids, texts and attributes."""
    made = SequenceData.generate(users=80, items=60, seed=3, clusters=5)
    frame = {
        "user": [f"user {row}" for row in np.repeat(np.arange(80), made.sequences.lengths)],
        "item": [f"item {code:03d}" for code in made.sequences.items],
    }
    texts = {f"item {code:03d}": text for code, text in enumerate(made.texts) if code}
    attributes = {f"item {code:03d}": made.attributes[code].tolist() for code in range(1, 61)}
    return SequenceData.from_dataframe(frame, "user", "item", items=texts, attributes=attributes)


@pytest.fixture(params=["SASRec", "SASRec at the end", "GRU4Rec"])
def encoder(request, data):
    torch.manual_seed(0)
    if request.param == "GRU4Rec":
        made = GRU4Rec(data.num_items, dim=16, hidden_dim=24, max_length=10)
    else:
        positions = "end" if "end" in request.param else "start"
        made = SASRec(data.num_items, dim=16, inner_dim=32, max_length=10, positions=positions)
    torch.nn.init.normal_(made.item_embedding.weight)  # far apart, so that no scores are nearly the same
    return made


@pytest.fixture
def recommender(data):
    torch.manual_seed(0)
    return Recommender.from_model(Last(data.num_items), data)


def histories_of(data, count=20):
    return [data.decode(data.sequences[row]).tolist() for row in range(count)]


def full_ranking(encoder, data, history, max_length, banned=()):
    """All ids, best first, and their scores, by one product with every item's vector."""
    codes = data.encode(history)[-max_length:]
    encoder.eval()
    with torch.no_grad():
        state = encoder(torch.as_tensor(codes)[None], torch.tensor([len(codes)]))[0, len(codes) - 1]
        scores = encoder.item_vectors() @ state
    scores[0] = -torch.inf
    scores[data.encode(list(banned))] = -torch.inf
    order = torch.argsort(scores, descending=True)[: data.num_items - len(set(banned))]
    return data.decode(order.numpy()).tolist(), scores[order].numpy()


# ---------------------------------------------------------------------- recommending


@pytest.mark.parametrize("max_length", [None, 4])
@pytest.mark.parametrize("exclude_seen", [False, True])
def test_recommendations_are_the_full_ranking_cut_off(encoder, data, max_length, exclude_seen):
    recommender = Recommender.from_model(encoder, data, max_length=max_length)
    histories = histories_of(data)
    assert len({len(history) for history in histories}) > 4
    assert max(map(len, histories)) > 10
    many = recommender.recommend(histories, k=7, exclude_seen=exclude_seen)
    assert len(many) == len(histories)
    for history, found in zip(histories, many, strict=True):
        banned = history if exclude_seen else ()
        ids, scores = full_ranking(encoder, data, history, max_length or 10, banned)
        assert found.ids == ids[:7]
        np.testing.assert_allclose(found.scores, scores[:7], rtol=1e-4, atol=1e-5)
        assert (found.skipped, found.cold) == (0, False)
        one = recommender.recommend(history, k=7, exclude_seen=exclude_seen)
        assert one.ids == found.ids
        np.testing.assert_allclose(one.scores, found.scores, rtol=1e-4, atol=1e-5)


def test_the_model_keeps_its_mode_and_later_training_does_not_reach_the_recommender(data):
    encoder = SASRec(data.num_items, dim=16, max_length=10).train()
    recommender = Recommender.from_model(encoder, data)
    history = histories_of(data)[0]
    before = recommender.recommend(history)
    assert encoder.training
    with torch.no_grad():
        encoder.item_embedding.weight.add_(torch.randn_like(encoder.item_embedding.weight))
    after = recommender.recommend(history)
    assert after.ids == before.ids
    assert (after.scores == before.scores).all()


def test_unseen_items_are_all_there_and_no_more(recommender, data):
    everything = recommender.ids
    assert everything == data.item_ids[1:].tolist()
    history = everything[:50]
    found = recommender.recommend(history, k=60, exclude_seen=True)
    assert sorted(found.ids) == everything[50:]
    assert len(recommender.recommend(history, k=60).ids) == 60
    assert len(recommender.recommend(history, k=1000).ids) == 60
    assert recommender.recommend(everything, k=3, exclude_seen=True).ids == []
    ragged = recommender.recommend([everything[:1] * 9, history, everything], k=12, exclude_seen=True)
    assert [len(one.ids) for one in ragged] == [12, 10, 0]


@pytest.mark.parametrize("factory", ["HNSW4", "IVF8,Flat", "IVF4,PQ4x4"])
def test_an_approximate_index_comes_back_with_k_too(data, factory):
    encoder = Last(data.num_items)
    exact = Recommender.from_model(encoder, data)
    recommender = Recommender.from_model(encoder, data, factory=factory)
    for history in histories_of(data, 5):
        full = exact.recommend(history, k=60, exclude_seen=True)
        found = recommender.recommend(history, k=len(full.ids), exclude_seen=True)
        assert sorted(found.ids) == sorted(full.ids)
        few = recommender.recommend(history, k=4, filter=recommender.ids[:6], exclude_seen=True)
        assert few.ids == exact.recommend(history, k=4, filter=recommender.ids[:6], exclude_seen=True).ids


def test_only_allowed_items_are_recommended(recommender, data):
    history = histories_of(data)[0]
    everything = recommender.recommend(history, k=60).ids
    allowed = set(everything[10:40:3])
    expected = [item for item in everything if item in allowed]
    for given in (allowed, sorted(allowed), np.array(sorted(allowed)), [*allowed, "unknown"]):
        assert recommender.recommend(history, k=60, filter=given).ids == expected
    assert recommender.recommend(history, filter=[]).ids == []


def test_columns_filter_too(data):
    colours = [["red", "green", "blue"][code % 3] for code in range(60)]
    columns = {"colour": colours, "price": np.arange(60) / 2}
    recommender = Recommender.from_model(Last(60), data, columns=columns)
    history = histories_of(data)[0]
    everything = recommender.recommend(history, k=60).ids
    found = recommender.recommend(history, k=60, filter={"colour": ["red", "blue"], "price": slice(5, 10)})
    codes = data.encode(found.ids) - 1
    assert sorted(codes) == [code for code in range(10, 21) if code % 3 != 1]
    assert found.ids == [item for item in everything if item in found.ids]
    popular = recommender.recommend([], k=60, filter={"colour": "green"}, cold="popular")
    assert sorted(data.encode(popular.ids) - 1) == list(range(1, 60, 3))
    with pytest.raises(ValueError, match="no column 'size'"):
        recommender.recommend(history, filter={"size": 3})


def test_integer_ids_of_any_kind_are_understood():
    data = SequenceData.generate(users=30, items=40, seed=1)
    recommender = Recommender.from_model(Last(40), data)
    expected = recommender.recommend([3, 8], k=5)
    assert all(type(item) is int for item in expected.ids)
    for history in (np.array([3, 8]), np.array([3, 8], np.int32), (3, 8)):
        assert recommender.recommend(history, k=5).ids == expected.ids
    many = recommender.recommend(np.array([[3, 8], [8, 3]]), k=5)
    assert [one.ids for one in many] == [expected.ids, recommender.recommend([8, 3], k=5).ids]
    assert recommender.recommend([[3, 8]], k=5)[0].ids == expected.ids
    recommender.add_items(np.array([41, 99]), like={41: [3], 99: np.array([3, 8])})
    assert recommender.ids[-2:] == [41, 99]
    assert type(recommender.recommend([99], k=42).ids[0]) is int


def test_numbers_of_numpy_are_taken_and_others_refused_by_name(recommender):
    assert (
        recommender.recommend(["item 001"], k=np.int64(5)).ids == recommender.recommend(["item 001"], k=5).ids
    )
    for wrong in (0, 1.5, float("nan"), True, "5"):
        with pytest.raises(
            (ValueError, TypeError), match=r"recommend: k is .*; give a whole number of 1 or more"
        ):
            recommender.recommend(["item 001"], k=wrong)
        with pytest.raises((ValueError, TypeError), match=r"tune: k is .*; give a whole number"):
            recommender.tune([["item 001"]], k=wrong)
    with pytest.raises(ValueError, match=r"tune: recall is 1\.2; give a number in \(0, 1\]"):
        recommender.tune([["item 001"]], 1.2)
    with pytest.raises(TypeError, match="a title is 5; give a text or None"):
        recommender.add_items(["new"], like={"new": ["item 001"]}, titles=[5])


def test_unknown_items_are_passed_over_and_counted(recommender, data):
    history = histories_of(data)[0]
    expected = recommender.recommend(history)
    mixed = recommender.recommend(["nothing", *history[:2], 7, None, *history[2:], "no item"])
    assert mixed.ids == expected.ids
    assert mixed.skipped == 4
    assert not mixed.cold


def test_a_history_with_nothing_known_is_said_clearly_or_gets_what_is_popular(recommender, data):
    with pytest.raises(
        ValueError, match=r"1 of 3 histories hold no known item, the first at 1: \[5, 6\]; ids here are"
    ):
        recommender.recommend([recommender.ids[:2], [5, 6], recommender.ids[:1]])
    with pytest.raises(ValueError, match="1 of 1 histories"):
        recommender.recommend([])
    popular = recommender.recommend([[5, 6], recommender.ids[:2], []], k=4, cold="popular")
    assert [one.cold for one in popular] == [True, False, True]
    assert [one.skipped for one in popular] == [2, 0, 0]
    counts = np.bincount(data.sequences.items, minlength=61)[1:]
    order = np.lexsort((np.arange(60), -counts))[:4]
    assert popular[0].ids == popular[2].ids == [recommender.ids[code] for code in order]
    assert popular[0].scores.tolist() == counts[order].tolist()


def test_calls_that_make_no_sense_are_refused(recommender, data):
    with pytest.raises(TypeError, match="histories='item 001'"):
        recommender.recommend("item 001")
    with pytest.raises(TypeError, match="filter='item 001'"):
        recommender.recommend(["item 001"], filter="item 001")
    for mixed in (["item 001", ["item 002"]], [["item 001"], 5]):
        with pytest.raises(TypeError, match="neither an id nor a list of ids"):
            recommender.recommend(mixed)
    with pytest.raises(ValueError, match="k is 0"):
        recommender.recommend(["item 001"], k=0)
    with pytest.raises(ValueError, match="cold is 'warm'"):
        recommender.recommend(["item 001"], cold="warm")
    with pytest.raises(ValueError, match="has 59 items and reads 5, the data have 60"):
        Recommender.from_model(Last(59), data)
    with pytest.raises(ValueError, match="max_length is 6"):
        Recommender.from_model(Last(60), data, max_length=6)
    with pytest.raises(ValueError, match="columns has 'title'"):
        Recommender.from_model(Last(60), data, columns={"title": ["x"] * 60})
    with pytest.raises(ValueError, match="column 'colour' has 2 values for 60 items"):
        Recommender.from_model(Last(60), data, columns={"colour": ["x"] * 2})


def test_titles_and_histories_are_kept_if_asked_for(recommender, data):
    assert recommender.titles(["item 005", "item 001"]) == [
        data.texts[data.encode([i])[0]] for i in ("item 005", "item 001")
    ]
    assert "item 005" in recommender
    assert "item 5" not in recommender
    assert len(recommender) == 60
    with pytest.raises(KeyError, match="no item 'item 5' among the 60"):
        recommender.titles(["item 5"])
    with pytest.raises(KeyError, match="no histories were kept"):
        recommender.history("user 3")
    keeping = Recommender.from_model(Last(60), data, histories=True)
    row = data.user_ids.tolist().index("user 3")
    assert keeping.history("user 3") == data.decode(data.sequences[row]).tolist()
    with pytest.raises(KeyError, match="no user 'user 99'; 80 users are known"):
        keeping.history("user 99")


# ---------------------------------------------------------------------- new items


def test_new_items_start_amid_those_they_resemble(recommender, data):
    before = recommender.encoder.item_vectors().detach().clone()
    alike = recommender.ids[:3]
    recommender.add_items(["new b", "new a"], like={"new a": alike, "new b": alike[:1]}, titles=["B", None])
    vectors = recommender.encoder.item_vectors().detach()
    assert (vectors[:61] == before).all()
    typical = before[1:].norm(dim=1).median()
    mean = before[1:4].mean(0)
    torch.testing.assert_close(vectors[62], mean / mean.norm() * typical)
    torch.testing.assert_close(vectors[61], before[1] / before[1].norm() * typical)
    assert recommender.titles(["new b", "new a"]) == ["B", None]
    assert len(recommender) == 62
    found = recommender.recommend(["new a"], k=62)  # a new item in a history is read
    assert found.skipped == 0
    scores = (vectors[1:] @ vectors[62]).numpy()
    assert found.ids == [recommender.ids[code] for code in np.argsort(-scores)]
    assert {"new a", "new b"} <= set(recommender.recommend(["item 001"], k=62).ids)
    assert recommender.recommend([], k=62, cold="popular").ids[-2:] == ["new b", "new a"]


def test_new_items_can_be_found_by_their_attributes(recommender, data):
    has = [{str(data.attribute_ids[a]) for a in data.attributes[code].tolist()} for code in range(1, 61)]
    names = sorted(has[6])
    before = recommender.encoder.item_vectors().detach().clone()
    recommender.add_items(["twin"], attributes={"twin": [*names, "never seen"]}, neighbours=3)
    every = sorted(set().union(*has))
    counts = {name: sum(name in row for row in [*has, has[6]]) for name in every}
    rows = np.array([[(name in row) * np.log(61 / counts[name]) for name in every] for row in has])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    closest = np.argsort(-(rows @ rows[6]).round(12), kind="stable")[:3]
    assert 6 in closest
    mean = before[closest + 1].mean(0)
    typical = before[1:].norm(dim=1).median()
    torch.testing.assert_close(recommender.encoder.item_vectors().detach()[61], mean / mean.norm() * typical)
    recommender.add_items(["twin's twin"], attributes={"twin's twin": names})
    with pytest.raises(ValueError, match="no known item shares an attribute with 'alien'"):
        recommender.add_items(["alien"], attributes={"alien": ["never seen before"]})
    assert len(recommender) == 62


@pytest.mark.parametrize("factory", ["Flat", "HNSW4"])
def test_new_items_are_saved(data, factory, tmp_path):
    recommender = Recommender.from_model(
        SASRec(60, dim=8, max_length=10), data, factory=factory, columns={"colour": ["red"] * 60}
    )
    vectors = 10 * np.eye(8, dtype=np.float32)[:2]
    recommender.add_items(["x", "y"], vectors=vectors, columns={"colour": ["blue", "red"]})
    recommender.save(tmp_path)
    loaded = Recommender.load(tmp_path)
    assert loaded.ids == [*data.item_ids[1:], "x", "y"]
    for history in (["x", "item 003"], ["item 002"]):
        for filter in (None, {"colour": "blue"}):
            a, b = (one.recommend(history, k=5, filter=filter) for one in (recommender, loaded))
            assert a.ids == b.ids
            np.testing.assert_allclose(a.scores, b.scores, atol=1e-6)
    assert b.ids == ["x"]
    assert loaded.encoder.num_items == 62


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"ids": ["item 001"], "like": {}}, ValueError, "1 of them here already"),
        ({"ids": ["a", "a"], "vectors": torch.zeros(2, 8)}, ValueError, "1 different"),
        ({"ids": [], "vectors": torch.zeros(0, 8)}, ValueError, "0 ids"),
        ({"ids": [5], "vectors": torch.zeros(1, 8)}, TypeError, "give strs"),
        ({"ids": ["a"]}, ValueError, "give one of"),
        ({"ids": ["a"], "like": {}, "attributes": {}}, ValueError, "give one of"),
        ({"ids": ["a"], "like": {"b": ["item 001"]}}, KeyError, "no items for 'a'"),
        ({"ids": ["a"], "like": {"a": ["item 999"]}}, KeyError, "no item 'item 999'"),
        ({"ids": ["a"], "vectors": torch.zeros(1, 7)}, ValueError, r"shape \(1, 7\)"),
        ({"ids": ["a"], "vectors": torch.full((1, 8), torch.nan)}, ValueError, "NaN"),
        ({"ids": ["a"], "vectors": torch.zeros(1, 8), "titles": ["x", "y"]}, ValueError, "2 titles"),
        ({"ids": ["a"], "vectors": torch.zeros(1, 8), "columns": {"colour": ["red"]}}, ValueError, "columns"),
        ({"ids": ["a"], "attributes": {"a": ["1"]}, "neighbours": 0}, ValueError, "neighbours is 0"),
    ],
)
def test_what_is_refused_changes_nothing(recommender, arguments, error, match):
    before = recommender.recommend(["item 004"], k=60)
    with pytest.raises(error, match=match):
        recommender.add_items(**arguments)
    after = recommender.recommend(["item 004"], k=60)
    assert after.ids == before.ids
    assert len(recommender) == recommender.encoder.num_items == len(recommender.index) == 60


# ---------------------------------------------------------------------- on disk


@pytest.mark.parametrize("factory", ["Flat", "IVF4,Flat"])
def test_a_saved_recommender_recommends_the_same(encoder, data, factory, tmp_path):
    recommender = Recommender.from_model(encoder, data, factory=factory, max_length=6, histories=True)
    histories = histories_of(data)
    expected = recommender.recommend(histories, k=8, exclude_seen=True)
    assert recommender.save(tmp_path / "run" / "recommender") == tmp_path / "run" / "recommender"
    for folder in (tmp_path / "run" / "recommender", tmp_path / "run"):
        loaded = Recommender.load(folder)
        assert type(loaded.encoder) is type(encoder)
        assert loaded.max_length == 6
        assert loaded.data_fingerprint == data.fingerprint
        assert loaded.users == data.user_ids.tolist()
        assert loaded.history("user 3") == recommender.history("user 3")
        for a, b in zip(loaded.recommend(histories, k=8, exclude_seen=True), expected, strict=True):
            assert a.ids == b.ids
            assert (a.scores == b.scores).all()
    recommender.save(tmp_path / "run" / "recommender")  # in place of the old one
    assert len(list((tmp_path / "run" / "recommender").iterdir())) == 2


def test_integer_ids_and_missing_texts_survive_a_folder(tmp_path):
    data = SequenceData(
        Sequences.from_lists([[1, 2, 3], [3, 1]]), np.array([10, 20]), np.array([None, 4, 7, 9], object)
    )
    Recommender.from_model(Last(3), data, histories=True).save(tmp_path)
    with pytest.raises(ValueError, match="only SASRec, GRU4Rec are built by name"):
        Recommender.load(tmp_path)
    loaded = Recommender.load(tmp_path, encoder=Last(3))
    assert loaded.ids == [4, 7, 9]
    assert loaded.history(20) == [9, 4]
    assert loaded.titles([4]) == [None]


def test_a_run_makes_its_recommender(tmp_path):
    data = SequenceData.generate(users=30, items=40, seed=5)
    encoder = SASRec(40, dim=8, max_length=12)
    save_encoder(encoder, tmp_path / "encoder")
    arguments = {"source": "synthetic", "seed": 5, "max_length": 6, "synthetic": {"users": 30, "items": 40}}
    config = {"data": {"class_path": "recsys.RecommenderData", "init_args": arguments}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    loaded = Recommender.from_run(tmp_path)
    expected = Recommender.from_model(encoder, data, max_length=6)
    assert loaded.max_length == 6
    assert loaded.data_fingerprint == data.fingerprint
    history = loaded.history(7)
    assert loaded.recommend(history).ids == expected.recommend(history).ids
    config["data"]["class_path"] = "contrastive.ImageData"
    config["data"]["init_args"] = {"source": "digits"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match="names no RecommenderData"):
        Recommender.from_run(tmp_path)


def test_other_folders_are_neither_overwritten_nor_read(recommender, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="thesis"):
        recommender.save(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no recommender\.json"):
        Recommender.load(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("recommender.json", "{"),
        ("recommender.json", json.dumps({"kind": "recommender", "version": 1})),
        ("files-*/encoder/encoder.json", "[]"),
        ("files-*/encoder/encoder.safetensors", "x"),
        ("files-*/index/files-*/vectors.f32", "x"),
        ("files-*/histories.parquet", "x"),
    ],
)
def test_damaged_files_are_refused(data, tmp_path, name, content):
    Recommender.from_model(SASRec(60, dim=8), data, histories=True).save(tmp_path)
    next(tmp_path.glob(name)).write_text(content)
    with pytest.raises(ValueError, match=r"damaged|lacks|bytes|missing"):
        Recommender.load(tmp_path)


def test_other_kinds_and_versions_are_refused(data, tmp_path):
    Recommender.from_model(SASRec(60, dim=8), data).save(tmp_path)
    record = json.loads((tmp_path / "recommender.json").read_text())
    (tmp_path / "recommender.json").write_text(json.dumps({**record, "version": 2}))
    with pytest.raises(ValueError, match="version 2"):
        Recommender.load(tmp_path)


def test_a_failure_while_saving_leaves_the_old_recommender(recommender, data, tmp_path, monkeypatch):
    Recommender.from_model(SASRec(60, dim=8), data).save(tmp_path)
    before = Recommender.load(tmp_path).recommend(["item 001"])

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(recommender.index, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        recommender.save(tmp_path)
    assert Recommender.load(tmp_path).recommend(["item 001"]).ids == before.ids
    assert len(list(tmp_path.iterdir())) == 2


# ---------------------------------------------------------------------- the command


def run(capsys, *words):
    code = main(["recommend", *map(str, words)])
    seen = capsys.readouterr()
    return code, seen.out, seen.err


def test_the_command_prints_a_table(data, tmp_path, capsys):
    recommender = Recommender.from_model(SASRec(60, dim=8), data, histories=True)
    recommender.save(tmp_path)
    expected = recommender.recommend(["item 001", "item 004"], k=3, exclude_seen=True)
    words = (
        "--model",
        tmp_path,
        "--history",
        "item 001",
        "unknown",
        "item 004",
        "--k",
        3,
        "--exclude_seen",
        "true",
    )
    code, out, _ = run(capsys, *words)
    assert code == 0
    note, head, *lines = out.splitlines()
    assert note == "1 of 3 ids of the history are not known and were passed over"
    assert head.split() == ["score", "id", "title"]
    assert [item in line for item, line in zip(expected.ids, lines, strict=True)] == [True] * 3
    assert f"{expected.scores[0]:.4f}" in lines[0]
    assert recommender.titles(expected.ids[:1])[0] in lines[0]
    code, out, _ = run(capsys, "--model", tmp_path, "--user", "user 3", "--k=2")
    assert code == 0
    assert recommender.recommend(recommender.history("user 3"), k=2).ids[0] in out
    code, out, _ = run(
        capsys, "--model", tmp_path, "--history", "?", "--cold", "popular", "--filter", '{"code": [3, 4]}'
    )
    assert code == 0
    assert "most popular" in out
    assert len(out.splitlines()) == 5


def test_integers_on_the_command_line(tmp_path, capsys):
    data = SequenceData.generate(users=30, items=40, seed=1)
    recommender = Recommender.from_model(SASRec(40, dim=8), data)
    recommender.save(tmp_path)
    expected = recommender.recommend([7, 12], k=1).ids[0]
    for given in (("--history", 7, 12), ("--history", '["7", "12"]')):
        code, out, _ = run(capsys, "--model", tmp_path, "--k", 1, *given)
        assert (code, out.splitlines()[1].split()[1]) == (0, str(expected))
    code, _, err = run(capsys, "--model", tmp_path, "--history", "seven")
    assert (code, err) == (1, "contrastive: error: recommend: ids here are integers like 1, got 'seven'.\n")


def test_mistakes_are_one_line(data, tmp_path, capsys):
    Recommender.from_model(SASRec(60, dim=8), data).save(tmp_path)
    for words, part in (
        (("--model", tmp_path / "none", "--history", "a"), "holds no recommender.json"),
        (("--model", tmp_path), "give either history"),
        (("--model", tmp_path, "--history", "nothing"), "hold no known item"),
        (("--model", tmp_path, "--user", "me"), "no user 'me' among the 0"),
    ):
        code, _, err = run(capsys, *words)
        assert code == 1
        assert part in err
        assert err.count("\n") == 1


def test_the_command_line_imports_nothing_of_it_before():
    script = "import sys, contrastive.cli.commands; print([name for name in sys.modules if name.startswith('recsys')])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_command_filters_by_texts_as_they_are_and_by_ranges(data, tmp_path, capsys):
    columns = {
        "shelf": [["7", "07", "null", "1e3"][row % 4] for row in range(60)],
        "year": [None if row == 5 else 1950 + row for row in range(60)],
    }
    Recommender.from_model(SASRec(60, dim=8), data, columns=columns).save(tmp_path)
    items = list(zip(data.item_ids[1:].tolist(), *columns.values(), strict=True))

    def ask(words, k=60):
        return run(capsys, "--model", tmp_path, "--history", "item 003", "--k", k, "--filter", words)

    def found(filter):
        code, out, err = ask(json.dumps(filter))
        assert (code, err) == (0, "")
        return {name for name, *_ in items if name in out}

    for shelf in ("7", "07", "null", "1e3"):
        expected = {name for name, where, _ in items if where == shelf}
        assert len(expected) == 15
        assert found({"shelf": shelf}) == found({"shelf": [shelf]}) == expected
    assert found({"year": {"from": 1954, "to": 1957}}) == {items[row][0] for row in (4, 6, 7)}
    assert found({"year": {"to": 1960}}) == {items[row][0] for row in range(11) if row != 5}
    late = {name for name, where, year in items if where == "null" and year >= 1990}
    assert found({"year": {"from": 1990}, "shelf": "null"}) == late
    for words in (
        '{"shelf": 7}',
        '{"shelf": "7"',
        '{"year": {"over": 3}}',
        '{"nosuch": 1}',
        '{"year": "1990"}',
        "7",
    ):
        code, _, err = ask(words)
        assert code == 1
        assert err.startswith("contrastive: error: ")
        assert err.count("\n") == 1
