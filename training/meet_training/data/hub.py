"""Reads the rows of a data set of the hub. The only place that knows the library `datasets`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from meet_training.data.sources import Row
from meet_training.errors import TrainingError


def read_hub(name: str, split: str, config: str | None = None) -> Iterator[Row]:
    """The rows of a split, streamed: nothing is held but the row at hand.

    `name` is what `datasets.load_dataset` takes: a name of the hub, or a folder. Raises TrainingError where
    there is no such data set, split or configuration, or the hub cannot be reached.
    """
    place = f"{name} ({split})"
    try:
        rows = iter(_load(name, split, config))
        number = 0
        while (fields := next(rows, None)) is not None:
            number += 1
            yield Row(place, number, fields, is_filled=True)
    # The library raises its own errors, those of its HTTP client, and ValueError for a mistyped name.
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        hint = _offline_hint() if isinstance(error, ConnectionError) else ""
        raise TrainingError(f"hub: {name!r} cannot be loaded: {reason}{hint}") from None


def _load(name: str, split: str, config: str | None) -> Any:
    from datasets import disable_progress_bars, load_dataset

    disable_progress_bars()
    return load_dataset(name, config, split=split, streaming=True)


def _offline_hint() -> str:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "; HF_HUB_OFFLINE is set, so nothing is fetched: download it first and give its folder, or use `path`"
    return "; without a network, download it first and give its folder, or use `path`"
