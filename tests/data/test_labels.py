"""Classes are those that exist, and those of a test split are found by name."""

import time

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, Subset

from contrastive.data import ImageData, PairData, TensorData, check_data
from contrastive.data.labels import text_classes
from contrastive.data.sources import Columns, open_source
from contrastive.errors import InvalidValue

GREY = np.zeros((4, 4), np.uint8)


class Labelled(Dataset):
    """One image many times, with labels."""

    def __init__(self, labels, classes=None) -> None:
        self.targets = labels
        if classes is not None:
            self.classes = classes

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, i):
        return GREY, self.targets[i]


def names_of(split) -> list[str]:
    return [split.class_names[label] for label in split.labels.tolist()]


def opened(train, test=None):
    return open_source(train, test, None, download=False)


@pytest.fixture
def sources(write_images, write_parquet, encode, tmp_path):
    """The same labels in every kind of source: sources["list"]([0, 1])."""

    def folder(labels):
        write_images({f"f{len(labels)}/{label}/{i}.png": i for i, label in enumerate(labels)})
        return str(tmp_path / f"f{len(labels)}")

    def listed(labels):
        write_images({f"{i}.png": i for i in range(len(labels))})
        path = tmp_path / f"{len(labels)}.csv"
        path.write_text("".join(f"{i}.png,{label}\n" for i, label in enumerate(labels)))
        return str(path)

    def parquet(labels):
        return str(write_parquet(f"{len(labels)}.parquet", [encode(i) for i in range(len(labels))], labels))

    return {"folder": folder, "list": listed, "parquet": parquet, "data set": Labelled}


# ------------------------------------------------------------------ classes that exist


@pytest.mark.parametrize("kind", ["list", "parquet", "data set", "tensors"])
@pytest.mark.parametrize(
    "labels", [[1, 2, 3], [309, 101, 205], [20230101, 20230102, 20230101], [4_000_000_001, 7, 4_000_000_000]]
)
def test_classes_are_those_that_exist_in_linear_time(sources, kind, labels):
    begin = time.perf_counter()
    names = sorted({str(label) for label in labels}, key=int)
    if kind == "tensors":
        data = TensorData(torch.zeros(3, 2), torch.tensor(labels), validation_fraction=0)
    else:
        data = ImageData(sources[kind](labels), validation_fraction=0)
    assert data.class_names == names
    assert [data.class_names[label] for label in data.known.train_labels.tolist()] == [str(x) for x in labels]
    assert time.perf_counter() - begin < 1


@pytest.mark.parametrize("kind", ["list", "data set", "tensors"])
def test_labels_may_have_more_than_64_bits(sources, kind):
    labels = [2**70, 2**70 + 1, 2**70]
    data = TensorData(torch.zeros(3, 2), labels) if kind == "tensors" else ImageData(sources[kind](labels))
    assert data.class_names == [str(2**70), str(2**70 + 1)]
    assert data.known.train_labels.tolist() == [0, 1, 0]


def test_unsigned_labels_of_64_bits_stay_exact_beside_signed_ones():
    huge = np.array([2**63 + 1, 2**63 + 2], dtype=np.uint64)
    data = TensorData(torch.zeros(2, 2), huge, torch.zeros(2, 2), np.array([3, 4]))
    assert data.class_names == ["3", "4", str(2**63 + 1), str(2**63 + 2)]


def test_options_of_classes_follow_those_that_exist(sources):
    labels = [1, 2, 3] * 10
    few = TensorData(torch.randn(30, 3), torch.tensor(labels), labels_per_class=1, validation_fraction=0)
    assert sorted(few.known.train_labels[few.rows[0]].tolist()) == [0, 1, 2]
    tails = [
        TensorData(torch.zeros(30, 1), torch.tensor(labels) - first, imbalance=0.1, validation_fraction=0)
        for first in (0, 1)
    ]
    assert torch.equal(tails[0].rows[0], tails[1].rows[0])
    report = check_data(ImageData(sources["data set"]([1, 2, 2, 3]), validation_fraction=0))
    assert report.splits[0].labels == {"1": 1, "2": 2, "3": 1}
    assert "3 classes of 1 (1) to 2 (2) images" in str(report)


def test_a_named_class_without_samples_takes_no_part(sources):
    data = ImageData(Labelled([0, 0, 2, 2], ["cat", "dog", "eel"]), labels_per_class=1, validation_fraction=0)
    assert data.num_classes == 3
    assert data.known.train_labels[data.rows[0]].tolist() == [0, 2]
    data = ImageData(Labelled([0, 0, 2, 2], ["cat", "dog", "eel"]), labels_per_class=3, validation_fraction=0)
    with pytest.raises(ValueError, match="class cat has only 2 samples"):
        _ = data.rows


@pytest.mark.parametrize("kind", ["list", "parquet", "data set"])
def test_negative_labels_are_refused(sources, kind):
    with pytest.raises(InvalidValue, match="has the label -1, and 1 of 2 labels"):
        opened(sources[kind]([0, -1]))


def test_classes_of_one_name_are_told_apart(write_parquet, encode, tmp_path):
    twice = {"classes": "crane,dog,crane"}
    write_parquet("d/train.parquet", [encode(i) for i in range(3)], [0, 1, 2], twice)
    write_parquet("d/test.parquet", [encode(3)], [2], twice)
    source = opened(str(tmp_path / "d"))
    assert source.train.class_names == ["crane (label 0)", "dog", "crane (label 2)"]
    assert source.test.labels.tolist() == [2]
    write_parquet("d/test.parquet", [encode(3)], [1], {"classes": "dog,crane"})
    with pytest.raises(InvalidValue, match="'crane' for one, are not among"):
        opened(str(tmp_path / "d"))


def test_labels_that_look_like_numbers_keep_their_zeros():
    labels, names = text_classes(["7", "007", "10", "07", "7"])
    assert names == ["007", "07", "7", "10"]
    assert labels.tolist() == [2, 0, 3, 1, 2]
    assert text_classes(["²", "2"])[1] == ["2", "²"]
    assert text_classes(["9" * 5000, "1"])[1] == ["1", "9" * 5000]


# ------------------------------------------------------------------ test splits


@pytest.mark.parametrize("kind", ["list", "parquet", "data set", "folder"])
@pytest.mark.parametrize(
    "folders",
    [[str(c) for c in range(12)], ["1", "2", "3"], ["2019", "2020"], [f"{c:03}" for c in range(12)]],
    ids=["more than ten", "from one", "years", "zeros"],
)
def test_numbers_of_a_test_split_are_names(write_images, sources, tmp_path, kind, folders):
    write_images({f"train/{name}/{i}.png": i for i, name in enumerate(folders)})
    numbers = [int(name) for name in folders] + [int(folders[0])]
    test = opened(str(tmp_path / "train"), sources[kind](numbers)).test
    assert sorted(map(int, names_of(test))) == sorted(numbers)  # a folder comes in its own order
    if kind != "folder":
        assert list(map(int, names_of(test))) == numbers


def test_a_test_folder_fits_a_training_list(sources, write_images, tmp_path):
    write_images({f"held/{c}/{c}.png": c for c in range(12)})
    test = opened(sources["list"](list(range(12))), str(tmp_path / "held")).test
    assert sorted(test.labels.tolist()) == list(range(12))
    assert all(
        int(name) == int(test.images.read(i, 1).float().mean() - 0.5) for i, name in enumerate(names_of(test))
    )


def test_numbers_do_not_stand_for_names(write_images, sources, tmp_path):
    write_images({"train/cat/1.png": 1, "train/dog/2.png": 2})
    for kind in ("list", "parquet", "data set"):
        with pytest.raises(InvalidValue, match=r"'0' for one.*\(cat, dog\).*numbers name no positions"):
            opened(str(tmp_path / "train"), sources[kind]([0, 1]))
    named = opened(str(tmp_path / "train"), Labelled([1, 0], ["dog", "cat"])).test
    assert names_of(named) == ["cat", "dog"]
    part = opened(str(tmp_path / "train"), Subset(Labelled([1, 0], ["dog", "cat"]), [1])).test
    assert names_of(part) == ["dog"]


def test_zeros_that_leave_it_open_which_class_is_meant_are_refused(write_images, sources, tmp_path):
    write_images({"train/007/1.png": 1, "train/7/2.png": 2, "one/007/1.png": 1})
    assert names_of(opened(str(tmp_path / "train"), sources["list"](["7", "007"])).test) == ["7", "007"]
    with pytest.raises(InvalidValue, match="'07' for one"):
        opened(str(tmp_path / "train"), sources["list"](["07"]))
    with pytest.raises(InvalidValue, match="differ in zeros only"):
        opened(str(tmp_path / "one"), sources["list"](["7", "07", "7"]))


def test_test_pairs_are_labelled_by_name():
    x = torch.rand(4, 3)
    pairs = PairData(
        x,
        x,
        labels=torch.tensor([205, 101, 101, 205]),
        test_first=x,
        test_second=x,
        test_labels=[205, 205, 101, 101],
    )
    assert pairs.class_names == ["101", "205"]
    assert pairs.known.train_labels.tolist() == [1, 0, 0, 1]
    assert pairs.known.test_labels.tolist() == [1, 1, 0, 0]
    with pytest.raises(InvalidValue, match="of the test pairs, '7' for one"):
        _ = PairData(x, x, labels=[0, 1, 0, 1], test_first=x, test_second=x, test_labels=[7] * 4).known


def test_labels_can_be_left_out(sources):
    for kind in ("folder", "list", "parquet", "data set"):
        split = open_source(sources[kind]([0, 1]), None, None, False, Columns(labels=False)).train
        assert (split.labels, split.class_names, len(split.images)) == (None, [], 2)
