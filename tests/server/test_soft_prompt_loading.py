"""Which soft prompts the seam takes, without an engine, and the names of models that stand for them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

pytest.importorskip("vllm")

from soft_prompt_world import CONCISE, CONTEXT, FORMAL, PROMPT, World, listed, refused
from vllm.exceptions import VLLMValidationError
from vllm.logprobs import Logprob
from vllm.sampling_params import SamplingParams

from meet_server.engine import releases
from meet_server.errors import EngineDied
from meet_server.metrics import Generated
from meet_server.registry.admission import ControlRefused
from meet_server.registry.live import FIRST_ID, LoadedControl


class TestLoading:
    def test_asks_the_engine_whether_it_would_produce_each_virtual_token(self) -> None:
        world = World()
        seen = list[Generated]()
        world.engine.observe = seen.append
        world.load(CONCISE)
        (asked,) = world.client.asked
        assert asked.prompt["prompt_token_ids"] == [0, *CONCISE.token_ids]
        assert (asked.params.prompt_logprobs, asked.params.max_tokens) == (0, 1)
        assert seen == []

    def test_one_that_it_would_produce_is_refused(self) -> None:
        for position in range(4):
            world = World()

            def one(at: int, token_id: int, position: int = position) -> Logprob:
                return Logprob(-9.0 if at == position + 1 else float("-inf"))

            world.client.logprob = one  # type: ignore[method-assign]
            with pytest.raises(ControlRefused, match="control concise: the engine would produce its virtual tokens"):
                world.load(CONCISE)
            with refused("model", "was changed or removed"):
                world.generate(releases.token_prompt(PROMPT), None, lora=listed(CONCISE))

    def test_one_that_leaves_no_room_is_refused(self) -> None:
        """The prompt of the question is one token longer, and its reply has another."""
        fits = LoadedControl("long", "", 1, Path(), tuple(range(100, 100 + CONTEXT - 2)))
        world = World()
        world.load(fits)
        too_long = LoadedControl("long", "", 1, Path(), tuple(range(100, 100 + CONTEXT - 1)))
        with pytest.raises(ControlRefused, match="control long: 63 virtual tokens leave no room in a context of 64"):
            world.load(too_long)
        assert len(world.client.asked) == 1

    @pytest.mark.parametrize("error", [ValueError("no such row"), VLLMValidationError("no such row")])
    def test_one_that_the_engine_does_not_take_is_refused(self, error: Exception) -> None:
        world = World()
        world.client.error = error
        with pytest.raises(ControlRefused, match=r"control concise: the engine does not take .*: no such row"):
            world.load(CONCISE)
        world.client.errored = True
        with pytest.raises(EngineDied, match="died while loading controls"):
            world.load(CONCISE)

    def test_one_that_leaves_waits_for_the_requests_of_it(self) -> None:
        world = World()

        async def go() -> None:
            await world.engine.load(CONCISE)
            with world.engine.applying(CONCISE):
                leaving = asyncio.create_task(world.engine.unload(CONCISE))
                await asyncio.sleep(0.01)
                assert not leaving.done()
                world.engine.generate(
                    releases.token_prompt(PROMPT), SamplingParams(), "1", lora_request=listed(CONCISE)
                )
            await asyncio.wait_for(leaving, 1)
            with refused("model", "tiny:concise was changed or removed; ask again"):
                world.engine.generate(
                    releases.token_prompt(PROMPT), SamplingParams(), "1", lora_request=listed(CONCISE)
                )

        asyncio.run(go())


class TestNamesOfModels:
    """`NAME:label`, for which vLLM brings an entry of its own list of adapters."""

    def test_one_of_ours_stands_for_its_control(self) -> None:
        world = World()
        world.load(CONCISE, FORMAL)
        assert world.given(PROMPT, None, listed(FORMAL)) == [7, 8, 9, 104, 105, 106, 107]
        assert world.client.asked[-1].lora is None

    def test_a_preference_wins(self) -> None:
        world = World()
        world.load(CONCISE, FORMAL)
        assert world.given(PROMPT, CONCISE, listed(FORMAL)) == [7, 8, 9, 100, 101, 102, 103]
        assert world.client.asked[-1].lora is None

    @pytest.mark.parametrize("control", [None, CONCISE])
    def test_one_of_ours_that_is_not_there_is_the_clients_to_know(self, control: LoadedControl | None) -> None:
        world = World()
        world.load(CONCISE)
        with refused("model", "tiny:formal was changed or removed; ask again"):
            world.generate(releases.token_prompt(PROMPT), control, lora=listed(FORMAL))
        first = releases.lora_request("tiny:first", FIRST_ID, "x")
        world = World()
        with refused("model", "tiny:first was changed or removed"):
            world.generate(releases.token_prompt(PROMPT), control, lora=first)

    @pytest.mark.parametrize("control", [None, CONCISE])
    def test_somebody_elses_adapter_passes(self, control: LoadedControl | None) -> None:
        world = World()
        theirs = releases.lora_request("theirs", FIRST_ID - 1, "adapters/theirs")
        world.given(PROMPT, control, theirs)
        assert world.client.asked[0].lora is theirs
