"""Encoders in other formats."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor, nn

from contrastive.encoders import ConvEncoder, MLPEncoder, TimmEncoder, export, load_encoder, save_encoder
from contrastive.encoders.export import export_encoder

FILES = {"onnx": "model.onnx", "torchscript": "model.pt", "safetensors": "model"}
DIGITS = {
    "class_path": "contrastive.data.ImageData",
    "init_args": {"source": "digits", "size": 8, "channels": 1},
}


def needs(format: str) -> None:
    if format == "onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(package, reason="pip install 'contrastive-representations[export]'")


def trained(encoder: nn.Module, *shape: int) -> nn.Module:
    """The encoder with running statistics that differ from their start, so that evaluation mode shows."""
    torch.manual_seed(0)
    encoder(torch.rand(8, *shape))
    return encoder


def write_run(folder: Path, encoder: nn.Module, data: object = DIGITS) -> Path:
    folder.mkdir(parents=True)
    save_encoder(encoder, folder / "encoder")
    if data is not None:
        (folder / "config.yaml").write_text(yaml.safe_dump({"data": data}))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    encoder = trained(ConvEncoder(in_channels=1, widths=(4, 8), blocks=(0, 1), mean=[0.3]), 1, 8, 8)
    return write_run(tmp_path_factory.mktemp("runs") / "0", encoder)


def encode(format: str, path: Path, inputs: Tensor) -> Tensor:
    """Use an exported model without this library, as far as its format allows."""
    if format == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return torch.from_numpy(session.run(None, {"inputs": inputs.numpy()})[0])
    with torch.no_grad():
        if format == "safetensors":
            return load_encoder(path)(inputs)
        with pytest.warns(FutureWarning, match="deprecated"):
            script = torch.jit.load(str(path))
        return script(inputs)


@pytest.mark.parametrize("format", list(FILES))
def test_exported_encoder_agrees_on_data_of_the_run(run: Path, tmp_path: Path, format: str) -> None:
    needs(format)
    out = tmp_path / "new" / FILES[format]
    assert export_encoder(run, out, format) == out
    live = load_encoder(run)
    for size in (1, 5, 64):  # 5 and 64 are none of the sizes that the export tried
        images = torch.randint(0, 256, (size, 1, 8, 8), dtype=torch.uint8)
        with torch.no_grad():
            torch.testing.assert_close(encode(format, out, images), live(images), rtol=1e-5, atol=1e-5)

    weights = out / "encoder.safetensors" if format == "safetensors" else out
    description = json.loads(weights.with_name(weights.name + ".json").read_text())
    assert description["input"] == {"shape": ["batch", 1, 8, 8], "dtype": "uint8", "scale": "0 to 255"}
    assert description["dim"] == live.dim
    assert description["normalisation"]["mean"] == pytest.approx([0.3])
    assert description["compared_on"] == "samples of the run's data"
    assert description["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    saved = json.loads((run / "encoder" / "encoder.json").read_text())
    assert description["fingerprint"] == saved["fingerprint"]
    assert 0 <= description["largest_difference"] < 1e-4
    assert description["versions"].keys() >= {"python", "contrastive", "torch"}
    names = {file.name for file in (tmp_path / "new").rglob("*") if file.is_file()}
    assert names == {weights.name, f"{weights.name}.json"} | (
        {"encoder.json"} if format == "safetensors" else set()
    )


@pytest.mark.parametrize("format", ["onnx", "torchscript"])
def test_floats_are_exported_for_floats(run: Path, tmp_path: Path, format: str) -> None:
    needs(format)
    out = export_encoder(run, tmp_path / FILES[format], format, dtype="float32")
    images = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        expected = load_encoder(run)(images)
    torch.testing.assert_close(encode(format, out, images), expected, rtol=1e-5, atol=1e-5)
    assert json.loads(out.with_name(out.name + ".json").read_text())["input"]["dtype"] == "float32"


def test_encoder_without_data_needs_a_shape(tmp_path: Path) -> None:
    torch.manual_seed(0)
    run = write_run(tmp_path / "run", trained(MLPEncoder(6, hidden_dims=[8], dim=4), 6), data=None)
    with pytest.raises(ValueError, match=r"no config\.yaml.*input_shape=\(3, 32, 32\)"):
        export_encoder(run, tmp_path / "model.pt", "torchscript")
    out = export_encoder(run, tmp_path / "model.pt", "torchscript", input_shape=(6,))
    description = json.loads((tmp_path / "model.pt.json").read_text())
    assert description["input"]["dtype"] == "float32"  # vectors
    assert description["compared_on"] == "random samples"
    assert encode("torchscript", out, torch.rand(2, 6)).shape == (2, 4)
    with pytest.raises(ValueError, match=r"cannot encode a batch of shape \(1, 7\).*give the input_shape"):
        export_encoder(run, tmp_path / "model.pt", "torchscript", input_shape=(7,))


def test_data_that_moved_are_told(run: Path, tmp_path: Path) -> None:
    data = {"class_path": "contrastive.data.ImageData", "init_args": {"source": str(tmp_path / "gone")}}
    moved = write_run(tmp_path / "run", load_encoder(run), data)
    with pytest.raises(ValueError, match=r"cannot be read now .*gone.*input_shape"):
        export_encoder(moved, tmp_path / "model.pt", "torchscript")
    assert export_encoder(moved, tmp_path / "model.pt", "torchscript", input_shape=(1, 8, 8)).is_file()


@pytest.mark.parametrize("format", list(FILES))
def test_what_differs_is_not_written_and_what_was_there_stays(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    needs(format)
    out = tmp_path / FILES[format]
    if format == "safetensors":
        save_encoder(load_encoder(run), out)
    else:
        out.write_bytes(b"an earlier export")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    features = export._features

    def off_in_larger_batches(model, inputs, name):
        exported = name.startswith("the exported") and len(inputs) > 2
        return features(model, inputs, name) + 0.5 * exported

    monkeypatch.setattr(export, "_features", off_in_larger_batches)
    with pytest.raises(ValueError, match=r"differ .* by up to 0\.5 in a batch of 3.*nothing was written"):
        export_encoder(run, out, format)
    with pytest.raises(ValueError, match="differ"):
        export_encoder(run, tmp_path / "never" / FILES[format], format)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


class DependsOnBatch(nn.Module):
    """Tracing takes the size of the batch for a constant."""

    dim, config = 4, None

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = self.layer(inputs) * len(inputs)
        return result


def test_a_batch_size_that_was_baked_in_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "contrastive.evaluation.run.load_run_encoder", lambda run, trust: DependsOnBatch().eval()
    )
    with pytest.raises(ValueError, match=r"differ .* in a batch of 1"):
        export_encoder(tmp_path, tmp_path / "model.pt", "torchscript", input_shape=(4,))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "format"), [("resnet18", "torchscript"), ("vit_tiny_patch16_224", "onnx")])
def test_networks_of_timm(tmp_path: Path, name: str, format: str) -> None:
    needs(format)
    torch.manual_seed(0)
    run = write_run(tmp_path / "run", TimmEncoder(name, image_size=32), data=None)
    out = export_encoder(run, tmp_path / FILES[format], format, input_shape=(3, 32, 32))
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        expected = load_encoder(run)(images)
    torch.testing.assert_close(encode(format, out, images), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"format": "tflite"}, r"format='tflite'.*give one of onnx, torchscript, safetensors"),
        ({"out": "model.bin"}, r"ending in \.onnx.*model\.onnx"),
        ({"out": "model.onnx", "format": "torchscript"}, r"ending in \.pt or \.ts.*model\.pt"),
        ({"out": "a.safetensors", "format": "safetensors"}, r"a folder is written.*give its name"),
        ({"tolerance": 0.0}, r"tolerance=0\.0.*above 0"),
        ({"dtype": "int8"}, r"dtype='int8'.*auto, uint8 or float32"),
        ({"input_shape": ()}, r"input_shape=\(\).*without the batch"),
        ({"input_shape": (1, 0, 8)}, r"input_shape=\(1, 0, 8\).*1 or more"),
    ],
)
def test_wrong_arguments_are_refused(run: Path, tmp_path: Path, arguments: dict, sentence: str) -> None:
    arguments = {"out": "model.onnx", "format": "onnx"} | arguments
    needs(arguments["format"])
    with pytest.raises(ValueError, match=sentence):
        export_encoder(run, tmp_path / arguments.pop("out"), **arguments)
    assert list(tmp_path.iterdir()) == []


def test_missing_packages_are_named(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(export.PACKAGES, "onnx", ("onnx_that_nobody_has",))
    with pytest.raises(
        ImportError, match=r"onnx_that_nobody_has.*pip install 'contrastive-representations\[export\]'"
    ):
        export_encoder(run, tmp_path / "model.onnx")


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="run"):
        export_encoder(tmp_path / "missing", tmp_path / "model.pt", "torchscript")


def test_bytes_are_not_asked_of_floats(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "_samples", lambda run, trust: torch.rand(5, 1, 8, 8))
    with pytest.raises(ValueError, match=r"dtype='uint8'.*torch\.float32.*leave dtype at auto"):
        export_encoder(run, tmp_path / "model.pt", "torchscript", dtype="uint8")
    out = export_encoder(run, tmp_path / "model.pt", "torchscript")
    assert json.loads(out.with_name("model.pt.json").read_text())["input"]["dtype"] == "float32"
