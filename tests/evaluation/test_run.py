import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from contrastive.building import build
from contrastive.data import TensorData
from contrastive.encoders import MLPEncoder, save_encoder
from contrastive.evaluation import evaluate_run, knn_run, load_run_encoder, probe_run
from contrastive.evaluation.run import RawPixels, format_table

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def data():
    """Classes lie on rings: no linear layer tells them apart from raw inputs, their radius does."""
    generator = torch.Generator().manual_seed(0)

    def draw(count):
        labels = torch.arange(count) % 3
        points = torch.randn(count, 2, generator=generator)
        return points / points.norm(dim=1, keepdim=True) * (1.0 + labels[:, None]), labels

    (x, y), (q, t) = draw(90), draw(60)
    return TensorData(x, y, q, t, class_names=["in", "mid", "out"], batch_size=32)


class Radius(nn.Module):
    """An encoder from another package: mixtures of squared inputs, so the radius is a linear function of it."""

    def __init__(self, width: int = 4):
        super().__init__()
        self.mix = nn.Linear(2, width)
        self.dim = width

    def forward(self, x):
        return self.mix(x.square())


def write_config(folder, class_path, init_args, **parts):
    encoder = {"class_path": class_path, "init_args": init_args}
    model = {"class_path": "contrastive.training.Pretrain", "init_args": {"encoder": encoder}}
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": model, **parts}))


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run folder with an encoder that is no class of ours, importable as a user's module is."""
    monkeypatch.setitem(sys.modules, "radius_of_a_user", sys.modules[__name__])
    encoder = Radius()
    with torch.no_grad():
        encoder.mix.weight.copy_(torch.tensor([[1.0, 1], [1, 1], [0, 0], [0, 0]]))
        encoder.mix.bias.zero_()
    save_encoder(encoder, tmp_path / "encoder")
    write_config(tmp_path, "radius_of_a_user.Radius", {})
    return tmp_path


def test_evaluate_run_compares_three_encoders(run, data, capsys):
    document = evaluate_run(run, data=data, draws=2, trust=True)
    table = document["metrics"]
    assert list(table) == ["raw pixels", "untrained encoder", "trained encoder"]
    for row in table.values():
        assert list(row["knn"]) == list(row["probe"]) == ["1", "5", "10", "all"]
    assert (
        table["trained encoder"]["probe"]["all"]["mean"]
        > 0.95
        > 0.7
        > table["raw pixels"]["probe"]["all"]["mean"]
    )
    assert json.loads((run / "results" / "label_efficiency.json").read_text()) == document
    assert document["data"]["fingerprint"] == data.fingerprint
    assert capsys.readouterr().out.strip() == format_table(table)


def test_the_table_reads_well():
    row = {"1": {"mean": 0.5, "std": 0.012}, "all": {"mean": 0.987, "std": 0.0}}
    assert format_table({"raw pixels": {"knn": row, "probe": row}}).splitlines() == [
        "accuracy in %       kNN                     linear probe",
        "labels per class    1           all         1           all",
        "raw pixels          50.0 ± 1.2  98.7        50.0 ± 1.2  98.7",
    ]


def test_counts_that_a_class_does_not_have_are_left_out(run, data):
    table = evaluate_run(run, data=data, draws=1, labels_per_class=(1, 31), baselines=False, trust=True)[
        "metrics"
    ]
    assert {name: list(row["knn"]) for name, row in table.items()} == {"trained encoder": ["1"]}


def test_probe_run_and_knn_run_write_their_results(run, data):
    probe, knn = (
        probe_run(run, data=data, trust=True),
        knn_run(run, data=data, k=5, metric="euclidean", trust=True),
    )
    assert probe["metrics"]["accuracy"] > 0.95
    assert list(probe["metrics"]["recall"]) == ["in", "mid", "out"]
    assert probe["protocol"]["C_chosen_by"] == "held-out training samples"
    assert knn["protocol"] == {"name": "knn", "k": 5, "temperature": 0.1, "metric": "euclidean"}
    assert {path.name for path in (run / "results").iterdir()} == {"linear_probe.json", "knn.json"}
    assert probe_run(run, data=data, protocol="sgd", epochs=3, trust=True)["protocol"]["epochs"] == 3


def test_untrained_weights_follow_the_seed_and_leave_the_global_generator_alone(tmp_path):
    torch.manual_seed(5)
    trained = MLPEncoder(4)
    save_encoder(trained, tmp_path)
    before = torch.get_rng_state()
    first, same, other = (load_run_encoder(tmp_path, untrained=seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    weights = [
        next(encoder.parameters()) for encoder in (first, same, other, trained, load_run_encoder(tmp_path))
    ]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert not torch.equal(weights[0], weights[3])
    assert torch.equal(weights[3], weights[4])


def test_raw_pixels_are_bounded():
    images = torch.full((2, 3, 64, 48), 255, dtype=torch.uint8)
    assert RawPixels()(images).shape == (2, 3 * 16 * 16)
    assert (RawPixels()(images) == 1).all()
    assert RawPixels()(images[:, :1, :8, :8]).shape == (2, 64)


def test_a_missing_folder_and_missing_data_are_refused(tmp_path, data):
    with pytest.raises(FileNotFoundError, match="not a folder"):
        probe_run(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="names its data"):
        knn_run(tmp_path)
    with pytest.raises(TypeError, match="evaluation_loaders"):
        knn_run(tmp_path, data=object())


@pytest.mark.parametrize(
    "part", [{"class_path": "no.such.Thing"}, {"class_path": "torch.nn.Linear", "init_args": {"width": 3}}]
)
def test_what_cannot_be_built_is_named(part):
    with pytest.raises(ValueError, match=f"{part['class_path']} cannot be built"):
        build(part, nn.Module, "config.yaml", trust=True)


@pytest.mark.parametrize("script", ["linear_probe", "knn"])
def test_scripts(script, tmp_path, monkeypatch, capsys):
    save_encoder(MLPEncoder(3 * 8 * 8), tmp_path / "encoder")
    source = {"class_path": "contrastive.data.ImageData", "init_args": {"source": "digits", "size": 8}}
    write_config(tmp_path, "contrastive.encoders.MLPEncoder", {"in_dim": 192}, data=source)
    monkeypatch.setattr(sys, "argv", [f"{script}.py", "--run", str(tmp_path)])
    runpy.run_path(str(SCRIPTS / f"{script}.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert f"{script} on the test set" in printed
    result = json.loads((tmp_path / "results" / f"{script}.json").read_text())
    assert result["metrics"]["accuracy"] > 0.8
    assert f"{100 * result['metrics']['accuracy']:.2f} %" in printed
    assert result["command"] == f"{script}.py --run {tmp_path}"
