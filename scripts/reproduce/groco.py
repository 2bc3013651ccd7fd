"""GroCo against InfoNCE: nearest neighbours after the same time on the same machine.

    python scripts/reproduce/groco.py --scale digits
    python scripts/reproduce/groco.py --scale cifar --data FOLDER

The paper (Shvetsova et al., ICCV 2023, arXiv 2301.02009) claims better nearest neighbours than contrastive losses at
equal linear accuracy: ordering only near the border of the groups leaves neighbourhoods alone. Before an arm's first
run its step is timed in turns with that of InfoNCE, and it trains for as many steps as fit the same time.
"""

import hashlib
import json
import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from study import Arm, Claim, Run, Study, better, features, main

from contrastive import (
    ConvEncoder,
    GroCo,
    ImageData,
    InfoNCE,
    Pretrain,
    ProjectionHead,
    SimCLRViews,
    TensorData,
)
from contrastive.data.sources import few_of_each
from contrastive.evaluation import knn_classify, linear_probe
from contrastive.training.optim import OptimizerConfig


@dataclass(frozen=True)
class Setting:
    """Network and budget of a scale."""

    encoder: dict[str, Any]
    views: dict[str, Any]
    steps: int
    """Optimiser steps of InfoNCE."""
    text: str


NOTES = """With ten classes, many of the ten nearest of 255 negatives share the anchor's class (ImageNet has a
thousand), and on the digits' validation part the paper's ten come out below InfoNCE. Larger groups of negatives are
therefore candidates too and, to afford them, the merging network, which sorts less softly than the paper's. The
optimiser is AdamW for both arms, where the paper uses SGD with a rate of 24. Times are processor times of whole
training steps, measured in turns."""

SETTINGS = {
    "digits": Setting(
        encoder={"in_channels": 1, "widths": [16, 32, 64], "blocks": [0, 1, 0]},
        views={
            "size": 16,
            "crop_scale": (0.4, 1.0),
            "rotation": 20.0,
            "flip": 0.0,
            "grey": 0.0,
            "jitter": (0.4, 0.4, 0.0, 0.0),
        },
        steps=150,
        text="Digits of 16 pixels, a small residual network, batches of 256 in two views, 150 steps of InfoNCE.",
    ),
    "cifar": Setting(
        encoder={"widths": [24, 48, 96], "blocks": [0, 1, 0]},
        views={"size": 24, "crop_scale": (0.25, 1.0)},
        steps=500,
        text="2,000 images a class of CIFAR-10 in views of 24 pixels, a small residual network, batches of 256 in two "
        "views, 500 steps of InfoNCE.",
    ),
}


def train(run: Run) -> dict[str, float]:
    data = load(run)
    module = build(run, run.arm, run.settings)
    relative = 1.0 if run.smoke else relative_cost(run, data)
    run.fit(module, data, steps=2 if run.smoke else round(SETTINGS[run.scale].steps / relative))
    return {**judge(module.encoder, data, run), "relative_cost": relative}


def load(run: Run) -> TensorData:
    """The digits, or 2,000 training and 500 test images of each class of CIFAR-10, so that most time is training."""
    file = run.shared / "images.pt"
    if not file.is_file():
        counts: dict[str, int] = {}
        if run.scale == "digits":
            whole = ImageData("digits", size=16, channels=1)
        else:
            whole, counts = ImageData("cifar10", root=str(run.data)), {"train": 2000, "test": 500}
        tensors = {}
        for split in ("train", "test"):
            inputs, labels = getattr(whole.inputs, split), getattr(whole.known, f"{split}_labels")
            if split in counts:
                rows = few_of_each(labels, whole.num_classes, counts[split], seed=0)
                inputs, labels = inputs[rows], labels[rows]
            tensors |= {f"{split}_inputs": inputs, f"{split}_labels": labels}
        torch.save(tensors, file)
    return TensorData(
        **torch.load(file, weights_only=True),
        batch_size=256,
        validation_fraction=0.2 if run.tuning else 0.0,
        seed=run.seed,
    )


def judge(encoder: ConvEncoder, data: TensorData, run: Run) -> dict[str, float]:
    """20 neighbours among all labelled samples, 5 among 10 of each class (20 draws of these), and linear probe."""
    train, test = features(encoder, data, run)
    metrics = {"knn": knn_classify(train, test, k=20).accuracy}
    few = [train.rows(few_of_each(train.labels, data.num_classes, 10, seed)) for seed in range(20)]
    metrics["knn_10"] = statistics.fmean(knn_classify(bank, test, k=5).accuracy for bank in few)
    metrics["score"] = (metrics["knn"] + metrics["knn_10"]) / 2
    if not run.tuning:
        metrics["probe"] = linear_probe(train, test, C=1.0).accuracy
    return metrics


def build(run: Run, arm: str, settings: dict[str, Any]) -> Pretrain:
    setting = SETTINGS[run.scale]
    options = {name: value for name, value in settings.items() if name != "learning_rate"}
    return Pretrain(
        ConvEncoder(**setting.encoder),
        InfoNCE(**options) if arm == "InfoNCE" else GroCo(**options),
        ProjectionHead(256),
        SimCLRViews(**setting.views),
        OptimizerConfig(learning_rate=settings["learning_rate"]),
        seed=run.seed,
    )


def relative_cost(run: Run, data: TensorData) -> float:
    """Processor time of a training step of this arm over that of InfoNCE: median of steps timed in turns."""
    if run.arm == "InfoNCE":
        return 1.0
    key = hashlib.sha256(json.dumps([run.arm, run.settings], sort_keys=True).encode()).hexdigest()[:12]
    record = run.shared / f"cost-{key}.json"
    if not record.is_file():
        data.setup("fit")
        inputs = next(iter(data.train_dataloader())).inputs
        modules = [
            build(run, run.arm, run.settings),
            build(run, "InfoNCE", {"temperature": 0.2, "learning_rate": 1e-3}),
        ]
        ratios = []
        for _ in range(16):
            ours, theirs = (step_seconds(module, inputs) for module in modules)
            ratios.append(ours / theirs)
        record.write_text(json.dumps(statistics.median(ratios[1:])))
    cost: float = json.loads(record.read_text())
    return cost


def step_seconds(module: Pretrain, inputs: torch.Tensor) -> float:
    start = time.process_time()
    torch.autograd.backward(module.objective(*module.embed(module.make_views(inputs, seed=0))))
    return time.process_time() - start


def make_study(scale: str, smoke: bool) -> Study:
    rate = 5e-3
    paper = {"num_negatives": 10, "steepness": 1.0, "network": "odd_even", "learning_rate": rate}
    return Study(
        title="GroCo (Shvetsova et al., ICCV 2023)",
        arms=[
            Arm("InfoNCE", [{"temperature": t, "learning_rate": rate} for t in (0.5, 0.2, 1.0, 0.1)]),
            Arm(
                "GroCo",
                [
                    paper,
                    {**paper, "num_negatives": 64},
                    {**paper, "num_negatives": 64, "network": "merge"},
                    {**paper, "num_negatives": 64, "network": "merge", "steepness": 3.0},
                ],
            ),
        ],
        train=train,
        claims=[
            Claim("nearest neighbours above InfoNCE after the same time", better("GroCo", "InfoNCE", "knn")),
            Claim("the same with 10 labels a class", better("GroCo", "InfoNCE", "knn_10")),
            Claim(
                "linear probe at most a point below InfoNCE",
                better("GroCo", "InfoNCE", "probe"),
                margin=-0.01,
            ),
        ],
        seeds=3 if scale == "cifar" else 5,
        shown=["knn", "knn_10", "probe", "relative_cost"],
        setting=SETTINGS[scale].text,
        notes=NOTES,
    )


if __name__ == "__main__":
    main(make_study)
