"""Evaluating the folder of a training run: its encoder, on the data that its configuration names."""

import inspect
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn
from torch.nn import functional as F

from contrastive.building import build
from contrastive.encoders import load_encoder
from contrastive.errors import FileMissing, InvalidType, InvalidValue
from contrastive.evaluation.features import Features, extract_features
from contrastive.evaluation.knn import Metric, knn_classify
from contrastive.evaluation.metrics import Classification
from contrastive.evaluation.probe import label_efficiency, linear_probe
from contrastive.evaluation.results import describe_data, describe_encoder, write_result
from contrastive.reading import entry, read_mapping

Folder = str | os.PathLike[str]


def probe_run(
    run: Folder,
    *,
    data: LightningDataModule | None = None,
    protocol: Literal["lbfgs", "sgd"] = "lbfgs",
    C: float | Literal["auto"] = "auto",
    standardize: bool = True,
    epochs: int = 90,
    batch_size: int = 256,
    learning_rate: float | None = None,
    seed: int = 0,
    device: str = "auto",
    trust: bool = False,
) -> dict[str, Any]:
    """Linear probe on the frozen encoder of a run; writes ``results/linear_probe.json`` in its folder.

    Args:
        run: folder of the run.
        data: data to evaluate on; by default those the run was trained on.
        protocol: ``lbfgs``, or ``sgd`` for the schedule of the literature.
        C: inverse ridge strength of ``lbfgs``; ``auto`` chooses it on held-out training samples.
        standardize: scale every feature to mean 0 and deviation 1 on the training set.
        epochs: of ``sgd``.
        batch_size: of ``sgd``.
        learning_rate: of ``sgd``; 0.1 * batch_size / 256 by default.
        seed: of the held-out part and of the batches.
        device: where to run the encoder; ``auto`` takes a GPU if there is one.
        trust: build classes of others too, if the run names them; they can run any code, so only for a run whose
            author you trust.

    Returns:
        The content of the JSON file.
    """
    start = time.perf_counter()
    data = prepare_data(run, data, trust=trust)
    train, test = _features(load_run_encoder(run, trust=trust), data, device)
    settings: dict[str, Any] = {"solver": protocol, "standardize": standardize}
    result = linear_probe(
        train,
        test,
        protocol=protocol,
        C=C,
        standardize=standardize,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
    )
    if protocol == "lbfgs":
        settings |= {
            "converged": result.converged,
            "C": result.C,
            "C_chosen_by": "held-out training samples" if C == "auto" else "caller",
        }
    else:
        settings |= {"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate}
    return _write(run, "linear_probe", settings, result, data, seed, start)


def knn_run(
    run: Folder,
    *,
    data: LightningDataModule | None = None,
    k: int = 20,
    temperature: float = 0.1,
    metric: Metric = "cosine",
    device: str = "auto",
    trust: bool = False,
) -> dict[str, Any]:
    """Weighted nearest neighbours with the frozen encoder of a run; writes ``results/knn.json`` in its folder.

    Args:
        run: folder of the run.
        data: data to evaluate on; by default those the run was trained on.
        k: number of neighbours. Tables for CIFAR-10 often use 200.
        temperature: of the votes.
        metric: ``cosine`` or ``euclidean``.
        device: where to run the encoder; ``auto`` takes a GPU if there is one.
        trust: build classes of others too, if the run names them; they can run any code, so only for a run whose
            author you trust.

    Returns:
        The content of the JSON file.
    """
    start = time.perf_counter()
    data = prepare_data(run, data, trust=trust)
    train, test = _features(load_run_encoder(run, trust=trust), data, device)
    result = knn_classify(train, test, k=k, temperature=temperature, metric=metric)
    settings = {"k": min(k, len(train)), "temperature": temperature, "metric": metric}
    return _write(run, "knn", settings, result, data, 0, start)


def evaluate_run(
    run: Folder,
    *,
    data: LightningDataModule | None = None,
    labels_per_class: Sequence[int | None] = (1, 5, 10, None),
    draws: int = 5,
    k: int = 20,
    baselines: bool = True,
    seed: int = 0,
    device: str = "auto",
    trust: bool = False,
) -> dict[str, Any]:
    """Probe and kNN at few and at all labels, beside raw pixels and an encoder that was not trained.

    Prints a table and writes ``results/label_efficiency.json``. Features are extracted once for all of it.

    The run of a recommender is ranked beside floors instead, methods that only count, and leaves
    ``results/recommender.json`` (:func:`recsys.evaluation.evaluate_recommender`).

    Args:
        run: folder of the run.
        data: data to evaluate on; by default those the run was trained on.
        labels_per_class: how many training labels are known; None for all. Counts that some class does not have
            are left out.
        draws: how many random choices of the labels are averaged.
        k: number of neighbours.
        baselines: False leaves out the rows of raw pixels and of the untrained encoder, or the floors.
        seed: of the draws and of the untrained encoder's weights.
        device: where to run the encoders; ``auto`` takes a GPU if there is one.
        trust: build classes of others too, if the run names them; they can run any code, so only for a run whose
            author you trust.

    Returns:
        The content of ``label_efficiency.json``: its metrics are a table, encoder by method by labels a class.

    Raises:
        FileNotFoundError: there is no such run, or it names no data.
        ValueError: options about labels are given for a recommender, which has none; or a file is damaged.
    """
    start = time.perf_counter()
    data = build_data(_folder(run), trust=trust) if data is None else data
    if hasattr(data, "evaluate_run"):
        _refuse_labels(labels_per_class=labels_per_class, draws=draws, k=k)
        ranked: dict[str, Any] = data.evaluate_run(
            _folder(run), baselines=baselines, seed=seed, device=device, trust=trust
        )
        return ranked
    data = prepare_data(run, data, trust=trust)
    rows: dict[str, nn.Module] = {}
    if baselines:
        rows = {
            "raw pixels": RawPixels(),
            "untrained encoder": load_run_encoder(run, untrained=seed, trust=trust),
        }
    rows["trained encoder"] = load_run_encoder(run, trust=trust)
    table: dict[str, Any] = {}
    for name, encoder in rows.items():
        train, test = _features(encoder, data, device)
        smallest = int(torch.unique(train.require_labels("evaluate_run"), return_counts=True)[1].min())
        counts = [count for count in labels_per_class if count is None or count <= smallest]
        seeds = range(seed, seed + draws)
        accuracies = label_efficiency(train, test, labels_per_class=counts, seeds=seeds, k=k)
        table[name] = {
            method: {count: {"mean": mean, "std": std} for count, (mean, std) in columns.items()}
            for method, columns in accuracies.items()
        }
    settings = {"name": "label_efficiency", "k": k, "temperature": 0.1, "C": "auto", "draws": draws}
    if baselines:
        settings["raw_pixels"] = f"averaged to {RawPixels.size} x {RawPixels.size} at most"
    document = write_result(
        Path(run) / "results",
        "label_efficiency",
        protocol=settings,
        metrics=table,
        split=getattr(data, "evaluation_split", "test"),
        seed=seed,
        data=describe_data(data),
        encoder=describe_encoder(run),
        seconds=time.perf_counter() - start,
    )
    print(format_table(table))
    return document


def _refuse_labels(**given: Any) -> None:
    """Refuse options of :func:`evaluate_run` that would have no effect."""
    defaults = inspect.signature(evaluate_run).parameters
    for option, value in given.items():
        if value != defaults[option].default:
            raise InvalidValue(
                f"evaluate_run({option}={value!r}): this run trained a recommender, whose data have no labels; leave "
                f"{option} out."
            )


def format_table(table: Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]]) -> str:
    """Accuracy in percent as text: a row an encoder, a column for each method and number of labels a class."""
    methods = {"knn": "kNN", "probe": "linear probe"}
    counts = list(next(iter(table.values()))["knn"])
    width = 12 * len(counts)
    head = f"{'accuracy in %':<20}" + "".join(f"{title:<{width}}" for title in methods.values())
    lines = [head.rstrip(), f"{'labels per class':<20}" + "".join(f"{c:<12}" for c in counts * 2).rstrip()]
    for name, row in table.items():
        cells = []
        for method in methods:
            for count in counts:
                cell = row[method][count]
                spread = "" if count == "all" else f" ± {100 * cell['std']:.1f}"
                cells.append(f"{100 * cell['mean']:.1f}{spread}")
        lines.append(f"{name:<20}" + "".join(f"{cell:<12}" for cell in cells).rstrip())
    return "\n".join(lines)


class RawPixels(nn.Module):
    """The images themselves as features ``(B, C * H * W)``, averaged to at most 16 x 16 pixels.

    More pixels hardly help a linear layer or nearest neighbours, and at 32 x 32 this row would take longer than all
    others together.
    """

    size = 16

    def forward(self, images: Tensor) -> Tensor:
        """Flatten inputs ``(B, ...)``; uint8 images are brought to [0, 1]."""
        values = images.float() / 255 if images.dtype == torch.uint8 else images.float()
        if values.ndim == 4 and max(values.shape[2:]) > self.size:
            height, width = (min(side, self.size) for side in values.shape[2:])
            values = F.adaptive_avg_pool2d(values, (height, width))
        return values.flatten(1)


def load_run_encoder(run: Folder, *, untrained: int | None = None, trust: bool = False) -> nn.Module:
    """The encoder of a run: as trained, or with fresh weights.

    Encoders of other packages are built from the configuration of the run, if they are registered
    (:func:`contrastive.register`) or the run is trusted.

    Args:
        run: folder of the run, with ``encoder/`` in it.
        untrained: seed of fresh weights, in place of the trained (and of any pretrained) ones.
        trust: build classes of others too, if the run names them; they can run any code, so only for a run whose
            author you trust.

    Raises:
        FileNotFoundError: the run holds no encoder.
        ValueError: a file is damaged, does not fit the others, or names a class that is not ours.
    """
    part = entry(read_config(run), "model", "init_args", "encoder")
    with torch.random.fork_rng():
        torch.manual_seed(untrained or 0)
        if isinstance(part, Mapping) and "class_path" in part:
            if entry(part, "init_args", "pretrained"):
                part = {**part, "init_args": {**part["init_args"], "pretrained": False}}
            encoder: nn.Module = build(part, nn.Module, str(_config_file(run)), trust=trust)
            return encoder if untrained is not None else load_encoder(run, encoder)
        encoder = load_encoder(run)
        if untrained is None:
            return encoder
        arguments = dict(encoder.config)  # type: ignore[arg-type]
        if arguments.get("pretrained"):
            arguments["pretrained"] = False
        fresh: nn.Module = type(encoder)(**arguments)
        return fresh


def read_config(run: Folder) -> dict[str, Any]:
    """Content of ``config.yaml`` of a run; empty if there is none.

    Raises:
        ValueError: the file is damaged.
    """
    path = _config_file(run)
    return read_mapping(path) if path.is_file() else {}


def build_data(run: Folder, *, trust: bool = False) -> Any:
    """The data module that the configuration of a run names, not set up.

    Args:
        run: folder of the run.
        trust: build classes of others too, if the run names them; they can run any code, so only for a run whose
            author you trust.

    Raises:
        FileNotFoundError: the run names no data.
        ValueError: the file is damaged, or names a class that is not ours.
    """
    part = read_config(run).get("data")
    if part is None:
        raise FileMissing(
            f"run={str(run)!r} has no config.yaml that names its data; give the data module: data=ImageData(...)"
        )
    return build(part, LightningDataModule, str(_config_file(run)), trust=trust)


def prepare_data(run: Folder, data: LightningDataModule | None = None, *, trust: bool = False) -> Any:
    """The data module to evaluate on, set up: ``data``, or the one that the configuration of the run names.

    Args:
        run: folder of the run.
        data: the data module, instead of the run's own.
        trust: build classes of others too, if the run names them; they can run any code, so only for a run whose
            author you trust.

    Raises:
        FileNotFoundError: there is no such run, or it names no data.
        TypeError: the data module gives no ordered batches.
        ValueError: the configuration is damaged, or names a class that is not ours.
    """
    folder = _folder(run)
    data = build_data(folder, trust=trust) if data is None else data
    if hasattr(data, "evaluate_run"):
        raise InvalidType(
            f"data is a {type(data).__name__}, interactions of a recommender, which have no labelled samples; rank it "
            "with `contrastive evaluate`, ask it with `contrastive recommend`."
        )
    if not hasattr(data, "evaluation_loaders"):
        raise InvalidType(
            f"data is a {type(data).__name__} without evaluation_loaders(), which gives ordered batches of the "
            "labelled training set and of the test set; add that method, or use a data module of contrastive.data"
        )
    data.prepare_data()
    data.setup("test")
    return data


def _folder(run: Folder) -> Folder:
    """The folder of a run, if it is one.

    Raises:
        FileNotFoundError: it is none.
    """
    if not Path(run).is_dir():
        raise FileMissing(
            f"run={str(run)!r} is not a folder; give the folder of a training run, as runs/quickstart/0"
        )
    return run


def _config_file(run: Folder) -> Path:
    return Path(run) / "config.yaml"


def _features(encoder: nn.Module, data: Any, device: str) -> tuple[Features, Features]:
    """Features of the training set and of the test set. Every process by itself: often just one comes here."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    encoder = encoder.to(device)
    train, test = (
        extract_features(encoder, loader, device, gather=False) for loader in data.evaluation_loaders()
    )
    return train, test


def _write(
    run: Folder,
    name: str,
    settings: dict[str, Any],
    result: Classification,
    data: Any,
    seed: int,
    start: float,
) -> dict[str, Any]:
    names = getattr(data, "class_names", [])
    recall = {
        str(names[label] if 0 <= label < len(names) else label): value
        for label, value in result.recall.items()
    }
    return write_result(
        Path(run) / "results",
        name,
        protocol={"name": name, **settings},
        metrics={**result.metrics, "recall": recall},
        split=getattr(data, "evaluation_split", "test"),
        seed=seed,
        data=describe_data(data),
        encoder=describe_encoder(run),
        seconds=time.perf_counter() - start,
    )
