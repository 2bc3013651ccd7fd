"""Look through all images of a data set and report those that cannot be read."""

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from contrastive.data.images import MANY, Images, Split
from contrastive.data.levels import Levels, levels
from contrastive.data.module import ImageData
from contrastive.data.pixels import Facts, facts, read_any


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
        lines += [f"warning: {text}." for text in self.warnings]
        if self._sizes_differ and not self.scaled:
            lines.append(
                "The images differ in size: set size=..., to which every image is then scaled and cut."
            )
        if any(split.bad for split in self.splits):
            lines.append("Repair or remove the unreadable images.")
        if self.ok:
            lines.append("The data can be trained on." if self.warnings else "The data are fine.")
        return "\n".join(lines)


class _Seen(NamedTuple):
    """What one image tells."""

    size: tuple[int, int]
    facts: Facts
    levels: NDArray[Any]  # counts (256,)
    digest: bytes  # of the pixels


class _Look(Dataset[Any]):
    """Item ``i`` is what image ``i`` tells, or what is wrong with it."""

    def __init__(self, images: Images, channels: int, decoding: dict[str, Any]) -> None:
        self.images = images
        self.channels = channels
        self.decoding = decoding

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> _Seen | str:
        try:
            content = self.images.content(i)
            image = read_any(content, self.channels, **self.decoding)
            digest = hashlib.blake2b(image.contiguous().numpy().data, digest_size=16).digest()
            return _Seen(tuple(image.shape[1:]), facts(content), levels(image).numpy(), digest)  # type: ignore[arg-type]
        except Exception as error:
            return f"{self.images.where(i)}: {error}"


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
    looks = [_check(name, split, data) for name, split in splits.items() if split is not None]
    notes = data.notes_of_source
    said = [notes.pop("warning")] if "warning" in notes else []
    return DataReport(
        [report for report, _ in looks],
        data.target_size is not None,
        notes,
        said + [warning for _, warnings in looks for warning in warnings],
    )


def _check(name: str, split: Split, data: ImageData) -> tuple[SplitReport, list[str]]:
    look = _Look(split.images, data.channels, data.decoding)
    workers = data.num_workers if len(look) >= MANY else 0
    loader = DataLoader(look, 256, num_workers=workers, collate_fn=list)
    bad: list[str] = []
    sizes: Counter[tuple[int, int]] = Counter()
    used, first = Levels(), _Doubles(split)
    transparent = frames = cut = 0
    for i, seen in enumerate(result for block in loader for result in block):
        if isinstance(seen, str):
            bad.append(seen)
            continue
        sizes[seen.size] += 1
        used.counts += torch.from_numpy(seen.levels)
        first.add(i, seen.digest)
        transparent += seen.facts.transparent
        frames += seen.facts.frames > 1
        cut += seen.facts.cut
    counts = [] if split.labels is None else split.labels.bincount(minlength=len(split.class_names)).tolist()
    said = [data.advise(used), first.differ]
    if transparent and data.background is None:
        said.append(
            f"{transparent} images are transparent in parts, where the colours that lie under it are read: set "
            "background=white, say"
        )
    said.append(
        f"{frames} images have several frames or pages, of which the first is read" if frames else None
    )
    said.append(f"{cut} images have 16 bits a colour, of which Pillow reads 8" if cut else None)
    report = SplitReport(name, sizes, dict(zip(split.class_names, counts, strict=False)), bad)
    return report, [f"{name}: {text}" for text in said if text]


class _Doubles:
    """Images of one split with the same pixels and different labels."""

    def __init__(self, split: Split) -> None:
        self.split = split
        self.seen: dict[bytes, int] = {}
        self.pairs = 0
        self.example = ""

    def add(self, i: int, digest: bytes) -> None:
        """Compare image ``i`` with those before."""
        labels, names, where = self.split.labels, self.split.class_names, self.split.images.where
        before = self.seen.setdefault(digest, i)
        if labels is not None and labels[before] != labels[i]:
            self.pairs += 1
            a, b = (f"{where(place)} ({names[int(labels[place])]})" for place in (before, i))
            self.example = self.example or f"{a} and {b}"

    @property
    def differ(self) -> str | None:
        """What to say of them."""
        if not self.pairs:
            return None
        return f"{self.pairs} images have the pixels of another one with another label, as {self.example}"
