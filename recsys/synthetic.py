"""Invented interaction histories with structure that is known, for tests and first steps without data."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contrastive.checks import check_number, check_whole
from contrastive.errors import InvalidValue
from recsys.files import item_text

Array = NDArray[Any]

_THEMES = {
    "kitchen": ("kettle", "whisk", "pan"),
    "garden": ("spade", "rake", "hose"),
    "music": ("guitar", "drum", "flute"),
    "sailing": ("anchor", "rope", "compass"),
    "winter": ("sled", "scarf", "snow boot"),
    "astronomy": ("telescope", "star map", "eyepiece"),
    "painting": ("brush", "easel", "palette"),
    "cycling": ("saddle", "pump", "bell"),
    "chess": ("board", "clock", "bishop"),
    "bakery": ("rolling pin", "oven glove", "cake tin"),
    "climbing": ("harness", "chalk bag", "carabiner"),
    "fishing": ("rod", "reel", "float"),
}
_COLOURS = ("amber", "black", "copper", "green", "ivory", "red", "silver", "teal")
_NEXT = (0.6, 0.3, 0.1)  # how the items that follow one in its cluster share its visitors
_SHORTEST = 5


@dataclass(frozen=True)
class Made:
    """What :func:`synthetic_histories` makes.

    Args:
        items: ``(N,)`` int64 codes from 1, user after user.
        offsets: ``(users + 1,)`` where each user begins.
        times: ``(N,)`` int64 seconds.
        texts: of each item, code 1 first.
        attributes: of each item, strings.
        clusters: ``(items,)`` cluster of each item.
        tastes: ``(users,)`` 0 or 1, which ring a user follows.
    """

    items: Array
    offsets: Array
    times: Array
    texts: list[str]
    attributes: list[list[str]]
    clusters: Array
    tastes: Array


def synthetic_histories(
    users: int, items: int, seed: int, clusters: int, mean_length: float, follow: float
) -> Made:
    """Draw histories from a chain within clusters, with jumps between the two clusters that a user likes.

    There are two tastes, and each user has one. Each taste puts the items of a cluster on a ring, in random order. From
    an item, with probability ``follow``, a user goes on to one of the next three on the ring of the own taste
    (probabilities .6, .3, .1). Otherwise the user takes some item of one of the own two clusters: the cluster by a fair
    coin, the item with a probability that falls as one over its place on the ring, counted from 1. The first item is
    drawn like that too. Lengths are 5 plus a geometric number, at most five times the mean; between two items pass five
    days on average.

    Args:
        users: number of users, at least 1.
        items: number of items, at least 4 a cluster.
        seed: of NumPy's generator.
        clusters: number of clusters, at least 2.
        mean_length: of the histories, about; at least 5.
        follow: probability in [0, 1].

    Raises:
        ValueError: an argument is out of range.
    """
    name = "SequenceData.generate"
    users, clusters = check_whole(name, "users", users), check_whole(name, "clusters", clusters, 2)
    items, seed = check_whole(name, "items", items), check_whole(name, "seed", seed, 0)
    mean_length = check_number(name, "mean_length", mean_length, f"[{_SHORTEST}, 1e6]")
    follow = check_number(name, "follow", follow, "[0, 1]")
    if items < 4 * clusters:
        raise InvalidValue(
            f"{name}: items is {items} with clusters={clusters}; give at least 4 items a cluster, or fewer clusters."
        )
    rng = np.random.default_rng(seed)
    of_item = rng.permutation(items) % clusters
    cluster = np.sort(of_item)  # of each place; the rings lie one after another
    starts = np.searchsorted(cluster, np.arange(clusters))
    sizes = np.bincount(cluster)
    rings = np.stack([np.lexsort((rng.random(items), of_item)) for _ in range(2)])  # item at each place
    place_of = np.argsort(rings, axis=1)
    bounds = np.concatenate([[0], np.cumsum(1 / (np.arange(items) - starts[cluster] + 1))])

    taste = rng.integers(0, 2, users)
    liked = np.argsort(rng.random((users, clusters)), axis=1)[:, :2]
    extra = rng.geometric(1 / (mean_length - _SHORTEST + 1), users) - 1
    lengths = np.minimum(_SHORTEST + extra, int(5 * mean_length))
    made = np.empty((users, int(lengths.max())), np.int64)
    for step in range(made.shape[1]):
        goal = liked[np.arange(users), rng.integers(0, 2, users)]
        low, high = bounds[starts[goal]], bounds[starts[goal] + sizes[goal]]
        drawn = np.searchsorted(bounds, low + rng.random(users) * (high - low), side="right") - 1
        place = np.clip(drawn, starts[goal], starts[goal] + sizes[goal] - 1)  # against rounding at the ends
        stride = rng.choice(len(_NEXT), users, p=_NEXT) + 1
        follows = rng.random(users) < follow
        if step:
            now = place_of[taste, made[:, step - 1]]
            begin = starts[cluster[now]]
            place = np.where(follows, begin + (now - begin + stride) % sizes[cluster[now]], place)
        made[:, step] = rings[taste, place]
    gaps = 1 + rng.exponential(5 * 86_400, made.shape).astype(np.int64)
    gaps[:, 0] += rng.integers(0, 300 * 86_400, users)
    kept = np.arange(made.shape[1]) < lengths[:, None]

    themes = list(_THEMES)
    texts, attributes = [], []
    noun, colour, maker = (
        rng.integers(0, 3, items),
        rng.integers(0, len(_COLOURS), items),
        rng.integers(0, 3, items),
    )
    for i, c in enumerate(of_item):
        theme = themes[c % len(themes)]
        name = theme if c < len(themes) else f"{theme} {c // len(themes) + 1}"
        title = f"{_COLOURS[colour[i]]} {_THEMES[theme][noun[i]]} {i + 1}"
        texts.append(item_text(title.capitalize(), genres=name))
        attributes.append([f"theme:{name}", f"maker:{name} {maker[i] + 1}", f"colour:{_COLOURS[colour[i]]}"])
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    times = 1_600_000_000 + np.cumsum(gaps, axis=1)
    return Made(made[kept] + 1, offsets, times[kept], texts, attributes, of_item, taste)
