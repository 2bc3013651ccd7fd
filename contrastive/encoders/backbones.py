"""Encoders from the model collections of timm and torchvision."""

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from contrastive.arguments import checked
from contrastive.encoders.normalise import Normalise, channel_statistics
from contrastive.encoders.published import fetching, read_weights
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
            ResNet without weights of either kind whose ``image_size`` is at most 64, standard otherwise.
        image_size: Side of the images in pixels; decides ``stem="auto"`` and the grid of a transformer.
        in_channels: Channels of the images. timm adapts pretrained weights to other numbers than 3.
        mean: Per-channel mean of the data on the [0, 1] scale; by default what timm's weights expect for
            three channels, 0.5 for others.
        std: Per-channel standard deviation likewise; 0.25 for other than three channels.
        weights: A file of weights instead of timm's, of safetensors or ``torch.save``; its classifier is left out.

    Attributes:
        dim: Width of the features, measured by encoding an image.
        config: Arguments that rebuild the encoder for saved weights, JSON-able: the stem is resolved and there are
            no weights.

    Raises:
        ValueError: If timm has no model of that name, it cannot encode images of ``image_size``, ``stem="small"`` is
            asked for a model that is not a ResNet, the statistics do not fit ``in_channels``, or ``weights`` are
            damaged, of another model, or given with ``pretrained``.
        OSError: If the weights cannot be fetched, or there is no such file.
    """

    @checked
    def __init__(
        self,
        name: str = "resnet18",
        pretrained: bool = False,
        stem: Stem = "auto",
        image_size: int = 224,
        in_channels: int = 3,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        weights: str | os.PathLike[str] | None = None,
    ) -> None:
        import timm
        from timm.models.resnet import ResNet

        if not timm.is_model(name):
            raise InvalidValue(_unknown_model("TimmEncoder", name, timm.list_models()))
        if pretrained and weights is not None:
            raise InvalidValue("TimmEncoder got weights and pretrained=True; give one of them.")
        options: dict[str, Any] = {"num_classes": 0, "in_chans": in_channels}
        network, shape = _timm_network(name, image_size, options)
        if pretrained:
            with fetching(f"timm/{name}", _remedy("timm", "pretrained=False")):
                network, shape = _timm_network(name, image_size, {**options, "pretrained": True})
        elif weights is not None:
            network, shape = _timm_network_from(Path(weights), name, image_size, options)
        is_resnet = isinstance(network, ResNet)
        has_weights = pretrained or weights is not None
        chosen = _choose_stem("TimmEncoder", name, stem, image_size, has_weights, is_resnet)
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
        guessed = stem == "auto" and not has_weights and is_resnet
        super().__init__(network, shape[1], config, guessed)


class TorchvisionEncoder(_Backbone):
    """Any classification model of torchvision without its last linear layer.

    Args:
        name: Name of the model in torchvision, such as ``"resnet18"``.
        weights: Name of pretrained weights, such as ``"DEFAULT"`` or ``"IMAGENET1K_V2"``, or a file of weights, of
            safetensors or ``torch.save``; ``None`` for none.
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
            ``stem="small"`` is asked for a model that is not a ResNet, the statistics are not three each, or a file
            of weights is damaged or of another model.
        OSError: If the weights cannot be fetched.
    """

    @checked
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
        published = weights in ("DEFAULT", *known)
        if weights is not None and not published and not Path(weights).is_file():
            raise InvalidValue(
                f"weights of TorchvisionEncoder is {weights!r}; for {name} torchvision has "
                f"{', '.join(['DEFAULT', *known])}: name one of these, a file, or None."
            )
        network: Any
        if published:
            with fetching(f"torchvision/{name}", _remedy("torchvision", "weights=None")):
                network = collection.get_model(name, weights=weights)
        else:
            network = collection.get_model(name, weights=None)
        if weights is not None and not published:
            own = read_weights("TorchvisionEncoder", Path(weights))
            with _fitting("TorchvisionEncoder", name, weights):
                network.load_state_dict(own)
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


def _timm_network(name: str, image_size: int, options: dict[str, Any]) -> tuple[Any, tuple[int, ...]]:
    """A model of timm that takes images of this size, and the shape ``(1, dim)`` of what it makes of one.

    The width is measured, as models differ in what they call the number of their features: some have a layer behind
    the pooling that widens them.
    """
    import timm

    network: Any = timm.create_model(name, **options)
    grid = getattr(getattr(network, "patch_embed", None), "img_size", None)
    own_size = network.pretrained_cfg["input_size"][-1]
    if grid is not None and tuple(grid) != (image_size, image_size):
        network = timm.create_model(name, img_size=image_size, **options)
    problem: Exception | None = None
    for _ in range(2):
        try:
            shape = _encoded_shape(network, options["in_chans"], image_size)
        except Exception as error:  # of any model's forward pass
            problem = problem or error
        else:
            if len(shape) == 2:
                return network, shape
        try:  # some whose windows have a fixed size do not tell it as a grid, but can be built for another
            network = timm.create_model(name, img_size=image_size, **options)
        except (TypeError, ValueError, AssertionError, RuntimeError) as error:
            problem = problem or error
            break
    reason = f" ({' '.join(str(problem).split())[:120]})" if problem is not None and str(problem) else ""
    raise InvalidValue(
        f"image_size of TimmEncoder is {image_size}, and {name!r} makes no row of features of such an image{reason}; "
        f"try its own size, image_size={own_size}, or another model."
    ) from problem


def _timm_network_from(
    path: Path, name: str, image_size: int, options: dict[str, Any]
) -> tuple[Any, tuple[int, ...]]:
    """The same with weights from a file, adapted by timm to the number of channels and to the size.

    Without a classifier timm does not tell what it found no weights for; these differ from one build to the next.
    """
    own = {"state_dict": read_weights("TimmEncoder", path)}
    options = options | {"pretrained": True, "pretrained_cfg_overlay": own}
    with _fitting("TimmEncoder", name, path):
        network, shape = _timm_network(name, image_size, options)
        with torch.random.fork_rng(devices=[]):
            torch.seed()
            twin = _timm_network(name, image_size, options)[0].state_dict()
    missing = [key for key, value in network.state_dict().items() if not torch.equal(value, twin[key])]
    if missing:
        raise InvalidValue(
            f"weights of TimmEncoder is {str(path)!r}, which does not fit {name!r}: {', '.join(missing[:3])} "
            f"({len(missing)} in all) would be random; give a file of this model."
        )
    return network, shape


def _encoded_shape(network: nn.Module, in_channels: int, image_size: int) -> tuple[int, ...]:
    training, parameter = network.training, next(network.parameters())
    with torch.no_grad():
        image = torch.zeros(1, in_channels, image_size, image_size, device=parameter.device)
        shape = tuple(network.eval()(image).shape)
    network.train(training)
    return shape


@contextmanager
def _fitting(owner: str, name: str, weights: str | os.PathLike[str]) -> Iterator[None]:
    """Say in a sentence that weights do not fit a model."""
    try:
        yield
    except RuntimeError as error:  # of load_state_dict
        raise InvalidValue(
            f"weights of {owner} is {str(weights)!r}, which does not fit {name!r}: {' '.join(str(error).split())[:200]}"
        ) from error


def _remedy(collection: str, without: str) -> str:
    return (
        f"connect, or copy them into the cache of {collection}, or give a file of them by weights=, or take random "
        f"weights with {without}."
    )


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
