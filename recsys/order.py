"""The order of interactions: by user and time, and what decides where times are equal.

Of MovieLens-100K's users 44 % have a last item that shares its time with the one before, since they rated whole lists
at once. Which item a leave-last-out test asks for is then decided by the order of the file, or by whatever else
orders equal times; results change with it.
"""

from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from recsys.files import Log

Array: TypeAlias = NDArray[Any]
Order: TypeAlias = Literal["file", "item", "shuffle", "drop"]

ORDERS: dict[str, str] = {
    "file": "equal times in the order of the source",
    "item": "equal times in the order of the items' ids",
    "shuffle": "equal times shuffled",
    "drop": "held-out targets of equal times left out",
}
"""Ways to order equal times, and what they are called where results are shown."""


def sorted_rows(log: Log, ties: Order, seed: int) -> Array:
    """Places ``(N,)`` of the interactions, user by user, each history by time.

    Args:
        log: interactions in the order of their source.
        ties: see :meth:`recsys.SequenceData.read`.
        seed: of ``"shuffle"``.
    """
    keys = (log.users,) if log.times is None else (log.times, log.users)
    if ties == "item":
        keys = (log.items, *keys)
    elif ties == "shuffle":
        keys = (np.random.default_rng(seed).permutation(len(log.users)), *keys)
    return np.lexsort(keys)  # stable: what no key tells apart stays in order


def equal_before(times: Array, offsets: Array) -> Array:
    """Which interactions ``(N,)`` have the time of the one before in their row."""
    equal = np.zeros(len(times), bool)
    equal[1:] = times[1:] == times[:-1]
    starts = offsets[:-1]
    equal[starts[starts < len(times)]] = False
    return equal
