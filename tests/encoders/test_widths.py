"""The width that an encoder of timm promises is what comes out, for every family of timm, and weights may be files."""

import socket
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from contrastive import InfoNCE, Pretrain, SimCLRViews
from contrastive.encoders import TimmEncoder, TorchvisionEncoder, load_encoder, published, save_encoder

# The smallest model of each file of timm/models.
# fmt: off
FAMILIES = [
    "beit_base_patch16_224", "halonet_h1", "test_byobnet", "cait_xxs24_224", "coat_tiny",
    "convit_tiny", "convmixer_768_32", "test_convnext", "cpubone_nano", "crossvit_tiny_240",
    "csatv2", "cs3darknet_focus_s", "cspnext_tiny", "davit_tiny", "deepseek_vit_412m",
    "deit_tiny_patch16_224", "densenet121", "dla46x_c", "dpn48b", "edgenext_xx_small",
    "efficientformer_l1", "efficientformerv2_s0", "test_efficientnet", "efficientvim_m1",
    "efficientvit_b0", "efficientvit_m0", "vit_tiny_patch16_dinov3_qkvb", "fasternet_t0",
    "fastvit_t8", "focalnet_tiny_srf", "gcvit_xxtiny", "gemma4_vit_167m", "ghostnet_050",
    "hardcorenas_b", "hgnetv2_b0", "hiera_tiny_224", "sam2_hiera_tiny", "hrnet_w18_small",
    "iformer_t", "inception_next_atto", "inception_resnet_v2", "inception_v3", "inception_v4",
    "lcnetv2_small", "levit_128s", "lowformer_b0", "test_mambaout", "test_coatnet",
    "poolformerv2_s12", "gmlp_ti16_224", "lcnet_035", "mobilenetv5_base", "mobilevit_xxs",
    "mvitv2_tiny", "naflexvit_base_patch16_parfac_gap", "nasnetalarge", "nest_tiny",
    "nextvit_small", "test_nfnet", "pit_ti_224", "pnasnet5large", "pvt_v2_b0", "qwen3_vit_88m",
    "rdnet_tiny", "regnetx_002", "repghostnet_050", "repvit_m1", "res2next50", "resnest14d",
    "test_resnet", "resnetv2_18", "rexnet_100", "selecsls42", "legacy_seresnet18", "sequencer2d_s",
    "shvit_s1", "skresnet18", "starnet_s050", "swiftformer_xs", "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window8_256", "swinv2_cr_tiny_224", "tiny_vit_5m_224", "tnt_s_legacy_patch16_224",
    "tresnet_m", "twins_svt_small", "vgg11", "visformer_tiny", "test_vit", "vit_tiny_r_s16_p8_224",
    "test_vit_relpos", "samvit_base_patch16_224", "vitamin_small_224", "volo_d1_224",
    "ese_vovnet19b_slim_dw", "legacy_xception", "xception41p", "xcit_nano_12_p8_224",
]
# fmt: on
SIZES = {"halonet_h1": 256, "sequencer2d_s": 32}  # takes no other; takes long


@pytest.mark.parametrize("name", FAMILIES)
def test_dim_is_what_comes_out(name: str) -> None:
    if not timm.is_model(name):
        pytest.skip(f"timm {timm.__version__} has no {name}")
    size = SIZES.get(name, 224)
    with torch.device("meta"):  # shapes without arithmetic
        encoder = TimmEncoder(name, image_size=size).eval()
        features = encoder(torch.zeros(1, 3, size, size))
    assert features.shape == (1, encoder.dim)


def test_the_families_are_all_there_are() -> None:
    known = {timm.models.model_entrypoint(name).__module__ for name in FAMILIES if timm.is_model(name)}
    missing = {f"timm.models.{module}" for module in timm.list_modules()} - known
    assert not missing, "add the smallest model of each to FAMILIES"


@pytest.mark.parametrize(
    "name", ["lcnet_035", "test_mambaout", "test_coatnet", "test_vit", "test_resnet", "ghostnet_050"]
)
def test_small_images_meet_a_projector_that_fits(name: str) -> None:
    encoder = TimmEncoder(name, image_size=32, in_channels=1)
    module = Pretrain(encoder, InfoNCE(), views=SimCLRViews(size=32))
    assert module.projector(encoder(torch.rand(2, 1, 32, 32))).shape[0] == 2


def test_measuring_leaves_mode_and_random_numbers_alone() -> None:
    torch.manual_seed(0)
    timm.create_model("test_resnet", num_classes=0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    encoder = TimmEncoder("test_resnet", image_size=64, stem="standard")
    assert torch.rand(1) == expected
    assert all(module.training for module in encoder.modules())


def test_a_size_that_a_model_does_not_take_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"image_size of TimmEncoder is 100, and 'halonet_h1' .* image_size=256"
    ):
        TimmEncoder("halonet_h1", image_size=100)


# ------------------------------------------------------------------ weights


def _first(encoder: nn.Module) -> Tensor:
    return next(iter(encoder.network.parameters()))


@pytest.mark.parametrize("wrapped", ["plain", "trainer"])
@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_weights_of_timm_come_from_a_file(tmp_path: Path, ending: str, wrapped: str) -> None:
    theirs = timm.create_model("test_resnet", num_classes=7)  # with a classifier of their own
    state = theirs.state_dict()
    if wrapped == "trainer":
        state = {f"module.{name}": value for name, value in state.items()}
    path = tmp_path / f"weights.{ending}"
    if ending == "safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state, "epoch": 3} if wrapped == "trainer" else state, path)
    encoder = TimmEncoder("test_resnet", image_size=32, weights=path).eval()
    assert encoder.config["stem"] == "standard"  # as the weights were trained
    images = torch.rand(2, 3, 32, 32)
    theirs.reset_classifier(0)
    torch.testing.assert_close(encoder(images), theirs.eval()(encoder.normalise(images)))
    grey = TimmEncoder("test_resnet", image_size=32, in_channels=1, weights=str(path))
    torch.testing.assert_close(_first(grey), _first(encoder).sum(1, keepdim=True))
    again = load_encoder(save_encoder(encoder, tmp_path / "saved"))  # needs the file no more
    torch.testing.assert_close(again(images), encoder(images))


def test_weights_of_torchvision_come_from_a_file(tmp_path: Path) -> None:
    theirs = torchvision.models.shufflenet_v2_x0_5(weights=None)
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    encoder = TorchvisionEncoder("shufflenet_v2_x0_5", weights=str(tmp_path / "weights.pth"))
    torch.testing.assert_close(_first(encoder), next(theirs.parameters()))
    torch.save(torchvision.models.squeezenet1_0(weights=None).state_dict(), tmp_path / "other.pth")
    with pytest.raises(ValueError, match="does not fit 'shufflenet_v2_x0_5'"):
        TorchvisionEncoder("shufflenet_v2_x0_5", weights=str(tmp_path / "other.pth"))


@pytest.mark.parametrize("build", [TimmEncoder, TorchvisionEncoder])
def test_files_that_are_no_weights_are_refused(build: type[nn.Module], tmp_path: Path) -> None:
    name = "test_resnet" if build is TimmEncoder else "shufflenet_v2_x0_5"
    for content, words in {
        "text": "is no file of weights",
        "pickle": "could run code; it is not read",
        "list": "holds no state_dict",
    }.items():
        path = tmp_path / f"{content}.pth"
        if content == "text":
            path.write_text("hello")
        else:
            torch.save([1, 2] if content == "list" else {"model": Path("x")}, path)
        with pytest.raises(ValueError, match=words):
            build(name, weights=str(path))
    with pytest.raises((OSError, ValueError), match=r"weights of \w+ is 'nowhere.pth'"):
        build(name, weights="nowhere.pth")


def test_weights_of_another_model_of_timm_are_refused(tmp_path: Path) -> None:
    save_file(timm.create_model("test_vit").state_dict(), tmp_path / "vit.safetensors")
    with pytest.raises(ValueError, match="does not fit 'test_resnet'"):
        TimmEncoder("test_resnet", weights=tmp_path / "vit.safetensors")
    with pytest.raises(ValueError, match="give one of them"):
        TimmEncoder("test_resnet", pretrained=True, weights=tmp_path / "vit.safetensors")


def test_a_hub_that_does_not_answer_is_one_sentence_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pytest.importorskip("huggingface_hub").constants
    asked = []
    monkeypatch.setattr(published, "_reachable", lambda address: asked.append(address))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(OSError, match=r"weights of timm/test_resnet cannot be fetched \(.*connect, or copy"):
        TimmEncoder("test_resnet", pretrained=True)
    assert len(asked) == 1
    assert constants.HF_HUB_OFFLINE is False  # as it was


def test_an_address_that_nobody_listens_at_is_not_reachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("urllib.request.getproxies", dict)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, and does not listen
        port = taken.getsockname()[1]
        assert not published._reachable(f"https://127.0.0.1:{port}")
        taken.listen()
        assert published._reachable(f"https://127.0.0.1:{port}")
