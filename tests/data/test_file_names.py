"""Images in files keep the names of these, in the order of the rows and relative to the source."""

import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from contrastive.data import ImageData, TensorData

TREE = {
    "train/cat/1.png": 10,
    "train/dog/a b.png": 20,
    "val/cat/1.png": 30,
    "val/dog/1.png": 40,
    "test/cat/9.png": 50,
    "test/dog/9.png": 60,
}


def names(source, **options) -> tuple[list | None, list | None]:
    data = ImageData(str(source), size=8, num_workers=0, **options)
    found = data.file_names("train"), data.file_names("test")
    for split, given in zip((data.inputs.train, data.inputs.test), found, strict=True):
        assert given is None or len(given) == len(split)
    return found


def test_of_a_folder_with_splits(write_images):
    root = write_images(TREE)
    train, test = names(root)
    assert train == [name for name in TREE if not name.startswith("test")]  # validation follows training
    assert test == ["test/cat/9.png", "test/dog/9.png"]
    data = ImageData(str(root), size=8, num_workers=0, in_memory=True)
    for split, files in (("train", train), ("test", test)):
        values = getattr(data.inputs, split)[:, 0, 0, 0].tolist()
        assert values == [TREE[name] for name in files]


def test_of_one_folder_and_of_a_relative_one(write_images, monkeypatch):
    root = write_images({"photos/x/1.png": 1, "photos/y/1.png": 2})
    monkeypatch.chdir(root)
    for source in ("photos", "./photos/", root / "photos"):
        assert names(source) == (["x/1.png", "y/1.png"], None)
    monkeypatch.chdir(root / "photos")
    assert names(".") == (["x/1.png", "y/1.png"], None)
    assert names("y") == (["1.png"], None)


def test_of_lists(write_images, tmp_path, monkeypatch):
    root = write_images({"lists/in/1.png": 1, "away/2.png": 2, "away/3.png": 3})
    far = (root / "away/3.png").as_posix()
    (root / "lists/files.csv").write_text(f"in/1.png\n../away/2.png\n{far}\n{root}/lists/in/1.png\n")
    expected = ["in/1.png", "../away/2.png", far, "in/1.png"]
    assert names(root / "lists/files.csv")[0] == expected
    monkeypatch.chdir(root / "lists")
    assert names("files.csv")[0] == expected


def test_of_a_test_set_elsewhere(write_images, tmp_path):
    root = write_images({"a/1.png": 1, "a/2.png": 2, "b/7.png": 7})
    assert names(root / "a", test=str(root / "b")) == (["1.png", "2.png"], ["7.png"])


@pytest.mark.skipif(os.name != "posix", reason="file names are texts here")
def test_a_name_that_is_no_unicode(write_images, tmp_path):
    root = write_images({"1.png": 1})
    try:
        os.rename(root / "1.png", os.fsencode(root) + b"/caf\xe9.png")
    except OSError:
        pytest.skip("this file system takes only UTF-8")
    assert names(root)[0] == ["caf?.png"]


def parquet(path, encode, columns, paths=None):
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": encode(10 * i), "path": name} for i, name in enumerate(paths or [None, None, None])]
    pq.write_table(pa.table({"image": pa.array(rows, struct), **columns}), path, row_group_size=2)
    return path


def test_of_parquet(tmp_path, encode):
    file = tmp_path / "a.parquet"
    within, beside = ["x.png", None, "z.png"], ["d/x.png", "d/y.png", "d/z.png"]
    assert names(parquet(file, encode, {}))[0] is None
    assert names(parquet(file, encode, {}, within))[0] == within
    assert names(parquet(file, encode, {"File Name": beside}, within))[0] == beside
    assert names(parquet(file, encode, {"file": [1, 2, 3]}, within))[0] == within  # numbers are no names
    assert names(parquet(file, encode, {"path": beside, "label": [0, 1, 0]}))[0] == beside


def test_what_is_in_no_files_has_none():
    assert names("digits") == (None, None)
    data = TensorData(torch.zeros(10, 3), torch.zeros(10).long())
    assert data.file_names("train") is None
