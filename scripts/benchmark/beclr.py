"""Time and memory of one clustered memory of BECLR a step, beside a per-sample form like the published one.

    python scripts/benchmark/beclr.py --threads 1
    python scripts/benchmark/beclr.py step --threads 1

"update" assigns a batch to clusters, writes it and moves the prototypes; "enhance" finds each row's k neighbours in its
cluster; a step of BECLR does both for three memories. The published form searches one sample after the other. "loss"
is forward and backward of the loss of enhanced batches beside a form that holds the whole matrix. Ratios are theirs /
ours.

"step" trains a ResNet-18 on images of 32 pixels with the paper's batch, projector and memories, and tells in processor
time what the three full memories take of a step, and their first clustering, of rows drawn from 200 Gaussians.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch
from measure import Problem, compare
from torch import Tensor, nn
from torch.nn import functional as F

MINI = {"batch": 256, "clusters": 200, "size": 8193, "dim": 512, "k": 5}
CASES = {
    "update + enhance": {"part": "both", **MINI},
    "update": {"part": "update", **MINI},
    "enhance": {"part": "enhance", **MINI},
    "... one large cluster": {"part": "enhance", **MINI, "clusters": 2},
    "k-means": {"part": "kmeans", **MINI},
    "loss": {"part": "loss", **MINI},
}


def ours(part: str, batch: int, clusters: int, size: int, dim: int, k: int) -> Problem:
    from contrastive.objectives.clustered_memory import ClusteredMemory
    from contrastive.objectives.clusters import kmeans
    from contrastive.objectives.enhanced_contrast import Batches, beclr

    bank, labels, z = draw(batch, clusters, size, dim)
    if part == "loss":
        t, p, s = agreeing(batch, dim)
        found = Batches(*torch.randn(3, 2, batch, k, dim))
        return Problem(lambda: beclr(t, p, s, found).loss, [])
    if part == "kmeans":
        return Problem(lambda: only(kmeans(bank, clusters, restarts=1)), [])
    memory = ClusteredMemory(size, clusters)
    memory.rows, memory.labels = bank, labels
    memory.prototypes = means(bank, labels, clusters)
    memory.clustered_epoch.fill_(0)

    def step() -> None:
        if part in ("both", "update"):
            memory.update(z)
        if part in ("both", "enhance"):
            memory.nearest(z.view(2, batch, dim), k)

    return Problem(step, [])


def per_sample(part: str, batch: int, clusters: int, size: int, dim: int, k: int) -> Problem:
    bank, labels, z = draw(batch, clusters, size, dim)
    if part == "loss":
        t, p, s = agreeing(batch, dim)
        found = torch.randn(3, 2, batch * k, dim)
        return Problem(lambda: dense_loss(t.detach(), p, s, found), [])
    state = {"labels": labels, "prototypes": means(bank, labels, clusters), "position": 0}

    def step() -> None:
        if part in ("both", "update"):
            update(bank, state, z, clusters)
        if part in ("both", "enhance"):
            for view in z.chunk(2):
                enhance(bank, state, view, k)

    return Problem(step, [])


def draw(batch: int, clusters: int, size: int, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    centres = torch.randn(clusters, dim)
    labels = torch.randint(0, clusters, (size,))
    z = centres[torch.randint(0, clusters, (2 * batch,))] + torch.randn(2 * batch, dim)
    return centres[labels] + torch.randn(size, dim), labels, z


def agreeing(batch: int, dim: int) -> Tensor:
    """Targets, predictions and projections of two views; that these agree keeps the loss away from 0."""
    return (torch.randn(batch, dim) + torch.randn(3, 2, batch, dim)).requires_grad_()


def means(bank: Tensor, labels: Tensor, clusters: int) -> Tensor:
    sums = torch.zeros(clusters, bank.shape[1]).index_add_(0, labels, bank)
    return sums / labels.bincount(minlength=clusters).clamp(min=1)[:, None]


def update(bank: Tensor, state: dict, z: Tensor, clusters: int) -> None:
    scores = -torch.cdist(F.normalize(z), F.normalize(state["prototypes"]))
    plan = (scores / 0.05).exp()
    for _ in range(10):
        plan = plan / plan.sum(0) / clusters
        plan = plan / plan.sum(1, keepdim=True) / len(z)
    kept = min(len(z), len(bank) - state["position"])
    rows = slice(state["position"], state["position"] + kept)
    bank[rows], state["labels"][rows] = z[:kept], plan.argmax(1)[:kept]
    state["position"] = (state["position"] + kept) % len(bank)
    state["prototypes"] = means(bank, state["labels"], clusters)


def enhance(bank: Tensor, state: dict, view: Tensor, k: int) -> Tensor:
    """One sample after the other: its cluster's rows, their similarities, and a result that grows by one part each."""
    columns = bank.T
    own = (F.normalize(view) @ F.normalize(state["prototypes"]).T).argmax(1)
    result = F.normalize(view)
    for z, cluster in zip(view, own, strict=True):
        members = (state["labels"] == cluster).nonzero().flatten()
        if len(members) <= k:
            members = torch.arange(len(bank))
        partition = columns[:, members]
        similarity = F.normalize(z, dim=0) @ F.normalize(partition, dim=0)
        result = torch.cat([result, partition[:, similarity.topk(k).indices].T])
    return result


def dense_loss(t: Tensor, p: Tensor, s: Tensor, found: Tensor) -> Tensor:
    t, p, s = (
        F.normalize(torch.cat([F.normalize(x, dim=-1), f], 1), dim=-1)
        for x, f in zip((t, p, s), found, strict=True)
    )
    n = t.shape[1]
    positive = -(p[0] * t[1]).sum(1).mean() / 2 - (p[1] * t[0]).sum(1).mean() / 2
    both = s.flatten(0, 1)
    same = torch.eye(n, dtype=torch.bool).repeat(2, 2)
    similarity = (both @ both.T / 2.0).exp().masked_fill(same, 0.0)
    return positive + 0.1 * ((similarity.sum(1) / (2 * n - 2)).mean()).log()


def only(_: object) -> None:
    """Nothing: the result is not a loss."""


def training_steps(batch: int, steps: int, image_size: int) -> dict[str, float]:
    """Processor seconds of whole training steps, of what full memories take of these, and of the first clustering."""
    from contrastive import BECLR, Pretrain, ProjectionHead, SimCLRViews, TorchvisionEncoder
    from contrastive.objectives.clusters import kmeans
    from contrastive.training.optim import OptimizerConfig, build_optimizer

    clusters, size, dim, k = (MINI[name] for name in ("clusters", "size", "dim", "k"))
    objective = BECLR(
        num_neighbours=k, num_clusters=clusters, memory_size=size, memory_start_epoch=0, recluster_epochs=0
    )
    config = OptimizerConfig("sgd", learning_rate=0.3, reference_batch=256)
    module = Pretrain(
        TorchvisionEncoder("resnet18", image_size=image_size),
        objective,
        ProjectionHead(dim, dim, layers=3),
        SimCLRViews(image_size, blur=0.5),
        config,
        momentum=0.995,
    )
    objective.setup(size, dim=dim)
    optimizer, _ = build_optimizer(config, module, total_steps=100_000, global_batch=batch)

    rows, _, _ = draw(batch, clusters, size, dim)
    start = time.process_time()
    labels, prototypes = kmeans(F.normalize(rows), clusters)
    clustering = len(objective.memories) * (time.process_time() - start)
    for memory in objective.memories:
        memory.rows, memory.labels, memory.prototypes = rows.clone(), labels.clone(), prototypes.clone()
        memory.clustered_epoch.fill_(0)

    spent = []
    enhance = objective._enhance

    def timed(*given):
        start = time.process_time()
        result = enhance(*given)
        spent.append(time.process_time() - start)
        return result

    objective._enhance = timed  # type: ignore[method-assign]
    images = torch.randint(0, 256, (batch, 3, image_size, image_size), dtype=torch.uint8)
    whole = []
    for step in range(steps + 1):
        start = time.process_time()
        module.key_network.update()
        views = module.make_views(images, seed=step)
        with torch.no_grad():
            targets = module._embed(views, module.key_network, nn.Identity())
        optimizer.zero_grad()
        objective(*module.embed(views), teacher=targets).backward()
        optimizer.step()
        whole.append(time.process_time() - start)
    # The first step also sets up thread pools and memory.
    return {
        "step": statistics.median(whole[1:]),
        "memories": statistics.median(spent[1:]),
        "share": sum(spent[1:]) / sum(whole[1:]),
        "first_clustering": clustering,
    }


def step_main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=["step"])
    parser.add_argument("--batch", type=int, default=MINI["batch"])
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="also write the results to this JSON file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    found = training_steps(options.batch, options.steps, options.image_size)
    print(
        f"ResNet-18, {options.image_size} pixels, batch {options.batch}, {options.threads} thread(s): a step takes "
        f"{found['step']:.2f} s, three memories of it {1e3 * found['memories']:.0f} ms, {100 * found['share']:.2f} %; "
        f"their first clustering {found['first_clustering']:.1f} s"
    )
    if options.out:
        options.out.write_text(
            json.dumps({"torch": torch.__version__, **vars(options), **found}, default=str, indent=1)
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["step"]:
        step_main()
        raise SystemExit
    contestants = {"ours": ours, "per sample / dense": per_sample}
    compare(__doc__, contestants, CASES, skip=lambda name, case: case == "k-means" and name != "ours")
