"""Folders as people have them: names of splits, other endings, other files, Parquet from Spark and elsewhere."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from contrastive.data import ImageData, check_data
from contrastive.data.files import PICTURES, readable
from contrastive.data.sources import open_source
from contrastive.data.splits import split_of
from contrastive.errors import FileMissing, InvalidValue


def opened(path, test=None):
    return open_source(str(path), test and str(test), None, download=False)


def sizes(source) -> tuple[int, ...]:
    return tuple(0 if s is None else len(s.images) for s in (source.train, source.validation, source.test))


# ------------------------------------------------------------------ splits


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *[
            (name, "train")
            for name in ("train", "Train", "TRAINING", "train_set", "images-train", "train2017")
        ],
        *[
            (name, "validation")
            for name in ("val", "Valid", "validation", "dev", "Validation Set", "val2017")
        ],
        *[(name, "test") for name in ("test", "Test", "testing", "test_images", "eval")],
        *[
            (name, None)
            for name in ("trained", "trainer", "cat", "2017", "valley", "testimony", "device", "contest")
        ],
    ],
)
def test_spellings_of_splits(name, split):
    assert split_of(name) == split


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (("Train", "Test"), (2, 0, 2)),
        (("training", "validation"), (2, 0, 2)),
        (("TRAIN", "Val", "Test"), (2, 2, 2)),
        (("train", "dev"), (2, 0, 2)),
        (("train", "dev", "test"), (2, 2, 2)),
        (("train2017", "val2017"), (2, 0, 2)),
    ],
)
def test_folders_called_like_splits_are_splits(write_images, folders, expected):
    root = write_images({f"{split}/{c}/{split}.png": 1 for split in folders for c in ("cat", "dog")})
    source = opened(root)
    assert sizes(source) == expected
    assert source.train.class_names == ["cat", "dog"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            ["val/cat/1.png", "test/cat/1.png"],
            "test and val .* called like splits, and no folder to train on",
        ),
        (["Test/1.png", "cat/1.png"], "Test .* called like splits, and no folder to train on"),
        (["train/cat/1.png", "Training/cat/1.png"], "two folders for the train split"),
        (["train/cat/1.png", "val/cat/1.png", "dev/cat/1.png"], "two folders for the validation split"),
        (["train/1.png", "bus/1.png", "car/1.png"], "cannot tell whether .*train is a split or a class.*bus"),
        (["pets/train/cat/1.png", "pets/test/cat/1.png"], "Give .*pets as the source"),
        (["cat/train/1.png", "cat/test/1.png", "dog/train/1.png"], "Put the splits above the classes"),
    ],
)
def test_splits_are_never_taken_for_classes(write_images, files, message):
    root = write_images(dict.fromkeys(files, 1))
    with pytest.raises(InvalidValue, match=message):
        opened(root)


def test_classes_called_like_splits_have_a_way(write_images):
    root = write_images({f"train/{c}/1.png": 1 for c in ("bus", "car", "train")})
    assert opened(root).train.class_names == ["bus", "car", "train"]


def test_what_lies_beside_splits_is_named(write_images):
    root = write_images({"train/cat/1.png": 1, "test/cat/1.png": 1, "masks/1.png": 1, "masks/2.png": 1})
    (root / "README.md").write_text("pets")
    data = ImageData(str(root))
    assert data.notes_of_source == {"passed over": "2 pictures in masks, 1 .md"}


def test_a_test_source_with_splits_gives_its_test_split(write_images, tmp_path):
    write_images({"a/cat/1.png": 1, "b/train/cat/1.png": 1, "b/train/cat/2.png": 1, "b/test/cat/3.png": 3})
    source = opened(tmp_path / "a", tmp_path / "b")
    assert [source.test.images.where(i) for i in range(len(source.test.images))] == [
        str(tmp_path / "b/test/cat/3.png")
    ]


def test_folders_by_date_can_be_read_without_labels(write_images):
    root = write_images({"2021/01/1.png": 1, "2021/02/2.png": 2, "2022/01/3.png": 3, "4.png": 4})
    data = ImageData(str(root), labels=False, validation_fraction=0)
    assert (data.known.train_size, data.known.train_labels, data.class_names) == (4, None, [])
    with pytest.raises(InvalidValue, match=r"side by side.*labels=False"):
        _ = ImageData(str(root)).known


# ------------------------------------------------------------------ endings


def test_every_picture_that_pillow_reads_is_read(tmp_path):
    (tmp_path / "a").mkdir()
    made = []
    for ending in sorted(readable()):
        kind = Image.EXTENSION[ending]
        if kind in Image.SAVE and kind != "PFM":
            mode = "1" if ending == ".pbm" else "RGB"
            try:
                Image.fromarray(np.zeros((8, 8, 3), np.uint8)).convert(mode).save(
                    tmp_path / f"a/x{ending}", kind
                )
            except (OSError, KeyError, ValueError):
                (tmp_path / f"a/x{ending}").unlink(missing_ok=True)
                continue
            made.append(ending)
    assert {".png", ".jfif", ".jpe", ".jpg", ".tif", ".webp"} <= set(made)
    assert readable() <= PICTURES
    report = check_data(ImageData(str(tmp_path), size=8))
    assert report.ok
    assert f"{len(made)} images, 0 of them unreadable" in str(report)


def test_other_pictures_and_files_are_counted_and_named(write_images):
    root = write_images({"cat/1.png": 1, "cat/.hidden.png": 1, "cat/.ipynb_checkpoints/1.png": 1})
    for name in ("cat/2.cr2", "cat/3.CR2", "cat/notes.txt", "LICENSE"):
        (root / name).write_bytes(b"x")
    data = ImageData(str(root))
    text = str(check_data(data))
    assert "passed over: train: 2 .cr2, 2 hidden pictures, 1 .txt, 1 without an ending" in text
    assert "warning: train: " in text
    assert "The data are fine." not in text
    assert check_data(data).ok
    assert "does not read .cr2 here: convert" in data.notes["warning"]


def test_a_folder_without_pictures_says_what_it_holds(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat/1.nef").write_bytes(b"x")
    with pytest.raises(FileMissing, match=r"no images in .*, which holds 1 \.nef"):
        opened(tmp_path)


# ------------------------------------------------------------------ Parquet


def png_bytes(value: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), value, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def write_table(path, columns, metadata=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    count = len(next(iter(columns.values())))
    table = pa.table({"image": [png_bytes(i) for i in range(count)], **columns})
    pq.write_table(table.replace_schema_metadata(metadata), path)


def test_folders_of_spark_as_source_and_inside_it(tmp_path):
    for split, labels in (("train", [0, 1]), ("Test", [1])):
        write_table(tmp_path / f"set/{split}.parquet/part-0.snappy.parquet", {"label": labels})
        (tmp_path / f"set/{split}.parquet/_SUCCESS").write_bytes(b"")
    assert sizes(opened(tmp_path / "set")) == (2, 0, 1)
    assert sizes(opened(tmp_path / "set/train.parquet")) == (2, 0, 0)
    write_table(tmp_path / "plain/part-0.parquet", {"label": [0, 1]})
    write_table(tmp_path / "plain/part-1.parquet", {"label": [0, 2, 2]})
    source = opened(tmp_path / "plain")
    assert sizes(source) == (5, 0, 0)
    assert source.train.class_names == ["0", "1", "2"]
    assert source.train.labels.tolist() == [0, 1, 0, 2, 2]


def test_spellings_of_parquet_splits_and_the_rest_is_named(tmp_path):
    for name in ("Train-0", "dev-0", "test-0", "extra"):
        write_table(tmp_path / f"{name}.parquet", {"label": [0, 1]})
    data = ImageData(str(tmp_path))
    assert sizes(data.opened) == (2, 2, 2)
    assert "1 Parquet files of no split" in data.notes["passed over"]
    assert "extra.parquet" in data.notes["passed over"]


@pytest.mark.parametrize(
    ("columns", "names"),
    [
        ({"target": [3, 1, 3]}, ["1", "3"]),
        ({"class": ["dog", "cat", "dog"]}, ["cat", "dog"]),
        ({"Category": pa.array(["dog", "cat", "dog"]).dictionary_encode()}, ["cat", "dog"]),
        ({"class": ["x", "x", "x"], "label": [1, 2, 1]}, ["1", "2"]),
    ],
)
def test_columns_of_labels_are_found_and_told(tmp_path, columns, names):
    write_table(tmp_path / "a.parquet", {"width": [4, 4, 4], **columns})
    data = ImageData(str(tmp_path / "a.parquet"), validation_fraction=0)
    assert data.class_names == names
    used = "label" if "label" in columns else next(iter(columns))
    assert data.notes["columns"].startswith(f"train: image, {used} of a.parquet (not used: width")


def test_columns_of_parquet_can_be_named(tmp_path):
    write_table(tmp_path / "a.parquet", {"kind": [5, 6], "label": [0, 0]})
    assert ImageData(str(tmp_path / "a.parquet"), label_column="kind").class_names == ["5", "6"]
    assert ImageData(str(tmp_path / "a.parquet"), labels=False).known.train_labels is None
    with pytest.raises(InvalidValue, match=r"no column 'sort' in .*a\.parquet; it has image, kind, label"):
        _ = ImageData(str(tmp_path / "a.parquet"), label_column="sort").known


@pytest.mark.parametrize(
    ("metadata", "names"),
    [
        ({"huggingface": '{"info": {"features": null}}'}, ["0", "1"]),
        ({"huggingface": '{"info": null}'}, ["0", "1"]),
        ({"huggingface": '{"info": {"features": {"label": {"names": ["b", "a"]}}}}'}, ["b", "a"]),
        ({"huggingface": "[]"}, ["0", "1"]),
    ],
)
def test_metadata_without_names(tmp_path, metadata, names):
    write_table(tmp_path / "a.parquet", {"label": [0, 1]}, metadata)
    assert opened(tmp_path / "a.parquet").train.class_names == names


@pytest.mark.parametrize("metadata", [{"huggingface": "{"}, {"classes": '["a"'}, {"classes": b"\xff"}])
def test_broken_metadata_are_named(tmp_path, metadata):
    write_table(tmp_path / "a.parquet", {"label": [0, 1]}, metadata)
    with pytest.raises(InvalidValue, match=r"class names in the metadata of .*a\.parquet"):
        opened(tmp_path / "a.parquet")


def test_a_file_that_breaks_off_in_its_data_is_named(tmp_path):
    write_table(tmp_path / "a.parquet", {"label": list(range(200))})
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    content[4:400] = b"\xff" * 396
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(InvalidValue, match=r"cannot read .*a\.parquet as Parquet"):
        opened(tmp_path / "a.parquet")


def test_numbers_without_names_keep_their_meaning_over_files(tmp_path):
    write_table(tmp_path / "train-0.parquet", {"label": [5, 7]})
    write_table(tmp_path / "train-1.parquet", {"label": [7, 9]})
    write_table(tmp_path / "test-0.parquet", {"label": [9, 5]})
    source = opened(tmp_path)
    assert source.train.labels.tolist() == [0, 1, 1, 2]
    assert source.test.labels.tolist() == [2, 0]
