"""What a training run left in its folder, read as far as it can be read."""

import csv
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contrastive.errors import FileMissing, InvalidValue

Path_ = str | os.PathLike[str]
Curve = tuple[NDArray[Any], NDArray[Any]]


@dataclass
class Run:
    """The files of a run folder: empty if missing; empty and named in ``problems`` if damaged."""

    folder: Path
    config_text: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Curve] = field(default_factory=dict)
    results: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def setting(self, path: str) -> Any:
        """A value of the configuration, such as ``model.objective``; None if there is none."""
        here: Any = self.config
        for name in path.split("."):
            arguments = here.get("init_args", here) if isinstance(here, Mapping) else None
            here = arguments.get(name) if isinstance(arguments, Mapping) else None
        return here

    def part(self, path: str) -> str:
        """Class name of a part of the configuration, without its package; empty if there is none."""
        return _class_name(self.setting(path))

    @property
    def recommends(self) -> bool:
        """Whether it trained a recommender."""
        return "recommender" in self.results or self.part("data") == "RecommenderData"

    @property
    def title(self) -> str:
        """What was trained on what, as far as the configuration tells."""
        if self.recommends:
            heads = self.setting("model.heads")
            names = (
                [_class_name(head) for head in heads if _class_name(head)] if isinstance(heads, list) else []
            )
            parts = " with ".join(filter(None, (self.part("model.encoder"), " and ".join(names))))
            return f"{parts or 'Recommender'} on {self.source}" if self.source else parts or "Recommender"
        objective, encoder, source = self.part("model.objective"), self.part("model.encoder"), self.source
        whole = f"{objective or 'Training run'}{f' with {encoder}' if encoder else ''}"
        return f"{whole} on {source}" if source else whole

    @property
    def source(self) -> str:
        """Name of the data."""
        source = self.setting("data.source")
        return source if isinstance(source, str) else self.part("data.source") or self.part("data")


def _class_name(described: Any) -> str:
    """Class name of what a configuration describes, without its package; empty if it describes nothing."""
    return str(described.get("class_path", "")).rpartition(".")[2] if isinstance(described, Mapping) else ""


def read_run(run_dir: Path_) -> Run:
    """Read the files of a run folder.

    Raises:
        FileNotFoundError: it is no folder, or holds nothing that a run leaves behind.
    """
    import yaml

    run = Run(Path(run_dir))
    known = ("config.yaml", "run.json", "metrics.csv", "results", "encoder")
    if not any((run.folder / name).exists() for name in known):
        given = f"has none of {', '.join(known)}" if run.folder.is_dir() else "is not a folder"
        raise FileMissing(
            f"write_report(run_dir={str(run_dir)!r}): this {given}; the folder of one training run is needed, as "
            "runs/quickstart/0; give the folder that `contrastive fit` names"
        )

    def read(path: Path, parse: Callable[[str], Any]) -> Any:
        try:
            return parse(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, yaml.YAMLError) as error:
            run.problems.append(f"{path.relative_to(run.folder)} could not be read: {error}")
            return None

    def mapping(parse: Callable[[str], Any]) -> Callable[[str], Any]:
        def parsed(text: str) -> Mapping[str, Any]:
            found = parse(text)
            if not isinstance(found, Mapping):
                raise InvalidValue(f"names and values were expected, not a {type(found).__name__}")
            return found

        return parsed

    run.config_text = read(run.folder / "config.yaml", str) or ""
    run.config = read(run.folder / "config.yaml", mapping(yaml.safe_load)) or {}
    run.record = read(run.folder / "run.json", mapping(json.loads)) or {}
    run.metrics = read(run.folder / "metrics.csv", parse_metrics) or {}
    files = sorted((run.folder / "results").glob("*.json"))
    documents = {path.stem: read(path, mapping(json.loads)) for path in files}
    run.results = {name: document for name, document in documents.items() if document}
    return run


def parse_metrics(text: str) -> dict[str, Curve]:
    """Read ``metrics.csv``: metric -> (time in epochs (N,), values (N,)) of the rows that have a value.

    Time is in steps where there is no column ``epoch``. A row that was cut off before its step is left out.

    Raises:
        ValueError: there is no column ``step``, a row is too long, or a value is not a number.
    """
    rows = list(csv.DictReader(text.splitlines()))
    if rows and "step" not in rows[0]:
        raise InvalidValue(f"a column named step was expected among {', '.join(rows[0])}")
    if any(None in row for row in rows):
        raise InvalidValue("a row has more cells than there are columns")
    rows = [row for row in rows if row["step"]]
    if not rows:
        return {}
    steps = np.array([float(row["step"]) + 1 for row in rows])
    epochs = [float(row["epoch"]) + 1 for row in rows if row.get("epoch")]
    times = steps * (max(epochs) / steps.max()) if epochs else steps
    curves = {}
    for name in [name for name in rows[0] if name not in ("epoch", "step")]:
        filled = [number for number, row in enumerate(rows) if row[name]]
        if filled:
            curves[name] = times[filled], np.array([float(rows[number][name]) for number in filled])
    return curves
