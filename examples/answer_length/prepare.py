"""Files for training, calibrating and testing on answer-length styles, from the data set's two parts.

    .venv/bin/python examples/answer_length/prepare.py ../shared/data

The data (AlpacaEval's model outputs, CC BY-NC 4.0) is not in this repository: answer_length_styles.train.jsonl.gz and
answer_length_styles.valid.jsonl.gz, rows of `{"instruction", "output", "style", "model"}`. It writes into
build/answer_length:

- of the first part, `train.jsonl`, where a detailed answer has at least twice the words of the concise one (a pair of
  nearly equal answers teaches that the control does nothing), and `calibration.prompts.jsonl`, prompts that nothing is
  trained on: those put by, then those whose answers were too near each other, which are the harder ones;
- of the second part, `test.prompts.jsonl`, `test.pairs.jsonl` and `test.neutral.jsonl`, its plain answers.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

WRITER = "gpt-3.5-turbo-1106"
LABELS = {"concise": "concise", "verbose": "detailed", "plain": "plain"}
APART = 2.0
"""How many times the words of its concise answer a prompt's detailed one has at least, to be trained on."""
TARGET = Path(__file__).parents[2] / "build" / "answer_length"

Row = dict[str, str]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path, help="the folder with the two parts of the data set")
    parser.add_argument("--target", type=Path, default=TARGET, help="where to write; build/answer_length otherwise")
    parser.add_argument("--num-trained", type=int, default=400, help="prompts that may be trained on; 400 otherwise")
    parser.add_argument("--any-writer", action="store_true", help="train on other writers' answers where need be")
    options = parser.parse_args()
    train = list(rows(options.data / "answer_length_styles.train.jsonl.gz", any_writer=options.any_writer))
    test = list(rows(options.data / "answer_length_styles.valid.jsonl.gz"))
    candidates = set(list(dict.fromkeys(row["prompt"] for row in train))[: options.num_trained])
    trained = list(apart(row for row in train if row["prompt"] in candidates))
    left = {row["prompt"] for row in train} - {row["prompt"] for row in trained}
    put_by, too_near = left - candidates, left & candidates
    write = partial(write_rows, options.target)
    write("train.jsonl", trained)
    write(
        "calibration.prompts.jsonl",
        prompts(row for some in (put_by, too_near) for row in train if row["prompt"] in some),
    )
    write("test.prompts.jsonl", prompts(test))
    write("test.pairs.jsonl", (row for row in test if row["preference"] != "plain"))
    write("test.neutral.jsonl", (row for row in test if row["preference"] == "plain"))


def rows(path: Path, *, any_writer: bool = False) -> Iterator[Row]:
    """One writer's answers, or all writers' in the order of the file."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            if any_writer or row["model"] == WRITER:
                yield {
                    "prompt": row["instruction"],
                    "reply": row["output"],
                    "preference": LABELS[row["style"]],
                    "writer": row["model"],
                }


def apart(found: Iterable[Row]) -> Iterator[Row]:
    """Both answers of one writer to each prompt that some writer gave answers of clearly different lengths to."""
    by_prompt: dict[str, dict[str, dict[str, Row]]] = {}
    for row in found:
        by_prompt.setdefault(row["prompt"], {}).setdefault(row["writer"], {})[row["preference"]] = row
    for by_writer in by_prompt.values():
        for writer in sorted(by_writer, key=lambda name: name != WRITER):
            concise, detailed = (by_writer[writer].get(side) for side in ("concise", "detailed"))
            if concise and detailed and len(detailed["reply"].split()) >= APART * len(concise["reply"].split()):
                yield from (concise, detailed)
                break


def prompts(found: Iterable[Row]) -> Iterator[Row]:
    return ({"prompt": prompt} for prompt in dict.fromkeys(row["prompt"] for row in found))


def write_rows(target: Path, name: str, found: Iterable[Row]) -> None:
    target.mkdir(parents=True, exist_ok=True)
    said = ({name: words for name, words in row.items() if name != "writer"} for row in found)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in said]
    (target / name).write_text("".join(lines), encoding="utf-8")
    print(f"{len(lines)} rows in {name}")


if __name__ == "__main__":
    main()
