"""Every rival on the tiny model: what it is shown, what it may use, that it learns, and that it is measured alike."""

from __future__ import annotations

import itertools
import json
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from meet_bundle.leftovers import claimed
from meet_training.data_config import DataConfig
from meet_training.errors import TrainingError
from meet_training.evaluation.replies import Reply
from meet_training.rivals.compare import Comparison
from meet_training.rivals.compare_config import CompareConfig, load_compare_config
from meet_training.rivals.measuring import Measured
from meet_training.rivals.registry import RIVALS
from meet_training.rivals.report import missing, report_data, rows_of
from meet_training.rivals.rival_run import RivalRun, train_config

from .fork_server import ForkServer
from .rivals_data import WORDS, comparison_config, silent

TRAINED = [name for name in RIVALS if name != "prompting"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rivals")


@pytest.fixture(scope="module")
def config(tiny_base: Path, folder: Path) -> CompareConfig:
    return comparison_config(tiny_base, folder)


@pytest.fixture(scope="module")
def comparison(config: CompareConfig) -> Comparison:
    """All rivals, trained and measured once."""
    found = Comparison(config, silent)
    found.run()
    return found


def runs_of(name: str, comparison: Comparison, folder: Path) -> list[RivalRun]:
    """The untrained runs of a rival's models."""
    config, setting = comparison.config, comparison.setting
    rival = RIVALS[name]
    jobs = rival.jobs(config, rival.points(config)[0])
    return [
        RivalRun(job, train_config(config, job, 0, folder / "x"), setting.folder, setting.split.examples())
        for job in jobs
    ]


def text(run: RivalRun, ids: Any) -> str:
    return str(run.tokenizer.decode(list(ids)))


class TestWhatIsShown:
    def test_sft_sees_one_preference_and_no_word_of_it(self, comparison: Comparison, folder: Path) -> None:
        short, long = runs_of("sft", comparison, folder)
        assert (set(short.rendered), set(long.rendered)) == ({"short"}, {"long"})
        example = short.rendered["short"][0]
        assert text(short, example.prompt_ids).endswith("<|im_start|>assistant\n")
        assert example.rejected_ids is None

    def test_a_text_token_stands_before_the_reply_and_is_not_learned(
        self, comparison: Comparison, folder: Path
    ) -> None:
        for name in ("text_token", "one_lora"):
            (run,) = runs_of(name, comparison, folder)
            example = run.rendered["long"][0]
            assert text(run, example.prompt_ids).endswith("<|im_start|>assistant\nA long answer:\n")
            assert example.mask is None
            assert text(run, example.reply_ids).startswith("It is ")

    def test_a_chain_has_both_replies_in_both_orders_and_learns_nothing_between(
        self, comparison: Comparison, folder: Path
    ) -> None:
        (run,) = runs_of("chain_of_hindsight", comparison, folder)
        chains = run.rendered["short and long"]
        assert len(chains) == 8  # four pairs, in two orders
        first, last = chains[0], chains[4]
        assert text(run, first.prompt_ids).endswith("assistant\nA short answer:\n")
        assert text(run, last.prompt_ids).endswith("assistant\nA long answer:\n")
        word = text(run, first.reply_ids).partition(".")[0]
        long = f"It is {word}, as one says of {word} in all the days of {word} that there are.<|im_end|>"
        assert text(run, first.reply_ids) == f"{word}.<|im_end|>\nA long answer:\n{long}"
        assert text(run, first.targets) == f"{word}.<|im_end|>{long}"
        assert text(run, last.targets) == f"{long}{word}.<|im_end|>"

    def test_dpo_and_the_preference_objective_see_both_replies(self, comparison: Comparison, folder: Path) -> None:
        for name in ("dpo", "meet_preference"):
            for run in runs_of(name, comparison, folder):
                for group in run.rendered.values():
                    assert all(example.rejected_ids is not None for example in group)
                assert run.config.objective.kind == "preference"
        assert runs_of("dpo", comparison, folder)[0].config.objective.likelihood_weight == 0

    def test_stage_2_from_the_text_starts_from_the_texts_embeddings(self, comparison: Comparison, folder: Path) -> None:
        (run,) = runs_of("stage2_from_text", comparison, folder)
        model = run.load_model(torch.float32)
        rows = model.get_input_embeddings().weight[run.tokenizer("A short answer:\n")["input_ids"][:4]]
        state = run.attach(model).state()
        assert torch.equal(state["short/soft_prompt"], rows)

    def test_prompting_adds_the_instruction_and_nothing_else(self, comparison: Comparison) -> None:
        (job,) = RIVALS["prompting"].jobs(comparison.config, RIVALS["prompting"].points(comparison.config)[0])
        tokenizer = comparison.setting.tokenizer
        messages = [{"role": "user", "content": "Why?"}]
        asked = job.rendering.asked(messages, "short", tokenizer)
        assert "Why? Be brief.<|im_end|>" in str(tokenizer.decode(list(asked)))
        assert "brief" not in str(tokenizer.decode(list(job.rendering.asked(messages, None, tokenizer))))


class TestTheBudget:
    @pytest.mark.parametrize("name", TRAINED)
    def test_every_rival_learns_as_many_tokens(self, name: str, comparison: Comparison, folder: Path) -> None:
        examples = comparison.setting.split.examples()
        # A byte is a token here; each reply ends with its end of turn.
        once = sum(len(str(each.reply)) + 1 for group in examples.values() for each in group)
        assert sum(run.budget[0] for run in runs_of(name, comparison, folder)) == 4 * once

    def test_who_sees_both_replies_of_a_pair_takes_as_many_steps(self, comparison: Comparison, folder: Path) -> None:
        for paired, alone in (("dpo", "sft"), ("meet_preference", "meet_lora_uncentred")):
            for one, other in zip(runs_of(paired, comparison, folder), runs_of(alone, comparison, folder), strict=True):
                for stage in ("stage1", "stage2"):
                    mine, theirs = getattr(one.config, stage), getattr(other.config, stage)
                    assert mine.epochs / mine.batch_size == theirs.epochs / theirs.batch_size

    def test_what_is_not_meets_own_choice_is_not_centred(self, comparison: Comparison, folder: Path) -> None:
        for name in ("stage2_only", "meet_preference", "meet_lora_uncentred"):
            assert [run.config.stage2.centre for run in runs_of(name, comparison, folder)] == [False]

    def test_what_is_learned_is_counted(self, comparison: Comparison) -> None:
        numbers = {row.name: row.cost.parameters for row in rows_of(comparison)}
        model = sum(p.numel() for p in comparison.setting.load_base().parameters())
        assert numbers["prompting"] == 0
        assert numbers["sft"] == numbers["dpo"] == 2 * model
        assert numbers["text_token"] == numbers["chain_of_hindsight"] == model
        assert numbers["meet_soft_after"] == numbers["stage2_from_text"] == model + 2 * 4 * 64
        controls = numbers["stage1_only"]
        assert (
            numbers["meet_lora_joint"]
            == numbers["meet_lora_uncentred"]
            == numbers["meet_lora_frozen"]
            == model + controls
        )
        assert numbers["one_lora"] > controls  # of the same sum of ranks, but its A is learned too

    def test_every_rival_searches_as_many_learning_rates(self, config: CompareConfig) -> None:
        three = config.model_copy(update={"tuning": config.tuning.model_copy(update={"rate_factors": (0.3, 1.0, 3.0)})})
        assert {name: len(rival.points(three)) for name, rival in RIVALS.items()} == {
            name: 1 if name == "prompting" else 3 for name in RIVALS
        }

    def test_a_factor_multiplies_every_rate(self, config: CompareConfig) -> None:
        rival = RIVALS["meet_lora_joint"]
        point = replace(rival.points(config)[0], factor=3.0)
        made = train_config(config, rival.jobs(config, point)[0], 0, Path("x"))
        rates = (made.stage1.learning_rate, made.stage2.learning_rate, made.stage2.control_learning_rate)
        assert rates == pytest.approx((6e-3, 9e-5, 3e-3))

    def test_opposites_are_centred_but_where_they_are_as_in_the_paper(self, config: CompareConfig) -> None:
        def centres(name: str) -> bool | None:
            (job,) = RIVALS[name].jobs(config, RIVALS[name].points(config)[0])
            return train_config(config, job, 0, Path("x")).resolved().stage2.centre

        assert centres("meet_lora_joint") is True
        assert centres("meet_lora_uncentred") is False

    def test_a_factor_of_the_controls_leaves_the_models_rate(self, config: CompareConfig) -> None:
        controls = config.tuning.model_copy(update={"multiplied": "controls", "rate_factors": (1.0, 3.0)})
        own = config.model_copy(update={"tuning": controls})
        rival = RIVALS["meet_lora_joint"]
        point = rival.points(own)[1]
        made = train_config(own, rival.jobs(own, point)[0], 0, Path("x"))
        rates = (made.stage1.learning_rate, made.stage2.learning_rate, made.stage2.control_learning_rate)
        assert rates == pytest.approx((6e-3, 3e-5, 3e-3))
        assert str(point) == "x3 controls"

    @pytest.mark.parametrize("name", ["sft", "text_token", "chain_of_hindsight", "one_lora", "dpo", "stage1_only"])
    def test_who_has_one_rate_has_it_multiplied_all_the_same(self, name: str, config: CompareConfig) -> None:
        rival = RIVALS[name]
        controls = config.tuning.model_copy(update={"multiplied": "controls", "rate_factors": (3.0,)})
        own = config.model_copy(update={"tuning": controls})
        stage = "stage1" if name == "stage1_only" else "stage2"
        jobs = [rival.jobs(own, rival.points(own)[0])[0], rival.jobs(own, replace(rival.points(own)[0], factor=1.0))[0]]
        multiplied, usual = (getattr(train_config(own, job, 0, Path("x")), stage).learning_rate for job in jobs)
        assert multiplied == pytest.approx(3 * usual)


class TestTheData:
    def test_no_prompt_is_on_two_sides(self, comparison: Comparison) -> None:
        dealt = comparison.setting.split
        parts = [dealt.test, dealt.tuning, *dealt.training.values()]
        prompts = [{row.first for row in part} for part in parts]
        assert [len(part) for part in prompts] == [3, 2, 4]
        assert all(not one & other for one, other in itertools.combinations(prompts, 2))

    def test_a_system_message_that_all_have_makes_them_no_one_prompt(
        self, comparison: Comparison, tiny_base: Path, tmp_path: Path
    ) -> None:
        config = comparison_config(tiny_base, tmp_path)
        for number, role in enumerate(("system", "developer")):
            rows = [
                {"messages": [{"role": role, "content": "Say how it is."}, {"role": "user", "content": row["prompt"]}]}
                | {"reply": row["reply"], "preference": row["preference"]}
                for row in map(json.loads, (tmp_path / "paired.jsonl").read_text().splitlines())
            ]
            path = tmp_path / f"{number}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            dealt = Comparison(config.model_copy(update={"data": (DataConfig(path=path),)}), silent).setting.split
            parts = [dealt.test, dealt.tuning, *dealt.training.values()]
            assert [len(part) for part in parts] == [3, 2, 4]
            prompts = [{row.first for row in part} for part in parts]
            assert all(not one & other for one, other in itertools.combinations(prompts, 2))
            as_without = [*comparison.setting.split.test, *comparison.setting.split.tuning]
            assert {row.first for row in (*dealt.test, *dealt.tuning)} == {row.first for row in as_without}

    def test_too_little_data_is_refused_with_what_there_is(self, tiny_base: Path, tmp_path: Path) -> None:
        config = comparison_config(tiny_base, tmp_path, budget={"pairs": 20})
        left = len(WORDS) - 3 - 2
        with pytest.raises(TrainingError, match=rf"budget\.pairs: 20, but the data has {left} prompts left"):
            Comparison(config, silent)

    def test_an_opposite_must_be_mutual(self, tiny_base: Path, tmp_path: Path) -> None:
        one_way = {
            "short": {"axis": "length", "opposite": "long", "instruction": "Be brief."},
            "long": {"axis": "length", "instruction": "Say much."},
        }
        with pytest.raises(
            ValueError, match=r"preferences\.short\.opposite: 'long' is no preference whose opposite is"
        ):
            comparison_config(tiny_base, tmp_path, preferences=one_way)

    def test_no_preference_is_its_own_opposite(self, tiny_base: Path, tmp_path: Path) -> None:
        own = {label: {"axis": "length", "opposite": label, "instruction": "Be so."} for label in ("short", "long")}
        with pytest.raises(ValueError, match=r"preferences\.short\.opposite: 'short' is the preference itself"):
            comparison_config(tiny_base, tmp_path, preferences=own)

    def test_who_is_compared_with_must_take_part(self, tiny_base: Path, tmp_path: Path) -> None:
        config = comparison_config(tiny_base, tmp_path, rivals=["prompting", "sft"])
        with pytest.raises(TrainingError, match="beside: 'meet_lora_joint' does not take part; prompting, sft do"):
            Comparison(config, silent)

    def test_replies_end_where_the_base_ends_them(
        self, comparison: Comparison, turns_end_otherwise: Path, tmp_path: Path
    ) -> None:
        assert comparison.setting.decoding.end_ids == (2,)
        other = Comparison(comparison_config(turns_end_otherwise, tmp_path), silent)
        assert other.setting.decoding.end_ids == (0, 2)
        for run in runs_of("sft", other, tmp_path):
            assert all(each.reply_ids[-1] == 2 for group in run.rendered.values() for each in group)


class TestTheMeasures:
    def test_every_rival_is_measured_on_the_same_prompts(self, comparison: Comparison) -> None:
        rows = rows_of(comparison)
        assert [row.name for row in rows] == list(RIVALS)
        assert missing(comparison, rows) == []
        for row in rows:
            assert row.holds.num_prompts == row.log_odds.num_prompts == 3
            if row.name in ("sft", "dpo"):  # in which nothing can be not asked for
                assert row.perplexity_ratio is None
            else:
                assert row.perplexity_ratio is not None
                assert row.perplexity_ratio.low <= row.perplexity_ratio.value <= row.perplexity_ratio.high
            assert set(row.medians) == {"short", "long"}
            assert set(row.beside) == set(RIVALS) - {row.name}

    def test_training_moves_the_log_odds_to_the_asked_side(self, comparison: Comparison) -> None:
        odds = {row.name: row.log_odds.value for row in rows_of(comparison)}
        for name in ("sft", "stage1_only", "meet_lora_joint"):
            assert odds[name] > 0, name

    def test_neutral_replies_are_the_bases_own_where_none_are_named(
        self, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        config = comparison_config(tiny_base, tmp_path, test={"prompts": 3, "max_tokens": 8})
        asked: list[Any] = []

        def speak(_: Any, prompts: list[Any], *__: Any) -> list[list[Reply]]:  # the tiny base says nothing
            asked.extend(prompts)
            return [[Reply("" if i == 1 else f"said {i}", True, 2) for i in range(len(prompts))]]

        monkeypatch.setattr("meet_training.rivals.trials.replies_of", speak)
        found = Comparison(config, silent)
        tuning, test = found.setting.split.tuning, found.setting.split.test
        neutral = found.trials.neutral()
        assert asked == [row.messages for row in (*tuning, *test)]
        assert neutral.tuning == [(tuning[0].messages, "said 0")]  # the other one said nothing
        assert neutral.test == [(row.messages, f"said {i}") for i, row in enumerate(test, start=2)]
        base = found.trials.base()
        assert (len(base.neutral_tuning), len(base.neutral)) == (1, 3)
        assert base.neutral[0].logprob < 0

    def test_a_frozen_model_is_as_likely_to_say_neutral_things(self, comparison: Comparison) -> None:
        ratios = {row.name: row.perplexity_ratio.value for row in rows_of(comparison) if row.perplexity_ratio}
        assert ratios["prompting"] == pytest.approx(1, abs=1e-6)
        assert ratios["stage1_only"] == pytest.approx(1, abs=1e-6)
        assert ratios["text_token"] != pytest.approx(1, abs=1e-4)

    def test_the_report_has_what_was_searched(self, comparison: Comparison) -> None:
        data = report_data(comparison, rows_of(comparison))
        assert data["num_test_prompts"] == 3
        assert data["searched"]["dpo"][0]["chosen"] is True
        assert data["searched"]["stage1_only"][0]["perplexity_ratio"] == pytest.approx(1, abs=1e-6)
        assert str(data["config"]["data"][0]["path"]) == "paired.jsonl"


class TestAJudge:
    def test_is_trained_once_on_prompts_of_its_own_and_its_accuracy_is_told(
        self, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        axes = {"length": {"attribute": "preference_classifier", "order": ["short", "long"]}}
        config = comparison_config(
            tiny_base,
            tmp_path,
            axes=axes,
            classifier={"pairs": 2},
            budget={"pairs": 3},
            rivals=["prompting"],
            beside="prompting",
        )
        first = Comparison(config, silent)
        dealt = first.setting.split
        others = [*dealt.test, *dealt.tuning, *next(iter(dealt.training.values()))]
        assert not {row.first for row in dealt.classifier} & {row.first for row in others}
        assert len(dealt.classifier) == 2
        assert report_data(first, rows_of(first))["classifier_accuracy"] is None  # to look trains nothing
        first.run()
        data = report_data(first, rows_of(first))
        assert data["classifier_accuracy"]["num_prompts"] == 3

        def refuse(*_: Any, **__: Any) -> None:
            raise AssertionError("trained again")

        monkeypatch.setattr("meet_training.rivals.classifier.PreferenceClassifier.train", refuse)
        again = Comparison(config, silent)
        assert report_data(again, rows_of(again)) == data
        (less, more) = (
            again.setting.judge.classifier.measure(dealt.test[0].replies[name]) for name in ("short", "long")
        )
        assert more > less

    def test_of_more_than_two_preferences_there_is_none(self, tiny_base: Path, tmp_path: Path) -> None:
        axes = {"length": {"attribute": "preference_classifier", "order": ["short", "long", "short"]}}
        with pytest.raises(ValueError, match="preference_classifier tells two preferences apart; order has 3"):
            comparison_config(tiny_base, tmp_path, axes=axes)


class TestPieces:
    def test_what_is_kept_is_not_done_again(
        self, config: CompareConfig, comparison: Comparison, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: Any) -> Measured:
            raise AssertionError("trained again")

        monkeypatch.setattr("meet_training.rivals.trials.Trials._trained", refuse)
        again = Comparison(config, silent)
        assert again.run().num_new == 0
        assert rows_of(again) == rows_of(comparison)

    def test_a_comparison_that_was_cut_goes_on(self, tiny_base: Path, tmp_path: Path) -> None:
        config = comparison_config(
            tiny_base, tmp_path, rivals=["sft", "text_token"], beside="sft", checkpoint_every_s=0.0
        )
        told: list[str] = []

        def cut(name: str, num_done: int, num_all: int, words: str) -> None:
            told.append(name)
            if name.startswith("sft long") and num_done == 3:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            Comparison(config, cut).run()
        half = Comparison(config, silent)
        assert missing(half, rows_of(half)) == ["sft", "text_token"]
        assert list((tmp_path / "kept" / "work").iterdir())  # a checkpoint to go on from
        steps: list[tuple[str, int]] = []
        rest = Comparison(config, lambda name, done, num, words: steps.append((name, done)))
        rest.run(["sft"])
        assert not any(name.startswith("sft short") for name, _ in steps)
        assert min(done for name, done in steps if name.startswith("sft long") and "stage2" in name) == 4
        assert missing(rest, rows_of(rest)) == ["text_token"]

        whole = Comparison(config.model_copy(update={"output": tmp_path / "whole"}), silent)
        whole.run(["sft"])
        (cut_row,), (whole_row,) = rows_of(rest), rows_of(whole)
        seconds = replace(cut_row.cost, seconds=0.0), replace(whole_row.cost, seconds=0.0)
        assert seconds[0] == seconds[1]
        assert replace(cut_row, cost=seconds[0]) == replace(whole_row, cost=seconds[1])

    def test_what_another_process_is_at_is_left_to_it_and_taken_over_where_it_ends_without_a_result(
        self, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("meet_training.rivals.compare.WAIT_S", 0.0)
        config = comparison_config(
            tiny_base, tmp_path, rivals=["stage1_only", "prompting"], beside="prompting", seeds=[0, 1]
        )
        other = Comparison(config, silent)
        other.trials.base()
        (job,) = RIVALS["stage1_only"].jobs(config, RIVALS["stage1_only"].points(config)[0])
        key = other.trials.key(job, 0)
        held = ExitStack()
        assert held.enter_context(claimed(config.output / "work" / key[:16]))
        steps: list[str] = []

        def step(words: str) -> None:
            if "waiting" in words:
                assert [row.name for row in rows_of(mine)] == ["prompting"]
                held.close()
            steps.append(words)

        mine = Comparison(config, silent, step)
        assert mine.run().num_new == 3
        assert [words for words in steps if "waiting" in words] == [
            "waiting for other processes, which train stage1_only"
        ]
        assert rows_of(other) == rows_of(mine)  # without being opened anew
        assert other.run().num_new == 0

    def test_two_processes_share_one_comparison(
        self, config: CompareConfig, comparison: Comparison, fork_server: ForkServer, tmp_path: Path
    ) -> None:
        names = ["prompting", "stage1_only", "stage2_only", "one_lora", "meet_lora_joint"]
        fields = config.model_dump(mode="json") | {"output": str(tmp_path / "kept"), "rivals": names}
        path = tmp_path / "compare.yaml"
        path.write_text(yaml.safe_dump(fields))
        logs = [tmp_path / "1.log", tmp_path / "2.log"]
        pids = [fork_server.start(["compare", str(path)], log) for log in logs]
        assert [fork_server.wait(pid) for pid in pids] == [0, 0], "".join(log.read_text() for log in logs)
        kept = [json.loads(line) for line in (tmp_path / "kept" / "trials.jsonl").read_text().splitlines()]
        assert sorted(line["name"] for line in kept) == sorted(["base", *(f"{name} x1, seed 0" for name in names)])
        shared = Comparison(load_compare_config(path), silent)
        alone = {row.name: row for row in rows_of(comparison)}
        assert [row.name for row in rows_of(shared)] == names
        for row in rows_of(shared):  # as of one process, to rounding
            own = alone[row.name]
            assert (row.holds, row.medians, row.cost.all_tokens) == (own.holds, own.medians, own.cost.all_tokens)
            assert row.log_odds.value == pytest.approx(own.log_odds.value, abs=1e-5)

    def test_another_budget_is_another_comparison(self, comparison: Comparison, config: CompareConfig) -> None:
        more = config.model_copy(update={"budget": config.budget.model_copy(update={"stage2_epochs": 4})})
        other = Comparison(more, silent)
        assert [row.name for row in rows_of(other)] == ["prompting"]  # nothing of it is trained
        wider = config.model_copy(update={"budget": config.budget.model_copy(update={"pairs": 5})})
        assert [row.name for row in rows_of(Comparison(wider, silent))] == ["prompting"]
        longer = config.model_copy(update={"test": config.test.model_copy(update={"max_tokens": 9})})
        assert rows_of(Comparison(longer, silent)) == []
