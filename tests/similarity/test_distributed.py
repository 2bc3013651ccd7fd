import torch

from contrastive.similarity import Gathered, average, gather, global_mean, global_sum
from contrastive.testing import run_on_processes

COUNTS = [3, 0, 1, 2]


def test_one_process_is_its_own_world():
    x = torch.randn(4, 2)
    assert gather(x) == Gathered(x, x, 0)
    assert gather(x).all is x
    assert global_mean(torch.tensor([1.0, 2.0, 6.0])).item() == 3.0
    assert global_mean(torch.tensor([1.0, 2.0, 6.0]), torch.tensor([True, False, True])).item() == 3.5
    assert average(torch.tensor(6.0), 4).item() == 1.5
    assert global_sum(torch.tensor(2.0)).item() == 2.0


def test_mean_of_nothing_is_a_differentiable_zero():
    x = torch.randn(3, requires_grad=True)
    loss = global_mean(x, torch.zeros(3, dtype=torch.bool))
    (grad,) = torch.autograd.grad(loss, x)
    assert loss.item() == 0
    assert (grad == 0).all()


def _gather(rank, world_size):
    start = sum(COUNTS[:rank])
    rows = (
        torch.arange(start, start + COUNTS[rank], dtype=torch.float64)[:, None].repeat(1, 2).requires_grad_()
    )
    gathered = gather(rows)
    # Every process weights the columns by its own rank: gradients must add up over all of them.
    (gathered.all * (rank + 1)).sum().backward()
    values = torch.full((COUNTS[rank],), float(rank), dtype=torch.float64)
    return {
        "all": gathered.all[:, 0].tolist(),
        "start": gathered.start,
        "grad": rows.grad.tolist(),
        "mean": global_mean(values).item(),
        "labels": gather(torch.full((COUNTS[rank],), rank)).all.tolist(),
    }


def test_uneven_batches_gather_in_rank_order_and_gradients_are_summed():
    results = run_on_processes(4, _gather)
    for rank, result in enumerate(results):
        assert result["all"] == [0, 1, 2, 3, 4, 5]
        assert result["start"] == sum(COUNTS[:rank])
        assert result["labels"] == [0, 0, 0, 2, 3, 3]
        assert result["grad"] == [[1 + 2 + 3 + 4] * 2] * COUNTS[rank]
    # The average over processes of the local shares is the mean over all six values.
    assert sum(result["mean"] for result in results) / 4 == (2 + 3 + 3) / 6


def _fail_on_rank_one(rank, world_size):
    if rank == 1:
        raise ValueError("no rows here")
    return rank


def test_an_error_in_a_process_is_reported():
    import pytest

    with pytest.raises(RuntimeError, match=r"process 1 of 2 failed(.|\n)*no rows here"):
        run_on_processes(2, _fail_on_rank_one)
