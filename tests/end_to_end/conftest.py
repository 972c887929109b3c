"""One small bundle of the real 135M model, trained on the demo's data, and one server of it, for the session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from meet_bundle import Bundle

EXAMPLES = Path(__file__).parents[2] / "examples" / "demo"
# Enough for the controls to be told apart with certainty, not for the demo's bounds: `make demo ONCE=1` is for those.
SMALL = (
    "examples_per_preference=16",
    "stage1.epochs=3",
    "stage1.batch_size=2",
    "stage2.epochs=0.5",
)


@pytest.fixture(scope="session")
def real_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    from meet_training.config import load_config
    from meet_training.run import train

    config = load_config(EXAMPLES / "train.yaml", SMALL)
    kept = {name: config.preferences[name] for name in ("concise", "detailed")}
    data = config.data[0].model_copy(update={"labels": {name: name for name in kept}})
    output = tmp_path_factory.mktemp("real") / "bundle"
    return train(config.model_copy(update={"preferences": kept, "data": (data,), "output": output}))


@pytest.fixture(scope="session")
def real_server(real_bundle: Bundle) -> Iterator[str]:
    """Address of a server of that bundle, in float32, where equal tokens can be asked for."""
    from meet_cli.local_server import free_port, meet_server_command, running_server

    port = free_port()
    command = meet_server_command(real_bundle.path, port, ("--dtype=float32", "--max-model-len=1024"))
    with running_server(command, port, what="the server") as server:
        yield server.url
