"""What one test changes in its process does not reach the next."""

import os
from collections.abc import Iterator

import pytest

if (
    "PYTEST_XDIST_WORKER" in os.environ
):  # as many processes as cores: one thread each, also in those that tests start
    os.environ["OMP_NUM_THREADS"] = "1"


def _same_environment() -> Iterator[None]:
    """Put environment variables back: Lightning leaves its seed in them, which processes started later would take."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


_same_in_a_test = pytest.fixture(autouse=True)(_same_environment)
_same_in_a_file = pytest.fixture(autouse=True, scope="module")(_same_environment)  # whose fixtures train too
