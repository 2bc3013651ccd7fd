"""Hard negatives against a loop over all items, and groups of duplicates that were put in."""

import numpy as np
import pytest

from contrastive.retrieval import Index, mine_negatives, near_duplicates


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.fixture
def items() -> np.ndarray:
    return unit(np.random.default_rng(0).normal(size=(120, 8))).astype(np.float32)


@pytest.mark.parametrize("strings", [False, True])
@pytest.mark.parametrize("column", [None, "label"])
def test_negatives_are_those_of_a_loop(items, strings, column):
    labels = np.arange(120) % 6
    names = [f"n{i}" if strings else i for i in range(120)]
    index = Index.build(items, names, metadata={"label": labels})
    similarity = items @ items.T
    positives = [int(np.argsort(-row)[3]) for row in similarity]
    scores, ids = mine_negatives(
        index, names, [names[p] for p in positives], k=5, margin=0.9, column=column, candidates=118
    )
    for i, positive in enumerate(positives):
        expected = [
            j
            for j in np.argsort(-similarity[i])
            if j not in (i, positive)
            and similarity[i, j] < 0.9 * similarity[i, positive]
            and (column is None or labels[j] != labels[i])
        ][:5]
        assert ids[i].tolist() == [names[j] for j in expected]
        np.testing.assert_allclose(scores[i], similarity[i, expected], rtol=1e-5)


def test_too_few_negatives_are_filled_up(items):
    index = Index.build(items[:4])
    scores, ids = mine_negatives(index, [0], [1], k=3, margin=1.0, candidates=8)
    missing = ids[0] == -1
    assert missing.any()
    assert np.isneginf(scores[0][missing]).all()


def test_what_is_refused(items):
    index = Index.build(items)
    with pytest.raises(KeyError, match="999"):
        mine_negatives(index, [999], [0])
    with pytest.raises(ValueError, match=r"margin=1.5.*a margin in \(0, 1\]"):
        mine_negatives(index, [1], [0], margin=1.5)
    with pytest.raises(ValueError, match="2 anchors and 1 positives"):
        mine_negatives(index, [1, 2], [0])
    with pytest.raises(ValueError, match="no column 'label'"):
        mine_negatives(index, [1], [0], column="label")
    with pytest.raises(ValueError, match="use an index of cosine or dot"):
        mine_negatives(Index.build(items, metric="euclidean"), [1], [0])


def test_duplicates_are_found(items):
    copies = items.copy()
    copies[50], copies[70] = copies[3] * 1.0001, copies[3]
    copies[51] = unit(copies[4:5] + 0.01 * copies[9:10])[0]
    assert near_duplicates(Index.build(copies), 0.999) == [[3, 50, 70], [4, 51]]
    assert near_duplicates(Index.build(items), 0.999999) == []
