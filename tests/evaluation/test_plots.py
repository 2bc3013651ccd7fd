import re
from concurrent.futures import ThreadPoolExecutor
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure

from contrastive.evaluation import plots

RNG = np.random.default_rng(0)
EPOCHS = np.arange(1.0, 6.0)
BLOBS = np.concatenate([RNG.normal(centre, 0.1, (30, 2)) for centre in (-1.0, 0.0, 1.0)])
LABELS = np.repeat([0, 1, 2], 30)


def texts(figure: Figure) -> list[str]:
    """All texts of an SVG, read as XML: the figure must be well formed."""
    root = ElementTree.fromstring(plots.to_svg(figure, "about"))
    return [node.text for node in root.iter() if node.tag.endswith("text") and node.text]


def test_curves_draw_finite_points_only_and_name_lines():
    loss = np.array([3.0, np.nan, 2.0, np.inf, 1.0])
    figure = plots.curves({"training": (EPOCHS, loss), "empty": (EPOCHS, EPOCHS * np.nan)}, "loss")
    (line,) = figure.axes[0].lines
    assert line.get_xdata().tolist() == [1, 3, 5]
    assert line.get_ydata().tolist() == [3, 2, 1]
    assert "loss" in texts(figure)
    assert "training" not in texts(figure)  # a single line needs no legend
    two = plots.curves({"training": (EPOCHS, EPOCHS), "held out": (EPOCHS, -EPOCHS)}, "loss")
    assert {"training", "held out"} <= set(texts(two))
    with pytest.raises(ValueError, match=r"curves\(series=.*finite.*check"):
        plots.curves({"loss": (EPOCHS, EPOCHS * np.nan)}, "loss")


def test_histogram_integrates_to_one_in_each_group():
    groups = {"near": RNG.normal(0.8, 0.05, 500), "far": RNG.normal(0.1, 0.1, 5000)}
    axes = plots.similarity_histogram(groups).axes[0]
    filled = [patch for patch in axes.patches if patch.get_fill()]
    assert len(filled) == 2
    for patch in filled:
        density, edges, _ = patch.get_data()
        assert (density * np.diff(edges)).sum() == pytest.approx(1)
    assert plots.similarity_histogram({"equal": np.ones(3)}).axes  # no width at all
    with pytest.raises(ValueError, match=r"similarity_histogram.*'far' is empty.*leave"):
        plots.similarity_histogram({"near": np.ones(3), "far": np.ones(0)})
    with pytest.raises(ValueError, match="no group"):
        plots.similarity_histogram({})


def test_map_has_a_name_for_each_class_and_no_axes():
    figure = plots.embedding_map(BLOBS, LABELS, ["cat", "dog & <co>"])
    assert sorted(texts(figure)) == ["2", "cat", "dog & <co>"]  # the third class has no name but its label
    assert len(figure.axes[0].collections[0].get_offsets()) == 90
    assert texts(plots.embedding_map(BLOBS)) == []
    many = np.arange(90) % 31
    assert texts(plots.embedding_map(BLOBS, many)) == []  # more names than can be read
    with pytest.raises(ValueError, match=r"embedding_map\(points, labels\): got .*expected \(N, 2\)"):
        plots.embedding_map(BLOBS, LABELS[:5])
    with pytest.raises(ValueError, match="project"):
        plots.embedding_map(np.zeros((4, 3)))


@pytest.mark.parametrize("places", [np.zeros((6, 2)), RNG.random((10, 2)) * 0.1])
def test_names_are_pushed_off_each_other(places):
    moved = plots._apart(places, ["name"] * len(places), extent=1.0)
    gap = np.abs(moved[:, None] - moved) + 10 * np.eye(len(places))[..., None]
    assert ((gap[..., 0] > 0.119) | (gap[..., 1] > 0.074)).all()
    apart = np.array([[0.0, 0.0], [1.0, 1.0]])
    assert np.allclose(plots._apart(apart, ["a", "b"], extent=1.0), apart, atol=1e-5)


@pytest.mark.parametrize("name", ["$x^", "a_b", "<b>", "\N{SNOWMAN}", "\u732b", "%(x)s", "50 %"])
def test_names_are_never_read_as_formulas_or_markup(name):
    assert name in texts(plots.embedding_map(BLOBS, LABELS * 0, [name]))
    assert name in texts(plots.curves({name: (EPOCHS, EPOCHS), "b": (EPOCHS, EPOCHS)}, name))


def test_projection_keeps_the_directions_of_largest_spread():
    weights = np.array([5.0, 3.0, 0.1, 0.1])
    vectors = RNG.normal(size=(12, 4)) * weights
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    points, method = plots.project(vectors * RNG.uniform(1, 9, (12, 1)))  # lengths do not matter
    assert method == "PCA"
    centred = vectors - vectors.mean(axis=0)
    singular = np.linalg.svd(centred, compute_uv=False)[:2]
    assert np.linalg.norm(points, axis=0) == pytest.approx(singular, rel=1e-5)
    assert np.allclose(points, plots.project(vectors)[0], atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 5), (2, 5), (5, 1), (20, 1)])
def test_projection_of_few_rows_or_columns_is_still_a_plane(shape):
    points, _ = plots.project(RNG.normal(size=shape))
    assert points.shape == (shape[0], 2)
    assert np.isfinite(points).all()


def test_projection_of_equal_or_zero_rows_is_a_point():
    for vectors in (np.ones((20, 3)), np.zeros((6, 3)), np.outer(np.arange(1.0, 5.0), [2.0, 0.0])):
        assert np.ptp(plots.project(vectors)[0], axis=0).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("vectors", "given"),
    [(np.zeros(3), "shape"), (np.full((3, 2), np.nan), "NaN"), (np.full((3, 2), np.inf), "inf")],
)
def test_projection_refuses_what_is_no_finite_matrix(vectors, given):
    with pytest.raises(ValueError, match=rf"project\(vectors=.*{given}.*expected"):
        plots.project(vectors)


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plots.curves({"a": (EPOCHS, EPOCHS), "b": (EPOCHS, EPOCHS**2)}, "loss"),
        lambda: plots.similarity_histogram({"a": BLOBS[:, 0], "b": BLOBS[:, 1]}),
        lambda: plots.embedding_map(BLOBS, LABELS),
    ],
)
def test_svg_fits_into_a_page(draw):
    svg = plots.to_svg(draw(), 'says "<loss>"')
    root = ElementTree.fromstring(svg)
    assert root.get("role") == "img"
    assert root.get("aria-label") == 'says "<loss>"'
    assert root.get("width") is None
    assert root.get("viewBox")
    assert "var(--ink, " in svg
    assert "http" not in svg
    assert "<style" not in svg
    names = re.findall(r' id="([^"]+)"', svg)
    assert len(names) == len(set(names))
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg)) <= set(names)  # nothing referred to was lost
    assert svg == plots.to_svg(draw(), 'says "<loss>"')
    other = plots.to_svg(draw(), "another")
    assert not set(names) & set(re.findall(r' id="([^"]+)"', other))


def test_figures_are_drawn_in_threads_without_pyplot():
    import sys

    def draw(seed: int) -> str:
        values = np.random.default_rng(seed).random(5)
        return plots.to_svg(plots.curves({"a": (EPOCHS, values)}, "y"), str(seed))

    alone = [draw(seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(draw, range(8))) == alone
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()
