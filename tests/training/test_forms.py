"""Every form of data by hand: which rows give which examples, and what is said of a row that has no such form."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from meet_training.config import TrainConfig
from meet_training.data.dataset import DataSet, open_data
from meet_training.data.drawing import Reservoir, shares
from meet_training.data.forms import UNCONTROLLED, Example, digest, for_objective, gather, load_uncontrolled, pair_up
from meet_training.data.parsing import Labelled
from meet_training.data.sources import Row, expand, read_rows
from meet_training.data_config import DataConfig
from meet_training.errors import TrainingError


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def config(*data: DataConfig, **more: Any) -> TrainConfig:
    fields: dict[str, Any] = {
        "name": "t",
        "base": "none",
        "output": "out",
        "data": [one.model_dump() for one in data],
        "preferences": {"a": {"axis": "x", "opposite": "b"}, "b": {"axis": "x"}},
    }
    return TrainConfig.model_validate(fields | more)


def in_memory(*rows: dict[str, Any], **options: Any) -> DataSet:
    data = DataConfig.model_validate({"path": "d.jsonl", **options})
    return DataSet(data, lambda: (Row("d.jsonl", number, row) for number, row in enumerate(rows, 1)))


def labelled_in(row: dict[str, Any], labels: dict[str, str]) -> list[Labelled]:
    return list(in_memory(row, labels=labels).labelled())


def examples_in(*rows: dict[str, Any], **options: Any) -> list[Example | None]:
    return [example for _, example, _ in in_memory(*rows, **options).labelled()]


PAIR = {"chosen": "a", "rejected": "b"}
Q = (user("q"),)


class TestForms:
    def test_pointwise_in_each_of_its_shapes(self) -> None:
        expected = [Example(Q, "r", "a")]
        for row in (
            {"prompt": "q", "reply": "r", "preference": "a"},
            {"prompt": "q", "completion": "r", "label": "a"},
            {"prompt": [user("q")], "response": [assistant("r")], "preference": "a"},
            {"prompt": [user("q")], "completion": assistant("r"), "preference": "a"},
            {"messages": [user("q")], "reply": "r", "preference": "a"},
            {"messages": [user("q"), assistant("r")], "preference": "a"},
            {"messages": json.dumps([user("q"), assistant("r")]), "preference": "a"},
            {"prompt": json.dumps([user("q")], indent=2), "reply": "r", "preference": "a"},
            {"prompt": json.dumps([{"tool_calls": None, **user("q")}]), "reply": "r", "preference": "a"},
        ):
            assert examples_in(row) == expected, row

    def test_json_that_is_no_list_of_messages_is_text(self) -> None:
        for text in ('[{"name": "Bob"}]', '[{"id": 1}] How many?', "[{}]", '[{"id": 1}, 2]'):
            found = examples_in({"prompt": text, "reply": text, "preference": "a"})
            assert found == [Example((user(text),), text, "a")]
        pair = {"prompt": "q", "chosen": '[{"name": "Bob"}]', "rejected": "Bob"}
        assert examples_in(pair, chosen="a") == [Example(Q, '[{"name": "Bob"}]', "a", rejected="Bob"), None]

    def test_system_messages_and_earlier_turns_are_kept(self) -> None:
        before = ({"role": "system", "content": "s"}, user("1"), assistant("2"), user("3"))
        row = {"messages": [*before, assistant("4")], "preference": "a"}
        assert examples_in(row) == [Example(before, "4", "a")]
        assert examples_in(row, supervise="all") == [Example(before, "4", "a", supervise="all")]

    def test_tools_are_kept_as_the_server_hands_them_to_the_template(self) -> None:
        tools = [{"type": "function", "function": {"name": "f"}}]
        call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
        as_text = {"type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
        expected = Example(Q, {"role": "assistant", "content": "", "tool_calls": [call]}, "a", tools=tuple(tools))
        for one in (call, as_text, {"id": None, **call}):
            message = {"role": "assistant", "content": None, "tool_calls": [one], "name": None}
            for given in (tools, json.dumps(tools)):
                row = {"messages": [user("q"), message], "tools": given, "preference": "a"}
                assert examples_in(row) == [expected]

    def test_no_tools_and_no_calls_leave_nothing_behind(self) -> None:
        row = {"prompt": "q", "reply": {**assistant("r"), "tool_calls": []}, "preference": "a"}
        nothing: tuple[Any, ...] = (None, "", [], "[]")  # a table has an empty cell
        for none in nothing:
            assert examples_in({**row, "tools": none}) == [Example(Q, "r", "a")]
        bare = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]}
        call = {"function": {"name": "f", "arguments": {}}}
        assert examples_in({**row, "reply": bare}) == [Example(Q, {**bare, "tool_calls": [call]}, "a")]

    def test_sides_that_call_tools_on_their_way_are_a_pair_with_the_tools(self) -> None:
        calling = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
        said, tools = {"role": "tool", "content": "7"}, [{"name": "f"}]
        row = {"prompt": "q", "chosen": [calling, said, assistant("c")], "rejected": [calling, said, assistant("r")]}
        before = (user("q"), calling, said)
        expected = Example(before, "c", "a", rejected="r", tools=tuple(tools))
        assert examples_in({**row, "tools": tools}, chosen="a") == [expected, None]

    def test_several_labels_make_an_example_each(self) -> None:
        row = {"prompt": "q", "reply": "r"}
        both = [Example(Q, "r", "a"), Example(Q, "r", "b")]
        assert examples_in({**row, "preference": ["a", "b", "a"]}) == both
        assert examples_in({**row, "preference": "a; b"}, separator=";") == both

    def test_labels_that_mean_one_preference_make_one_example(self) -> None:
        row = {"prompt": "q", "reply": "r", "preference": ["brief", "formal", "short", "none", "terse"]}
        labels = {"brief": "concise", "short": "concise", "terse": "concise", "formal": "formal"}
        found = [
            (each.label, each.example and each.example.preference, each.again) for each in labelled_in(row, labels)
        ]
        assert found == [
            ("brief", "concise", False),
            ("formal", "formal", False),
            ("short", None, True),
            ("none", None, False),
            ("terse", None, True),
        ]
        assert examples_in({**row, "preference": ["x", "y"]}, labels={"x": "b"}) == [Example(Q, "r", "b"), None]

    @pytest.mark.parametrize(
        "row",
        [
            {"prompt": "q", "chosen": "c", "rejected": "r"},
            {"prompt": [user("q")], "chosen": [assistant("c")], "rejected": [assistant("r")]},
            {"chosen": [user("q"), assistant("c")], "rejected": [user("q"), assistant("r")]},
            {"prompt": "q", "chosen": [user("q"), assistant("c")], "rejected": [user("q"), assistant("r")]},
            {"chosen": "\n\nHuman: q\n\nAssistant: c", "rejected": "\n\nHuman: q\n\nAssistant: r"},
        ],
        ids=["text", "messages", "whole conversations", "whole conversations beside a prompt", "dialogues"],
    )
    def test_each_side_of_a_pair_is_data_of_its_control(self, row: dict[str, Any]) -> None:
        assert examples_in(row, **PAIR) == [Example(Q, "c", "a", rejected="r"), Example(Q, "r", "b", rejected="c")]
        assert examples_in(row, chosen="a") == [Example(Q, "c", "a", rejected="r"), None]

    def test_a_dialogue_of_several_turns(self) -> None:
        start = "\n\nHuman: 1\n\nAssistant: 2\n\nAssistant: 3\n\nHuman: 4\nHuman: 5"
        row = {"chosen": f"{start}\n\nAssistant: 6 ", "rejected": f"{start}\n\nAssistant: 7"}
        before = (user("1"), assistant("2\n\n3"), user("4\nHuman: 5"))
        assert examples_in(row, chosen="a") == [Example(before, "6", "a", rejected="7"), None]

    def test_conversations_that_part_before_the_last_reply_are_no_pair(self) -> None:
        row = {
            "chosen": [user("q"), assistant("1"), user("2"), assistant("3")],
            "rejected": [user("q"), assistant("4")],
        }
        chosen, rejected = examples_in(row, **PAIR)
        assert chosen == Example((user("q"), assistant("1"), user("2")), "3", "a")
        assert rejected == Example(Q, "4", "b")
        row["rejected"] = [user("q"), assistant("3")]  # the same words, and not the same conversation
        assert examples_in(row, **PAIR)[1] == Example(Q, "3", "b")

    def test_unpaired(self) -> None:
        rows = [{"prompt": "q", "completion": str(i), "label": label} for i, label in enumerate((True, False))]
        assert examples_in(*rows, **PAIR) == [Example(Q, "0", "a"), Example(Q, "1", "b")]
        from_csv = [{**row, "label": str(row["label"])} for row in rows]
        assert examples_in(*from_csv, **PAIR, form="unpaired") == [Example(Q, "0", "a"), Example(Q, "1", "b")]

    def test_scores_by_bounds(self) -> None:
        rows = [{"prompt": "q", "reply": str(i), "score": score} for i, score in enumerate((1, 2.0, "2.9", 3, 9))]
        levels = {"column": "score", "preferences": {"a": {"below": 2}, "b": {"at_least": 3}}}
        found = [(label, example and example.reply) for label, example, _ in in_memory(*rows, levels=levels).labelled()]
        assert found == [("a", "0"), ("(no level)", None), ("(no level)", None), ("b", "3"), ("b", "4")]

    def test_what_is_measured_on_the_reply_is_a_score_too(self) -> None:
        rows = [{"prompt": "p", "reply": reply} for reply in ("One.", "One two.", "One two three four.")]
        levels = {"attribute": "words", "by": "quantile", "preferences": {"a": {"below": 0.5}, "b": {"at_least": 0.5}}}
        assert [label for label, _, _ in in_memory(*rows, levels=levels).labelled()] == ["a", "b", "b"]

    def test_an_attribute_that_nobody_measures_is_refused(self) -> None:
        levels = {"attribute": "charm", "preferences": {"a": {"below": 2}}}
        with pytest.raises(
            TrainingError, match=r"levels\.attribute: 'charm' is not measured; the attributes are words"
        ):
            list(in_memory({"prompt": "p", "reply": "r"}, levels=levels).labelled())

    @pytest.mark.parametrize(
        ("scores", "low", "high"),
        [
            ([5, 1, 4, 2, 3], [1, 2], [4, 5]),  # ends at places 2 and 3 of 5
            ([1, 1, 1, 9], [], [9]),  # equal scores lie in one level: the median is 1, and nothing is below it
            ([7], [], [7]),
        ],
    )
    def test_scores_by_quantile(self, scores: list[int], low: list[int], high: list[int]) -> None:
        rows = [{"prompt": "q", "reply": "r", "score": score, "keep": 1} for score in scores]
        rows.append({"prompt": "q", "reply": "r", "score": -100, "keep": 0})
        levels = {"column": "score", "by": "quantile", "preferences": {"a": {"below": 0.4}, "b": {"at_least": 0.75}}}
        if len(scores) == 5:
            levels["preferences"]["b"] = {"at_least": 0.6}  # type: ignore[index]
        labels = [label for label, _, _ in in_memory(*rows, levels=levels, where={"keep": 1}).labelled()]
        by_label = {label: sorted(s for s, own in zip(scores, labels, strict=True) if own == label) for label in "ab"}
        assert by_label == {"a": low, "b": high}


MISTAKES: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"x": 1}, {}, r"d\.jsonl:1: no form fits its columns x; needed are 'chosen' and 'rejected'"),
    ({"prompt": "q", "reply": "r", "preference": []}, {}, "field 'preference' must be a label or a list of labels"),
    ({"prompt": "q", "reply": "r", "preference": "a,,b"}, {"separator": ","}, "must be labels with ',' between"),
    ({"prompt": "q", "reply": None, "preference": "a"}, {}, "field 'reply' is null"),
    ({"prompt": "q", "reply": "r", "preference": "a"}, PAIR, "chosen means nothing for the form pointwise"),
    ({"prompt": "q", "chosen": "c", "rejected": "r"}, {}, "say with `chosen` and `rejected` which preference"),
    (
        {"prompt": "q", "chosen": "c", "rejected": "r"},
        {**PAIR, "supervise": "all"},
        "supervise means nothing for the form pairwise",
    ),
    ({"prompt": "q", "chosen": "c", "rejected": "c"}, PAIR, "field 'rejected' must differ from 'chosen'"),
    ({"chosen": "c", "rejected": "r"}, PAIR, "field 'prompt' is missing"),
    ({"chosen": [user("q")], "rejected": [user("q")]}, PAIR, "field 'chosen' must end with the assistant's reply"),
    ({"chosen": [assistant("c")], "rejected": [assistant("r")]}, PAIR, "field 'prompt' is missing"),
    (
        {"prompt": "other", "chosen": [user("q"), assistant("c")], "rejected": [user("q"), assistant("r")]},
        PAIR,
        "field 'chosen' must hold the row's 'prompt'",
    ),
    (
        {"chosen": "\n\nHuman: q\n\nAssistant: c", "rejected": "no dialogue"},
        PAIR,
        "field 'rejected' must be a dialogue that starts with 'Human:'",
    ),
    (
        {"chosen": "\n\nHuman: q\n\nAssistant:", "rejected": "\n\nHuman: q\n\nAssistant: r"},
        PAIR,
        "field 'chosen' must have words in every turn, found an empty turn of 'Assistant'",
    ),
    (
        {"prompt": str([user("q")]), "reply": "r", "preference": "a"},
        {},
        r"field 'prompt' must be a list or its JSON text, found .*: Expecting property name enclosed in double quotes",
    ),
    ({"messages": [assistant("r")], "preference": "a"}, {}, "must have a message before the reply"),
    ({"prompt": "q", "reply": [user("r")], "preference": "a"}, {}, "field 'reply' must end with the assistant's reply"),
    (
        {"prompt": "q", "reply": [assistant("1"), assistant("2")], "preference": "a"},
        {},
        "field 'reply' must be one message of the assistant's, found 2",
    ),
    (
        {"messages": [{"role": "guest", "content": "q"}, assistant("r")], "preference": "a"},
        {},
        r"field 'messages\.0\.role' must be one of system, developer, user, assistant, tool, found 'guest'",
    ),
    (
        {"messages": [{**user("q"), "tool_calls": [{}]}, assistant("r")], "preference": "a"},
        {},
        "tool_calls' is for the assistant",
    ),
    (
        {"messages": [user("q"), {"role": "assistant", "content": "", "tool_calls": ["f"]}], "preference": "a"},
        {},
        r"field 'messages\.1\.tool_calls\.0' must have function\.name",
    ),
    (
        {"prompt": "q", "reply": "r", "preference": "a", "tools": "f"},
        {},
        "field 'tools' must be a list or its JSON text",
    ),
    (
        {"prompt": "q", "completion": "r", "label": 3},
        {**PAIR, "form": "unpaired"},
        "field 'label' must be true or false, found 3",
    ),
    (
        {"prompt": "q", "reply": "r", "score": True},
        {"levels": {"column": "score", "preferences": {"a": {}}}},
        "field 'score' must be a number, found True",
    ),
    (
        {"prompt": "q", "reply": "r", "score": float("nan")},
        {"levels": {"column": "score", "preferences": {"a": {}}}},
        "field 'score' must be a number, found nan",
    ),
]


@pytest.mark.parametrize(("row", "options", "message"), MISTAKES)
def test_mistakes_are_named(row: dict[str, Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        examples_in(row, **options)


def test_bad_rows_are_left_out_and_counted_where_asked() -> None:
    good = {"prompt": "q", "chosen": "c", "rejected": "r"}
    data_set = in_memory(good, {**good, "rejected": "c"}, {**good, "chosen": ""}, **PAIR, bad_rows="leave_out")
    assert len(list(data_set.labelled())) == 2
    assert (data_set.num_rows, data_set.num_bad_rows) == (3, 2)
    assert data_set.first_bad_row is not None
    assert data_set.first_bad_row.startswith("d.jsonl:2: field 'rejected' must differ")


BAD_CONFIGS: list[tuple[dict[str, Any], str]] = [
    ({}, "give either `path` or `hub`"),
    ({"path": "x", "hub": "y/z"}, "give either `path` or `hub`"),
    ({"path": "x", "split": "test"}, "`split` and `config` are of a data set of the hub"),
    ({"path": "x", "form": "scored"}, "needs `levels`"),
    ({"path": "x", "levels": {"preferences": {"a": {"below": 2}}}}, "give either `column` or `attribute`"),
    ({"path": "x", "chosen": "a", "rejected": "a"}, "`chosen` and `rejected` are both 'a'"),
    ({"path": "x", "chosen": "c"}, r"data\.0\.chosen names 'c'; the preferences are a, b"),
    ({"path": "x", "weight": 0}, "greater than 0"),
    ({"path": "x", "levels": {"column": "s", "preferences": {"a": {"at_least": 2, "below": 2}}}}, "must lie under"),
    (
        {"path": "x", "levels": {"column": "s", "preferences": {"a": {"below": 2}, "b": {"at_least": 1}}}},
        "the levels of 'a' and 'b' overlap",
    ),
    (
        {"path": "x", "levels": {"column": "s", "by": "quantile", "preferences": {"a": {"below": 30}}}},
        "by quantile the ends are shares from 0 to 1",
    ),
]


@pytest.mark.parametrize(("data", "message"), BAD_CONFIGS)
def test_configurations_that_cannot_be(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig.model_validate({**config(DataConfig(path=Path("x"))).model_dump(), "data": [data]})


def test_weights_are_for_all_data_sets_or_for_none() -> None:
    with pytest.raises(ValueError, match=r"data\.1\.weight: missing"):
        config(DataConfig(path=Path("x"), weight=1), DataConfig(path=Path("y")))


class TestUncontrolled:
    def test_every_reply_whatever_its_label_and_of_a_pair_the_chosen_one(self, tmp_path: Path) -> None:
        rows = {
            "plain": [{"prompt": "q", "reply": "1"}, {"prompt": "q", "reply": "2", "preference": "?"}],
            "pairs": [{"prompt": "q", "chosen": "3", "rejected": "4"}],
            "chats": [{"messages": [user("q"), assistant("5")], "tools": [{"name": "f"}]}],
        }
        configs = []
        for name, own in rows.items():
            path = tmp_path / f"{name}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in own))
            configs.append(DataConfig(path=path))
        found = load_uncontrolled(configs)
        assert found == [
            *(Example(Q, reply, UNCONTROLLED) for reply in "123"),
            Example(Q, "5", UNCONTROLLED, tools=({"name": "f"},)),
        ]
        drawn = load_uncontrolled(configs, limit=2, seed=1)
        assert len(drawn) == 2
        assert [example for example in found if example in drawn] == drawn

    def test_no_rows(self, tmp_path: Path) -> None:
        (tmp_path / "d.jsonl").write_text("")
        with pytest.raises(TrainingError, match=r"d\.jsonl: no rows"):
            load_uncontrolled([DataConfig(path=tmp_path / "d.jsonl")])


class TestPairUp:
    def test_replies_of_opposites_to_one_prompt_become_pairs_in_their_order(self) -> None:
        other = (user("other"),)
        examples = {
            "a": [Example(Q, "1", "a"), Example(Q, "2", "a"), Example(Q, "3", "a"), Example(other, "4", "a")],
            "b": [Example(Q, "x", "b"), Example(Q, "y", "b", rejected="kept")],
        }
        paired = pair_up(examples, {"a": "b", "b": "a"})
        assert [example.rejected for example in paired["a"]] == ["x", "y", "x", None]
        assert [example.rejected for example in paired["b"]] == ["1", "kept"]
        assert [example.reply for example in paired["a"]] == ["1", "2", "3", "4"]

    def test_no_pair_with_itself_without_an_opposite_or_over_several_turns(self) -> None:
        same = {"a": [Example(Q, "1", "a")], "b": [Example(Q, "1", "b")]}
        assert pair_up(same, {"a": "b", "b": None}) == same
        turns = {"a": [Example(Q, "1", "a", supervise="all")], "b": [Example(Q, "2", "b", supervise="all")]}
        assert pair_up(turns, {"a": "b", "b": "a"}) == turns
        tools = {"a": [Example(Q, "1", "a", tools=({"name": "f"},))], "b": [Example(Q, "2", "b")]}
        assert pair_up(tools, {"a": "b", "b": "a"}) == tools

    def test_one_pair_of_each_will_do_and_likelihood_sees_none(self) -> None:
        other = (user("other"),)
        examples = {"a": [Example(Q, "1", "a", rejected="2"), Example(other, "3", "a")], "b": [Example(Q, "2", "b")]}
        preferences = {"a": {"axis": "x", "opposite": "b"}, "b": {"axis": "x", "opposite": "a"}}
        data = DataConfig(path=Path("x"))
        run = config(data, preferences=preferences, objective={"kind": "preference"})
        assert [e.rejected for group in for_objective(examples, run).values() for e in group] == ["2", None, "1"]
        likelihood = for_objective(examples, config(data, preferences=preferences))
        assert [e.rejected for group in likelihood.values() for e in group] == [None] * 3


def test_the_digest_knows_everything_that_is_trained_on() -> None:
    base = Example(Q, "r", "a")
    variants = [
        base,
        Example(Q, "s", "a"),
        Example(Q, "r", "a", rejected="s"),
        Example(Q, "r", "a", tools=({"name": "f"},)),
        Example(Q, "r", "a", supervise="all"),
    ]
    assert len({digest({"a": [one]}) for one in variants}) == len(variants)


class TestMixing:
    @pytest.mark.parametrize(
        ("available", "weights", "limit", "expected"),
        [
            ([100, 100], [3, 1], None, [100, 33]),  # the first set is used up; a third as many of the second
            ([100, 10], [3, 1], None, [30, 10]),
            ([7, 3], [0.7, 0.3], None, [7, 3]),  # exact, where floats would lose one
            ([100, 100], [3, 1], 8, [6, 2]),
            ([100, 100, 100], [1, 1, 1], 5, [2, 2, 1]),
            ([100, 0], [3, 1], 8, [8, 0]),  # a set that has none of the preference is left out of the sum
            ([0, 0], [1, 1], 5, [0, 0]),
        ],
    )
    def test_shares(self, available: list[int], weights: list[float], limit: int | None, expected: list[int]) -> None:
        assert shares(available, weights, limit) == expected

    def mixed(self, seed: int = 0, limit: int | None = None, weights: tuple[float, float] = (3, 1)) -> list[str]:
        sets = [
            in_memory(
                *({"prompt": "q", "reply": f"{name}{i}", "preference": p} for i in range(20) for p in "ab"),
                weight=weight,
            )
            for name, weight in zip("xy", weights, strict=True)
        ]
        run = config(*(one.data for one in sets), seed=seed, examples_per_preference=limit)
        return [str(example.reply) for example in gather(run, sets)["a"]]

    def test_weights_are_shares_of_a_preferences_examples(self) -> None:
        drawn = self.mixed(limit=8)
        assert [reply[0] for reply in drawn] == ["x"] * 6 + ["y"] * 2
        assert len(set(drawn)) == 8
        assert drawn == self.mixed(limit=8)
        assert drawn != self.mixed(limit=8, seed=1)
        everything = self.mixed()
        assert [reply[0] for reply in everything] == ["x"] * 20 + ["y"] * 6


class TestDrawing:
    def drawn(self, *rows: dict[str, Any], weights: tuple[float | None, ...] = (None,), **more: Any) -> Any:
        sets = [in_memory(*rows, weight=weight) for weight in weights]
        preferences = {"a": {"axis": "x", "opposite": "b"}, "b": {"axis": "x", "opposite": "a"}}
        run = config(*(one.data for one in sets), preferences=preferences, **more)
        return for_objective(gather(run, sets), run)

    def rows(self, num: int, replies: int = 1) -> list[dict[str, str]]:
        return [
            {"prompt": f"q{i}", "reply": f"{label}{i}.{n}", "preference": label}
            for i in range(num)
            for n in range(replies)
            for label in "ab"
        ]

    @pytest.mark.parametrize("weights", [(None,), (2, 1)])
    def test_where_pairs_are_wanted_opposites_are_drawn_by_prompt(self, weights: tuple[float | None, ...]) -> None:
        found = self.drawn(
            *self.rows(200), weights=weights, examples_per_preference=20, objective={"kind": "preference"}
        )
        for label in "ab":
            assert len(found[label]) == 20
            assert all(example.rejected is not None for example in found[label])
        again, other = (
            self.drawn(*self.rows(200), examples_per_preference=20, objective={"kind": "preference"}, seed=seed)
            for seed in (0, 1)
        )
        assert again != other
        if weights == (None,):
            assert again == found

    def test_several_replies_to_a_prompt_are_drawn_by_their_number_not_all_or_none(self) -> None:
        rows = self.rows(100, replies=4)
        found = self.drawn(*rows, examples_per_preference=40, objective={"kind": "preference"})
        assert all(example.rejected is not None for group in found.values() for example in group)
        prompts = {str(example.messages) for example in found["a"]}
        assert len(prompts) > 25  # all or none would be 10
        assert [e.reply[1:] for e in found["a"]] == [e.rejected[1:] for e in found["a"]]

    def test_else_each_preference_is_drawn_as_ever(self) -> None:
        """Bundles and figures were made with these."""
        likelihood = self.drawn(*self.rows(100), examples_per_preference=6)
        assert [example.reply for example in likelihood["a"]] == [f"a{i}.0" for i in (11, 13, 15, 53, 62, 73)]
        assert [example.reply for example in likelihood["b"]] == [f"b{i}.0" for i in (14, 15, 23, 46, 69, 99)]
        mixed = self.drawn(*self.rows(100), weights=(2, 1), examples_per_preference=6)
        assert [example.reply for example in mixed["a"]] == [f"a{i}.0" for i in (13, 15, 53, 62, 8, 90)]


class TestStreaming:
    def test_a_million_rows_are_read_with_no_more_held_than_what_is_kept(self) -> None:
        class Fields(dict[str, Any]):
            """A row's fields that count how many of them are alive."""

            alive = most = 0

            def __init__(self, *args: Any) -> None:
                super().__init__(*args)
                Fields.alive += 1
                Fields.most = max(Fields.most, Fields.alive)

            def __del__(self) -> None:
                Fields.alive -= 1

        num_rows = 1_000_000

        def rows() -> Iterator[Row]:
            for number in range(num_rows):
                yield Row("d", number, Fields(prompt_reply(number)))

        def prompt_reply(number: int) -> dict[str, str]:
            return {"prompt": "q", "reply": str(number), "preference": "ab"[number % 2]}

        data_set = DataSet(DataConfig(path=Path("d.jsonl")), rows)
        gc.collect()
        alive_before = len(gc.get_objects())
        kept = gather(config(data_set.data, examples_per_preference=50), [data_set])
        assert data_set.num_rows == num_rows
        assert {label: len(group) for label, group in kept.items()} == {"a": 50, "b": 50}
        assert Fields.most <= 3
        gc.collect()
        assert len(gc.get_objects()) - alive_before < 20 * 100
        # Drawn from the whole stream, not from its start: the mean of 50 uniform draws is within 5 sigma of the middle.
        for group in kept.values():
            mean = sum(int(str(example.reply)) for example in group) / len(group)
            assert abs(mean / num_rows - 0.5) < 5 * (1 / 12 / 50) ** 0.5

    def test_a_reservoir_holds_its_limit_and_a_smaller_draw_is_part_of_a_larger(self) -> None:
        small: Reservoir[int] = Reservoir(5, "s")
        large: Reservoir[int] = Reservoir(50, "s")
        for item in range(1000):
            small.offer(item)
            large.offer(item)
        assert len(small.drawn()) == 5
        assert set(small.drawn()) < set(large.drawn())
        assert large.drawn(5) == small.drawn() == sorted(small.drawn())
        other: Reservoir[int] = Reservoir(5, "t")
        for item in range(1000):
            other.offer(item)
        assert other.drawn() != small.drawn()


class TestSources:
    def test_patterns_are_expanded_in_order_of_name(self, tmp_path: Path) -> None:
        for name in ("part-2.jsonl", "part-1.jsonl", "odd[1].jsonl"):
            (tmp_path / name).write_text(json.dumps({"name": name}) + "\n")
        files = expand([tmp_path / "odd[1].jsonl", tmp_path / "part-*.jsonl"])
        assert [file.name for file in files] == ["odd[1].jsonl", "part-1.jsonl", "part-2.jsonl"]
        (tmp_path / "deep" / "er").mkdir(parents=True)
        (tmp_path / "deep" / "er" / "x.csv").touch()
        assert expand([tmp_path / "**" / "*.csv"]) == [tmp_path / "deep" / "er" / "x.csv"]
        with pytest.raises(TrainingError, match=r"none-\*\.jsonl: no file has such a name"):
            open_data(DataConfig(path=tmp_path / "none-*.jsonl"))

    def test_csv_keeps_what_stands_in_a_cell_and_the_line(self, tmp_path: Path) -> None:
        path = tmp_path / "d.csv"
        long = "x" * 200_000  # more than the module's own limit
        path.write_bytes(b'prompt,reply\r\n"a,\r\n""b""",c\r\n\r\nd,\xc3\xa9\r\n' + f"e,{long}\r\n".encode())
        rows = list(read_rows(path))
        assert [tuple(row.fields.values()) for row in rows] == [('a,\r\n"b"', "c"), ("d", "é"), ("e", long)]
        assert all(tuple(row.fields) == ("prompt", "reply") for row in rows)
        assert [row.number for row in rows] == [3, 5, 6]

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"a,a\n1,2\n", r"d\.csv:1: a column name occurs twice"),
            (b"a,b\n1,2\n3\n", r"d\.csv:3: expected 2 cells, as the header has, found 1"),
            (b"a,b\n1,2,3\n", r"d\.csv:2: expected 2 cells, as the header has, found 3"),
            (b'a,b\n"1"2,3\n', r"d\.csv:2: not CSV"),
            (b"a\n\xff\n", r"d\.csv is not UTF-8"),
        ],
    )
    def test_csv_that_is_none(self, tmp_path: Path, content: bytes, message: str) -> None:
        (tmp_path / "d.csv").write_bytes(content)
        with pytest.raises(TrainingError, match=message):
            list(read_rows(tmp_path / "d.csv"))

    def test_parquet_is_read_in_batches(self, tmp_path: Path) -> None:
        import pyarrow
        import pyarrow.parquet

        path = tmp_path / "d.parquet"
        own = [{"messages": [user(str(i)), {**assistant("r"), "name": "n"}], "preference": "a"} for i in range(600)]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(own), path)
        heard: list[tuple[int, int]] = []
        rows = list(read_rows(path, lambda _, done, size: heard.append((done, size))))
        assert [row.number for row in rows] == list(range(1, 601))
        # Arrow gives every message the keys of all; those without a value are none of the message's.
        assert rows[0].fields["messages"][0] == {"role": "user", "content": "0", "name": None}
        assert examples_in(rows[0].fields)[0] == Example((user("0"),), {**assistant("r"), "name": "n"}, "a")

    @pytest.mark.parametrize("source", ["path", "hub"])
    def test_a_table_gives_no_tool_the_keys_of_others(self, tmp_path: Path, source: str) -> None:
        """Arrow does, with null in them; a template would render these."""
        import pyarrow
        import pyarrow.parquet

        tools = [
            {"name": "f", "parameters": {"x": {"type": "integer"}}},
            {"name": "g", "parameters": {"y": {"type": "string"}}},
        ]
        calls = [{"function": {"name": "f", "arguments": {"x": 1}}}, {"function": {"name": "g", "arguments": {"y": 2}}}]
        own = [
            {"messages": [user("q"), {"role": "assistant", "tool_calls": [call]}], "tools": [tool], "preference": "a"}
            for call, tool in zip(calls, tools, strict=True)
        ]
        table = pyarrow.Table.from_pylist([*own, {"messages": None, "tools": None, "preference": "a"}])
        pyarrow.parquet.write_table(table, tmp_path / "train.parquet")
        given = {"path": tmp_path / "train.parquet"} if source == "path" else {"hub": str(tmp_path)}
        rows = open_data(DataConfig.model_validate({**given, "bad_rows": "leave_out"}))
        found = [example for _, example, _ in rows.labelled()]
        assert [example and example.tools for example in found] == [(tool,) for tool in tools]
        assert [example and example.reply for example in found] == [
            {"role": "assistant", "content": "", "tool_calls": [call]} for call in calls
        ]
        assert rows.num_bad_rows == 1

    def test_progress_of_a_long_file_is_told_in_bytes(self, tmp_path: Path) -> None:
        path = tmp_path / "d.jsonl"
        path.write_text('{"a": 1}\n' * 2500)
        heard: list[tuple[int, int]] = []
        for _ in read_rows(path, lambda _, done, size: heard.append((done, size))):
            pass
        size = path.stat().st_size
        assert heard[-1] == (size, size)
        assert [done for done, _ in heard] == sorted(done for done, _ in heard)
        assert len(heard) == 3

    def test_parquet_that_is_none(self, tmp_path: Path) -> None:
        (tmp_path / "d.parquet").write_bytes(b"PAR1 and no more")
        with pytest.raises(TrainingError, match=r"d\.parquet cannot be read as Parquet"):
            list(read_rows(tmp_path / "d.parquet"))

    def test_a_data_set_of_the_hub_and_one_that_cannot_be_reached(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import datasets.config
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        (tmp_path / "set").mkdir()
        (tmp_path / "set/train.jsonl").write_text('{"prompt": "q", "reply": "", "preference": "a"}\n')
        folder = str(tmp_path / "set")
        with pytest.raises(TrainingError, match=r"set \(train\):1: field 'reply' must be text"):
            list(open_data(DataConfig(hub=folder)).labelled())
        with pytest.raises(TrainingError, match=r"cannot be loaded: .*Available splits: \['train'\]"):
            list(open_data(DataConfig(hub=folder, split="test")).labelled())
        with pytest.raises(TrainingError, match=r"hub: 'owner/none' cannot be loaded: .*HF_HUB_OFFLINE is set"):
            list(open_data(DataConfig(hub="owner/none")).labelled())
