"""Results of rankings: numbers that stand beside the conventions they depend on, in files and in tables."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from contrastive.arguments import checked
from contrastive.errors import InvalidValue
from recsys.files import write_atomically
from recsys.metrics import Comparison


@dataclass(frozen=True)
class RankingResult:
    """Numbers of one model with what they depend on.

    Attributes:
        model: its name.
        data: the data set's name.
        split: ``"valid"`` or ``"test"``.
        history: ``"keep"`` or ``"mask"``.
        ties: ``"pessimistic"`` or ``"optimistic"``.
        cases: number of cases.
        metrics: values by name, ``HR@10`` for example.
        settings: whatever else the numbers depend on: seed, epoch, sha256 of the data, ...
        tied: share of the cases whose target has the time of the item before, see
            :meth:`recsys.Split.tied`; None where times are not known.
        order: what the order of histories is, and what decides where times are equal.
    """

    model: str
    data: str
    split: str
    history: str
    ties: str
    cases: int
    metrics: dict[str, float]
    settings: dict[str, Any] = field(default_factory=dict)
    tied: float | None = None
    order: str | None = None

    @property
    def row(self) -> dict[str, Any]:
        """Row of :func:`format_table`."""
        fixed = {name: getattr(self, name) for name in ("model", "data", "split", "history", "ties", "cases")}
        tied = "unknown" if self.tied is None else f"{self.tied:.1%}"
        return {**fixed, "tied in time": tied, **self.metrics}


def write_results(
    path: str | os.PathLike[str], results: Sequence[RankingResult], comparisons: Sequence[Comparison] = ()
) -> None:
    """Write results, and comparisons of models, as JSON; a reader never sees half a file.

    Raises:
        ValueError: a number is NaN or infinite, which JSON cannot hold.
    """
    document = {
        "results": [asdict(result) for result in results],
        "comparisons": [asdict(comparison) for comparison in comparisons],
    }
    path = Path(path)
    try:
        text = json.dumps(document, indent=2, allow_nan=False)
    except ValueError as error:
        raise InvalidValue(
            f"write_results({str(path)!r}): results hold finite numbers only ({error})."
        ) from error
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (text + "\n").encode())


def read_results(path: str | os.PathLike[str]) -> list[RankingResult]:
    """Read the results that :func:`write_results` wrote.

    Raises:
        ValueError: the file holds something else.
    """
    names = {f.name for f in fields(RankingResult)}
    since = {"tied", "order"}  # files of earlier versions lack them
    try:
        rows = json.loads(Path(path).read_text(encoding="utf-8"))["results"]
        if any(set(row) | since != names for row in rows):
            raise InvalidValue(f"a result needs {', '.join(sorted(names))}")
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidValue(
            f"read_results: {path} holds no results of a ranking ({error}); give a file that write_results wrote."
        ) from error
    return [RankingResult(**row) for row in rows]


@checked
def format_results(results: Sequence[RankingResult], markdown: bool = False) -> str:
    """Results as a table, with the conventions beside the numbers."""
    return format_table([result.row for result in results], markdown)


def format_table(rows: Sequence[Mapping[str, Any]], markdown: bool = False) -> str:
    """Rows with the same keys as a table of text or markdown: fractions with four decimals, words to the left."""
    if not rows:
        return ""

    def cell(value: Any) -> str:
        return (
            f"{value:.4f}"
            if isinstance(value, float)
            else f"{value:,}"
            if isinstance(value, int)
            else str(value)
        )

    table = [list(rows[0]), *([cell(row[name]) for name in rows[0]] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    left = [isinstance(value, str) for value in rows[0].values()]
    lines = [
        [
            text.ljust(width) if to_left else text.rjust(width)
            for text, width, to_left in zip(line, widths, left, strict=True)
        ]
        for line in table
    ]
    if not markdown:
        return "\n".join("  ".join(line).rstrip() for line in lines)
    rule = [
        "-" * width if to_left else "-" * (width - 1) + ":"
        for width, to_left in zip(widths, left, strict=True)
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:]))
