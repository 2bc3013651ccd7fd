"""Ranked lists of someone else's model, from a file: joined by ids, judged under the same split and conventions."""

import csv
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from contrastive.errors import InvalidValue
from recsys.content import read_lines
from recsys.data import Cases, Format, SequenceData
from recsys.floors import FLOORS
from recsys.metrics import KS, MISSED, History, Ties, paired_bootstrap, rank_targets, ranking_metrics
from recsys.order import Order
from recsys.results import RankingResult, format_results, write_results

Array: TypeAlias = NDArray[Any]
Path_: TypeAlias = str | os.PathLike[str]


@dataclass(frozen=True, eq=False)
class RunFile:
    """Scored items of users, one entry a line.

    Attributes:
        path: the file.
        users: ``(N,)`` ids, as text.
        items: ``(N,)`` ids, as text.
        scores: ``(N,)`` float64, larger is better.
        lines: ``(N,)`` line numbers, from 1.
    """

    path: Path
    users: list[str]
    items: list[str]
    scores: Array
    lines: Array


@dataclass(frozen=True, eq=False)
class ListRanks:
    """Ranks of targets on lists, and what the lists leave out.

    Attributes:
        ranks: ``(C,)`` from 0; :data:`~recsys.metrics.MISSED` where the target is not on the list.
        without_list: cases whose user has no list at all.
        missed: cases whose target is not on the list, those without a list among them.
        shortest: length of the shortest list.
        other_users: users on the file who have no case.
    """

    ranks: Array
    without_list: int
    missed: int
    shortest: int
    other_users: int


def read_run(path: Path_) -> RunFile:
    """Read a TREC run (``user Q0 item rank score tag``, blanks between) or a table (``user,item,score``).

    A name that ends in ``.csv`` (or ``.csv.gz``) is a table, whose heading may be missing; any other name is a run. As
    in trec_eval the scores make the order; the rank and the two fixed words are not looked at.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line has another form, a score is not a finite number, a user has an item twice, or there is no
            line; names the line.
    """
    path = Path(path)
    call = f"read_run({str(path)!r})"
    table = path.name.endswith((".csv", ".csv.gz"))
    form = "user,item,score" if table else "user Q0 item rank score tag"
    text = read_lines(path, call)
    reader = csv.reader(text)
    rows = ((reader.line_num, row) for row in reader) if table else enumerate(map(str.split, text), 1)
    columns = (0, 1, 2) if table else (0, 2, 4)
    users, items, scores, lines = [], [], [], []
    for number, row in rows:
        heading = table and number == 1 and [c.strip().removesuffix("_id") for c in row] == form.split(",")
        if not row or heading:
            continue
        try:
            if len(row) != (3 if table else 6):
                raise ValueError
            user, item, score = (row[column].strip() for column in columns)
            scores.append(float(score))
        except ValueError:
            raise InvalidValue(
                f"{call}: line {number} is {text[number - 1]!r}; expected {form}, the score a number."
            ) from None
        if not math.isfinite(scores[-1]):
            raise InvalidValue(f"{call}: the score on line {number} is {score}; give finite numbers.")
        users.append(user)
        items.append(item)
        lines.append(number)
    if not users:
        raise InvalidValue(f"{call}: there is no line; expected {form}.")
    return RunFile(path, users, items, np.array(scores), np.array(lines))


def rank_in_lists(
    run: RunFile,
    data: SequenceData,
    cases: Cases,
    history: History = "keep",
    ties: Ties = "pessimistic",
) -> ListRanks:
    """Ranks of the targets on the lists of a file.

    A target that is not on its user's list is missed at any k. ``history="mask"`` takes items of the history off the
    lists first, so the lists should be longer than k by as many.

    Args:
        run: the lists.
        data: knows the ids.
        cases: at most one for each user.
        history: whether items of the history stay on the lists.
        ties: whether items that score as the target does are ahead of it.

    Raises:
        ValueError: a user or an item is not in the data, or a user has an item twice; names the line.
    """
    rows = _find(run, run.users, {str(user): row for row, user in enumerate(data.user_ids.tolist())}, "user")
    codes = {str(item): code for code, item in enumerate(data.item_ids.tolist()) if code}
    items = _find(run, run.items, codes, "item")
    width = data.num_items + 1
    keys = rows * width + items
    order = np.argsort(keys, kind="stable")
    again = np.flatnonzero(np.diff(keys[order]) == 0)
    if len(again):
        first, second = sorted(order[again[0] : again[0] + 2])
        raise InvalidValue(
            f"{run.path}: user {run.users[first]} has item {run.items[first]} on line {run.lines[first]} and again on "
            f"line {run.lines[second]}; give each item of a user once."
        )
    case_of = np.full(data.num_users, -1)
    case_of[cases.users] = np.arange(len(cases))
    case = case_of[rows]
    other_users = len(np.unique(rows[case < 0]))
    case, items, scores = (part[case >= 0] for part in (case, items, run.scores))
    is_target = items == cases.targets[case]
    kept = np.ones(len(case), bool)
    if history == "mask":
        seen = np.repeat(np.arange(len(cases)), cases.histories.lengths) * width + cases.histories.items
        kept = is_target | ~np.isin(case * width + items, seen)
    own = np.full(len(cases), np.nan)  # which nothing is ahead of
    own[case[is_target]] = scores[is_target]
    is_ahead = np.greater_equal if ties == "pessimistic" else np.greater
    ahead = is_ahead(scores, own[case]) & kept & ~is_target
    ranks = np.where(np.isnan(own), MISSED, np.bincount(case[ahead], minlength=len(cases)))
    lengths = np.bincount(case[kept], minlength=len(cases))
    has_list = np.bincount(case, minlength=len(cases)) > 0
    if not has_list.any():
        raise InvalidValue(f"{run.path}: none of its users has a case in this split; is it the right file?")
    return ListRanks(
        ranks,
        without_list=int((~has_list).sum()),
        missed=int(np.isnan(own).sum()),
        shortest=int(lengths[has_list].min()),
        other_users=other_users,
    )


def evaluate_run_files(
    data: str,
    run: str,
    compare: str | None = None,
    split: Literal["valid", "test"] = "test",
    history: History = "keep",
    ties: Ties = "pessimistic",
    ks: Sequence[int] = KS,
    metric: str = "NDCG@10",
    output: str | None = None,
    markdown: bool = False,
    format: Format = "auto",
    user: str | None = None,
    item: str | None = None,
    time: str | None = "auto",
    ties_in_time: Order = "file",
    tie_seed: int = 0,
) -> str:
    """Judge the lists of a file, or of two, beside floors, under the leave-last-out split.

    Args:
        data: file of interactions, any that :meth:`recsys.SequenceData.read` reads.
        run: file of the model's lists, see :func:`read_run`.
        compare: file of another model's, to be compared with the first by a paired bootstrap.
        split: which target the lists are for.
        history: "keep" leaves items of the history among the candidates, "mask" removes them.
        ties: whether items that score as the target does are ahead of it: "pessimistic" or "optimistic".
        ks: cut-offs.
        metric: what two files are compared by.
        output: JSON file for the results.
        markdown: print a markdown table.
        format, user, item, time: how to read ``data``, see :meth:`recsys.SequenceData.read`.
        ties_in_time: order of one user's interactions at one time, ``ties`` there.
        tie_seed: of its ``"shuffle"``.

    Returns:
        A table with notes, as text.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file cannot be read, or does not fit the data; names the line.
    """
    interactions = SequenceData.read(
        data, format, user=user, item=item, time=time, ties=ties_in_time, tie_seed=tie_seed
    )
    parts = interactions.split()
    cases = parts.test if split == "test" else parts.valid
    name = Path(data).name.split(".")[0]

    def result(model: str, ranks: Array, **settings: Any) -> RankingResult:
        settings["data_fingerprint"] = interactions.fingerprint
        metrics = ranking_metrics(ranks, ks)
        about = (parts.tied_share(split), interactions.order)
        return RankingResult(model, name, split, history, ties, len(cases), metrics, settings, *about)

    results, notes, ranked = [], [], []
    for path in (run, compare):
        if path is None:
            continue
        found = rank_in_lists(read_run(path), interactions, cases, history, ties)
        ranked.append(found.ranks)
        model = Path(path).name
        facts = {
            "without_list": found.without_list,
            "missed": found.missed,
            "shortest_list": found.shortest,
            "users_without_case": found.other_users,
        }
        results.append(result(model, found.ranks, **facts))
        notes.append(
            f"{model}: {found.missed:,} of {len(cases):,} targets are on no list and count as misses"
            f" ({found.without_list:,} users have no list)."
        )
        if found.shortest < max(ks):
            notes.append(
                f"{model}: the shortest list has {found.shortest} items; metrics at larger k are lower bounds."
            )
        if found.other_users:
            notes.append(f"{model}: {found.other_users:,} users have no {split} case and were left out.")
    for floor, kind in FLOORS.items():
        scorer = kind().fit(parts.train, interactions.num_items)
        results.append(result(floor, rank_targets(scorer.score, cases, history, ties)))
    comparisons = []
    if len(ranked) == 2:
        comparisons.append(paired_bootstrap(ranked[0], ranked[1], metric))
        notes.append(f"{results[0].model} less {results[1].model}, {comparisons[0]}")
    if output is not None:
        write_results(output, results, comparisons)
    return "\n".join([format_results(results, markdown), "", *notes, *parts.remarks()])


def _find(run: RunFile, ids: Sequence[str], known: dict[str, int], what: str) -> Array:
    """Places of ids."""
    found = np.array([known.get(i, -1) for i in ids])
    if (found < 0).any():
        first, count = int((found < 0).argmax()), int((found < 0).sum())
        raise InvalidValue(
            f"{run.path}, line {run.lines[first]}: {what} {ids[first]!r} is not in the data ({count:,} lines have such "
            f"{what}s); write the ids of the data's own file, {next(iter(known), None)!r} for example."
        )
    return found
