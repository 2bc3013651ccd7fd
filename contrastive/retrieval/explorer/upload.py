"""Images that someone uploads, encoded like the images of a run."""

import os
from threading import BoundedSemaphore, Lock
from typing import Any

import torch
from numpy.typing import NDArray

from contrastive.data.images import as_image, scale
from contrastive.errors import InvalidValue
from contrastive.retrieval.explorer.pictures import decode

DECODERS = 2  # images that are decoded at one time: a small file can hold many pixels


class ImageEncoder:
    """The encoder of a run, for image files.

    Args:
        run: folder of the run.
        trust: see :func:`contrastive.retrieval.explorer.explore`.

    Attributes:
        shape: ``(C, H, W)`` that images are brought to, as the run's data are.
        fingerprint: of the encoder's weights.

    Raises:
        FileNotFoundError: the folder holds no encoder.
        ValueError: the run's data are no images, or are gone, so that their size is not known.
    """

    def __init__(self, run: str | os.PathLike[str], *, trust: bool = False) -> None:
        from contrastive.evaluation.results import describe_encoder
        from contrastive.evaluation.run import load_run_encoder

        self._encoder = load_run_encoder(run, trust=trust).eval()
        self.fingerprint = describe_encoder(run).get("fingerprint")
        self.shape, self._decoding = _image_shape(run, trust)
        self._decoders = BoundedSemaphore(DECODERS)
        self._encoding = Lock()  # a network in use by several threads at once would only make them all wait

    @torch.no_grad()
    def __call__(self, content: bytes) -> NDArray[Any]:
        """The features ``(D,)`` of an image file.

        Raises:
            TooLarge, ValueError: see :func:`contrastive.retrieval.explorer.pictures.decode`.
        """
        with self._decoders:
            image = scale(as_image(decode(content), self.shape[0], **self._decoding), self.shape[1:])
        with self._encoding:
            features: NDArray[Any] = self._encoder(image[None])[0].float().numpy()
        return features


def _image_shape(run: str | os.PathLike[str], trust: bool) -> tuple[tuple[int, int, int], dict[str, Any]]:
    """``(C, H, W)`` of a run's images, and how they are decoded."""
    from contrastive.evaluation.run import build_data

    try:
        data = build_data(run, trust=trust)
        channels, height, width = data.image_shape
        decoding = getattr(data, "decoding", {})
    except InvalidValue:
        raise
    except Exception as error:  # anyone's code reads the data
        raise InvalidValue(
            f"explore(run={str(run)!r}): the size of the run's images is not known, since its data cannot be opened "
            f"({type(error).__name__}: {error}); bring the data back, or leave run out and search by items"
        ) from error
    return (channels, height, width), decoding
