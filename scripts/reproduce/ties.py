"""How the results of next-item recommendation depend on the order of interactions at one time.

Called by recommenders.py with --times. A leave-last-out test asks for the last item of each user; where it shares its
time with the one before, the order of the file, or anything else, decides which that is. Floors and the methods asked
for are trained and judged on shuffles of equal times, floors also by the number of the item. Runs that stand in --out
are judged anew on the users whose last item has a time of its own, from the ranks that are kept there.
"""

import argparse
import json
from dataclasses import asdict
from typing import Any

import numpy as np
import recommenders
from recommenders import FLOORS, floor, load, record_of, results_of, settings_of, train, write

from recsys import ranking_metrics
from recsys.metrics import paired_bootstrap


def ordered(options: argparse.Namespace, order: str, seed: int = 0) -> argparse.Namespace:
    """The options for the same data with another order of equal times, whose runs have a folder of their own."""
    work = options.work / f"{options.dataset}-{order}-{seed}"
    return argparse.Namespace(**{**vars(options), "order": (order, seed), "work": work, "out": work})


def study(options: argparse.Namespace) -> None:
    """Carry it out, as far as it has not been, and write it into the results of the data set."""
    document, ranks = results_of(options)
    split = load(ordered(options, "file"), 0).split
    tied = split.tied()
    assert tied is not None
    plain = load(options, 0)
    same = plain.data.sequences.items.tolist() == split.data.sequences.items.tolist()
    if not same or plain.data.item_ids.tolist() != split.data.item_ids.tolist():
        raise SystemExit(
            f"--times {options.times} holds other interactions than {options.dataset}.seq.tsv.gz"
        )
    found: dict[str, Any] = document.get("ties", {"runs": [], "comparisons": []})
    found |= {"command": command(options), "cases": len(split.test), "tied": float(tied.mean())}
    found["own_time"] = [
        {"run": name, "test": ranking_metrics(kept[~tied])} for name, kept in sorted(ranks.items())
    ]
    orders = [("file", 0), ("item", 0), *(("shuffle", seed) for seed in range(options.shuffles))]
    for order in orders:
        place = ordered(options, *order)
        judged = {name: _floor(place, name) for name in FLOORS}
        for method in options.method:
            if method in FLOORS or order[0] != "shuffle":
                continue
            for seed in options.seeds:
                run = train(place, method, settings_of(options, method), seed)
                judged[method] = np.load(record_of(place, run).with_suffix(".npy"))
                _keep(found, order, method, judged[method], seed=run["seed"], epoch=run["epoch"])
                for name in FLOORS:
                    result = asdict(paired_bootstrap(judged[name], judged[method], metric="NDCG@10"))
                    place_of = {"order": list(order), "floor": name, "method": method, "seed": seed}
                    found["comparisons"] = [
                        one
                        for one in found["comparisons"]
                        if any(one[key] != place_of[key] for key in place_of)
                    ] + [place_of | result]
        for name in FLOORS:
            _keep(found, order, name, judged[name])
        path = options.out / f"recommenders-{options.dataset}.json"
        document["ties"] = found
        write(path, document)  # after every order, as a training takes minutes
    print(json.dumps({"tied": found["tied"], "cases": found["cases"]}))
    for run in found["runs"]:
        print(
            f"{run['order'][0]:>8} {run['order'][1]} {run['method']:18} {run['test']['HR@10']:.4f}", end=" "
        )
        print(f"{run['test']['NDCG@10']:.4f}")


def command(options: argparse.Namespace) -> str:
    """What a reader types to have the same."""
    stride = f" --stride {options.stride}" if options.stride > 1 else ""
    methods = " ".join(f'"{name}"' if " " in name else name for name in options.method)
    return (
        f"python scripts/reproduce/recommenders.py --data DIR --dataset {options.dataset} --method {methods} --seeds "
        f"{' '.join(map(str, options.seeds))}{stride} --times {options.times.name} --shuffles {options.shuffles}"
    )


def _floor(options: argparse.Namespace, name: str) -> np.ndarray:
    run = floor(options, name)
    ranks: np.ndarray = np.load(recommenders.record_of(options, run).with_suffix(".npy"))
    return ranks


def _keep(
    found: dict[str, Any], order: tuple[str, int], method: str, ranks: np.ndarray, **facts: Any
) -> None:
    """Note a run in the place of one with the same order, method and seed."""
    run = {"order": list(order), "method": method, **facts}
    keys = ("order", "method", "seed")
    others = [one for one in found["runs"] if any(one.get(key) != run.get(key) for key in keys)]
    found["runs"] = [*others, run | {"test": ranking_metrics(ranks)}]
