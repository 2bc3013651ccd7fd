r"""SepCLR: what targets share with a background set, apart from what only targets have.

R. Louiset, E. Duchesnay, A. Grigis, P. Gori, "Separating Common from Salient Patterns with Contrastive Representation
Learning", ICLR 2024, arXiv 2402.11928.

A common code ``c`` (unit vectors) and a salient code ``s`` (Euclidean) come from two encoders. The background has
nothing salient: there ``s`` is drawn to 0, and 0 stands in its place wherever pairs are compared (``s~``). With
``D(a)_ij = |a_i - a_j|^2`` and the temperature ``t``, for views 1 and 2 of N samples, averaged over views:

    alignment  A = mean_i |a1_i - a2_i|^2 / 2t                    of c, and of the targets' s
    uniformity U = log mean_{i != j} exp(-D_ij / 2t)              of c, and of s~ with the background's zeros
    background R = mean_{i in background} |s_i|^2 / 2t
    information J = mean_i log( 1/N sum_j exp(-(D(c)_ij + D(s~)_ij) / 2t) ),   j = i included

    L = A(c) + w U(c) + beta_s (A(s) + w U(s~)) + beta_r R + lambda J

``J`` is minus a kernel estimate of the joint entropy of ``c`` and ``s~`` (k-JEM). Of the mutual information
``H(c) + H(s) - H(c, s)`` only this part is minimised, since uniformity already maximises the others.
"""

import math
import warnings
from collections.abc import Iterable
from itertools import combinations
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from contrastive.arguments import checked, usable
from contrastive.checks import check_choice
from contrastive.errors import InvalidType, InvalidValue
from contrastive.objectives.base import Objective
from contrastive.objectives.independence import VariationalTerm, mmd
from contrastive.objectives.inputs import (
    check_integers,
    check_temperature,
    check_views,
    described,
    scaled_rows,
)
from contrastive.similarity import Gathered, average, gather, gaussian_logsumexp, global_mean, stream_rows
from contrastive.similarity.rows import at_least_float32

Information = Literal["none", "k-JEM", "k-MI", "MMD", "vCLUB", "vCLUB-sampled", "vUB", "vL1Out", "TC"]
_WITH_NETWORK = ("vCLUB", "vCLUB-sampled", "vUB", "vL1Out", "TC")


# ---------------------------------------------------------------------- the terms


def alignment(x: Tensor, y: Tensor, temperature: float = 0.5, valid: Tensor | None = None) -> Tensor:
    """``mean_i |x_i - y_i|^2 / 2t`` of rows ``(B, D)``, those of ``valid`` ``(B,)`` only; 0 if there are none."""
    check_views("alignment", (x, y), minimum=2)
    check_temperature("alignment", temperature)
    if valid is not None:
        check_integers("alignment", "valid", valid, len(x))
        valid = valid.bool()
    return global_mean((x - y).square().sum(1), valid) / (2 * float(temperature))


def uniformity(x: Tensor, temperature: float = 0.5) -> Tensor:
    """``log mean_{i != j} exp(-|x_i - x_j|^2 / 2t)`` of rows ``(B, D)``; 0 for fewer than two of them."""
    check_views("uniformity", (x,), minimum=1)
    check_temperature("uniformity", temperature)
    rows = gather(x)
    return _uniformity(gaussian_logsumexp([rows], temperature)[0], len(rows.all))


def kernel_entropy(*codes: Tensor, temperature: float = 0.5) -> Tensor:
    """``-mean_i log mean_j exp(-sum_k |a_ki - a_kj|^2 / 2t)`` of codes ``a_k`` ``(B, D_k)``, ``j = i`` included.

    Of a common and a salient code this is ``-J``, which k-JEM maximises.
    """
    if not codes:
        raise InvalidValue("kernel_entropy: got no codes; give one or more, (B, D) each.")
    check_temperature("kernel_entropy", temperature)
    for code in codes:
        check_views("kernel_entropy", (code,), minimum=1)
        if len(code) != len(codes[0]):
            raise InvalidValue(
                f"kernel_entropy: codes have {len(codes[0])} and {len(code)} rows; give codes of the same samples."
            )
    return _entropy(gaussian_logsumexp([gather(code) for code in codes], temperature)[0])


def kernel_mutual_information(common: Tensor, salient: Tensor, temperature: float = 0.5) -> Tensor:
    """``H(c) + H(s) - H(c, s)`` with :func:`kernel_entropy` as ``H``."""
    of_common, of_salient, joint = (
        kernel_entropy(*codes, temperature=temperature)
        for codes in ((common,), (salient,), (common, salient))
    )
    return of_common + of_salient - joint


def _uniformity(log_sums: Tensor, count: int) -> Tensor:
    """From the log-sums over pairs, of each row ``(M,)`` or of all ``()``, and the number of samples anywhere."""
    if count < 2:
        return log_sums.new_zeros(())
    return gather(log_sums.reshape(-1)).all.logsumexp(0) - math.log(count * (count - 1))


def _entropy(row_sums: Tensor) -> Tensor:
    """From each row's log-sum over the others; its own kernel is 1."""
    count = len(gather(row_sums.detach()).all)
    with_own = torch.logaddexp(row_sums, torch.zeros_like(row_sums))
    return math.log(max(count, 1)) - global_mean(with_own)


# ---------------------------------------------------------------------- the method


class SepCLR(Objective):
    """Separate a common from a salient code with nothing but the label background or target.

    Called as ``objective(common_views, salient_views, is_target=...)``: two or more views of the common codes
    ``(B, dc)`` and of the salient codes ``(B, ds)``, and ``is_target`` ``(B,)`` bool. Means over the background or the
    targets are 0 in a batch that has none, with a warning. Only the ratios of the weights matter under Adam.

    Args:
        temperature: ``t``, for all kernels.
        salient_weight: ``beta_s``. The published values are 1000 for natural and 1 for medical images.
        background_weight: ``beta_r``; 1000, and 10 to 100.
        uniformity_weight: ``w``.
        information: what is minimised to make the codes independent: the kernel joint entropy ``"k-JEM"``, the kernel
            mutual information ``"k-MI"``, or one of :mod:`contrastive.objectives.independence`. ``"MMD"`` compares the
            common codes of background and targets.
        information_weight: ``lambda``.
        dims: widths ``(dc, ds)`` of the codes, for the terms that have a network; a training module tells them.
        hidden_dim: width of their hidden layers; not read by ``"TC"``, whose layers are ``dc + ds`` wide.
        variant: ``"released"`` averages ``"vUB"`` over the entries of a code, as its published code does, where it
            should be summed. No other term differs.

    Raises:
        ValueError: for options out of range, views that do not belong together, or a wrong ``is_target``.
    """

    requires = ("is_target",)

    @checked
    def __init__(
        self,
        temperature: float = 0.5,
        salient_weight: float = 1000.0,
        background_weight: float = 1000.0,
        uniformity_weight: float = 2.0,
        information: Information = "k-JEM",
        information_weight: float = 10.0,
        dims: tuple[int, int] | None = None,
        hidden_dim: int = 64,
        variant: Literal["corrected", "released"] = "corrected",
    ) -> None:
        super().__init__()
        check_temperature("SepCLR", temperature)
        check_choice("SepCLR", "information", information, get_args(Information))
        check_choice("SepCLR", "variant", variant, ("corrected", "released"))
        self.temperature = temperature
        self.salient_weight = _checked_weight("SepCLR", "salient_weight", salient_weight)
        self.background_weight = _checked_weight("SepCLR", "background_weight", background_weight)
        self.uniformity_weight = _checked_weight("SepCLR", "uniformity_weight", uniformity_weight)
        self.information = information
        self.information_weight = _checked_weight("SepCLR", "information_weight", information_weight)
        self.hidden_dim = hidden_dim
        self.variant = variant
        self.network: VariationalTerm | None = None
        if dims is not None:
            if len(dims) != 2:
                raise InvalidValue(
                    f"SepCLR: dims is {dims}; give two widths, of the common and of the salient codes."
                )
            self.setup(0, dim=dims[0], salient_dim=dims[1])

    def setup(
        self,
        num_samples: int,
        *,
        num_classes: int = 0,
        dim: int | None = None,
        salient_dim: int | None = None,
    ) -> None:
        """Build the network of the information term, if it has one; ``salient_dim`` is ``dim`` if not given."""
        if self.information in _WITH_NETWORK and self.network is None and dim is not None:
            released = self.variant == "released"
            self.network = VariationalTerm(
                self.information, dim, salient_dim or dim, self.hidden_dim, over_entries=released
            )

    def forward(  # type: ignore[override]
        self,
        common_views: Iterable[Tensor],
        salient_views: Iterable[Tensor],
        *,
        is_target: Tensor,
        permutation: Tensor | None = None,
    ) -> Tensor:
        """Return the loss.

        Args:
            common_views: V tensors ``(B, dc)``, not normalised.
            salient_views: V tensors ``(B, ds)``.
            is_target: ``(B,)`` bool or 0 and 1.
            permutation: ``(N,)`` order of the samples of all processes for ``"vCLUB-sampled"``; drawn if not given.
        """
        batch = _Batch.of("SepCLR", common_views, salient_views, is_target, self.temperature, min_views=2)
        if len(batch.salient) != len(batch.common):
            raise InvalidValue(
                f"SepCLR: got {len(batch.common)} common and {len(batch.salient)} salient views; give both codes of "
                "every view."
            )
        if self.information not in _WITH_NETWORK:  # some of these compare a sample with the next
            batch = batch.background_first()
        terms = dict.fromkeys(("common_uniformity", "salient_uniformity", "information"), batch.zero)
        for common, salient in zip(batch.common, batch.teachers, strict=True):
            found = self._pairwise(gather(common), gather(salient), batch.is_target, permutation)
            terms = {
                name: terms[name] + value / len(batch.common)
                for name, value in zip(terms, found, strict=True)
            }
        terms["common_alignment"] = batch.alignment(batch.common)
        terms["salient_alignment"] = batch.alignment(batch.salient, batch.is_target)
        terms["background"] = torch.stack([batch.background(s) for s in batch.salient]).mean()
        self.log(**terms)
        common = terms["common_alignment"] + self.uniformity_weight * terms["common_uniformity"]
        salient = terms["salient_alignment"] + self.uniformity_weight * terms["salient_uniformity"]
        return (
            common
            + self.salient_weight * salient
            + self.background_weight * terms["background"]
            + self.information_weight * terms["information"]
        )

    def _pairwise(
        self, common: Gathered, salient: Gathered, is_target: Tensor, permutation: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Uniformity of both codes and the information term, for one view."""
        count = len(common.all)
        if self.information == "k-JEM":
            joint, (of_common, of_salient) = gaussian_logsumexp([common, salient], self.temperature)
            information = -_entropy(joint)
        else:
            of_common, of_salient = (
                gaussian_logsumexp([code], self.temperature)[0] for code in (common, salient)
            )
            information = common.local.sum() * 0.0
        if self.information == "k-MI":
            joint, _ = gaussian_logsumexp([common, salient], self.temperature)
            information = _entropy(of_common) + _entropy(of_salient) - _entropy(joint)
        if self.information == "MMD":
            information = mmd(common, gather(is_target))
        elif self.information in _WITH_NETWORK:
            if self.network is None:
                raise InvalidValue(
                    f"SepCLR: information={self.information!r} has a network whose size is not known; give "
                    "dims=(width of common codes, width of salient codes)."
                )
            with torch.autocast(common.local.device.type, enabled=False):
                information = self.network(common, salient, permutation)
        return _uniformity(of_common, count), _uniformity(of_salient, count), information


class SupervisedSepCLR(Objective):
    """SepCLR where attributes of the targets are known: salient coordinate ``k`` is to follow attribute ``k``.

    Called as ``objective(common_views, salient_views, is_target=..., attributes=...)`` with two or more common views
    and one salient view ``(B, K)``, that of the first, for K attributes ``(B, K)`` (not read for the background).
    With weights ``W_k(i, j)`` between 1 for equal and 0 for different attributes,

        L = A(c) + U(c) + beta_s / K sum_k [ U(s~_k) + (SA_k + R_k) / 2 ] + lambda J(c, s~)
        SA_k = mean over pairs of targets of W_k(i, j) (s_ik - s_jk)^2
        R_k  = mean_{i in background} s_ik^2 / 2 t_k

    where ``W_k = exp(-(Y_ik - Y_jk)^2 / 2 t_k)`` and ``t_k = attribute_temperature`` for continuous attributes, and for
    discrete ones ``W_k`` is 1 or 0 and ``t_k = temperature``. Attributes are compared in the units given.

    For a loop of your own: :class:`~contrastive.training.Separate` has no attributes to pass.

    Args:
        temperature: ``t`` of the kernels.
        attribute_temperature: ``t_k`` of continuous attributes.
        discrete: columns of ``attributes`` whose values are names.
        salient_weight: ``beta_s``.
        information_weight: ``lambda``.

    Raises:
        ValueError: for options out of range or inputs that do not belong together.
    """

    requires = ("is_target", "attributes")

    @checked
    def __init__(
        self,
        temperature: float = 0.5,
        attribute_temperature: float = 0.025,
        discrete: tuple[int, ...] = (0,),
        salient_weight: float = 100.0,
        information_weight: float = 10.0,
    ) -> None:
        super().__init__()
        check_temperature("SupervisedSepCLR", temperature)
        check_temperature("SupervisedSepCLR", attribute_temperature, name_of_value="attribute_temperature")
        self.temperature = temperature
        self.attribute_temperature = attribute_temperature
        self.discrete = tuple(discrete)
        self.salient_weight = _checked_weight("SupervisedSepCLR", "salient_weight", salient_weight)
        self.information_weight = _checked_weight(
            "SupervisedSepCLR", "information_weight", information_weight
        )

    def forward(  # type: ignore[override]
        self,
        common_views: Iterable[Tensor],
        salient_views: Iterable[Tensor],
        *,
        is_target: Tensor,
        attributes: Tensor,
    ) -> Tensor:
        """Return the loss.

        Args:
            common_views: two or more ``(B, dc)``, not normalised; ``salient_views`` belongs to the first.
            salient_views: one ``(B, K)``.
            is_target: ``(B,)`` bool or 0 and 1.
            attributes: ``(B, K)``.
        """
        batch = _Batch.of(
            "SupervisedSepCLR", common_views, salient_views, is_target, self.temperature, min_views=1
        )
        if not usable(attributes):
            raise InvalidType(
                f"SupervisedSepCLR: attributes is {described(attributes)}; give a dense tensor (B, K)."
            )
        if len(batch.salient) != 1 or attributes.shape != batch.salient[0].shape:
            raise InvalidValue(
                f"SupervisedSepCLR: got {len(batch.salient)} salient views of shape {tuple(batch.salient[0].shape)} "
                f"and attributes of shape {tuple(attributes.shape)}; give one view with a column for each attribute."
            )
        salient, teacher = batch.salient[0], batch.teachers[0]
        codes = [gather(c) for c in batch.common]
        columns = [gather(column) for column in teacher.T[:, :, None]]
        count = len(codes[0].all)
        joint, totals = gaussian_logsumexp([codes[0], *columns], self.temperature)
        sums = [totals[0], *(gaussian_logsumexp([code], self.temperature)[0] for code in codes[1:])]
        spread = torch.stack([_uniformity(of_view, count) for of_view in sums]).mean()
        common = batch.alignment(batch.common) + spread
        of_salient = batch.zero
        for k, of_column in enumerate(totals[1:]):
            discrete = k in self.discrete
            temperature = self.temperature if discrete else self.attribute_temperature
            width = 1e-5 if discrete else 2 * temperature
            agreement = _agreement(
                salient[batch.is_target, k], attributes[batch.is_target, k].to(salient), width
            )
            rest = batch.background(salient[:, k : k + 1], temperature)
            term = _uniformity(of_column, count) + (agreement + rest) / 2
            of_salient = of_salient + term / len(columns)
        information = -_entropy(joint)
        self.log(common=common, salient=of_salient, information=information)
        return common + self.salient_weight * of_salient + self.information_weight * information


# ---------------------------------------------------------------------- what both share


class _Batch(NamedTuple):
    """Checked inputs: unit common codes, salient codes, and these with the background's rows set to 0."""

    common: list[Tensor]
    salient: list[Tensor]
    teachers: list[Tensor]
    is_target: Tensor
    temperature: float

    @classmethod
    def of(
        cls,
        name: str,
        common_views: Iterable[Tensor],
        salient_views: Iterable[Tensor],
        is_target: Tensor,
        temperature: float,
        *,
        min_views: int,
    ) -> "_Batch":
        commons, salients = (
            tuple(views) if isinstance(views, list | tuple) else (views,)
            for views in (common_views, salient_views)
        )
        check_views(f"{name}, common_views", commons, minimum=2)
        check_views(f"{name}, salient_views", salients, minimum=min_views)
        size = len(commons[0])
        check_integers(name, "is_target", is_target, None)
        if len(salients[0]) != size or is_target.shape != (size,) or is_target.is_floating_point():
            raise InvalidValue(
                f"{name}: common views have {size} rows, salient views {len(salients[0])}, and is_target has shape "
                f"{tuple(is_target.shape)} and dtype {is_target.dtype}; give both codes of the same samples, and for "
                "each True (target) or False (background)."
            )
        is_target = is_target.bool()
        everywhere = gather(is_target).all
        if bool(everywhere.all()) or not bool(everywhere.any()):
            what = "background" if len(everywhere) and bool(everywhere.all()) else "targets"
            warnings.warn(
                f"{name}: a batch has no {what}, and its terms for {what} are 0; mix background and targets in every "
                "batch.",
                stacklevel=4,
            )
        salient = [at_least_float32(s) for s in salients]
        teachers = [torch.where(is_target[:, None], s, torch.zeros_like(s)) for s in salient]
        return cls([scaled_rows(c, 1.0) for c in commons], salient, teachers, is_target, temperature)

    def background_first(self) -> "_Batch":
        """The same samples, so ordered that the zeros among the teachers stand together, which saves their kernels."""
        order = self.is_target.to(torch.uint8).argsort(stable=True)
        return self._replace(
            common=[view[order] for view in self.common],
            salient=[view[order] for view in self.salient],
            teachers=[view[order] for view in self.teachers],
            is_target=self.is_target[order],
        )

    @property
    def zero(self) -> Tensor:
        return self.common[0].new_zeros(())

    def alignment(self, views: list[Tensor], valid: Tensor | None = None) -> Tensor:
        """Mean over all pairs of views."""
        pairs = [alignment(x, y, self.temperature, valid) for x, y in combinations(views, 2)]
        return torch.stack(pairs).mean()

    def background(self, salient: Tensor, temperature: float | None = None) -> Tensor:
        """``mean_{i in background} |s_i|^2 / 2t``, 0 without background."""
        return alignment(salient, torch.zeros_like(salient), temperature or self.temperature, ~self.is_target)


def _agreement(values: Tensor, attribute: Tensor, width: float) -> Tensor:
    """Mean over pairs of ``exp(-(Y_i - Y_j)^2 / width) (s_i - s_j)^2``, of targets' ``values`` ``(M,)``; 0 for one."""
    column, names = gather(values[:, None]), gather(attribute)
    squares = column.local.square()[:, 0], column.all.square()[:, 0]

    def row_loss(products: Tensor, rows: slice, own: Tensor, everywhere: Tensor) -> Tensor:
        closeness = (-(names.local[rows, None] - names.all).square() / width).exp()
        return (closeness * (own[rows, None] + everywhere - 2 * products)).sum()

    total = stream_rows(column.local, column.all, row_loss, *squares)
    return average(total, len(column.local) * max(len(column.all) - 1, 0))


def _checked_weight(objective: str, name: str, value: float) -> float:
    if not (math.isfinite(value) and value >= 0):
        raise InvalidValue(f"{objective}: {name} is {value}; give 0 or more.")
    return value
