"""Odd values for every public class and function: each returns, or refuses in a sentence of ours.

``scripts/reliability/malformed.py`` has the entries and the values, and tries as many as one likes.
"""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from contrastive import functional
from contrastive.arguments import checked
from contrastive.errors import InputError, InvalidType, InvalidValue
from contrastive.retrieval import Index
from contrastive.similarity import gather, logsumexp_both, logsumexp_cross, logsumexp_self

SCRIPT = Path(__file__).parents[1] / "scripts" / "reliability" / "malformed.py"
TRIES = 5000


@pytest.fixture(scope="module")
def malformed():
    spec = importlib.util.spec_from_file_location("malformed", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["malformed"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["malformed"]


def test_no_odd_value_ends_in_anything_but_a_result_or_a_sentence(malformed):
    faults = [fault for one in malformed.chosen(TRIES, seed=0) if (fault := malformed.attempt(*one))]
    assert not faults, "\n".join(map(str, faults))


@pytest.mark.filterwarnings("ignore")
def test_every_entry_works_as_it_is_called(malformed):
    """Otherwise a refusal would say nothing about the odd value."""
    torch.manual_seed(0)
    refused = {}
    for entry in malformed.entries():
        try:
            entry.run()
        except InputError as error:
            refused[entry.name] = str(error)
    assert not refused


def test_a_fault_is_found(malformed):
    def faulty(x: int) -> int:
        return x.no_such_attribute

    entry = malformed.Entry("faulty", faulty, lambda: {"x": 1}, ("x",))
    assert "AttributeError" in str(malformed.attempt(entry, "x", "object"))
    loss = malformed.Entry("loss", lambda x: torch.tensor(float("nan")), dict, ("x",), gives_loss=True)
    assert "gives nan" in str(malformed.attempt(loss, "x", "0"))


ROWS, IDS = torch.randn(6, 4), torch.arange(6)


@pytest.mark.parametrize("given", [{"ids": IDS}, {"other": IDS}], ids=["ids alone", "partner alone"])
@pytest.mark.parametrize(
    ("call", "partner"),
    [
        (lambda **ids: functional.queue_info_nce(ROWS, ROWS, ROWS, **ids), "queue_ids"),
        (lambda **ids: functional.hard_info_nce(ROWS, ROWS, IDS, num_negatives=2, **ids), "key_ids"),
        (lambda **ids: logsumexp_cross(ROWS, ROWS, **ids), "key_ids"),
        (lambda **ids: logsumexp_both(ROWS, ROWS, **ids), "key_ids"),
    ],
    ids=["queue_info_nce", "hard_info_nce", "logsumexp_cross", "logsumexp_both"],
)
def test_ids_without_those_they_are_compared_with_are_refused(call, partner, given):
    named = {"ids" if name == "ids" else partner: value for name, value in given.items()}
    with pytest.raises(InvalidValue, match=f"without .*{'ids' if 'other' in given else partner}"):
        call(**named)
    call(ids=IDS, **{partner: IDS})


def test_ids_of_other_processes_are_asked_for_where_there_are_any():
    everywhere = gather(ROWS)._replace(all=torch.cat([ROWS, ROWS]))
    with pytest.raises(InvalidValue, match="without all_ids"):
        logsumexp_self(everywhere, IDS)
    assert logsumexp_self(everywhere, IDS, torch.cat([IDS, IDS + 6])).shape == (6,)
    assert logsumexp_self(gather(ROWS), IDS).shape == (6,)


@pytest.mark.parametrize(
    ("view", "message"),
    [
        ([[0.1, 0.2]], "give a tensor"),
        (np.ones((6, 4), np.float32), r"torch\.as_tensor"),
        (None, "give a tensor"),
        (IDS, "labels=..."),
        (ROWS.to_sparse(), "dense"),
        (torch.empty(6, 4, device="meta"), "meta device"),
        (ROWS.to(torch.float8_e4m3fn), "float8"),
    ],
)
def test_what_is_no_view_is_explained(view, message):
    views = (view, view) if isinstance(view, torch.Tensor) else (ROWS, view)
    for call in (functional.info_nce, functional.sup_con, functional.groco, functional.cacr):
        with pytest.raises(InputError, match=message):
            call(*views)


@pytest.mark.parametrize("k", [np.int64(3), np.int32(3), torch.tensor(3), 3])
def test_numbers_of_numpy_count_neighbours(k):
    index = Index.build(ROWS)
    assert index.search(ROWS[:1], k)[1].shape == (1, 3)
    for bad in (1.5, float("nan"), True, "3"):
        with pytest.raises(InputError, match="k is"):
            index.search(ROWS[:1], bad)


@checked
def annotated(
    whole: int = 1,
    number: float | None = None,
    flag: bool = False,
    text: str = "",
    rows: "torch.Tensor | None" = None,
    several: "tuple[int, ...]" = (),
):
    """For the tests of annotations."""
    return whole, number, flag, text, rows, several


def test_annotations_are_kept_and_numbers_become_plain():
    found = annotated(np.int64(2), np.float32(0.5), np.True_, "x", ROWS, np.array([1, 2]))
    assert found[:4] == (2, 0.5, True, "x")
    assert [type(one) for one in found[:3]] == [int, float, bool]
    assert found[5] == (1, 2)
    assert annotated(number=1)[1] == 1
    for name, values in {
        "whole": (1.5, True, "1", 2**70, None),
        "number": ("1", True, [1.0], 2j),
        "flag": (1, "yes"),
        "text": (b"x", "a\0b", 3),
        "rows": ([1.0], ROWS.numpy(), ROWS.to_sparse()),
        "several": (5, [1.5], "12"),
    }.items():
        for value in values:
            with pytest.raises((InvalidType, InvalidValue), match=f"^annotated: {name} is"):
                annotated(**{name: value})
