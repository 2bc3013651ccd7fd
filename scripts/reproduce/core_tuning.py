"""Core-tuning against cross entropy: fine-tuning one pretrained encoder with few labels and with all.

    python scripts/reproduce/core_tuning.py --scale digits
    python scripts/reproduce/core_tuning.py --scale cifar --data FOLDER

The paper (Zhang et al., NeurIPS 2021, arXiv 2102.06605) claims 2.7 points over cross entropy on average over nine data
sets. Here InfoNCE pretrains one encoder for each seed, which is kept; then every arm fine-tunes it for the same number
of steps on the same labels and views. A third of the digits is trained on, all with noise: clean ones leave nothing to
improve.
"""

import shutil
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from study import Arm, Claim, Run, Study, better, main
from torch import Tensor

from contrastive import (
    ConvEncoder,
    CoreTuning,
    CrossEntropy,
    FineTune,
    ImageData,
    InfoNCE,
    Objective,
    Pretrain,
    ProjectionHead,
    SimCLRViews,
    TensorData,
    load_encoder,
    save_encoder,
)
from contrastive.data.sources import stratified_split
from contrastive.training import OptimizerConfig
from contrastive.training.finetune import judge_classifier


@dataclass(frozen=True)
class Setting:
    """Data, network and budget of a scale; pairs are for few labels and for all."""

    encoder: dict[str, Any]
    views: dict[str, Any]
    strong: dict[str, Any]  # what pretraining changes in the views
    temperature: float
    pretraining: int  # optimiser steps
    few: int  # labels per class
    batch: tuple[int, int]
    steps: tuple[int, int]


SETTINGS = {
    "digits": Setting(
        encoder={"in_channels": 1, "widths": (16, 32, 64), "blocks": (0, 1, 0)},
        views={
            "size": 16,
            "crop_scale": (0.7, 1.0),
            "rotation": 15.0,
            "flip": 0.0,
            "grey": 0.0,
            "jitter": (0.2, 0.2, 0.0, 0.0),
        },
        strong={"crop_scale": (0.4, 1.0), "rotation": 20.0, "jitter": (0.4, 0.4, 0.0, 0.0)},
        temperature=0.5,
        pretraining=200,
        few=5,
        batch=(50, 100),
        steps=(200, 400),
    ),
    "cifar": Setting(
        encoder={"widths": (32, 64, 128), "blocks": (0, 1, 0)},
        views={"size": 32, "crop_scale": (0.5, 1.0), "grey": 0.0, "jitter": (0.2, 0.2, 0.2, 0.05)},
        strong={"crop_scale": (0.25, 1.0), "grey": 0.2, "jitter": (0.4, 0.4, 0.4, 0.1)},
        temperature=0.2,
        pretraining=800,
        few=10,
        batch=(50, 128),
        steps=(300, 2000),
    ),
}
NOISE = 0.15  # standard deviation, where black and white are half a unit apart
TRAINED_ON = 1 / 3  # of the digits; the others are the test set
METHODS = ("cross entropy", "Core-tuning", "Core-tuning, released")
LEVELS = ("few labels", "all labels")


def train(run: Run) -> dict[str, float]:
    setting, few = SETTINGS[run.scale], run.arm.endswith(LEVELS[0])
    place = 0 if few else 1
    data = images(run, batch_size=setting.batch[place], labels_per_class=setting.few if few else None)
    module = FineTune(
        pretrained(run),
        objective(run),
        views=SimCLRViews(**setting.views, views=1),
        optimizer=OptimizerConfig(learning_rate=run.settings["learning_rate"]),
        seed=run.seed,
    )
    run.fit(module, data, steps=2 if run.smoke else setting.steps[place])
    loader = data.val_dataloader() if run.tuning else data.evaluation_loaders()[1]
    accuracy = judge_classifier(module, loader).accuracy
    return {"accuracy": accuracy, "score": accuracy}


def objective(run: Run) -> Objective:
    method = run.arm.rpartition(", ")[0]
    if method == METHODS[0]:
        return CrossEntropy()
    variant = "released" if method == METHODS[2] else "corrected"
    return CoreTuning(contrast_weight=run.settings["contrast_weight"], variant=variant)


def pretrained(run: Run) -> ConvEncoder:
    """The encoder of this seed: pretrained by whichever run is first. Settings are chosen on that of seed 0."""
    setting, seed = SETTINGS[run.scale], 0 if run.tuning else run.seed
    folder = run.shared / f"encoder-{seed}"
    if not (folder / "encoder.json").is_file():
        module = Pretrain(
            ConvEncoder(**setting.encoder),
            InfoNCE(setting.temperature),
            ProjectionHead(256),
            SimCLRViews(**setting.views | setting.strong),
            OptimizerConfig(learning_rate=2e-3),
            seed=seed,
        )
        unfinished = replace(run, folder=run.shared / f"unfinished-{seed}")
        everything = images(replace(unfinished, tuning=False, seed=seed), batch_size=256)
        unfinished.fit(module, everything, steps=2 if run.smoke else setting.pretraining)
        save_encoder(module.encoder, folder)
        shutil.rmtree(unfinished.folder, ignore_errors=True)
    encoder = load_encoder(folder)
    assert isinstance(encoder, ConvEncoder)
    return encoder


def images(run: Run, **options: Any) -> TensorData:
    train, train_labels, test, test_labels = pixels(run.scale, run.data)
    fraction = 0.2 if run.tuning else 0.0
    return TensorData(
        train, train_labels, test, test_labels, seed=run.seed, validation_fraction=fraction, **options
    )


@cache
def pixels(scale: str, folder: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images and labels to train on and to judge on, decoded once."""
    if scale == "cifar":
        source = ImageData("cifar10", root=str(folder))
    else:
        source = ImageData("digits", size=16, channels=1, num_workers=0)
    train, test, known = source.inputs.train, source.inputs.test, source.known
    assert isinstance(train, Tensor)
    assert isinstance(test, Tensor)
    assert known.train_labels is not None
    assert known.test_labels is not None
    if scale == "cifar":
        return train, known.train_labels, test, known.test_labels
    every, labels = noisy(torch.cat([train, test])), torch.cat([known.train_labels, known.test_labels])
    judged, learnt = stratified_split(len(labels), labels, TRAINED_ON, seed=0)
    return every[learnt], labels[learnt], every[judged], labels[judged]


def noisy(digits: Tensor) -> Tensor:
    """Digits ``(N, 1, H, W)`` uint8 at half their contrast, with noise."""
    grey = 0.25 + 0.5 * digits / 255
    grey += NOISE * torch.randn(grey.shape, generator=torch.Generator().manual_seed(0))
    return (255 * grey.clamp(0, 1)).round().to(torch.uint8)


def make_study(scale: str, smoke: bool) -> Study:
    setting = SETTINGS[scale]
    plain = [{"learning_rate": rate} for rate in (1e-3, 3e-3)]
    weighted = [{"learning_rate": 1e-3, "contrast_weight": weight} for weight in (1.0, 3.0)]
    released = [{"learning_rate": 1e-3, "contrast_weight": weight} for weight in (1.0, 10.0)]
    if scale == "cifar":
        weighted = released = [{**one, "contrast_weight": 1.0} for one in plain]
    claims = []
    for level in LEVELS:
        baseline, ours, parity = (f"{method}, {level}" for method in METHODS)
        claims += [
            Claim(
                f"{level}: Core-tuning at least 2 points above cross entropy",
                better(ours, baseline, "accuracy"),
                margin=0.02,
            ),
            Claim(f"{level}: Core-tuning above cross entropy", better(ours, baseline, "accuracy")),
            Claim(
                f"{level}: corrected at most half a point below released",
                better(ours, parity, "accuracy"),
                margin=-0.005,
            ),
        ]
    data = (
        "a third of scikit-learn's digits, at half contrast with noise" if scale == "digits" else "CIFAR-10"
    )
    return Study(
        title="Core-tuning (Zhang et al., NeurIPS 2021)",
        arms=[
            Arm(f"{method}, {level}", candidates)
            for level in LEVELS
            for method, candidates in zip(METHODS, (plain, weighted, released), strict=True)
        ],
        train=train,
        claims=claims,
        seeds=3 if scale == "cifar" else 5,
        shown=["accuracy"],
        setting=(
            f"{data}; ConvEncoder{setting.encoder['widths']} pretrained by {setting.pretraining} steps of InfoNCE with "
            f"256 images; fine-tuned by AdamW: {setting.few} labels a class for {setting.steps[0]} steps of "
            f"{setting.batch[0]}, all labels for {setting.steps[1]} steps of {setting.batch[1]}; test accuracy"
        ),
        notes=(
            "The paper fine-tunes a ResNet-50 of ImageNet for a hundred epochs with SGD. Released is the loss of the "
            "official code with exact identities of soft labels."
            + (
                " Two settings were tried; shown is the second, whatever it says. (1) 25 labels a class for 200 steps "
                "of 125, all labels for 350 steps of 128, which are 0.9 epochs, and Core-tuning with the lower of both "
                "rates alone: +1.3 ± 0.1 points with few labels, -3.8 ± 0.8 with all. Hence (2): fewer labels, a "
                "longer run with all, and the same two learning rates for everyone. Seeds 0 and 1 and the choice of "
                "settings ran on an H200, in 26 runs of 10 to 110 seconds; seed 2, and the released form with all "
                "labels, on one core, from encoders that were pretrained there again."
                if scale == "cifar"
                else " Noise, steps and the part of the digits that is trained on were set after trials of one or two "
                "seeds, in which the difference to cross entropy with all labels was -1.7 points (all digits, 150 "
                "steps, test set), +1.4 (400 steps, validation part) and -3.2 (300 steps, noise 0.25, validation "
                "part), with few labels between -1.7 and +4."
            )
        ),
    )


if __name__ == "__main__":
    main(make_study)
