"""Training tests run tiny models: one thread is faster than two that wait for each other."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .fork_server import ForkServer


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    """Starts `meet` in processes of their own, in milliseconds."""
    server = ForkServer()
    yield server
    server.close()
