"""What is installed: a name of our own, the extras that messages speak of, and configurations that can be named."""

import re
from pathlib import Path

import pytest

from contrastive.cli import main
from contrastive.cli.request import SHIPPED, run_name, shipped_configurations, with_shipped
from contrastive.errors import DISTRIBUTION, install

ROOT = Path(__file__).parents[1]
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
TEXTS = [
    path
    for folder in ("contrastive", "recsys", "scripts", "docs", "tests")
    for ending in ("*.py", "*.md", "*.yaml")
    for path in sorted((ROOT / folder).rglob(ending))
] + [ROOT / "README.md", ROOT / "pyproject.toml"]


def test_the_name_is_the_distribution_s():
    assert re.findall(r'^name = "(.*)"$', PROJECT, re.MULTILINE) == [DISTRIBUTION]


def test_nobody_is_told_to_install_the_project_of_somebody_else():
    stranger = re.compile(r"pip install(?: -\S+)* ['\"]?(contrastive|recsys)(?![-\w./])")
    assert stranger.search("pip" + " install -U 'contrastive[text]'")
    found = [str(path) for path in TEXTS if stranger.search(path.read_text(encoding="utf-8"))]
    assert not found


def test_every_extra_that_a_message_names_exists():
    extras = set(
        re.findall(r"^(\w+) = \[", PROJECT.partition("[project.optional-dependencies]")[2], re.MULTILINE)
    )
    named = {
        extra
        for path in TEXTS
        for extra in re.findall(
            rf"install\(['\"](\w+)['\"]\)|{DISTRIBUTION}\[(\w+)\]", path.read_text(encoding="utf-8")
        )
        for extra in extra
        if extra
    }
    assert {"text", "explore", "export", "milvus"} <= named <= extras
    assert install("text") == f"pip install '{DISTRIBUTION}[text]'"


def test_a_shipped_configuration_is_named_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["fit", "--config", "quickstart", "--config=vision/beclr_digits", "-c", "mine.yaml"]
    found = with_shipped(words)
    assert found == [
        *("fit", "--config", str(SHIPPED / "quickstart.yaml")),
        f"--config={SHIPPED / 'vision' / 'beclr_digits.yaml'}",
        *("-c", "mine.yaml"),
    ]
    assert run_name(found[1:4]) == "beclr_digits"
    Path("quickstart").write_text("seed_everything: 1\n")  # the user's own goes first
    assert with_shipped(words)[2] == "quickstart"
    with pytest.raises(
        FileNotFoundError, match=r"--config quickstrat is no file, .* quickstart, recsys/quickstart"
    ):
        with_shipped(["fit", "--config", "quickstrat"])


def test_all_configurations_are_in_the_wheel_and_listed(capsys):
    names = shipped_configurations()
    assert {"quickstart", "recsys/quickstart"} <= set(names)
    patterns = re.findall(r'"(configs/[^"]*)"', PROJECT)
    packed = {path for pattern in patterns for path in (ROOT / "contrastive").glob(pattern)}
    assert {SHIPPED / f"{name}.yaml" for name in names} == packed
    assert main(["list", "--kind=configs"]) == 0
    assert all(name in capsys.readouterr().out for name in ["quickstart"])
