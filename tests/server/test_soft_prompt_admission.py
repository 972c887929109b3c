"""Which soft prompts may not be served, and that the error names the control."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save, save_file
from tiny_bundle import make_soft_prompt_bundle

from meet_bundle import Bundle, SoftPromptControls, open_bundle
from meet_server.app import admit
from meet_server.errors import ServerError
from meet_server.registry.admission import ControlRefused
from meet_server.registry.soft_prompt_admission import check_soft_prompt_files


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return open_bundle(make_soft_prompt_bundle(tmp_path / "bundle", "after_prompt", 4))


def refusal(bundle: Bundle) -> str:
    with pytest.raises(ControlRefused) as caught:
        admit(bundle)
    message = str(caught.value)
    assert message.startswith("control detailed: ")
    assert "\n" not in message
    return message


def weights(bundle: Bundle) -> Path:
    return bundle.path / "controls" / "detailed" / "soft_prompt.safetensors"


def test_right_controls_are_admitted(bundle: Bundle) -> None:
    admit(bundle)


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (lambda t: t.update(soft_prompt=t["soft_prompt"] + 0.01), "differs from rows"),
        (lambda t: t.update(soft_prompt=t["soft_prompt"][:3].clone()), "has shape (3, 64); the model needs (4, 64)"),
        (
            lambda t: t.update(soft_prompt=t["soft_prompt"][:, :63].clone()),
            "has shape (4, 63); the model needs (4, 64)",
        ),
        (lambda t: t.update(soft_prompt=torch.zeros(4, 64, dtype=torch.int8)), "is torch.int8"),
        (lambda t: t.update(other=torch.zeros(1)), "holds other, soft_prompt"),
    ],
)
def test_tensors(bundle: Bundle, alter: Callable[[dict[str, Any]], Any], message: str) -> None:
    tensors = load_file(weights(bundle))
    alter(tensors)
    save_file(tensors, weights(bundle))
    assert message in refusal(bundle)


def test_files(bundle: Bundle) -> None:
    (weights(bundle).parent / "soft_prompt.bin").write_bytes(b"")
    assert "holds soft_prompt.bin" in refusal(bundle)
    (weights(bundle).parent / "soft_prompt.bin").unlink()
    weights(bundle).write_bytes(b"\x80\x04pickle")
    assert "is no safetensors file" in refusal(bundle)
    weights(bundle).unlink()
    assert "is no safetensors file" in refusal(bundle)
    weights(bundle).parent.rmdir()
    assert "detailed is no folder" in refusal(bundle)


def test_a_narrower_file_of_a_half_precision_model_is_the_same(bundle: Bundle) -> None:
    """Training keeps soft prompts in float32; the model's own rows may be rounded."""
    tensors = load_file(bundle.model_path / "model.safetensors")
    rounded = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    save_file(rounded, bundle.model_path / "model.safetensors", metadata={"format": "pt"})
    admit(bundle)


@pytest.mark.parametrize("beyond", [1, 9000])
def test_tokens_beyond_the_vocabulary(bundle: Bundle, beyond: int) -> None:
    """By one already: the last rows of the model's are those of the last preference."""
    last = bundle.manifest.virtual_token_ids("formal")[-1] + beyond
    preferences = list(bundle.manifest.preferences)
    preferences[1] = preferences[1].model_copy(update={"first_token_id": last - 3})
    moved = bundle.manifest.model_copy(update={"preferences": tuple(preferences)})
    assert f"virtual tokens end at {last}; the model" in refusal(Bundle(bundle.path, moved))


def test_tokens_that_the_tokenizer_knows(bundle: Bundle) -> None:
    file = bundle.model_path / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    first = bundle.manifest.first_virtual_id
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][0], "id": first, "content": "<v0>"})
    file.write_text(json.dumps(tokenizer))
    with pytest.raises(ServerError, match=f"the tokenizer knows token {first}"):
        admit(bundle)


@pytest.mark.parametrize("more", [0, 1])
def test_a_tokenizer_whose_vocabulary_is_a_list_of_pieces(bundle: Bundle, more: int) -> None:
    """Unigram's, where a piece's place is its id."""
    file, first = bundle.model_path / "tokenizer.json", bundle.manifest.first_virtual_id
    assert first is not None
    file.write_text(json.dumps({"model": {"type": "Unigram", "vocab": [[f"p{i}", 0.0] for i in range(first + more)]}}))
    if not more:
        admit(bundle)
        return
    with pytest.raises(ServerError, match=f"the tokenizer knows token {first}, and virtual tokens begin at {first}"):
        admit(bundle)


def test_a_model_without_such_a_file_is_left_to_each_request(bundle: Bundle) -> None:
    (bundle.model_path / "tokenizer.json").unlink()
    admit(bundle)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"model": {"vocab": 1}}', '{"model": {"vocab": []}}'])
def test_a_tokenizer_that_cannot_be_read(bundle: Bundle, text: str) -> None:
    (bundle.model_path / "tokenizer.json").write_text(text)
    with pytest.raises(ServerError, match=r"tokenizer\.json cannot be read"):
        admit(bundle)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"vocab_size": null}', '{"vocab_size": "many"}'])
def test_a_configuration_that_says_no_size(bundle: Bundle, text: str) -> None:
    (bundle.model_path / "config.json").write_text(text)
    with pytest.raises(ServerError, match=r"config\.json says no vocabulary size"):
        admit(bundle)


def test_a_model_of_several_kinds_of_input_says_its_size_with_the_text(bundle: Bundle) -> None:
    file = bundle.model_path / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({"text_config": config, "vocab_size": 3}))
    admit(bundle)


def test_a_model_in_several_files(bundle: Bundle) -> None:
    file = bundle.model_path / "model.safetensors"
    tensors = load_file(file)
    first = {"model.norm.weight": tensors.pop("model.norm.weight")}
    save_file(first, bundle.model_path / "model-00001-of-00002.safetensors")
    save_file(tensors, bundle.model_path / "model-00002-of-00002.safetensors")
    file.unlink()
    admit(bundle)
    file.write_bytes(b"\x80\x04pickle")
    with pytest.raises(ServerError, match=r"model\.safetensors is no safetensors file"):
        admit(bundle)


def test_a_model_without_an_embedding_matrix(bundle: Bundle) -> None:
    tensors = load_file(bundle.model_path / "model.safetensors")
    del tensors["model.embed_tokens.weight"]
    save_file(tensors, bundle.model_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ServerError, match="must be the embedding matrix; there is none"):
        admit(bundle)


@pytest.mark.parametrize("name", ["lm_head.weight", "embed_out.weight", "output.weight", "model.output.weight"])
def test_an_output_layer_is_not_the_embedding_matrix(bundle: Bundle, name: str) -> None:
    """Nor is what has a number for each token, as a bias of it."""
    tensors = load_file(bundle.model_path / "model.safetensors")
    embeddings = tensors["model.embed_tokens.weight"]
    more = {name: embeddings * 2, "final_logits_bias": torch.zeros(len(embeddings))}
    save_file({**tensors, **more}, bundle.model_path / "model.safetensors", metadata={"format": "pt"})
    admit(bundle)


def test_a_model_of_which_two_tensors_could_be_the_embedding_matrix(bundle: Bundle) -> None:
    more = {"head.weight": load_file(bundle.model_path / "model.safetensors")["model.embed_tokens.weight"]}
    save_file(more, bundle.model_path / "other.safetensors", metadata={"format": "pt"})
    with pytest.raises(ServerError, match=r"there is model\.embed_tokens\.weight, head\.weight"):
        admit(bundle)


class TestWhileServing:
    """One that comes in an archive, whose rows the model must have already."""

    def check(self, bundle: Bundle, files: dict[str, bytes], begin: int | None = None) -> None:
        preference = bundle.manifest.preference("formal")
        if begin is not None:
            preference = preference.model_copy(update={"first_token_id": begin})
        assert isinstance(bundle.manifest.controls, SoftPromptControls)
        check_soft_prompt_files(files, preference, bundle.manifest.controls, bundle)

    def test_rows_that_the_model_has_may_be_served_again(self, bundle: Bundle) -> None:
        for name in ("concise", "formal"):  # the first rows that are no words, and the last of all
            file = bundle.control_path(name) / "soft_prompt.safetensors"
            files = {"soft_prompt.safetensors": file.read_bytes(), "README.md": b"x"}
            self.check(bundle, files, bundle.manifest.preference(name).first_token_id)

    @pytest.mark.parametrize("beyond", [-1, 9])
    def test_rows_of_words_and_rows_that_are_not_there(self, bundle: Bundle, beyond: int) -> None:
        first = bundle.manifest.first_virtual_id or 0
        with pytest.raises(ControlRefused, match=f"begin at {first + beyond}, and .* {first} to {first + 11} alone"):
            self.check(bundle, {}, first + beyond)

    def test_one_that_says_no_rows(self, bundle: Bundle) -> None:
        preference = bundle.manifest.preference("formal").model_copy(update={"first_token_id": None})
        assert isinstance(bundle.manifest.controls, SoftPromptControls)
        with pytest.raises(ControlRefused, match="control formal: its 4 virtual tokens begin at None"):
            check_soft_prompt_files({}, preference, bundle.manifest.controls, bundle)

    @pytest.mark.parametrize(
        ("files", "message"),
        [
            ({}, "is no safetensors file"),
            ({"soft_prompt.bin": b""}, "holds soft_prompt.bin"),
            ({"soft_prompt.safetensors": save({"other": torch.zeros(4, 64)})}, "must hold soft_prompt"),
            ({"soft_prompt.safetensors": save({"soft_prompt": torch.zeros(4, 64), "x": torch.zeros(1)})}, "must hold"),
            ({"soft_prompt.safetensors": save({"soft_prompt": torch.zeros(4, 64).int()})}, "of floating point"),
            ({"soft_prompt.safetensors": save({"soft_prompt": torch.zeros(3, 64)})}, "has shape"),
            ({"soft_prompt.safetensors": save({"soft_prompt": torch.zeros(4, 64)})}, "differs from rows"),
        ],
    )
    def test_files_that_are_refused(self, bundle: Bundle, files: dict[str, bytes], message: str) -> None:
        with pytest.raises(ControlRefused, match=f"control formal: .*{message}"):
            self.check(bundle, files)
