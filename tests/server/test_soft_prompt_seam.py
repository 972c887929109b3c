"""The seam for soft prompts without an engine: what the engine is given, and what a client is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm")

from soft_prompt_world import (
    BOTH,
    CONCISE,
    CONTEXT,
    FORMAL,
    PROMPT,
    FakeClient,
    ModelConfig,
    Placement,
    World,
    listed,
    refused,
)
from vllm.outputs import RequestOutput
from vllm.sampling_params import SamplingParams

from meet_server.engine import releases, together
from meet_server.engine.controlled_client import applying, unobserved
from meet_server.engine.soft_prompts import SoftPromptEngine, inserted, prompt_ends_at
from meet_server.metrics import Generated
from meet_server.registry.live import LoadedControl


def scoring(rows: Any) -> Any:
    """Sampling parameters that score ids of one's own for each token of the prompt, of a release that can."""
    params = SamplingParams()
    setattr(params, releases.PROMPT_ROWS, rows)
    return params


class TestWhatTheEngineIsGiven:
    def test_the_virtual_tokens_stand_where_the_placement_says(self) -> None:
        assert World("before_prompt").given(PROMPT, CONCISE) == [100, 101, 102, 103, 7, 8, 9]
        assert World("after_prompt").given(PROMPT, CONCISE) == [7, 8, 9, 100, 101, 102, 103]

    @pytest.mark.parametrize("placement", BOTH)
    def test_everything_else_of_a_request_goes_along(self, placement: Placement) -> None:
        world, params = World(placement), SamplingParams(max_tokens=5)
        prompt = {**releases.token_prompt(PROMPT), "prompt": "abc", "cache_salt": "mine"}
        before = dict(prompt)

        async def go() -> None:
            async for _ in world.generate(prompt, CONCISE, params):
                pass

        asyncio.run(go())
        (asked,) = world.client.asked
        assert {**asked.prompt, "prompt_token_ids": PROMPT} == before == prompt
        assert (asked.params, asked.id, asked.lora, asked.rest) == (params, "1", None, {"priority": 3})

    @pytest.mark.parametrize("placement", BOTH)
    def test_without_a_control_it_is_vllms_own(self, placement: Placement) -> None:
        world, prompt = World(placement), releases.token_prompt(PROMPT)
        outputs = world.generate(prompt, None)
        assert outputs.ag_code is FakeClient.generate.__code__  # type: ignore[attr-defined]
        asyncio.run(anext(outputs))
        assert world.client.asked[0].prompt is prompt
        assert world.client.asked[0].rest == {"priority": 3}

    @pytest.mark.parametrize("placement", BOTH)
    @pytest.mark.parametrize("control", [None, CONCISE])
    def test_an_empty_prompt_stays_empty(self, placement: Placement, control: LoadedControl | None) -> None:
        """So that vLLM refuses it."""
        assert World(placement).given([], control) == []

    def test_a_groups_mark_is_the_servers_to_make(self) -> None:
        world = World()
        world.outputs(PROMPT, CONCISE, SamplingParams(extra_args={together.FIELD: ["theirs", 0, 2], "x": 1}))
        assert world.client.asked[0].params.extra_args == {"x": 1}

    def test_a_prompt_that_ends_before_its_last_token(self) -> None:
        for placement, whole in (
            ("after_prompt", [7, 8, 100, 101, 102, 103, 9]),
            ("before_prompt", [100, 101, 102, 103, 7, 8, 9]),
        ):
            world = World(placement)  # type: ignore[arg-type]
            with prompt_ends_at(2):
                assert world.given(PROMPT, CONCISE) == whole
                with prompt_ends_at(0):
                    assert world.given(PROMPT, CONCISE) == [100, 101, 102, 103, 7, 8, 9]
                assert world.given(PROMPT, CONCISE) == whole
        assert World().given(PROMPT, CONCISE) == [7, 8, 9, 100, 101, 102, 103]


class TestWhatAClientIsTold:
    @pytest.mark.parametrize(
        ("placement", "end", "positions"),
        [
            ("before_prompt", None, [None, 5.0, 6.0]),
            ("after_prompt", None, [None, 1.0, 2.0]),
            ("after_prompt", 2, [None, 1.0, 6.0]),
            ("after_prompt", 0, [None, 5.0, 6.0]),
        ],
    )
    def test_its_own_prompt_and_the_log_probabilities_of_that(
        self, placement: Placement, end: int | None, positions: list[float | None]
    ) -> None:
        world = World(placement)
        with prompt_ends_at(end) if end is not None else prompt_ends_at(len(PROMPT)):
            (output,) = world.outputs(PROMPT, CONCISE, SamplingParams(prompt_logprobs=0))
        assert output.prompt_token_ids == PROMPT
        assert [each and list(each) for each in output.prompt_logprobs] == [None, [8], [9]]
        assert [each and next(iter(each.values())).logprob for each in output.prompt_logprobs] == positions

    @pytest.mark.parametrize("placement", BOTH)
    def test_a_prompt_of_one_token(self, placement: Placement) -> None:
        (output,) = World(placement).outputs([7], CONCISE, SamplingParams(prompt_logprobs=0))
        assert (output.prompt_token_ids, output.prompt_logprobs) == ([7], [None])

    def test_what_vllm_leaves_out_stays_out(self) -> None:
        world = World()
        world.client.cached = world.client.created = None
        (output,) = world.outputs(PROMPT, CONCISE)
        assert output.prompt_logprobs is None
        assert (output.num_cached_tokens, output.num_cache_creation_tokens) == (None, None)
        world.client.output = lambda *_: RequestOutput("1", None, None, None, [], True)  # type: ignore[method-assign]
        (output,) = world.outputs(PROMPT, CONCISE)
        assert output.prompt_token_ids is None

    @pytest.mark.parametrize("placement", BOTH)
    def test_every_output_of_a_stream(self, placement: Placement) -> None:
        world = World(placement)
        world.client.num_outputs, world.client.cached = 3, 6
        outputs = world.outputs(PROMPT, CONCISE)
        assert [output.prompt_token_ids for output in outputs] == [PROMPT] * 3
        assert [output.num_cached_tokens for output in outputs] == [2 if placement == "before_prompt" else 3] * 3

    def test_a_stream_has_the_log_probabilities_once(self) -> None:
        world = World()
        world.client.num_outputs = 3
        outputs = world.outputs(PROMPT, CONCISE, SamplingParams(prompt_logprobs=0))
        assert [len(output.prompt_logprobs) for output in outputs] == [3, 0, 0]

    @pytest.mark.parametrize(
        ("placement", "cached", "visible"),
        [
            # Four virtual tokens and then the prompt.
            ("before_prompt", [0, 1, 4, 5, 20], [0, 0, 0, 1, 16]),
            # Ten tokens of prompt, four virtual ones and then, as beams have it, a reply.
            ("after_prompt", [0, 1, 10, 11, 14, 15, 20], [0, 1, 10, 10, 10, 11, 16]),
        ],
    )
    def test_cached_tokens_are_its_own(self, placement: Placement, cached: list[int], visible: list[int]) -> None:
        world, got = World(placement), []
        for world.client.cached in cached:
            with prompt_ends_at(10):
                (output,) = world.outputs([7] * 17, CONCISE)
            got.append(output.num_cached_tokens)
        assert got == visible

    @pytest.mark.parametrize(
        ("placement", "cached", "created", "visible"),
        [
            # Four virtual tokens and then ten of the prompt, in blocks of two.
            ("before_prompt", 0, 14, 10),
            ("before_prompt", 0, 4, 0),
            ("before_prompt", 2, 6, 4),
            ("before_prompt", 4, 8, 8),
            ("before_prompt", 8, 6, 6),
            ("before_prompt", None, 6, 2),
            # Ten of the prompt and then four.
            ("after_prompt", 0, 14, 10),
            ("after_prompt", 0, 8, 8),
            ("after_prompt", 8, 4, 2),
            ("after_prompt", 10, 4, 0),
            ("after_prompt", 10, 0, 0),
        ],
    )
    def test_tokens_that_are_kept_for_others_are_its_own(
        self, placement: Placement, cached: int | None, created: int, visible: int
    ) -> None:
        world = World(placement)
        world.client.cached, world.client.created = cached, created
        (output,) = world.outputs([7] * 10, CONCISE)
        assert output.num_cache_creation_tokens == visible

    def test_the_reply_is_left_alone(self) -> None:
        (output,) = World().outputs(PROMPT, CONCISE)
        (made,) = output.outputs
        assert (made.text, made.token_ids) == ("x", [5])


class TestWhatMayNotBeWritten:
    @pytest.mark.parametrize("control", [None, CONCISE])
    def test_a_virtual_token_in_a_prompt(self, control: LoadedControl | None) -> None:
        world = World()
        for ids in ([100], [5, 107, 6], [250]):
            with refused("prompt", f"Token id {max(ids)} is out of vocabulary"):
                world.generate(releases.token_prompt(ids), control)
        assert world.client.asked == []
        world.outputs([0, 99], control)  # the last of the model's own

    @pytest.mark.parametrize("control", [None, CONCISE])
    @pytest.mark.parametrize(
        ("field", "make"),
        [
            ("logit_bias", lambda ids: dict.fromkeys(ids, 1.0)),
            ("allowed_token_ids", list),
            ("logprob_token_ids", list),
            ("trace_decode_token_ids", list),
        ],
    )
    def test_a_virtual_token_in_a_parameter(self, control: LoadedControl | None, field: str, make: Any) -> None:
        world = World()
        assert field in releases.TOKEN_ID_PARAMS
        for ids in ([100], [5, 107, 6]):
            with refused(field, f"{field} holds token id {max(ids)}, which is out of vocabulary"):
                world.generate(releases.token_prompt(PROMPT), control, SamplingParams(**{field: make(ids)}))
        world.outputs(PROMPT, control, SamplingParams(**{field: make([0, 99])}))

    @pytest.mark.parametrize("make", [list, np.array], ids=["lists", "array"])
    def test_a_virtual_token_in_the_rows_of_a_prompt(self, make: Any) -> None:
        world = World()
        for rows in ([[5, 6], [107, -1]], [[100, 5], [6, 7]]):
            with refused(releases.PROMPT_ROWS, f"holds token id {max(map(max, rows))}, which is out of vocabulary"):
                world.generate(releases.token_prompt(PROMPT), None, scoring(make(rows)))
        world.outputs(PROMPT, None, scoring(make([[0, 99], [-1, -1]])))

    def test_rows_for_a_prompt_that_has_more_tokens_than_its_client_knows(self) -> None:
        """vLLM takes one for each token of the prompt that the engine gets."""
        world = World()
        with refused(releases.PROMPT_ROWS, "prompt_logprob_token_ids goes with no preference here"):
            world.generate(releases.token_prompt(PROMPT), CONCISE, scoring([[5], [6]]))

    @pytest.mark.parametrize("prompt", [
        {"type": "multimodal", "prompt_token_ids": [7]},
        {"type": "embeds", "prompt_embeds": None},
        {"type": "embeds", "prompt_token_ids": [7]},
        {"prompt_token_ids": [7]},
        "text",
    ])  # fmt: skip
    def test_a_preference_for_what_is_no_prompt_of_tokens(self, prompt: Any) -> None:
        world = World()
        with refused("preference", "goes with a prompt of text or token ids alone"):
            world.generate(prompt, CONCISE)
        world.generate(prompt, None)

    def test_a_virtual_token_in_another_kind_of_prompt(self) -> None:
        for kind in ({"type": "multimodal"}, {}):
            with refused("prompt", "Token id 100 is out of vocabulary"):
                World().generate({**kind, "prompt_token_ids": [7, 100]}, None)


class TestAllOfTheVocabulary:
    """For which vLLM takes every row of the model's, where `--max-logprobs` lets it."""

    @pytest.mark.parametrize("control", [None, CONCISE])
    @pytest.mark.parametrize("field", ["logprobs", "prompt_logprobs"])
    @pytest.mark.parametrize(
        ("asked", "given"), [(-1, 100), (None, None), (0, 0), (20, 20), (100, 100), (101, 100), (400, 100)]
    )
    def test_is_the_true_one(
        self, control: LoadedControl | None, field: str, asked: int | None, given: int | None
    ) -> None:
        world = World()
        world.outputs(PROMPT, control, SamplingParams(**{field: asked}))
        (each,) = world.client.asked
        assert getattr(each.params, field) == given


class TestHowManyTokensFit:
    def test_fewer_by_the_virtual_tokens_of_the_request(self) -> None:
        world = World()
        config = world.engine.model_config
        both = LoadedControl("concise+formal", "3" * 64, 1, Path(), CONCISE.token_ids + FORMAL.token_ids)
        for control, num in ((None, 64), (CONCISE, 60), (both, 56), (None, 64)):
            with applying(control):
                assert config.max_model_len == num
        assert world.client.model_config.max_model_len == CONTEXT

    def test_never_none_at_all(self) -> None:
        world = World()
        for num, left in ((CONTEXT - 2, 2), (CONTEXT - 1, 1), (CONTEXT, 1), (CONTEXT + 5, 1)):
            with applying(LoadedControl("long", "", 1, Path(), tuple(range(100, 100 + num)))):
                assert world.engine.model_config.max_model_len == left

    def test_all_else_of_the_configuration_is_as_it_was(self) -> None:
        world = World()
        config = world.engine.model_config
        assert isinstance(config, ModelConfig)
        assert (type(config).__name__, config.max_logprobs) == ("ModelConfig", 20)
        assert type(world.client.model_config) is ModelConfig


class TestBeams:
    """vLLM's search with beams: a request for each beam's next token, with the reply so far in its prompt."""

    class Serving:
        def __init__(self, engine: SoftPromptEngine) -> None:
            self.engine = engine
            self.is_closed = False

        async def beam_search(self, prompt: Any, request_id: str, num: int) -> AsyncGenerator[Any, None]:
            try:
                reply: list[int] = []
                for _ in range(num):
                    step = releases.token_prompt([*prompt["prompt_token_ids"], *reply])

                    async def ask(step: Any = step) -> Any:
                        async with aclosing(
                            self.engine.generate(step, SamplingParams(), request_id, lora_request=None)
                        ) as outputs:
                            return await anext(outputs)

                    yield await asyncio.create_task(ask())
                    reply.append(50 + len(reply))
            finally:
                self.is_closed = True

    def serving(self, world: World, name: str = "openai_serving_completion") -> Serving:
        serving = self.Serving(world.engine)
        world.engine.follow_beams(SimpleNamespace(**{name: serving}))
        return serving

    @pytest.mark.parametrize("name", ["openai_serving_completion", "openai_serving_chat", "openai_serving_chat_batch"])
    def test_virtual_tokens_stay_before_the_reply(self, name: str) -> None:
        world = World()
        serving = self.serving(world, name)

        async def go() -> list[Any]:
            with applying(CONCISE):
                return [each async for each in serving.beam_search(prompt=releases.token_prompt(PROMPT),
                                                                   request_id="1", num=3)]  # fmt: skip

        outputs = asyncio.run(go())
        virtual = list(CONCISE.token_ids)
        given = [each.prompt["prompt_token_ids"] for each in world.client.asked]
        assert given == [[*PROMPT, *virtual, *reply] for reply in ([], [50], [50, 51])]
        assert [output.prompt_token_ids for output in outputs] == [[*PROMPT, *reply] for reply in ([], [50], [50, 51])]

    def test_each_step_may_be_asked_for_by_another_task(self) -> None:
        world = World()
        serving = self.serving(world)

        async def go() -> None:
            with applying(CONCISE):
                found = serving.beam_search(releases.token_prompt(PROMPT), "1", 2)
                for _ in range(2):
                    await asyncio.create_task(anext(found))
                # Between its steps the end of its prompt is nobody else's.
                outputs = world.engine.generate(releases.token_prompt([1] * 9), SamplingParams(), "2")
                await anext(outputs)
                with pytest.raises(StopAsyncIteration):
                    await anext(found)

        asyncio.run(go())
        assert world.client.asked[1].prompt["prompt_token_ids"] == [*PROMPT, *CONCISE.token_ids, 50]
        assert world.client.asked[2].prompt["prompt_token_ids"] == [*[1] * 9, *CONCISE.token_ids]

    def test_the_search_ends_where_its_client_leaves(self) -> None:
        serving = self.serving(World())

        async def go() -> None:
            found = serving.beam_search(releases.token_prompt(PROMPT), "1", 5)
            await anext(found)
            assert not serving.is_closed
            await found.aclose()
            assert serving.is_closed

        asyncio.run(go())


class TestTheEnd:
    def test_of_a_request_whose_client_leaves(self) -> None:
        world = World()
        world.client.num_outputs = 5

        async def go() -> None:
            outputs = world.generate(releases.token_prompt(PROMPT), CONCISE)
            await anext(outputs)
            assert world.client.num_aborted == 0
            await outputs.aclose()
            assert world.client.num_aborted == 1

        asyncio.run(go())

    @pytest.mark.parametrize("placement", BOTH)
    def test_is_observed_with_the_clients_tokens_and_the_controls_name(self, placement: Placement) -> None:
        world, seen = World(placement), list[Generated]()
        world.load(FORMAL)
        world.engine.observe = seen.append
        world.outputs(PROMPT, CONCISE)
        world.outputs(PROMPT, None)
        world.outputs(PROMPT, None, lora=listed(FORMAL))
        with unobserved():
            world.outputs(PROMPT, CONCISE)
        assert [(each.label, each.num_prompt_tokens) for each in seen] == [
            ("concise", 3), ("none", 3), ("formal", 3)
        ]  # fmt: skip


def test_inserted() -> None:
    ids = [7, 8]
    assert [inserted(ids, (100, 101), position) for position in range(3)] == [
        [100, 101, 7, 8], [7, 100, 101, 8], [7, 8, 100, 101]
    ]  # fmt: skip
    assert ids == [7, 8]
