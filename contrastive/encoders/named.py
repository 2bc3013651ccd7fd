"""Other people's encoders by one name: ``timm/NAME``, ``torchvision/NAME`` or ``sentence-transformers/NAME``."""

from typing import Any

import torch
from torch import Tensor, nn

from contrastive.arguments import checked
from contrastive.encoders.backbones import TimmEncoder, TorchvisionEncoder
from contrastive.encoders.fingerprint import weights_fingerprint, whole_fingerprint
from contrastive.encoders.text import TextEncoder
from contrastive.errors import InvalidValue

KINDS = ("timm", "torchvision", "sentence-transformers")


class NamedEncoder(nn.Module):
    """A frozen encoder that was named, with what must be done to its inputs.

    Args:
        name: ``timm/NAME``, ``torchvision/NAME``, or ``sentence-transformers/NAME``, where NAME may be a folder.
        pretrained: take the published weights; otherwise random ones, the same every time, as a baseline.
        image_size: side of the images in pixels; what the model was published for by default.

    Attributes:
        name: as given.
        takes_text: whether inputs are texts; images otherwise.
        size: side in pixels that images are scaled to cover, and cut to, before they come here; 0 for texts.
        preprocessing: all that is done to an input, JSON-able.
        fingerprint: of name, preprocessing and weights.

    Raises:
        ValueError: no such collection or model, or an option that does not fit it.
        ImportError: the extra ``text`` is not installed.
        OSError: the published weights cannot be fetched.
    """

    @checked
    def __init__(self, name: str, *, pretrained: bool = True, image_size: int | None = None) -> None:
        super().__init__()
        kind, _, model = name.partition("/")
        if kind not in KINDS or not model:
            raise InvalidValue(
                f"encoder is {name!r}; give {', '.join(f'{kind}/NAME' for kind in KINDS[:-1])} or "
                f"{KINDS[-1]}/NAME_OR_FOLDER."
            )
        if image_size is not None and image_size < 1:
            raise InvalidValue(
                f"image_size is {image_size}; give the side of the images in pixels, 1 or more."
            )
        self.name, self.takes_text, self.size = name, kind == KINDS[-1], 0
        self.encoder: nn.Module
        if self.takes_text:
            if not pretrained or image_size is not None:
                raise InvalidValue(
                    f"encoder={name!r} takes texts and has weights of its own; leave pretrained and image_size out."
                )
            self.encoder = TextEncoder(model)
            self.preprocessing: dict[str, Any] = {
                name: self.encoder.config[name] for name in ("max_length", "prompt")
            }
        else:
            build = _timm if kind == "timm" else _torchvision
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                self.encoder, self.crop, self.size = build(model, pretrained, image_size)
            config: Any = self.encoder.config
            self.preprocessing = {
                "pretrained": pretrained,
                "resize": self.size,
                "crop": self.crop,
                "interpolation": "bilinear",
                "mean": list(config["mean"]),
                "std": list(config["std"]),
            }
        described = {"class": name, "config": self.preprocessing}
        self.fingerprint = whole_fingerprint(described, weights_fingerprint(self.encoder.state_dict()))
        self.eval()

    def forward(self, inputs: Any) -> Tensor:
        """Encode texts, or the centres of uint8 images ``(B, 3, size, size)``, to features ``(B, dim)``."""
        if not self.takes_text:
            start = (self.size - self.crop) // 2
            inputs = inputs[..., start : start + self.crop, start : start + self.crop]
        features: Tensor = self.encoder(inputs)
        return features


def _timm(model: str, pretrained: bool, image_size: int | None) -> tuple[nn.Module, int, int]:
    """The encoder, the side in pixels of its input, and the side of images of which this is the centre."""
    import timm

    if not timm.is_model(model):
        TimmEncoder(model)  # says what there is
    config: Any = timm.get_pretrained_cfg(model) or timm.models.PretrainedCfg()
    side = image_size or int(config.input_size[-1])
    encoder = TimmEncoder(model, pretrained=pretrained, image_size=side)
    return encoder, side, _before_crop(side, config.crop_pct, image_size)


def _torchvision(model: str, pretrained: bool, image_size: int | None) -> tuple[nn.Module, int, int]:
    import torchvision.models as collection

    if model not in collection.list_models(module=collection):
        TorchvisionEncoder(model)  # says what there is
    recipe = collection.get_model_weights(model).DEFAULT.transforms()
    side = image_size or int(recipe.crop_size[0])
    share = recipe.crop_size[0] / recipe.resize_size[0]
    encoder = TorchvisionEncoder(model, weights="DEFAULT" if pretrained else None, image_size=side)
    return encoder, side, _before_crop(side, share, image_size)


def _before_crop(side: int, share: float, image_size: int | None) -> int:
    """Side of the images whose centre is taken: as published, or with a size of the caller's the images themselves."""
    return side if image_size is not None else int(side / share)
