"""What a run of a recommender says before its first step."""

import pytest
from lightning.pytorch import Trainer

from contrastive.training import RunPlan
from recsys import MCLRec, RecommenderData, SASRec, SequentialRecommender

pytestmark = pytest.mark.filterwarnings("ignore")  # of Lightning, about loggers and loaders


@pytest.fixture
def table(tmp_path):
    """Interactions of 20 users, of whom every second has a last item at the time of the one before."""
    lines = ["customer_id,sku,bought"]
    for user in range(20):
        for place in range(8):
            time = 1_600_000_000 + (6 if place == 7 and user % 2 else place)
            lines.append(f"{user},{(user + place) % 9},{time}")
    path = tmp_path / "log.csv"
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def plan_of(data, capsys, head=None, checkpoint=None, weight_decay=0.0, **options):
    heads = [] if head is None else [head]
    model = SequentialRecommender(SASRec(None, 8), heads=heads, weight_decay=weight_decay)
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        **options,
    )
    capsys.readouterr()
    trainer.fit(model, data, ckpt_path=checkpoint, weights_only=True)
    lines = capsys.readouterr().out.splitlines()
    start = lines.index("Run plan")
    plan = {}
    for line in lines[start + 1 :]:
        if not line.startswith("  "):
            break
        plan[line[2:16].strip()] = line[16:].strip()
    return plan, trainer


def test_columns_order_and_ties_are_told(table, tmp_path, capsys):
    data = RecommenderData(table, time="bought", batch_targets=32, max_length=10)
    plan, trainer = plan_of(data, capsys, max_epochs=2, default_root_dir=tmp_path)
    assert plan["data"] == f"{table}, 20 users, 9 items, 160 interactions"
    assert plan["columns"] == "user: customer_id, item: sku, time: bought"
    assert plan["order"] == "by bought, equal times in the order of the source"
    assert plan["ties in time"] == (
        "0.0% of the validation and 50.0% of the test targets have the time of the item before"
    )
    assert plan["split"] == "leave-last-out, 20 validation and 20 test targets"
    assert plan["batch"] == "about 32 targets a step = 32 x 1 process x 1 accumulated"
    batches = trainer.num_training_batches
    assert plan["steps"] == f"{2 * batches} = 2 epochs of {batches} batches"
    assert trainer.global_step == 2 * batches
    assert plan["learning rate"] == "Adam, 0.001, constant"
    weights = sum(weight.numel() for weight in trainer.model.encoder.parameters())
    assert plan["encoder"] == f"SASRec ({weights:,} parameters), 8 features, 10 items of a history"
    assert (plan["loss"], plan["heads"]) == ("FullSoftmax", "none")
    assert plan["ranking"] == "against the whole catalogue, history=keep, ties=pessimistic"
    assert plan["machine"] == "1 x cpu, precision 32-true"
    assert plan["run folder"] == str(tmp_path)
    assert "resumed" not in plan


def test_histories_without_times_are_told(table, tmp_path, capsys):
    data = RecommenderData(table, time=None, batch_targets=32, max_length=10)
    plan, _ = plan_of(data, capsys, max_steps=1, default_root_dir=tmp_path, callbacks=[RunPlan()])
    assert plan["columns"] == "user: customer_id, item: sku, no time"
    assert plan["order"] == "the order of the source, without times"
    assert plan["ties in time"] == "unknown, as there are no times"
    assert plan["steps"].startswith("1, ")
    lines = tmp_path / "log.txt"
    lines.write_text("a 1 2 3 4\nb 2 3 4 1\n")
    plan, _ = plan_of(RecommenderData(str(lines), max_length=10), capsys, max_epochs=1)
    assert plan["columns"] == "without names"


@pytest.mark.parametrize(("update", "updates"), [("paper", 2), ("released", 3), ("joint", 1)])
def test_steps_are_those_that_are_taken(table, tmp_path, capsys, update, updates):
    data = RecommenderData(table, time="bought", batch_targets=32, max_length=10, ties="item")
    options = {"head": MCLRec(update=update), "weight_decay": 0.1, "accumulate_grad_batches": 2}
    plan, trainer = plan_of(data, capsys, max_epochs=3, default_root_dir=tmp_path, **options)
    steps = 3 * -(-trainer.num_training_batches // 2)
    assert trainer.global_step == steps * updates
    each = f", each of {updates} updates" if updates > 1 else ""
    assert plan["steps"] == f"{steps} = 3 epochs of {trainer.num_training_batches} batches{each}"
    assert plan["batch"] == (
        "about 64 targets a step = 32 x 1 process x 2 accumulated, and 32 samples for the heads"
    )
    assert plan["learning rate"].endswith("weight decay 0.1, constant")
    assert plan["order"] == "by bought, equal times in the order of the items' ids"
    limited, short = plan_of(data, capsys, max_epochs=3, max_steps=2 * updates, **options)
    assert limited["steps"].startswith("2 = 1 epoch of ")
    assert short.global_step == 2 * updates


def test_a_resumed_run_says_where_it_goes_on(table, tmp_path, capsys):
    data = RecommenderData(table, time="bought", batch_targets=32, max_length=10)
    options = {"head": MCLRec(update="paper"), "default_root_dir": tmp_path}
    _, trainer = plan_of(data, capsys, max_epochs=1, **options)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    options["head"] = MCLRec(update="paper")
    plan, again = plan_of(data, capsys, max_epochs=3, checkpoint=tmp_path / "last.ckpt", **options)
    assert plan["resumed"] == f"in epoch 2, after step {trainer.num_training_batches}"
    assert again.global_step == 3 * 2 * trainer.num_training_batches
