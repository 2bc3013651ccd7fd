"""Every command and example of docs/recommenders.md runs, in order, on interactions with such columns."""

import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from contrastive.cli import main
from recsys import SequenceData

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "recommenders.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(sh|python)\n(.*?)```", PAGE, re.S)
SHORT = ["--trainer.max_epochs=1", "--trainer.enable_progress_bar=false"]
LONG = ("reproduce/", "fetch_recsys")  # for hours, or from the network; tried by tests/scripts


def files(folder):
    data = SequenceData.generate(users=80, items=32, seed=0)
    lines, log, lists = ["customer,article,bought"], ["user,item,time"], []
    for user in range(data.num_users):
        for place, item in enumerate(data.sequences[user].tolist()):
            lines.append(f"c{user},a{item},{1_600_000_000 + place}")
            log.append(f"{user},{item},{place}")
        lists += [f"{user} Q0 {item} {item} {-item} model" for item in range(1, 21)]
    items = ["article,title,category,price"]
    items += [f"a{item},Number {item},{'book' if item % 2 else 'film'},{item}.5" for item in range(1, 33)]
    written = {"interactions.csv": lines, "items.csv": items, "log.csv": log}
    for name, text in (written | {"theirs.run": lists, "ours.run": lists}).items():
        (folder / name).write_text("\n".join(text) + "\n")


@pytest.mark.filterwarnings("ignore")
def test_the_page(tmp_path, monkeypatch, capsys):
    files(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    handler, ran, said = signal.getsignal(signal.SIGINT), 0, {}
    for language, block in BLOCKS:
        if language == "python":
            exec(compile(block, "docs/recommenders.md", "exec"), {})
            said["python"] = capsys.readouterr().out
            continue
        for line in block.splitlines():
            program, *words = shlex.split(line)
            if program == "contrastive":
                assert main(words + (SHORT if words[0] == "fit" else [])) == 0, line
                said[words[0]] = capsys.readouterr().out
                assert said[words[0]].strip(), line
            elif not any(part in line for part in LONG):
                script = [sys.executable, str(ROOT / words[0]), *words[1:]]
                done = subprocess.run(script, capture_output=True, text=True, check=False)
                assert done.returncode == 0, done.stderr[-3000:]
            ran += 1
    signal.signal(signal.SIGINT, handler)
    assert ran > 7
    assert "by bought, equal times in the order of the source" in said["python"]
    assert "user: customer, item: article, time: bought" in said["fit"]
    assert "sequential rules" in said["fit"]
    titles = re.findall(r"Number (\d+)", said["recommend"])  # of the second: books up to 20
    assert titles
    assert all(int(number) % 2 and int(number) < 20 for number in titles)
