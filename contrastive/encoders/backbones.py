"""Encoders from the model collections of timm and torchvision."""

import warnings
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, Literal

from torch import Tensor, nn

from contrastive.encoders.normalise import Normalise, channel_statistics
from contrastive.errors import InvalidValue

Stem = Literal["auto", "small", "standard"]

SMALL_IMAGE = 64  # pixels; up to here a standard ResNet stem, which divides the side by 4, loses too much


class _Backbone(nn.Module):
    """A network of someone else's behind our normalisation."""

    def __init__(self, network: nn.Module, dim: int, config: dict[str, Any], stem_was_guessed: bool) -> None:
        super().__init__()
        self.network, self.dim, self.config = network, dim, config
        self.normalise = Normalise(config["mean"], config["std"])
        self._warn_if_small = stem_was_guessed and config["stem"] == "standard"

    def forward(self, images: Tensor) -> Tensor:
        """Encode images ``(B, in_channels, H, W)``, uint8 or [0, 1] floats, to features ``(B, dim)``."""
        if self._warn_if_small and max(images.shape[2:]) <= SMALL_IMAGE:
            self._warn_if_small = False
            warnings.warn(
                f"{type(self).__name__} got {images.shape[3]}-pixel images but was built for "
                f"image_size={self.config['image_size']}, with a stem that quarters their side: "
                f"set image_size={images.shape[3]}, or stem='standard' if that is what you want.",
                stacklevel=2,
            )
        features: Tensor = self.network(self.normalise(images))
        return features


class TimmEncoder(_Backbone):
    """Any model of timm without its classifier.

    Args:
        name: Name of the model in timm, such as ``"resnet18"`` or ``"vit_tiny_patch16_224"``.
        pretrained: Whether to fetch timm's weights for it.
        stem: How a ResNet starts. ``"standard"``: as published, 7x7 convolution with stride 2, max-pooling.
            ``"small"``: a 3x3 convolution with stride 1 and no pooling (Chen et al. 2020, "A Simple Framework
            for Contrastive Learning of Visual Representations", appendix B.9). ``"auto"``: small for a
            ResNet without pretrained weights whose ``image_size`` is at most 64, standard otherwise.
        image_size: Side of the images in pixels; decides ``stem="auto"`` and the grid of a transformer.
        in_channels: Channels of the images. timm adapts pretrained weights to other numbers than 3.
        mean: Per-channel mean of the data on the [0, 1] scale; by default what timm's weights expect for
            three channels, 0.5 for others.
        std: Per-channel standard deviation likewise; 0.25 for other than three channels.

    Attributes:
        dim: Width of the features.
        config: Arguments that rebuild the encoder for saved weights, JSON-able: the stem is resolved and
            ``pretrained`` is ``False``.

    Raises:
        ValueError: If timm has no model of that name, ``stem="small"`` is asked for a model that is not a
            ResNet, or the statistics do not fit ``in_channels``.
    """

    def __init__(
        self,
        name: str = "resnet18",
        pretrained: bool = False,
        stem: Stem = "auto",
        image_size: int = 224,
        in_channels: int = 3,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        import timm
        from timm.models.resnet import ResNet

        if not timm.is_model(name):
            raise InvalidValue(_unknown_model("TimmEncoder", name, timm.list_models()))
        options: dict[str, Any] = {"pretrained": pretrained, "num_classes": 0, "in_chans": in_channels}
        network: Any = timm.create_model(name, **options)
        grid = getattr(getattr(network, "patch_embed", None), "img_size", None)
        if grid is not None and tuple(grid) != (image_size, image_size):
            network = timm.create_model(name, img_size=image_size, **options)
        is_resnet = isinstance(network, ResNet)
        chosen = _choose_stem("TimmEncoder", name, stem, image_size, pretrained, is_resnet)
        if chosen == "small":
            _make_stem_small(network)
        if in_channels == 3:
            mean, std = mean or network.pretrained_cfg["mean"], std or network.pretrained_cfg["std"]
        mean, std = channel_statistics(in_channels, mean, std)
        config = {
            "name": name,
            "pretrained": False,
            "stem": chosen,
            "image_size": image_size,
            "in_channels": in_channels,
            "mean": mean,
            "std": std,
        }
        guessed = stem == "auto" and not pretrained and is_resnet
        super().__init__(network, network.num_features, config, guessed)


class TorchvisionEncoder(_Backbone):
    """Any classification model of torchvision without its last linear layer.

    Args:
        name: Name of the model in torchvision, such as ``"resnet18"``.
        weights: Name of pretrained weights, such as ``"DEFAULT"`` or ``"IMAGENET1K_V2"``; ``None`` for none.
        stem: How a ResNet starts, as in :class:`TimmEncoder`.
        image_size: Side of the images in pixels; decides ``stem="auto"``.
        mean: Per-channel mean of the data on the [0, 1] scale; ImageNet's by default, which torchvision's
            weights expect.
        std: Per-channel standard deviation likewise.

    Attributes:
        dim: Width of the features.
        config: Arguments that rebuild the encoder for saved weights, JSON-able: the stem is resolved and
            ``weights`` is ``None``.

    Raises:
        ValueError: If torchvision has no such model or weights, the model does not end in one linear layer,
            ``stem="small"`` is asked for a model that is not a ResNet, or the statistics are not three each.
    """

    def __init__(
        self,
        name: str = "resnet18",
        weights: str | None = None,
        stem: Stem = "auto",
        image_size: int = 224,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
    ) -> None:
        import torchvision.models as collection

        models = collection.list_models(module=collection)
        if name not in models:
            raise InvalidValue(_unknown_model("TorchvisionEncoder", name, models))
        mean, std = channel_statistics(3, mean, std)
        known = [entry.name for entry in collection.get_model_weights(name)]
        if weights not in (None, "DEFAULT", *known):
            raise InvalidValue(
                f"weights of TorchvisionEncoder is {weights!r}; for {name} torchvision has "
                f"{', '.join(['DEFAULT', *known])}: name one of these or None."
            )
        network: Any = collection.get_model(name, weights=weights)
        linear = [path for path, module in network.named_modules() if isinstance(module, nn.Linear)]
        if not linear or hasattr(network, "aux_logits"):
            raise InvalidValue(
                f"name of TorchvisionEncoder is {name!r}, whose output does not come from one linear layer; "
                "choose another model, or use TimmEncoder."
            )
        dim: int = network.get_submodule(linear[-1]).in_features
        parent, _, leaf = linear[-1].rpartition(".")
        setattr(network.get_submodule(parent), leaf, nn.Identity())
        is_resnet = isinstance(network, collection.ResNet)
        chosen = _choose_stem("TorchvisionEncoder", name, stem, image_size, weights is not None, is_resnet)
        if chosen == "small":
            _make_stem_small(network)
        config = {
            "name": name,
            "weights": None,
            "stem": chosen,
            "image_size": image_size,
            "mean": mean,
            "std": std,
        }
        super().__init__(network, dim, config, stem == "auto" and weights is None and is_resnet)


def _choose_stem(
    owner: str, name: str, stem: Stem, image_size: int, pretrained: bool, is_resnet: bool
) -> Stem:
    if stem not in ("auto", "small", "standard"):
        raise InvalidValue(f"stem of {owner} is {stem!r}; give 'auto', 'small' or 'standard'.")
    if stem == "small" and not is_resnet:
        raise InvalidValue(
            f"stem of {owner} is 'small', which only ResNets have, not {name!r}: use 'standard' or a ResNet."
        )
    if stem == "auto":
        return "small" if is_resnet and not pretrained and image_size <= SMALL_IMAGE else "standard"
    return stem


def _make_stem_small(network: Any) -> None:
    """Let a ResNet start at full resolution: stride 1, a 3x3 kernel, no pooling."""
    if isinstance(network.conv1, nn.Sequential):  # the deep stem of the "d" variants is 3x3 already
        network.conv1[0].stride = (1, 1)  # type: ignore[assignment]
    else:
        old = network.conv1
        network.conv1 = nn.Conv2d(old.in_channels, old.out_channels, kernel_size=3, padding=1, bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    network.maxpool = nn.Identity()


def _unknown_model(owner: str, name: str, models: list[str]) -> str:
    near = get_close_matches(name, models, n=3)
    advice = f"did you mean {' or '.join(near)}?" if near else "see its documentation for the list."
    return f"name of {owner} is {name!r}, which is none of the {len(models)} models there: {advice}"
