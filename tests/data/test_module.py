import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from contrastive.data import Batch, ImageData, TensorData, check_data


def joined(loader) -> Batch:
    parts = list(zip(*loader, strict=True))
    return Batch(*(None if part[0] is None else torch.cat(part) for part in parts))


@pytest.fixture(scope="module")
def digits() -> ImageData:
    data = ImageData(batch_size=100, size=8)
    data.setup()
    return data


def test_nothing_is_read_by_the_constructor(monkeypatch):
    monkeypatch.setattr("contrastive.data.module.open_source", None)
    ImageData("no such thing")


def test_digits_by_default():
    data = ImageData()
    assert data.num_samples == 1438 - 144
    assert data.num_classes == 10
    assert data.class_names[3] == "3"
    assert data.image_shape == (3, 32, 32)
    batch = next(iter(data.train_dataloader()))
    assert batch.inputs.shape == (256, 3, 32, 32)
    assert batch.inputs.dtype == torch.uint8
    assert batch.index.dtype == batch.labels.dtype == torch.int64


def test_training_batches_are_numbered_within_the_training_part(digits):
    batch = joined(digits.train_dataloader())
    assert len(batch.index) == len(set(batch.index.tolist())) == 1200  # 94 are left over
    assert max(batch.index) < digits.num_samples
    whole, _ = digits.evaluation_loaders()
    inputs, labels = digits.inputs.train, joined(whole).labels
    rows = digits.rows[0][batch.index]
    assert torch.equal(batch.inputs, inputs[rows])
    assert torch.equal(batch.labels, labels[rows])


def test_validation_is_stratified_and_disjoint_and_depends_on_the_seed_only(digits):
    train, validation = digits.rows
    assert set(train.tolist()).isdisjoint(validation.tolist())
    assert len(train) + len(validation) == 1438
    counts = joined(digits.val_dataloader()).labels.bincount()
    assert counts.tolist() == pytest.approx([14.4] * 10, abs=2)
    assert torch.equal(ImageData(size=8).rows[1], validation)
    assert not torch.equal(ImageData(size=8, seed=1).rows[1], validation)


def test_evaluation_passes_over_everything_in_order(digits):
    train, test = (joined(loader) for loader in digits.evaluation_loaders())
    assert train.index.tolist() == list(range(1438))
    assert test.index.tolist() == list(range(359))
    assert digits.evaluation_split == "test"
    assert [len(joined(loader).index) for loader in digits.predict_dataloader()] == [1438, 359]
    assert torch.equal(joined(digits.test_dataloader()).labels, test.labels)


def test_without_a_test_set_the_validation_part_is_evaluated_on(write_images):
    root = str(write_images({f"{c}/{i}.png": i for c in "ab" for i in range(10)}))
    data = ImageData(root, batch_size=4, validation_fraction=0.2)
    train, test = (joined(loader) for loader in data.evaluation_loaders())
    assert (len(train.index), len(test.index)) == (16, 4)
    assert data.evaluation_split == "validation"
    assert test.labels.bincount().tolist() == [2, 2]
    nothing = ImageData(root, batch_size=4, validation_fraction=0)
    assert nothing.val_dataloader() == []
    with pytest.raises(ValueError, match="nothing to evaluate on"):
        nothing.evaluation_loaders()


def test_a_validation_split_of_the_source_is_used_as_it_is(write_images):
    root = write_images({"train/a/1.png": 1, "train/b/2.png": 2, "val/b/3.png": 3, "test/a/4.png": 4})
    data = ImageData(str(root), batch_size=2)
    assert data.num_samples == 2
    validation = joined(data.val_dataloader())
    assert (validation.inputs[:, 0, 0, 0].tolist(), validation.labels.tolist()) == ([3], [1])
    whole, test = (joined(loader) for loader in data.evaluation_loaders())
    assert whole.inputs[:, 0, 0, 0].tolist() == [1, 2, 3]
    assert test.inputs[:, 0, 0, 0].tolist() == [4]


def test_a_long_tail_is_trained_on_and_everything_else_stays(digits):
    data = ImageData(batch_size=100, size=8, imbalance=0.1)
    labels = data.known.train_labels
    available = labels[digits.rows[0]].bincount()
    kept = labels[data.rows[0]].bincount()
    formula = available.max() * 0.1 ** (torch.arange(10) / 9)
    assert torch.equal(kept, torch.minimum(formula.round().long(), available))
    assert kept[9] == round(int(available.max()) * 0.1)
    assert data.num_samples == len(data.train_dataloader().rows) == kept.sum()
    assert set(data.rows[0].tolist()) < set(digits.rows[0].tolist())
    assert torch.equal(data.rows[1], digits.rows[1])
    assert [loader.num_samples for loader in data.evaluation_loaders()] == [1438, 359]
    again, other = (ImageData(size=8, imbalance=0.1, seed=seed) for seed in (0, 1))
    assert torch.equal(again.rows[0], data.rows[0])
    assert not torch.equal(other.rows[0], data.rows[0])


def test_a_linear_tail_and_its_smallest_class():
    labels = torch.arange(10).repeat_interleave(50)
    linear = TensorData(
        torch.zeros(500, 1), labels, validation_fraction=0, imbalance=0.1, imbalance_profile="linear"
    )
    assert labels[linear.rows[0]].bincount().tolist() == [50, 45, 40, 35, 30, 25, 20, 15, 10, 5]
    steep = TensorData(torch.zeros(500, 1), labels, validation_fraction=0, imbalance=1e-6)
    assert labels[steep.rows[0]].bincount().tolist()[-2:] == [1, 1]


def test_a_long_tail_without_a_test_set_is_evaluated_on_the_whole_training_part():
    data = TensorData(torch.zeros(40, 1), torch.arange(40) % 2, validation_fraction=0.5, imbalance=0.1)
    assert data.num_samples == 11
    assert [loader.num_samples for loader in data.evaluation_loaders()] == [20, 20]


def test_a_long_tail_needs_labels():
    with pytest.raises(ValueError, match=r"TensorData\(imbalance=0\.5\) .* have no labels"):
        _ = TensorData(torch.zeros(4, 2), imbalance=0.5).num_samples
    with pytest.raises(ValueError, match=r"TensorData\(labels_per_class=2\) .* have no labels"):
        _ = TensorData(torch.zeros(4, 2), labels_per_class=2).num_samples


def test_few_labels_are_trained_on_and_everything_else_stays(digits):
    few, more, again, other = (
        ImageData(batch_size=20, size=8, labels_per_class=count, seed=seed)
        for count, seed in ((3, 0), (7, 0), (3, 0), (3, 1))
    )
    labels = few.known.train_labels
    assert labels[few.rows[0]].bincount().tolist() == [3] * 10
    assert few.num_samples == len(few.train_dataloader().rows) == 30
    assert set(few.rows[0].tolist()) < set(more.rows[0].tolist()) < set(digits.rows[0].tolist())
    assert torch.equal(few.rows[1], digits.rows[1])
    assert [loader.num_samples for loader in few.evaluation_loaders()] == [1438, 359]
    assert torch.equal(again.rows[0], few.rows[0])
    assert not torch.equal(other.rows[0], few.rows[0])


def test_few_labels_of_a_long_tail_and_too_many_labels():
    labels = torch.arange(4).repeat_interleave(20)
    options = {"validation_fraction": 0, "imbalance": 0.25}
    few = TensorData(torch.zeros(80, 1), labels, labels_per_class=5, **options)
    assert labels[few.rows[0]].bincount().tolist() == [5, 5, 5, 5]
    with pytest.raises(ValueError, match="labels_per_class=6, but class 3 has only 5 samples"):
        _ = TensorData(torch.zeros(80, 1), labels, labels_per_class=6, **options).rows


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_stream_gives_the_same_batches_as_memory(write_images, num_workers):
    root = str(
        write_images({f"train/{c}/{i}.png": i for c in "ab" for i in range(8)} | {"test/a/1.png": 1}, (9, 7))
    )
    options = {"batch_size": 4, "size": (6, 6), "channels": 1}
    memory = ImageData(root, in_memory=True, **options)
    stream = ImageData(root, in_memory=False, num_workers=num_workers, **options)
    assert not isinstance(stream.inputs.train, torch.Tensor)
    for _ in range(2):
        for a, b in zip(memory.train_dataloader(), stream.train_dataloader(), strict=True):
            assert a.inputs.shape == (4, 1, 6, 6)
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_auto_streams_what_exceeds_the_budget(write_images, monkeypatch):
    root = str(write_images({"1.png": 1, "2.png": 2}))
    needed = 2 * 3 * 8 * 8
    monkeypatch.setattr("contrastive.data.module.MEMORY_BUDGET", needed)
    assert isinstance(ImageData(root).inputs.train, torch.Tensor)
    monkeypatch.setattr("contrastive.data.module.MEMORY_BUDGET", needed - 1)
    assert not isinstance(ImageData(root).inputs.train, torch.Tensor)


@pytest.mark.parametrize("in_memory", [True, False])
def test_fingerprint_follows_the_data_and_nothing_else(write_images, tmp_path, in_memory):
    def print_of(name: str, **options) -> str:
        return ImageData(str(tmp_path / name), in_memory=in_memory, **options).fingerprint

    for name in ("one", "copy"):
        write_images({f"{name}/a/1.png": 1, f"{name}/b/2.png": 2})
    write_images({"labels/a/1.png": 1, "labels/c/2.png": 2})
    write_images({"pixels/a/1.png": 1, "pixels/b/2.png": 2}, size=(40, 40))
    one = print_of("one")
    assert len(one) == 16
    assert print_of("copy", seed=5, batch_size=1, validation_fraction=0.5) == one
    assert len({one, print_of("labels"), print_of("pixels")}) == 3


def test_digits_have_the_same_fingerprint_on_every_machine(digits):
    assert digits.fingerprint == "5c3b4c155cf72dd6"


@pytest.mark.parametrize("count", [3, 6000])  # in this process, and in worker processes
def test_a_broken_image_is_named(write_parquet, encode, count):
    contents = [encode(i % 200, (2, 2)) for i in range(count)]
    contents[count - 2] = encode(1)[:40]
    data = ImageData(str(write_parquet("a.parquet", contents)), num_workers=1)
    with pytest.raises(ValueError, match=rf"a\.parquet, row {count - 2}: its 40 bytes") as caught:
        data.setup()
    assert str(caught.value).startswith("ImageData cannot read the image at")


def test_a_broken_image_of_a_stream_is_named(write_images):
    root = write_images({"1.png": 1, "2.png": 2, "3.png": 3})
    (root / "2.png").write_bytes(b"nothing")
    data = ImageData(str(root), in_memory=False, batch_size=3, validation_fraction=0, num_workers=1)
    with pytest.raises(ValueError, match=r"^ImageData cannot read the image at .*2\.png: its 7 bytes"):
        list(data.train_dataloader())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"validation_fraction": 1.0}, r"validation_fraction=1\.0"),
        ({"num_workers": -1}, "num_workers=-1"),
        ({"imbalance": 0.0}, r"imbalance=0\.0"),
        ({"imbalance": 100}, "imbalance=100"),
        ({"labels_per_class": 0}, "labels_per_class=0"),
        ({"imbalance_profile": "step"}, "imbalance_profile='step'"),
        ({"channels": 2}, "channels=2"),
        ({"size": 0}, "size=0"),
        ({"size": (4, 0)}, r"size=\(4, 0\)"),
        ({"size": 10**6}, r"size=1000000\): set at most 16,384 pixels"),
    ],
)
def test_options_out_of_range_are_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        ImageData(**options)


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(ValueError, match=r"batch_size=2000\).*1294 samples.*smaller batch_size"):
        ImageData(batch_size=2000, size=8).train_dataloader()


# ------------------------------------------------------------------ check_data


def test_check_of_sound_data(digits):
    report = check_data(digits)
    assert report.ok
    assert [split.name for split in report.splits] == ["train", "test"]
    assert report.splits[0].sizes == {(8, 8): 1438}
    assert report.splits[0].labels == {str(i): int((digits.known.train_labels == i).sum()) for i in range(10)}
    assert "1438 images, 0 of them unreadable" in str(report)
    assert str(report).endswith("The data are fine.")


def test_check_goes_on_after_bad_images_and_shows_the_first(write_images):
    root = write_images({f"train/a/{i}.png": i for i in range(5)} | {"test/a/1.png": 1})
    for i in (3, 1):
        (root / "train" / "a" / f"{i}.png").write_bytes(b"")
    report = check_data(ImageData(str(root)))
    assert not report.ok
    assert [Path(complaint.split(": ")[0]).name for complaint in report.splits[0].bad] == ["1.png", "3.png"]
    assert f"the first of these: {root / 'train' / 'a' / '1.png'}: its 0 bytes" in str(report)
    assert "fine" not in str(report)


def test_check_finds_different_sizes(write_images):
    write_images({"1.png": 1})
    root = str(write_images({"2.png": 1}, size=(5, 6)))
    report = check_data(ImageData(root))
    assert not report.ok
    assert "set size=" in str(report)
    assert check_data(ImageData(root, size=4)).ok


# ------------------------------------------------------------------ tensors


def test_tensor_data_in_both_splits():
    inputs = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    data = TensorData(inputs, np.arange(50) % 2, inputs[:4], [0, 1, 0, 1], batch_size=10)
    data.setup()
    assert (data.num_samples, data.num_classes, data.input_shape) == (45, 2, (3,))
    batch = joined(data.train_dataloader())
    assert torch.equal(batch.inputs, torch.from_numpy(inputs)[data.rows[0][batch.index]])
    train, test = (joined(loader) for loader in data.evaluation_loaders())
    assert torch.equal(train.inputs, torch.from_numpy(inputs))
    assert test.labels.tolist() == [0, 1, 0, 1]


def test_tensor_data_has_a_fingerprint_of_values_labels_and_names():
    inputs = torch.arange(12.0).view(4, 3)
    variants = [
        TensorData(inputs),
        TensorData(inputs + 1),
        TensorData(inputs, [0, 1, 0, 1]),
        TensorData(inputs, [0, 1, 1, 1]),
        TensorData(inputs, [0, 1, 0, 1], class_names=["a", "b"]),
        TensorData(inputs.view(4, 3, 1)),
    ]
    assert len({data.fingerprint for data in variants}) == len(variants)
    assert TensorData(inputs.t().contiguous().t()).fingerprint == variants[0].fingerprint


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_inputs": torch.zeros(4)}, r"train_inputs.*\(4,\)"),
        ({"test_inputs": torch.zeros(2, 5)}, r"\(2, 5\) and train_inputs \(4, 3\)"),
        ({"train_labels": [0, 1]}, "train_labels.*each of the 4"),
        ({"train_labels": [0.5] * 4}, "train_labels.*float64"),
        ({"train_labels": [0, 1, -1, 0]}, "train_labels.*from 0 up"),
        ({"test_labels": [0]}, "test_labels.*each of the 0"),
        ({"train_labels": [0, 1, 2, 0], "class_names": ["a", "b"]}, "2 names, and the highest label is 2"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TensorData(**({"train_inputs": torch.zeros(4, 3)} | options))


# ------------------------------------------------------------------ from outside


SQUARES = """
import numpy as np
from torch.utils.data import Dataset

class Squares(Dataset):
    def __init__(self, side: int) -> None:
        self.side = side

    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        return np.full((self.side, self.side), i, np.uint8), i % 2
"""


def test_yaml_can_name_a_data_set_of_the_users(monkeypatch, tmp_path):
    from jsonargparse import ArgumentParser

    (tmp_path / "squares.py").write_text(SQUARES)
    monkeypatch.syspath_prepend(tmp_path)
    parser = ArgumentParser()
    parser.add_class_arguments(ImageData, "data")

    def parse(options: dict) -> ImageData:
        build = getattr(parser, "instantiate", None) or parser.instantiate_classes  # its name before 4.49
        return build(parser.parse_object({"data": options})).data

    data = parse({"source": {"class_path": "squares.Squares", "init_args": {"side": 5}}, "size": [4, 4]})
    assert data.known.train_labels.tolist() == [0, 1] * 6
    assert data.image_shape == (3, 4, 4)
    assert parse({"source": "digits"}).source == "digits"


def test_the_batch_type_comes_without_lightning():
    code = "import sys; from contrastive.data import Batch, Loader; sys.exit('lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(("name", "sizes"), [("cifar10", (50_000, 10_000))])
def test_real_parquet_files(name, sizes):
    folder = Path(os.environ.get("CONTRASTIVE_DATA", "")) / name
    if "CONTRASTIVE_DATA" not in os.environ or not folder.is_dir():
        pytest.skip(f"CONTRASTIVE_DATA names no folder with {name}/train.parquet and test.parquet")
    data = ImageData(str(folder))
    assert (data.known.train_size, data.known.test_size) == sizes
    assert data.image_shape == (3, 32, 32)
    batch = next(iter(data.train_dataloader()))
    assert 100 < batch.inputs.float().mean() < 140
