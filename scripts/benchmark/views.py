"""Time the SimCLR recipe (crop, flip, jitter, grey) against torchvision per image and kornia per batch.

    python scripts/benchmark/views.py --size 32 224 --threads 2 --out views.json

Every contender gets the same uint8 images and makes two float views of each, with the same crop scale,
strengths and probabilities, in one process. Contenders take turns within each repeat, so that what else
the machine does meets them alike. Peers come with ``pip install contrastive-representations[benchmark]``.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
import torchvision.transforms as T
from torch import Tensor, nn
from torchvision.transforms.functional import to_pil_image

from contrastive.errors import DISTRIBUTION
from contrastive.views import SimCLRViews

try:
    import kornia.augmentation as K
except ImportError as error:
    sys.exit(
        f"scripts/benchmark/views.py compares with kornia ({error}): "
        "pip install 'contrastive-representations[benchmark]'"
    )

CROP_SCALE, JITTER = (0.2, 1.0), (0.4, 0.4, 0.4, 0.1)


def ours(images: Tensor, size: int) -> Callable[[], object]:
    views = SimCLRViews(size, views=2, crop_scale=CROP_SCALE, jitter=JITTER)
    return lambda: views(images)


def torchvision_per_image(images: Tensor, size: int, pil: bool) -> Callable[[], object]:
    first = T.ToTensor() if pil else T.ConvertImageDtype(torch.float32)
    random = [
        T.RandomResizedCrop(size, CROP_SCALE),
        T.RandomHorizontalFlip(),
        T.RandomApply([T.ColorJitter(*JITTER)], p=0.8),
        T.RandomGrayscale(0.2),
    ]
    transform = T.Compose([*random, first] if pil else [first, *random])
    samples = [to_pil_image(image) for image in images] if pil else list(images)
    return lambda: [torch.stack([transform(sample) for sample in samples]) for _ in range(2)]


def kornia_per_batch(images: Tensor, size: int) -> Callable[[], object]:
    augment = nn.Sequential(
        K.RandomResizedCrop((size, size), CROP_SCALE, ratio=(3 / 4, 4 / 3)),
        K.RandomHorizontalFlip(),
        K.ColorJitter(*JITTER, p=0.8),
        K.RandomGrayscale(p=0.2),
    )

    def call() -> object:
        floats = images.float() / 255
        return [augment(floats) for _ in range(2)]

    return call


@torch.no_grad()
def measure(size: int, batch: int, repeats: int) -> dict[str, float]:
    """Views per second of each contender: median over the repeats, after one warm-up."""
    source = size if size < 64 else size * 8 // 7  # small images come as they are, large ones a little larger
    images = torch.randint(0, 256, (batch, 3, source, source), dtype=torch.uint8)
    few = images[: max(8, batch // 8)]  # per image, a slow pipeline shows its rate on fewer
    contenders = {
        "contrastive": (ours(images, size), len(images)),
        "kornia, batch": (kornia_per_batch(images, size), len(images)),
        "torchvision, PIL image": (torchvision_per_image(few, size, pil=True), len(few)),
        "torchvision, tensor": (torchvision_per_image(few, size, pil=False), len(few)),
    }
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in range(repeats + 1):
        for name, (call, count) in contenders.items():
            start = time.perf_counter()
            call()
            if repeat:
                rates[name].append(2 * count / (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in rates.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs="+", default=[32, 224], help="sides of the views")
    parser.add_argument("--batch", type=int, help="images per call (default: 512, from 64 pixels on 32)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, help="also write the numbers to this JSON file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    rows = []
    print(f"{'size':>4}  {'contender':<24}{'views/s':>10}{'contrastive is':>17}")
    for size in options.size:
        batch = options.batch or (512 if size < 64 else 32)
        rates = measure(size, batch, options.repeats)
        for name, rate in rates.items():
            speedup = rates["contrastive"] / rate
            print(f"{size:>4}  {name:<24}{rate:>10,.0f}{speedup:>16.1f}x")
            rows.append(
                {
                    "size": size,
                    "batch": batch,
                    "contender": name,
                    "views_per_second": rate,
                    "speedup": speedup,
                }
            )

    if options.out:
        record = {
            "command": " ".join(sys.argv),
            "threads": options.threads,
            "repeats": options.repeats,
            "machine": platform.processor() or platform.machine(),
            "versions": {
                name: version(name) for name in (DISTRIBUTION, "torch", "torchvision", "kornia", "pillow")
            },
            "rows": rows,
        }
        unfinished = options.out.with_suffix(".tmp")
        unfinished.write_text(json.dumps(record, indent=2) + "\n")
        os.replace(unfinished, options.out)


if __name__ == "__main__":
    main()
