"""Look through all images of a data set and report those that cannot be read."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from torch.utils.data import DataLoader, Dataset

from contrastive.data.images import MANY, Images, Split
from contrastive.data.module import ImageData


@dataclass(frozen=True)
class SplitReport:
    """What a look through one split has found.

    Attributes:
        name: ``"train"``, ``"validation"`` or ``"test"``.
        sizes: how many readable images there are of each height and width.
        labels: how many images there are of each class, by its name; empty without labels.
        bad: place and complaint of each unreadable image, in order.
    """

    name: str
    sizes: Counter[tuple[int, int]]
    labels: dict[str, int]
    bad: list[str]

    def __str__(self) -> str:
        total = self.sizes.total() + len(self.bad)
        lines = [f"{self.name}: {total} images, {len(self.bad)} of them unreadable"]
        lines += [f"  the first of these: {self.bad[0]}"] if self.bad else []
        lines += [f"  {count} images of {h} x {w} pixels" for (h, w), count in self.sizes.most_common(3)]
        lines += [f"  and {len(self.sizes) - 3} other sizes"] if len(self.sizes) > 3 else []
        if self.labels:
            least, most = (extreme(self.labels, key=self.labels.__getitem__) for extreme in (min, max))
            lines.append(
                f"  {len(self.labels)} classes of {self.labels[least]} ({least}) to {self.labels[most]} ({most}) images"
            )
        return "\n".join(lines)


@dataclass(frozen=True)
class DataReport:
    """What :func:`check_data` has found; ``str(report)`` is a text to read.

    Attributes:
        splits: one report for each split.
        scaled: whether images are scaled to one size, so that they may differ.
        notes: what there is to say of the source, by topic: columns that were used, what was passed over.
        warnings: what may be wrong although the data can be trained on.
    """

    splits: list[SplitReport]
    scaled: bool
    notes: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether the data can be trained on."""
        return not any(split.bad for split in self.splits) and (self.scaled or not self._sizes_differ)

    @property
    def _sizes_differ(self) -> bool:
        return len({size for split in self.splits for size in split.sizes}) > 1

    def __str__(self) -> str:
        lines = [str(split) for split in self.splits]
        lines += [f"{topic}: {text}" for topic, text in self.notes.items()]
        lines += [f"warning: {text}" for text in self.warnings]
        if self._sizes_differ and not self.scaled:
            lines.append(
                "The images differ in size: set size=..., to which every image is then scaled and cut."
            )
        if any(split.bad for split in self.splits):
            lines.append("Repair or remove the unreadable images.")
        if self.ok:
            lines.append("The data can be trained on." if self.warnings else "The data are fine.")
        return "\n".join(lines)


class _Look(Dataset[Any]):
    """Item ``i`` is the height and width of image ``i``, or what is wrong with it."""

    def __init__(self, images: Images, channels: int) -> None:
        self.images = images
        self.channels = channels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[int, int] | str:
        try:
            height, width = self.images.read(i, self.channels).shape[1:]
        except Exception as error:
            return f"{self.images.where(i)}: {error}"
        return height, width


def check_data(data: ImageData) -> DataReport:
    """Read every image once, keep none, and go on after those that cannot be read.

    Args:
        data: the data as they would be trained on; ``setup()`` need not have been called.

    Raises:
        FileNotFoundError: if data are missing.
        ValueError: if labels or classes are wrong, which shows before any image is read.
    """
    source = data.opened
    splits = {"train": source.train, "validation": source.validation, "test": source.test}
    reports = [_check(name, split, data) for name, split in splits.items() if split is not None]
    notes = data.notes
    warnings = [notes.pop("warning")] if "warning" in notes else []
    return DataReport(reports, data.target_size is not None, notes, warnings)


def _check(name: str, split: Split, data: ImageData) -> SplitReport:
    look = _Look(split.images, data.channels)
    workers = data.num_workers if len(look) >= MANY else 0
    seen = [
        result for block in DataLoader(look, 256, num_workers=workers, collate_fn=list) for result in block
    ]
    counts = [] if split.labels is None else split.labels.bincount(minlength=len(split.class_names)).tolist()
    return SplitReport(
        name,
        sizes=Counter(size for size in seen if not isinstance(size, str)),
        labels=dict(zip(split.class_names, counts, strict=False)),
        bad=[complaint for complaint in seen if isinstance(complaint, str)],
    )
