"""A server of our own: it is there for as long as it is needed, and never longer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from meet_cli.errors import CommandError
from meet_cli.local_server import free_port, meet_server_command, plain_server_command, running_server

FAKE = Path(__file__).with_name("fake_openai.py")


@pytest.fixture(autouse=True)
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logs that are kept go where the test's files go."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def command(port: int) -> list[str]:
    return [sys.executable, str(FAKE), str(port)]


def python(code: str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(code)]


def is_alive(pid: int) -> bool:
    """Is there such a process, and does it still run (a zombie that nobody reaps does not)?"""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def wait_until_dead(pid: int, timeout_s: float = 10) -> bool:
    deadline = time.monotonic() + timeout_s
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not is_alive(pid)


def test_it_answers_inside_the_block_and_is_gone_after_it() -> None:
    port = free_port()
    with running_server(command(port), port, what="the fake") as server:
        with urllib.request.urlopen(f"{server.url}/health") as response:
            assert response.status == 200
        pid = server.process.pid
    assert not is_alive(pid)
    assert server.process.returncode is not None


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_it_is_gone_after_an_error_and_after_ctrl_c(error: type[BaseException]) -> None:
    port = free_port()
    with pytest.raises(error), running_server(command(port), port, what="the fake") as server:
        raise error
    assert not is_alive(server.process.pid)


def test_one_that_stops_early_is_one_error_with_the_end_of_its_log() -> None:
    code = """
        import sys
        print("starting")
        print("meet: error: there is no bundle")
        sys.exit("some noise at exit")
    """
    started = time.monotonic()
    with pytest.raises(CommandError) as caught, running_server(python(code), 1, what="the server"):
        pass
    assert caught.value.message == "the server stopped before it was ready: there is no bundle"
    (note,) = caught.value.__notes__
    heading, *lines = note.splitlines()
    assert lines == ["  starting", "  meet: error: there is no bundle", "  some noise at exit"]
    kept = Path(heading.removeprefix("the end of the server's log, which is kept as ").removesuffix(":"))
    assert kept.read_text() == "starting\nmeet: error: there is no bundle\nsome noise at exit\n"
    assert time.monotonic() - started < 10


def test_one_that_stops_early_and_says_one_line_needs_no_note() -> None:
    with pytest.raises(CommandError) as caught:  # noqa: SIM117
        with running_server(python("import sys; sys.exit('no')"), 1, what="the server"):
            pass
    assert caught.value.message == "the server stopped before it was ready: no"
    assert not hasattr(caught.value, "__notes__")


def test_one_that_is_never_ready_is_given_up() -> None:
    code = "import time; print('loading', flush=True); time.sleep(60)"
    with pytest.raises(CommandError, match=r"not ready within 1 s: loading"):  # noqa: SIM117
        with running_server(python(code), 1, what="the server", ready_timeout_s=1.0):
            pass


def test_one_that_dies_while_it_is_asked_explains_the_error() -> None:
    port = free_port()

    def die() -> None:
        with running_server(command(port), port, what="the fake") as server:
            # What the fake prints when it is interrupted stands for an engine's last words.
            server.process.send_signal(signal.SIGINT)
            server.wait()
            raise CommandError("it stopped answering")

    with pytest.raises(CommandError) as caught:
        die()
    assert "KeyboardInterrupt" in "".join(caught.value.__notes__)


def test_one_that_will_not_stop_is_killed_with_its_children(tmp_path: Path) -> None:
    port = free_port()
    code = f"""
        import signal, subprocess, sys
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = subprocess.Popen([sys.executable, "-c", "import time, signal; "
            "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"])
        open({str(tmp_path / "pid")!r}, "w").write(str(child.pid))
        sys.argv = ["fake", "{port}"]
        exec(open({str(FAKE)!r}).read())
    """
    with running_server(python(code), port, what="the fake", stop_timeout_s=0.3) as server:
        pass
    assert not is_alive(server.process.pid)
    assert wait_until_dead(int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_a_signal_to_the_command_ends_its_server_too(number: signal.Signals, tmp_path: Path) -> None:
    code = f"""
        import signal, sys
        from pathlib import Path
        import click
        from meet_cli.local_server import free_port, running_server
        from meet_cli.main import run

        signal.signal(signal.SIGINT, signal.default_int_handler)  # which jobs in a shell's background are born without
        signal.signal(signal.SIGHUP, signal.SIG_DFL)

        def serve():
            port = free_port()
            with running_server([sys.executable, {str(FAKE)!r}, str(port)], port, what="the fake") as server:
                Path({str(tmp_path / "pid")!r}).write_text(str(server.process.pid))
                server.wait()

        sys.exit(run(click.Command("serve", callback=serve), []))
    """
    env = {**os.environ, "PYTHONPATH": ":".join(sys.path), "TMPDIR": str(tmp_path)}
    with subprocess.Popen(python(code), env=env, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 30
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(number)
        assert process.wait(30) == (-number if number == signal.SIGKILL else 128 + number)
    pid = int((tmp_path / "pid").read_text())
    if number == signal.SIGKILL:  # nobody is left to wait for the server, or to remove its log
        assert wait_until_dead(pid)
    else:
        assert not is_alive(pid)
        assert not list(tmp_path.glob("meet-server-*"))


def test_another_server_on_the_port_is_not_taken_for_ours(server: Any) -> None:
    with pytest.raises(CommandError, match="another server does"):  # noqa: SIM117
        with running_server(command(server.server_port), server.server_port, what="the fake"):
            pass


def test_command_lines() -> None:
    assert meet_server_command(Path("b"), 7, ("--x", "1"))[1:] == [
        "-m", "meet_cli.commands.serve", "b", "--host", "127.0.0.1", "--port", "7", "--", "--x", "1",
    ]  # fmt: skip
    assert plain_server_command(Path("m"), "n", 7)[1:] == [
        "-m", "meet_server.plain", "m", "--port", "7", "--name", "n", "--",
    ]  # fmt: skip
