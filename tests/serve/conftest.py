"""One server with the tiny model, on a free port of this machine, that the tests here share."""

from collections.abc import Iterator

import pytest

from tests.serve.asking import HOSTS, LIMITS, Running, run
from vljax.generate.chat import SAMPLE, load
from vljax.generate.engine import Engine
from vljax.serve.app import Server


@pytest.fixture(scope="session")
def engine() -> Engine:
    return load("tiny").engine


@pytest.fixture(scope="session")
def running(engine) -> Iterator[Running]:
    with run(Server(engine, "tiny", LIMITS, HOSTS)) as made:
        yield made


@pytest.fixture(scope="session")
def clip() -> bytes:
    """A green car moves left, and a drum is heard."""
    return SAMPLE.read_bytes()
