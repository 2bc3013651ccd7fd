"""The frame of a reproduction: arms, seeds and claims, killed and resumed at any point.

A script declares what it compares and hands it to :func:`main`:

    def make_study(scale: str, smoke: bool) -> Study:
        return Study(
            title="GroCo (Shvetsova et al., ICCV 2023)",
            arms=[Arm("InfoNCE", [{"temperature": t} for t in (0.1, 0.2, 0.5)]), Arm("GroCo", [...])],
            train=train,
            claims=[Claim("kNN above InfoNCE", better("GroCo", "InfoNCE", "knn"))],
            seeds=5,
        )

    def train(run: Run) -> dict[str, float]:
        ...  # build module and data from run.settings and run.seed
        run.fit(module, data, steps=400)
        return evaluate(module.encoder, data, run)

    if __name__ == "__main__":
        main(make_study)

Every arm has candidate settings, and as many as every other. The best one is chosen on the validation part
(``run.tuning`` is then True and ``score`` is what counts), then trained with every seed and judged on the test set.
Each finished run is a JSON file, each unfinished one has a checkpoint: the same command goes on where it was stopped.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import io
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from contrastive.evaluation import extract_features, knn_classify, linear_probe
from contrastive.evaluation.features import Features

Metrics = Mapping[str, float]
Results = Mapping[str, Sequence[Metrics]]
"""Arm -> the metrics of each seed, in the same order for every arm."""

TUNING_SEED = 1000  # never one of those that are reported


@dataclass(frozen=True)
class Run:
    """What one training run is given.

    Attributes:
        arm: name of the arm.
        settings: the candidate's settings.
        seed: of everything random in this run.
        tuning: True while settings are chosen: judge on the validation part, return ``score``.
        scale: ``digits``, or the larger one.
        smoke: True to do as little as shows that everything runs.
        data: folder with the data of the larger scale.
        folder: where this run keeps its checkpoint; gone when it has finished.
        shared: folder that all runs of the study share, for what is made once.
        accelerator: that it trains on, as ``cpu`` or ``gpu``.
    """

    arm: str
    settings: Mapping[str, Any]
    seed: int
    tuning: bool
    scale: str
    smoke: bool
    data: Path
    folder: Path
    shared: Path
    accelerator: str = "cpu"

    def fit(
        self, module: LightningModule, data: LightningDataModule, *, steps: int, **options: Any
    ) -> Trainer:
        """Train for so many optimiser steps, from the run's checkpoint if there is one.

        Args:
            module: what is trained.
            data: what it is trained on.
            steps: optimiser steps of the whole run.
            **options: further arguments of the trainer.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        keep = ModelCheckpoint(
            self.folder,
            filename="unused",
            save_top_k=0,
            save_last=True,
            every_n_train_steps=max(steps // 10, 50),
        )
        last = self.folder / "last.ckpt"
        trainer = Trainer(
            **{
                "max_steps": steps,
                "max_epochs": -1,
                "accelerator": self.accelerator,
                "devices": 1,
                "logger": False,
                "default_root_dir": self.folder,
                "enable_progress_bar": False,
                "enable_model_summary": False,
                "limit_val_batches": 0,
                "callbacks": [keep],
                **options,
            }
        )
        resume = str(last) if last.is_file() else None
        with contextlib.redirect_stdout(io.StringIO()):  # the run plan, the same for every run
            trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
        return trainer


@dataclass(frozen=True)
class Arm:
    """One of the things compared, with the settings it may choose from."""

    name: str
    candidates: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Claim:
    """A statement and the numbers that decide it.

    Attributes:
        text: the claim in words.
        values: from the results to one number a seed.
        margin: what the mean of the values must exceed: 0 for differences that must be positive, -0.02 for "at most
            two points worse".
    """

    text: str
    values: Callable[[Results], Sequence[float]]
    margin: float = 0.0

    def judge(self, results: Results) -> dict[str, Any]:
        """One-sided t-test of the values against the margin, at 5 %: reproduced, not reproduced, or inconclusive."""
        values = [float(value) for value in self.values(results)]
        mean, spread = statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0
        if len(values) < 2:
            p = None
        elif spread < 1e-9:  # rounding: the test statistic would be noise
            p = 0.0 if mean > self.margin else 1.0
        else:
            from scipy.stats import ttest_1samp

            p = float(ttest_1samp(values, self.margin, alternative="greater").pvalue)
        verdict = "inconclusive"
        if p is not None and p < 0.05:
            verdict = "reproduced"
        elif p is not None and p > 0.95:
            verdict = "not reproduced"
        numbers = {"values": values, "mean": mean, "std": spread, "margin": self.margin, "p": p}
        return {"claim": self.text, "verdict": verdict, **numbers}


@dataclass(frozen=True)
class Study:
    """A paper's claims at one scale.

    Attributes:
        title: method, authors, venue.
        arms: what is compared, each with equally many candidates.
        train: trains one run and returns its metrics; with ``run.tuning`` at least ``score``.
        claims: what is to be decided.
        seeds: how many seeds every arm is trained with.
        shown: the metrics of table and figure; the first run's by default.
        setting: data, network and budget in a sentence.
        notes: what was tried and what differs from the paper, for the reader of the results.
    """

    title: str
    arms: Sequence[Arm]
    train: Callable[[Run], Metrics]
    claims: Sequence[Claim]
    seeds: int
    shown: Sequence[str] = ()
    setting: str = ""
    notes: str = ""


def better(arm: str, than: str, metric: str) -> Callable[[Results], list[float]]:
    """Paired differences of a metric: ``arm`` minus ``than``, one a seed."""
    return lambda results: [a[metric] - b[metric] for a, b in zip(results[arm], results[than], strict=True)]


def value(arm: str, metric: str) -> Callable[[Results], list[float]]:
    """A metric of one arm, one value a seed."""
    return lambda results: [run[metric] for run in results[arm]]


def features(encoder: nn.Module, data: Any, run: Run) -> tuple[Features, Features]:
    """Features to learn from and to judge on: training and test set, or while tuning training and validation part."""
    train_loader, test_loader = data.evaluation_loaders()
    train = extract_features(encoder, train_loader)
    if not run.tuning:
        return train, extract_features(encoder, test_loader)
    trained, held_out = data.parts  # of a long tail all, as in the final evaluation
    if not len(held_out):
        raise ValueError(
            f"{type(data).__name__}(validation_fraction=0): tuning needs a validation part, as 0.1"
        )
    return train.rows(trained), train.rows(held_out)


def evaluate(encoder: nn.Module, data: Any, run: Run, *, k: int = 20) -> dict[str, float]:
    """Accuracy of weighted nearest neighbours (``knn``, also the ``score`` to tune by) and linear probe (``probe``)."""
    train, test = features(encoder, data, run)
    knn = knn_classify(train, test, k=min(k, len(train))).accuracy
    return {"knn": knn, "score": knn} | ({} if run.tuning else {"probe": linear_probe(train, test).accuracy})


def main(make_study: Callable[[str, bool], Study], larger: str = "cifar", files: str = "cifar10") -> None:
    """Run the command line of a reproduction script.

    Args:
        make_study: ``make_study(scale, smoke)`` declares the study.
        larger: name of the scale beside ``digits``, whose data come from a folder.
        files: the part of that folder that it reads.
    """
    script = Path(sys.argv[0])
    parser = argparse.ArgumentParser(
        description=sys.modules["__main__"].__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", choices=["digits", larger], default="digits")
    parser.add_argument(
        "--data", type=Path, default=Path("data"), help=f"folder that holds {files}/*.parquet"
    )
    parser.add_argument("--work", type=Path, default=Path("runs/reproduce"), help="folder of unfinished work")
    parser.add_argument(
        "--out", type=Path, default=script.parent / "results", help="folder of JSON and figure"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--accelerator", default="cpu", help="that runs train on, as gpu")
    parser.add_argument(
        "--smoke", action="store_true", help="only show that everything runs; keeps no results"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    _be_quiet()
    study = make_study(options.scale, options.smoke)
    if len({len(arm.candidates) for arm in study.arms}) > 1:
        counts = ", ".join(f"{arm.name} {len(arm.candidates)}" for arm in study.arms)
        raise SystemExit(f"the arms do not have equally many candidates ({counts}): tuning would not be fair")
    if options.smoke:
        study = dataclasses.replace(
            study, seeds=1, arms=[Arm(arm.name, arm.candidates[:1]) for arm in study.arms]
        )
        with tempfile.TemporaryDirectory() as folder:
            _carry_out(study, options, Path(folder))
            return
    document = _carry_out(study, options, options.work / f"{script.stem}-{options.scale}")
    command = f"python {script} --scale {options.scale}" + (" --data DIR" if options.scale == larger else "")
    document = {"command": command, **document}
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{script.stem}-{options.scale}.json"
    _write(path, json.dumps(document, indent=1))
    draw(document, path.with_suffix(".png"))
    print(f"wrote {path} and {path.with_suffix('.png').name}")


def _carry_out(study: Study, options: argparse.Namespace, work: Path) -> dict[str, Any]:
    arms, results, seconds = [], {}, 0.0
    for arm in study.arms:
        tried = []
        if len(arm.candidates) > 1:
            tried = [
                _run(study, options, work, arm.name, settings, TUNING_SEED, tuning=True)
                for settings in arm.candidates
            ]
        chosen = (
            max(tried, key=lambda run: run["metrics"]["score"])["settings"] if tried else arm.candidates[0]
        )
        runs = [
            _run(study, options, work, arm.name, chosen, seed, tuning=False) for seed in range(study.seeds)
        ]
        results[arm.name] = [run["metrics"] for run in runs]
        seconds += sum(run["seconds"] for run in tried + runs)
        arms.append({"name": arm.name, "settings": chosen, "tuning": tried, "runs": runs})
    shown = study.shown or [name for name in results[study.arms[0].name][0] if name != "score"]
    print(f"\n{study.title}, {options.scale}, {study.seeds} seeds")
    print(f"{'':28}" + "".join(f"{name:>18}" for name in shown))
    for name, metrics in results.items():
        print(
            f"{name:28}"
            + "".join(f"{mean_and_std([m[key] for m in metrics if key in m]):>18}" for key in shown)
        )
    claims = [claim.judge(results) for claim in study.claims]
    for claim in claims:
        p = "" if claim["p"] is None else f", p = {claim['p']:.2g}"
        print(f"{claim['verdict'].upper()}: {claim['claim']} ({claim['mean']:+.4f} ± {claim['std']:.4f}{p})")
    return {
        "title": study.title,
        "scale": options.scale,
        "setting": study.setting,
        "notes": study.notes,
        "shown": list(shown),
        "seconds": seconds,
        "machine": {
            "torch": torch.__version__,
            "processor": platform.machine() if options.accelerator == "cpu" else torch.cuda.get_device_name(),
            "threads": options.threads,
        },
        "arms": arms,
        "claims": claims,
    }


def _run(
    study: Study,
    options: argparse.Namespace,
    work: Path,
    arm: str,
    settings: Mapping[str, Any],
    seed: int,
    *,
    tuning: bool,
) -> dict[str, Any]:
    """The record of one run: read if it has finished before, else trained."""
    key = hashlib.sha256(json.dumps([arm, settings, seed, tuning], sort_keys=True).encode()).hexdigest()[:12]
    record = work / f"{key}.json"
    if record.is_file():
        found: dict[str, Any] = json.loads(record.read_text())
        return found
    folder = work / key
    shared = work / "shared"
    shared.mkdir(parents=True, exist_ok=True)
    run = Run(
        arm,
        settings,
        seed,
        tuning,
        options.scale,
        options.smoke,
        options.data,
        folder,
        shared,
        options.accelerator,
    )
    seed_everything(seed, verbose=False)
    start = time.perf_counter()
    metrics = {name: float(number) for name, number in study.train(run).items()}
    seconds = time.perf_counter() - start
    what = "tuning" if tuning else f"seed {seed}"
    shown = ", ".join(f"{name} {number:.4f}" for name, number in metrics.items())
    print(f"{arm} {json.dumps(settings)} {what}: {shown} ({seconds:.0f} s)", flush=True)
    result = {"arm": arm, "settings": dict(settings), "seed": seed, "metrics": metrics, "seconds": seconds}
    _write(record, json.dumps(result))
    shutil.rmtree(folder, ignore_errors=True)
    return result


def mean_and_std(values: Sequence[float]) -> str:
    """``0.812 ± 0.004``; nothing if there are no values."""
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{spread}"


def draw(document: Mapping[str, Any], path: Path) -> None:
    """A panel for each shown metric: every seed of every arm as a dot, the mean as a line."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from contrastive.evaluation.plots import COLOURS

    names = [arm["name"] for arm in document["arms"]]
    shown = document["shown"]
    figure = Figure(figsize=(1.6 + 2.6 * len(shown), 0.9 + 0.42 * len(names)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for axes, metric in zip(panels, shown, strict=True):
        for place, arm in enumerate(document["arms"]):
            values = [run["metrics"][metric] for run in arm["runs"] if metric in run["metrics"]]
            if not values:
                continue
            colour = COLOURS[place % len(COLOURS)]
            axes.scatter(values, [place] * len(values), color=colour, s=22, alpha=0.8, linewidths=0)
            axes.vlines(statistics.fmean(values), place - 0.3, place + 0.3, color=colour, lw=2)
        axes.set_title(metric, fontsize=9)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", lw=0.4, alpha=0.5)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, dpi=130, format="png")
    temporary.replace(path)


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(path)


def _be_quiet() -> None:
    """Lightning's hints about loggers and workers are no news in the hundredth run."""
    import logging

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
