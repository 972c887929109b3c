"""Bundles small enough for every test run: a random two-layer Llama in float32 with LoRA controls or soft prompts.

Made here from nothing, tokenizer included, so that the tests need no download.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from meet_bundle import (
    BaseModelSource,
    Bundle,
    Calibration,
    LoraControls,
    Manifest,
    Preference,
    Probe,
    SoftPromptControls,
    open_bundle,
    seal,
    writing_bundle,
)

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
RANK, ALPHA = 8, 16.0
NAMES = ("concise", "detailed")
MEDIANS = {"concise": (120.0, 80.0, 30.0, 20.0), "detailed": (50.0, 80.0, 160.0, 240.0)}
SOFT_PROMPTS = ("concise", "detailed", "formal")
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
UNKNOWN_DIGEST = "0" * 64  # replaced when the bundle is sealed


def make_bundle(target: Path, *, name: str = "tiny", default: str | None = None) -> Path:
    """Writes the bundle and returns its folder."""
    with writing_bundle(target) as folder:
        tokenizer = make_tokenizer()
        tokenizer.save_pretrained(folder / "model")
        model = make_model(len(tokenizer))
        model.save_pretrained(folder / "model")
        preferences = [make_preference(folder, control, tokenizer) for control in NAMES]
        seal(
            folder,
            Manifest(
                name=name,
                base=BaseModelSource(source="random"),
                model_digest=UNKNOWN_DIGEST,
                model_dtype="float32",
                controls=LoraControls(rank=RANK, alpha=ALPHA, target_modules=TARGETS, shared_a=True),
                preferences=tuple(preferences),
                default=default,
                verbosity={"low": "concise", "high": "detailed"},
                effort={"low": "concise", "high": "detailed"},
                files={},
            ),
        )
    return target


def make_soft_prompt_bundle(
    target: Path, placement: Literal["before_prompt", "after_prompt"], num_virtual_tokens: int
) -> Path:
    """The same with three soft prompts of random rows, which would often be sampled: the embeddings are tied."""
    with writing_bundle(target) as folder:
        tokenizer = make_tokenizer()
        tokenizer.save_pretrained(folder / "model")
        first = len(tokenizer)
        model = make_model(first + len(SOFT_PROMPTS) * num_virtual_tokens)
        model.save_pretrained(folder / "model")
        controls = SoftPromptControls(num_virtual_tokens=num_virtual_tokens, placement=placement)
        prompt = chat_ids(tokenizer, "What is rain?")
        reply = tokenizer("Water that falls from clouds.")["input_ids"]
        preferences = []
        for index, name in enumerate(SOFT_PROMPTS):
            begin = first + index * num_virtual_tokens
            ids = list(range(begin, begin + num_virtual_tokens))
            (folder / "controls" / name).mkdir(parents=True)
            rows = model.get_input_embeddings().weight.detach()[ids].clone()
            save_file({"soft_prompt": rows}, folder / "controls" / name / "soft_prompt.safetensors")
            whole = [*ids, *prompt] if placement == "before_prompt" else [*prompt, *ids]
            preferences.append(
                Preference(
                    name=name,
                    axis="length",
                    aliases=("short",) if name == "concise" else (),
                    path=f"controls/{name}",
                    digest=UNKNOWN_DIGEST,
                    first_token_id=begin,
                    trained_examples=1,
                    probe=Probe(
                        token_ids=(*prompt, *reply),
                        start=len(prompt),
                        controlled=log_probs(model, whole, reply, first),
                        uncontrolled=log_probs(model, prompt, reply, first),
                        dtype="float32",
                    ),
                )
            )
        seal(
            folder,
            Manifest(
                name="soft",
                base=BaseModelSource(source="random"),
                model_digest=UNKNOWN_DIGEST,
                model_dtype="float32",
                controls=controls,
                preferences=tuple(preferences),
                verbosity={"low": "concise"},
                effort={"low": "concise"},
                files={},
            ),
        )
    return target


class SoftPromptReference:
    """Plain transformers on a bundle of soft prompts: ids inserted here, virtual tokens masked here."""

    def __init__(self, folder: Path) -> None:
        self.bundle: Bundle = open_bundle(folder)
        self.model: Any = LlamaForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).eval()
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "model")
        self.vocab_size = len(self.tokenizer)

    def whole(self, prompt: Sequence[int], names: Sequence[str]) -> list[int]:
        """Prompt ids with those of the preferences where the bundle says."""
        manifest = self.bundle.manifest
        ids = [token for name in names for token in manifest.virtual_token_ids(name)]
        assert isinstance(manifest.controls, SoftPromptControls)
        return [*ids, *prompt] if manifest.controls.placement == "before_prompt" else [*prompt, *ids]

    def reply(self, prompt: Sequence[int], names: Sequence[str], num_tokens: int) -> list[int]:
        """A greedy reply, which ends where the model says."""
        ids = self.whole(prompt, names)
        reply: list[int] = []
        with torch.no_grad():
            out = self.model(torch.tensor([ids]), use_cache=True)
            while len(reply) < num_tokens:
                reply.append(int(out.logits[0, -1, : self.vocab_size].argmax()))
                if reply[-1] == self.tokenizer.eos_token_id:
                    break
                out = self.model(torch.tensor([reply[-1:]]), past_key_values=out.past_key_values, use_cache=True)
        return reply

    def log_probs(self, prompt: Sequence[int], names: Sequence[str], reply: Sequence[int]) -> tuple[float, ...]:
        """ln p of each reply token over the true vocabulary, in nats."""
        return log_probs(self.model, self.whole(prompt, names), reply, self.vocab_size)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE on a few words, with a chat template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["user assistant What is rain? Water that falls from clouds."] * 8, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=SPECIAL[0],
        eos_token=SPECIAL[2],
        pad_token=SPECIAL[0],
        chat_template=CHAT_TEMPLATE,
    )


def make_model(vocab_size: int) -> LlamaForCausalLM:
    """Random weights, large enough that log-probabilities are far from uniform."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,  # the smallest that vLLM's CPU attention knows
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(4)
    return model


def calibration(name: str) -> Calibration | None:
    """As if it had been measured."""
    if name not in MEDIANS:
        return None
    return Calibration(attribute="words", strengths=(-1.0, 0.0, 1.0, 2.0), medians=MEDIANS[name], recommended=1.0)


def make_preference(
    folder: Path, name: str, tokenizer: PreTrainedTokenizerFast, *, seed: int | None = None
) -> Preference:
    """A random control on the model in `folder`, and its probe. All controls have the same A."""
    model = LlamaForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).eval()
    prompt = chat_ids(tokenizer, "What is rain?")
    reply = tokenizer("Water that falls from clouds.")["input_ids"]
    uncontrolled = log_probs(model, prompt, reply)
    torch.manual_seed(1)  # the same A for each control
    controlled_model = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(TARGETS))).eval()
    torch.manual_seed(2 + NAMES.index(name) if seed is None else seed)
    with torch.no_grad():
        for parameter_name, parameter in controlled_model.named_parameters():
            if "lora_B" in parameter_name:
                parameter.normal_(0, 0.1)
    controlled_model.save_pretrained(folder / "controls" / name)
    (folder / "controls" / name / "README.md").unlink(missing_ok=True)
    return Preference(
        name=name,
        axis="length",
        opposite=next(other for other in NAMES if other != name) if name in NAMES else None,
        aliases=("short",) if name == "concise" else (),
        path=f"controls/{name}",
        digest=UNKNOWN_DIGEST,
        trained_examples=1,
        calibration=calibration(name),
        probe=Probe(
            token_ids=(*prompt, *reply),
            start=len(prompt),
            controlled=log_probs(controlled_model, prompt, reply),
            uncontrolled=uncontrolled,
            dtype="float32",
        ),
    )


def chat_ids(tokenizer: Any, message: str) -> list[int]:
    """Token ids of a chat of one user message, ready for the reply."""
    ids: list[int] = tokenizer.apply_chat_template(
        [{"role": "user", "content": message}], add_generation_prompt=True, tokenize=True, return_dict=False
    )
    return ids


def log_probs(
    model: Any, prompt: Sequence[int], reply: Sequence[int], vocab_size: int | None = None
) -> tuple[float, ...]:
    """ln p of each reply token, in nats, over the first `vocab_size` ids or all."""
    with torch.no_grad():
        rows = model(torch.tensor([[*prompt, *reply]])).logits[0, :, :vocab_size].log_softmax(-1)
    return tuple(float(rows[len(prompt) - 1 + index, token]) for index, token in enumerate(reply))


def reference_replies(bundle: Path, control: str | None, prompts: Sequence[str], num_tokens: int) -> list[list[int]]:
    """Greedy replies of transformers, with PEFT where a control is named, as token ids."""
    model: Any = LlamaForCausalLM.from_pretrained(bundle / "model", dtype=torch.float32)
    if control is not None:
        model = PeftModel.from_pretrained(model, bundle / "controls" / control)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(bundle / "model")
    replies = []
    for prompt in prompts:
        ids = torch.tensor([chat_ids(tokenizer, prompt)])
        out = model.eval().generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=num_tokens
        )
        replies.append(out[0, ids.shape[1] :].tolist())
    return replies
