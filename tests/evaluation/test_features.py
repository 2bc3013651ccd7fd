import pytest
import torch
import torch.multiprocessing as mp
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from contrastive.data import Batch
from contrastive.evaluation import Features, extract_features
from contrastive.evaluation.features import BLOCK_ELEMENTS, class_positions, row_blocks


class Encoder(nn.Module):
    """Batch norm and dropout show in which mode the encoder was run."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 3)
        self.rest = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5))

    def forward(self, x):
        return self.rest(self.linear(x))


def batches(inputs, index, labels=None, size=4):
    for start in range(0, len(inputs), size):
        part = slice(start, start + size)
        yield Batch(inputs[part], index[part], None if labels is None else labels[part])


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return Encoder()


def test_features_are_those_of_evaluation_mode_and_the_mode_is_restored(encoder):
    encoder.train()
    encoder.rest[1].eval()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    x = torch.randn(13, 2)
    features = extract_features(encoder, batches(x, torch.arange(13), torch.arange(13) % 3))
    assert [module.training for module in encoder.modules()] == [True, True, True, True, False]
    assert all(torch.equal(before[name], value) for name, value in encoder.state_dict().items())
    torch.testing.assert_close(features.vectors, encoder.eval()(x).detach())
    assert features.vectors.dtype == torch.float32
    assert not features.vectors.requires_grad
    assert features.labels.tolist() == [i % 3 for i in range(13)]


def test_the_mode_is_restored_after_an_error(encoder):
    encoder.train()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        extract_features(encoder, batches(torch.zeros(4, 5), torch.arange(4)))
    assert all(module.training for module in encoder.modules())


def test_repeated_samples_are_dropped_and_order_is_that_of_the_index(encoder):
    x = torch.randn(6, 2)
    index = torch.tensor([4, 1, 3, 4, 0, 2])
    features = extract_features(encoder, batches(x, index, index * 10))
    assert features.index.tolist() == [0, 1, 2, 3, 4]
    assert features.labels.tolist() == [0, 10, 20, 30, 40]
    torch.testing.assert_close(features.vectors[4], encoder.eval()(x[:1])[0].detach())  # the first of the two


def test_ordinary_loaders_of_pairs_are_numbered_as_they_come(encoder):
    x, y = torch.randn(5, 2), torch.tensor([3, 1, 4, 1, 5])
    features = extract_features(encoder, DataLoader(TensorDataset(x, y), batch_size=2))
    assert features.labels.tolist() == y.tolist()
    assert features.index.tolist() == list(range(5))


def test_an_encoder_without_parameters_runs_on_the_cpu():
    features = extract_features(nn.Flatten(), batches(torch.ones(2, 2, 2), torch.arange(2)))
    assert features.vectors.shape == (2, 4)
    assert features.labels is None


def test_a_nan_is_refused_and_the_first_bad_row_named():
    x = torch.ones(8, 2)
    x[5, 1], x[7, 0] = float("nan"), float("inf")
    with pytest.raises(ValueError, match=r"2 of 8 vectors.*row 5 \(sample 105\)"):
        extract_features(nn.Identity(), batches(x, torch.arange(100, 108)))


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Features(torch.ones(3, 2, dtype=torch.int64)), TypeError, "floating point"),
        (lambda: Features(torch.ones(3, 2, 2)), ValueError, "flatten"),
        (lambda: Features(torch.ones(0, 2)), ValueError, "at least one row"),
        (lambda: Features(torch.ones(3, 2), torch.ones(3)), TypeError, "labels.long"),
        (
            lambda: Features(torch.ones(3, 2), torch.ones(2, dtype=torch.int64)),
            ValueError,
            "one integer a row",
        ),
        (lambda: extract_features(nn.Identity(), []), ValueError, "no batch"),
        (
            lambda: extract_features(nn.Identity(), batches(torch.ones(4, 2, 2), torch.arange(4))),
            ValueError,
            "pool or flatten",
        ),
        (
            lambda: Features(torch.ones(3, 2)).require_labels("knn"),
            ValueError,
            "knn: these features have no labels",
        ),
        (
            lambda: class_positions(
                Features(torch.ones(1, 2), torch.tensor([1])),
                Features(torch.ones(1, 3), torch.tensor([1])),
                "x",
            ),
            ValueError,
            "same encoder",
        ),
    ],
)
def test_bad_input_is_refused(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_class_positions_come_from_the_union():
    train, test = (
        Features(torch.ones(2, 1), torch.tensor([9, -3])),
        Features(torch.ones(2, 1), torch.tensor([4, 9])),
    )
    classes, first, second = class_positions(train, test, "test")
    assert classes.tolist() == [-3, 4, 9]
    assert (first.tolist(), second.tolist()) == ([2, 0], [1, 2])


def test_blocks_cover_all_rows_and_stay_small():
    blocks = list(row_blocks(10, BLOCK_ELEMENTS // 3))
    assert [(block.start, block.stop) for block in blocks] == [(0, 3), (3, 6), (6, 9), (9, 10)]
    assert [(block.start, block.stop) for block in row_blocks(2, 10 * BLOCK_ELEMENTS)] == [(0, 1), (1, 2)]


def _rank(rank, port, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    x = torch.arange(26.0).view(13, 2)
    index = torch.tensor([*range(13), 0])[rank::2]  # padded with sample 0, as samplers do
    features = extract_features(nn.Identity(), batches(x[index], index, index + 50))
    alone = extract_features(nn.Identity(), batches(x[index], index), gather=False)
    uneven = extract_features(nn.Identity(), batches(x[: 3 + rank], torch.arange(3 + rank)))
    try:
        extract_features(nn.Identity(), [(x, index)])
    except ValueError as error:
        message = str(error)
    torch.save(
        [features.vectors, features.labels, features.index, len(alone), len(uneven), message],
        folder / f"{rank}.pt",
    )
    torch.distributed.destroy_process_group()


def test_two_processes_gather_thirteen_samples_once_each(tmp_path, unused_tcp_port):
    mp.spawn(_rank, (unused_tcp_port, tmp_path), nprocs=2)
    for rank in range(2):
        vectors, labels, index, alone, uneven, message = torch.load(
            tmp_path / f"{rank}.pt", weights_only=True
        )
        assert index.tolist() == list(range(13))
        assert labels.tolist() == list(range(50, 63))
        assert torch.equal(vectors, torch.arange(26.0).view(13, 2))
        assert alone == 7  # without gathering a process keeps to its own
        assert uneven == 4
        assert "cannot be joined" in message


@pytest.fixture
def unused_tcp_port():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
