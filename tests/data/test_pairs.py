import numpy as np
import pytest
import torch

from contrastive.data import PairData
from contrastive.data.pairs import projections


def test_pairs_stay_together_through_split_and_shuffling():
    first = torch.arange(60.0)[:, None]
    data = PairData(first, -first.numpy(), labels=torch.arange(60) % 3, batch_size=8, seed=1)
    (a, b), index, labels = next(iter(data.train_dataloader()))
    assert torch.equal(a, -b)
    assert torch.equal(a[:, 0].long(), data.rows[0][index])
    assert torch.equal(labels, a[:, 0].long() % 3)
    assert not torch.equal(a, a.sort(0).values)
    (a, b), *_ = next(iter(data.val_dataloader()))
    assert torch.equal(a, -b)
    assert data.num_samples == 54
    assert data.num_classes == 3


def test_evaluation_is_of_the_first_modality():
    data = PairData(
        torch.rand(20, 3), torch.rand(20, 5), test_first=torch.rand(6, 3), test_second=torch.rand(6, 5)
    )
    train, test = data.evaluation_loaders()
    assert next(iter(train)).inputs.shape == (20, 3)
    assert next(iter(test)).inputs.shape == (6, 3)
    first, second = next(iter(data.test_dataloader())).inputs
    assert torch.equal(first, data.test_pairs[0])
    assert torch.equal(second, data.test_pairs[1])


def test_digits_come_with_their_projections_and_labels():
    data = PairData(size=8, channels=1)
    images, vectors = data.train_pairs
    assert images.shape[1:] == (1, 8, 8)
    assert vectors.shape == (len(images), 16)
    row, column = images[5, 0].float().mean(1) / 255, images[5, 0].float().mean(0) / 255
    torch.testing.assert_close(vectors[5], torch.cat([row, column]))
    assert data.num_classes == 10
    assert len(data.test_pairs[0]) == len(data.test_pairs[1]) == 359


def test_files(tmp_path):
    a, b = np.random.default_rng(0).random((2, 9, 4), dtype=np.float32)
    np.save(tmp_path / "a.npy", a)
    torch.save(torch.from_numpy(b), tmp_path / "b.pt")
    np.save(tmp_path / "y.npy", np.arange(9) % 2)
    data = PairData("a.npy", "b.pt", "y.npy", root=str(tmp_path), batch_size=2)
    assert torch.equal(data.train_pairs[0], torch.from_numpy(a))
    assert torch.equal(data.train_pairs[1], torch.from_numpy(b))
    assert data.known.train_labels.tolist() == [0, 1, 0, 1, 0, 1, 0, 1, 0]
    other = PairData(a, b + 1, np.arange(9) % 2)
    assert data.fingerprint == PairData(a, b, np.arange(9) % 2).fingerprint != other.fingerprint


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"first": torch.rand(3, 2), "second": torch.rand(4, 2)}, "first has 3 rows and second 4"),
        ({"first": torch.rand(3, 2)}, r"second='projections'\) is computed from images"),
        (
            {"first": torch.rand(3, 2), "second": torch.rand(3, 2), "labels": torch.arange(2)},
            r"labels=\.\.\.\) has the shape \(2,\)",
        ),
    ],
)
def test_what_does_not_fit_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        _ = PairData(**arguments).num_samples


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"PairData\(first='a.npy'\): there is no file"):
        _ = PairData("a.npy", torch.rand(3, 2), root=str(tmp_path)).num_samples
    with pytest.raises(ValueError, match=r"PairData\(channels=2\)"):
        PairData(channels=2)


def test_projections_of_colour_images_are_of_their_grey():
    images = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    assert projections(images).shape == (2, 9)
    torch.testing.assert_close(projections(images)[:, :4].mean(1), images.float().mean((1, 2, 3)) / 255)
