"""What a worker's loader keeps of the controls that it loaded, on a fake of vLLM's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("vllm")

from vllm.lora.lora_model import LoRAModel
from vllm.lora.lora_weights import LoRALayerWeights

from meet_server.engine.memory_adapters import loading, removing
from meet_server.engine.mix_path import mix_path
from meet_server.registry.live import FIRST_ID


class Manager:
    """vLLM's manager of a worker, which has read each file that it was asked for."""

    def __init__(self) -> None:
        self.read: list[int] = []
        self.lora_config = SimpleNamespace(max_lora_rank=8)
        self._adapter_manager = SimpleNamespace()

    def load(self, request: Any) -> LoRAModel:
        self.read.append(request.lora_int_id)
        a, b = torch.full((4, 8), float(len(self.read))), torch.ones(16, 4)
        weights = LoRALayerWeights("up", 4, 4, a, b, scaling=1)
        return LoRAModel(request.lora_int_id, 4, {"up": weights})

    def remove(self, adapter_id: int) -> bool:
        return True


load, remove = loading(Manager.load), removing(Manager.remove)


def request(lora_id: int, path: str = "/controls/concise") -> Any:
    return SimpleNamespace(lora_int_id=lora_id, lora_name="concise", lora_path=path)


def test_a_control_that_vllm_let_go_of_comes_back_as_it_was_and_not_from_its_files() -> None:
    """They may have been replaced or deleted since, and it comes back in the middle of a step."""
    manager = Manager()
    first = load(manager, request(FIRST_ID))
    assert load(manager, request(FIRST_ID)) is first
    assert manager.read == [FIRST_ID]
    remove(manager, FIRST_ID)
    assert load(manager, request(FIRST_ID)) is not first
    assert manager.read == [FIRST_ID] * 2


def test_what_is_not_a_control_of_ours_is_read_each_time() -> None:
    manager = Manager()
    assert load(manager, request(1)) is not load(manager, request(1))
    assert manager.read == [1, 1]


def test_a_mix_of_a_control_that_was_removed_is_refused() -> None:
    manager = Manager()
    load(manager, request(FIRST_ID))
    mix = request(FIRST_ID + 2, mix_path([(FIRST_ID, 0.5), (FIRST_ID + 1, 1.0)]))
    with pytest.raises(ValueError, match=f"mixes controls that are not loaded: {FIRST_ID + 1}"):
        load(manager, mix)
    made = load(manager, request(FIRST_ID + 2, mix_path([(FIRST_ID, 0.5)])))
    assert torch.equal(made.loras["up"].lora_b, torch.full((16, 4), 0.5))
