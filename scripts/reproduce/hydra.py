"""Hydra against SupCon: arbitrary pairs of classes as positives, with and without gates.

    python scripts/reproduce/hydra.py --scale digits
    python scripts/reproduce/hydra.py --scale cifar --data FOLDER

The paper (Wu et al., "Rethinking Positive Pairs in Contrastive Learning", arXiv 2410.18200) claims that *any* pair of
classes may be a positive pair, if a learned gate selects the subspace that it is positive in: features are as good as
those of supervised contrast, without gates they collapse, more dimensions are in use, and the gates tell which classes
are alike.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import mean
from typing import Any

import torch
from study import Arm, Claim, Results, Run, Study, better, main, value
from torch.nn import functional as F

from contrastive import (
    ConvEncoder,
    Hydra,
    ImageData,
    Pretrain,
    ProjectionHead,
    SimCLRViews,
    SupCon,
    TensorData,
    extract_features,
    knn_classify,
    linear_probe,
)
from contrastive.data.sources import few_of_each
from contrastive.evaluation.features import Features
from contrastive.evaluation.geometry import effective_rank
from contrastive.evaluation.relations import ClassRelations
from contrastive.training.optim import OptimizerConfig

SUPCON, GATED, OPEN, OTHERS, INSTANCE = (
    "SupCon",
    "Hydra",
    "no gates",
    "no gates, never the own class",
    "Hydra with instance term",
)
OBJECTIVES = {
    SUPCON: SupCon,
    GATED: Hydra,
    OPEN: lambda **options: Hydra(gate="open", **options),
    OTHERS: lambda **options: Hydra(gate="open", pairs="distinct", **options),
    INSTANCE: lambda **options: Hydra(instance_term=True, **options),
}
VEHICLES = ("airplane", "automobile", "ship", "truck")


@dataclass(frozen=True)
class Setting:
    """Data, network and budget of a scale."""

    data: dict[str, Any]
    encoder: dict[str, Any]
    views: dict[str, Any]
    steps: int
    judged: tuple[int, int] | None = None
    """Samples of each class that the classifiers learn from and are judged on; None for all."""


SETTINGS = {
    "digits": Setting(
        data={"source": "digits", "size": 16, "channels": 1, "batch_size": 256},
        encoder={"in_channels": 1, "widths": [16, 32, 64], "blocks": [0, 1, 0]},
        views={
            "size": 16,
            "crop_scale": (0.4, 1.0),
            "rotation": 20.0,
            "flip": 0.0,
            "grey": 0.0,
            "jitter": (0.4, 0.4, 0.0, 0.0),
        },
        steps=160,
    ),
    "cifar": Setting(
        data={"source": "cifar10", "size": 32, "batch_size": 256},
        encoder={"widths": [32, 64, 128], "blocks": [0, 0, 0]},
        views={"size": 32, "crop_scale": (0.25, 1.0)},
        steps=400,
        judged=(1000, 500),
    ),
}


def train(run: Run) -> dict[str, float]:
    setting = SETTINGS[run.scale]
    data = ImageData(**setting.data, root=run.data, seed=run.seed)
    module = Pretrain(
        ConvEncoder(**setting.encoder),
        OBJECTIVES[run.arm](**run.settings),
        ProjectionHead(256, 128),
        SimCLRViews(**setting.views),
        OptimizerConfig(learning_rate=2e-3),
        seed=run.seed,
    )
    run.fit(module, data, steps=2 if run.smoke else setting.steps)

    train_part, test_part = (
        extract_features(module.encoder, loader) for loader in judged(data, setting).evaluation_loaders()
    )
    module.eval()
    with torch.no_grad():
        projections = Features(module.projector(test_part.vectors), test_part.labels)
    results = {
        "knn": knn_classify(train_part, test_part, k=20).accuracy,
        "probe": linear_probe(train_part, test_part).accuracy,
        "knn, 5 labels": few_labels(train_part, test_part),
        "class variance": class_variance(projections),
        "projection rank": effective_rank(projections.vectors, centre=True),
    }
    if run.arm == GATED:
        relations = module.objective.class_relations(data.class_names)
        results["relations"] = sense(relations, data)
        if not run.smoke:
            relations.figure().savefig(run.shared / f"relations-{run.seed}.png")
    return results


def judged(data: ImageData, setting: Setting) -> ImageData | TensorData:
    """The data that features are judged on."""
    if setting.judged is None:
        return data
    parts = []
    for inputs, labels, count in (
        (data.inputs.train, data.known.train_labels, setting.judged[0]),
        (data.inputs.test, data.known.test_labels, setting.judged[1]),
    ):
        rows = few_of_each(labels, data.num_classes, count, 0)
        parts += [inputs[rows], labels[rows]]
    return TensorData(*parts, class_names=data.class_names)


def few_labels(train_part: Features, test_part: Features) -> float:
    """Accuracy of the nearest neighbour among five training samples of each class, mean over ten draws of them."""
    draws = (few_of_each(train_part.labels, 10, 5, seed) for seed in range(10))
    return mean(knn_classify(train_part.rows(rows), test_part, k=1).accuracy for rows in draws)


def class_variance(part: Features) -> float:
    """Share of the variance of unit vectors that lies between classes: 0 if classes coincide, 1 if each is a point."""
    unit = F.normalize(part.vectors.double() - part.vectors.double().mean(0), dim=1)
    unit = unit - unit.mean(0)
    means = torch.stack([unit[part.labels == label].mean(0) for label in part.labels.unique()])
    between = means[torch.unique(part.labels, return_inverse=True)[1]].square().sum()
    return float(between / unit.square().sum())


def sense(relations: ClassRelations, data: ImageData) -> float:
    """How well gates order pairs of classes.

    CIFAR-10: mean score of two animals or two vehicles minus that of an animal and a vehicle. Digits: rank correlation
    with the similarity of the mean images of the classes, in which no objective has a part.
    """
    if not set(VEHICLES) <= set(relations.class_names):
        labels, images = data.known.train_labels, data.inputs.train
        means = torch.stack([images[labels == c].float().mean(0).flatten() for c in range(data.num_classes)])
        means = F.normalize(means - means.mean(0), dim=1)
        return relations.agreement(means @ means.T)
    scores: dict[bool, list[float]] = {True: [], False: []}
    for first, second, score in relations.ranking():
        scores[(first in VEHICLES) == (second in VEHICLES)].append(score)
    return mean(scores[True]) - mean(scores[False])


def less_than_half(arm: str) -> Callable[[Results], list[float]]:
    """Class variance of Hydra minus twice that of ``arm``, one value a seed."""
    name = "class variance"
    return lambda results: [a[name] - 2 * b[name] for a, b in zip(results[GATED], results[arm], strict=True)]


def make_study(scale: str, smoke: bool) -> Study:
    setting = SETTINGS[scale]
    order = "animals with animals, vehicles with vehicles" if scale == "cifar" else "like their mean images"
    return Study(
        title="Hydra: rethinking positive pairs (Wu et al. 2024, arXiv 2410.18200)",
        arms=[Arm(name, [{"temperature": 0.1}]) for name in OBJECTIVES],
        train=train,
        claims=[
            Claim(
                "arbitrary pairs with gates match SupCon: kNN at most 2 points below",
                better(GATED, SUPCON, "knn"),
                -0.02,
            ),
            Claim("the same by linear probe", better(GATED, SUPCON, "probe"), -0.02),
            Claim(
                "without gates features are worse: kNN of 5 labels a class",
                better(GATED, OPEN, "knn, 5 labels"),
            ),
            Claim(
                "without gates classes coincide: less than half the variance of projections between classes",
                less_than_half(OPEN),
            ),
            Claim(
                "the same where no pair is of one class, which by chance one in ten is",
                less_than_half(OTHERS),
            ),
            Claim("effective rank of projections above SupCon's", better(GATED, SUPCON, "projection rank")),
            Claim("the same with the instance term", better(INSTANCE, SUPCON, "projection rank")),
            Claim(f"gates order classes sensibly: {order}", value(GATED, "relations")),
        ],
        seeds=3 if scale == "cifar" else 5,
        shown=("knn", "probe", "knn, 5 labels", "class variance", "projection rank"),
        setting=f"{setting.steps} steps of batch {setting.data['batch_size']}, a small convolutional network; all arms "
        "at temperature 0.1 and learning rate 0.002, nothing tuned",
        notes="The paper trains a ResNet-18 for 50 epochs (CIFAR-10) and larger networks on ImageNet.",
    )


if __name__ == "__main__":
    main(make_study)
