"""Does one thing to a folder until it is killed; says when it has begun. Started by ``test_killed.py``.

python killed.py save|add|embed FOLDER
"""

import sys
from pathlib import Path

import numpy as np
import torch

from contrastive.retrieval import Index, embed, set_threads


def main(what: str, folder: Path) -> None:
    torch.set_num_threads(1)
    set_threads(1)
    if what == "embed":
        print("begun", flush=True)
        embed(
            lambda x: x + 1, torch.arange(40_000.0).reshape(20_000, 2), folder, shard_size=500, batch_size=50
        )
        return
    index = Index.load(folder)
    print("begun", flush=True)
    while True:
        start = int(index.ids.max()) + 1
        index.add(np.random.default_rng(start).normal(size=(50, 16)), range(start, start + 50))
        if what == "save" or start % 1000 == 0:
            index.save(folder)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
