"""What tests of rivals share: data in which every prompt has a reply of every preference, and a small comparison."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from meet_training.rivals.compare_config import CompareConfig

WORDS = ("rain", "snow", "wind", "fog", "hail", "dew", "ice", "sun", "mist", "sky", "sea", "sand")
REPLIES = {
    "short": "{word}.",
    "long": "It is {word}, as one says of {word} in all the days of {word} that there are.",
}


def write_data(path: Path, replies: dict[str, str] = REPLIES) -> Path:
    """Twelve prompts, each with a reply of every preference."""
    rows = [
        {"prompt": f"What is {word}?", "reply": text.format(word=word), "preference": name}
        for word in WORDS
        for name, text in replies.items()
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_neutral(path: Path) -> Path:
    """Replies that have nothing to do with any preference; the tiny base says none of its own."""
    rows = [{"prompt": f"And {word}?", "reply": f"One can see {word}."} for word in WORDS[:5]]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def fields(base: Path, folder: Path) -> dict[str, Any]:
    """The fields of a comparison of two preferences on the tiny model."""
    return {
        "base": str(base),
        "output": folder / "kept",
        "data": [{"path": write_data(folder / "paired.jsonl")}],
        "preferences": {
            "short": {"axis": "length", "opposite": "long", "instruction": "Be brief."},
            "long": {"axis": "length", "opposite": "short", "instruction": "Say much."},
        },
        "axes": {"length": {"attribute": "characters", "order": ["short", "long"]}},
        "budget": {"pairs": 4, "stage1_epochs": 2, "stage2_epochs": 2, "batch_size": 2},
        "tuning": {"prompts": 2, "rate_factors": [1.0], "betas": [0.1]},
        "test": {"prompts": 3, "max_tokens": 8, "neutral": write_neutral(folder / "neutral.jsonl")},
        "sizes": {"lora_rank": 2, "num_virtual_tokens": 4},
        "seeds": [0],
        "precision": "float32",
        "tokens_per_pass": 512,
        "max_length": 512,
    }


def comparison_config(base: Path, folder: Path, **more: Any) -> CompareConfig:
    """That comparison, with other fields where they are given."""
    return CompareConfig.model_validate(fields(base, folder) | more)


def silent(name: str, num_done: int, num_all: int, words: str) -> None:
    """Hears progress and says nothing."""
