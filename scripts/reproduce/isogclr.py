"""SogCLR and iSogCLR against InfoNCE: long-tailed data with a temperature a sample, and small batches.

    python scripts/reproduce/isogclr.py --scale digits
    python scripts/reproduce/isogclr.py --scale cifar --data FOLDER

iSogCLR (Qiu et al., ICML 2023, arXiv 2305.11965) claims better representations of long-tailed data than any one
temperature gives, with higher temperatures for samples of frequent semantics. SogCLR (Yuan et al., ICML 2022,
arXiv 2202.12387) claims that small batches do not harm it. Encoders are judged by labelled samples of all classes
alike: 500 of each class of CIFAR-10; ten of each digit, because these are easy, averaged over five draws.
Large and small batches see equally many samples; the learning rate follows the square root of the batch.
"""

import dataclasses
import functools
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import seed_everything
from scipy.stats import spearmanr
from study import Arm, Claim, Results, Run, Study, better, main, value
from torch import Tensor

from contrastive import (
    ConvEncoder,
    ImageData,
    InfoNCE,
    ISogCLR,
    Pretrain,
    ProjectionHead,
    SimCLRViews,
    SogCLR,
)
from contrastive.data import Loader, TensorData
from contrastive.data.sources import few_of_each
from contrastive.evaluation import extract_features, knn_classify, linear_probe
from contrastive.training.optim import OptimizerConfig


@dataclass(frozen=True)
class Setting:
    """Data, network and budget of a scale."""

    data: dict[str, Any]
    encoder: dict[str, Any]
    views: dict[str, Any]
    imbalance: float
    batch: int
    """Samples a step on long-tailed data."""
    large: int
    small: int
    samples: int
    """Samples seen in a run on long-tailed data, again and again."""
    balanced_samples: int
    """The same in a run with a large or a small batch."""
    labels_per_class: int
    """Labelled samples that encoders are judged by."""
    draws: int
    """Draws of them, whose results are averaged."""
    tuning_seeds: int
    """Seeds that settings for long-tailed data are chosen by."""


SETTINGS = {
    "digits": Setting(
        data={"source": "digits", "size": 8, "channels": 1},
        encoder={"in_channels": 1, "widths": [32, 64], "blocks": [0, 0]},
        views={
            "size": 8,
            "crop_scale": (0.4, 1.0),
            "rotation": 20.0,
            "flip": 0.0,
            "grey": 0.0,
            "jitter": (0.4, 0.4, 0.0, 0.0),
        },
        imbalance=0.05,
        batch=64,
        large=256,
        small=8,
        samples=20_000,
        balanced_samples=10_000,
        labels_per_class=10,
        draws=5,
        tuning_seeds=1,
    ),
    "cifar": Setting(
        data={"source": "cifar10", "size": 32},
        encoder={"widths": [24, 48, 96], "blocks": [0, 1, 0]},
        views={"size": 24, "crop_scale": (0.25, 1.0)},
        imbalance=0.01,
        batch=128,
        large=512,
        small=32,
        samples=60_000,
        balanced_samples=60_000,
        labels_per_class=500,
        draws=1,
        tuning_seeds=1,
    ),
}
# All that was tried on the digits, in order; differences are means and deviations over paired seeds, in points.
DIGITS_NOTES = (
    "Three settings were tried; shown is the second. (1) Ratio 0.05, 10,000 samples seen, temperatures 0.1 to 0.5, rho "
    "0.1 to 0.4, small batch 32: on the long tail kNN +0.18 ± 0.24 points and probe -0.03 ± 0.71, small batch -0.09 ± "
    "0.23. (2) 20,000 samples on the long tail, temperatures 0.2 to 1, iSogCLR from 0.5 with rho 0.03 to 0.3, small "
    "batch 8. (3) Ratio 0.02, gamma 0.2 for SogCLR: +0.68 ± 0.35 (p = 0.006), +0.26 ± 0.61, +0.25 ± 0.31. That gain of "
    "kNN was the baseline's tuning: one seed had chosen temperature 1. On ten other seeds iSogCLR stood +0.41 ± 0.39 "
    "points from it, but -0.09 ± 0.31 from temperature 0.5 and -0.31 ± 0.29 from 0.2. So (2) stands. The rank "
    "correlation of temperatures with class sizes was 0.77, 0.78 and 0.69."
)
CIFAR_NOTES = (
    "Two settings were tried; shown is the second, whatever it says. (1) Individual temperatures started from 0.5, as "
    "on the digits: kNN -2.90 ± 0.62 points and probe -1.80 ± 0.79 against the best fixed temperature, 0.2; rank "
    "correlation 0.30 ± 0.13. In about 470 steps a temperature moves little from where it starts. Hence (2): they "
    "start from 0.2, what the fixed temperatures were found best at."
)
OBJECTIVES = {"InfoNCE": InfoNCE, "SogCLR": SogCLR, "iSogCLR": ISogCLR}


def train(run: Run) -> dict[str, float]:
    """Train and judge; on long-tailed data settings are chosen by the mean of several seeds, for one alone is noise."""
    if not run.tuning or run.smoke or not run.arm.endswith("long tail"):
        return train_once(run)
    scores = []
    for number in range(SETTINGS[run.scale].tuning_seeds):
        seed_everything(run.seed + number, verbose=False)
        one = dataclasses.replace(run, seed=run.seed + number, folder=run.folder / str(number))
        scores.append(train_once(one)["score"])
    return {"score": statistics.fmean(scores)}


def train_once(run: Run) -> dict[str, float]:
    setting = SETTINGS[run.scale]
    name, kind = run.arm.split(", ")
    batch = {"long tail": setting.batch, "large batch": setting.large, "small batch": setting.small}[kind]
    data = TensorData(
        *images(run.scale, run.data),
        batch_size=batch,
        seed=run.seed,
        imbalance=setting.imbalance if kind == "long tail" else 1.0,
        validation_fraction=0.2 if run.tuning else 0.0,
    )
    objective = OBJECTIVES[name](**run.settings)
    module = Pretrain(
        ConvEncoder(**setting.encoder),
        objective,
        ProjectionHead(256),
        SimCLRViews(**setting.views),
        OptimizerConfig(learning_rate=2e-3 * math.sqrt(batch / 256)),
        seed=run.seed,
    )
    samples = setting.samples if kind == "long tail" else setting.balanced_samples
    run.fit(module, data, steps=2 if run.smoke else samples // batch)
    metrics = judge(module.encoder, data, run)
    return metrics | (follows_class_size(objective, data) if isinstance(objective, ISogCLR) else {})


@functools.cache
def images(scale: str, root: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images and labels for training and for testing, decoded once for all runs."""
    data = ImageData(**SETTINGS[scale].data, root=root)
    train, test = data.inputs.train, data.inputs.test
    assert isinstance(train, Tensor)
    assert isinstance(test, Tensor)
    return train, data.known.train_labels, test, data.known.test_labels


def judge(encoder: ConvEncoder, data: TensorData, run: Run) -> dict[str, float]:
    """Nearest neighbours and linear probe from a few labels; while tuning, neighbours on the validation part."""
    train, labels, test, test_labels = images(run.scale, run.data)
    setting = SETTINGS[run.scale]
    labelled, held_out = torch.arange(len(labels)), Loader(test, test_labels, batch_size=500)
    if run.tuning:  # of the training part as it was before its classes were thinned
        labelled, held_out = data.parts[0], Loader(train, labels, data.parts[1], batch_size=500)
    queries = extract_features(encoder, held_out)
    knn, probe = [], []
    for draw in range(1 if run.smoke else setting.draws):
        rows = labelled[few_of_each(labels[labelled], data.num_classes, setting.labels_per_class, draw)]
        bank = extract_features(encoder, Loader(train, labels, rows, batch_size=500))
        knn.append(knn_classify(bank, queries, k=min(20, setting.labels_per_class)).accuracy)
        if not run.tuning:
            probe.append(linear_probe(bank, queries, C=1.0).accuracy)
    if run.tuning:
        return {"score": statistics.fmean(knn)}
    return {"knn": statistics.fmean(knn), "probe": statistics.fmean(probe)}


def follows_class_size(objective: ISogCLR, data: TensorData) -> dict[str, float]:
    """Rank correlation, over classes, of the mean learned temperature with the number of samples."""
    assert data.known.train_labels is not None
    labels = data.known.train_labels[data.rows[0]]
    temperature = objective.state_table()["temperature"]
    sizes = torch.bincount(labels, minlength=data.num_classes)
    means = torch.zeros(data.num_classes).index_add(0, labels, temperature) / sizes
    return {"spearman": float(spearmanr(sizes, means).statistic), "temperature": float(means.mean())}


def less_harm(results: Results) -> list[float]:
    """What the small batch costs InfoNCE in nearest neighbours, minus what it costs SogCLR; one a seed."""

    def costs(name: str) -> list[float]:
        return better(f"{name}, large batch", f"{name}, small batch", "knn")(results)

    return [info - sog for info, sog in zip(costs("InfoNCE"), costs("SogCLR"), strict=True)]


def study(scale: str, smoke: bool) -> Study:
    setting = SETTINGS[scale]
    temperatures = [{"temperature": t} for t in (0.2, 0.5, 1.0)]
    start = 0.2 if scale == "cifar" else 0.5
    individual = [{"temperature_init": start, "rho": rho} for rho in (0.03, 0.1, 0.3)]
    remembering = [candidate | ({"gamma": 0.2} if scale == "cifar" else {}) for candidate in temperatures]
    return Study(
        title="SogCLR (Yuan et al., ICML 2022) and iSogCLR (Qiu et al., ICML 2023)",
        arms=[
            Arm("InfoNCE, long tail", temperatures),
            Arm("iSogCLR, long tail", individual),
            Arm("InfoNCE, large batch", temperatures),
            Arm("InfoNCE, small batch", temperatures),
            Arm("SogCLR, large batch", remembering),
            Arm("SogCLR, small batch", remembering),
        ],
        train=train,
        claims=[
            Claim(
                "long tail: kNN above the best fixed temperature",
                better("iSogCLR, long tail", "InfoNCE, long tail", "knn"),
            ),
            Claim(
                "long tail: linear probe above the best fixed temperature",
                better("iSogCLR, long tail", "InfoNCE, long tail", "probe"),
            ),
            Claim(
                "class means of temperatures follow class sizes (Spearman at least 0.5)",
                value("iSogCLR, long tail", "spearman"),
                margin=0.5,
            ),
            Claim("a small batch costs SogCLR less kNN accuracy than InfoNCE", less_harm),
        ],
        seeds=5 if scale == "digits" else 3,
        shown=["knn"] if smoke else ["knn", "probe", "spearman"],
        setting=(
            f"{scale}, smallest class {setting.imbalance:g} of the largest where long-tailed; batch {setting.batch}, "
            f"large {setting.large}, small {setting.small}; {setting.samples:,} samples seen of the long tail, "
            f"{setting.balanced_samples:,} otherwise"
        ),
        notes=DIGITS_NOTES if scale == "digits" else CIFAR_NOTES,
    )


if __name__ == "__main__":
    main(study)
