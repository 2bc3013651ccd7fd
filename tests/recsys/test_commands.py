"""Commands validate, test and predict on a checkpoint of fit, with any head, on a file of a user."""

import csv
import signal
import sys
from pathlib import Path

import pytest
import torch

import contrastive.cli.fit as fit
from contrastive.cli import main
from recsys import SequenceData

QUICKSTART = Path(__file__).parents[2] / "configs" / "recsys" / "quickstart.yaml"
HEADS = {
    "published": [],  # MCLRec, as the configuration has it
    "others": [
        "--model.heads=[{class_path: recsys.SRACL, init_args: {semantics: interactions}}, "
        "{class_path: recsys.CL4SRec}, {class_path: recsys.DuoRec}, "
        "{class_path: recsys.MCLRec, init_args: {update: joint}}]"
    ],
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working directory with a file of interactions; what a run changes in the process is undone."""
    data = SequenceData.generate(60, 32)
    with open(tmp_path / "mine.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["user", "item", "time"])
        for user in range(data.num_users):
            writer.writerows(
                (f"u{user}", f"i{item}", time) for time, item in enumerate(data.sequences[user].tolist())
            )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    handler = signal.getsignal(signal.SIGINT)
    yield tmp_path
    signal.signal(signal.SIGINT, handler)


def command(name, *words):
    """Run a command on the file, as a user would; the trainer that carried it out."""
    made, keep = [], fit.TrainerCLI.__init__

    def remember(self, *arguments):
        made.append(self)
        keep(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit.TrainerCLI, "__init__", remember)
        options = ["--config", str(QUICKSTART), "--name=shop", "--data.source=mine.csv"]
        code = main([name, *options, "--trainer.enable_progress_bar=false", *words])
    assert code == 0
    return made[0]


@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
def test_every_command_takes_a_checkpoint_of_every_head(heads, folder):
    trained = command("fit", *heads, "--trainer.max_epochs=1")
    weights = trained.model.state_dict()
    words = (*heads, "--ckpt_path=last")
    validated = command("validate", *words)
    for name, value in weights.items():
        assert torch.equal(validated.model.state_dict()[name], value), name
    for name, value in validated.trainer.callback_metrics.items():
        assert trained.trainer.callback_metrics[name] == value, name
    assert "val_NDCG@10" in validated.trainer.callback_metrics
    tested = command("test", *words).trainer.callback_metrics
    assert 0 <= tested["test_NDCG@10"] <= tested["test_HR@10"] <= 1
    others = command("test", "--ckpt_path=last")  # the heads of the configuration, whatever was trained with
    assert others.trainer.callback_metrics == tested
    predicted = command("predict", *words, "--model.history=mask")
    batches, data = predicted.trainer.predict_loop.predictions, predicted.datamodule.data
    assert sorted(torch.cat([batch.users for batch in batches]).tolist()) == list(range(60))
    for batch in batches:
        assert batch.scores.diff(dim=1).max() <= 0
        for user, items in zip(batch.users.tolist(), batch.items, strict=True):
            assert not set(items.tolist()) & set(data.sequences[user].tolist())
        assert torch.equal(batch.items == 0, batch.scores == -torch.inf)


def test_a_checkpoint_of_another_catalogue_is_refused(folder, capsys):
    command("fit", "--trainer.max_epochs=1", "--model.heads=[]")
    lines = (folder / "mine.csv").read_text().replace(",i1,", ",other,")
    (folder / "mine.csv").write_text(lines)
    words = ["test", "--config", str(QUICKSTART), "--name=shop", "--model.heads=[]", "--ckpt_path=last"]
    capsys.readouterr()
    assert main([*words, "--data.source=mine.csv"]) == 1
    assert "the data given has 32 others; give the data" in capsys.readouterr().err
    assert main([*words, "--data.synthetic={users: 60, items: 40}"]) == 1
    assert "catalogue of 32 items, the data given has 40;" in capsys.readouterr().err
