"""docs/PYTHON.md is true: its snippets run in order, on a tiny model."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

DOC = Path(__file__).parents[2] / "docs" / "PYTHON.md"


@pytest.mark.parametrize("controls", [{"kind": "lora", "rank": 4}])
def test_the_snippets_run_in_order(
    controls: dict[str, object],
    tiny_base: Path,
    preference_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "train.yaml").write_text(
        yaml.safe_dump(
            {
                "name": "tiny",
                "base": str(tiny_base),
                "output": str(tmp_path / "bundle"),
                "data": [{"path": str(preference_file), "labels": {"short": "concise", "long": "detailed"}}],
                "preferences": {"concise": {"axis": "length", "opposite": "detailed"}, "detailed": {"axis": "length"}},
                "controls": controls,
                "precision": "float32",
            }
        )
    )
    monkeypatch.chdir(tmp_path)
    snippets = re.findall(r"```python\n(.*?)```", DOC.read_text(), flags=re.S)
    assert len(snippets) == 4
    scope: dict[str, object] = {}
    for snippet in snippets:
        exec(compile(snippet, str(DOC), "exec"), scope)
    assert "stage1 1/2 {'concise':" in capsys.readouterr().out
    assert (tmp_path / "mixed" / "adapter_model.safetensors").is_file()


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, meet_training; assert 'torch' not in sys.modules; meet_training.TrainConfig; print('fine')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "fine\n"


def test_every_public_name_is_there_and_others_are_not() -> None:
    import meet_training

    assert all(getattr(meet_training, name) is not None for name in meet_training.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'tune'"):
        meet_training.tune  # noqa: B018


@pytest.mark.parametrize(
    "path",
    sorted((DOC.parents[1] / "examples").glob("*/train*.yaml"))
    + sorted((DOC.parents[1] / "examples" / "hub").glob("*.yaml")),
    ids=lambda path: path.name,
)
def test_the_examples_are_valid_configurations(path: Path) -> None:
    from meet_training import load_config

    config = load_config(path).resolved()
    assert config.stage1.learning_rate
    assert config.stage2.control_learning_rate
