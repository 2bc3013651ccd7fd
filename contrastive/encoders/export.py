"""Encoders for other runtimes: ONNX, TorchScript, or a folder of safetensors; compared with the original before use.

The exported model is the encoder alone, in evaluation mode, with its normalisation inside: it takes the images that the
run's data module gives, as they are, in batches of any size. Height and width are fixed. TorchScript is deprecated in
recent versions of PyTorch but is what ``libtorch`` and older servers load; where both will do, take ONNX.
"""

import hashlib
import json
import os
import platform
import tempfile
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from contrastive import __version__
from contrastive.encoders.checkpoint import DESCRIPTION_FILE, WEIGHTS_FILE, load_encoder, save_encoder
from contrastive.encoders.normalise import Normalise
from contrastive.errors import ExtraMissing, InvalidValue, install

Format = Literal["onnx", "torchscript", "safetensors"]
Path_ = str | os.PathLike[str]
Model = Callable[[Tensor], Tensor]

SUFFIXES = {"onnx": (".onnx",), "torchscript": (".pt", ".ts")}
PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "torchscript": (), "safetensors": ("safetensors",)}
BATCH_SIZES = (1, 2, 3, 8)  # 1 is what a traced broadcast gets wrong, the others what a fixed size would


def export_encoder(
    run: Path_,
    out: Path_,
    format: Format = "onnx",
    *,
    input_shape: Sequence[int] | None = None,
    dtype: Literal["auto", "uint8", "float32"] = "auto",
    tolerance: float = 1e-4,
    trust: bool = False,
) -> Path:
    """Export the encoder of a run, reload what was written, and compare it with the original.

    The comparison takes samples of the run's data through both, in batches of 1, 2, 3 and 8. Files appear under
    their names only after it has succeeded; until then, and for good if it fails, an earlier export stays as it is.
    Beside the weights lies a JSON file, named like theirs with ``.json`` behind: shape, type and scale of the input,
    ``dim``, normalisation, fingerprint of the encoder, SHA-256 of the file, largest difference, versions.

    The ONNX model has the input ``inputs`` (batch, ...) and the output ``features`` (batch, dim).

    Args:
        run: folder of the run, or of ``save_encoder``.
        out: file to write: ``.onnx``, or ``.pt`` or ``.ts`` for TorchScript. For safetensors a folder, which
            ``contrastive.load_encoder`` reads.
        format: ``onnx``, ``torchscript`` or ``safetensors``.
        input_shape: shape of one sample, as ``(3, 32, 32)``; by default that of the run's data, which are then
            opened. With a shape, random samples are compared and no data are needed.
        dtype: of the inputs: ``uint8`` (0 to 255) or ``float32`` (0 to 1 for images); ``auto`` is that of the run's
            data, and with an ``input_shape`` uint8 for images and float32 for vectors.
        tolerance: largest accepted difference between two features, as a fraction of the largest absolute feature.
        trust: build classes of others too, if the run names them; they can run any code, so only for a run whose
            author you trust.

    Returns:
        The file or folder that was written.

    Raises:
        FileNotFoundError: ``run`` holds no encoder.
        ImportError: a package of the extra ``export`` is missing.
        ValueError: ``out`` has the wrong ending, the data of the run cannot be used, the encoder cannot be exported,
            or the exported one differs by more than ``tolerance``.
    """
    from contrastive.evaluation.results import describe_encoder
    from contrastive.evaluation.run import load_run_encoder

    out = Path(out)
    _check_target(out, format)
    _check_packages(format)
    if not tolerance > 0:
        raise InvalidValue(
            f"export_encoder(tolerance={tolerance}): a number above 0 is needed, since two runtimes round differently; "
            "leave it at 1e-4"
        )
    encoder = load_run_encoder(run, trust=trust).eval()
    inputs = _inputs(run, input_shape, dtype, trust)
    live = [_features(encoder, inputs[:size], "the encoder of the run") for size in BATCH_SIZES]

    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
        model = Path(folder) / (out.name if format != "safetensors" else WEIGHTS_FILE)
        reloaded: Model
        if format == "onnx":
            reloaded = _through_onnx(encoder, inputs, model)
        elif format == "torchscript":
            reloaded = _through_torchscript(encoder, inputs, model)
        else:
            # Into an encoder with other weights, so that weights which are not in the file cannot go unnoticed.
            fresh = load_run_encoder(run, untrained=1, trust=trust)
            reloaded = load_encoder(save_encoder(encoder, folder), fresh)
        largest = 0.0
        for size, expected in zip(BATCH_SIZES, live, strict=True):
            found = _features(reloaded, inputs[:size], f"the exported {format} model")
            largest = max(largest, _difference(found, expected, tolerance, format))
        description = {
            "format": format,
            "input": {
                "shape": ["batch", *inputs.shape[1:]],
                "dtype": str(inputs.dtype).removeprefix("torch."),
                "scale": "0 to 255" if inputs.dtype == torch.uint8 else "as in the data; images 0 to 1",
            },
            "dim": live[0].shape[1],
            "normalisation": _normalisation(encoder),
            "fingerprint": describe_encoder(run)["fingerprint"],
            "sha256": hashlib.sha256(model.read_bytes()).hexdigest(),
            "largest_difference": largest,
            "compared_on": "samples of the run's data" if input_shape is None else "random samples",
            "batch_sizes": BATCH_SIZES,
            "versions": {
                "python": platform.python_version(),
                "contrastive": __version__,
                **{name: version(name) for name in ("torch", *PACKAGES[format])},
            },
        }
        beside = model.with_name(model.name + ".json")
        beside.write_text(json.dumps(description, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        target = out if format == "safetensors" else out.parent
        target.mkdir(exist_ok=True)
        names = [model.name, DESCRIPTION_FILE] if format == "safetensors" else [model.name]
        for name in (*names, beside.name):
            os.replace(Path(folder) / name, target / name)
    return out


def _check_target(out: Path, format: str) -> None:
    if format not in PACKAGES:
        raise InvalidValue(f"export_encoder(format={format!r}): give one of {', '.join(PACKAGES)}")
    if format == "safetensors":
        if out.suffix == ".safetensors" or out.is_file():
            raise InvalidValue(
                f"export_encoder(out={str(out)!r}, format='safetensors'): a folder is written, with {WEIGHTS_FILE} and "
                f"{DESCRIPTION_FILE} in it; give its name, as {str(out.with_suffix(''))!r}"
            )
        return
    suffixes = SUFFIXES[format]
    if out.suffix not in suffixes or out.is_dir():
        raise InvalidValue(
            f"export_encoder(out={str(out)!r}, format={format!r}): a file ending in {' or '.join(suffixes)} is "
            f"written; give its name, as {str(out.with_suffix(suffixes[0]))!r}"
        )


def _check_packages(format: str) -> None:
    import importlib.util

    missing = [name for name in PACKAGES[format] if importlib.util.find_spec(name) is None]
    if missing:
        raise ExtraMissing(
            f"export_encoder(format={format!r}) needs {', '.join(missing)}, which this environment lacks: "
            + install("export")
        )


def _inputs(run: Path_, shape: Sequence[int] | None, dtype: str, trust: bool) -> Tensor:
    """Samples to trace and to compare with: as many as the largest batch, of the run's data or random."""
    if dtype not in ("auto", "uint8", "float32"):
        raise InvalidValue(f"export_encoder(dtype={dtype!r}): give auto, uint8 or float32")
    count = max(BATCH_SIZES)
    if shape is None:
        samples = _samples(run, trust)
        inputs = samples.repeat(-(-count // len(samples)), *[1] * (samples.ndim - 1))[:count]
    else:
        if not shape or min(shape) < 1:
            raise InvalidValue(
                f"export_encoder(input_shape={tuple(shape)}): the sizes of one sample are needed, each 1 or more, "
                "without the batch: as (3, 32, 32)"
            )
        generator = torch.Generator().manual_seed(0)
        inputs = torch.rand(count, *shape, generator=generator)
        if dtype == "uint8" or (dtype == "auto" and len(shape) == 3):
            inputs = (inputs * 255).round().to(torch.uint8)
    if dtype == "float32":
        return inputs / 255 if inputs.dtype == torch.uint8 else inputs.float()
    if dtype == "uint8" and inputs.dtype != torch.uint8:
        raise InvalidValue(
            f"export_encoder(dtype='uint8'): the run's data are {inputs.dtype}, whose scale bytes cannot hold; leave "
            "dtype at auto"
        )
    return inputs


def _samples(run: Path_, trust: bool) -> Tensor:
    """The first samples that the run is judged on, as its data module gives them."""
    from contrastive.evaluation.run import build_data, read_config

    remedy = "give the shape of one sample: input_shape=(3, 32, 32)"
    if "data" not in read_config(run):
        raise InvalidValue(
            f"export_encoder(run={str(run)!r}): the folder has no config.yaml that names the data, so the shape of the "
            f"inputs is not known; {remedy}"
        )
    data = build_data(run, trust=trust)
    try:
        data.setup("test")
        batch = next(iter(data.evaluation_loaders()[1]))
    except Exception as error:  # the data may have moved, be encrypted, be gone: anyone's code reads them
        raise InvalidValue(
            f"export_encoder(run={str(run)!r}): the data that its config.yaml names cannot be read now "
            f"({type(error).__name__}: {error}); bring them back, or {remedy}"
        ) from error
    inputs: Tensor = batch.inputs
    return inputs[: max(BATCH_SIZES)]


def _through_onnx(encoder: nn.Module, inputs: Tensor, path: Path) -> Model:
    """Write ``path`` and open it with ONNX Runtime, on the CPU."""
    import onnxruntime

    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter warns of its own deprecated internals
            torch.onnx.export(
                encoder,
                (inputs[:2],),  # a batch of 1 would be taken for a constant
                path,
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                input_names=["inputs"],
                output_names=["features"],
                external_data=False,
                verbose=False,
            )
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # the exporter and the runtime raise whatever the operation that failed raised
        raise _not_exportable(encoder, "onnx", "torchscript", error) from error
    return lambda batch: torch.from_numpy(session.run(["features"], {"inputs": batch.numpy()})[0])


def _through_torchscript(encoder: nn.Module, inputs: Tensor, path: Path) -> Model:
    """Write ``path`` and read it back, on the CPU."""
    try:
        with torch.no_grad(), warnings.catch_warnings():
            # All of TorchScript is deprecated, and tracing warns of every check of a shape. What these checks could
            # get wrong shows in the comparison.
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(encoder, (inputs[:2],), check_trace=False)  # type: ignore[no-untyped-call]
            torch.jit.freeze(traced).save(str(path))
            script: Model = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
    except Exception as error:  # as above
        raise _not_exportable(encoder, "torchscript", "onnx", error) from error
    return script


def _not_exportable(encoder: nn.Module, format: str, other: str, error: Exception) -> ValueError:
    reason = str(error).strip().split("\n")[0][:300]
    return InvalidValue(
        f"export_encoder(format={format!r}): a {type(encoder).__name__} cannot be written as that "
        f"({type(error).__name__}: {reason}); try format={other!r}, or take what depends on values of the input out "
        "of its forward"
    )


def _features(model: Model, inputs: Tensor, name: str) -> Tensor:
    """Features ``(B, dim)`` of a batch, checked."""
    try:
        with torch.no_grad():
            features = model(inputs)
    except Exception as error:  # runtimes have their own exceptions
        reason = str(error).strip().split("\n")[0][:300]
        raise InvalidValue(
            f"export_encoder: {name} cannot encode a batch of shape {tuple(inputs.shape)} and type {inputs.dtype} "
            f"({type(error).__name__}: {reason}); give the input_shape and dtype that the encoder was trained with, or "
            "another format"
        ) from error
    if features.ndim != 2 or len(features) != len(inputs) or not torch.isfinite(features).all():
        given = (
            f"shape {tuple(features.shape)}" if features.ndim != 2 or len(features) != len(inputs) else "NaN"
        )
        raise InvalidValue(
            f"export_encoder: {name} gives {given} for {len(inputs)} inputs; finite features (B, dim) are expected; "
            "pool or flatten the output to a vector a sample, and check the weights"
        )
    return features


def _difference(found: Tensor, expected: Tensor, tolerance: float, format: str) -> float:
    if found.shape != expected.shape:
        raise InvalidValue(
            f"export_encoder: the exported {format} model gives shape {tuple(found.shape)}, the encoder of the run "
            f"{tuple(expected.shape)}; nothing was written; try another format"
        )
    largest = float((found - expected).abs().max())
    accepted = tolerance * float(expected.abs().max())
    if largest > accepted:
        raise InvalidValue(
            f"export_encoder: features of the exported {format} model differ from those of the run's encoder by up to "
            f"{largest:.3g} in a batch of {len(found)}; {accepted:.3g} is accepted; nothing was written; try another "
            "format, or set a larger tolerance if that is good enough for you"
        )
    return largest


def _normalisation(encoder: nn.Module) -> dict[str, Any]:
    """What the exported model does to its inputs before anything else; null where the class is not ours."""
    mean = std = None
    if isinstance(found := getattr(encoder, "normalise", None), Normalise):
        mean, std = found.mean.flatten().tolist(), found.std.flatten().tolist()
    return {"inside_the_model": True, "mean": mean, "std": std}
