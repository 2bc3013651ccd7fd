"""Embeddings on disk: whole, resumed, by several processes, and as the source of an index."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from contrastive import ConvEncoder
from contrastive.encoders import save_encoder
from contrastive.retrieval import Embeddings, Index, embed, embed_run
from contrastive.retrieval.shards import MANIFEST, shard_path


def double(inputs: torch.Tensor) -> torch.Tensor:
    return 2 * inputs.float().flatten(1)


INPUTS = torch.arange(60.0).reshape(20, 3) + 1


def contents(folder: Path) -> tuple[list, np.ndarray, dict]:
    vectors, ids, tables = zip(*Embeddings(folder, check=True).batches(7), strict=True)
    columns = {} if tables[0] is None else pa.concat_tables(tables).to_pydict()
    return np.concatenate(ids).tolist(), np.concatenate(vectors), columns


def test_everything_is_written_in_order(tmp_path, capsys):
    ids = [f"sample {i}" for i in range(20)]
    found = embed(
        double, INPUTS, tmp_path / "e", ids=ids, metadata={"n": range(20)}, shard_size=6, batch_size=4
    )
    assert (len(found), found.dim, found.manifest["columns"]) == (20, 3, ["n"])
    names, vectors, columns = contents(tmp_path / "e")
    assert names == ids
    assert (vectors == 2 * INPUTS.numpy()).all()
    assert columns == {"n": list(range(20))}
    assert "embedded 20 of 20 here" in capsys.readouterr().out
    index = Index.from_embeddings(tmp_path / "e", metric="euclidean")
    assert index.search(2 * INPUTS[3:5], 1)[1][:, 0].tolist() == ["sample 3", "sample 4"]
    assert index.metadata["n"].to_pylist() == list(range(20))


def test_only_missing_shards_are_encoded_again(tmp_path):
    calls = []

    def counted(inputs):
        calls.append(inputs[0, 0].item())
        if len(calls) == 3:
            raise KeyboardInterrupt
        return double(inputs)

    with pytest.raises(KeyboardInterrupt):
        embed(counted, INPUTS, tmp_path / "e", shard_size=6)
    with pytest.raises(FileNotFoundError, match="holds unfinished embeddings"):
        Embeddings(tmp_path / "e")
    embed(counted, INPUTS, tmp_path / "e", shard_size=6)
    assert calls == [1, 19, 37, 37, 55]
    assert contents(tmp_path / "e")[0] == list(range(20))
    embed(counted, INPUTS, tmp_path / "e", shard_size=6)
    assert len(calls) == 5


def test_another_run_does_not_go_on_here(tmp_path):
    embed(double, INPUTS, tmp_path / "e", fingerprint="a")
    with pytest.raises(ValueError, match="was begun with fingerprint 'a', this run has 'b'"):
        embed(double, INPUTS, tmp_path / "e", fingerprint="b")
    with pytest.raises(ValueError, match="was begun with count 20, this run has 5"):
        embed(double, INPUTS[:5], tmp_path / "e", fingerprint="a")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").touch()
    with pytest.raises(FileExistsError, match="holds something that is no embeddings"):
        embed(double, INPUTS, tmp_path / "photos")


def test_bad_input(tmp_path):
    with pytest.raises(ValueError, match="n has 3 values for 20 inputs"):
        embed(double, INPUTS, tmp_path / "e", metadata={"n": [1, 2, 3]})
    with pytest.raises(ValueError, match="shard_size=0"):
        embed(double, INPUTS, tmp_path / "e", shard_size=0)
    with pytest.raises(ValueError, match="NaN or infinite"):
        embed(lambda x: double(x) / 0, INPUTS, tmp_path / "e")
    with pytest.raises(ValueError, match="thumbnails need uint8 images"):
        embed(double, INPUTS, tmp_path / "f", thumbnails=True)


def test_damaged_shards_are_refused(tmp_path):
    embed(double, INPUTS, tmp_path / "e", shard_size=6)
    path = shard_path(tmp_path / "e", 1)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"part-000001.parquet is damaged or was changed"):
        Embeddings(tmp_path / "e")
    path.unlink()
    with pytest.raises(ValueError, match=r"part-000001.parquet is missing"):
        Embeddings(tmp_path / "e")
    (tmp_path / "e" / MANIFEST).unlink()
    embed(double, INPUTS, tmp_path / "e", shard_size=6)
    assert contents(tmp_path / "e")[0] == list(range(20))


def test_two_processes_write_one_set(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert embed(double, INPUTS, tmp_path / "e", shard_size=6) is None
    monkeypatch.setenv("RANK", "0")
    assert len(embed(double, INPUTS, tmp_path / "e", shard_size=6)) == 20
    alone = tmp_path / "alone"
    monkeypatch.delenv("WORLD_SIZE")
    embed(double, INPUTS, alone, shard_size=6)
    assert contents(alone)[0] == contents(tmp_path / "e")[0]
    assert (contents(alone)[1] == contents(tmp_path / "e")[1]).all()


def test_launched_processes_write_one_set(tmp_path):
    script = tmp_path / "job.py"
    script.write_text(
        "import torch\nfrom contrastive.retrieval import embed\n"
        "embed(lambda x: x * 2, torch.arange(60.0).reshape(20, 3) + 1, 'e', shard_size=3)\n"
    )
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        str(script),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (contents(tmp_path / "e")[1] == 2 * INPUTS.numpy()).all()


def test_a_run_embeds_its_data(tmp_path):
    save_encoder(ConvEncoder(in_channels=1, widths=(4, 8), blocks=(0, 0)), tmp_path / "run" / "encoder")
    (tmp_path / "run" / "config.yaml").write_text(
        "data:\n  class_path: contrastive.data.ImageData\n"
        "  init_args: {source: digits, size: 16, channels: 1, num_workers: 0}\n"
    )
    found = embed_run(tmp_path / "run", tmp_path / "e", split="test", device="cpu", shard_size=200)
    assert found.manifest["columns"] == ["label", "class", "thumbnail"]
    table = pq.read_table(found.paths[0])
    picture = Image.open(io.BytesIO(table["thumbnail"][0].as_py()))
    assert (picture.size, picture.mode) == ((16, 16), "L")
    index = Index.from_embeddings(tmp_path / "e", columns=["label"])
    assert index.fingerprint == found.manifest["fingerprint"]
    assert index.metadata.column_names == ["label"]
    with pytest.raises(ValueError, match="has no column 'colour'"):
        Index.from_embeddings(tmp_path / "e", columns=["colour"])


def test_an_index_of_codes_is_built_from_shards(tmp_path):
    rows = torch.randn(4000, 16, generator=torch.Generator().manual_seed(0))
    embed(lambda x: x, rows, tmp_path / "e", shard_size=1000)
    index = Index.from_embeddings(tmp_path / "e", factory="IVF16,PQ8x4", keep_vectors=True)
    index.tune(0.95, sample=100)
    exact = Index.from_embeddings(tmp_path / "e")
    queries = torch.randn(100, 16, generator=torch.Generator().manual_seed(1))
    truth, found = exact.search(queries, 10)[1], index.search(queries, 10)[1]
    assert np.mean([len(np.intersect1d(a, b)) for a, b in zip(truth, found, strict=True)]) >= 9
