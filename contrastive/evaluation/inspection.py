"""What a trained encoder does with the data: the parts of a report that need both.

:func:`take_sample` sends a bounded part of the data through the encoder once. Every function after it turns
that sample into the body of one section of the page.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from contrastive.data.loader import Loader
from contrastive.evaluation import plots
from contrastive.evaluation.features import Features, extract_features, normalize
from contrastive.evaluation.geometry import alignment, describe_geometry
from contrastive.evaluation.knn import knn_classify, nearest
from contrastive.evaluation.page import Html, element, join, note, table, thumbnail
from contrastive.evaluation.run import RawPixels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUERIES, NEIGHBOURS = 8, 5
VIEWED, MOST_VIEWS = 6, 5
MOST_CLASSES, VOTERS = 20, 20
BATCH = 256
NO_IMAGES = "Nothing to show: the inputs are no images."

# Names in `describe_geometry` -> name and meaning on the page.
GEOMETRY = {
    "alignment": ("alignment", "squared distance of two views of an image; 0 if equal, smaller is tighter"),
    "uniformity": ("uniformity", "how evenly the sphere is covered; 0 if collapsed, larger is more even"),
    "effective_rank": ("effective rank", "number of dimensions in use, of {dim}; 1 if collapsed"),
    "normalized_std": (
        "spread",
        "deviation in one dimension; {even:.3f} if all are used alike, 0 if collapsed",
    ),
    "mean_cosine": ("mean cosine", "similarity of two images; 1 if collapsed"),
    "tolerance": ("tolerance", "similarity of two images of one class; larger is closer"),
}


@dataclass(frozen=True)
class Sample:
    """A part of the test set and of the training set, as inputs and as features.

    Attributes:
        inputs: test samples ``(n, ...)``, images as ``(n, C, H, W)``; row i belongs to row i of ``test``.
        test: features of ``inputs``, ``(n, D)``.
        bank: training samples ``(m, ...)``.
        train: features of ``bank``, ``(m, D)``.
        views: V float tensors ``(n, C, h, w)``, the views of ``inputs``; empty if the run makes none.
        view_vectors: V tensors ``(n, D)`` of unit rows.
        class_names: name of each label.
        totals: sizes of the whole training set and the whole test set.
        split: what the test samples are called, ``"test"`` or ``"validation"``.
        files: names of the files of ``inputs`` and of ``bank``; empty lists if they are in none.
    """

    inputs: Tensor
    test: Features
    bank: Tensor
    train: Features
    views: list[Tensor]
    view_vectors: list[Tensor]
    class_names: Sequence[str]
    totals: tuple[int, int]
    split: str = "test"
    files: tuple[Sequence[str | None], Sequence[str | None]] = ((), ())

    def name(self, label: int) -> str:
        """Name of a class."""
        return self.class_names[label] if 0 <= label < len(self.class_names) else str(label)

    @property
    def noun(self) -> str:
        """What one sample is called."""
        return "image" if self.inputs.ndim == 4 else "sample"

    @property
    def extent(self) -> str:
        """How much of the test set was looked at, in words."""
        count, total = len(self.inputs), self.totals[1]
        some = f"all {count:,}" if count == total else f"{count:,} random ones of {total:,}"
        return f"{some} {self.split} {self.noun}s"


def take_sample(
    encoder: nn.Module,
    loaders: tuple[Loader, Loader],
    make_views: Callable[..., list[Tensor]] | None,
    class_names: Sequence[str] = (),
    *,
    split: str = "test",
    files: tuple[Sequence[str | None] | None, Sequence[str | None] | None] = (None, None),
    limit: int = 2000,
    seed: int = 0,
) -> Sample:
    """Encode test samples, training samples and views of the test samples.

    Args:
        encoder: maps inputs to features ``(B, D)``.
        loaders: the training set and the test set, in order.
        make_views: called with inputs and ``generator=``; returns V tensors.
        class_names: name of each label.
        split: what the second loader gives, ``"test"`` or ``"validation"``.
        files: for both loaders, the file names of all inputs that it takes its rows from; None if they are in none.
        limit: how many test samples to take at most, and five times as many training samples.
        seed: of the choice and of the views.
    """
    generator = torch.Generator().manual_seed(seed)
    bank, bank_labels, bank_rows = draw(loaders[0], 5 * limit, generator)
    inputs, labels, rows = draw(loaders[1], limit, generator)
    views: list[Tensor] = []
    if make_views is not None:
        batches = [make_views(part, generator=generator) for part in torch.split(inputs, BATCH)]
        views = [torch.cat(parts) for parts in zip(*batches, strict=True)]
    return Sample(
        inputs=inputs,
        test=_encode(encoder, inputs, labels),
        bank=bank,
        train=_encode(encoder, bank, bank_labels),
        views=views,
        view_vectors=[normalize(_encode(encoder, view).vectors) for view in views],
        class_names=class_names,
        totals=(loaders[0].num_samples, loaders[1].num_samples),
        split=split,
        files=(_of_rows(files[1], rows), _of_rows(files[0], bank_rows)),
    )


def _of_rows(names: Sequence[str | None] | None, rows: Tensor) -> list[str | None]:
    return [] if names is None else [names[row] for row in rows.tolist()]


def draw(loader: Loader, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return inputs ``(n, ...)``, labels ``(n,)`` and rows ``(n,)`` of at most ``count`` random samples, in order."""
    rows = torch.arange(loader.num_samples) if loader.rows is None else loader.rows
    if loader.num_samples > count:
        rows = rows[torch.randperm(loader.num_samples, generator=generator)[:count].sort().values]
        loader = Loader(loader.inputs, loader.labels, rows, batch_size=loader.batch_size, sharded=False)
    batches = list(loader)
    labels = [batch.labels for batch in batches if batch.labels is not None]
    return torch.cat([batch.inputs for batch in batches]), torch.cat(labels) if labels else None, rows


def _encode(encoder: nn.Module, inputs: Tensor, labels: Tensor | None = None) -> Features:
    parts = torch.split(inputs, BATCH)
    targets = [None] * len(parts) if labels is None else torch.split(labels, BATCH)
    return extract_features(encoder, zip(parts, targets, strict=True), gather=False)


def maps(sample: Sample, seed: int = 0) -> Html:
    """The test samples in the plane, as they are and as the encoder sees them."""
    labels = None if sample.test.labels is None else sample.test.labels.numpy()
    panels = []
    for name, vectors in (("Raw", RawPixels()(sample.inputs)), ("Encoded", sample.test.vectors)):
        points, method = plots.project(vectors.numpy(), seed)
        drawing = plots.embedding_map(points, labels, sample.class_names)
        title = f"{name} {sample.noun}s, {method}"
        panels.append(figure(drawing, f"Scatter plot of {sample.extent}. {title}.", title))
    coloured = "" if labels is None else " Colours and names are the classes."
    text = f"{sample.extent.capitalize()} in two dimensions, before and after the encoder.{coloured}"
    return join(element("p", text), element("div", *panels, class_="panels wide"))


def neighbours(sample: Sample, seed: int = 0) -> Html:
    """Test images drawn at random, each with its nearest training images."""
    if sample.inputs.ndim != 4:
        return note(NO_IMAGES)
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randperm(len(sample.inputs), generator=generator)[:QUERIES]
    found = nearest(sample.train, sample.test.rows(queries), k=min(NEIGHBOURS, len(sample.train)))
    strips = []
    for query, closeness, row in zip(queries.tolist(), *(values.tolist() for values in found), strict=True):
        name = "query" if sample.test.labels is None else sample.name(int(sample.test.labels[query]))
        file = sample.files[0][query] if sample.files[0] else None
        cells = [_captioned(sample.inputs[query], f"Query: {name}", element("b", name), file=file)]
        cells += [_neighbour(sample, query, *pair) for pair in zip(row, closeness, strict=True)]
        strips.append(_strip(cells))
    searched, total = len(sample.train), sample.totals[0]
    bank = f"{total:,}" if searched == total else f"{searched:,} random ones of {total:,}"
    text = (
        f"Each row begins with a {sample.split} image, drawn at random and not chosen. Its nearest "
        f"neighbours among {bank} training images follow, with their cosine similarity."
    )
    return join(element("p", text), element("div", *strips, class_="gallery"))


def _neighbour(sample: Sample, query: int, row: int, closeness: float) -> Html:
    image, file = sample.bank[row], sample.files[1][row] if sample.files[1] else None
    if sample.test.labels is None or sample.train.labels is None:
        return _captioned(image, f"Neighbour, similarity {closeness:.2f}", f"{closeness:.2f}", file=file)
    name = sample.name(int(sample.train.labels[row]))
    alt = f"Neighbour: {name}, similarity {closeness:.2f}"
    if sample.train.labels[row] == sample.test.labels[query]:
        mark = element("span", "✓", class_="good", role="img", aria_label="same class")
        return _captioned(image, alt, mark, f" {closeness:.2f}", file=file)
    mark = element("span", "✗", class_="bad", role="img", aria_label="other class")
    return _captioned(image, alt, mark, f" {name}, {closeness:.2f}", file=file)


def similarities(sample: Sample) -> Html:
    """Cosine similarities of positive and negative pairs, and of equal and different classes."""
    panels = []
    if len(sample.view_vectors) > 1:
        across = sample.view_vectors[0] @ sample.view_vectors[1].T
        pairs = {"views of one image": across.diagonal(), "views of two images": _off_diagonal(across)}
        text = "The pairs that training compares: the less they overlap, the better the task is solved."
        panels.append(_histogram(pairs, text))
    if sample.test.labels is not None:
        unit = normalize(sample.test.vectors)
        cosines = _off_diagonal(unit @ unit.T)
        same = _off_diagonal(sample.test.labels[:, None] == sample.test.labels)
        if same.any() and not same.all():
            pairs = {"one class": cosines[same], "two classes": cosines[~same]}
            panels.append(
                _histogram(pairs, "Without augmentation: whether images of one class lie together.")
            )
    if not panels:
        return note("No pairs to compare: the data has no labels, and model.views does not make two views.")
    text = f"Cosine similarity of pairs of {sample.extent}, encoded but not projected."
    return join(element("p", text), element("div", *panels, class_="panels wide"))


def _histogram(pairs: dict[str, Tensor], caption: str) -> Html:
    told = ", ".join(f"{name} {values.mean():.2f}" for name, values in pairs.items())
    drawing = plots.similarity_histogram({name: values.numpy() for name, values in pairs.items()})
    return figure(drawing, f"Histograms of cosine similarity, means: {told}.", caption)


def geometry(sample: Sample) -> Html:
    """Numbers about how the embeddings fill the sphere."""
    labels = sample.test.labels
    if labels is not None and len(torch.unique(labels)) == len(labels):
        labels = None  # no two samples of one class, so that classes have no closeness
    values = describe_geometry(sample.test.vectors, labels)
    if len(sample.view_vectors) > 1:
        values["alignment"] = alignment(*sample.view_vectors[:2])
    dim = sample.test.vectors.shape[1]
    rows = [
        (name, f"{values[key]:.3g}", meaning.format(dim=dim, even=dim**-0.5))
        for key, (name, meaning) in GEOMETRY.items()
        if key in values
    ]
    return table(("measure", "value", "meaning"), rows, f"Embeddings of {sample.extent}.", class_="explained")


def classes(sample: Sample) -> Html:
    """Recall of every class under the vote of the nearest training samples, worst first."""
    labels = sample.test.labels
    if labels is None or sample.train.labels is None:
        return note("No classes: the data has no labels.")
    vote = knn_classify(sample.train, sample.test, k=min(VOTERS, len(sample.train)))
    worst = sorted(vote.recall, key=lambda label: (vote.recall[label], label))[:MOST_CLASSES]
    rows = []
    for label in worst:
        members = labels == label
        wrong = vote.predictions[members & (vote.predictions != labels)]
        taken_for = "–"
        if len(wrong):
            most = int(wrong.mode().values)
            taken_for = f"{sample.name(most)} ({int((wrong == most).sum())})"
        share = f"{vote.recall[label]:.1%}"
        bar = element("span", class_="bar", style=f"--share: {share}")
        rows.append((sample.name(label), f"{int(members.sum()):,}", join(share, bar), taken_for))
    shown = "Worst first" if len(rows) == len(vote.recall) else f"The worst {len(rows)} of {len(vote.recall)}"
    caption = f"Recall of {sample.extent}, by the {VOTERS} nearest training {sample.noun}s. {shown}."
    return table(("class", f"{sample.noun}s", "recall", "most often taken for"), rows, caption)


def sample_views(sample: Sample, seed: int = 0) -> Html:
    """Test images beside the views that training would make of them."""
    if sample.inputs.ndim != 4:
        return note(NO_IMAGES)
    if not sample.views:
        return note("No views: config.yaml names none under model.views.")
    strips = []
    generator = torch.Generator().manual_seed(seed)
    for row in torch.randperm(len(sample.inputs), generator=generator)[:VIEWED].tolist():
        file = sample.files[0][row] if sample.files[0] else None
        cells = [_captioned(sample.inputs[row], f"Image {row} as it is", element("b", "original"), file=file)]
        for number, view in enumerate(sample.views[:MOST_VIEWS], start=1):
            cells.append(_captioned(view[row], f"View {number} of image {row}", f"view {number}"))
        strips.append(_strip(cells))
    text = (
        "Training asks which views show the same image. If these rows do not let you see it, the views are "
        "too strong; if colour alone gives it away, they are too weak."
    )
    return join(element("p", text), element("div", *strips, class_="gallery"))


def _captioned(image: Tensor, alt: str, *caption: str, file: str | None = None) -> Html:
    shown = image if image.shape[0] in (1, 3) else image[:1]
    below = [element("span", file, class_="file")] if file else []
    return element("figure", thumbnail(shown, alt), element("figcaption", *caption, *below))


def _strip(cells: list[Html]) -> Html:
    return element("div", *cells, class_="strip", style=f"--count: {len(cells)}")


def figure(drawing: "Figure", description: str, caption: str) -> Html:
    """Return a drawing and the words below it; ``description`` is read to those who cannot see it."""
    return element("figure", Html(plots.to_svg(drawing, description)), element("figcaption", caption))


def _off_diagonal(square: Tensor) -> Tensor:
    """Return the entries (n (n - 1),) of a matrix (n, n) that are not on its diagonal."""
    n = len(square)
    return square.flatten()[1:].view(n - 1, n + 1)[:, :-1].flatten()
