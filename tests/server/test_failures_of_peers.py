"""What others' servers have got wrong with many adapters, and the tests that it does not happen here.

Each failure names the tests that hold it, here or elsewhere; the list itself is checked, so that it cannot rot.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from running_server import Server

from meet_server.engine import releases

HERE = "test_failures_of_peers"
HELD_BY: dict[str, list[str]] = {
    "a mismatched adapter silently serves the base": [
        "test_proof::test_the_engine_proves_right_controls_and_refuses_falsified_ones",
        "test_record::test_what_was_trained_for_another_model_or_altered_since",
        "test_changing::test_a_control_that_is_not_what_its_probe_says_never_gets_in",
    ],
    "a stale prefix cache after a reload under the same name": [
        "test_mixed_batches::test_a_control_of_other_content_under_the_same_name",
        "test_changing::test_added_updated_rolled_back_and_removed",
    ],
    "the same name with another id corrupts the cache": [
        "test_live::test_ids_are_never_given_twice",
        "test_contracts::test_lora_request_and_the_prefix_cache_key",
        "test_mixed_batches::test_a_control_of_other_content_under_the_same_name",
    ],
    "an unload never reaches the engine, or a reload keeps two copies": [
        "test_changing::test_added_updated_rolled_back_and_removed",
        "test_mixes::test_mixes_of_a_retired_control_leave_once_their_requests_end_and_free_it",
    ],
    "a reload reads the disk at each step": [f"{HERE}::test_adapters_are_read_once"],
    "adapters are loaded without authentication": [
        f"{HERE}::test_nobody_loads_adapters_by_vllms_own_routes",
        "test_keys::test_what_changes_the_server_needs_an_admin_key",
    ],
    "starvation when adapter slots are full": [
        "test_slots::test_mixes_in_slots_equal_transformers_and_peft",
        "test_fair_queue::test_turns_go_round_between_keys_and_within_a_key_between_preferences",
        "test_fair_queue::test_a_full_queue_makes_room_for_who_waits_with_few",
    ],
    "no metrics per adapter": ["test_metrics::test_the_running_server_counts_by_preference"],
    "the base is slower once LoRA is on": [
        "test_resident_lora::test_without_an_adapter_in_the_batch_only_the_base_layer_is_called"
    ],
    "a long prompt with LoRA runs out of memory": [f"{HERE}::test_prompts_as_long_as_the_context"],
    "a bad adapter kills the engine": [
        "test_mixed_batches::test_what_the_workers_refuse_is_refused_by_name_and_the_engine_lives_on",
        "test_record::test_tensors_that_do_not_fit",
        "test_changing::test_a_control_that_is_not_what_its_probe_says_never_gets_in",
    ],
    "negative weights do not subtract": [
        "test_mixed_batches::test_together_equals_alone_equals_transformers_and_peft",
        "test_serving::test_mixes_and_strengths",
    ],
    "an adapter is reported loaded but cannot be asked for": [
        f"{HERE}::test_whatever_is_listed_answers",
        "test_changing::test_added_updated_rolled_back_and_removed",
    ],
    "an error of a resolver becomes a 500": [
        f"{HERE}::test_names_that_resolve_to_nothing_are_the_clients_mistake",
        "test_serving::test_refusals_reach_the_client_as_openai_errors",
    ],
    "a cache is used again across adapters": [
        f"{HERE}::test_a_long_prompt_that_others_asked_first",
        "test_batching::test_32_at_once_equal_each_alone_equal_transformers_and_peft",
    ],
}


@pytest.mark.parametrize("failure", HELD_BY)
def test_each_failure_is_held_by_tests_that_there_are(failure: str) -> None:
    for held in HELD_BY[failure]:
        module, _, test = held.partition("::")
        tree = ast.parse((Path(__file__).parent / f"{module}.py").read_text())
        assert test in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, held


@pytest.fixture(scope="module")
def http(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=120) as client:
        yield client


def complete(http: httpx.Client, **fields: Any) -> str:
    body = {"model": "tiny", "prompt": "What is rain?", "max_tokens": 8, "temperature": 0, "ignore_eos": True}
    reply = http.post("/v1/completions", json={**body, **fields})
    assert reply.status_code == 200, reply.text
    return str(reply.json()["choices"][0]["text"])


def test_adapters_are_read_once() -> None:
    """vLLM reads an adapter anew at each step if its request says so; none of ours ever does."""
    assert releases.lora_request("concise@0", 1 << 20, Path("/controls/concise")).load_inplace is False


@pytest.mark.parametrize("path", ["/v1/load_lora_adapter", "/v1/unload_lora_adapter"])
def test_nobody_loads_adapters_by_vllms_own_routes(http: httpx.Client, path: str) -> None:
    reply = http.post(path, json={"lora_name": "x", "lora_path": "/tmp"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (403, "admin_key_required")


def test_prompts_as_long_as_the_context(server: Server, http: httpx.Client) -> None:
    prompt = [7 + index % 200 for index in range(500)]
    for preference in ("concise", {"concise": 0.4, "detailed": 0.4}, None):
        complete(http, prompt=[prompt] * 8, preference=preference)
    assert not server.engine.is_dead


def test_whatever_is_listed_answers(http: httpx.Client) -> None:
    models = [model["id"] for model in http.get("/v1/models").json()["data"]]
    preferences = [each["id"] for each in http.get("/v1/preferences").json()["data"]]
    assert models == ["tiny", *(f"tiny:{name}" for name in preferences)]
    replies = {complete(http, model=model) for model in models}
    assert replies == {complete(http, preference=name) for name in (None, *preferences)}
    assert len(replies) == len(models)


@pytest.mark.parametrize(
    "name", ["angry", "con cise", "concise/../detailed", "concise@0", "meet-mix:1=1", "x" * 64, "ä"]
)
def test_names_that_resolve_to_nothing_are_the_clients_mistake(http: httpx.Client, name: str) -> None:
    for fields in ({"preference": name}, {"model": f"tiny:{name}"}, {"model": name}):
        reply = http.post("/v1/completions", json={"model": "tiny", "prompt": "x", "max_tokens": 1, **fields})
        assert reply.status_code in (400, 404), reply.text
        assert "error" in reply.json()


def test_a_long_prompt_that_others_asked_first(http: httpx.Client) -> None:
    """Whole blocks of it are in the prefix cache, of another preference."""
    prompt = [11 + index % 97 for index in range(200)]
    order = ("concise", "detailed", None)
    first = {name: complete(http, prompt=prompt, preference=name) for name in order}
    again = {name: complete(http, prompt=prompt, preference=name) for name in reversed(order)}
    alone = {name: complete(http, prompt=prompt, preference=name, cache_salt=f"none-but-{name}") for name in order}
    assert first == again == alone
    assert len(set(first.values())) == 3
