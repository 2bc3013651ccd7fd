"""Write RESULTS.md from the JSON files of the reproductions.

python scripts/reproduce/summarise.py
"""

import argparse
import json
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
        parts.append(section(document, f"scripts/reproduce/results/{path.stem}.png"))
    options.out.write_text("\n".join(parts), encoding="utf-8")
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
