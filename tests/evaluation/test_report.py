import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from contrastive.data import TensorData
from contrastive.encoders import ConvEncoder, MLPEncoder, save_encoder
from contrastive.evaluation import inspection, report
from contrastive.evaluation.record import parse_metrics, read_run

VOID = {"img", "meta"}
SECTIONS = ["Result", "Map", "Neighbours", "Training", "Similarities", "Geometry", "Classes", "Views"]
SECTIONS += ["All results", "Reproduce"]


class Document(HTMLParser):
    """A page as a list of elements, and the text of each section; complains about tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.headings: list[str] = []
        self.sections: dict[str, str] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)
            self.sections[data] = ""
        elif self.headings:
            self.sections[self.headings[-1]] += data

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


CONFIG = {
    "model": {
        "class_path": "contrastive.training.Pretrain",
        "init_args": {
            "encoder": {
                "class_path": "contrastive.encoders.ConvEncoder",
                "init_args": {"in_channels": 1, "widths": [4, 8], "blocks": [0, 0]},
            },
            "objective": {"class_path": "contrastive.objectives.InfoNCE", "init_args": {"temperature": 0.1}},
            "views": {"class_path": "contrastive.views.SimCLRViews", "init_args": {"size": 8}},
        },
    },
    "data": {
        "class_path": "contrastive.data.ImageData",
        "init_args": {"source": "digits", "size": 8, "channels": 1},
    },
}
RECORD = {
    "command": "contrastive fit --config a.yaml",
    "seed": 3,
    "versions": {"torch": "9.9"},
    "git": "abc123",
}
METRICS = """epoch,step,loss,val_loss,learning_rate,spread,knn/accuracy
0,0,5.0,,0.1,,
0,1,4.0,,0.2,,
0,1,,4.5,,0.5,0.6
1,2,3.0,,0.1,,
1,3,nan,,0.0,,
1,3,,3.5,,0.75,0.8
"""
CELLS = {"1": {"mean": 0.512, "std": 0.034}, "all": {"mean": 0.9, "std": 0.0}}
BETTER = {"1": {"mean": 0.734, "std": 0.021}, "all": {"mean": 0.951, "std": 0.0}}
EFFICIENCY = {
    "raw pixels": {"knn": CELLS, "probe": CELLS},
    "trained encoder": {"knn": BETTER, "probe": BETTER},
}


def write_run(folder, config=CONFIG, encoder=None):
    (folder / "results").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "run.json").write_text(json.dumps(RECORD))
    (folder / "metrics.csv").write_text(METRICS)
    for name, metrics in {"label_efficiency": EFFICIENCY, "knn": {"accuracy": 0.951}}.items():
        document = {"protocol": {"name": name, "k": 20}, "metrics": metrics, "split": "test", "seconds": 1.5}
        (folder / "results" / f"{name}.json").write_text(json.dumps(document))
    torch.manual_seed(0)
    save_encoder(encoder or ConvEncoder(in_channels=1, widths=[4, 8], blocks=[0, 0]), folder / "encoder")
    return folder


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "quick" / "0")


@pytest.fixture(scope="module")
def text(run_dir):
    path = report.write_report(run_dir, max_images=60)
    assert path == run_dir / "report.html"
    return path.read_text(encoding="utf-8")


def test_page_is_well_formed_and_complete(text):
    document = Document(text)
    assert text.startswith("<!doctype html>")
    assert document.all("html") == [{"lang": "en"}]
    assert document.headings == SECTIONS
    assert len(document.all("h1")) == 1
    assert "InfoNCE with ConvEncoder on digits" in text
    targets = {attributes["href"] for attributes in document.all("a")}
    identifiers = [attributes["id"] for _, attributes in document.elements if "id" in attributes]
    assert targets <= {f"#{name}" for name in identifiers}
    assert len(identifiers) == len(set(identifiers))
    assert len(document.all("caption")) == len(document.all("table"))
    assert not [name for name in document.sections if "No " in document.sections[name]]  # no part is missing


def test_page_needs_nothing_but_itself(text):
    document = Document(text)
    assert "http:" not in text
    assert "https:" not in text
    assert not document.all("script")
    assert not document.all("link")
    for _, attributes in document.elements:
        for name in ("src", "href", "srcset", "data"):
            assert (attributes.get(name) or "#").startswith(("data:image/png;base64,", "#"))
    assert set(re.findall(r"url\((.)", text)) <= {"#"}
    assert "@import" not in text
    assert "prefers-color-scheme: dark" in text


def test_pictures_are_told_in_words(text):
    document = Document(text)
    assert all(len(attributes["alt"]) > 5 for attributes in document.all("img"))
    assert len(document.all("img")) == 8 * 6 + 6 * 3  # queries with neighbours, originals with views
    figures = document.all("svg")
    assert len(figures) == 2 + 4 + 2  # maps, curves, histograms
    assert all(attributes["role"] == "img" and len(attributes["aria-label"]) > 20 for attributes in figures)


def test_numbers_of_the_run_are_on_the_page(text):
    sections = Document(text).sections
    for shown in ("73.4 ± 2.1", "51.2 ± 3.4", "95.1", "raw pixels", "kNN", "Linear probe"):
        assert shown in sections["Result"]
    for shown in ("training", "held out", "learning rate", "spread", "online evaluation"):
        assert shown in sections["Training"]
    assert "60 random ones of 359 test images" in sections["Map"]
    assert "300 random ones of 1,438 training images" in sections["Neighbours"]
    for shown in ("alignment", "uniformity", "effective rank", "tolerance"):
        assert shown in sections["Geometry"]
    for shown in ("contrastive fit --config a.yaml", "abc123", "9.9", "temperature: 0.1"):
        assert shown in sections["Reproduce"]
    assert "accuracy 0.951" in sections["All results"]


def test_report_is_the_same_again_and_leaves_no_other_file(run_dir, text, tmp_path):
    before = sorted(path.name for path in run_dir.iterdir())
    again = report.write_report(run_dir, tmp_path / "again.html", max_images=60)
    assert again.read_text(encoding="utf-8") == text
    assert sorted(path.name for path in run_dir.iterdir()) == before
    assert [path.name for path in tmp_path.iterdir()] == ["again.html"]
    other = report.write_report(run_dir, tmp_path / "again.html", max_images=60, seed=1)
    assert other.read_text(encoding="utf-8") != text


def test_neighbours_agree_where_embeddings_do():
    class Identity(nn.Module):
        def forward(self, x):
            return x.float().flatten(1)

    patterns = torch.eye(4).view(4, 1, 2, 2)
    data = TensorData(patterns.repeat(9, 1, 1, 1), torch.arange(36) % 4, patterns, torch.tensor([0, 1, 2, 0]))
    sample = inspection.take_sample(Identity(), data.evaluation_loaders(), None, data.class_names)
    page = inspection.neighbours(sample)
    # The last test image looks like class 3 and is labelled 0, so all of its neighbours are wrong.
    assert page.count("✗") == 5
    assert page.count("✓") == 15
    assert "all 4 test images" in inspection.similarities(sample)
    assert "50.0%" in inspection.classes(sample)
    assert "3 (1)" in inspection.classes(sample)


def test_sample_is_spread_over_the_whole_set():
    data = TensorData(torch.arange(1000.0).view(-1, 1), test_inputs=torch.zeros(1, 1))
    loader, _ = data.evaluation_loaders()
    drawn, labels, rows = inspection.draw(loader, 100, torch.Generator().manual_seed(0))
    assert labels is None
    assert len(drawn.unique()) == 100
    assert drawn.flatten().tolist() == sorted(drawn.flatten().tolist())
    assert drawn.min() < 100
    assert drawn.max() > 900
    assert torch.equal(rows, drawn.flatten().long())
    everything, *_ = inspection.draw(loader, 1000, torch.Generator())
    assert torch.equal(everything.flatten(), torch.arange(1000.0))


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("images", [True, False])
def test_data_without_labels_or_pictures_is_told_not_failed(tmp_path, labelled, images):
    torch.manual_seed(0)
    inputs = torch.rand(40, 1, 4, 4) if images else torch.rand(40, 16)
    labels = torch.arange(40) % 3 if labelled else None
    data = TensorData(inputs, labels, inputs[:10], None if labels is None else labels[:10])
    encoder = nn.Sequential(nn.Flatten(), MLPEncoder(16, hidden_dims=[8], dim=4))
    sample = inspection.take_sample(encoder, data.evaluation_loaders(), None, data.class_names)
    document = Document(report.compose(read_run(write_run(tmp_path / "run")), sample))
    assert document.headings == SECTIONS
    assert ("no labels" in document.sections["Classes"]) is not labelled
    assert ("no images" in document.sections["Neighbours"]) is not images
    assert len(document.all("img")) == (48 if images else 0)
    assert ("No pairs" in document.sections["Similarities"]) is not labelled


@pytest.mark.parametrize(
    ("missing", "section", "sentence"),
    [
        ("config.yaml", "Pictures", "config.yaml"),
        ("encoder", "Pictures", "encoder/"),
        ("metrics.csv", "Training", "metrics.csv"),
        ("results", "Result", "evaluate_run"),
        ("run.json", "Reproduce", "run.json"),
    ],
)
def test_missing_files_are_told_in_their_section(tmp_path, monkeypatch, missing, section, sentence):
    folder = write_run(tmp_path / "run")
    (folder / missing).rename(tmp_path / "elsewhere")
    monkeypatch.setattr(inspection, "take_sample", lambda *args, **kwargs: "No pictures: not in this test.")
    told = Document(report.write_report(folder).read_text(encoding="utf-8")).sections[section]
    assert "No " in told
    assert sentence in told


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.yaml", "{"),
        ("config.yaml", "[1, 2]"),
        ("config.yaml", "\0"),
        ("run.json", "{"),
        ("run.json", "3"),
        ("metrics.csv", "epoch,loss\n1,2"),
        ("metrics.csv", "step,loss\n1,x"),
        ("metrics.csv", "step,loss\n1,2,3"),
        ("results/knn.json", "[]"),
    ],
)
def test_damaged_files_are_named_and_the_rest_is_shown(tmp_path, monkeypatch, name, content):
    folder = write_run(tmp_path / "run")
    (folder / name).write_text(content)
    monkeypatch.setattr(inspection, "take_sample", lambda *args, **kwargs: "No pictures: not in this test.")
    text = report.write_report(folder).read_text(encoding="utf-8")
    assert f"{name} could not be read" in text
    assert "73.4" in text  # the rest


def test_data_that_moved_leaves_the_rest_of_the_page(tmp_path):
    config = json.loads(json.dumps(CONFIG))
    config["data"]["init_args"]["source"] = str(tmp_path / "gone")
    document = Document(report.write_report(write_run(tmp_path / "run", config)).read_text(encoding="utf-8"))
    assert "gone" in document.sections["Pictures"]
    assert "73.4" in document.sections["Result"]


def test_what_is_no_run_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(FileNotFoundError, match=r"write_report\(run_dir=.*this .*needed.*give"):
            report.write_report(folder)
    with pytest.raises(ValueError, match=r"write_report\(max_images=1\).*2 or more.*leave"):
        report.write_report(tmp_path, max_images=1)
    assert list(tmp_path.iterdir()) == []


def test_metrics_are_read_over_epochs():
    curves = parse_metrics(METRICS)
    assert set(curves) == {"loss", "val_loss", "learning_rate", "spread", "knn/accuracy"}
    times, loss = curves["loss"]
    assert times.tolist() == [0.5, 1.0, 1.5, 2.0]
    assert loss[:3].tolist() == [5, 4, 3]
    assert np.isnan(loss[3])
    assert curves["val_loss"][0].tolist() == [1.0, 2.0]
    assert parse_metrics("step,loss\n0,1\n1,2\n")["loss"][0].tolist() == [1, 2]  # no epochs: time is in steps
    cut_off = parse_metrics("loss,step\n3,0\n2,1\n1")  # a run that was killed while it wrote a line
    assert cut_off["loss"][1].tolist() == [3, 2]
    assert parse_metrics("") == {}
    assert parse_metrics("epoch,step,loss\n") == {}


def test_what_never_changed_is_told_and_not_drawn(tmp_path):
    folder = write_run(tmp_path / "run")
    rows = "".join(f"{step},{step},{5 - step},0.25\n" for step in range(5))
    (folder / "metrics.csv").write_text("epoch,step,loss,own_number\n" + rows)
    page = report.training(read_run(folder))
    assert "The same throughout: own number 0.25." in page
    assert page.count("<svg") == 1


def test_long_curves_are_thinned_without_moving_them():
    x = np.arange(10_000.0)
    thin_x, thin_y = report._thin(x, 2 * x)
    assert len(thin_x) == report.MOST_POINTS
    assert np.allclose(thin_y, 2 * thin_x)
    assert thin_x.mean() == pytest.approx(x.mean())
    assert report._thin(x[:3], np.array([1, np.nan, 3]))[1].tolist() == [1, 3]
    assert len(report._thin(x, x * np.nan)[0]) == 0


@settings(max_examples=30, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20))
def test_nothing_that_a_run_says_becomes_markup(name):
    run = read_run_of(name)
    document = Document(report.compose(run, f"No pictures: {name}"))
    plain = Document(report.compose(read_run_of("plain"), "No pictures: plain"))
    assert [tag for tag, _ in document.elements] == [tag for tag, _ in plain.elements]
    assert name in document.sections["Pictures"]
    assert name in document.sections["Reproduce"]


def read_run_of(name):
    from pathlib import Path

    from contrastive.evaluation.record import Run

    return Run(
        folder=Path("runs") / "0",
        config_text=f"source: {name}",
        config={"data": {"init_args": {"source": name}}, "model": {}},
        record={"command": name, name: {name: name}},
        results={name: {"metrics": {name: 0.5}, "protocol": {"name": name}}},
        problems=[f"{name} is damaged"],
    )
