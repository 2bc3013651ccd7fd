"""Processes that save to one folder at one moment, and that load from it meanwhile: what is lost, and what fails.

    python scripts/reliability/folders.py --saves 60 --loads 10000

Needs ``os.fork``: a child is ready at once, so that both writers are at the same place at the same time.
"""

import argparse
import functools
import itertools
import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from contrastive.retrieval import Index


def index_of(seed: int) -> Index:
    """An index whose size tells who made it."""
    return Index.build(np.random.default_rng(seed).normal(size=(3_000 + seed, 64)))


def child(work: Callable[[], None], start: Path) -> int:
    """Do something in another process as soon as a file is there; its number."""
    number = os.fork()
    if number:
        return number
    code = 1
    try:
        while not start.exists():
            pass
        work()
        code = 0
    except BaseException as error:
        print(f"child: {type(error).__name__}: {error}", flush=True)
    finally:
        os._exit(code)


def simultaneous_saves(rounds: int, folder: Path) -> dict[str, int]:
    """Two processes save once each at one moment, over and over.

    Returns:
        ``saves``, ``failed`` (a save did not succeed), ``lost`` (the folder does not hold one of the two) and
        ``leftovers`` (a version too many).
    """
    makers = [index_of(1), index_of(2)]
    counted = Counter(saves=0, failed=0, lost=0, leftovers=0)
    for number in range(rounds):
        target, start = folder / f"index-{number % 3}", folder / f"start-{number}"
        children = [child(functools.partial(maker.save, target), start) for maker in makers]
        start.touch()
        counted["saves"] += 1
        counted["failed"] += sum(os.waitpid(one, 0)[1] != 0 for one in children)
        try:
            counted["lost"] += len(Index.load(target)) not in map(len, makers)
        except Exception as error:
            print(f"round {number}: {type(error).__name__}: {error}", flush=True)
            counted["lost"] += 1
        counted["leftovers"] += len(list(target.glob("files-*"))) - 1
    return dict(counted)


def loads_beside_writers(
    writers: list[list[Any]], load: Callable[[Path], Any], loads: int, folder: Path
) -> dict[str, Any]:
    """Load while processes save over and over.

    Args:
        writers: for each process the things that it saves in turn, with ``save`` and a length.
        load: reads one.
        loads: how often.
        folder: to save to.

    Returns:
        ``loads``, ``failed``, ``mixed`` (neither thing), ``changes`` (loads that found another thing than before),
        ``most_versions`` and ``failed_writers``.
    """
    target, start, stop = folder / "shared", folder / "start", folder / "stop"
    things = [thing for own in writers for thing in own]
    things[0].save(target)

    def write(own: list[Any]) -> None:
        for thing in itertools.cycle(own):
            if stop.exists():
                return
            thing.save(target)

    children = [child(functools.partial(write, own), start) for own in writers]
    start.touch()
    lengths, last, versions = list(map(len, things)), None, 0
    counted: Counter[str] = Counter()
    for _ in range(loads):
        try:
            length = len(load(target))
            counted["mixed"] += length not in lengths
            counted["changes"] += length != last
            last = length
        except Exception as error:
            counted["failed"] += 1
            print(f"load: {type(error).__name__}: {error}", flush=True)
        versions = max(versions, len(list(target.glob("files-*"))))
    stop.touch()
    failed = sum(os.waitpid(one, 0)[1] != 0 for one in children)
    return {
        "loads": loads,
        "failed": counted["failed"],
        "mixed": counted["mixed"],
        "changes": counted["changes"],
        "most_versions": versions,
        "failed_writers": failed,
    }


def recommender_of(items: int) -> Any:
    """A small recommender; its length tells who made it."""
    import torch

    from recsys import Recommender, SequenceData
    from recsys.encoders import GRU4Rec

    torch.manual_seed(items)
    rows = np.arange(items * 2)
    data = SequenceData.from_dataframe({"user": rows // 4, "item": rows % items, "time": rows}, time="time")
    return Recommender.from_model(
        GRU4Rec(num_items=data.num_items, dim=8, max_length=8), data, histories=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--saves", type=int, default=60, help="simultaneous saves by two processes")
    parser.add_argument("--loads", type=int, default=10_000, help="of an index; a tenth of a recommender")
    options = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        begun = time.perf_counter()
        saves = simultaneous_saves(options.saves, folder)
        failed += saves["failed"] + saves["lost"] + saves["leftovers"]
        print(
            json.dumps({"simultaneous saves": saves, "seconds": round(time.perf_counter() - begun)}),
            flush=True,
        )
        small = [Index.build(np.random.default_rng(n).normal(size=(n, 8))) for n in (300, 301)]
        recommenders = [recommender_of(40), recommender_of(50)]
        from recsys import Recommender

        for what, writers, load, loads in (
            ("index, one writer", [small], Index.load, options.loads),
            ("index, two writers", [[one] for one in small], Index.load, options.loads),
            (
                "recommender, two writers",
                [[one] for one in recommenders],
                Recommender.load,
                options.loads // 10,
            ),
        ):
            begun = time.perf_counter()
            with tempfile.TemporaryDirectory() as other:
                found = loads_beside_writers(writers, load, loads, Path(other))
            failed += found["failed"] + found["mixed"] + found["failed_writers"]
            print(json.dumps({what: found, "seconds": round(time.perf_counter() - begun)}), flush=True)
    raise SystemExit(failed > 0)


if __name__ == "__main__":
    main()
