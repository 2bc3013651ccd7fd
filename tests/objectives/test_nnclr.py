from functools import partial

import pytest
import torch
from torch import Tensor, nn

from contrastive.encoders import PredictionHead
from contrastive.objectives import NNCLR
from contrastive.testing import CHECKS, ObjectiveCase, run_on_processes


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=1, keepdim=True)


def random_queue(size: int, dim: int) -> Tensor:
    random = torch.randn(size, dim, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.normalize(random, dim=1)  # stored in float32


def naive(a: Tensor, b: Tensor, labels: Tensor | None, t: float = 0.1, size: int = 16) -> Tensor:
    """A first step, with a queue of random rows; one anchor at a time."""
    queue = unit(random_queue(size, a.shape[1]).double())
    losses = []
    for x, y in ((unit(a), unit(b)), (unit(b), unit(a))):
        found = torch.stack([max(queue, key=lambda q, z=z: float((z @ q).detach())) for z in x])
        for i in range(len(x)):
            by_candidate = torch.stack([found[i] @ y[k] for k in range(len(x))]) / t
            by_neighbour = torch.stack([found[k] @ y[i] for k in range(len(x))]) / t
            losses += [-by_candidate.log_softmax(0)[i], -by_neighbour.log_softmax(0)[i]]
    return torch.stack(losses).mean()


CASES = [
    ObjectiveCase("NNCLR", partial(NNCLR, queue_size=16), naive, positions=False),
    ObjectiveCase("NNCLR-labels", partial(NNCLR, queue_size=16), naive, labels=True, positions=False),
    ObjectiveCase("NNCLR-warm", partial(NNCLR, 0.7, 16), partial(naive, t=0.7), positions=False),
]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_conformance(case: ObjectiveCase, check: str):
    CHECKS[check](case)


def predicting() -> NNCLR:
    torch.manual_seed(0)
    return NNCLR(queue_size=16, predictor=nn.Linear(6, 6))


@pytest.mark.parametrize("check", ["resume", "processes"])
def test_with_a_predictor(check):
    CHECKS[check](ObjectiveCase("NNCLR-predictor", predicting, positions=False))


def test_the_predictor_meets_the_neighbours():
    torch.manual_seed(0)
    z1, z2 = torch.randn(2, 5, 4)
    predictor = PredictionHead(4, 8).eval()
    found = NNCLR(queue_size=16, predictor=predictor)(z1, z2)
    queue = random_queue(16, 4)
    losses = []
    for x, y in ((z1, z2), (z2, z1)):
        neighbours = queue[(unit(x) @ queue.T).argmax(1)]
        logits = neighbours @ unit(predictor(y)).T / 0.1
        losses += [torch.nn.functional.cross_entropy(m, torch.arange(5)) for m in (logits, logits.T)]
    torch.testing.assert_close(found, torch.stack(losses).mean())


def test_neighbours_are_of_earlier_steps_and_only_the_first_view_is_kept():
    objective = NNCLR(queue_size=8)
    torch.manual_seed(0)
    z1, z2 = torch.randn(2, 8, 4)
    objective(z1, z2)
    torch.testing.assert_close(objective.queue.rows, unit(z1))
    objective.eval()(z2, z1)
    torch.testing.assert_close(objective.queue.rows, unit(z1))
    objective(z1, z1)  # every row finds itself
    torch.testing.assert_close(objective.stats["neighbour_similarity"], torch.tensor(1.0))


def test_labels_are_logged_and_change_nothing():
    told, untold = NNCLR(queue_size=32), NNCLR(queue_size=32)
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(0, 4, (16,), generator=generator)
        views = torch.eye(4)[labels] + 0.1 * torch.randn(2, 16, 4, generator=generator)
        assert torch.equal(told(*views, labels=labels), untold(*views))
    assert told.stats["neighbour_precision"] > 0.95
    assert "neighbour_precision" not in untold.stats


def queue_on_rank(rank, world_size):
    objective = NNCLR(queue_size=20)
    for number in range(3):
        objective(*torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(10 * number + rank)))
    return objective.state_dict()


def test_the_queue_is_bitwise_the_same_on_all_processes():
    first, *others = run_on_processes(4, queue_on_rank)
    assert all(torch.equal(value, other[name]) for other in others for name, value in first.items())


@pytest.mark.parametrize(
    ("options", "message"),
    [({"queue_size": 0}, "queue_size is 0"), ({"temperature": -1.0}, "temperature is -1")],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        NNCLR(**options)


def test_refuses_other_than_two_views():
    with pytest.raises(ValueError, match="got 3 views"):
        NNCLR()(*torch.randn(3, 4, 2))
