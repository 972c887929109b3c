"""`meet data generate`: what is thrown out, what is chosen, what is asked, going on after a stop."""

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import AsyncOpenAI

from meet_training.data.generate import (
    GenerateConfig,
    PreferenceRecipe,
    Progress,
    Report,
    generate,
    load_generate_config,
    num_missing,
)
from meet_training.data.sampling import SampleFile, seed_for
from meet_training.data.selection import Reason, Sample, choose, quantiles, reason_against, repeated_ngrams
from meet_training.errors import TrainingError

INSTRUCTION = "Answer in one short sentence."
PROMPT = "Why is the sky blue?"


def recipe(**changes: Any) -> PreferenceRecipe:
    fields = {"axis": "length", "instruction": INSTRUCTION, "attribute": "words", "select": "lowest"}
    return PreferenceRecipe.model_validate({**fields, **changes})


# What is thrown out


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("Air scatters blue light most.", None),
        ("- Air scatters light\n- Blue light most", None),
        ("  \n", Reason.EMPTY),
        ("--- !", Reason.EMPTY),
        ("Air scatters blue light and then the", Reason.UNFINISHED),
        ("Air scatters light.<|im_start|>", Reason.BROKEN),
        ("Air scatters\x07 light.", Reason.BROKEN),
        ("Air scatters \ufffd light.", Reason.BROKEN),
        ("Воздух рассеивает синий свет.", Reason.BROKEN),
        (f"Air {'a' * 41} light.", Reason.BROKEN),
        ("Dear [Your Name], air scatters light.", Reason.BROKEN),
        ("- 1. Air scatters light.\n- 2. Blue light most.", Reason.BROKEN),
        ("See [1] and [the table](t.html): air scatters light.", None),
        ("Read www.sky.com about light.", Reason.BROKEN),
        ("Air scatters light.\nUser: And why?", Reason.BROKEN),
        ("AIR SCATTERS BLUE light.", Reason.BROKEN),
        ("Air scatters light. \U0001f389", Reason.BROKEN),
        ("At 20°C, NASA says, it is 1.", None),
        ("The first sentence says that air scatters light.", Reason.ECHOES_INSTRUCTION),
        ("Air scatters light.\nAir scatters light.", Reason.REPETITIVE),
        ("It is blue and it is blue and it is blue and it is blue.", Reason.REPETITIVE),
        ("Put in one short sentence, air scatters light.", Reason.ECHOES_INSTRUCTION),
        ("The answer to this question is light.", Reason.ECHOES_INSTRUCTION),
        ("To answer in one, air scatters light.", None),
        ("As an AI, I think air scatters light.", Reason.ABOUT_ITSELF),
        ("I'm sorry, but I can't say.", Reason.ABOUT_ITSELF),
        ("Air scatters light.\nAnd then the", Reason.UNFINISHED),
        ("Air\tscatters light.", None),
        ("Blue light.\nIt scatters most.\nBlue light.", None),  # lines of two words may say the same
        # One run of three words in eight stood before, and in nine: 12.5% and 11.1%, of 12% that may.
        ("We see the sky as we see the sun today.", Reason.REPETITIVE),
        ("We see the sky as we see the sun here today.", None),
        ("The café, they say, scatters blue light.", None),  # 1 letter in 32 is foreign
        ("Ça va très bien, là.", Reason.BROKEN),  # 3 in 14
        (f"Air {'a' * 40} light.", None),
        ("AIR SCATTERS light now.", Reason.BROKEN),  # 11 capitals of 19 letters
        ("NASA says.", None),  # 4 of 8
    ],
)
def test_reason_against_a_reply(reply: str, reason: Reason | None) -> None:
    assert reason_against(Sample(reply, "stop"), PROMPT, recipe()) is reason


@pytest.mark.parametrize(
    ("reply", "prompt", "off_topic"),
    [
        ("Whales are large.", "Why do onions make my eyes water?", True),
        ("The onion is strong.", "Why do onions make my eyes water?", False),
        ("Their thing is what people want.", "What do people want from their things?", False),
    ],
)
def test_a_reply_off_topic_is_thrown_out_where_asked_for(reply: str, prompt: str, off_topic: bool) -> None:
    sample = Sample(reply, "stop")
    assert reason_against(sample, prompt, recipe(), on_topic=True) is (Reason.OFF_TOPIC if off_topic else None)
    assert reason_against(sample, prompt, recipe()) is None


@pytest.mark.parametrize("finish_reason", ["length", "content_filter"])
def test_a_reply_that_did_not_stop_by_itself_is_truncated(finish_reason: str) -> None:
    assert reason_against(Sample("Air scatters light.", finish_reason), PROMPT, recipe()) is Reason.TRUNCATED


def test_words_of_the_instruction_are_fine_where_the_prompt_has_them() -> None:
    told = recipe(instruction="Explain with reasons and examples")
    reply = Sample("Explain with reasons and people listen.", "stop")
    assert reason_against(reply, PROMPT, told) is Reason.ECHOES_INSTRUCTION
    assert reason_against(reply, "Why explain with reasons and care?", told) is None


def test_the_form_and_capitals_are_fine_where_the_prompt_has_them() -> None:
    reply = Sample("The first sentence names light.", "stop")
    assert reason_against(reply, "What does the first sentence name?", recipe()) is None
    shouted = Sample("AIR SCATTERS LIGHT.", "stop")
    assert reason_against(shouted, PROMPT, recipe()) is Reason.BROKEN
    assert reason_against(shouted, PROMPT.upper(), recipe()) is None


def test_another_script_is_fine_where_the_prompt_has_it() -> None:
    assert reason_against(Sample("Воздух рассеивает свет.", "stop"), "Почему небо синее?", recipe()) is None


@pytest.mark.parametrize(("reply", "fits"), [("One two.", False), ("One two three.", True), ("A b c d e.", False)])
def test_bounds_include_both_ends(reply: str, fits: bool) -> None:
    bounded = recipe(accept={"words": {"min": 3, "max": 4}, "list_share": {"max": 0}})
    assert reason_against(Sample(reply, "stop"), PROMPT, bounded) is (None if fits else Reason.OUT_OF_BOUNDS)


def test_repeated_ngrams_by_hand() -> None:
    assert repeated_ngrams("a b c d") == 0
    assert repeated_ngrams("a b c d a b c d") == pytest.approx(1 - 4 / 6)
    assert repeated_ngrams("a b c d a b c d", n=4) == pytest.approx(1 - 4 / 5)
    assert repeated_ngrams("") == 0


# What is chosen


def test_the_lowest_is_kept_and_the_rest_counted() -> None:
    samples = [
        Sample(text, "stop") for text in ("Four words are here.", " Just two.\n", "Cut off by", "Three are here.")
    ]
    choice = choose(samples, PROMPT, recipe(), set())
    assert choice.kept == ["Just two."]
    assert choice.num_not_chosen == 2
    assert choice.thrown_out == Counter({Reason.UNFINISHED: 1})


def test_the_highest_are_kept_and_equals_in_the_order_sampled() -> None:
    samples = [Sample(text, "stop") for text in ("B two.", "A two.", "Now three words.")]
    assert choose(samples, PROMPT, recipe(select="highest", keep=2), set()).kept == [
        "Now three words.",
        "B two.",
    ]


def test_a_reply_kept_elsewhere_is_a_duplicate_whatever_its_case_and_marks() -> None:
    taken: set[str] = set()
    assert choose([Sample("Just two.", "stop")], PROMPT, recipe(), taken).kept == ["Just two."]
    again = choose([Sample("just TWO!", "stop"), Sample("Another three words.", "stop")], PROMPT, recipe(), taken)
    assert again.kept == ["Another three words."]
    assert again.thrown_out == Counter({Reason.DUPLICATE: 1})


def test_quantiles_are_values_that_occur() -> None:
    assert quantiles([4, 1, 3, 2, 5]) == {
        "min": 1,
        "p10": 1,
        "p25": 2,
        "p50": 3,
        "p75": 4,
        "p90": 5,
        "max": 5,
    }
    assert quantiles([]) == {}


def test_a_seed_is_of_the_run_the_prompt_and_the_preference() -> None:
    asked = [(0, "p", "a"), (1, "p", "a"), (0, "q", "a"), (0, "p", "b")]
    assert len({seed_for(*each) for each in asked}) == len(asked)
    assert all(0 <= seed_for(seed, "p", "a") < 2**31 for seed in range(20))  # what every endpoint takes


# A whole run, against an endpoint that is a function

Answer = Callable[[dict[str, Any]], httpx2.Response]


def completion(body: dict[str, Any]) -> httpx2.Response:
    """Concise replies have 3 words, others 6, one more with each sample; every reply names its prompt."""
    message = next(one["content"] for one in body["messages"][::-1] if one["role"] == "user")
    topic = message.split("?")[0].replace(" ", "")
    length = 2 if "short" in message else 5
    choices = [
        {
            "index": index,
            "finish_reason": "stop",
            "message": {
                "role": "assistant",
                "content": f"{topic} {' '.join('abcdefg'[: length + index - 1])} end.",
            },
        }
        for index in range(body["n"])
    ]
    usage = {"prompt_tokens": 1, "completion_tokens": 10, "total_tokens": 11}
    return httpx2.Response(
        200,
        json={
            "id": "1", "object": "chat.completion", "created": 0, "model": body["model"],
            "choices": choices, "usage": usage,
        },
    )  # fmt: skip


class Endpoint:
    """An OpenAI-style endpoint in this process; keeps the bodies that it was sent."""

    def __init__(self, answer: Answer = completion) -> None:
        self.bodies: list[dict[str, Any]] = []
        self._answer = answer

    def client(self) -> AsyncOpenAI:
        def handle(request: httpx2.Request) -> httpx2.Response:
            body = json.loads(request.content)
            self.bodies.append(body)
            return self._answer(body)

        http_client = httpx2.AsyncClient(transport=httpx2.MockTransport(handle))
        return AsyncOpenAI(base_url="http://fake/v1", api_key="k", http_client=http_client, max_retries=0)


def write_config(folder: Path, **changes: Any) -> Path:
    """A configuration with two preferences and three prompts; JSON is YAML too."""
    prompts = [{"prompt": f"What is {thing}?", "subject": "things"} for thing in ("tin", "tea", "tar")]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    other = {"axis": "length", "opposite": "concise", "attribute": "words", "select": "highest"}
    fields = {
        "prompts": "prompts.jsonl",
        "output": "data.jsonl",
        "samples": 2,
        "repetition_penalty": 1.1,
        "preferences": {
            "concise": {
                **other,
                "opposite": "detailed",
                "instruction": "Be short.",
                "select": "lowest",
                "max_tokens": 9,
            },
            "detailed": {**other, "instruction": "Be thorough.", "where": "system"},
        },
        **changes,
    }
    path = folder / "generate.yaml"
    path.write_text(json.dumps(fields))
    return path


def run(config: GenerateConfig, served: Endpoint, progress: Callable[[Progress], None] | None = None) -> Report:
    return asyncio.run(generate(config, "http://fake/v1", progress=progress, client=served.client()))


def rows_of(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_writes_rows_a_report_and_nothing_else(tmp_path: Path) -> None:
    seen: list[Progress] = []
    report = run(load_generate_config(write_config(tmp_path)), Endpoint(), seen.append)
    rows = rows_of(tmp_path / "data.jsonl")
    assert rows[:2] == [
        {
            "prompt": "What is tin?",
            "reply": "Whatistin a end.",
            "preference": "concise",
            "subject": "things",
        },
        {
            "prompt": "What is tin?",
            "reply": "Whatistin a b c d e end.",
            "preference": "detailed",
            "subject": "things",
        },
    ]
    assert [row["preference"] for row in rows] == ["concise", "detailed"] * 3
    assert [(one.num_done, one.num_requests) for one in seen] == [(done, 6) for done in range(1, 7)]
    assert seen[-1].num_tokens == 60
    assert json.loads((tmp_path / "data.report.json").read_text()) == report.model_dump()
    assert report.preferences["concise"].model_dump() == {
        "sampled": 6,
        "thrown_out": {},
        "not_chosen": 3,
        "kept": 3,
        "prompts_without": 0,
        "num_tokens": 30,
        "quantiles": report.preferences["concise"].quantiles,
    }
    assert report.preferences["detailed"].quantiles["words"]["p50"] == 7
    assert "concise" in report.table()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "data.jsonl", "data.jsonl.samples.jsonl", "data.report.json", "generate.yaml", "prompts.jsonl",
    ]  # fmt: skip


def test_an_output_that_is_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").symlink_to("elsewhere.jsonl")
    run(load_generate_config(write_config(tmp_path)), Endpoint())
    assert (tmp_path / "data.jsonl").is_symlink()
    assert len(rows_of(tmp_path / "elsewhere.jsonl")) == 6


def test_what_a_request_says(tmp_path: Path) -> None:
    served = Endpoint()
    run(load_generate_config(write_config(tmp_path, seed=7)), served)
    bodies = {json.dumps(body["messages"]): body for body in served.bodies}
    concise = bodies[json.dumps([{"role": "user", "content": "What is tin? Be short."}])]
    assert (concise["max_tokens"], concise["n"], concise["repetition_penalty"]) == (9, 2, 1.1)
    assert concise["seed"] == seed_for(7, "What is tin?", "concise")
    detailed = bodies[
        json.dumps([{"role": "system", "content": "Be thorough."}, {"role": "user", "content": "What is tin?"}])
    ]
    assert detailed["max_tokens"] == 256
    assert len({body["seed"] for body in served.bodies}) == 6


def test_a_reply_start_is_sent_as_an_unfinished_reply_and_belongs_to_the_reply(tmp_path: Path) -> None:
    served = Endpoint()
    listed = {**ONE, "instruction": "Be short.", "reply_start": "-"}
    run(load_generate_config(write_config(tmp_path, samples=1, preferences={"listed": listed})), served)
    body = served.bodies[0]
    assert body["messages"][-1] == {"role": "assistant", "content": "-"}
    assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)
    assert rows_of(tmp_path / "data.jsonl")[0]["reply"] == "-Whatistin a end."


def test_goes_on_after_a_line_written_in_half(tmp_path: Path) -> None:
    config = load_generate_config(write_config(tmp_path))
    run(config, Endpoint())
    whole = (tmp_path / "data.jsonl").read_bytes()
    lines = config.samples_path.read_text().splitlines(keepends=True)
    config.samples_path.write_text("".join(lines[:3]) + lines[3][:40])
    (tmp_path / "data.jsonl").unlink()
    again = Endpoint()
    run(config, again)
    assert len(again.bodies) == 3
    assert (tmp_path / "data.jsonl").read_bytes() == whole
    assert len(SampleFile(config.samples_path)) == 6


def test_a_finished_run_asks_nothing_and_new_settings_ask_again(tmp_path: Path) -> None:
    run(load_generate_config(write_config(tmp_path)), Endpoint())
    same, hotter = Endpoint(), Endpoint()
    run(load_generate_config(write_config(tmp_path)), same)
    run(load_generate_config(write_config(tmp_path, temperature=0.9)), hotter)
    assert (len(same.bodies), len(hotter.bodies)) == (0, 6)


def test_what_is_missing_is_known_before_anybody_is_asked(tmp_path: Path) -> None:
    config = load_generate_config(write_config(tmp_path))
    assert num_missing(config) == 6
    with pytest.raises(TrainingError, match="base_url: none, and samples of 6 requests are missing"):
        asyncio.run(generate(config, None))
    run(config, Endpoint())
    assert num_missing(config) == 0
    assert asyncio.run(generate(config, None)).rows == 6


def test_a_spoilt_line_in_the_middle_is_an_error(tmp_path: Path) -> None:
    config = load_generate_config(write_config(tmp_path))
    config.samples_path.write_text('{"key": 1}\n')
    with pytest.raises(TrainingError, match=r"samples\.jsonl:1: not a kept record of samples"):
        run(config, Endpoint())


def test_an_endpoint_that_fails_keeps_what_was_sampled_and_the_old_output(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text("old\n")
    config = load_generate_config(write_config(tmp_path, concurrency=1))

    def fail_at_the_third(body: dict[str, Any]) -> httpx2.Response:
        return completion(body) if len(served.bodies) < 3 else httpx2.Response(500, json={"error": "no"})

    served = Endpoint(fail_at_the_third)
    with pytest.raises(TrainingError, match="http://fake/v1"):
        run(config, served)
    assert (tmp_path / "data.jsonl").read_text() == "old\n"
    assert len(SampleFile(config.samples_path)) == 2


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (httpx2.Response(200, json={"error": "busy"}), r"http://fake/v1/: answered no completion but .*busy"),
        (httpx2.Response(200, json={"choices": []}), "answered no completion but"),
        (httpx2.Response(200, json={"choices": [{"finish_reason": "stop"}]}), "answered no completion but"),
        (
            httpx2.Response(200, json={"choices": [{"message": {"content": ["no", "text"]}}]}),
            "answered no completion but",
        ),
        (httpx2.Response(200, html="<title>Login</title>"), "answered no completion but .*Login"),
        (httpx2.Response(200, content=b"{", headers={"content-type": "application/json"}), "answered no JSON"),
    ],
    ids=[
        "an error as if all were well",
        "no choices",
        "no message",
        "content that is no text",
        "a web page",
        "half of it",
    ],
)
def test_an_answer_that_is_no_completion_is_named(tmp_path: Path, answer: httpx2.Response, message: str) -> None:
    config = load_generate_config(write_config(tmp_path))
    with pytest.raises(TrainingError, match=message):
        run(config, Endpoint(lambda _: answer))


def test_half_of_a_surrogate_pair_in_a_reply_does_not_end_a_run(tmp_path: Path) -> None:
    config = load_generate_config(write_config(tmp_path))

    def broken(body: dict[str, Any]) -> httpx2.Response:
        answer = json.loads(completion(body).content)
        answer["choices"][0]["message"]["content"] = "Tin \ud83d."
        return httpx2.Response(200, content=json.dumps(answer).encode(), headers={"content-type": "application/json"})

    run(config, Endpoint(broken))
    kept = [
        sample.reply
        for line in rows_of(config.samples_path)
        for sample in SampleFile(config.samples_path)[line["key"]].samples
    ]
    assert "Tin ?." in kept


# Configurations that are refused

ONE = {"axis": "x", "instruction": "i", "attribute": "words", "select": "lowest"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": 0}, r"generate\.yaml: samples = 0: .*greater than or equal to 1"),
        ({"colour": "red"}, r"generate\.yaml: colour = 'red': no such field"),
        ({"preferences": {}}, r"preferences = \{\}"),
        (
            {"preferences": {"a": {**ONE, "attribute": "weight"}}},
            r"preferences\.a\.attribute: attribute 'weight' is not known; allowed: words",
        ),
        (
            {
                "preferences": {
                    "a": {
                        **ONE,
                        "opposite": "b",
                    }
                }
            },
            r"preferences\.a\.opposite 'b' is not one of: none",
        ),
    ],
)  # fmt: skip
def test_configurations_that_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        load_generate_config(write_config(tmp_path, **changes))


def test_bounds_in_the_wrong_order_are_refused(tmp_path: Path) -> None:
    path = write_config(tmp_path, preferences={"a": {**ONE, "accept": {"words": {"min": 5, "max": 4}}}})
    with pytest.raises(TrainingError, match=r"accept\.words: min 5 is above max 4"):
        load_generate_config(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [("a: [", "is not YAML"), ("- 1\n", "holds list; allowed: a mapping"), (None, "cannot be read")],
)
def test_files_that_are_no_configuration(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "g.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(TrainingError, match=message):
        load_generate_config(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no prompt"),
        ("{\n", r"prompts\.jsonl:1: not JSON"),
        ('{"text": "a"}\n', r"prompts\.jsonl:1: field 'prompt' is missing; the row has text"),
        ('{"prompt": "a", "subject": 3}\n', "field 'subject' must be text, or be left out, found 3"),
        (
            '{"prompt": "a"}\n{"prompt": "a"}\n',
            r"prompts\.jsonl:2: field 'prompt' must be a new one, found 'a' a second time",
        ),
    ],
)
def test_prompts_that_are_refused(tmp_path: Path, content: str, message: str) -> None:
    config = load_generate_config(write_config(tmp_path))
    config.prompts.write_text(content)
    with pytest.raises(TrainingError, match=message):
        run(config, Endpoint())


def test_an_endpoint_on_this_machine_is_asked_without_the_proxy(endpoint_behind_proxy: str, tmp_path: Path) -> None:
    config = load_generate_config(write_config(tmp_path))
    asyncio.run(generate(config, f"{endpoint_behind_proxy}/v1"))
    assert {row["reply"] for row in rows_of(config.output)} == {"Tin is a metal."}


def test_a_key_variable_that_is_not_set_is_named(tmp_path: Path) -> None:
    config = load_generate_config(write_config(tmp_path, api_key_env="MEET_NO_SUCH_KEY"))
    with pytest.raises(TrainingError, match="MEET_NO_SUCH_KEY"):
        asyncio.run(generate(config, "http://fake/v1"))
