import sys

import pytest
import torch
from sklearn.datasets import load_digits

from contrastive.data.loader import Loader
from contrastive.evaluation import Features, extract_features, knn_classify
from contrastive.evaluation import features as features_module
from contrastive.evaluation.knn import nearest
from contrastive.testing import run_on_processes


@pytest.fixture(params=["faiss", "torch"])
def searcher(request, monkeypatch):
    """Search by FAISS, and as if it were not installed."""
    if request.param == "torch":
        monkeypatch.setitem(sys.modules, "faiss", None)
    return request.param


@pytest.fixture
def sets(reference):
    expected = reference("metrics-knn")
    return (
        expected,
        Features(expected.train, expected.train_labels),
        Features(expected.test, expected.test_labels),
    )


@pytest.mark.parametrize(("k", "temperature"), [(200, 0.1), (20, 0.07), (1, 0.07)])
def test_reference_cosine(sets, searcher, k, temperature):
    expected, train, test = sets
    result = knn_classify(train, test, k=k, temperature=temperature)
    name = f"k{k}_t{temperature}"
    assert torch.equal(result.predictions, expected[f"lightly_{name}_ranking"][:, 0].long())
    top1, top5 = (expected[f"solo_cosine_{name}_acc1_acc5"] / 100).tolist()
    assert result.accuracy == pytest.approx(top1, abs=1e-9)
    assert result.accuracy == pytest.approx(float(expected[f"lightly_{name}_top1_top5"][0]), abs=1e-6)
    if k > 1:
        # The reference fills up five with classes that have no vote, some of which happen to be right.
        truth = (result.classes == test.labels[:, None]).to(torch.uint8).argmax(1)
        filled = (result.scores.topk(5).indices == truth[:, None]).any(1) & (
            result.scores.gather(1, truth[:, None])[:, 0] == 0
        )
        assert result.metrics["top5_accuracy"] + float(filled.double().mean()) == pytest.approx(
            top5, abs=1e-9
        )


def test_a_class_without_a_vote_is_not_among_the_first_five():
    copies = Features(
        torch.ones(8, 2), torch.tensor([6, 6, 6, 6, 6, 1, 2, 3])
    )  # of equally close the first come first
    asked = Features(torch.ones(6, 2), torch.tensor([0, 1, 2, 4, 5, 6]))
    assert knn_classify(copies, asked, k=5).metrics["top5_accuracy"] == pytest.approx(1 / 6)
    assert knn_classify(copies, asked, k=8).metrics["top5_accuracy"] == pytest.approx(3 / 6)


@pytest.mark.parametrize(("k", "temperature"), [(200, 0.1), (20, 0.07), (1, 0.07)])
def test_reference_euclidean(sets, searcher, k, temperature):
    expected, train, test = sets
    result = knn_classify(train, test, k=k, metric="euclidean")
    top1, top5 = (expected[f"solo_euclidean_k{k}_t{temperature}_acc1_acc5"] / 100).tolist()
    assert result.accuracy == pytest.approx(top1, abs=1e-9)
    if k > 1:
        assert result.metrics["top5_accuracy"] == pytest.approx(top5, abs=1e-9)


def test_the_temperature_matters(sets):
    _, train, test = sets
    sharp, flat = (knn_classify(train, test, k=200, temperature=t) for t in (0.01, 10.0))
    assert not torch.equal(sharp.predictions, flat.predictions)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_blocks_do_not_change_neighbours(sets, searcher, metric, monkeypatch):
    _, train, test = sets
    whole = nearest(train, test, k=7, metric=metric)
    monkeypatch.setattr(features_module, "BLOCK_ELEMENTS", 11 * len(train))
    blocks = nearest(train, test, k=7, metric=metric)
    assert torch.equal(whole[1], blocks[1])
    assert (whole[0].diff(dim=1) <= 0).all()


def small_numbers(count, seed):
    """Features of small whole numbers, of which many are the same or equally close, and labels."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randint(0, 3, (count, 5), generator=generator).float() + 0.1
    return Features(vectors, torch.randint(0, 7, (count,), generator=generator))


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("rows", [1, 3, 19, 20, 90])
def test_the_result_is_the_same_at_every_size_of_blocks(searcher, metric, rows, monkeypatch):
    """To the last bit, though many neighbours are equally close and products of blocks are rounded by their size."""
    train, test = small_numbers(400, 0), small_numbers(100, 1)
    whole = knn_classify(train, test, k=30, metric=metric)
    monkeypatch.setattr(features_module, "BLOCK_ELEMENTS", rows * len(train))
    parts = knn_classify(train, test, k=30, metric=metric)
    assert torch.equal(whole.scores, parts.scores)
    assert whole.metrics == parts.metrics


def _evaluate(rank, world_size):
    """Extract features of both sets on the samples of each process, join them and classify."""
    torch.manual_seed(0)
    encoder = torch.nn.Sequential(torch.nn.Linear(5, 16), torch.nn.ReLU()).eval()
    train, test = (
        extract_features(encoder, Loader(part.vectors, part.labels, batch_size=32 // world_size), gather=True)
        for part in (small_numbers(301, 0), small_numbers(99, 1))
    )
    result = knn_classify(train, test, k=20)
    return len(train), len(test), result.predictions.tolist(), result.metrics


def test_the_result_is_the_same_on_any_number_of_processes():
    alone = _evaluate(0, 1)
    assert alone[:2] == (301, 99)
    assert run_on_processes(2, _evaluate) == [alone, alone]
    assert run_on_processes(3, _evaluate) == [alone] * 3


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("k", "temperature"), [(200, 0.1), (20, 0.07), (1, 0.1)])
def test_the_result_is_that_of_lightly(k, temperature):
    library = pytest.importorskip(
        "lightly.utils.benchmarking.knn", reason="the extra 'benchmark' is not installed"
    )
    digits = load_digits()
    vectors, labels = torch.tensor(digits.data).float(), torch.tensor(digits.target)
    train, test = Features(vectors[:1400], labels[:1400]), Features(vectors[1400:], labels[1400:])
    ours = knn_classify(train, test, k=k, temperature=temperature)
    bank, queries = (torch.nn.functional.normalize(part.vectors, dim=1) for part in (train, test))
    theirs = library.knn_predict(queries, bank.T, train.labels, 10, knn_k=k, knn_t=temperature)[:, 0]
    assert torch.equal(ours.predictions, theirs)


def test_votes_by_hand(searcher):
    """Neighbours at cosines 1, 1/2 and 1/2 with temperature 1: class 1 gets 2 e^0.5 against e^1."""
    half = 3**0.5 / 2
    train = Features(torch.tensor([[2.0, 0], [0.5, half], [0.5, -half], [-1, 0]]), torch.tensor([0, 1, 1, 2]))
    test = Features(torch.tensor([[5.0, 0]]), torch.tensor([1]))
    result = knn_classify(train, test, k=3, temperature=1.0)
    first, rest = torch.tensor(1.0).exp(), 2 * torch.tensor(0.5).exp()
    torch.testing.assert_close(result.scores[0, :2].float(), torch.stack([first, rest]) / (first + rest))
    assert result.predictions.tolist() == [1]
    assert knn_classify(train, test, k=3, temperature=0.1).predictions.tolist() == [0]


def test_tiny_temperatures_do_not_overflow(blobs):
    train, test = (Features(*part) for part in blobs)
    assert knn_classify(train, test, temperature=1e-4).scores.isfinite().all()


def test_labels_may_have_gaps_and_differ_between_sets(blobs):
    (x, y), (q, t) = blobs
    result = knn_classify(Features(x, y), Features(q, torch.where(t == 7, 99, t)))
    assert result.classes.tolist() == [-5, 0, 7, 99]
    assert set(result.predictions.tolist()) == {-5, 0, 7}
    assert result.recall[99] == 0
    assert result.accuracy == pytest.approx((result.recall[-5] + result.recall[0]) / 3)
    assert result.metrics["balanced_accuracy"] == pytest.approx(result.accuracy)


def test_large_k_is_clipped_with_a_warning(blobs):
    train, test = (Features(*part) for part in blobs)
    with pytest.warns(UserWarning, match="k=500 .* bank of 120"):
        clipped = knn_classify(train, test, k=500)
    assert torch.equal(clipped.scores, knn_classify(train, test, k=120).scores)


def test_a_collapsed_encoder_is_at_chance(searcher):
    labels = torch.arange(100) % 4
    result = knn_classify(Features(torch.zeros(100, 3), labels), Features(torch.zeros(100, 3), labels))
    assert result.accuracy == pytest.approx(0.25)
    assert result.scores.isfinite().all()


def test_same_set_leaves_out_the_sample_itself(searcher):
    """Classes alternate along a line, so that the nearest other sample is always of the other class."""
    train = Features(torch.tensor([[0.0], [1.0], [2.5], [4.5]]), torch.tensor([0, 1, 0, 1]))
    assert knn_classify(train, train, k=1, metric="euclidean").accuracy == 1
    result = knn_classify(train, train, k=1, metric="euclidean", exclude_self=True)
    assert result.predictions.tolist() == [1, 0, 1, 0]


def test_exact_copies_do_not_bring_the_sample_back(searcher):
    copies = Features(torch.ones(6, 2), torch.tensor([0, 0, 0, 1, 1, 1]))
    _, found = nearest(copies, copies, k=2, exclude_self=True)
    assert found.shape == (6, 2)
    assert not (found == torch.arange(6)[:, None]).any()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"k": 0}, "k is 0"),
        ({"temperature": 0.0}, "temperature is 0"),
        ({"metric": "manhattan"}, "choose"),
    ],
)
def test_bad_settings_are_refused(blobs, options, words):
    train, test = (Features(*part) for part in blobs)
    with pytest.raises(ValueError, match=words):
        knn_classify(train, test, **options)


def test_unlabelled_or_lonely_features_are_refused():
    with pytest.raises(ValueError, match="no labels"):
        knn_classify(Features(torch.ones(3, 2)), Features(torch.ones(3, 2)))
    one = Features(torch.ones(1, 2), torch.tensor([0]))
    with pytest.raises(ValueError, match="only the query"):
        knn_classify(one, one, exclude_self=True)
