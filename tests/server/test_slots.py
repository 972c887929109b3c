"""Mixes as adapters with tensors, in vLLM's own slots, as on CUDA: what the workers sum, and what they evict."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine_requests import Asker
from exact_mix import exact_replies
from running_server import Server
from tiny_bundle import chat_ids
from transformers import PreTrainedTokenizerFast

from meet_server.engine import plugin
from meet_server.settings import Settings

pytestmark = pytest.mark.slow  # an engine of its own, whose processes start from nothing

# None is uncontrolled: for those the stock kernels of 0.32 are wrong.
MIXES = ({"concise": 1.0}, {"concise": -0.5}, {"concise": 0.7, "detailed": 0.5}, {"concise": 0.25, "detailed": -1.5})
PROMPTS = ["What is rain?", "What is snow?"]
NUM_TOKENS = 16
ARGS = ("--kv-cache-memory-bytes=67108864", "--max-num-seqs=16", "--max-loras=3", "--max-cpu-loras=4")


@pytest.fixture(scope="module")
def slotted(bundle: Path) -> Iterator[Server]:
    running = Server(Settings(bundle=bundle, engine_args=ARGS, worker_start="spawn"))
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setenv(plugin.STOCK_KERNELS, "1")
        warnings.simplefilter("ignore")
        running.start()
    yield running
    running.stop()


def test_mixes_in_slots_equal_transformers_and_peft(slotted: Server, bundle: Path) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(bundle / "model")
    ids, asker = [chat_ids(tokenizer, prompt) for prompt in PROMPTS], Asker(slotted)
    expected = [
        exact_replies(bundle, {bundle / "controls" / name: w for name, w in mix.items()}, PROMPTS, NUM_TOKENS)
        for mix in MIXES
    ]

    async def together() -> list[list[list[int]]]:
        async def replies(mix: dict[str, float]) -> list[list[int]]:
            return list(await asyncio.gather(*(asker.reply(prompt, mix, NUM_TOKENS) for prompt in ids)))

        return list(await asyncio.gather(*map(replies, MIXES)))

    assert asker.engine.adapters.mixes.limit == 2
    for _ in range(3):  # more mixes than slots and than are kept: they leave and come back
        assert slotted.call(together()) == expected
