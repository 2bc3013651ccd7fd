"""Write RESULTS.md from the JSON files of the reproductions.

python scripts/reproduce/summarise.py
"""

import argparse
import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from study import mean_and_std

HEAD = """# Results

The central claims of the papers, tried on scikit-learn's digits and, where a section says so, on CIFAR-10 with small
networks. Methods and baselines had the same budget and the same number of candidate settings, chosen on a validation
part. Numbers are means ± standard deviations over seeds on the test set. A claim counts as *reproduced* if a one-sided
t-test over the seeds, paired where it compares arms, puts it above its margin at 5 %, as *not reproduced* if below, and
else as *inconclusive*. This page is written by `python scripts/reproduce/summarise.py`.
"""


def section(document: Mapping[str, Any], picture: str) -> str:
    """A heading, the claims with their verdicts, the table and the picture."""
    shown = document["shown"]
    minutes = document["seconds"] / 60
    lines = [f"## {document['title']}: {document['scale']}", ""]
    machine = document["machine"]
    processor = "" if machine["processor"] in ("x86_64", "aarch64") else f" beside one {machine['processor']}"
    place = f"{machine['threads']} thread(s){processor}"
    lines += [
        f"`{document['command']}`; {minutes:.0f} minutes on {place}. {document['setting']}",
        "",
    ]
    lines += ["| claim | verdict | mean ± sd | margin | p |", "|---|---|---|---|---|"]
    for claim in document["claims"]:
        p = "" if claim["p"] is None else "< 0.001" if claim["p"] < 0.001 else f"{claim['p']:.2g}"
        spread = f"{claim['mean']:+.3f} ± {claim['std']:.3f}"
        lines.append(f"| {claim['claim']} | **{claim['verdict']}** | {spread} | {claim['margin']:g} | {p} |")
    lines += ["", f"| arm | settings | {' | '.join(shown)} |", "|---" * (len(shown) + 2) + "|"]
    for arm in document["arms"]:
        metrics = [run["metrics"] for run in arm["runs"]]
        cells = [mean_and_std([m[name] for m in metrics if name in m]) for name in shown]
        settings = ", ".join(f"{key} {value}" for key, value in arm["settings"].items())
        lines.append(f"| {arm['name']} | {settings} | {' | '.join(cells)} |")
    lines += ["", f"![{document['title']}]({picture})", ""]
    if document["notes"]:
        lines += [document["notes"], ""]
    return "\n".join(lines)


def recommenders(document: Mapping[str, Any]) -> str:
    """The table of recommenders on one data set: floors, methods, each with its transition mixture, and the papers'."""
    shown = document["shown"]
    lines = [f"## Next-item recommendation: {document['dataset']}", ""]
    lines += [
        f"`{document['command']}`. Test items; the epoch chosen by validation NDCG@10, the whole catalogue ranked, "
        "history kept, ties against the model. Rows in italics are the papers' own numbers. Seconds are those of the "
        "processor, one thread; where a method took a GPU, those of the clock, with up to fourteen others beside. "
        + document.get("notes", ""),
        "",
        f"| method | seeds | epoch | seconds | {' | '.join(shown)} |",
        "|---" * (len(shown) + 4) + "|",
    ]
    for runs in document["rows"]:
        name = runs[0]["method"]
        lines.append(_row(name, runs, [[run["test"][metric] for run in runs] for metric in shown]))
        for kind, label in (("HR@10 kept", "transition mixture"), ("rules, HR@10 kept", "sequential rules")):
            mixtures = [run["mixture"][kind] for run in runs if kind in run.get("mixture", {})]
            if len(mixtures) == len(runs) and any(mixture["weight"] for mixture in mixtures):
                values = [[mixture["test"][metric] for mixture in mixtures] for metric in shown]
                lines.append(_row(f"{name} + {label}", runs, values))
        if name in document["papers"]:
            published = " | ".join(
                "" if value is None else f"*{value:.4f}*" for value in document["papers"][name]
            )
            lines.append(f"| *{name}, published* | | | | {published} |")
    lines.append("")
    cut = [
        run
        for runs in document["rows"]
        for run in runs
        if run.get("epochs") and run["epoch"] == run["epochs"]
    ]
    if cut:
        names = ", ".join(dict.fromkeys(run["method"] for run in cut))
        lines += [f"Still rising when their time was over, so that more is to be had: {names}.", ""]
    if document["comparisons"]:
        lines += ["Paired bootstrap over test users of NDCG@10 against SASRec with the same seed:", ""]
        for found in document["comparisons"]:
            lines.append(
                f"- {found['method']}, seed {found['seed']}: {found['difference']:+.4f} "
                f"[{found['low']:+.4f}, {found['high']:+.4f}], p = {found['p']:.2g}"
            )
        lines.append("")
    if "ties" in document:
        lines += [equal_times(document), ""]
    return "\n".join(lines)


def equal_times(document: Mapping[str, Any]) -> str:
    """How the results of a data set depend on the order of interactions at one time."""
    ties, metrics = document["ties"], ("HR@10", "NDCG@10")
    own = round(ties["cases"] * (1 - ties["tied"]))
    of: dict[str, dict[str, list[Mapping[str, float]]]] = {}  # method -> order -> metrics of its runs
    for run in ties["runs"]:
        of.setdefault(run["method"], {}).setdefault(run["order"][0], []).append(run["test"])
    shuffles = max(len(orders.get("shuffle", ())) for orders in of.values())
    apart: dict[str, list[Mapping[str, float]]] = {}
    for kept in ties["own_time"]:
        apart.setdefault(kept["run"].rpartition(", seed ")[0], []).append(kept["test"])
    lines = [
        f"### Equal times: {document['dataset']}",
        "",
        f"`{ties['command']}`. {ties['tied']:.1%} of the {ties['cases']} test items share their time with the one "
        "before, so that the order of equal times decides which item is asked for; the table above has that of the "
        f"file. Below: the other orders, {shuffles} seeded shuffles as mean [range], and the runs above on the {own} "
        "users whose last item has a time of its own.".replace("%", " %", 1),
        "",
        "| method | " + " | ".join(f"{m}, by item | {m}, shuffled | {m}, own time" for m in metrics) + " |",
        "|---" * (1 + 3 * len(metrics)) + "|",
    ]
    for method in dict.fromkeys([*(rows[0]["method"] for rows in document["rows"]), *of]):
        orders, cells = of.get(method, {}), []
        for metric in metrics:
            cells += [
                _spread([run[metric] for run in orders.get("item", ())]),
                _range([run[metric] for run in orders.get("shuffle", ())]),
                _spread([run[metric] for run in apart.get(method, ())]),
            ]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    pairs = list(dict.fromkeys((one["floor"], one["method"]) for one in ties["comparisons"]))
    if pairs:
        lines += [
            "",
            "NDCG@10 of floors less that of models on the same shuffle, with paired bootstraps:",
            "",
        ]
    for floor, method in pairs:
        found = [one for one in ties["comparisons"] if (one["floor"], one["method"]) == (floor, method)]
        differences = [one["difference"] for one in found]
        sure = sum(one["p"] < 0.05 for one in found)
        lines.append(
            f"- {floor} less {method}: {statistics.fmean(differences):+.4f} [{min(differences):+.4f}, "
            f"{max(differences):+.4f}], p < 0.05 on {sure} of {len(found)}"
        )
    return "\n".join([*lines, "", *_read_again(document, of)])


def _read_again(document: Mapping[str, Any], of: Mapping[str, Any]) -> list[str]:
    """Which differences to SASRec in the table are smaller than what shuffles move it, or the method compared, by."""
    moves = {
        method: max(found) - min(found)
        for method, orders in of.items()
        if len(found := [run["NDCG@10"] for run in orders.get("shuffle", ())]) > 1
    }
    table = {
        rows[0]["method"]: statistics.fmean(run["test"]["NDCG@10"] for run in rows)
        for rows in document["rows"]
    }
    if "SASRec" not in moves or "SASRec" not in table:
        return []
    parts: dict[bool, list[str]] = {True: [], False: []}
    for name, value in table.items():
        if name != "SASRec":
            difference = value - table["SASRec"]
            within = abs(difference) < max(moves["SASRec"], moves.get(name, 0.0))
            parts[within].append(f"{name} ({difference:+.4f})")
    told = ", ".join(f"{name} by {width:.4f}" for name, width in moves.items())
    return [
        f"Another order of equal times, with training on it, moves NDCG@10: {told}. Differences to SASRec in the upper "
        f"table that are smaller than what moves it or the other: {', '.join(parts[True]) or 'none'}. Those that are "
        f"larger: {', '.join(parts[False]) or 'none'}.",
        "",
    ]


def _spread(values: list[float]) -> str:
    if not values:
        return ""
    return f"{statistics.fmean(values):.4f}" + (
        f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    )


def _range(values: list[float]) -> str:
    return f"{statistics.fmean(values):.4f} [{min(values):.4f}, {max(values):.4f}]" if values else ""


def _row(name: str, runs: list[Mapping[str, Any]], values: list[list[float]]) -> str:
    cells = " | ".join(map(_spread, values))
    epochs = ", ".join(f"{run['epoch']} of {run['epochs']}" for run in runs if "epoch" in run)
    device = {run["device"] for run in runs if "device" in run}
    seconds = ", ".join(f"{run['seconds']:.0f}" for run in runs) + (
        f" ({', '.join(sorted(device))})" if device else ""
    )
    return f"| {name} | {len(runs) if epochs else ''} | {epochs} | {seconds} | {cells} |"


def main() -> None:
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=here / "results")
    parser.add_argument("--out", type=Path, default=here.parent.parent / "RESULTS.md")
    options = parser.parse_args()
    parts = [HEAD]
    for path in sorted(
        options.results.glob("*.json"), key=lambda path: (path.stem.split("-")[0], -len(path.stem))
    ):
        document = json.loads(path.read_text(encoding="utf-8"))
        if document.get("kind") == "recommenders":
            parts.append(recommenders(document))
            continue
        parts.append(section(document, f"scripts/reproduce/results/{path.stem}.png"))
    options.out.write_text("\n".join(parts), encoding="utf-8")
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
