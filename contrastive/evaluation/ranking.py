"""The part of a report that is about a recommender: its ranking beside floors, and what its data leave open."""

from collections.abc import Mapping
from typing import Any

from contrastive.evaluation.page import Html, element, facts, join, note, table

SHOWN = ("HR@5", "HR@10", "HR@20", "NDCG@5", "NDCG@10", "NDCG@20")
PARTS = {"test": "test", "valid": "validation"}


def headline(result: Mapping[str, Any]) -> Html:
    """The numbers of the model on the test targets beside the best floor's, and the whole of both tables.

    Args:
        result: content of ``results/recommender.json``; empty if there is none.
    """
    metrics = result.get("metrics", {})
    if not metrics:
        return note(
            "No comparison: `contrastive evaluate --run` with this folder ranks the model beside floors; `contrastive "
            "fit` does it when it ends."
        )
    cards, tables = [], []
    for part in PARTS:
        rows = metrics.get(part, {})
        if not rows:
            continue
        *others, last = rows
        model = next((name for name in rows if name.endswith(", last epoch")), last)
        floors = [name for name in others if not name.startswith(model.partition(",")[0])]
        for metric in ("HR@10", "NDCG@10") if part == "test" else ():
            value = element("span", f"{rows[model][metric]:.4f}", class_="value")
            beside = ", ".join(f"{name} {rows[name][metric]:.4f}" for name in floors)
            cards.append(
                element("li", f"{metric} of {model}", value, element("span", beside, class_="small"))
            )
        count = result.get("protocol", {}).get("cases", {}).get(part, {})
        judged = f"{count['judged']:,} " if "judged" in count else ""
        cells = [
            (name, *(f"{row.get(metric, float('nan')):.4f}" for metric in SHOWN))
            for name, row in rows.items()
        ]
        caption = f"{judged}{PARTS[part]} targets, each ranked among all items"
        tables.append(table(("method", *SHOWN), cells, caption, marked=model))
    return join(element("ul", *cards, class_="cards"), element("div", *tables))


def data(result: Mapping[str, Any]) -> Html:
    """What was read, in which order, and how many targets times do not determine."""
    told = result.get("data", {})
    if not told:
        return note("No facts on the data: `contrastive evaluate --run` with this folder writes them.")
    columns = ", ".join(f"{role}: {name}" for role, name in (told.get("columns") or {}).items())
    tied = {PARTS[part]: share for part, share in (told.get("tied") or {}).items() if part in PARTS}
    ties = ", ".join(
        f"{part}: {'unknown, as there are no times' if share is None else f'{share:.1%}'}"
        for part, share in tied.items()
    )
    pairs = {
        "source": told.get("source"),
        **{name: f"{told[name]:,}" for name in ("users", "items", "interactions") if name in told},
        "columns": columns or "without names",
        "order of histories": told.get("order"),
        "targets at the time of the item before": ties,
    }
    remark = element(
        "p",
        "Where a target shares its time with the item before, the order of equal times decides which of them is asked "
        "for, and results change with it.",
        class_="small",
    )
    parts = [facts([(name, str(value)) for name, value in pairs.items() if value])]
    return join(*parts, *([remark] if any(tied.values()) else []))
