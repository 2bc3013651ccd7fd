"""Few-shot episodes on the test set of a training run, inductive and transductive classifiers apart."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from contrastive.checks import check_whole
from contrastive.errors import FileMissing, InvalidValue
from contrastive.evaluation.features import Features, extract_features
from contrastive.evaluation.few_shot import (
    CLASSIFIERS,
    TRANSDUCTIVE,
    Classifier,
    FewShot,
    compare_few_shot,
    few_shot,
    sample_episodes,
)
from contrastive.evaluation.opta import UNBALANCED, OpTA
from contrastive.evaluation.results import describe_data, describe_encoder, write_result
from contrastive.evaluation.run import Folder, load_run_encoder, prepare_data


def few_shot_run(
    run: Folder,
    *,
    data: LightningDataModule | None = None,
    way: int = 5,
    shot: int | Sequence[int] = (1, 5),
    queries: int = 15,
    episodes: int = 2000,
    imbalance: float | None = None,
    classifiers: Sequence[Classifier] | None = None,
    other: Folder | None = None,
    seed: int = 0,
    device: str = "auto",
    trust: bool = False,
) -> dict[str, Any]:
    """N-way K-shot accuracy with the frozen encoder of a run; writes ``results/few_shot.json`` in its folder.

    Prints a table with inductive and transductive classifiers apart. Episodes are drawn from the test set, so for
    few-shot learning of classes that the encoder never met, give data whose test set consists of such classes. All
    shots share their classes and queries: K shots are the first K samples of the largest support.

    Args:
        run: folder of the run.
        data: data to evaluate on; by default those the run was trained on.
        way: classes in an episode.
        shot: support samples of a class; several numbers make several rows.
        queries: query samples of a class; with ``imbalance``, on average.
        episodes: number of episodes.
        imbalance: concentration of the Dirichlet distribution that the classes' shares of the queries come from, as 2;
            None for equally many of every class.
        classifiers: which ones; all by default, without ``opta`` where ``imbalance`` breaks its assumption.
        other: folder of a second run, whose encoder is compared on the same samples and episodes.
        seed: of the episodes.
        device: where to run the encoder; ``auto`` takes a GPU if there is one.
        trust: build classes of others too, if the run names them; they can run any code, so only for a run whose
            author you trust.

    Returns:
        The content of the JSON file. Its metrics are a table: kind of classifier by shot by classifier, each with
        ``mean`` and ``ci95``, the half width of the 95 % interval over episodes. With ``other`` there are also
        ``other`` and the paired ``difference`` (this run minus the other) with its ``p_value``.

    Raises:
        FileNotFoundError: a folder that does not exist or names no data.
        ValueError: no shot or classifier, an unknown classifier, or episodes that the test set cannot fill.
    """
    start = time.perf_counter()
    check_whole("few_shot_run", "way", way, 2)
    shots = [shot] if isinstance(shot, int) else list(shot)
    if classifiers is None:
        classifiers = [name for name in CLASSIFIERS if imbalance is None or name != "opta"]
    unknown = [name for name in classifiers if name not in CLASSIFIERS]
    if not shots or min(shots) < 1 or not classifiers or unknown:
        raise InvalidValue(
            f"few_shot_run: shot={shot!r}, classifiers={list(classifiers)}; give at least one shot, 1 or more, and one "
            f"classifier, each of {', '.join(CLASSIFIERS)}"
        )
    if other is not None and not Path(other).is_dir():
        raise FileMissing(
            f"other={str(other)!r} is not a folder; give the folder of a second training run, as runs/quickstart/1"
        )
    data = prepare_data(run, data, trust=trust)
    features = _test_features(run, data, device, trust)
    other_features = None if other is None else _test_features(other, data, device, trust)
    support, query = sample_episodes(
        features.require_labels("few_shot_run"),
        way=way,
        shot=max(shots),
        queries=queries,
        episodes=episodes,
        imbalance=imbalance,
        seed=seed,
    )
    metrics: dict[str, dict[str, dict[str, Any]]] = {}
    for name in classifiers:
        kind = metrics.setdefault("transductive" if name in TRANSDUCTIVE else "inductive", {})
        for count in shots:
            cell = _accuracy(features, other_features, support[:, :, :count], query, name)
            kind.setdefault(str(count), {})[name] = cell
    protocol: dict[str, Any] = {
        "name": "few_shot",
        "way": way,
        "shot": shots,
        "queries": queries,
        "episodes": episodes,
        "imbalance": imbalance,
        "preprocessing": "features as they are; rows of unit length for cosine_centroid and logistic_regression, "
        "standardised samples for opta and opta_unbalanced",
    }
    settings = {"opta": OpTA(), "opta_unbalanced": UNBALANCED}
    protocol |= {name: asdict(head) for name, head in settings.items() if name in classifiers}
    if other is not None:
        protocol["other"] = {"run": str(other), **describe_encoder(other)}
    document = write_result(
        Path(run) / "results",
        "few_shot",
        protocol=protocol,
        metrics=metrics,
        split=getattr(data, "evaluation_split", "test"),
        seed=seed,
        data=describe_data(data),
        encoder=describe_encoder(run),
        seconds=time.perf_counter() - start,
    )
    print(format_few_shot(document))
    return document


def format_few_shot(document: Mapping[str, Any]) -> str:
    """The document of :func:`few_shot_run` as text: accuracies in percent with their 95 % intervals."""
    protocol, metrics = document["protocol"], document["metrics"]
    columns = [(kind, name) for kind, rows in metrics.items() for name in next(iter(rows.values()))]
    first = [index == 0 or kind != columns[index - 1][0] for index, (kind, _) in enumerate(columns)]
    table = [
        ["", *(kind if starts else "" for (kind, _), starts in zip(columns, first, strict=True))],
        ["", *(name.replace("_", " ") for _, name in columns)],
    ]
    for shot in map(str, protocol["shot"]):
        cells = [metrics[kind][shot][name] for kind, name in columns]
        table.append([f"{shot}-shot", *map(_percent, cells)])
        if "other" in protocol:
            table.append(["  other", *(_percent(cell["other"]) for cell in cells)])
            table.append(["  difference", *(_percent(cell["difference"], sign="+") for cell in cells)])
            table.append(["  p value", *(f"{cell['difference']['p_value']:.2g}" for cell in cells)])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    bars = ["", *("| " if starts else "" for starts in first)]
    mix = "" if protocol["imbalance"] is None else f" on average, Dirichlet({protocol['imbalance']:g})"
    lines = [
        f"{protocol['way']}-way accuracy in % on the {document['split']} set, ± 95 % interval over "
        f"{protocol['episodes']} episodes; queries a class: {protocol['queries']}{mix}"
    ]
    for row in table:
        padded = (f"{bar}{cell:<{width}}" for bar, cell, width in zip(bars, row, widths, strict=True))
        lines.append("  ".join(padded).rstrip())
    if "other" in protocol:
        lines.append(f"other: {protocol['other']['run']}; differences are paired by episode")
    return "\n".join(lines)


def _percent(value: Mapping[str, float], sign: str = "") -> str:
    return f"{100 * value['mean']:{sign}.2f} ± {100 * value['ci95']:.2f}"


def _accuracy(
    features: Features, other: Features | None, support: Tensor, query: Tensor, classifier: Classifier
) -> dict[str, Any]:
    """One cell of the table."""
    if other is None:
        return _summary(few_shot(features, support, query, classifier=classifier))
    both = compare_few_shot(features, other, support, query, classifier=classifier)
    difference = {"mean": both.difference, "ci95": both.ci95, "p_value": both.p_value}
    return {**_summary(both.first), "other": _summary(both.second), "difference": difference}


def _summary(result: FewShot) -> dict[str, float]:
    return {"mean": result.mean, "ci95": result.ci95}


def _test_features(run: Folder, data: Any, device: str, trust: bool) -> Features:
    """Features of the test set alone. Every process by itself: often just one comes here."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    _, test = data.evaluation_loaders()
    return extract_features(load_run_encoder(run, trust=trust).to(device), test, device, gather=False)
