"""Encoders on disk."""

import json
import random
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from contrastive.encoders import ConvEncoder, MLPEncoder, MomentumEncoder, load_encoder, save_encoder
from contrastive.encoders import checkpoint as checkpoint_module
from contrastive.encoders.fingerprint import same_encoder, weights_part
from contrastive.errors import FileTrouble
from contrastive.evaluation.results import describe_encoder

SMALL = (8, 8, 8)


class TheirEncoder(nn.Module):
    """A class that the library does not know, with weights that share memory."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.dim = width
        self.first = nn.Linear(3, width, bias=False)
        self.second = nn.Linear(3, width, bias=False)
        self.second.weight = self.first.weight

    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = self.first(inputs) + self.second(inputs)
        return result


@pytest.fixture
def encoder() -> ConvEncoder:
    torch.manual_seed(0)
    encoder = ConvEncoder(widths=SMALL, blocks=(0, 1, 0), mean=[0.4, 0.5, 0.6])
    encoder(torch.rand(4, 3, 16, 16))  # running statistics that differ from their start
    return encoder


def rewrite(folder: Path, **changes: object) -> None:
    """Write the description as earlier versions did, whose fingerprint covered the weights alone."""
    file = folder / "encoder.json"
    description = json.loads(file.read_text())
    del description["checksum"]
    description["fingerprint"] = weights_part(description["fingerprint"])
    file.write_text(json.dumps(description | changes, indent=2) + "\n")


def test_round_trip_is_exact_and_leaves_two_files(encoder: ConvEncoder, tmp_path: Path) -> None:
    assert save_encoder(encoder, tmp_path / "new" / "encoder") == tmp_path / "new" / "encoder"
    files = sorted(file.name for file in (tmp_path / "new" / "encoder").iterdir())
    assert files == ["encoder.json", "encoder.safetensors"]
    images = torch.rand(2, 3, 16, 16)
    for path in (tmp_path / "new", tmp_path / "new" / "encoder"):  # the run, or the folder itself
        loaded = load_encoder(path)
        assert not loaded.training
        torch.testing.assert_close(loaded(images), encoder.eval()(images), rtol=0, atol=0)


def test_the_description_records_what_was_saved(encoder: ConvEncoder, tmp_path: Path) -> None:
    description = json.loads((save_encoder(encoder, tmp_path) / "encoder.json").read_text())
    assert description["class"] == "ConvEncoder"
    assert description["config"] == encoder.config
    assert description["dim"] == encoder.dim
    before = description["fingerprint"]
    with torch.no_grad():
        next(encoder.parameters())[0, 0, 0, 0] += 1e-3
    after = json.loads((save_encoder(encoder, tmp_path) / "encoder.json").read_text())["fingerprint"]
    assert before != after


def test_of_a_momentum_encoder_the_copy_is_saved(encoder: ConvEncoder, tmp_path: Path) -> None:
    follower = MomentumEncoder(encoder, momentum=0.5)
    nn.init.zeros_(next(encoder.parameters()))
    follower.update()
    save_encoder(follower, tmp_path)
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(load_encoder(tmp_path)(images), follower.eval()(images))


def test_a_class_of_the_user_is_never_looked_up(tmp_path: Path) -> None:
    theirs = TheirEncoder()
    save_encoder(theirs, tmp_path)
    with pytest.raises(ValueError, match=r"encoder=TheirEncoder\(\.\.\.\)"):
        load_encoder(tmp_path)
    loaded = load_encoder(tmp_path, encoder=TheirEncoder())
    inputs = torch.rand(2, 3)
    assert torch.equal(loaded(inputs), theirs(inputs))


def test_names_and_shapes_that_do_not_fit_are_listed(encoder: ConvEncoder, tmp_path: Path) -> None:
    save_encoder(encoder, tmp_path)
    with pytest.raises(ValueError, match="instead of"):
        load_encoder(tmp_path, encoder=ConvEncoder(widths=(16, 8, 8), blocks=(0, 1, 0)))
    with pytest.raises(ValueError, match=r"first\.weight is missing"):
        load_encoder(tmp_path, encoder=TheirEncoder())
    save_encoder(TheirEncoder(), tmp_path)
    with pytest.raises(ValueError, match=r"first\.weight is unexpected"):
        load_encoder(tmp_path, encoder=nn.Identity())


def test_a_truncated_weights_file_is_named(encoder: ConvEncoder, tmp_path: Path) -> None:
    file = save_encoder(encoder, tmp_path) / "encoder.safetensors"
    content = file.read_bytes()
    for length in (0, 4, 100, len(content) - 1):
        file.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"damaged.*encoder\.safetensors"):
            load_encoder(tmp_path)


def test_one_flipped_bit_or_a_foreign_pair_is_refused(encoder: ConvEncoder, tmp_path: Path) -> None:
    file = save_encoder(encoder, tmp_path) / "encoder.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="fingerprint"):
        load_encoder(tmp_path)


def test_one_flipped_bit_anywhere_in_the_folder_is_refused(tmp_path: Path) -> None:
    """All bytes of the description and of the header of the weights, and some of the weights."""
    torch.manual_seed(0)
    folder = save_encoder(MLPEncoder(3, (4,), 2), tmp_path)
    bits = random.Random(0)
    for file, places in ((folder / "encoder.json", 10**6), (folder / "encoder.safetensors", 600)):
        content = file.read_bytes()
        for place in range(min(len(content), places)):
            damaged = bytearray(content)
            damaged[place] ^= 1 << bits.randrange(8)
            file.write_bytes(damaged)
            with pytest.raises(ValueError, match=r"path of load_encoder|damaged"):
                load_encoder(folder)
        file.write_bytes(content)
    load_encoder(folder)


@pytest.mark.parametrize("changes", [{"mean": [0.1, 0.5, 0.6]}, {"grid": 1}, {"std": [0.25, 0.25, 0.3]}])
def test_what_changes_the_features_changes_the_fingerprint(
    changes: dict[str, object], encoder: ConvEncoder, tmp_path: Path
) -> None:
    save_encoder(encoder, tmp_path / "a")
    save_encoder(ConvEncoder(**{**encoder.config, **changes}), tmp_path / "b")  # type: ignore[arg-type]
    weights = (tmp_path / "a" / "encoder.safetensors").read_bytes()
    (tmp_path / "b" / "encoder.safetensors").write_bytes(weights)
    prints = [describe_encoder(tmp_path / name)["fingerprint"] for name in "ab"]
    assert prints[0] != prints[1]
    assert not same_encoder(*prints)
    file = tmp_path / "a" / "encoder.json"
    file.write_text(file.read_text().replace("0.4", "0.1"))
    with pytest.raises(ValueError, match="changed after it was written"):
        load_encoder(tmp_path / "a")


def test_an_encoder_of_an_earlier_version_loads_and_matches_what_was_made_with_it(
    encoder: ConvEncoder, tmp_path: Path
) -> None:
    save_encoder(encoder, tmp_path)
    whole = describe_encoder(tmp_path)["fingerprint"]
    rewrite(tmp_path)
    assert load_encoder(tmp_path).config == encoder.config
    assert describe_encoder(tmp_path)["fingerprint"] == whole
    assert same_encoder(whole, weights_part(whole))
    assert same_encoder(weights_part(whole), whole)
    assert not same_encoder("0" * 64, whole)
    assert not same_encoder(None, whole)
    assert same_encoder(None, None)
    rewrite_mean = json.loads((tmp_path / "encoder.json").read_text())["config"] | {"mean": [0.1, 0.5, 0.6]}
    (tmp_path / "encoder.json").write_text(
        json.dumps(json.loads((tmp_path / "encoder.json").read_text()) | {"config": rewrite_mean})
    )
    assert describe_encoder(tmp_path)["fingerprint"] != whole


def test_damaged_or_foreign_descriptions_are_refused(encoder: ConvEncoder, tmp_path: Path) -> None:
    file = save_encoder(encoder, tmp_path) / "encoder.json"
    text = file.read_text()
    for bad, message in {text[:-10]: "damaged", "[]": "holds a list", '{"class": "X"}': "lacks"}.items():
        file.write_text(bad)
        with pytest.raises(ValueError, match=message):
            load_encoder(tmp_path)


@pytest.mark.parametrize("config", [{"colour": 3}, {"grid": -1}, None])
def test_arguments_that_build_nothing_name_the_version(
    config: object, encoder: ConvEncoder, tmp_path: Path
) -> None:
    save_encoder(encoder, tmp_path)
    rewrite(tmp_path, config=config, version="99.0")
    with pytest.raises(ValueError, match=r"version 99\.0"):
        load_encoder(tmp_path)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere.*no such folder"):
        load_encoder(tmp_path / "nowhere")
    (tmp_path / "model.ckpt").touch()
    with pytest.raises(FileNotFoundError, match=r"model\.ckpt"):
        load_encoder(tmp_path)


@pytest.mark.parametrize("problem", [OSError(28, "disk full"), SafetensorError("I/O error: disk full")])
def test_a_failed_save_keeps_the_old_encoder(
    encoder: ConvEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: Exception
) -> None:
    save_encoder(encoder, tmp_path)
    before = sorted(tmp_path.iterdir())

    def full_disk(_: object, path: Path) -> None:
        path.write_bytes(b"half of it")
        raise problem

    monkeypatch.setattr(checkpoint_module, "save_file", full_disk)
    with pytest.raises(FileTrouble, match=rf"folder {tmp_path} of save_encoder .*disk full\); make room"):
        save_encoder(ConvEncoder(widths=(16, 8, 8)), tmp_path)
    assert sorted(tmp_path.iterdir()) == before
    assert load_encoder(tmp_path).config == encoder.config


@pytest.mark.parametrize(
    ("attributes", "message"), [({}, "dim is None"), ({"dim": 4, "config": {"f": print}}, "JSON")]
)
def test_what_cannot_be_described_is_refused(
    attributes: dict[str, object], message: str, tmp_path: Path
) -> None:
    module = nn.Linear(3, 4)
    for name, value in attributes.items():
        setattr(module, name, value)
    with pytest.raises(TypeError, match=message):
        save_encoder(module, tmp_path)
    assert not list(tmp_path.iterdir())
