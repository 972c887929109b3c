"""Decoding, scoring and judging on the tiny model, beside plain transformers and values derived by hand."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from meet_training.controls.lora import LoraTuning
from meet_training.controls.soft_prompt import SoftPromptTuning
from meet_training.controls_config import LoraConfig, SoftPromptConfig
from meet_training.data.render import prompt_ids
from meet_training.evaluation.figures import share_of
from meet_training.rivals import decoding as rivals_decoding
from meet_training.rivals import decoding_cache
from meet_training.rivals.classifier import MAX_TOKENS, Judge, PreferenceClassifier, keep_judge, kept_accuracy
from meet_training.rivals.decoding import Asked, DecodingConfig, greedy, penalised
from meet_training.rivals.measuring import Tuned, replies_of, scores_of
from meet_training.rivals.no_controls import NoControls
from meet_training.rivals.rendering import AsItIs, TextToken

PROMPTS = ((5, 9, 30, 31), (7,), (40, 41, 42, 43, 44, 45, 46))
NONE = NoControls(())
MESSAGES = [{"role": "user", "content": "Why?"}]


def decoding(*, end_ids: tuple[int, ...] = (2,), penalty: float = 1.0) -> DecodingConfig:
    return DecodingConfig(end_ids=end_ids, pad_id=0, max_tokens=8, repetition_penalty=penalty)


@pytest.fixture
def model(tiny_base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32).eval()


@pytest.fixture
def tokenizer(tiny_base: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_base)


def generated(model: Any, prompt: tuple[int, ...], penalty: float) -> tuple[int, ...]:
    """What transformers itself says."""
    model.set_attn_implementation("sdpa")
    ids = torch.tensor([prompt])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=8,
        do_sample=False,
        repetition_penalty=penalty,
        eos_token_id=-1,
        pad_token_id=0,
    )
    return tuple(out[0, len(prompt) :].tolist())


class TestDecoding:
    @pytest.mark.parametrize("penalty", [1.0, 1.5])
    def test_equals_transformers_though_prompts_differ_in_length(self, model: Any, penalty: float) -> None:
        expected = [generated(model, prompt, penalty) for prompt in PROMPTS]
        found = greedy(model, NONE, [Asked(prompt, -1) for prompt in PROMPTS], decoding(end_ids=(-1,), penalty=penalty))
        assert model.config._attn_implementation == "meet_decoding"
        assert found == expected

    @pytest.mark.parametrize("in_blocks", [True, False])
    def test_in_small_batches_groups_and_blocks_it_is_the_same(
        self, model: Any, monkeypatch: pytest.MonkeyPatch, in_blocks: bool
    ) -> None:
        expected = [generated(model, prompt, 1.5) for prompt in PROMPTS]
        monkeypatch.setattr(rivals_decoding, "BATCH_SIZE", 2)  # the two shorter prompts, then the longest
        monkeypatch.setattr(rivals_decoding, "TOKENS_PER_PASS", 4)  # of the two, one at a time
        monkeypatch.setattr(decoding_cache, "BLOCK", 3)
        if not in_blocks:  # as on a GPU
            monkeypatch.setattr(rivals_decoding.decoding_attention, "take", lambda _: False)
        found = greedy(model, NONE, [Asked(prompt, -1) for prompt in PROMPTS], decoding(end_ids=(-1,), penalty=1.5))
        assert found == expected

    def test_prompts_of_like_length_are_read_together(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(rivals_decoding, "TOKENS_PER_PASS", 20)
        found = list(rivals_decoding.groups_of([3, 4, 5, 9, 9, 30]))
        assert found == [slice(0, 3), slice(3, 5), slice(5, 6)]
        assert list(rivals_decoding.groups_of([5] * 5)) == [slice(0, 4), slice(4, 5)]  # 4 x 5 are 20 and no more

    @pytest.mark.parametrize("ended", [0.0, 1.0], ids=["leaves at once", "stays"])
    def test_a_reply_ends_with_its_end_of_turn_and_others_go_on(
        self, model: Any, monkeypatch: pytest.MonkeyPatch, ended: float
    ) -> None:
        monkeypatch.setattr(rivals_decoding, "ENDED", ended)
        whole = [generated(model, prompt, 1.5) for prompt in PROMPTS]
        eos = whole[0][2]
        expected = [reply[: reply.index(eos) + 1] if eos in reply else reply for reply in whole]
        assert len({len(reply) for reply in expected}) > 1
        found = greedy(model, NONE, [Asked(prompt, -1) for prompt in PROMPTS], decoding(end_ids=(eos,), penalty=1.5))
        assert found == expected

    def test_a_reply_ends_with_whichever_end_comes_first(self, model: Any) -> None:
        whole = [generated(model, prompt, 1.5) for prompt in PROMPTS]
        ends = (whole[0][0], whole[1][3])
        expected = [reply[: min([8, *(i + 1 for i, token in enumerate(reply) if token in ends)])] for reply in whole]
        assert [len(reply) for reply in expected] == [1, 4, 8]
        found = greedy(model, NONE, [Asked(prompt, -1) for prompt in PROMPTS], decoding(end_ids=ends, penalty=1.5))
        assert found == expected

    def test_a_batch_of_several_controls_equals_each_alone(self, model: Any) -> None:
        controls = LoraTuning(model, ("a", "b"), LoraConfig(rank=2), seed=0)
        torch.manual_seed(0)
        for parameter in (p for k in (0, 1) for p in controls.parameters_of(k)):
            parameter.data.normal_(std=0.5)
        asked = [Asked(prompt, control) for control in (-1, 0, 1) for prompt in PROMPTS]
        together = greedy(model, controls, asked, decoding(end_ids=(-1,)))
        assert together == [greedy(model, controls, [one], decoding(end_ids=(-1,)))[0] for one in asked]
        assert len(set(together)) == len(together)

    def test_a_soft_prompt_that_is_a_text_says_what_the_text_does(self, model: Any, tokenizer: Any) -> None:
        text = "Well: "
        ids = tuple(tokenizer(text)["input_ids"])
        expected = greedy(model, NONE, [Asked(prompt + ids, -1) for prompt in PROMPTS], decoding(end_ids=(-1,)))
        config = SoftPromptConfig(num_virtual_tokens=len(ids), placement="after_prompt", start="text")
        controls = SoftPromptTuning(model, ("a",), config, 0, tokenizer, {"a": text})
        found = greedy(model, controls, [Asked(prompt, 0) for prompt in PROMPTS], decoding(end_ids=(-1,)))
        assert found == expected

    def test_the_penalty_by_hand(self) -> None:
        logits, seen = torch.tensor([[2.0, -2.0, 3.0]]), torch.tensor([[0, 1, 0]])  # 0 twice, which counts once
        assert penalised(logits, seen, 2.0).tolist() == [[1.0, -4.0, 3.0]]


def test_what_has_no_control_is_uncontrolled(model: Any, tokenizer: Any) -> None:
    controls = LoraTuning(model, ("a", "b"), LoraConfig(rank=2), seed=0)
    tuned = Tuned(model, controls, AsItIs(), tokenizer, torch.float32)
    assert [tuned.control(preference) for preference in ("a", "b", "c", None)] == [0, 1, -1, -1]


class TestScores:
    def test_are_log_probabilities_without_the_end_of_turn(self, model: Any, tokenizer: Any) -> None:
        tuned = Tuned(model, NONE, TextToken("As {preference}:\n"), tokenizer, torch.float32).ready()
        given = [(MESSAGES, "Rain."), (MESSAGES, "It has rained for long.")]
        for (_, reply), score in zip(given, scores_of(tuned, given, "short", decoding()), strict=True):
            prompt = "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\nAs short:\n"
            before, after = (tokenizer(text)["input_ids"] for text in (prompt, reply))
            model.set_attn_implementation("sdpa")
            with torch.no_grad():
                logprobs = model(torch.tensor([before + after])).logits[0].log_softmax(-1)
            by_hand = sum(float(logprobs[len(before) + i - 1, token]) for i, token in enumerate(after))
            assert score.logprob == pytest.approx(by_hand, abs=1e-3)
            assert score.num_tokens == len(reply)

    def test_an_end_of_turn_that_is_not_the_end_of_sequence_is_left_out_too(
        self, model: Any, turns_end_otherwise: Path
    ) -> None:
        """With the end of sequence behind it, as some templates have it, and without."""
        tokenizer = AutoTokenizer.from_pretrained(turns_end_otherwise)
        tuned = Tuned(model, NONE, AsItIs(), tokenizer, torch.float32).ready()
        template, scores = str(tokenizer.chat_template), []
        for behind in ("", "<|pad|>"):
            tokenizer.chat_template = template.replace("<|im_end|>\n", f"<|im_end|>{behind}\n")
            scores += scores_of(tuned, [(MESSAGES, "Rain.")], None, decoding(end_ids=(0, 2)))
        assert [score.num_tokens for score in scores] == [5, 5]

    def test_every_end_finishes_a_reply(self, model: Any, tokenizer: Any) -> None:
        tuned = Tuned(model, NONE, AsItIs(), tokenizer, torch.float32).ready()
        said = tokenizer.decode(generated(model, prompt_ids(MESSAGES, tokenizer), 1.0))
        ids = tokenizer(said)["input_ids"]
        ((reply,),) = replies_of(tuned, [MESSAGES], [None], decoding(end_ids=(-1, ids[1])))
        assert (reply.finished, reply.num_tokens) == (True, ids.index(ids[1]) + 1)

    def test_a_reply_that_was_cut_is_not_finished(self, model: Any, tokenizer: Any) -> None:
        tuned = Tuned(model, NONE, AsItIs(), tokenizer, torch.float32).ready()
        ((reply,),) = replies_of(tuned, [MESSAGES], [None], decoding(end_ids=(-1,)))
        assert (reply.finished, reply.num_tokens) == (False, 8)


class OneFeature(PreferenceClassifier):
    """One feature, which is the number that a text is."""

    def _hidden(self, text: str) -> torch.Tensor:
        return torch.tensor([float(text)])


class TestClassifier:
    def test_its_weights_by_hand(self) -> None:
        base: Any = SimpleNamespace(config=SimpleNamespace(hidden_size=1))
        base.eval = lambda: base
        none: Any = None
        classifier = OneFeature(base, none)
        # With d = 3 - 1 = 2 on every pair w is 1 in units of d where sigma(-w) = weight_decay w.
        classifier.train(["3"] * 4, ["1"] * 4, weight_decay=1 / (1 + math.e))
        assert classifier.measure("3") == pytest.approx(3 / 2, abs=1e-4)

    def test_reads_the_start_of_a_long_reply_and_nothing_of_an_empty_one(self, model: Any, tokenizer: Any) -> None:
        classifier = PreferenceClassifier(model, tokenizer)
        classifier.weight = torch.linspace(-1, 1, len(classifier.weight))
        long = "ab" * (MAX_TOKENS // 2)
        assert classifier.measure(f"{long}{'z' * 50}") == classifier.measure(long)
        assert classifier.measure(f"{long[:-1]}z") != classifier.measure(long)
        assert classifier.accuracy([""], [""]).share == 0

    def test_is_kept_for_what_decides_it_alone(self, model: Any, tokenizer: Any, tmp_path: Path) -> None:
        judge = Judge(PreferenceClassifier(model, tokenizer), share_of(3, 4))
        keep_judge(judge, tmp_path / "classifier.json", "key")
        assert kept_accuracy(tmp_path / "classifier.json", "key") == judge.accuracy
        assert kept_accuracy(tmp_path / "classifier.json", "other") is None

    def test_learns_from_pairs_and_is_right_on_others(self, model: Any, tokenizer: Any) -> None:
        good = [f"{word} zzz zz" for word in ("one", "two", "three", "four", "five", "six", "seven", "eight")]
        bad = [text.replace("z", "q") for text in good]
        classifier = PreferenceClassifier(model, tokenizer)
        assert classifier.accuracy(good, bad).share == 0  # nothing learned, nothing told apart
        classifier.train(good[:5], bad[:5], weight_decay=0.01)
        accuracy = classifier.accuracy(good[5:], bad[5:])
        assert (accuracy.share, accuracy.num_prompts) == (1, 3)
        assert classifier.measure("nine zzz zz") > classifier.measure("nine qqq qq")
        assert classifier.measure(" ") == 0
