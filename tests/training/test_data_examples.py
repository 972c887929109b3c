"""Every example in examples/data: it trains, exactly the right tokens are supervised, and its malformed twin is
refused with file, line, field and what is allowed. The snippets of docs/DATA.md are run too."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from meet_training.config import TrainConfig, load_config
from meet_training.data.forms import Example, load_examples
from meet_training.data.render import render
from meet_training.data.sources import read_rows
from meet_training.errors import TrainingError
from meet_training.run import train

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples/data"
SHARED = Path(os.environ.get("MEET_SHARED_DATA", ROOT.parent / "shared/data"))

TOOL_TEMPLATE = (
    "{% if tools %}<|im_start|>tools\n{% for tool in tools %}{{ tool.function.name }}{% endfor %}"
    "<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "{% for call in message.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Expected(NamedTuple):
    """How many examples each preference has, and of its first example what is supervised and what is rejected."""

    num: dict[str, int]
    supervised: str
    rejected: str | None = None


THREE = {"concise": 3, "detailed": 3}
YEAST = "Yeast makes gas.<|im_end|>"
DOUGH = "Yeast eats the sugar in the dough and gives off gas, which the gluten holds, so the dough swells.<|im_end|>"
EXPECTED = {
    "pointwise": Expected(THREE, YEAST),
    "containers": Expected(THREE, YEAST),
    "hub": Expected(THREE, YEAST),
    "messages": Expected(THREE, YEAST),
    "all_turns": Expected(THREE, f"Hi.<|im_end|>{YEAST}"),
    "prompt_completion": Expected(THREE, YEAST),
    "tools": Expected({"concise": 2, "detailed": 2}, "7 degrees.<|im_end|>"),
    "several_labels": Expected({"concise": 3, "detailed": 3, "bulleted": 3, "prose": 3}, YEAST),
    "scores": Expected(THREE, YEAST),
    "quantiles": Expected({"concise": 3, "detailed": 3}, YEAST),
    "pairwise": Expected(THREE, YEAST, DOUGH),
    "pairwise_messages": Expected(THREE, YEAST, DOUGH),
    "pairwise_whole": Expected(THREE, YEAST, DOUGH),
    "hh": Expected(THREE, YEAST, DOUGH),
    "unpaired": Expected(THREE, YEAST),
    "mixed": Expected({"concise": 4, "detailed": 4}, YEAST),
}


@pytest.fixture(scope="module")
def tool_base(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base with a template that shows tools and calls of them."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("tools") / "base"
    shutil.copytree(tiny_base, folder)
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    tokenizer.chat_template = TOOL_TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def example_config(name: str, base: Path, output: Path) -> TrainConfig:
    overrides = [f"base={base}", f"output={output}", "precision=float32", "device=cpu"]
    return load_config(EXAMPLES / f"{name}.yaml", overrides)


def test_every_example_is_tested() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.yaml")} == set(EXPECTED)
    table = (EXAMPLES / "README.md").read_text()
    assert [name for name in EXPECTED if f"`{name}.yaml`" not in table] == []


@pytest.mark.parametrize("name", EXPECTED)
def test_it_supervises_exactly_these_tokens_and_trains(name: str, tool_base: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    config = example_config(name, tool_base, tmp_path / "out")
    examples = load_examples(config)
    expected = EXPECTED[name]
    assert {label: len(group) for label, group in examples.items()} == expected.num

    tokenizer = AutoTokenizer.from_pretrained(tool_base)
    first = render(examples["concise"][0], tokenizer)
    assert tokenizer.decode(first.targets) == expected.supervised
    assert first.num_supervised == len(first.targets)
    rejected = None if first.rejected_ids is None else tokenizer.decode(first.rejected_ids)
    assert rejected == expected.rejected

    bundle = train(config)
    assert {p.name: p.trained_examples for p in bundle.manifest.preferences} == expected.num


def test_one_data_set_in_four_containers_is_the_same(tmp_path: Path) -> None:
    whole = load_examples(example_config("pointwise", tmp_path, tmp_path))
    assert load_examples(example_config("containers", tmp_path, tmp_path)) == whole
    assert load_examples(example_config("hub", tmp_path, tmp_path)) == whole


def test_a_base_whose_template_shows_no_tools_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="its chat template shows the model no tools"):
        train(example_config("tools", tiny_base, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


TWINS = {
    "pointwise.jsonl": ("pointwise", ":3: field 'reply' must be text that is not empty, found '  '"),
    "pointwise.json": ("pointwise", ":2: field 'reply.0' must have role and content, found 'a'"),
    "pointwise.csv": ("pointwise", ":3: expected 3 cells, as the header has, found 2"),
    "messages.jsonl": (
        "messages",
        ":2: field 'messages.1.role' must be one of system, developer, user, assistant, tool, found 'guest'",
    ),
    "all_turns.jsonl": (
        "all_turns",
        ":4: field 'messages' must end with the assistant's reply, found a message of 'us",
    ),
    "prompt_completion.jsonl": (
        "prompt_completion",
        ":1: field 'prompt' must end before the reply, found an assistant",
    ),
    "tools.jsonl": ("tools", ":2: field 'tools' must be a list or its JSON text, found 'weather'"),
    "several_labels.jsonl": (
        "several_labels",
        ":3: field 'preference' must be a label or a list of labels, found ['concise', 7]",
    ),
    "scores.csv": ("scores", ":3: field 'words' must be a number, found 'many'"),
    "pairwise.jsonl": ("pairwise", ":2: field 'rejected' is missing; the row has prompt, chosen"),
    "pairwise_messages.jsonl": ("pairwise_messages", ":3: field 'rejected' must differ from 'chosen', found the same"),
    "pairwise_whole.jsonl": ("pairwise_whole", ":1: field 'rejected' must end with the assistant's reply"),
    "hh.jsonl": ("hh", ":2: field 'rejected' must have words in every turn, found an empty turn of 'Assistant'"),
    "unpaired.jsonl": ("unpaired", ":4: field 'label' must be true or false, found 'maybe'"),
}


def refusal(name: str, path: Path, tmp_path: Path) -> str:
    config = load_config(EXAMPLES / f"{name}.yaml", [f"data.0.path={path}", f"output={tmp_path / 'out'}"])
    with pytest.raises(TrainingError) as caught:
        train(config)
    assert not (tmp_path / "out").exists()
    return str(caught.value)


@pytest.mark.parametrize("twin", TWINS)
def test_its_malformed_twin_is_refused(twin: str, tmp_path: Path) -> None:
    name, message = TWINS[twin]
    path = EXAMPLES / "malformed" / twin
    assert f"{path}{message}" in refusal(name, path, tmp_path)


def test_every_malformed_twin_is_tested() -> None:
    assert {path.name for path in (EXAMPLES / "malformed").iterdir()} == set(TWINS)


@pytest.mark.parametrize(("suffix", "message"), [(".parquet", "cannot be read as Parquet"), (".jsonl.gz", "cannot be")])
def test_a_binary_file_cut_in_half_is_refused(suffix: str, message: str, tmp_path: Path) -> None:
    content = (EXAMPLES / f"containers/pointwise{suffix}").read_bytes()
    path = tmp_path / f"half{suffix}"
    path.write_bytes(content[: len(content) // 2])
    said = refusal("pointwise", path, tmp_path)
    assert str(path) in said
    assert message in said


def test_a_malformed_row_of_a_parquet_file_is_named(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows: list[dict[str, Any]] = [row.fields for row in read_rows(EXAMPLES / "pointwise.jsonl")]
    path = tmp_path / "bad.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([*rows, {**rows[0], "reply": None}]), path)
    assert f"{path}:7: field 'reply' is null" in refusal("pointwise", path, tmp_path)


SNIPPETS = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/DATA.md").read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_a_snippet_of_the_docs_loads(snippet: str, tmp_path: Path) -> None:
    content = yaml.safe_load(snippet)
    labels = ("concise", "detailed", "bulleted", "prose")
    fields = {"name": "t", "base": "b", "output": str(tmp_path), "preferences": {p: {"axis": "x"} for p in labels}}
    config = TrainConfig.model_validate(fields | content)
    data = tuple(one.relative_to(EXAMPLES) for one in config.data)
    found = {p for one in data for p in _preferences_in(config, one)}
    assert {"concise", "detailed"} <= found


def _preferences_in(config: TrainConfig, data: Any) -> set[str]:
    from meet_training.data.dataset import open_data

    return {example.preference for _, example, _ in open_data(data).labelled() if example is not None}


def test_the_docs_show_every_example() -> None:
    shown = {json.dumps(yaml.safe_load(snippet)["data"]) for snippet in SNIPPETS}
    for path in EXAMPLES.glob("*.yaml"):
        assert json.dumps(yaml.safe_load(path.read_text())["data"]) in shown, path.name


needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason=f"no real data at {SHARED}; MEET_SHARED_DATA names the folder"
)


def shared_config(**fields: Any) -> TrainConfig:
    preferences = {label: {"axis": "x"} for label in fields.pop("labels")}
    return TrainConfig.model_validate(
        {"name": "t", "base": "b", "output": "o", "preferences": preferences, "data": [fields]}
    )


@needs_shared
class TestRealData:
    def test_hh_pairs_are_recognised_and_their_known_dirt_is_refused_or_left_out(self) -> None:
        path = SHARED / "hh_rlhf_pairs.valid.jsonl.gz"
        pairs: dict[str, Any] = {"path": path, "chosen": "helpful", "rejected": "unhelpful"}
        labels = ("helpful", "unhelpful")
        with pytest.raises(TrainingError, match=r"hh_rlhf_pairs\.valid\.jsonl\.gz:\d+: field '(chosen|rejected)' must"):
            load_examples(shared_config(**pairs, labels=labels))
        examples = load_examples(shared_config(**pairs, labels=labels, bad_rows="leave_out"))
        helpful, unhelpful = examples["helpful"], examples["unhelpful"]
        assert len(helpful) == len(unhelpful) == 825
        assert all(example.messages[-1]["role"] == "user" for example in helpful + unhelpful)
        partners = [(a, b) for a, b in zip(helpful, unhelpful, strict=True) if a.rejected is not None]
        assert all(a.rejected == b.reply and b.rejected == a.reply for a, b in partners)
        assert len(partners) > 800

    def test_styles_under_other_column_names(self) -> None:
        examples = load_examples(
            shared_config(
                path=SHARED / "answer_length_styles.valid.jsonl.gz",
                columns={"prompt": "instruction", "reply": "output", "preference": "style"},
                labels=("concise", "plain", "verbose"),
            )
        )
        assert {label: len(group) for label, group in examples.items()} == dict.fromkeys(examples, 576)

    def test_length_as_a_score_cut_by_quantile(self, tmp_path: Path) -> None:
        path = tmp_path / "scored.jsonl"
        rows = [row.fields for row in read_rows(SHARED / "answer_length_styles.valid.jsonl.gz")]
        path.write_text("".join(json.dumps({**row, "words": len(row["output"].split())}) + "\n" for row in rows))
        examples = load_examples(
            shared_config(
                path=path,
                columns={"prompt": "instruction", "reply": "output"},
                levels={
                    "column": "words",
                    "by": "quantile",
                    "preferences": {"short": {"below": 0.25}, "long": {"at_least": 0.75}},
                },
                labels=("short", "long"),
            )
        )
        assert len(examples["long"]) == pytest.approx(len(rows) / 4, rel=0.05)
        assert max(map(num_words, examples["short"])) < min(map(num_words, examples["long"]))


def num_words(example: Example) -> int:
    return len(str(example.reply).split())
