"""Runs on two processes, each stopped in one of them; writes how the processes ended to FOLDER/ends.json.

    python stopped_processes.py FOLDER

The processes are forked from this one, as importing everything takes longer than all runs. One that hangs is killed
after a minute.
"""

import json
import os
import signal
import socket
import sys
import time
import traceback
import warnings
from pathlib import Path

import lightning.pytorch as pl
import torch
from conftest import Noise, TinyNCE
from lightning.pytorch.callbacks import ModelCheckpoint

from contrastive.data import TensorData
from contrastive.encoders import MLPEncoder, ProjectionHead
from contrastive.training import Pretrain

LIMIT = 60.0


class Strike(pl.Callback):
    """Does something in one process: in batch 1 of epoch 1, of training or of validation."""

    def __init__(self, rank, action, validation=False):
        self.rank, self.action, self.validation = rank, action, validation

    def _strike(self, trainer, batch_idx, validation):
        place = (trainer.current_epoch, batch_idx, validation)
        if (
            trainer.global_rank == self.rank
            and place == (1, 1, self.validation)
            and not trainer.sanity_checking
        ):
            self.action()

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self._strike(trainer, batch_idx, False)

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        self._strike(trainer, batch_idx, True)


class ValidationLosses(pl.Callback):
    """Write them to FOLDER/val_loss.txt as they come."""

    def on_validation_end(self, trainer, pl_module):
        if trainer.is_global_zero and not trainer.sanity_checking:
            with open(Path(trainer.default_root_dir) / "val_loss.txt", "a") as file:
                file.write(f"{float(trainer.callback_metrics['val_loss'])!r}\n")


def send(signum):
    return lambda: os.kill(os.getpid(), signum)


def fail():
    raise ValueError("mine")


class Poisoned(TinyNCE):
    """A loss that is not finite in the second process, in the third step."""

    steps = 0

    def forward(self, *views, **inputs):
        loss = super().forward(*views, **inputs)
        self.steps += self.training
        return loss * torch.nan if torch.distributed.get_rank() == 1 and self.steps == 3 else loss


def train(folder, callbacks=(), checkpoint=None, objective=TinyNCE):
    """67 samples for training and 29 to validate on: neither makes whole batches for two processes."""
    torch.manual_seed(0)
    data = TensorData(torch.randn(96, 6), batch_size=8, validation_fraction=0.3)
    assert [data.num_samples, len(data.val_dataloader().rows)] == [67, 29]
    module = Pretrain(
        MLPEncoder(6, [8], 8), objective(queue_size=8), projector=ProjectionHead(8, 8), views=Noise()
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_epochs=3,
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[
            ModelCheckpoint(folder / "checkpoints", "last", save_top_k=1),
            ValidationLosses(),
            *callbacks,
        ],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    trainer.save_checkpoint(folder / "end.ckpt")


def start(rank, port, folder, options):
    """Fork a process of a run; return its id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        out = os.open(folder / f"{rank}.log", os.O_WRONLY | os.O_CREAT)
        os.dup2(out, 1), os.dup2(out, 2)
        train(folder, **options)
        code = 0
    except SystemExit as end:
        code = end.code
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(code)


def run(folder, **options):
    """Train in two processes; return the exit code of each; one that hangs is killed."""
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pids = [start(rank, port, folder, options) for rank in range(2)]
    codes, until = {}, time.monotonic() + LIMIT
    while len(codes) < 2:
        for pid in pids:
            if pid not in codes and (ended := os.waitpid(pid, os.WNOHANG))[0]:
                codes[pid] = os.waitstatus_to_exitcode(ended[1])
            elif pid not in codes and time.monotonic() > until:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    return [codes[pid] for pid in pids]


def main(folder):
    def resume(run_folder, name):
        return run(folder / f"{run_folder}-resumed", checkpoint=folder / run_folder / "checkpoints" / name)

    ends = {
        "straight": run(folder / "straight"),
        "terminated": run(folder / "terminated", callbacks=[Strike(1, send(signal.SIGTERM))]),
        "terminated-resumed": resume("terminated", "interrupted.ckpt"),
        "hung-up": run(folder / "hung-up", callbacks=[Strike(0, send(signal.SIGHUP), validation=True)]),
        "hung-up-resumed": resume("hung-up", "interrupted.ckpt"),
        "killed": run(folder / "killed", callbacks=[Strike(0, send(signal.SIGKILL))]),
        "killed-resumed": resume("killed", "last.ckpt"),
        "failed": run(folder / "failed", callbacks=[Strike(1, fail)]),
        "not-finite": run(folder / "not-finite", objective=Poisoned),
    }
    (folder / "ends.json").write_text(json.dumps(ends))


if __name__ == "__main__":
    torch.set_num_threads(1)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup would have ignored
    main(Path(sys.argv[1]))
