"""A recommender's epoch on two processes, beside one that accumulates two batches; writes states to FOLDER.

    python two_processes.py FOLDER

``two.R.pt`` and ``one.0.pt`` have weights, metrics and ranks of process R of both without heads, in float64 and without
dropout;
``heads.R.pt`` those after training with heads that step in turn; ``stopped.R`` says that process R stopped by itself
when the loss of the second one was not finite.
"""

import sys
from pathlib import Path

import torch
from lightning.pytorch import Trainer

from recsys import SRACL, CL4SRec, MCLRec, RecommenderData, SASRec, SequentialRecommender

SIZES = {"users": 41, "items": 40}


class Saving(SequentialRecommender):
    """Leaves the weights of every process; ``bad``, if set, meets a loss that is not finite at its second batch."""

    folder, name, bad = Path(), "", -1

    def on_train_end(self):
        metrics = {name: value.double() for name, value in self.trainer.callback_metrics.items()}
        ranks = {name: torch.from_numpy(ranks) for name, ranks in self.ranks.items()}
        torch.save(
            {**self.state_dict(), **metrics, **ranks}, self.folder / f"{self.name}.{self.global_rank}.pt"
        )

    def training_step(self, batch, batch_idx):
        if self.global_rank == self.bad and batch_idx == 1:
            with torch.no_grad():
                self.encoder.position_embedding.weight.fill_(torch.nan)
        try:
            super().training_step(batch, batch_idx)
        except FloatingPointError:
            (self.folder / f"stopped.{self.global_rank}").touch()
            raise


def train(name, model, devices=2, **options):
    model.name = name
    trainer = Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp_fork" if devices > 1 else "auto",
        max_epochs=1,
        limit_train_batches=6 // devices,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=Saving.folder,
        num_sanity_val_steps=0,
        **options,
    )
    trainer.fit(model, RecommenderData(synthetic=SIZES, batch_targets=64, eval_batch=13))


def main():
    for name, devices, options in (("two", 2, {}), ("one", 1, {"accumulate_grad_batches": 2})):
        torch.manual_seed(0)
        model = Saving(SASRec(dim=16, dropout=0.0, attention_dropout=0.0))
        train(name, model, devices, precision="64-true", gradient_clip_val=0.1, **options)
    heads = [CL4SRec(), MCLRec(update="released"), SRACL(semantics="interactions", attention_dropout=0.9)]
    train("heads", Saving(SASRec(dim=16), heads=heads), accumulate_grad_batches=2)
    model = Saving(SASRec(dim=16))
    model.bad = 1
    try:
        train("bad", model)
    except Exception as problem:  # the launcher's own kind
        print(problem)


if __name__ == "__main__":
    torch.set_num_threads(1)
    Saving.folder = Path(sys.argv[1])
    main()
