"""Folders of indexes, embeddings and recommenders: several processes at a time, damage, and names that clash."""

import importlib.util
import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from contrastive.errors import FileInTheWay, InvalidValue
from contrastive.retrieval import Index, embed
from contrastive.retrieval import folder as folders
from contrastive.retrieval.index import KIND, VERSION
from contrastive.retrieval.locks import alone, if_unused, in_use
from contrastive.retrieval.run import search_index
from contrastive.retrieval.shards import Embeddings
from recsys import Recommender


def script(name: str) -> Any:
    path = Path(__file__).parents[2] / "scripts" / "reliability" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"reliability_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FLIPPED, FOLDERS = script("flipped_bits"), script("folders")


def build(count: int = 60, **options: Any) -> Index:
    return Index.build(np.random.default_rng(count).normal(size=(count, 8)).astype("f4"), **options)


def make_embeddings(folder: Path, count: int = 20) -> Embeddings | None:
    return embed(lambda x: x, torch.arange(3.0 * count).reshape(count, 3), folder, shard_size=10)


def edit(path: Path, **changes: Any) -> None:
    """Change a manifest as a text editor does, or as an earlier version wrote it: without a digest."""
    document = json.loads(path.read_text())
    document.pop("digest", None)
    for name, value in changes.items():
        document.pop(name) if value is ... else document.update({name: value})
    path.write_text(json.dumps(document))


# ---------------------------------------------------------------------- several processes


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
class TestProcesses:
    def test_simultaneous_saves_lose_nothing(self, tmp_path: Path) -> None:
        found = FOLDERS.simultaneous_saves(4, tmp_path)
        assert found == {"saves": 4, "failed": 0, "lost": 0, "leftovers": 0}

    def test_loads_beside_two_writers_do_not_fail(self, tmp_path: Path) -> None:
        things = [build(60), build(61)]
        found = FOLDERS.loads_beside_writers([[one] for one in things], Index.load, 150, tmp_path)
        assert (found["failed"], found["mixed"], found["failed_writers"]) == (0, 0, 0)
        assert found["most_versions"] < 6

    def test_a_recommender_is_loaded_beside_two_writers(self, tmp_path: Path) -> None:
        things = [FOLDERS.recommender_of(40), FOLDERS.recommender_of(50)]
        found = FOLDERS.loads_beside_writers([[one] for one in things], Recommender.load, 30, tmp_path)
        assert (found["failed"], found["mixed"], found["failed_writers"]) == (0, 0, 0)

    def test_a_killed_writer_holds_nobody_up(self, tmp_path: Path) -> None:
        target, held = tmp_path / "index", tmp_path / "held"
        build().save(target)
        number = os.fork()
        if not number:
            with alone(target):
                held.touch()
                time.sleep(60)
            os._exit(0)
        while not held.exists():
            time.sleep(0.01)
        os.kill(number, signal.SIGKILL)
        os.waitpid(number, 0)
        build(61).save(target)
        assert len(Index.load(target)) == 61


def test_a_writer_waits_for_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, under_way, go_on = tmp_path / "index", threading.Event(), threading.Event()
    original = folders.write_manifest

    def slow(path: Path, document: Any) -> None:
        if not under_way.is_set():
            under_way.set()
            assert go_on.wait(30)
        original(path, document)

    monkeypatch.setattr(folders, "write_manifest", slow)
    first = threading.Thread(target=build(60).save, args=(target,))
    first.start()
    assert under_way.wait(30)
    second = threading.Thread(target=build(61).save, args=(target,))
    second.start()
    second.join(0.2)
    assert second.is_alive()
    go_on.set()
    first.join(30)
    second.join(30)
    assert len(Index.load(target)) == 61
    assert len(list(target.glob("files-*"))) == 1


def test_a_version_stays_while_it_is_read_and_no_longer(tmp_path: Path) -> None:
    target = build(60).save(tmp_path / "index")

    def read(document: dict[str, Any], files: Path) -> list[str]:
        build(61).save(target)
        return sorted(path.name for path in files.iterdir())

    assert folders.read_folder(target, KIND, VERSION, read) == ["items.parquet", "vectors.f32"]
    assert len(list(target.glob("files-*"))) == 2
    build(62).save(target)
    assert len(list(target.glob("files-*"))) == 1
    assert len(Index.load(target)) == 62


@pytest.mark.parametrize("moment", ["before the files are found", "while they are read"])
def test_a_reader_whose_version_has_gone_reads_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    target = build(60).save(tmp_path / "index")
    name = "check_fields" if moment.startswith("before") else "check_files"
    original, calls = getattr(folders, name), []

    def replaced(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:  # as a writer of an earlier version does, who looks at no locks
            old = list(target.glob("files-*"))
            build(61).save(target)
            for one in old:
                for path in one.glob("*"):
                    path.unlink()
                if one.exists():
                    one.rmdir()
        return original(*args, **options)

    monkeypatch.setattr(folders, name, replaced)
    assert len(Index.load(target)) == 61


def test_locks_on_a_file_system_that_cannot_lock_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from contrastive.retrieval import locks

    original = locks._flock

    def files_only(descriptor: int, how: int) -> bool | None:
        import stat

        return None if stat.S_ISDIR(os.fstat(descriptor).st_mode) else original(descriptor, how)

    monkeypatch.setattr(locks, "_flock", files_only)
    with alone(tmp_path) as certain:
        assert certain
        assert (tmp_path / ".lock").is_file()
    build(60).save(tmp_path / "index")
    build(61).save(tmp_path / "index")
    assert len(Index.load(tmp_path / "index")) == 61
    monkeypatch.setattr(
        locks, "_flock", lambda *_: None
    )  # nothing can be locked: what is young is left alone
    build(62).save(tmp_path / "index")
    build(63).save(tmp_path / "index")
    assert len(Index.load(tmp_path / "index")) == 63
    kept = list((tmp_path / "index").glob("files-*"))
    assert len(kept) == 3
    for path in kept:
        os.utime(path, (0, 0))
    build(64).save(tmp_path / "index")
    assert len(list((tmp_path / "index").glob("files-*"))) == 1


def test_what_is_in_use_is_known(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    with in_use(path), in_use(path), if_unused(path) as free:
        assert not free
    with if_unused(path) as free:
        assert free
    with if_unused(tmp_path / "none") as free:
        assert free


def test_a_shard_under_way_is_left_to_its_writer(tmp_path: Path) -> None:
    folder = tmp_path / "embeddings"
    make_embeddings(folder)
    mine, killed = folder / ".part-000000.parquet.a", folder / ".part-000000.parquet.b"
    mine.touch()
    killed.touch()
    (folder / "manifest.json").unlink()
    with in_use(mine):
        make_embeddings(folder)
    assert mine.exists()
    assert not killed.exists()


def test_finished_embeddings_are_not_written_again(tmp_path: Path) -> None:
    make_embeddings(tmp_path / "e")
    before = (tmp_path / "e" / "manifest.json").stat()
    assert make_embeddings(tmp_path / "e") is not None
    after = (tmp_path / "e" / "manifest.json").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


# ---------------------------------------------------------------------- damage


@pytest.mark.parametrize("kind", FLIPPED.KINDS)
def test_no_flipped_bit_is_silent(tmp_path: Path, kind: str) -> None:
    make, read = FLIPPED.KINDS[kind]
    found = FLIPPED.try_flips(make(tmp_path / "saved"), read, 10, seed=1)
    assert (found["silent"], found["foreign"]) == (0, 0), found["where"]
    assert found["refused"] > 0


def test_a_search_says_what_it_does_not_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    build().save(tmp_path / "index")
    search_index(tmp_path / "index", id="3")
    assert "not compared" not in capsys.readouterr().err
    monkeypatch.setattr("contrastive.retrieval.run._CHECKED", 0)
    search_index(tmp_path / "index", id="3")
    assert "not compared with their checksums" in capsys.readouterr().err


@pytest.mark.parametrize("mmap", [False, True])
def test_folders_of_earlier_versions_are_read(tmp_path: Path, mmap: bool) -> None:
    target = build(metadata={"n": np.arange(60)}).save(tmp_path / "index")
    edit(target / "manifest.json")
    assert len(Index.load(target, mmap=mmap)) == 60
    make_embeddings(tmp_path / "e")
    edit(tmp_path / "e" / "manifest.json")
    assert len(Index.from_embeddings(tmp_path / "e")) == 20
    FOLDERS.recommender_of(40).save(tmp_path / "r")
    edit(tmp_path / "r" / "recommender.json", files=...)
    assert len(Recommender.load(tmp_path / "r")) == 40


WRONG = {
    "folder": [..., None, 3, "..", "files-a/../..", "files-gone"],
    "files": [..., None, [], {"items.parquet": 3}, {"items.parquet": {"bytes": "x", "sha256": "y"}}],
    "metric": [..., None, "angle", ["cosine"]],
    "dim": [..., None, "8", 0, 8.0, True, 7],
    "id": [..., None, "string", "float", []],
    "factory": [..., None, 5, "", "HNSW8"],
    "effort": [..., None, "x", -1],
    "rerank": [..., None, "a", -1, 0],
    "tuned": [..., 3, []],
    "fingerprint": [..., 3, []],
    "version": [..., "1", None, [1]],
    "kind": [..., None, 3, {}],
}


@pytest.mark.parametrize("name", WRONG)
def test_an_edited_manifest_of_an_index_is_refused(tmp_path: Path, name: str) -> None:
    target = build().save(tmp_path / "index")
    text = (target / "manifest.json").read_text()
    for value in WRONG[name]:
        edit(target / "manifest.json", **{name: value})
        with pytest.raises(InvalidValue, match=str(tmp_path)):
            Index.load(target)
        with pytest.raises(InvalidValue, match=str(tmp_path)):
            search_index(target, id="3")
        (target / "manifest.json").write_text(text)
    document = json.loads(text)
    (target / "manifest.json").write_text(json.dumps(document | {"effort": 3}))
    with pytest.raises(InvalidValue, match="digest that was recorded"):
        Index.load(target)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '"a"', "[" * 100_000, "\udcff"])
def test_what_is_no_manifest_is_refused(tmp_path: Path, text: str) -> None:
    content = text.encode(errors="surrogateescape")
    target = build().save(tmp_path / "index")
    make_embeddings(tmp_path / "e")
    FOLDERS.recommender_of(40).save(tmp_path / "r")
    for path, read in (
        (target / "manifest.json", Index.load),
        (tmp_path / "e" / "manifest.json", Index.from_embeddings),
        (tmp_path / "e" / "plan.json", make_embeddings),
        (tmp_path / "r" / "recommender.json", Recommender.load),
    ):
        path.write_bytes(content)
        with pytest.raises(InvalidValue, match=path.name):
            read(path.parent)


@pytest.mark.parametrize(
    ("name", "values"),
    {
        "dim": [..., "3", 0, 4],
        "columns": [..., None, [1], ["n"]],
        "files": [..., None, [], {"part-000000.parquet": {"bytes": 1, "sha256": "a"}}],
        "fingerprint": [..., 3],
        "kind": [..., 1],
        "version": [..., 2],
    }.items(),
)
def test_an_edited_manifest_of_embeddings_is_refused(tmp_path: Path, name: str, values: list[Any]) -> None:
    make_embeddings(tmp_path / "e")
    text = (tmp_path / "e" / "manifest.json").read_text()
    for value in values:
        edit(tmp_path / "e" / "manifest.json", **{name: value})
        with pytest.raises(InvalidValue, match=str(tmp_path)):
            Index.from_embeddings(tmp_path / "e")
        (tmp_path / "e" / "manifest.json").write_text(text)
    files = json.loads(text)["files"]
    files["part-000000.parquet"]["rows"] = 9
    edit(tmp_path / "e" / "manifest.json", files=files)
    with pytest.raises(InvalidValue, match=r"part-000000.parquet is not what manifest.json says"):
        Index.from_embeddings(tmp_path / "e")


@pytest.mark.parametrize(
    ("name", "values"),
    {
        "folder": [..., None, "..", "files-gone"],
        "max_length": [..., None, "8", 0, 9],
        "data": [..., 3],
        "histories": [..., 3, "a" * 64],
        "kind": [..., "recipes"],
        "version": [..., 2],
    }.items(),
)
def test_an_edited_record_of_a_recommender_is_refused(tmp_path: Path, name: str, values: list[Any]) -> None:
    FOLDERS.recommender_of(40).save(tmp_path / "r")
    text = (tmp_path / "r" / "recommender.json").read_text()
    for value in values:
        edit(tmp_path / "r" / "recommender.json", **{name: value})
        with pytest.raises(InvalidValue, match=str(tmp_path)):
            Recommender.load(tmp_path / "r")
        (tmp_path / "r" / "recommender.json").write_text(text)


# ---------------------------------------------------------------------- what cannot be saved, and where


@pytest.mark.parametrize("name", ["id", "__alive", "__place"])
def test_reserved_columns_are_refused(tmp_path: Path, name: str) -> None:
    for metadata in ({name: [1, 2]}, pa.table({name: [1, 2]})):
        with pytest.raises(InvalidValue, match=f"has a column '{name}'"):
            build(2, metadata=metadata)
    with pytest.raises(InvalidValue, match=f"has a column '{name}'"):
        embed(lambda x: x, torch.ones(2, 3), tmp_path / "e", metadata={name: [1, 2]})


def test_columns_that_cannot_be_saved_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidValue, match="two columns 'n'"):
        build(1, metadata=pa.table([pa.array([1]), pa.array([2])], names=["n", "n"]))
    with pytest.raises(InvalidValue, match=r"column 'n' of type .* cannot be saved"):
        build(1, metadata=pa.table({"n": pa.array([{}], pa.struct([]))}))
    with pytest.raises(InvalidValue, match="'vector'"):
        embed(lambda x: x, torch.ones(2, 3), tmp_path / "e", metadata={"vector": [1, 2]})
    images = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    with pytest.raises(InvalidValue, match="'thumbnail'"):
        embed(
            lambda x: x.flatten(1).float(),
            images,
            tmp_path / "e",
            metadata={"thumbnail": [1, 2]},
            thumbnails=True,
        )


def test_ids_that_no_file_can_hold_are_refused() -> None:
    with pytest.raises(InvalidValue, match=r"in row 1 is no valid text"):
        build(2, ids=["a", "b\udcff"])


@pytest.mark.parametrize("kind", ["index", "embeddings", "recommender"])
def test_targets_that_are_no_folder_are_refused(tmp_path: Path, kind: str) -> None:
    save: Any = {
        "index": lambda path: build().save(path),
        "embeddings": make_embeddings,
        "recommender": lambda path: FOLDERS.recommender_of(40).save(path),
    }[kind]
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileInTheWay, match=r"is a link to .*nowhere, which is not there"):
        save(tmp_path / "link")
    (tmp_path / "file").write_text("years of work")
    with pytest.raises(FileInTheWay, match="is a file, and is not overwritten"):
        save(tmp_path / "file")
    (tmp_path / "real").mkdir()
    (tmp_path / "to").symlink_to(tmp_path / "real")
    save(tmp_path / "to")
    assert any((tmp_path / "real").iterdir())


def test_a_disk_that_is_full_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = build().save(tmp_path / "index")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("contrastive.retrieval.index.write_table", full)
    with pytest.raises(OSError, match=r"index cannot be written \(No space left on device\); its content is"):
        build(61).save(target)
    monkeypatch.setattr("contrastive.retrieval.shards.write_table", full)
    with pytest.raises(OSError, match=r"cannot be written \(No space left on device\)"):
        make_embeddings(tmp_path / "e")
    assert len(Index.load(target)) == 60
    assert len(list(target.glob("files-*"))) == 1
