"""Lists of files as people write them: columns, encodings, newlines, repeated images."""

import pytest

from contrastive.data import ImageData, check_data
from contrastive.data.lists import list_split
from contrastive.errors import InvalidValue


@pytest.fixture
def pictures(write_images):
    return write_images({"1.png": 1, "2.png": 2, "été.png": 3, "a;b.png": 4})


def written(root, text, name="list.csv", encoding="utf-8"):
    (root / name).write_bytes(text.encode(encoding))
    return root / name


def labels_of(split) -> list[str]:
    return [split.class_names[label] for label in split.labels.tolist()]


@pytest.mark.parametrize(
    "text",
    [
        "label,path\nb,1.png\na,2.png\n",
        "File Name,Class\n1.png,b\n2.png,a\n",
        "id,filename,width,target\n7,1.png,8,b\n8,2.png,8,a\n",
        "filepath,species\n1.png,b\n2.png,a\n",
        "path;label\n1.png;b\n2.png;a\n",
        "1.png;b\n2.png;a\n",
        "path,label\r1.png,b\r2.png,a\r",
        "1.png,b\r\n2.png,a",
    ],
)
def test_columns_are_found(pictures, text):
    split = list_split(written(pictures, text))
    assert labels_of(split) == ["b", "a"]
    assert [path.name for path in split.images.paths] == ["1.png", "2.png"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings_that_can_be_told_apart_are_read(pictures, encoding):
    split = list_split(written(pictures, "été.png,hiver\u2028noël\n1.png,x\n", encoding=encoding))
    assert labels_of(split) == ["hiver\u2028noël", "x"]


def test_columns_can_be_named_and_are_told(pictures, capsys):
    path = written(pictures, "id,where,colour,label\n1,1.png,red,b\n2,2.png,blue,a\n")
    data = ImageData(str(path), image_column="where", label_column="colour", validation_fraction=0)
    assert data.class_names == ["blue", "red"]
    assert "columns: train: where, colour of list.csv (not used: id, label)" in str(check_data(data))
    assert list_split(written(pictures, "path,width\n1.png,8\n"), labels=False).labels is None


@pytest.mark.parametrize(
    ("text", "encoding", "message"),
    [
        ("1.png,a\n2.png,été\n", "latin-1", "line 2 of .*list.csv: its byte 0xe9 is not UTF-8. Save"),
        ("1.png,a\n2.png,b\n", "utf-16-le", "line 1 of .*list.csv: it holds a null character"),
        (
            "1.png,a\n1.png,a\n./1.png,b\n",
            "utf-8",
            "line 3 of .*'./1.png' the label 'b', and line 1 gave it 'a'",
        ),
        ('1.png,a\n"2.png,b\n1.png,c\n', "utf-8", "cannot read line 3 of .*list.csv"),
        ("path,width,height\n1.png,8,8\n", "utf-8", "no column 'label' in .*list.csv.*labels=False"),
        ("1.png,a\n2.png,-\n3.png,b,c\n", "utf-8", "line 3 of .*list.csv: '3.png,b,c'"),
    ],
)
def test_what_cannot_be_read_is_named_by_file_and_line(pictures, text, encoding, message):
    path = written(pictures, text, encoding=encoding)
    (pictures / "3.png").write_bytes(b"")
    with pytest.raises(InvalidValue, match=message):
        list_split(path)


def test_a_column_that_is_not_there_is_named(pictures):
    path = written(pictures, "path,label\n1.png,a\n")
    with pytest.raises(InvalidValue, match=r"no column 'colour' in .*list\.csv"):
        list_split(path, label_column="colour")
    with pytest.raises(
        InvalidValue, match=r"no column 'where' in .*list\.csv; its first line has 'path, label'"
    ):
        list_split(path, image_column="where")


def test_a_line_that_is_never_closed_is_not_printed_whole(pictures):
    path = written(pictures, '"1.png,a\n' + "2.png,b\n" * 5000)
    with pytest.raises(InvalidValue) as caught:
        list_split(path)
    assert len(str(caught.value)) < 400


def test_images_that_are_listed_twice_are_counted(pictures):
    data = ImageData(str(written(pictures, "1.png,a\n2.png,b\n1.png,a\n")))
    assert "1 lines of list.csv name an image for a second time" in data.notes["repeated"]
