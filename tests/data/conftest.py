import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def picture(value: int, size: tuple[int, int] = (8, 8)) -> Image.Image:
    """An RGB image of one colour, (value, value + 1, value + 2)."""
    return Image.fromarray(np.full((*size, 3), [value, value + 1, value + 2], dtype=np.uint8))


def png(value: int, size: tuple[int, int] = (8, 8)) -> bytes:
    stream = io.BytesIO()
    picture(value, size).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def write_images(tmp_path: Path):
    """Write images of one colour below tmp_path: write_images({"train/cat/1.png": 10})."""

    def write(images: dict[str, int], size: tuple[int, int] = (8, 8)) -> Path:
        for name, value in images.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            picture(value, size).save(path)
        return tmp_path

    return write


@pytest.fixture
def write_parquet(tmp_path: Path):
    """Write a Parquet file of encoded images in Hugging Face's layout."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def write(name, contents, labels=None, metadata=None, column="image", label_type=None) -> Path:
        image_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        columns = {column: pa.array([{"bytes": c, "path": None} for c in contents], image_type)}
        if labels is not None:
            columns["label"] = pa.array(labels, label_type or pa.int64())
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        # two row groups, so that chunks of the column are crossed
        pq.write_table(pa.table(columns).replace_schema_metadata(metadata), path, row_group_size=2)
        return path

    return write


@pytest.fixture
def encode():
    """Encode one-colour images as PNG: encode(10)."""
    return png
