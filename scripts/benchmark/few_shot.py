"""Episodes a second of OpTA, beside the form of one episode after the other that papers release.

python scripts/benchmark/few_shot.py --shot 1 5 --threads 2 --episodes 512 --out few_shot.json

5-way episodes with 75 queries of 512 features. Both sides start from cached features and end at predictions. CPU time
is that of all threads; on a machine with other work it says more than the time on the clock.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from contrastive.evaluation import Features, few_shot, sample_episodes
from contrastive.evaluation.opta import OpTA

DIM, WAY, QUERIES, CLASSES, PER_CLASS = 512, 5, 15, 20, 600
EPSILON, THRESHOLD, ITERATIONS, MIX = 0.05, 1e-4, 1000, 0.7


def novel_features() -> Features:
    """Features of the size of miniImageNet's test split: 20 classes with 600 samples."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(CLASSES).repeat_interleave(PER_CLASS)
    centres = 0.25 * torch.randn(CLASSES, DIM, generator=generator)
    return Features(centres[labels] + torch.randn(len(labels), DIM, generator=generator), labels)


def ours(features: Features, support: Tensor, query: Tensor) -> Tensor:
    return few_shot(features, support, query, classifier="opta").accuracies


def ours_nearest(features: Features, support: Tensor, query: Tensor) -> Tensor:
    return few_shot(features, support, query, classifier=OpTA(classify="centroid")).accuracies


def ours_unbalanced(features: Features, support: Tensor, query: Tensor) -> Tensor:
    return few_shot(features, support, query, classifier="opta_unbalanced").accuracies


def one_by_one(features: Features, support: Tensor, query: Tensor) -> Tensor:
    """Each episode by itself: log-domain Sinkhorn on one cost matrix, then scikit-learn on its prototypes."""
    from sklearn.linear_model import LogisticRegression

    truth = torch.arange(WAY).repeat_interleave(QUERIES)
    accuracies = []
    for rows, asked in zip(support, query, strict=True):
        samples = [features.vectors[index.flatten()] for index in (rows, asked)]
        x, q = ((s - s.mean(1, keepdim=True)) / s.std(1, keepdim=True) for s in samples)
        means = prototypes = x.view(*rows.shape, -1).mean(1)
        shot = rows.shape[1]
        for _ in range(5 if shot == 1 else 1):
            cost = torch.cdist(prototypes, q).square()
            plan = one_plan(cost / cost.max())
            prototypes = (plan / plan.sum(1, keepdim=True)) @ q
        if shot > 1:
            prototypes = MIX * prototypes + (1 - MIX) * means
        head = LogisticRegression(C=1.0, max_iter=1000).fit(prototypes.numpy(), range(WAY))
        accuracies.append(float((torch.from_numpy(head.predict(q.numpy())) == truth).double().mean()))
    return torch.tensor(accuracies, dtype=torch.float64)


def one_plan(cost: Tensor) -> Tensor:
    rows, columns = cost.shape
    log_a = torch.full((rows,), 1 / rows).add(1e-8).log()
    log_b = torch.full((columns,), 1 / columns).add(1e-8).log()
    u, v = torch.zeros(rows), torch.zeros(columns)
    for _ in range(ITERATIONS):
        before = u
        u = EPSILON * (log_a - torch.logsumexp((v[None] - cost) / EPSILON, 1))
        v = EPSILON * (log_b - torch.logsumexp((u[:, None] - cost) / EPSILON, 0))
        if float((u - before).abs().sum()) < THRESHOLD:
            break
    return ((u[:, None] + v[None] - cost) / EPSILON).exp()


CONTESTANTS: dict[str, Callable[[Features, Tensor, Tensor], Tensor]] = {
    "contrastive OpTA": ours,
    "contrastive OpTA, nearest prototype": ours_nearest,
    "contrastive OpTA, unbalanced": ours_unbalanced,
    "one episode at a time": one_by_one,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shot", nargs="+", type=int, default=[1, 5])
    parser.add_argument("--episodes", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3, help="the fastest counts")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="also write the results to this JSON file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    features = novel_features()
    print(
        f"torch {torch.__version__}, {options.threads} threads, {platform.processor() or platform.machine()}"
    )
    print(
        f"{'shot':6}{'contestant':38}{'episodes/s':>12}{'CPU ms/episode':>16}{'time / ours':>13}{'accuracy':>10}"
    )
    rows = []
    for shot in options.shot:
        support, query = sample_episodes(features.labels, shot=shot, episodes=options.episodes)  # type: ignore[arg-type]
        for name, contestant in CONTESTANTS.items():
            count = options.episodes if name.startswith("contrastive") else min(64, options.episodes)
            contestant(features, support[:2], query[:2])  # imports and thread pools
            seconds, cpu = zip(
                *(
                    timed(contestant, features, support[:count], query[:count])
                    for _ in range(options.repeats)
                ),
                strict=True,
            )
            accuracies = contestant(features, support[:count], query[:count])
            row = {"shot": shot, "name": name, "seconds": min(seconds) / count, "cpu": min(cpu) / count}
            row["accuracy"] = float(accuracies[:64].mean())
            rows.append(row)
            ours_seconds = next(r["seconds"] for r in rows if r["shot"] == shot)
            print(
                f"{shot:<6}{name:38}{1 / row['seconds']:12.0f}{1e3 * row['cpu']:16.2f}"
                f"{row['seconds'] / ours_seconds:12.2f}x{row['accuracy']:10.4f}",
                flush=True,
            )
    if options.out:
        document = {"torch": torch.__version__, "threads": options.threads, "rows": rows}
        options.out.write_text(json.dumps(document, indent=1))


def timed(
    contestant: Callable[[Features, Tensor, Tensor], Tensor],
    features: Features,
    support: Tensor,
    query: Tensor,
) -> tuple[float, float]:
    clock, cpu = time.perf_counter(), time.process_time()
    contestant(features, support, query)
    return time.perf_counter() - clock, time.process_time() - cpu


if __name__ == "__main__":
    main()
