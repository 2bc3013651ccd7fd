"""One page about one training run: ``report.html``, readable without this library and without network.

:func:`write_report` reads what the run left in its folder (``config.yaml``, ``run.json``, ``metrics.csv``,
``results/*.json``) and takes a bounded sample of the data through the encoder
(:mod:`contrastive.evaluation.inspection`). A part that cannot be made says in one sentence what it needs.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from contrastive.errors import InvalidValue
from contrastive.evaluation import inspection, plots, ranking
from contrastive.evaluation.page import Html, element, facts, folded, join, note, page, table
from contrastive.evaluation.record import Curve, Path_, Run, read_run

METHODS = {"knn": "kNN", "probe": "Linear probe"}
MOST_POINTS = 200  # of a curve: more cannot be told apart

# Metrics that share a panel: its title -> their names, and what each is called there.
PANELS = {
    "loss": {"loss": "training", "val_loss": "held out", "next_item_loss": "next item, training"},
    "learning rate": {"learning_rate": "learning rate"},
    "cosine similarity": {"positive_similarity": "positive pairs", "negative_similarity": "negative pairs"},
}
METERS = {
    "spread": "1 if all dimensions are used alike, 0 if the embeddings have collapsed",
    "effective_rank": "number of dimensions in use; 1 if the embeddings have collapsed",
    "loss_over_chance": "1 if positives cannot be told from negatives",
}
REPEATED = ("loss_epoch", "test_loss")  # means of what is drawn already, and single numbers


def write_report(
    run_dir: Path_,
    output: Path_ | None = None,
    *,
    max_images: int = 2000,
    seed: int = 0,
    trust: bool = False,
) -> Path:
    """Write the report of a run and return its path.

    Args:
        run_dir: folder of one run, as ``contrastive fit`` leaves it.
        output: file to write; ``report.html`` in the run folder by default. An existing one is replaced.
        max_images: how many test images to look at, at most; of training images five times as many. Of larger
            sets a random part is taken.
        seed: of that choice, of the views and of the map.
        trust: build classes of others too, if the run names them; they can run any code, so only for a run whose
            author you trust.

    Raises:
        FileNotFoundError: ``run_dir`` is not the folder of a run.
        ValueError: ``max_images`` is below 2.
    """
    if max_images < 2:
        raise InvalidValue(
            f"write_report(max_images={max_images}): 2 or more are accepted, since pairs of images are compared; "
            "leave it at 2000"
        )
    run = read_run(run_dir)
    text = compose(run, take_sample(run, max_images, seed, trust=trust), seed)
    path = run.folder / "report.html" if output is None else Path(output)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
    return path


def take_sample(run: Run, limit: int, seed: int, *, trust: bool = False) -> inspection.Sample | str:
    """Take data through the encoder of a run, or say why that cannot be done."""
    from contrastive.building import build
    from contrastive.evaluation.run import build_data, load_run_encoder
    from contrastive.views import SimCLRViews

    if run.recommends:
        return "No pictures: interactions have none."
    if "data" not in run.config:
        return "No pictures: they need config.yaml in the run folder, which names the data."
    if not (run.folder / "encoder").is_dir():
        return (
            "No pictures: they need encoder/ in the run folder, which `contrastive fit` writes when it ends."
        )
    try:
        data = build_data(run.folder, trust=trust)
        data.setup("test")
        described = run.setting("model.views")
        file = str(run.folder / "config.yaml")
        views = SimCLRViews() if described is None else build(described, torch.nn.Module, file, trust=trust)
        split = getattr(data, "evaluation_split", "test")
        names = getattr(data, "file_names", lambda split: None)
        # What is held out for validation is part of the training set.
        files = names("train"), names("test" if split == "test" else "train")
        return inspection.take_sample(
            load_run_encoder(run.folder, trust=trust).to("cuda" if torch.cuda.is_available() else "cpu"),
            data.evaluation_loaders(),
            views if hasattr(data, "image_shape") or described else None,
            data.class_names,
            split=split,
            files=files,
            limit=limit,
            seed=seed,
        )
    except (
        Exception
    ) as error:  # the data may have moved, classes be gone: the rest of the page is still worth it
        return f"No pictures: the data or the encoder cannot be used now ({type(error).__name__}: {error})."


def compose(run: Run, sample: inspection.Sample | str, seed: int = 0) -> str:
    """Return the page of a run; in place of a sample stands the sentence that says why there is none."""
    sections: dict[str, Html]
    if run.recommends:
        found = run.results.get("recommender", {})
        sections = {"Result": ranking.headline(found), "Interactions": ranking.data(found)}
        sections |= {"Training": training(run)}
    elif isinstance(sample, str):
        sections = {"Result": headline(run), "Pictures": note(sample), "Training": training(run)}
    else:
        sections = {
            "Result": headline(run),
            "Map": inspection.maps(sample, seed),
            "Neighbours": inspection.neighbours(sample, seed),
            "Training": training(run),
            "Similarities": inspection.similarities(sample),
            "Geometry": inspection.geometry(sample),
            "Classes": inspection.classes(sample),
            "Views": inspection.sample_views(sample, seed),
        }
    sections |= {"All results": results(run), "Reproduce": reproduce(run)}
    lead = element("p", f"Report of the training run {run.folder.absolute().name} in {run.folder.parent}")
    return page(run.title, join(lead, *map(note, run.problems)), sections)


def headline(run: Run) -> Html:
    """The accuracies that count, beside those of raw pixels and of an untrained encoder."""
    found = run.results.get("label_efficiency", {}).get("metrics", {})
    if not found:
        return note(
            "No comparison: run contrastive.evaluation.evaluate_run(run_dir) on labelled data; `contrastive fit` "
            "does it when it ends."
        )
    *others, (best, accuracies) = found.items()
    cards, tables = [], []
    for method, counts in accuracies.items():
        name = METHODS.get(method, method)
        for count in dict.fromkeys([next(iter(counts)), list(counts)[-1]]):
            known = "all labels" if count == "all" else f"{count} label{'s' * (count != '1')} a class"
            beside = ", ".join(
                f"{other} {_percent(row[method][count])}\N{NO-BREAK SPACE}%" for other, row in others
            )
            value = element("span", f"{_percent(counts[count])}\N{NO-BREAK SPACE}%", class_="value")
            cards.append(element("li", f"{name}, {known}", value, element("span", beside, class_="small")))
        rows = [(encoder, *map(_with_spread, row[method].values())) for encoder, row in found.items()]
        caption = f"{name}: accuracy in %, by how many labels are known"
        tables.append(table(("labels a class", *counts), rows, caption, marked=best))
    return join(element("ul", *cards, class_="cards"), element("div", *tables, class_="panels wide"))


def _percent(cell: Mapping[str, float]) -> str:
    return f"{100 * cell['mean']:.1f}"


def _with_spread(cell: Mapping[str, float]) -> str:
    return f"{_percent(cell)} ± {100 * cell['std']:.1f}" if cell["std"] else _percent(cell)


def training(run: Run) -> Html:
    """Everything that was logged over time."""
    left = {name: _thin(*curve) for name, curve in run.metrics.items() if name not in REPEATED}
    left = {name: (x, y) for name, (x, y) in left.items() if len(x) > 1}
    if not left:
        return note(
            "No curves: the run folder has no metrics.csv, which the CSVLogger of `contrastive fit` writes."
        )
    constant = {name: y[0] for name, (_, y) in left.items() if (y == y[0]).all()}
    accuracies = {name: name.partition("/")[0] for name in left if name.endswith("/accuracy")}
    shared = {"loss": PANELS["loss"], "accuracy of online evaluation": accuracies} | PANELS
    alone = {name: {name: name} for name in (*METERS, *left) if name not in shared and name not in constant}
    panels = []
    for title, members in (shared | alone).items():
        lines = {label: left.pop(name) for name, label in members.items() if name in left}
        if lines:
            told = ", ".join(f"{label} from {y[0]:.3g} to {y[-1]:.3g}" for label, (_, y) in lines.items())
            drawing = plots.curves(lines, title.replace("_", " "))
            panels.append(inspection.figure(drawing, f"{title} over epochs: {told}.", METERS.get(title, "")))
    throughout = ", ".join(
        f"{name.replace('_', ' ')} {value:.4g}" for name, value in constant.items() if name in left
    )
    below = [element("p", f"The same throughout: {throughout}.", class_="small")] if throughout else []
    return join(element("div", *panels, class_="panels"), *below)


def _thin(x: plots.Array, y: plots.Array) -> Curve:
    """Leave out what is not finite, and average neighbours so that at most MOST_POINTS are left."""
    x, y = x[np.isfinite(y)], y[np.isfinite(y)]
    if len(x) <= MOST_POINTS:
        return x, y
    groups = np.array_split(np.arange(len(x)), MOST_POINTS)
    return np.array([x[group].mean() for group in groups]), np.array([y[group].mean() for group in groups])


def results(run: Run) -> Html:
    """Every result file: its numbers in a table, and the whole of it folded."""
    if not run.results:
        return note(
            "No results: `contrastive knn` and `contrastive probe` with --run write them to results/."
        )
    rows, files = [], []
    for name, document in run.results.items():
        metrics, protocol = document.get("metrics", {}), document.get("protocol", {})
        numbers = {key: value for key, value in metrics.items() if isinstance(value, float)}
        settings = {key: value for key, value in protocol.items() if key != "name"}
        cells = (
            _flat(numbers),
            _flat(settings),
            _flat({key: document.get(key) for key in ("split", "seed")}),
        )
        texts = [
            ", ".join(f"{key} {value}" for key, value in pairs) or "in the file below" for pairs in cells
        ]
        rows.append((name, *texts, f"{document.get('seconds', '–')} s"))
        files.append(folded(f"results/{name}.json", json.dumps(document, indent=2)))
    header = ("file", "numbers", "protocol", "judged on", "took")
    caption = "The evaluations in results/; accuracies are fractions of 1."
    return join(table(header, rows, caption, class_="prose"), *files)


def reproduce(run: Run) -> Html:
    """The command, what it ran with, and the whole configuration."""
    record = {name: value for name, value in run.record.items() if name != "command"}
    command = run.record.get("command")
    parts = [element("pre", element("code", str(command)), tabindex=0)] if command else []
    parts.append(facts(_flat(record)) if record else note("No command: the run folder has no run.json."))
    if run.config_text:
        parts.append(folded("Resolved configuration", run.config_text))
    else:
        parts.append(note("No configuration: the run folder has no config.yaml."))
    return join(*parts)


def _flat(record: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested names and values as a list of names and texts; what is empty is left out."""
    pairs = []
    for name, value in record.items():
        label = f"{prefix}{name}".replace("_", " ")
        if isinstance(value, Mapping):
            pairs += _flat(value, f"{label.removesuffix('versions').removesuffix('version')} ".lstrip())
        elif isinstance(value, list | tuple):
            pairs += [(label, " ".join(map(str, value)))] if value else []
        elif value is not None:
            pairs.append((label, f"{value:.4g}" if isinstance(value, float) else str(value)))
    return pairs
