"""Every piece of YAML and JSON in the documentation is read by the model that reads it in earnest.

A fragment must be a valid part of one of the configurations: all of them refuse fields that they do not know.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from documented import ROOT, Block, blocks
from pydantic import ValidationError
from ray_arguments import BUILDER, check_arguments

from meet_bundle import LoraControls
from meet_server.access.keyring import KeyFile
from meet_server.engine import lora_settings
from meet_server.settings import Settings
from meet_training.config import TrainConfig
from meet_training.data.dataset import open_data
from meet_training.data.generate_config import GenerateConfig
from meet_training.data_config import DataConfig
from meet_training.evaluation.evaluation_config import EvaluationConfig

LABELS = ("concise", "detailed", "bulleted", "prose", "steps", "plain")
MINIMAL: dict[str, Any] = {
    "name": "page",
    "base": "smollm2-135m",
    "output": "bundles/page",
    "data": [{"path": "data.jsonl"}],
    "preferences": {label: {"axis": "any"} for label in LABELS},
}
MODELS: dict[str, Callable[[dict[str, Any]], object]] = {
    "meet train": lambda content: TrainConfig.model_validate(MINIMAL | content).resolved(),
    "meet data generate": GenerateConfig.model_validate,
    "meet eval": EvaluationConfig.model_validate,
    "meet serve": lambda content: Settings.model_validate({"bundle": "bundles/page", **content}),
    "a file of keys": KeyFile.model_validate,
}


@pytest.mark.parametrize("block", blocks("yaml"), ids=lambda block: block.place)
def test_yaml_is_part_of_a_configuration(block: Block) -> None:
    content = yaml.safe_load(block.content)
    if "apiVersion" in content:
        check_overlay(content)
        return
    if "applications" in content:
        for application in content["applications"]:
            assert application["import_path"] == BUILDER
            check_arguments(application["args"])
        return
    said = {}
    for name, read in MODELS.items():
        try:
            read(content)
        except ValidationError as error:
            said[name] = error.errors()[0]["msg"] + str(error.errors()[0]["loc"])
    assert len(said) < len(MODELS), f"{block.place} is part of no configuration: {said}"


@pytest.mark.parametrize("block", [b for b in blocks("yaml") if b.page == "docs/TRL.md"], ids=lambda block: block.place)
def test_data_in_trls_forms_is_recognised(block: Block) -> None:
    content = yaml.safe_load(block.content)
    for data in TrainConfig.model_validate(MINIMAL | content).data if "data" in content else ():
        opened = open_data(data.relative_to(ROOT / "examples" / "data"))
        found = {example.preference for _, example, _ in opened.labelled() if example is not None}
        assert found == {"concise", "detailed"}


@pytest.mark.parametrize("block", blocks("json"), ids=lambda block: block.place)
def test_json_is_rows_of_data(block: Block, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in block.content.splitlines()]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    examples = [example for _, example, _ in open_data(DataConfig(path=path)).labelled()]
    assert len(examples) == len(rows)


def test_the_page_on_gpus_says_what_the_server_sets() -> None:
    page = (ROOT / "docs" / "GPUS.md").read_text()
    controls = LoraControls(rank=8, alpha=16, target_modules=("q_proj",), shared_a=True)
    defaults = lora_settings.lora_defaults(controls, cpu=False)
    arguments = set(re.findall(r"^\| `--([\w-]+)` \|", page, re.MULTILINE))
    assert arguments == {*defaults, "max-cpu-loras"} - {"enable-lora"}
    assert f"| `--max-loras` | {lora_settings.SLOTS} |" in page
    assert f"| `--max-cpu-loras` | all controls and {lora_settings.SLOTTED_MIXES} mixes |" in page


def check_overlay(content: dict[str, Any]) -> None:
    """What an overlay changes stands in the kustomization that it lies on."""
    folder = ROOT / "deploy" / "kubernetes"
    base = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert content["resources"] == ["../deploy/kubernetes"]
    named = {image["newName"] for image in base["images"]}
    assert {image["name"] for image in content["images"]} <= named
    manifests = {(one["kind"], one["metadata"]["name"]): one for one in map(read_manifest, base["resources"])}
    for change in content["patches"]:
        place: Any = manifests[change["target"]["kind"], change["target"]["name"]]
        for step in yaml.safe_load(change["patch"]):
            *outer, last = step["path"].strip("/").split("/")
            inner = place
            for name in outer:
                inner = inner[int(name) if isinstance(inner, list) else name]
            assert (last in inner) == (step["op"] == "replace"), step


def read_manifest(name: str) -> Any:
    return yaml.safe_load((ROOT / "deploy" / "kubernetes" / name).read_text())
