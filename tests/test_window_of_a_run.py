"""Whoever reads images for the encoder of a run reads them through the run's window."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from contrastive.cli import main
from contrastive.data import ImageData
from contrastive.errors import InvalidValue
from contrastive.evaluation.run import load_run_encoder, prepare_data
from contrastive.retrieval.embed import embed_run
from contrastive.retrieval.explorer.upload import ImageEncoder
from contrastive.retrieval.run import _encode_by_run

TINY = """
model:
  encoder: {class_path: contrastive.encoders.ConvEncoder, init_args: {in_channels: 1, widths: [8], blocks: [0]}}
  views: {class_path: SimCLRViews, init_args: {size: 8}}
  objective: {class_path: InfoNCE}
data: {source: scans, channels: 1, batch_size: 8, validation_fraction: 0.25, percentiles: [1, 99]}
trainer: {accelerator: cpu, max_epochs: 1, enable_progress_bar: false}
extras: {evaluate: false, report: false}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on 16-bit scans whose values lie between 900 and 1300."""
    folder = tmp_path_factory.mktemp("scans")
    (folder / "scans").mkdir()
    generator = np.random.default_rng(0)
    for i in range(16):
        pixels = generator.integers(900, 1300, (8, 8)).astype(np.uint16)
        Image.fromarray(pixels).save(folder / f"scans/{i:02}.png")
    (folder / "tiny.yaml").write_text(TINY)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", [path for path in sys.path if path])
        assert main(["fit", "--config=tiny.yaml", "--run_dir=run"]) == 0
    return folder / "run"


def test_the_saved_configuration_holds_the_window(run: Path) -> None:
    saved = yaml.safe_load((run / "config.yaml").read_text())["data"]["init_args"]
    assert saved["percentiles"] is None
    assert saved["window"] == pytest.approx([903, 1296], abs=5)


def test_every_reader_sees_the_same_values(
    run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(run.parent)
    data = prepare_data("run")
    assert data.inputs.train.dtype == torch.float32
    assert data.inputs.train.unique().numel() > 200
    with torch.no_grad():
        expected = load_run_encoder("run").eval()(data.inputs.train).numpy()
    stored = embed_run("run", tmp_path / "own", device="cpu")
    other = embed_run("run", tmp_path / "other", source="scans", device="cpu")
    for written in (stored, other):
        assert written is not None
        np.testing.assert_allclose(next(written.batches())[0], expected, atol=1e-6)
    Path("broken.png").write_bytes(b"no image")
    with pytest.raises(InvalidValue, match="8 bytes are no complete image"):
        _encode_by_run("run", "broken.png", False)
    _, query = _encode_by_run("run", "scans/03.png", False)
    np.testing.assert_allclose(query[0], expected[3], atol=1e-6)
    uploaded = ImageEncoder("run")(Path("scans/03.png").read_bytes())
    np.testing.assert_allclose(uploaded, expected[3], atol=1e-6)


def test_runs_on_bytes_read_bytes(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parent)
    assert ImageData("digits").reading == {"window": None, "background": None}
    assert ImageData("digits").decoding == {"window": "bytes", "background": None}
