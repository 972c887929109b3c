"""What a user names as output is written, and is afterwards the kind of thing that it was."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from meet_bundle.output import refusal, write_output


def test_a_pipe_is_written_into(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    link = tmp_path / "link"
    link.symlink_to(pipe)
    for path in (pipe, link):
        read: list[bytes] = []
        # Opened for both first: if nothing is written into the pipe, the reader must not wait for ever.
        end = os.open(pipe, os.O_RDWR)
        reader = threading.Thread(target=lambda read=read, end=end: read.append(os.read(end, 100)), daemon=True)
        reader.start()
        assert refusal(path) is None
        write_output(path, b"figures")
        reader.join(10)
        os.close(end)
        assert read == [b"figures"]
        assert pipe.is_fifo()
    assert link.is_symlink()
    assert sorted(tmp_path.iterdir()) == [link, pipe]


@pytest.mark.parametrize("content", ["old", None])
def test_what_a_link_leads_to_is_written(tmp_path: Path, content: str | None) -> None:
    folder, link = tmp_path / "elsewhere", tmp_path / "link.json"
    folder.mkdir()
    if content is not None:
        (folder / "figures.json").write_text(content)
    link.symlink_to("elsewhere/figures.json")
    assert refusal(link) is None
    write_output(link, b"new")
    assert link.is_symlink()
    assert (folder / "figures.json").read_bytes() == b"new"
    assert list(folder.iterdir()) == [folder / "figures.json"]


def test_stdout_that_was_redirected_keeps_what_was_printed(tmp_path: Path) -> None:
    out, link = tmp_path / "out.txt", tmp_path / "stdout"
    link.symlink_to("/proc/self/fd/1")
    code = (
        "from pathlib import Path; from meet_bundle.output import write_output\n"
        f"print('table'); write_output(Path({str(link)!r}), b'figures\\n'); print('end')"
    )
    with out.open("wb") as file:
        subprocess.run([sys.executable, "-c", code], stdout=file, check=True, timeout=60)
    assert out.read_text() == "table\nfigures\nend\n"
    assert link.is_symlink()


def test_what_cannot_be_written_is_known_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, link, pipe, round_ = (tmp_path / name for name in ("file", "link", "pipe", "round"))
    link.symlink_to("nowhere/figures.json")
    round_.symlink_to("round")
    os.mkfifo(pipe)
    assert refusal(file) is None
    assert refusal(tmp_path / "no/file") == f"there is no folder {tmp_path / 'no'}"
    assert refusal(link) == f"there is no folder {tmp_path / 'nowhere'}"
    assert refusal(round_) == f"{round_}: Too many levels of symbolic links"
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write anywhere
    assert refusal(file) == f"the folder {tmp_path} is not writable"
    assert refusal(pipe) == f"{pipe} is not writable"
