"""Soft prompts: what they start from, that each learns by itself, and that what is exported is what was trained."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from meet_training.controls.soft_prompt import SoftPromptTuning
from meet_training.controls.trained import SoftPromptControl
from meet_training.controls_config import SoftPromptConfig
from meet_training.data.batches import Item
from meet_training.data.render import Rendered
from meet_training.errors import TrainingError
from meet_training.stages.layout import lay_out, lay_out_tails
from meet_training.stages.prompt_cache import PromptCache
from meet_training.stages.reply_nll import reply_nll

CPU = torch.device("cpu")
NAMES = ("short", "long")
TEXTS = {"short": "ab", "long": "Say it at length."}


@pytest.fixture
def model(tiny_base: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)


@pytest.fixture
def tokenizer(tiny_base: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_base)


def soft(model: Any, tokenizer: Any, **config: Any) -> SoftPromptTuning:
    fields = {"num_virtual_tokens": 4} | config
    return SoftPromptTuning(model, NAMES, SoftPromptConfig(**fields), 0, tokenizer, TEXTS)


def test_it_starts_from_text_vocabulary_or_noise(model: Any, tokenizer: Any) -> None:
    weight = model.get_input_embeddings().weight.detach()
    texts = soft(model, tokenizer).state()
    for name, text in (("short", "abab"), ("long", "Say ")):  # said again, or its start
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert torch.equal(texts[f"{name}/soft_prompt"], weight[ids])
    model.set_input_embeddings(model.get_input_embeddings().base)
    drawn = soft(model, tokenizer, start="vocabulary").state()
    assert all(any(torch.equal(row, known) for known in weight) for row in drawn["long/soft_prompt"])
    assert not torch.equal(drawn["long/soft_prompt"], drawn["short/soft_prompt"])
    model.set_input_embeddings(model.get_input_embeddings().base)
    own = soft(model, tokenizer, start="random", num_virtual_tokens=64).state()
    noise = own["short/soft_prompt"]
    assert float(noise.std()) == pytest.approx(float(weight.std()), rel=0.1)
    model.set_input_embeddings(model.get_input_embeddings().base)
    other = SoftPromptTuning(
        model, NAMES, SoftPromptConfig(start="random", num_virtual_tokens=64), 1, tokenizer, TEXTS
    ).state()
    draws = [*own.values(), *other.values()]  # of both names, by both seeds
    assert not any(torch.equal(one, another) for one, another in itertools.combinations(draws, 2))


def test_it_starts_from_no_row_that_the_tokenizer_has_no_token_for(model: Any, tokenizer: Any) -> None:
    """Behind these some bases have rows that nothing ever trained."""
    model.resize_token_embeddings(2 * len(tokenizer), mean_resizing=False)
    model.get_input_embeddings().weight.data[len(tokenizer) :] = 7.0
    drawn = soft(model, tokenizer, start="vocabulary", num_virtual_tokens=32).state()
    assert not any((prompt == 7.0).any() for prompt in drawn.values())


@pytest.mark.parametrize(
    ("placement", "first_row"),
    [("before_prompt", [259, 260, 261, 262, 5, 6, 8, 9]), ("after_prompt", [5, 6, 259, 260, 261, 262, 8, 9])],
)
def test_virtual_tokens_stand_where_the_placement_says_and_the_reply_alone_is_supervised(
    model: Any, tokenizer: Any, placement: str, first_row: list[int]
) -> None:
    controls = soft(model, tokenizer, placement=placement)
    items = [Item(0, Rendered((5, 6), (8, 9))), Item(-1, Rendered((5,), (6,)))]
    batch = lay_out(items, controls.virtual_ids, 0, CPU)
    assert batch.ids.tolist() == [first_row, [5, 6, 0, 0, 0, 0, 0, 0]]
    assert batch.predicts.int().tolist() == [[0, 0, 0, 0, 0, 1, 1, 0], [1, 0, 0, 0, 0, 0, 0, 0]]
    assert batch.targets.tolist() == [8, 9, 6]


@pytest.mark.parametrize("placement", ["before_prompt", "after_prompt"])
def test_a_row_sees_its_own_virtual_tokens_and_no_other_gets_a_gradient(
    model: Any, tokenizer: Any, placement: str
) -> None:
    controls = soft(model, tokenizer, placement=placement, start="random")
    items = [Item(-1, Rendered((5, 6), (8, 9))), Item(1, Rendered((5, 6, 7), (8, 9)))]
    batch = lay_out(items, controls.virtual_ids, 0, CPU)
    with controls.applied(batch.token_controls):
        nll = reply_nll(model, batch)
        nll[2:].sum().backward()
    assert controls.parameters_of(0)[0].grad is None
    assert controls.parameters_of(1)[0].grad.abs().sum(-1).min() > 0
    # By hand: the embeddings of the row, put together outside the wrapper.
    base = model.get_input_embeddings().base
    (prompt,) = controls.parameters_of(1)
    parts = [base(torch.tensor([5, 6, 7])), prompt, base(torch.tensor([8, 9]))]
    ordered = [parts[1], parts[0], parts[2]] if placement == "before_prompt" else parts
    logprobs = model(inputs_embeds=torch.cat(ordered)[None]).logits[0].log_softmax(-1)
    torch.testing.assert_close(nll[2:], -torch.stack([logprobs[6, 8], logprobs[7, 9]]))


def test_prompts_computed_once_give_the_same_loss_and_gradients(model: Any, tokenizer: Any) -> None:
    model.requires_grad_(False)
    controls = soft(model, tokenizer, start="random")
    items = [
        Item(0, Rendered((5, 6, 7, 9), (8, 9))),
        Item(1, Rendered((5, 6), (8, 9, 10))),
        Item(1, Rendered((5, 6, 7, 9), (4,))),
    ]
    cache = PromptCache(1 << 20, CPU)
    gradients = []
    losses = []
    for cached in (False, True, True):
        batch, given = (
            cache.lay_out(model, items, controls.virtual_ids, 0)
            if cached
            else (lay_out(items, controls.virtual_ids, 0, CPU), {})
        )
        with controls.applied(batch.token_controls):
            nll = reply_nll(model, batch, **given)
            nll.sum().backward()
        losses.append(nll.detach())
        gradients.append([controls.parameters_of(k)[0].grad.clone() for k in (0, 1)])
        for k in (0, 1):
            controls.parameters_of(k)[0].grad = None
    assert len(cache) == 2
    for other in (1, 2):
        torch.testing.assert_close(losses[0], losses[other])
        torch.testing.assert_close(gradients[0], gradients[other])


def test_kept_prompts_of_a_base_with_dropout_are_what_it_makes_of_them_without(tiny_base: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32, attention_dropout=0.5)
    items, found = [Item(0, Rendered((5, 6, 7, 8), (9, 10)))], []
    for training in (False, True):
        model.train(training)
        _, given = PromptCache(1 << 20, torch.device("cpu")).lay_out(model, items, lambda _: ((), ()), 0)
        found.append([tensor for layer in given["past_key_values"].layers for tensor in (layer.keys, layer.values)])
        assert model.training is training
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_a_full_cache_keeps_what_it_has_and_computes_the_rest(model: Any, tokenizer: Any) -> None:
    controls = soft(model, tokenizer)
    items = [Item(0, Rendered((5, 6, 7, 9), (8, 9))), Item(1, Rendered((5, 6), (8, 9, 10)))]
    one_token = 2 * 2 * 2 * 16 * 4  # layers, keys and values, heads, head size, bytes
    cache = PromptCache(5 * one_token, CPU)
    batch, given = cache.lay_out(model, items, controls.virtual_ids, 0)
    assert len(cache) == 1
    with controls.applied(batch.token_controls), torch.no_grad():
        cached = reply_nll(model, batch, **given)
        batch = lay_out(items, controls.virtual_ids, 0, CPU)
        torch.testing.assert_close(cached, reply_nll(model, batch))


def test_tails_leave_the_prompts_out(model: Any, tokenizer: Any) -> None:
    controls = soft(model, tokenizer)
    batch = lay_out_tails([Item(1, Rendered((5, 6), (8, 9)))], controls.virtual_ids, 0, CPU)
    assert batch.ids.tolist() == [[263, 264, 265, 266, 8, 9]]
    assert batch.predicts.int().tolist() == [[0, 0, 0, 1, 1, 0]]
    assert batch.prompts == ((5, 6),)


@pytest.mark.parametrize("tied", [True, False])
def test_exported_rows_are_the_soft_prompts_and_are_never_generated(
    tiny_base: Path, tokenizer: Any, tmp_path: Path, tied: bool
) -> None:
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig.from_pretrained(tiny_base)
    config.tie_word_embeddings = tied
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).float()
    controls = soft(model, tokenizer, start="random")
    batch = lay_out([Item(1, Rendered((5, 6, 7), (8, 9)))], controls.virtual_ids, 0, CPU)
    with controls.applied(batch.token_controls), torch.no_grad():
        trained = reply_nll(model, batch)
    controls.save(1, tmp_path / "long")
    controls.detach(model)
    model.save_pretrained(tmp_path / "model")
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert exported.config.vocab_size == 259 + 2 * 4
    assert tied or not exported.get_output_embeddings().weight[259:].any()
    # The new ids take their share of the softmax; the server cuts them off, as is done here.
    logprobs = exported(batch.ids).logits[0][:, :259].log_softmax(-1)
    torch.testing.assert_close(trained, -torch.stack([logprobs[6, 8], logprobs[7, 9]]))
    out = exported.generate(torch.arange(3, 20)[None], max_new_tokens=40, do_sample=True, temperature=5.0)
    assert int(out.max()) < 259
    assert controls.first_token_id(1) == 263


def test_a_soft_prompt_before_the_prompt_is_what_peft_reads(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    from peft import PeftModel

    controls = soft(model, tokenizer, placement="before_prompt", start="random")
    batch = lay_out([Item(0, Rendered((5, 6, 7), (8, 9)))], controls.virtual_ids, 0, CPU)
    with controls.applied(batch.token_controls), torch.no_grad():
        ours = reply_nll(model, batch)
    model.set_input_embeddings(model.get_input_embeddings().base)
    (embeddings,) = controls.parameters_of(0)
    control = SoftPromptControl("short", embeddings.detach(), (259, 260, 261, 262), "before_prompt")
    control.save_for_peft(tmp_path / "short")
    peft = PeftModel.from_pretrained(model, str(tmp_path / "short"))
    logprobs = peft(input_ids=torch.tensor([[5, 6, 7, 8, 9]])).logits[0][-5:].log_softmax(-1)
    torch.testing.assert_close(ours, -torch.stack([logprobs[2, 8], logprobs[3, 9]]))
    after = SoftPromptControl("short", embeddings.detach(), (259, 260, 261, 262), "after_prompt")
    with pytest.raises(TrainingError, match="PEFT puts soft prompts before it"):
        after.save_for_peft(tmp_path / "other")


def test_embeddings_that_the_layer_scales_are_scaled_here_too(model: Any, tokenizer: Any) -> None:
    base = model.get_input_embeddings()
    base.embed_scale = 3.0  # as Gemma's layer has it
    controls = soft(model, tokenizer)
    embedding = model.get_input_embeddings()
    with controls.applied(torch.tensor([[0]])):
        own = embedding(torch.tensor([[259]]))
    torch.testing.assert_close(own[0, 0], 3.0 * controls.state()["short/soft_prompt"][0])
