"""Figures about a trained encoder: training curves, similarities of pairs, a map of embeddings.

Every function takes arrays and returns a :class:`matplotlib.figure.Figure` that belongs to the caller alone:
pyplot's global state is never touched, so figures can be drawn in any thread and none has to be closed. Save
one with ``figure.savefig("loss.pdf")``, show it as the value of a notebook cell, or put it in a page with
:func:`to_svg`.

The ten colours are those of M. A. Petroff, "Accessible color sequences for data visualization" (arXiv
2107.02270), which stay apart under the common deficiencies of colour vision.
"""

import html
import io
import re
import warnings
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from contrastive.errors import InvalidValue

if TYPE_CHECKING:  # matplotlib takes half a second to import: only drawing pays for it
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = NDArray[Any]

COLOURS: tuple[str, ...] = ("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6")
COLOURS += ("#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd")
_LINE_ORDER = (0, 6, 4, 1, 2, 5, 9, 7, 8, 3)  # blue, orange, purple, ...; greys last, as grey reads as "off"
_THEME = {"ink": "#1b1f24", "muted": "#5b6570", "rule": "#d9dee4", "paper": "#fefefe"}
_MOST_NAMES = 30  # on a map: more would cover it
_OPTIONS = Lock()  # of matplotlib and of warnings: they are global


def curves(series: Mapping[str, tuple[Array, Array]], ylabel: str, xlabel: str = "epoch") -> "Figure":
    """Draw lines over training time.

    Args:
        series: line name -> (x, y), two arrays (N,). Points whose y is not finite are left out.
        ylabel: what the values are.
        xlabel: what x counts.

    Raises:
        ValueError: no line has a finite point.
    """
    lines = {name: (x[np.isfinite(y)], y[np.isfinite(y)]) for name, (x, y) in series.items()}
    lines = {name: (x, y) for name, (x, y) in lines.items() if len(x)}
    if not lines:
        raise InvalidValue(
            f"curves(series=...): no line of {sorted(series)} has a finite value; at least one finite point "
            "is needed; check that the run logged this metric and did not end in NaN"
        )
    figure, axes = _panel()
    for colour, (name, (x, y)) in zip(_line_colours(len(lines)), lines.items(), strict=True):
        axes.plot(x, y, color=colour, lw=1.8, marker="o" if len(x) < 3 else None, ms=4, label=name)
    if len(lines) > 1:
        _legend(axes, columns=2)
    axes.margins(x=0.02, y=0.08)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.locator_params(axis="x", integer=True, nbins=6)
    axes.locator_params(axis="y", nbins=5)
    return figure


def similarity_histogram(groups: Mapping[str, Array], bins: int = 40) -> "Figure":
    """Draw the densities of several groups of cosine similarities over one axis.

    Args:
        groups: group name -> similarities (N,), N >= 1.
        bins: number of bins between the lowest and the highest similarity of all groups.

    Raises:
        ValueError: there is no group, or one is empty.
    """
    empty = [name for name, values in groups.items() if len(values) == 0]
    if empty or not groups:
        raise InvalidValue(
            f"similarity_histogram(groups=...): {f'group {empty[0]!r} is empty' if empty else 'no group'}; "
            "one or more groups of at least one similarity each are needed; leave empty groups out"
        )
    low = min(float(values.min()) for values in groups.values())
    high = max(float(values.max()) for values in groups.values())
    edges = np.linspace(low, max(high, low + 1e-3), bins + 1)
    figure, axes = _panel(width=4.6, height=2.8)
    for colour, (name, values) in zip(_line_colours(len(groups)), groups.items(), strict=True):
        density, _ = np.histogram(values, edges, density=True)
        axes.stairs(density, edges, fill=True, color=colour, alpha=0.3, lw=0)
        axes.stairs(density, edges, color=colour, lw=1.6, label=f"{name} (mean {values.mean():.2f})")
    axes.set_xlabel("cosine similarity")
    axes.set_ylabel("density")
    axes.set_ylim(bottom=0)
    axes.margins(x=0.01)
    _legend(axes, columns=1)
    return figure


def embedding_map(points: Array, labels: Array | None = None, class_names: Sequence[str] = ()) -> "Figure":
    """Draw embeddings as points of the plane, coloured and named by class.

    Each name stands near the median of its class, pushed off other names. The axes of a projection mean
    nothing by themselves and are left out; both have the same scale. From the eleventh class on colours
    repeat; past 30 classes the names are left out.

    Args:
        points: (N, 2), as :func:`project` returns them, N >= 1.
        labels: (N,) non-negative integers, or None.
        class_names: name of each label; by default the label itself.

    Raises:
        ValueError: the shapes do not fit each other.
    """
    if points.ndim != 2 or points.shape[1] != 2 or (labels is not None and labels.shape != points.shape[:1]):
        given = f"points {points.shape} and labels {None if labels is None else labels.shape}"
        raise InvalidValue(
            f"embedding_map(points, labels): got {given}; expected (N, 2) and (N,); project embeddings to "
            "the plane first, with contrastive.evaluation.plots.project"
        )
    figure, axes = _panel(width=4.6, height=3.9)
    axes.set_axis_off()
    axes.set_aspect("equal", adjustable="datalim")
    colours = np.array(COLOURS)[np.zeros(len(points), int) if labels is None else labels % len(COLOURS)]
    # Points are pixels even inside a vector image: two thousand circles would weigh more than the page.
    size = float(np.clip(8_000 / max(len(points), 1), 5, 30))
    axes.scatter(points[:, 0], points[:, 1], s=size, c=colours, alpha=0.8, linewidths=0, rasterized=True)
    present = [] if labels is None else np.unique(labels).tolist()
    if 0 < len(present) <= _MOST_NAMES:
        names = [class_names[label] if label < len(class_names) else str(label) for label in present]
        medians = np.array([np.median(points[labels == label], axis=0) for label in present])
        places = _apart(medians, names, float(np.ptp(points, axis=0).max()))
        for label, name, (x, y) in zip(present, names, places, strict=True):
            text = axes.text(
                x, y, name, ha="center", va="center", color=_THEME["ink"], fontsize=9.5, parse_math=False
            )
            edge = COLOURS[label % len(COLOURS)]
            text.set_bbox({"boxstyle": "round,pad=0.22", "fc": _THEME["paper"], "ec": edge, "lw": 1.4})
    return figure


def project(vectors: Array, seed: int = 0) -> tuple[Array, str]:
    """Project embeddings to the plane and name the method.

    UMAP where ``umap-learn`` is installed (the extra ``explore``) and N > 15, else the first two principal
    components. Rows are scaled to unit length first, since cosine similarity does not see their length.

    Args:
        vectors: (N, D), finite.
        seed: the result depends on it and on nothing else.

    Returns:
        The points (N, 2), and ``"UMAP"`` or ``"PCA"``.

    Raises:
        ValueError: ``vectors`` is not a matrix, or has a value that is not finite.
    """
    if vectors.ndim != 2 or not np.isfinite(vectors).all():
        given = f"shape {vectors.shape}" if vectors.ndim != 2 else "a NaN or infinite value"
        raise InvalidValue(
            f"project(vectors=...): got {given}; expected a finite matrix (N, D); take the vectors that "
            "contrastive.extract_features returns"
        )
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    if not (unit - unit[:1]).any():  # equal rows are one point; UMAP would spread them
        return np.zeros((len(unit), 2)), "PCA"
    if len(unit) > 15:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ImportWarning)  # it says that Tensorflow is missing
                from umap import UMAP
        except ImportError:
            pass
        else:
            points = UMAP(metric="cosine", random_state=seed, n_jobs=1).fit_transform(unit)
            return np.asarray(points), "UMAP"
    from sklearn.decomposition import PCA

    points = PCA(min(2, *unit.shape), svd_solver="randomized", random_state=seed).fit_transform(unit)
    return np.pad(points, ((0, 0), (0, 2 - points.shape[1]))), "PCA"


def to_svg(figure: "Figure", description: str) -> str:
    """Return ``figure`` as an ``<svg>`` element to be put into a page of HTML.

    Text stays text, in the font of the page. Ink, rules and paper become the CSS variables ``--ink``,
    ``--muted``, ``--rule`` and ``--paper`` (with the colours of a light page as fallback), so the figure
    follows a dark theme. The element scales to the width of its parent; ``description`` is read to those who
    cannot see it.
    """
    import matplotlib

    buffer = io.StringIO()
    # The salt makes the names inside a figure the same every time, and unlike those of other figures.
    with (
        _OPTIONS,
        warnings.catch_warnings(),
        matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": description}),
    ):
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the browser has more fonts than matplotlib
        figure.savefig(buffer, format="svg", transparent=True, dpi=144, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    # Neither a style, which would hold for the whole page, nor names of groups, which are alike in all figures.
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->|\n\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r'font: [^;"]*?([\d.]+px)[^;"]*', r"font-size: \1", svg)
    for name, colour in _THEME.items():
        svg = svg.replace(colour, f"var(--{name}, {colour})")
    head = f'<svg role="img" stroke-linejoin="round" aria-label="{html.escape(description)}"'
    return re.sub(r'^<svg width="[^"]*" height="[^"]*"', lambda _: head, svg)


def _panel(width: float = 3.3, height: float = 2.2) -> tuple["Figure", "Axes"]:
    """Return an empty panel of ``width`` x ``height`` inches: one axis, quiet ticks, horizontal rules."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_THEME["muted"])
    axes.tick_params(colors=_THEME["muted"], labelsize=9, length=3)
    axes.tick_params(axis="y", length=0)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(color=_THEME["muted"], fontsize=9.5, parse_math=False)
    axes.grid(axis="y", color=_THEME["rule"], lw=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _line_colours(count: int) -> list[str]:
    return [COLOURS[_LINE_ORDER[i % len(_LINE_ORDER)]] for i in range(count)]


def _legend(axes: "Axes", columns: int) -> None:
    """Name the lines above the panel, where they cover nothing."""
    style: dict[str, Any] = {"frameon": False, "labelcolor": _THEME["ink"], "fontsize": 9}
    spacing = {"handlelength": 1.2, "columnspacing": 1.2, "borderaxespad": 0.2}
    legend = axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, **style, **spacing)
    for text in legend.get_texts():
        text.set_parse_math(False)  # a dollar sign in a name is a dollar sign


def _apart(places: Array, names: Sequence[str], extent: float) -> Array:
    """Push names at ``places`` (C, 2) off each other, a little in each of up to 100 rounds."""
    places = places + 1e-6 * extent * np.arange(len(places))[:, None]  # equal places need a direction
    widths = 0.04 + 0.02 * np.array([len(name) for name in names])  # as shares of the map, boxes included
    reach = extent * np.stack([(widths[:, None] + widths) / 2, np.full((len(names),) * 2, 0.075)], axis=-1)
    for _ in range(100):
        gap = places[:, None] - places
        overlap = reach - np.abs(gap)
        touching = (overlap > 0).all(axis=-1) & ~np.eye(len(names), dtype=bool)
        if not touching.any():
            break
        shorter = overlap == overlap.min(
            axis=-1, keepdims=True
        )  # the way out is along the axis of less overlap
        places = places + np.where(touching[..., None] & shorter, 0.3 * overlap * np.sign(gap), 0).sum(axis=1)
    return places
