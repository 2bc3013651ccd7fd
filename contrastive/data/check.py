"""Look through a whole data set and report what cannot be read."""

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from contrastive.data.images import read_image
from contrastive.data.module import ImageData
from contrastive.data.sources import Split


@dataclass(frozen=True)
class SplitReport:
    """What a look through one split found.

    Attributes:
        name: ``"train"`` or ``"test"``.
        num_samples: number of images.
        sizes: how many readable images there are of each height and width, as stored.
        labels: how many images there are of each class, by name; empty without labels.
        bad: the complaint about each unreadable image, with its place, in order.
    """

    name: str
    num_samples: int
    sizes: Counter[tuple[int, int]]
    labels: dict[str, int]
    bad: list[str]


@dataclass(frozen=True)
class DataReport:
    """What :func:`check_data` found; ``print(report)`` shows it."""

    splits: list[SplitReport]
    same_size_needed: bool

    @property
    def ok(self) -> bool:
        """Whether training can read every image."""
        varied = self.same_size_needed and len(sum((split.sizes for split in self.splits), Counter())) > 1
        return not varied and not any(split.bad for split in self.splits)

    def __str__(self) -> str:
        lines = []
        for split in self.splits:
            lines.append(f"{split.name}: {split.num_samples} images, {len(split.bad)} of them unreadable")
            for (height, width), count in split.sizes.most_common(3):
                lines.append(f"  {count} of {height} x {width} pixels (height x width)")
            if len(split.sizes) > 3:
                lines.append(f"  and {len(split.sizes) - 3} other sizes")
            if split.labels:
                least, most = min(split.labels, key=split.labels.__getitem__), max(split.labels, key=split.labels.__getitem__)
                lines.append(
                    f"  {len(split.labels)} classes, from {split.labels[least]} images ({least}) "
                    f"to {split.labels[most]} ({most})"
                )
            if split.bad:
                lines.append(f"  the first unreadable one: {split.bad[0]}")
        if not self.ok and not any(split.bad for split in self.splits):
            lines.append("The images differ in size: set size=..., to which every image is scaled and cut.")
        lines.append("The data are fine." if self.ok else "The data are not usable as they are.")
        return "\n".join(lines)


def check_data(data: ImageData) -> DataReport:
    """Read every image of ``data`` once, without keeping any, and go on after bad ones.

    Args:
        data: the data module as training would get it; it need not be set up.

    Raises:
        ValueError: if labels or classes are wrong, which is found before any image is read.
    """
    splits = [_check_split("train", data.opened.train, data)]
    if data.opened.test is not None:
        splits.append(_check_split("test", data.opened.test, data))
    return DataReport(splits, same_size_needed=data.target_size is None)


def _check_split(name: str, split: Split, data: ImageData) -> SplitReport:
    def look(i: int) -> tuple[int, int] | str:
        try:
            height, width = read_image(split.images, i, data.channels, None)[0].shape[1:]
        except ValueError as error:
            return f"{split.images.where(i)}: {error.__cause__}"
        return height, width

    with ThreadPoolExecutor((os.cpu_count() or 1) if split.images.threads else 1) as pool:
        seen = list(pool.map(look, range(len(split.images))))
    labels: dict[str, int] = {}
    if split.labels is not None:
        counts = split.labels.bincount(minlength=len(split.class_names)).tolist()
        labels = dict(zip(split.class_names, counts, strict=True))
    return SplitReport(
        name=name,
        num_samples=len(split.images),
        sizes=Counter(size for size in seen if not isinstance(size, str)),
        labels=labels,
        bad=[complaint for complaint in seen if isinstance(complaint, str)],
    )
