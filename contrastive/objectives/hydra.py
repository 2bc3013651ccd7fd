"""Hydra / SimLAP: Wu, Atito, Feng, Mo, Kittler and Awais, "Rethinking Positive Pairs in Contrastive Learning".

arXiv 2410.18200. Usual methods pull together what shares a class. Here *any* two classes are a positive pair, but only
inside the subspace that a learned gate selects for this pair: so no pair can pull everything together, and the gates
tell which classes have much in common. :mod:`contrastive.objectives.gates` draws pairs and makes gates,
:func:`contrastive.objectives.gated.gated_contrast` is the loss.
"""

import math
from collections.abc import Sequence
from functools import partial
from itertools import permutations
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from contrastive.arguments import checked
from contrastive.checks import check_choice
from contrastive.errors import InvalidValue, NotReady
from contrastive.objectives.base import Objective
from contrastive.objectives.gated import gated_contrast
from contrastive.objectives.gates import GateGenerator, draw_partners
from contrastive.objectives.inputs import check_temperature, check_views, scaled_rows
from contrastive.similarity import gather, global_mean, logsumexp_cross

if TYPE_CHECKING:
    from contrastive.evaluation.relations import ClassRelations

_MAX_LOG_SCALE = math.log(100)  # a learnable temperature stays above 1/100


class _Form(NamedTuple):
    """What the three published forms differ in."""

    similarity: Literal["cosine", "dot"]
    reduction: Literal["pairs", "queries"]
    keys: Literal["other", "second", "same"]
    temperature: float
    learnable_temperature: bool


_FORMS = {
    "hydra": _Form("cosine", "pairs", "other", 0.2, False),
    "simlap": _Form("dot", "queries", "other", 0.1, True),
    "simlap-supervised": _Form("dot", "pairs", "same", 0.1, False),
}


class Hydra(Objective):
    """Any two classes attract each other in the subspace that a learned gate opens for them.

    ``form="hydra"``: cosine in the subspace, mean over positive pairs. ``"simlap"``: gated dot product, learnable
    temperature, mean over the positives of each query. ``"simlap-supervised"``: gated dot product among all views.
    Hydra-MoCo is ``Hydra(instance_term=True, keys="second")`` behind a momentum encoder.

    Args:
        num_classes: C; leave it out to take the data's in :meth:`setup`.
        dim: D; leave it out to take the projector's in :meth:`setup`.
        form: the published form, which decides similarity, reduction and the defaults of the next three.
        keys: ``"other"``: the rows of each view meet those of every other view; ``"second"``: the first half of the
            views are queries and the second half keys, ``(queries, keys)`` or ``(q1, q2, k1, k2)`` with q1 meeting k2,
            as a momentum encoder makes them; ``"same"``: all views are queries and keys of each other.
        temperature: ``t``, or its initial value: 0.2 for Hydra, 0.1 for SimLAP.
        learnable_temperature: learn ``log(1 / t)``, kept below log 100.
        pairs: how the partner class of a sample is drawn, see :func:`draw_partners`.
        gate: ``"sigmoid"``, ``"stochastic"`` or ``"gumbel"``, see :class:`GateGenerator`; ``"open"``: no gate.
        fuse: how the gate of a pair is made of its classes, see :class:`GateGenerator`.
        embedding_dim: width of the embedding of a class.
        hidden_dim: width of the gate generator's hidden layer.
        gate_penalty: weight of :meth:`GateGenerator.penalty`, which pushes gates to 0 or 1.
        instance_term: add InfoNCE between the views of a sample, ungated: ``(instance + beta gated) / (1 + beta)``.
        beta: weight of the gated term. Read with ``instance_term``.
        repulsion: initial value of the learned ``a`` in ``s_ij - a cos(z_i, k_j)``; None for none. SimLAP only.
        variant: ``"released"`` repeats what the released code does to its cost: the gate penalty has no gradient, its
            batch norm runs over the classes and moves the running statistics, as does every direction's, and with
            ``keys="same"`` a query may be its own positive.

    Raises:
        ValueError: for options out of range or that exclude each other.
    """

    requires = ("labels",)

    @checked
    def __init__(
        self,
        num_classes: int | None = None,
        dim: int | None = None,
        form: Literal["hydra", "simlap", "simlap-supervised"] = "hydra",
        keys: Literal["other", "second", "same"] | None = None,
        temperature: float | None = None,
        learnable_temperature: bool | None = None,
        pairs: Literal["arbitrary", "identical", "distinct"] = "arbitrary",
        gate: Literal["sigmoid", "stochastic", "gumbel", "open"] = "sigmoid",
        fuse: Literal["mean", "product"] = "mean",
        embedding_dim: int = 512,
        hidden_dim: int = 1024,
        gate_penalty: float = 0.0,
        instance_term: bool = False,
        beta: float = 1.0,
        repulsion: float | None = None,
        variant: Literal["corrected", "released"] = "corrected",
    ) -> None:
        super().__init__()
        check_choice("Hydra", "form", form, tuple(_FORMS))
        given: dict[str, Any] = {
            "keys": keys,
            "temperature": temperature,
            "learnable_temperature": learnable_temperature,
        }
        self.form = _FORMS[form]._replace(
            **{name: value for name, value in given.items() if value is not None}
        )
        check_choice("Hydra", "keys", self.form.keys, ("other", "second", "same"))
        check_choice("Hydra", "pairs", pairs, ("arbitrary", "identical", "distinct"))
        check_choice("Hydra", "gate", gate, ("sigmoid", "stochastic", "gumbel", "open"))
        check_choice("Hydra", "variant", variant, ("corrected", "released"))
        check_temperature("Hydra", self.form.temperature)
        for name, value in {"gate_penalty": gate_penalty, "beta": beta}.items():
            if not 0 <= value < math.inf:
                raise InvalidValue(f"Hydra: {name} is {value}; give a weight of 0 or more.")
        conflicts = {
            f"repulsion with form={form!r}; it belongs to SimLAP's forms": repulsion is not None
            and self.form.similarity == "cosine",
            "instance_term with keys='same'; it compares views, so take keys='other' or 'second'": instance_term
            and self.form.keys == "same",
            "gate_penalty with gate='open'; it needs gates": bool(gate_penalty) and gate == "open",
        }
        for conflict, present in conflicts.items():
            if present:
                raise InvalidValue(f"Hydra: {conflict}.")
        self.num_classes, self.dim = num_classes, dim
        self.pairs, self.gate_penalty, self.variant = pairs, gate_penalty, variant
        self.beta = beta if instance_term else None
        log_scale = nn.Parameter(torch.tensor(-math.log(self.form.temperature)))
        self.register_parameter("log_scale", log_scale if self.form.learnable_temperature else None)
        self.register_parameter(
            "repulsion", None if repulsion is None else nn.Parameter(torch.tensor(float(repulsion)))
        )
        self._gate_options: dict[str, Any] | None = None
        if gate != "open":
            self._gate_options = {
                "kind": gate,
                "fuse": fuse,
                "embedding_dim": embedding_dim,
                "hidden_dim": hidden_dim,
            }
        self.gates: GateGenerator | None = None
        self._build_gates()

    log_scale: nn.Parameter | None
    repulsion: nn.Parameter | None

    def setup(self, num_samples: int, *, num_classes: int = 0, dim: int | None = None) -> None:
        """Build the gate generator for the classes of the data and the width of the embeddings.

        Raises:
            ValueError: if the constructor was given fewer classes, or another width.
        """
        if self.num_classes is not None and num_classes > self.num_classes:
            raise InvalidValue(
                f"Hydra: num_classes is {self.num_classes} but the data has {num_classes} classes; leave it out."
            )
        if self.dim is not None and dim is not None and dim != self.dim:
            raise InvalidValue(f"Hydra: dim is {self.dim} but the embeddings have width {dim}; leave it out.")
        self.num_classes, self.dim = self.num_classes or num_classes or None, self.dim or dim
        self._build_gates()

    def _build_gates(self) -> None:
        """Build the gate generator as soon as its sizes are known."""
        if self._gate_options is not None and self.gates is None and self.num_classes and self.dim:
            self.gates = GateGenerator(self.num_classes, self.dim, **self._gate_options)

    @property
    def temperature(self) -> float | Tensor:
        """The present temperature; a scalar tensor with gradient if it is learnable."""
        return self.form.temperature if self.log_scale is None else (-self.log_scale).exp()

    def negatives_per_anchor(self, batch_size: int, num_views: int) -> int:
        """Keys of other samples that one query meets; those of the classes of its pair are not negatives."""
        return (batch_size - 1) * (num_views if self.form.keys == "same" else 1)

    def forward(
        self,
        *views: Tensor,
        index: Tensor | None = None,
        labels: Tensor | None = None,
        partners: Tensor | None = None,
    ) -> Tensor:
        """Return the loss of ``views``, each ``(B, D)``, of classes ``labels (B,)``.

        Partner classes ``partners (B,)`` are drawn if not given: in training from torch's global generator, in
        evaluation always the same for the same batch.
        """
        check_views("Hydra", views, minimum=1 if self.form.keys == "same" else 2)
        labels = self._check_classes("labels", labels, views[0])
        if partners is None:
            generator = None if self.training else torch.Generator(labels.device).manual_seed(0)
            partners = draw_partners(labels, self.num_classes or 1, self.pairs, generator)
        partners = self._check_classes("partners", partners, views[0])
        if self.log_scale is not None:
            with torch.no_grad():
                self.log_scale.clamp_(max=_MAX_LOG_SCALE)
        if self.form.keys == "same":
            labels, partners = labels.repeat(len(views)), partners.repeat(len(views))

        directions = self._directions(views)
        gates = self._gates_of(labels, partners, len(directions))
        contrast = partial(
            gated_contrast,
            labels=labels,
            partners=partners,
            temperature=self.temperature,
            similarity=self.form.similarity,
            reduction=self.form.reduction,
            repulsion=0.0 if self.repulsion is None else self.repulsion,
        )
        terms = [contrast(*pair, gate) for pair, gate in zip(directions, gates, strict=True)]
        loss = gated = torch.stack(terms).mean()
        stats: dict[str, Tensor | float] = {"gated_loss": gated, "temperature": self.temperature}
        if self.beta is not None:
            terms = [_instance_contrast(q, k, self.temperature) for q, k in directions if k is not None]
            stats["instance_loss"] = instance = torch.stack(terms).mean()
            loss = (instance + self.beta * gated) / (1 + self.beta)
        if self.gates is not None and len(labels):
            stats["gate_activation"] = gates[0].sum(1).mean()
            stats["gate_entropy"] = torch.special.entr(torch.stack([gates[0], 1 - gates[0]])).sum(0).mean()
        if self.gates is not None and (self.gate_penalty or self.variant == "released"):
            stats["gate_penalty"] = penalty = self.gates.penalty(released=self.variant == "released")
            loss = loss + self.gate_penalty * penalty
        self.log(**stats)
        return loss

    def _check_classes(self, name: str, classes: Tensor | None, view: Tensor) -> Tensor:
        """``classes`` as int64, if there is one of ``range(C)`` for each row of ``view``."""
        if self.num_classes is None or (self.gates is None and self._gate_options is not None):
            raise NotReady(
                "Hydra was called before its sizes were known: give num_classes and dim to the constructor, or call "
                "setup(num_samples, num_classes=..., dim=...) first."
            )
        if self.gates is not None and view.shape[1] != self.gates.dim:
            raise InvalidValue(
                f"Hydra: views have width {view.shape[1]}, gates {self.gates.dim}; set dim to the width of the views."
            )
        if classes is None or classes.shape != (len(view),) or classes.is_floating_point():
            given = "missing" if classes is None else f"{tuple(classes.shape)} {classes.dtype}"
            raise InvalidValue(
                f"Hydra: {name} are {given}; give one integer for each of the {len(view)} samples, ({len(view)},)."
            )
        if len(classes) and not 0 <= int(classes.min()) <= int(classes.max()) < self.num_classes:
            raise InvalidValue(
                f"Hydra: {name} lie in {int(classes.min())}..{int(classes.max())}; with num_classes="
                f"{self.num_classes} give integers from 0 to {self.num_classes - 1}."
            )
        return classes.long()

    def _directions(self, views: tuple[Tensor, ...]) -> list[tuple[Tensor, Tensor | None]]:
        """Pairs of (queries, keys); None for keys that are the queries."""
        if self.form.keys == "same":
            queries = torch.cat(views)
            return [(queries, None if self.variant == "corrected" else queries)]
        if self.form.keys == "other":
            return list(permutations(views, 2))
        if len(views) not in (2, 4):
            raise InvalidValue(
                f"Hydra: got {len(views)} views with keys='second'; give (queries, keys) or (q1, q2, k1, k2)."
            )
        half = len(views) // 2
        return list(zip(views[:half], reversed(views[half:]), strict=True))

    def _gates_of(self, labels: Tensor, partners: Tensor, directions: int) -> list[Any]:
        """The gates ``(B, D)`` of each direction, or None: computed once, since all have the same pairs."""
        if self.gates is None:
            return [None] * directions
        if self.variant == "released":  # which computes them again, and so moves the running statistics
            return [self.gates(labels, partners) for _ in range(directions)]
        return [self.gates(labels, partners)] * directions

    def class_relations(
        self,
        class_names: Sequence[str] = (),
        score: Literal["correlation", "cosine", "capacity"] = "correlation",
    ) -> "ClassRelations":
        """What the gates say about the classes: a matrix, a ranking of pairs, a picture.

        The paper fixes no score; these are this library's. Gates are those of evaluation; nothing changes by the call.

        Args:
            class_names: name of each class; by default its number.
            score: ``"correlation"`` of the gates of two classes, each dimension's mean over classes taken off;
                ``"cosine"`` of the gates as they are; ``"capacity"``: dimensions that the gate of the pair opens.

        Raises:
            ValueError: for an unknown score, or an objective without gates.
        """
        from contrastive.evaluation.relations import ClassRelations

        check_choice("class_relations", "score", score, ("correlation", "cosine", "capacity"))
        if self.gates is None:
            raise InvalidValue(
                "class_relations: this Hydra has no gates; train one with gates and known sizes."
            )
        if score == "capacity":
            return ClassRelations(self.gates.capacities(), class_names, score)
        gates = self.gates.class_gates()
        gates = gates - gates.mean(0) if score == "correlation" else gates
        unit = nn.functional.normalize(gates, dim=1)
        return ClassRelations(unit @ unit.T, class_names, score)


def _instance_contrast(queries: Tensor, keys: Tensor, temperature: float | Tensor) -> Tensor:
    """InfoNCE of queries ``(B, D)`` with the keys of all processes, row b of both being one sample."""
    rows, candidates = scaled_rows(queries, temperature), gather(scaled_rows(keys, temperature))
    return global_mean(logsumexp_cross(rows, candidates.all) - (rows * candidates.local).sum(1))
