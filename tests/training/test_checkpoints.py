"""Checkpoints are there after every epoch, whole or not at all, and a damaged one is not read."""

import errno
import io
import random
import time
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from contrastive.errors import FileTrouble, InvalidValue
from contrastive.reading import read_tensors
from contrastive.training import Pretrain
from contrastive.training.checkpoints import LastCheckpoint, WholeFiles
from contrastive.training.resume import Place

SAVING = {"enable_checkpointing": True, "plugins": [WholeFiles()]}


class Lost(Exception):
    """What a run does not survive."""


class LoseIn(pl.Callback):
    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.current_epoch == self.epoch and batch_idx == 1:
            raise Lost


def build(parts, **options) -> Pretrain:
    torch.manual_seed(0)
    return Pretrain(parts.TinyEncoder(), parts.TinyNCE(**options), views=parts.Noise())


@pytest.mark.parametrize("requires", [(), ("index",)], ids=["held-out loss", "none"])
def test_the_last_epoch_s_checkpoint_is_always_there(parts, trainer, tmp_path, requires):
    last = LastCheckpoint(tmp_path)
    run = trainer("lost", max_epochs=5, callbacks=[last, LoseIn(3)], **SAVING)
    with pytest.raises(Lost):
        run.fit(build(parts, requires=requires), datamodule=parts.Vectors())
    assert Place.read(read_tensors(last.path)).epoch == 3
    assert [path.name for path in tmp_path.glob("*.ckpt")] == ["last.ckpt"]

    resumed, straight = build(parts, requires=requires), build(parts, requires=requires)
    trainer("go on", max_epochs=5).fit(
        resumed, datamodule=parts.Vectors(), ckpt_path=last.path, weights_only=True
    )
    trainer("straight", max_epochs=5).fit(straight, datamodule=parts.Vectors())
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_minutes_save_within_an_epoch_and_only_after_a_step(parts, trainer, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(
        pl.Trainer, "save_checkpoint", lambda trainer, path, **_: saved.append(trainer.global_step)
    )
    clock = iter(range(0, 10_000, 50))  # seconds; each look at the clock takes 50
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    last = LastCheckpoint(tmp_path, minutes=1)
    run = trainer("timed", max_epochs=1, callbacks=[last], accumulate_grad_batches=2, **SAVING)
    run.fit(build(parts), datamodule=parts.Vectors(12))  # 8 batches
    assert saved == [2, 4]


def test_a_full_disk_leaves_what_was_there_and_one_sentence(tmp_path, monkeypatch):
    files, path = WholeFiles(), tmp_path / "checkpoints" / "last.ckpt"
    files.save_checkpoint({"state_dict": {"a": torch.ones(3)}}, path)
    save = torch.save

    def full(content, file):
        save(content, file)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(
        FileTrouble, match=r"last\.ckpt cannot be written \(.*No space left on device\); make room"
    ):
        files.save_checkpoint({"state_dict": {"a": torch.zeros(3)}}, path)
    assert [entry.name for entry in path.parent.iterdir()] == ["last.ckpt"]
    assert torch.equal(files.load_checkpoint(path, weights_only=True)["state_dict"]["a"], torch.ones(3))


def test_the_cause_is_the_system_s_and_not_that_of_torch_s_archive(tmp_path, monkeypatch):
    """torch's writer of archives hides that the disk was full behind a position that it did not expect."""

    class Full(io.FileIO):
        def write(self, content):
            if self.tell() + len(content) < 1000:
                return super().write(content)
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", lambda path, mode: Full(path, mode.replace("b", "")))
    with pytest.raises(
        FileTrouble, match=r"a\.ckpt cannot be written \(No space left on device\); make room"
    ) as found:
        WholeFiles().save_checkpoint({"a": torch.ones(300_000)}, tmp_path / "a.ckpt")
    assert "unexpected pos" not in str(found.value)
    assert "last" not in str(found.value)  # there is none to go on from
    assert list(tmp_path.iterdir()) == []


def test_a_flipped_bit_is_noticed_or_without_effect(tmp_path):
    path = tmp_path / "a.ckpt"
    content = {"state_dict": {"a": torch.randn(200), "b": torch.arange(50)}, "epoch": 3, "name": "x" * 40}
    WholeFiles().save_checkpoint(content, path)
    whole, draw, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(200):
        damaged = bytearray(whole)
        damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        try:
            found = WholeFiles().load_checkpoint(path, weights_only=True)
        except InvalidValue:
            refused += 1
        else:
            assert found.keys() == content.keys()
            assert (found["epoch"], found["name"]) == (3, "x" * 40)
            assert all(torch.equal(found["state_dict"][k], v) for k, v in content["state_dict"].items())
    assert refused > 50  # the rest fell into padding between the parts, or into dates


def test_checkpoints_of_the_oldest_format_are_read(tmp_path):
    torch.save({"epoch": 1}, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    assert read_tensors(tmp_path / "old.ckpt") == {"epoch": 1}
