"""Malformed command lines and damaged descriptions for every command: exit code 0, or one sentence of ours.

    python scripts/reliability/malformed_commands.py --count 1000

A small run, embeddings, an index and a recommender are made once. Then either one option of a command line that works
has an odd value, is repeated, left out or unknown, or one JSON or YAML file that a command reads is odd in one
place. A command passes if it ends with exit code 0, or with another one and a line that begins "contrastive: error: "
(of wrong usage: "contrastive COMMAND: error: "). The choice depends on the seed alone.
"""

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from contrastive.cli import main

WORDS = (
    *(
        "",
        " ",
        "x",
        "-1",
        "0",
        "1.5",
        "nan",
        "1e400",
        "99999999999999999999999",
        "true",
        "null",
        "[]",
        "[1, 2]",
    ),
    *(
        "{}",
        "{",
        '{"a": 1}',
        "[[1], [2, 3]]",
        "a,b",
        "/",
        "..",
        "nowhere/at/all",
        "a\tb",
        "ä",
        "run",
        "index",
        "digits",
    ),
    *("items.csv", "empty", "x" * 300),
)
VALUES = (
    *(
        None,
        True,
        -1,
        0,
        1.5,
        10**30,
        "",
        "x",
        "a\0b",
        "../../x",
        [],
        {},
        [1, 2],
        [None],
        {"x": 1},
        [[1], [2, 3]],
    ),
    *("nan", "class", "torch.nn.Linear"),
)
RUN, SHOP = ["--run=run"], ["--model=shop"]
TRAIN = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.enable_progress_bar=false"]
TRAIN += ["--extras.evaluate=false", "--extras.report=false"]
IMAGES = ["--config=quickstart", "--model.encoder.widths=[4,4]", "--model.encoder.blocks=[0,0]", *TRAIN]
# What works: a command with its options; {} is a folder of its own.
COMMANDS: tuple[list[str], ...] = (
    ["fit", *IMAGES, "--run_dir={}"],
    ["fit", *IMAGES, "--ckpt_path=run/checkpoints/last.ckpt", "--run_dir={}"],
    ["test", *IMAGES, "--ckpt_path=run/checkpoints/last.ckpt"],
    ["probe", *RUN, "--C=1"],
    ["knn", *RUN, "--k=5", "--temperature=0.1", "--metric=cosine"],
    ["few-shot", *RUN, "--way=3", "--shot=1", "--queries=2", "--episodes=5", "--seed=0"],
    ["embed", *RUN, "--out={}", "--split=test", "--shard_size=100", "--batch_size=50", "--ids=row"],
    [
        "index",
        "--embeddings=embeddings",
        "--out={}",
        "--metric=cosine",
        "--factory=Flat",
        "--recall=0.9",
        "--seed=0",
    ],
    ["search", "--index=index", "--id=7", "--k=3", '--filter={"label": [1, 2]}'],
    ["recommend", *SHOP, "--history=[3, 4]", "--k=3", "--exclude_seen=true", "--cold=popular"],
    [
        "export",
        *RUN,
        "--out={}/encoder.pt",
        "--format=torchscript",
        "--input_shape=[1, 16, 16]",
        "--dtype=uint8",
    ],
    [
        "check-data",
        "--source=digits",
        "--size=16",
        "--channels=1",
        "--validation_fraction=0.1",
        "--batch_size=64",
    ],
    ["list", "--kind=objectives"],
)
# Descriptions that commands read, and the command that does.
FILES = {
    "run/config.yaml": ["knn", *RUN],
    "run/run.json": ["report", *RUN, "--max_images=10"],
    "run/encoder/encoder.json": ["knn", *RUN],
    "embeddings/plan.json": ["index", "--embeddings=embeddings", "--out={}"],
    "index/manifest.json": ["search", "--index=index", "--id=7", "--k=3"],
    "shop/encoder/encoder.json": ["recommend", *SHOP, "--history=[3, 4]"],
    "shop/config.yaml": ["recommend", *SHOP, "--history=[3, 4]"],
}


@dataclass
class Case:
    """A command line, and what was made odd about it."""

    words: list[str]
    odd: str
    damaged: str | None = None
    content: Any = None


def prepare(folder: Path) -> None:
    """Make what the commands work on, in the current folder."""
    torch.manual_seed(0)
    for words in (
        ["fit", *IMAGES, "--run_dir=run"],
        ["embed", *RUN, "--out=embeddings"],
        ["index", "--embeddings=embeddings", "--out=index"],
        [
            "fit",
            "--config=recsys/quickstart",
            "--data.synthetic={users: 40, items: 40}",
            *TRAIN,
            "--run_dir=shop",
        ],
    ):
        code, said = carry_out(words)
        if code:
            raise SystemExit(f"{' '.join(words)}\n{said}")
    (folder / "items.csv").write_text("item,title\n1,a\n")
    (folder / "empty").mkdir()


def carry_out(words: list[str]) -> tuple[int, str]:
    """Exit code of a command, and what it printed; faults are raised."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            code = main(words)
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
    return code, err.getvalue()


def places(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """All places of a document."""
    if path:
        yield path
    if isinstance(content, dict | list):
        for key, value in content.items() if isinstance(content, dict) else enumerate(content):
            yield from places(value, (*path, key))


def chosen(count: int, seed: int) -> Iterator[Case]:
    """So many cases."""
    draw = random.Random(seed)
    documents = {name: yaml.safe_load(Path(name).read_text(encoding="utf-8")) for name in FILES}
    for _ in range(count):
        if draw.random() < 0.4:
            name = draw.choice(list(FILES))
            content = json.loads(json.dumps(documents[name]))
            *above, last = draw.choice(list(places(content)))
            place = content
            for key in above:
                place = place[key]
            odd = draw.choice((*VALUES, KeyError))
            if odd is KeyError:
                del place[last]
            else:
                place[last] = odd
            what = f"{name}: {'.'.join(map(str, (*above, last)))} = {odd!r}"
            yield Case(list(FILES[name]), what, name, content)
            continue
        command, *words = draw.choice(COMMANDS)
        number = draw.randrange(len(words))
        option, equals, _ = words[number].partition("=")
        match draw.randrange(8):
            case 0:
                odd = words.pop(number)
                what = f"without {odd}"
            case 1:
                words.insert(number, words[number])
                what = f"twice {words[number]}"
            case 2:
                words[number] = f"{option}s{equals}1"
                what = words[number]
            case _:
                words[number] = f"{option}={draw.choice(WORDS)}"
                what = words[number]
        yield Case([command, *words], f"{command} {what}")


def attempt(case: Case, folder: Path) -> str | None:
    """Carry a case out; returns what is wrong with what came of it."""
    own = folder / "own"
    shutil.rmtree(own, ignore_errors=True)
    own.mkdir()
    words = [word.replace("{}", str(own / "out")) if word.startswith("--") else word for word in case.words]
    before = Path(case.damaged).read_bytes() if case.damaged else b""
    try:
        if case.damaged:
            text = (
                json.dumps(case.content) if case.damaged.endswith(".json") else yaml.safe_dump(case.content)
            )
            Path(case.damaged).write_text(text, encoding="utf-8")
        code, said = carry_out(words)
    except BaseException as fault:
        if isinstance(fault, KeyboardInterrupt):
            raise
        frame = traceback.extract_tb(fault.__traceback__)[-1]
        return f"{type(fault).__name__}: {str(fault)[:150]} ({Path(frame.filename).name}:{frame.lineno})"
    finally:
        if case.damaged:
            Path(case.damaged).write_bytes(before)
    sentences = [line for line in said.splitlines() if line.startswith("contrastive") and "error: " in line]
    if code and len(sentences) != 1:
        return f"exit code {code} with {len(sentences)} sentences: {said[-200:]!r}"
    return None


def run() -> int:
    """Try all, print the faults, and return how many there were."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    faults = 0
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        prepare(Path(name))
        for case in chosen(options.count, options.seed):
            if (fault := attempt(case, Path(name))) is not None:
                faults += 1
                print(f"{case.odd}\n    {fault}", flush=True)
        os.chdir("/")
    print(f"{options.count} malformed commands and files, {faults} faults")
    return faults


if __name__ == "__main__":
    sys.exit(run() > 0)
