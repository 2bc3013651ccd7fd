"""Feature vectors, or any other tensors, with the loaders of image data."""

import hashlib
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from contrastive.arguments import checked
from contrastive.checks import shown
from contrastive.data.base import DataModule, Inputs, Known, add_to_digest
from contrastive.data.labels import as_integers, integer_classes
from contrastive.errors import InvalidType, InvalidValue


class TensorData(DataModule):
    """Samples that are already tensors: feature vectors, spectra, states.

    Args:
        train_inputs: ``(N, ...)`` tensor or array.
        train_labels: ``(N,)`` integers from 0 up, of any size, or None. Without ``class_names`` the classes are those
            that occur, numbered in their order.
        test_inputs: ``(M, ...)`` or None.
        test_labels: ``(M,)`` or None.
        class_names: a name for each label 0, 1, ...; by default what the labels are.
        batch_size: samples in a batch of one process.
        validation_fraction: part of the training samples held out for validation, in every class alike.
        seed: seed of the held-out part, of the order of training and of the samples that ``imbalance`` keeps.
        imbalance: train on a long tail of classes, see :class:`contrastive.data.ImageData`.
        imbalance_profile: ``"exponential"`` or ``"linear"``.
        labels_per_class: train on so many samples of each class.

    Raises:
        ValueError: if shapes, labels or names do not fit together.
    """

    @checked
    def __init__(
        self,
        train_inputs: Tensor | np.ndarray[Any, Any],
        train_labels: Tensor | np.ndarray[Any, Any] | None = None,
        test_inputs: Tensor | np.ndarray[Any, Any] | None = None,
        test_labels: Tensor | np.ndarray[Any, Any] | None = None,
        class_names: list[str] | None = None,
        batch_size: int = 256,
        validation_fraction: float = 0.1,
        seed: int = 0,
        imbalance: float = 1.0,
        imbalance_profile: Literal["exponential", "linear"] = "exponential",
        labels_per_class: int | None = None,
    ) -> None:
        super().__init__(
            batch_size, validation_fraction, seed, 0, imbalance, imbalance_profile, labels_per_class
        )
        self.train_inputs = _as_tensor("train_inputs", train_inputs)
        self.test_inputs = None if test_inputs is None else _as_tensor("test_inputs", test_inputs)
        if self.train_inputs.ndim < 2 or not len(self.train_inputs):
            raise InvalidValue(
                f"TensorData(train_inputs=...) has the shape {tuple(self.train_inputs.shape)}; give (N, ...), one row "
                "a sample."
            )
        if self.test_inputs is not None and self.test_inputs.shape[1:] != self.train_inputs.shape[1:]:
            raise InvalidValue(
                f"TensorData(test_inputs=...) has the shape {tuple(self.test_inputs.shape)} and train_inputs "
                f"{tuple(self.train_inputs.shape)}; make them agree in all but the first dimension."
            )
        train = _labels("train", self.train_inputs, train_labels)
        test = _labels("test", self.test_inputs, test_labels)
        if class_names is None:
            train, test, class_names = _classes(train, test)
        highest = max(
            (int(labels.max()) for labels in (train, test) if labels is not None and len(labels)), default=-1
        )
        if highest >= len(class_names):
            raise InvalidValue(
                f"TensorData(class_names=...) has {len(class_names)} names, and the highest label is {highest}; give "
                f"{highest + 1} names or more."
            )
        test_size = 0 if self.test_inputs is None else len(self.test_inputs)
        known = (
            None if labels is None else torch.from_numpy(labels.astype(np.int64)) for labels in (train, test)
        )
        self.known = Known(len(self.train_inputs), next(known), test_size, next(known), class_names)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.train_inputs.shape[1:])

    @cached_property
    def inputs(self) -> Inputs:
        """Inputs of both splits."""
        digest = hashlib.sha256(repr(self.class_names).encode())
        for part in (self.known.train_labels, self.train_inputs, self.known.test_labels, self.test_inputs):
            add_to_digest(digest, part)
        return Inputs(self.train_inputs, self.test_inputs, digest.hexdigest()[:16])


def _as_tensor(argument: str, values: Any) -> Tensor:
    if isinstance(values, np.ndarray | Tensor) and values.dtype != object:
        return torch.as_tensor(values)
    raise InvalidType(f"TensorData: {argument} is {shown(values)}; give a tensor or an array of numbers.")


def _labels(split: str, inputs: Tensor | None, labels: Any) -> NDArray[Any] | None:
    """Labels as whole numbers, one for each input."""
    if labels is None:
        return None
    try:
        values = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    except (ValueError, TypeError, RuntimeError):  # rows of different lengths, a tensor that is not dense
        raise InvalidType(
            f"TensorData: {split}_labels is {shown(labels)}; give a whole number a sample."
        ) from None
    if values.dtype.kind not in "iub" and isinstance(labels, list | tuple) and all(map(_is_whole, labels)):
        values = as_integers(labels)  # of more than 64 bits
    number = 0 if inputs is None else len(inputs)
    whole = values.dtype.kind in "iub" or (values.dtype == object and all(map(_is_whole, values.flat)))
    if values.shape != (number,) or not whole or (number and values.min() < 0):
        raise InvalidValue(
            f"TensorData({split}_labels=...) has the shape {tuple(values.shape)} and the type {values.dtype}; give an "
            f"integer from 0 up for each of the {number} samples in {split}_inputs."
        )
    return values.astype(np.int64) if values.dtype.kind == "b" else values


def _is_whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _classes(
    train: NDArray[Any] | None, test: NDArray[Any] | None
) -> tuple[NDArray[Any] | None, NDArray[Any] | None, list[str]]:
    """Labels of both splits as places in the list of all classes that occur, and their names."""
    given = [labels for labels in (train, test) if labels is not None]
    if not given:
        return None, None, []
    kind = np.result_type(*given)
    # 64 bits with a sign and without one have no common integer type: NumPy would take floats.
    exact = [labels.astype(kind if kind.kind in "iu" else object) for labels in given]
    labels, names = integer_classes(np.concatenate(exact))
    dense = labels.numpy()
    first = 0 if train is None else len(train)
    return None if train is None else dense[:first], None if test is None else dense[first:], names
