"""Shared-A LoRA and the objective, against values worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from meet_training.controls.lora import ControlledLinear, LoraTuning, Routing, make_a
from meet_training.controls.model_lora import ModelLora
from meet_training.controls.target_layers import target_layers
from meet_training.controls_config import LoraConfig
from meet_training.data.batches import Item
from meet_training.data.render import Rendered
from meet_training.errors import TrainingError
from meet_training.stages.layout import lay_out
from meet_training.stages.reply_nll import reply_nll
from meet_training.stages_config import Stage2Config

CPU = torch.device("cpu")


def rows(*controls: int) -> torch.Tensor:
    """The control of each row, for all of its tokens."""
    return torch.tensor(controls)[:, None]


def no_virtual_ids(control: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return (), ()


@pytest.fixture
def model(tiny_base: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)


def randomise(controls: LoraTuning) -> None:
    torch.manual_seed(1)
    with torch.no_grad():
        for k in range(len(controls.names)):
            for parameter in controls.parameters_of(k):
                parameter.normal_(0, 0.2)


def test_each_row_gets_its_own_control_by_hand() -> None:
    base = nn.Linear(2, 1, bias=False)
    base.weight.data = torch.tensor([[1.0, 0.0]])
    routing = Routing()
    layer = ControlledLinear(base, [torch.tensor([[0.0, 1.0]])], num_controls=2, scale=2.0, routing=routing)
    layer.b[0].data = torch.tensor([[10.0]])
    layer.b[1].data = torch.tensor([[-1.0]])
    x = torch.tensor([[[1.0, 3.0]]]).repeat(3, 1, 1)
    routing.route(rows(-1, 0, 1))
    assert layer(x).flatten().tolist() == [1.0, 1.0 + 2 * 10 * 3, 1.0 - 2 * 3]
    routing.route(rows(1, 1, 1))
    assert layer(x).flatten().tolist() == [-5.0] * 3
    routing.route(rows(-1, -1, -1))
    assert layer(x).flatten().tolist() == [1.0] * 3


def test_an_untrained_control_changes_nothing(model: Any) -> None:
    ids = torch.arange(20)[None]
    plain = model(ids).logits
    controls = LoraTuning(model, ("a", "b"), LoraConfig(), seed=0)
    with controls.applied(rows(1)):
        assert torch.equal(model(ids).logits, plain)


def test_centred_controls_do_what_they_did_and_their_negatives_the_opposite(model: Any) -> None:
    controls = LoraTuning(model, ("a", "b", "alone"), LoraConfig(), seed=0)
    randomise(controls)
    ids = torch.randint(3, 250, (1, 12))

    @torch.no_grad()
    def logits(control: int) -> torch.Tensor:
        with controls.applied(rows(control)):
            result: torch.Tensor = model(ids).logits
        return result

    before, uncontrolled = [logits(k) for k in range(3)], logits(-1)
    controls.centre([])  # around none there is nothing to move
    assert torch.equal(logits(-1), uncontrolled)
    controls.centre([0, 1])
    for k in range(3):
        torch.testing.assert_close(logits(k), before[k], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits(-1), uncontrolled, atol=1e-2)
    for b_of_a, b_of_b in zip(controls.parameters_of(0), controls.parameters_of(1), strict=True):
        torch.testing.assert_close(b_of_a, -b_of_b)


def test_own_as_are_not_centred(model: Any) -> None:
    controls = LoraTuning(model, ("a", "b"), LoraConfig(share_a=False), seed=0)
    randomise(controls)
    before = controls.state()
    controls.centre([0, 1])
    assert all(torch.equal(tensor, before[name]) for name, tensor in controls.state().items())


@pytest.mark.parametrize("mixed", [(-1, 0, 0, 2), (-1, 0, 0, -1)], ids=["two controls and none", "one and none"])
@pytest.mark.parametrize("share_a", [True, False])
def test_a_mixed_batch_equals_each_row_alone(model: Any, mixed: tuple[int, ...], share_a: bool) -> None:
    controls = LoraTuning(model, ("a", "b", "c"), LoraConfig(share_a=share_a), seed=0)
    randomise(controls)
    ids = torch.randint(3, 250, (4, 12))
    with controls.applied(rows(*mixed)):
        together = model(ids).logits
    for row, control in enumerate(mixed):
        with controls.applied(rows(control)):
            torch.testing.assert_close(model(ids[row : row + 1]).logits[0], together[row])
    with controls.applied(rows(0)), torch.no_grad():
        controlled = model(ids[:1]).logits
        torch.testing.assert_close(model(ids[1:2]).logits[0], together[1])  # nothing is left of the pass before
    assert not torch.allclose(controlled[0], together[0])


def test_a_is_shared_by_controls_and_by_layers_of_one_input(model: Any) -> None:
    LoraTuning(model, ("a", "b"), LoraConfig(rank=4), seed=0)
    first = model.get_submodule("model.layers.0")
    assert torch.equal(first.self_attn.q_proj.a, first.self_attn.v_proj.a)
    assert torch.equal(first.mlp.gate_proj.a, first.mlp.up_proj.a)
    assert not torch.equal(first.self_attn.q_proj.a, first.self_attn.o_proj.a)
    assert not torch.equal(first.self_attn.q_proj.a, model.get_submodule("model.layers.1").self_attn.q_proj.a)
    a = make_a("model.layers.0.self_attn.q_proj", 4, 64, seed=0)
    assert torch.equal(first.self_attn.q_proj.a_of(1), a)
    assert -(64**-0.5) <= float(a.min()) < -0.9 * 64**-0.5  # uniform between both
    assert 0.9 * 64**-0.5 < float(a.max()) <= 64**-0.5
    assert not torch.equal(a, make_a("model.layers.0.self_attn.q_proj", 4, 64, seed=1))


def test_the_output_layer_is_never_adapted_and_wrong_names_are_refused(model: Any) -> None:
    layers = target_layers(model, "all-linear")
    assert "lm_head" not in layers
    assert len(layers) == 2 * 7
    assert set(target_layers(model, ("q_proj",))) == {f"model.layers.{i}.self_attn.q_proj" for i in (0, 1)}
    with pytest.raises(TrainingError, match=r"no linear layer query; it has down_proj, gate_proj"):
        target_layers(model, ("query", "q_proj"))


def test_a_model_without_linear_layers_is_refused() -> None:
    """GPT-2's are of a kind of their own."""
    from transformers import GPT2Config, GPT2LMHeadModel

    own = GPT2LMHeadModel(GPT2Config(vocab_size=10, n_positions=8, n_embd=8, n_layer=1, n_head=1))
    with pytest.raises(TrainingError, match=r"GPT2LMHeadModel has no linear layer .*; take controls.kind: soft_prompt"):
        LoraTuning(own, ("a",), LoraConfig(), 0)
    with pytest.raises(TrainingError, match="GPT2LMHeadModel has no linear layer"):
        ModelLora(own, Stage2Config(model="lora"), 0)


def test_routers_are_left_alone() -> None:
    """Phi MoE's and Llama 4's are linear layers by descent and answer with scores and choices."""
    from transformers import FalconConfig, FalconForCausalLM, PhimoeConfig, PhimoeForCausalLM

    sizes = {"vocab_size": 16, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    experts = {"intermediate_size": 32, "num_key_value_heads": 2, "num_local_experts": 2}
    own = PhimoeForCausalLM(PhimoeConfig(**sizes, **experts))
    controls = LoraTuning(own, ("a",), LoraConfig(rank=2), 0)
    assert controls.describe().target_modules == ("k_proj", "o_proj", "q_proj", "v_proj")
    with controls.applied(rows(0)):
        own(torch.tensor([[1, 2, 3]])).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in controls.parameters_of(0))
    assert len(target_layers(FalconForCausalLM(FalconConfig(**sizes)), "all-linear")) == 4


def test_what_an_engine_does_not_apply_while_it_decodes_is_left_alone() -> None:
    """vLLM multiplies `kv_b_proj` of latent attention into the layers around it."""
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    sizes = {
        "vocab_size": 16,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "n_routed_experts": 4,
    }
    sizes |= {
        "num_key_value_heads": 2,
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4,
    }
    more = {"v_head_dim": 8, "moe_intermediate_size": 16, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 0}
    own = DeepseekV3ForCausalLM(DeepseekV3Config(**sizes, **more, num_experts_per_tok=2))
    controls = LoraTuning(own, ("a", "b"), LoraConfig(rank=2), 0)
    assert {"kv_a_proj_with_mqa", "down_proj"} < set(controls.describe().target_modules)
    assert "kv_b_proj" not in controls.describe().target_modules
    with controls.applied(rows(1, -1, 0)):
        own(torch.randint(16, (3, 5))).logits.sum().backward()


@pytest.mark.parametrize("share_a", [True, False])
def test_each_row_gets_its_own_control_where_a_block_lays_rows_end_to_end(share_a: bool) -> None:
    """As those with experts do before their shared one: Qwen 2 MoE, DeepSeek 3, Llama 4."""
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 16, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    experts = {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "num_experts": 4}
    own = Qwen2MoeForCausalLM(Qwen2MoeConfig(**sizes, **experts, num_key_value_heads=2)).eval()
    controls = LoraTuning(own, ("a", "b"), LoraConfig(rank=2, share_a=share_a), 0)
    assert "shared_expert_gate" in controls.describe().target_modules
    randomise(controls)
    ids = torch.randint(16, (3, 5))
    alone = []
    for row, control in zip(ids, (1, -1, 0), strict=True):
        with controls.applied(rows(control)):
            alone.append(own(row[None]).logits[0])
    for token_controls in (rows(1, -1, 0), rows(1, -1, 0).expand(-1, 5)):
        with controls.applied(token_controls):
            torch.testing.assert_close(own(ids).logits, torch.stack(alone))


def test_of_controls_with_their_own_a_each_starts_from_another(model: Any) -> None:
    LoraTuning(model, ("a", "b"), LoraConfig(rank=4, share_a=False), seed=0)
    layer = model.get_submodule("model.layers.0.self_attn.q_proj")
    assert not torch.equal(layer.a_of(0), layer.a_of(1))


@pytest.mark.parametrize("share_a", [True, False])
def test_exported_controls_are_what_peft_reads(model: Any, tiny_base: Path, tmp_path: Path, share_a: bool) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    controls = LoraTuning(model, ("a", "b"), LoraConfig(rank=4, alpha=12, share_a=share_a), seed=0)
    randomise(controls)
    controls.save(1, tmp_path / "b")
    ids = torch.randint(3, 250, (2, 9))
    with controls.applied(rows(1, 1)):
        ours = model(ids).logits
    plain = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    theirs = PeftModel.from_pretrained(plain, str(tmp_path / "b"))(ids).logits
    torch.testing.assert_close(ours, theirs)
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_detached_controls_leave_the_model_as_it_came(model: Any, tiny_base: Path) -> None:
    names = list(model.state_dict())
    controls = LoraTuning(model, ("a",), LoraConfig(), seed=0)
    controls.detach(model)
    assert list(model.state_dict()) == names


def test_a_batch_supervises_exactly_the_positions_that_predict_the_reply() -> None:
    items = [Item(0, Rendered((5, 6, 7), (8, 9))), Item(1, Rendered((5,), (6,)))]
    batch = lay_out(items, no_virtual_ids, 0, CPU)
    assert batch.ids.tolist() == [[5, 6, 7, 8, 9], [5, 6, 0, 0, 0]]
    assert batch.predicts.int().tolist() == [[0, 0, 1, 1, 0], [1, 0, 0, 0, 0]]
    assert batch.targets.tolist() == [8, 9, 6]
    assert batch.controls.tolist() == [0, 0, 1]
    assert batch.token_controls.tolist() == [[0], [1]]


def test_the_objective_is_the_log_probability_of_the_reply(model: Any) -> None:
    items = [Item(0, Rendered((5, 6, 7), (8, 9))), Item(0, Rendered((5, 9), (6, 7, 8, 9, 10)))]
    batch = lay_out(items, no_virtual_ids, 0, CPU)
    nll = reply_nll(model, batch)
    expected = []
    for item in items:
        logprobs = model(torch.tensor([item.rendered.ids])).logits[0].log_softmax(-1)
        start = len(item.rendered.prompt_ids)
        expected += [-logprobs[start + i - 1, t] for i, t in enumerate(item.rendered.reply_ids)]
    torch.testing.assert_close(nll, torch.stack(expected))
    # The output layer is as before: it sees every position again.
    assert model(batch.ids).logits.shape[:2] == batch.ids.shape
