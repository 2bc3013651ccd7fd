import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import Dataset, Subset, TensorDataset

from contrastive.data.sources import open_source, stratified_split


def colours(split) -> list[int]:
    return [int(split.images.read(i, 3)[0, 0, 0]) for i in range(len(split.images))]


def open_path(path, test=None):
    return open_source(str(path), test and str(test), None, download=False)


# ------------------------------------------------------------------ names


def test_digits_have_a_fixed_stratified_test_split():
    source = open_source("digits", None, None, download=False)
    assert (len(source.train.images), len(source.test.images)) == (1438, 359)
    assert source.train.class_names == list("0123456789")
    for split, total in ((source.train, 1438), (source.test, 359)):
        assert split.labels.bincount().min() >= total // 10 - 5
    assert max(int(source.train.images.read(i, 1).max()) for i in range(20)) == 255


@pytest.mark.parametrize(
    ("name", "meant"), [("digitz", "digits"), ("cifar10", "CIFAR10"), ("torchvision:MNST", "MNIST")]
)
def test_a_misspelt_name_gets_a_suggestion(name, meant):
    with pytest.raises(FileNotFoundError, match=f"source='{name}'.*Did you mean '{meant}'"):
        open_path(name)


def test_a_name_unlike_any_gets_the_list_of_kinds():
    with pytest.raises(FileNotFoundError, match="Accepted are 'digits'") as caught:
        open_path("zzzzzzzz")
    assert "Did you mean" not in str(caught.value)


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "data.zip").write_bytes(b"")
    with pytest.raises(ValueError, match=r"kind '\.zip'.*Accepted are"):
        open_path(tmp_path / "data.zip")


def test_root_is_where_paths_start(write_images):
    root = write_images({"set/1.png": 1})
    assert colours(open_source("set", None, str(root), download=False).train) == [1]


# ------------------------------------------------------------------ torchvision


def test_torchvision_by_name(monkeypatch, tmp_path):
    from torchvision import datasets

    class MNIST(TensorDataset):
        classes = ("zero", "one")

        def __init__(self, root: str, train: bool = True, download: bool = False) -> None:
            assert (root, download) == (str(tmp_path), False)
            self.targets = torch.tensor([1, 0, 1] if train else [0])
            super().__init__(torch.full((len(self.targets), 1, 4, 4), 9, dtype=torch.uint8))

    monkeypatch.setattr(datasets, "MNIST", MNIST)
    for name in ("MNIST", "torchvision:MNIST"):
        source = open_source(name, None, str(tmp_path), download=False)
        assert source.train.labels.tolist() == [1, 0, 1]
        assert source.test.labels.tolist() == [0]
        assert source.test.class_names == ["zero", "one"]


def test_torchvision_with_named_splits_takes_the_first_that_exists(monkeypatch):
    from torchvision import datasets

    class DTD(TensorDataset):
        def __init__(self, root: str, split: str = "train") -> None:
            if split not in ("trainval", "val"):
                raise ValueError("unknown split")
            self._labels = [0] if split == "trainval" else [0, 0]
            super().__init__(torch.zeros(len(self._labels), 1, 2, 2, dtype=torch.uint8))

    monkeypatch.setattr(datasets, "DTD", DTD)
    source = open_path("DTD")
    assert (len(source.train.images), len(source.test.images)) == (1, 2)


def test_a_missing_torchvision_set_says_how_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no complete copy of CIFAR10.*download=True"):
        open_source("CIFAR10", None, str(tmp_path), download=False)


# ------------------------------------------------------------------ folders


def test_folder_with_splits_and_classes(write_images):
    root = write_images(
        {
            "train/cat/b.png": 2,
            "train/cat/a.png": 1,
            "train/ant/deep/c.PNG": 3,
            "test/cat/d.png": 4,
            "train/cat/.x.png": 9,
        }
    )
    source = open_path(root)
    assert source.train.class_names == ["ant", "cat"]
    assert colours(source.train) == [3, 1, 2]
    assert source.train.labels.tolist() == [0, 1, 1]
    assert (colours(source.test), source.test.labels.tolist()) == ([4], [1])  # cat is 1, though alone in test
    assert source.validation is None


def test_folder_with_three_splits_uses_its_validation_split(write_images):
    root = write_images({"train/a/1.png": 1, "val/a/2.png": 2, "test/a/3.png": 3})
    source = open_path(root)
    assert [colours(s) for s in (source.train, source.validation, source.test)] == [[1], [2], [3]]


def test_validation_stands_for_a_missing_test_split(write_images):
    source = open_path(write_images({"train/a/1.png": 1, "valid/a/2.png": 2}))
    assert source.validation is None
    assert colours(source.test) == [2]


def test_class_folders_alone_and_plain_images(write_images, tmp_path):
    write_images({"labelled/a/1.png": 1, "labelled/b/2.png": 2, "plain/1.png": 3})
    labelled, plain = open_path(tmp_path / "labelled"), open_path(tmp_path / "plain")
    assert (labelled.train.labels.tolist(), labelled.test) == ([0, 1], None)
    assert (plain.train.labels, plain.train.class_names, colours(plain.train)) == (None, [], [3])


def test_empty_and_mixed_folders_are_refused(write_images, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no images in .*empty.*\.png"):
        open_path(tmp_path / "empty")
    write_images({"mixed/1.png": 1, "mixed/a/2.png": 2, "gap/a/1.png": 1})
    with pytest.raises(ValueError, match=r"1\.png.*side by side"):
        open_path(tmp_path / "mixed")
    (tmp_path / "gap" / "b").mkdir()
    with pytest.raises(ValueError, match=r"no images in the class folder .*b"):
        open_path(tmp_path / "gap")


# ------------------------------------------------------------------ lists


@pytest.mark.parametrize(
    ("name", "text", "labels", "names"),
    [
        ("a.csv", "1.png,dog\n2.png,cat\n", [1, 0], ["cat", "dog"]),
        ("a.csv", "path,label\n1.png, 1\n\n2.png, 0\n", [1, 0], ["0", "1"]),
        ("a.tsv", "1.png\t3\n2.png\t0\n", [1, 0], ["0", "3"]),
        ("a.txt", "1.png\tdog\n2.png\tcat", [1, 0], ["cat", "dog"]),
        ("a.txt", "1.png\n2.png\n", None, []),
        ("a.csv", '"1.png",dog\n2.png,"a, b"\n', [1, 0], ["a, b", "dog"]),
    ],
)
def test_lists(write_images, name, text, labels, names):
    root = write_images({"1.png": 1, "2.png": 2})
    (root / name).write_text(text)
    split = open_path(root / name).train
    assert colours(split) == [1, 2]
    assert (split.labels if labels is None else split.labels.tolist()) == labels
    assert split.class_names == names


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("", ValueError, "no image in the list"),
        ("1.png,0\n1.png\n", ValueError, "line 2 of .*'1.png'"),
        ("1.png,0,5\n", ValueError, "line 1"),
        ("1.png,\n", ValueError, "line 1"),
        ("1.png,0\nmissing.png,1\n", FileNotFoundError, "missing.png, which line 2"),
        ("1.png,0\n1.png,-1\n", ValueError, "has the label -1, and 1 of 2 labels"),
    ],
)
def test_faults_of_lists_are_named_by_line(write_images, text, error, message):
    root = write_images({"1.png": 1})
    (root / "a.csv").write_text(text)
    with pytest.raises(error, match=message):
        open_path(root / "a.csv")


def test_a_list_for_testing_shares_the_classes_of_training(write_images):
    root = write_images({"1.png": 1, "2.png": 2})
    (root / "train.csv").write_text("1.png,dog\n2.png,cat\n")
    (root / "test.csv").write_text("1.png,dog\n")
    source = open_path(root / "train.csv", root / "test.csv")
    assert source.test.labels.tolist() == [1]
    (root / "test.csv").write_text("1.png,bird\n")
    with pytest.raises(
        ValueError, match=r"1 classes of the test split, 'bird' for one.*the 2 of the training"
    ):
        open_path(root / "train.csv", root / "test.csv")


def test_numbered_test_classes_must_occur_in_training(write_images):
    root = write_images({"1.png": 1, "2.png": 2})
    (root / "train.csv").write_text("1.png,0\n2.png,2\n")
    (root / "test.csv").write_text("1.png,2\n")
    test = open_path(root / "train.csv", root / "test.csv").test
    assert (test.labels.tolist(), test.class_names) == ([1], ["0", "2"])
    (root / "test.csv").write_text("1.png,1\n")
    with pytest.raises(ValueError, match="1 classes of the test split, '1' for one"):
        open_path(root / "train.csv", root / "test.csv")


# ------------------------------------------------------------------ Parquet


def test_parquet_folder(write_parquet, encode, tmp_path):
    write_parquet("data/train-0.parquet", [encode(i) for i in (1, 2, 3)], [0, 1, 1], {"classes": "cat,dog"})
    write_parquet("data/train-1.parquet", [encode(4)], [0], {"classes": "cat,dog"})
    write_parquet("data/test-0.parquet", [encode(5)], [0], {"classes": "dog,cat"})
    source = open_path(tmp_path / "data")
    assert colours(source.train) == [1, 2, 3, 4]
    assert source.train.labels.tolist() == [0, 1, 1, 0]
    assert source.test.labels.tolist() == [1]  # dog comes first in this file only
    assert source.train.images.where(3).endswith("train-1.parquet, row 0")
    assert source.train.images.where(2).endswith("train-0.parquet, row 2")


@pytest.mark.parametrize(
    "metadata",
    [
        {"classes": "cat,dog"},
        {"classes": '["cat", "dog"]'},
        {
            "huggingface": json.dumps(
                {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
            )
        },
    ],
)
def test_parquet_class_names(write_parquet, encode, metadata):
    path = write_parquet("a.parquet", [encode(1)], [0], metadata, column="img")
    assert open_path(path).train.class_names == ["cat", "dog"]


def test_parquet_without_labels_or_names(write_parquet, encode):
    assert open_path(write_parquet("a.parquet", [encode(1)])).train.labels is None
    assert open_path(write_parquet("b.parquet", [encode(1)] * 2, [0, 2])).train.class_names == ["0", "2"]


def test_faults_of_parquet_files_are_named(write_parquet, encode, tmp_path):
    import pyarrow as pa

    cases = {
        "no column 'image'.*picture, label": {"column": "picture", "labels": [0]},
        "type double and 0 missing values in the column 'label'": {
            "labels": [0.5],
            "label_type": pa.float64(),
        },
        "type int64 and 1 missing": {"labels": [None]},
        "row 0 has the label 2, and 1 of 1 labels.*from 0 to 1": {
            "labels": [2],
            "metadata": {"classes": "a,b"},
        },
    }
    for message, options in cases.items():
        with pytest.raises(ValueError, match=message):
            open_path(write_parquet("a.parquet", [encode(1)], **options))
    (tmp_path / "b.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match=r"cannot read .*b\.parquet as Parquet"):
        open_path(tmp_path / "b.parquet")
    with pytest.raises(FileNotFoundError, match="none whose name begins with 'train'"):
        open_path(tmp_path)


# ------------------------------------------------------------------ data sets


class Items(Dataset):
    def __init__(self, items, **attributes) -> None:
        self.items = items
        self.__dict__.update(attributes)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


GREY = torch.full((1, 4, 4), 7, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("items", "labels"),
    [
        ([GREY, GREY], None),
        ([(GREY, 1), (GREY, torch.tensor(0))], [1, 0]),
        ([{"image": GREY, "label": 1}, {"img": GREY, "label": 0}], [1, 0]),
        ([{"image": GREY}], None),
    ],
)
def test_items_of_data_sets(items, labels):
    split = open_source(Items(items), None, None, download=False).train
    assert colours(split) == [7] * len(items)
    assert (split.labels if labels is None else split.labels.tolist()) == labels


def test_targets_are_used_unless_they_are_transformed():
    items = [(GREY, 1), (GREY, 0)]
    listed = Items(items, targets=[0, 1], classes=["a", "b"])
    assert open_source(listed, None, None, download=False).train.labels.tolist() == [0, 1]
    listed.target_transform = lambda label: 1 - label
    assert open_source(listed, None, None, download=False).train.labels.tolist() == [1, 0]
    part = Subset(Items(items, targets=[0, 1]), [1])
    assert open_source(part, None, None, download=False).train.labels.tolist() == [0]


@pytest.mark.parametrize("label", ["cat", 1.5, (1, 2)])
def test_labels_that_are_no_integers_are_refused(label):
    with pytest.raises(ValueError, match=r"at Items\[1\]; labels must be integers"):
        open_source(Items([(GREY, 0), (GREY, label)]), None, None, download=False)


def test_empty_data_sets_and_streams_without_length_are_refused():
    with pytest.raises(ValueError, match="no images"):
        open_source(Items([]), None, None, download=False)
    with pytest.raises(ValueError, match="a length and items by number"):
        open_source(iter([]), None, None, download=False)


# ------------------------------------------------------------------ splitting


@given(
    counts=st.lists(st.integers(0, 30), min_size=1, max_size=6).filter(any),
    fraction=st.floats(0, 0.99),
    seed=st.integers(0, 9),
)
def test_stratified_split_gives_every_class_its_share(counts, fraction, seed):
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))]
    large, small = stratified_split(len(labels), labels, fraction, seed)
    assert len(small) == round(fraction * len(labels))
    assert sorted([*large.tolist(), *small.tolist()]) == list(range(len(labels)))
    for label, count in enumerate(counts):
        assert abs((labels[small] == label).sum() - count * len(small) / len(labels)) <= 1
    again = stratified_split(len(labels), labels, fraction, seed)
    assert torch.equal(small, again[1])


def test_stratified_split_is_random_by_seed_within_a_class():
    parts = {tuple(stratified_split(60, torch.arange(60) % 3, 0.2, seed)[1].tolist()) for seed in range(5)}
    assert len(parts) == 5
    unlabelled = stratified_split(60, None, 0.2, 0)[1]
    assert len(unlabelled) == 12
