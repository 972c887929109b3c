"""Where a run stands, on disk, so that a killed one goes on. Knows nothing of losses or models.

A checkpoint is one file, replaced atomically, and belongs to one run: its key is the digest of the resolved
configuration and of the content of all that it names: the data, the base, the bundle that is started from.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from meet_bundle import BaseModelSource
from meet_bundle.leftovers import claimed
from meet_training.config import TrainConfig
from meet_training.errors import TrainingError

DECIDED_BY_CONTENT: dict[str, Any] = {"data": True, "start_from": True, "uncontrolled": {"data"}}
"""Fields that name files: what is in these decides what a run computes, not where they lie."""

DECIDES_NOTHING = {"output": True, "checkpoint_every_s": True, "trackers": True, "log_folder": True}


def run_key(
    config: TrainConfig,
    content: Mapping[str, str | None],
    base: BaseModelSource,
    dtype: torch.dtype,
    device: torch.device,
) -> str:
    """Digest of all that decides what a run computes. `content` has the digests of what the configuration names alone:
    data, the bundle that is started from, and of the base what its description leaves out."""
    resolved = config.model_dump(mode="json", exclude=DECIDED_BY_CONTENT | DECIDES_NOTHING)
    parts = [resolved, dict(content), base.model_dump(mode="json"), str(dtype), device.type]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@contextmanager
def writing_to(place: Path) -> Iterator[None]:
    """Raises TrainingError, naming the place and the reason, where writing within the block fails."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        reason: BaseException | None = error
        while isinstance(reason, RuntimeError):  # what torch says of a write that failed; the failure is its context
            reason = reason.__context__
        if not isinstance(reason, (OSError, SafetensorError)):
            raise
        said = getattr(reason, "strerror", None) or str(reason)
        raise TrainingError(f"{place} cannot be written: {said}") from None


class CheckpointFolder:
    """The folder of one run's checkpoint, beside its output."""

    def __init__(self, output: Path, key: str, every_s: float) -> None:
        self._output = output
        self._folder = output.parent / f".{output.name}.run"
        self.key = key
        self._every_s = every_s
        self._last = time.monotonic()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Within the block no other run for the same output trains. Raises TrainingError where one does already."""
        with ExitStack() as held:
            with writing_to(self._folder):
                mine = held.enter_context(claimed(self._folder))  # what is left in it a run goes on from
            if not mine:
                raise TrainingError(
                    f"output: another run is training {self._output} now; wait for its end, or choose another output"
                )
            yield

    def file(self, name: str) -> Path:
        """Where this run, and no other, keeps something else until the bundle is written; its folder exists."""
        folder = self._folder / self.key[:16]
        folder.mkdir(parents=True, exist_ok=True)
        return folder / name

    def load(self, on_other: Callable[[], None] | None = None) -> dict[str, Any] | None:
        """The state last saved by this very run, or None. `on_other` is called where another run saved one, which the
        next checkpoint of this one replaces."""
        file = self._folder / "checkpoint.pt"
        if not file.is_file():
            return None
        # Mapped, not read: of a model that is tuned whole it is three times the weights, in every process.
        saved: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        if saved["key"] == self.key:
            own: dict[str, Any] = saved["state"]
            return own
        if on_other:
            on_other()
        return None

    @property
    def num_bytes(self) -> int:
        """What the checkpoint that is there takes, of whichever run; 0 where there is none."""
        file = self._folder / "checkpoint.pt"
        return file.stat().st_size if file.is_file() else 0

    def is_due(self) -> bool:
        """Whether the interval is over."""
        return time.monotonic() - self._last >= self._every_s

    def save(self, state: dict[str, Any]) -> None:
        """Replaces the checkpoint: a kill at any moment leaves the old one or the new one.

        Raises TrainingError where it cannot be written; the old one stays.
        """
        partial = self._folder / "checkpoint.pt.partial"
        with ExitStack() as undone, writing_to(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            undone.callback(partial.unlink, missing_ok=True)  # of a full disk it would take what is left
            with partial.open("wb") as file:
                torch.save({"key": self.key, "state": state}, file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(self._folder / "checkpoint.pt")
        self._last = time.monotonic()

    def remove(self) -> None:
        """Called when the bundle is written."""
        shutil.rmtree(self._folder, ignore_errors=True)
