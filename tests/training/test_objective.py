"""The losses by hand; packed rows, chunks and grouping change nothing but rounding."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import logsigmoid

from meet_training.config import TrainConfig
from meet_training.controls.lora import LoraTuning
from meet_training.controls_config import LoraConfig
from meet_training.data.batches import Item, passes
from meet_training.data.forms import load_examples
from meet_training.data.render import Rendered
from meet_training.stages.layout import Batch, lay_out
from meet_training.stages.machine import Machine
from meet_training.stages.objective import Objective, StepSizes
from meet_training.stages.optimise import LoopConfig, backward
from meet_training.stages.reference import reference_logprobs
from meet_training.stages.reply_nll import reply_nll
from meet_training.two_stages import Run

CPU = torch.device("cpu")
ITEMS = [
    Item(0, Rendered((5, 6, 7), (8, 9))),
    Item(1, Rendered((5,), (6, 7, 8, 9, 10))),
    Item(-1, Rendered((4, 4), (11,))),
    Item(1, Rendered((5, 6), (6, 7))),
]


@pytest.fixture
def model(tiny_base: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)


def plain(items: list[Item], **options: Any) -> Batch:
    return lay_out(items, lambda _: ((), ()), 0, CPU, **options)


def loop(**options: Any) -> LoopConfig:
    fields: dict[str, Any] = {"stage": "s", "tokens_per_pass": 64, "pad_id": 0, "autocast": False, "seed": 0}
    return LoopConfig(machine=Machine(CPU), **(fields | options))


def random_controls(model: Any) -> LoraTuning:
    controls = LoraTuning(model, ("a", "b"), LoraConfig(), seed=0)
    torch.manual_seed(3)
    with torch.no_grad():
        for k in (0, 1):
            for parameter in controls.parameters_of(k):
                parameter.normal_(0, 0.2)
    return controls


def test_likelihood_is_the_mean_over_a_controls_tokens_in_the_whole_step() -> None:
    """Two batches of a step: control 0 has 2 tokens, control 1 has 5 and 2, uncontrolled 1."""
    sizes = StepSizes.of(ITEMS, 2, CPU)
    first, second = plain(ITEMS[:2]), plain(ITEMS[2:])
    objective = Objective()
    one = objective.losses(torch.tensor([1.0, 2.0, 1.0, 1.0, 1.0, 1.0, 3.0]), first, sizes)
    two = objective.losses(torch.tensor([0.5, 4.0, 3.0]), second, sizes)
    torch.testing.assert_close(one + two, torch.tensor([3 / 2, (7 + 7) / 7, 0.5]))


def test_the_preference_objective_is_dpo_with_the_winner_first() -> None:
    pair = Rendered((5, 6), (8, 9), rejected_ids=(7,))
    items = [Item(1, pair), Item(1, Rendered((5,), (6, 6)))]
    batch = plain(items)
    assert batch.ids.tolist() == [[5, 6, 8, 9], [5, 6, 7, 0], [5, 6, 6, 0]]
    assert batch.pairs.tolist() == [[0, 1]]
    objective = Objective(beta=0.5, likelihood_weight=0.25, reference={pair: (-3.0, -1.0)})
    nll = torch.tensor([1.0, 0.5, 2.0, 4.0, 6.0])
    losses = objective.losses(nll, batch, StepSizes.of(items, 2, CPU))
    # The winner moved from -3 to -1.5, the loser from -1 to -2.
    preference = -math.log(1 / (1 + math.exp(-0.5 * (1.5 - (-1.0)))))
    # 2 tokens of the winner, at a quarter, and 2 of the example without a pair; the loser's do not count.
    likelihood = (0.25 * 1.5 + 10.0) / 4
    torch.testing.assert_close(losses, torch.tensor([0.0, preference + likelihood, 0.0]))


def test_pairs_of_a_control_are_averaged_wherever_they_stand() -> None:
    one, other = Rendered((5, 6), (8, 9), rejected_ids=(7,)), Rendered((5, 6), (8,), rejected_ids=(9,))
    items = [Item(0, Rendered((5,), (6, 6))), Item(1, one), Item(1, other)]
    batch = plain(items)
    assert batch.pairs.tolist() == [[1, 2], [3, 4]]
    objective = Objective(beta=1.0, likelihood_weight=0.0, reference={one: (0.0, 0.0), other: (0.0, 0.0)})
    losses = objective.losses(torch.tensor([4.0, 6.0, 1.0, 0.5, 2.0, 3.0, 1.0]), batch, StepSizes.of(items, 2, CPU))
    # The winners are ahead by -1.5 + 2 and by -3 + 1.
    preference = (math.log(1 + math.exp(-0.5)) + math.log(1 + math.exp(2.0))) / 2
    torch.testing.assert_close(losses, torch.tensor([5.0, preference, 0.0]))


def test_of_a_reply_with_a_mask_what_it_leaves_out_is_not_supervised() -> None:
    """As between two turns of the assistant's that are learned."""
    items = [Item(0, Rendered((5, 6), (7, 8, 9), mask=(True, False, True))), Item(1, Rendered((5,), (4,)))]
    for batch in (plain(items), plain(items, packed=True)):
        assert batch.ids[batch.predicts.roll(1, 1)].tolist() == batch.targets.tolist() == [7, 9, 4]
        assert batch.controls.tolist() == [0, 0, 1]
    assert plain(items).predicts.int().tolist() == [[0, 1, 0, 1, 0], [1, 0, 0, 0, 0]]


def test_a_step_of_several_passes_is_that_of_one(model: Any) -> None:
    model.requires_grad_(False)
    controls, found = random_controls(model), []
    for tokens in (64, 1):
        losses = backward(model, controls, ITEMS, loop(tokens_per_pass=tokens))
        found.append([torch.tensor(list(losses.values())), *(p.grad.clone() for p in controls.parameters_of(1))])
        for parameter in (*controls.parameters_of(0), *controls.parameters_of(1)):
            parameter.grad = None
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_uncontrolled_examples_pull_the_model_by_their_weight(model: Any) -> None:
    controls, pulls = random_controls(model), []
    for weight in (1.0, 0.25):
        model.zero_grad()
        losses = backward(model, controls, [ITEMS[2]], loop(uncontrolled_weight=weight))
        pulls.append((losses, model.get_output_embeddings().weight.grad.clone()))
    (whole, one), (told, quarter) = pulls
    assert told == whole  # what is told is the loss, whatever it weighs
    torch.testing.assert_close(quarter, one / 4)


def test_the_reference_is_the_log_probability_under_the_base(model: Any) -> None:
    pairs = [Rendered((5, 6), (8, 9), rejected_ids=(7,)), Rendered((5,), (6, 7, 8), rejected_ids=(9, 9))]
    reference = reference_logprobs(model, pairs, 8, pad_id=0, machine=Machine(CPU))
    for pair in pairs:
        for reply, found in zip((pair.reply_ids, pair.rejected_ids or ()), reference[pair], strict=True):
            logits = model(torch.tensor([[*pair.prompt_ids, *reply]])).logits[0].detach()
            logprobs = logits.log_softmax(-1)
            start = len(pair.prompt_ids)
            assert found == pytest.approx(sum(float(logprobs[start + i - 1, t]) for i, t in enumerate(reply)), abs=1e-4)


@pytest.mark.parametrize("sharded", [False, True])
def test_processes_share_the_passes_of_the_reference(
    model: Any, monkeypatch: pytest.MonkeyPatch, sharded: bool
) -> None:
    """Of a sharded model each goes over it equally often, and what that adds does not count."""
    pairs = [Rendered((5, n), (8, 9), rejected_ids=(7,)) for n in range(5, 14)]
    whole = reference_logprobs(model, pairs, 8, pad_id=0, machine=Machine(CPU))
    monkeypatch.setattr(Machine, "add", lambda machine, tensor: None)
    nums: list[int] = []
    model.register_forward_pre_hook(lambda *_: nums.__setitem__(-1, nums[-1] + 1))
    parts = []
    for rank in (0, 1):
        nums.append(0)
        machine = Machine(CPU, rank=rank, num_processes=2)
        parts.append(reference_logprobs(model, pairs, 8, pad_id=0, machine=machine, sharded=sharded))
    assert nums == ([5, 5] if sharded else [5, 4])
    for pair in pairs:
        (own,) = (part[pair] for part in parts if part[pair] != (0, 0))
        assert own == whole[pair]


def test_a_run_that_goes_on_finds_the_reference_kept(
    make_config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(objective={"kind": "preference"})
    first, second = (Run(config, Path(config.base), load_examples(config)) for _ in range(2))
    first.ask_the_base()
    monkeypatch.setattr(second, "load_model", lambda _: pytest.fail("the base was loaded again"))
    second.ask_the_base()
    assert first.objective.reference
    assert second.objective == first.objective


def test_the_reference_of_a_base_with_dropout_is_what_it_says_without(tiny_base: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32, attention_dropout=0.5)
    pairs = [Rendered((5, 6, 7), (8, 9), rejected_ids=(10,))]
    expected = reference_logprobs(model.eval(), pairs, 64, pad_id=0, machine=Machine(CPU))
    model.train()
    assert reference_logprobs(model, pairs, 64, pad_id=0, machine=Machine(CPU)) == expected
    assert all(module.training for module in model.modules())


def test_at_the_base_itself_the_preference_loss_is_ln_2_and_it_prefers_the_winner_after_a_step(model: Any) -> None:
    controls = random_controls(model)
    pair = Rendered((5, 6), (8, 9), rejected_ids=(7, 4))
    items = [Item(0, pair)]
    reference = reference_logprobs(model, [pair], 64, pad_id=0, machine=Machine(CPU))
    for k in (0, 1):
        for parameter in controls.parameters_of(k):
            torch.nn.init.zeros_(parameter)
    config = loop(objective=Objective(beta=0.1, likelihood_weight=0.0, reference=reference))
    losses = backward(model, controls, items, config)
    assert losses == {0: pytest.approx(math.log(2), abs=1e-5)}
    with torch.no_grad():
        for parameter in controls.parameters_of(0):
            parameter -= 0.5 * parameter.grad
            parameter.grad = None
    assert backward(model, controls, items, config)[0] < math.log(2)
    assert -float(logsigmoid(torch.tensor(0.0))) == pytest.approx(math.log(2))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_rows_are_kept_apart(tiny_base: Path, attention: str) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32, attn_implementation=attention)
    controls = random_controls(model)
    found = []
    for packed in (False, True):
        model.zero_grad()
        losses = backward(model, controls, ITEMS, loop(packed=packed, uncontrolled_weight=0.5))
        gradients = [p.grad.clone() for k in (0, 1) for p in controls.parameters_of(k)]
        found.append((losses, gradients))
    batch = plain(ITEMS, packed=True)
    assert batch.ids.shape == (1, sum(item.num_tokens for item in ITEMS))
    assert batch.positions is not None
    assert batch.positions.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 0, 1, 2, 0, 1, 2, 3]]
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-5)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_chunks_of_logits_give_the_same_loss_and_gradients(
    model: Any, frozen: bool, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against cross entropy over all logits, where the output layer is frozen and where it is tuned."""
    monkeypatch.setattr("meet_training.stages.reply_nll._MAX_KEPT_LOGITS", 0)
    model.requires_grad_(True)
    model.lm_head.weight.requires_grad_(not frozen)
    batch = plain(ITEMS)
    weights = torch.rand(len(batch.targets))
    found = []
    for ours in (False, True):
        model.zero_grad()
        if ours:
            nll = reply_nll(model, batch, chunk=chunk)
        else:
            logits = model(batch.ids).logits[batch.predicts]
            nll = torch.nn.functional.cross_entropy(logits, batch.targets, reduction="none")
        (nll * weights).sum().backward()
        found.append([nll.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    assert len(found[0]) == len(found[1])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


SMALL: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}


def test_logits_that_a_model_changes_afterwards_are_taken_as_changed(model: Any) -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    check_nll(Gemma2ForCausalLM(Gemma2Config(**SMALL, final_logit_softcapping=0.5)))


def test_so_are_those_of_an_output_layer_with_a_bias(model: Any) -> None:
    model.lm_head.bias = torch.nn.Parameter(torch.linspace(-1, 1, model.config.vocab_size))
    check_nll(model)


def test_logits_that_no_exponential_holds_are_no_trouble(model: Any) -> None:
    model.requires_grad_(False)
    model.model.norm.weight.mul_(1e4)
    check_nll(model)


def check_nll(model: Any) -> None:
    """That of the supervised tokens is what cross entropy over the model's own logits is."""
    batch = plain(ITEMS)
    logits = model(batch.ids, use_cache=False).logits[batch.predicts]
    expected = torch.nn.functional.cross_entropy(logits.float(), batch.targets, reduction="none")
    torch.testing.assert_close(reply_nll(model, batch), expected)
    assert model(batch.ids, use_cache=False).logits.shape[:2] == batch.ids.shape  # all of them again


def test_so_are_those_of_a_model_that_multiplies_them() -> None:
    from transformers import FalconH1Config, FalconH1ForCausalLM

    torch.manual_seed(0)
    config = FalconH1Config(
        **SMALL,
        mamba_d_ssm=16,
        mamba_n_heads=2,
        mamba_d_head=8,
        mamba_d_state=4,
        mamba_chunk_size=4,
        lm_head_multiplier=0.1,
    )
    check_nll(FalconH1ForCausalLM(config).float().eval())


def test_so_are_those_of_a_model_whose_configuration_of_text_says_so(model: Any) -> None:
    """As that of Gemma 3n does, which reads pictures and sound too."""
    text_config = copy.deepcopy(model.config)
    text_config.logits_scaling = 4.0
    model.config.get_text_config = lambda **_: text_config
    own_logits = type(model).forward

    def forward(**given: Any) -> Any:
        out = own_logits(model, **given)
        out.logits = out.logits / text_config.logits_scaling
        return out

    model.forward = lambda ids=None, **given: forward(**{"input_ids": ids, **given})
    check_nll(model)


def test_nothing_is_learned_from_uncontrolled_examples_while_the_model_is_frozen(model: Any) -> None:
    model.requires_grad_(False)
    controls = random_controls(model)
    losses = backward(model, controls, [ITEMS[2]], loop())
    assert losses.keys() == {-1}
    assert all(p.grad is None for k in (0, 1) for p in controls.parameters_of(k))


def test_a_pair_stays_in_one_pass_and_counts_twice() -> None:
    pair = Rendered((1, 2), (3,), rejected_ids=(4, 5, 6))
    items = [Item(0, pair), Item(1, pair), Item(1, Rendered((1,), (2,)))]
    assert items[0].length == 5
    assert items[0].num_tokens == 8
    groups = passes(items, 12)
    assert [[item.num_rows for item in group] for group in groups] == [[2], [2], [1]]
    assert [len(group) for group in passes(items, 10**6)] == [3]
    assert [len(group) for group in passes(items, 18, packed=True)] == [3]
    # Longer than a pass each: one by one.
    assert [len(group) for group in passes(items[:2], 3, packed=True)] == [1, 1]
    assert passes([], 3, packed=True) == []


def test_packed_groups_are_few_and_nearly_equal() -> None:
    items = [Item(i % 3, Rendered((1,), (2,) * (length - 1))) for i, length in enumerate((9, 8, 5, 5, 4, 3))]
    groups = passes(items, 17, packed=True)
    assert sorted(len(item.rendered) for group in groups for item in group) == [3, 4, 5, 5, 8, 9]
    assert [sum(item.num_tokens for item in group) for group in groups] == [17, 17]
    assert all([item.control for item in group] == sorted(item.control for item in group) for group in groups)
    # An example that is too long stands alone, and no examples make no groups.
    assert [len(group) for group in passes(items, 7, packed=True)][:2] == [1, 1]
    assert max(sum(item.num_tokens for item in group) for group in passes(items[2:], 7, packed=True)) <= 7
    assert passes([], 7, packed=True) == []


def test_rows_of_logits_worked_on_apart_give_the_same(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model.requires_grad_(False)
    controls = random_controls(model)
    found = []
    for tile in (1 << 20, 1):  # all rows, one row
        monkeypatch.setattr("meet_training.stages.reply_nll._TILE", tile)
        losses = backward(model, controls, ITEMS, loop())
        found.append([torch.tensor(list(losses.values())), *(p.grad.clone() for p in controls.parameters_of(1))])
        for parameter in (*controls.parameters_of(0), *controls.parameters_of(1)):
            parameter.grad = None
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
