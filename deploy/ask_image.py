"""Starts an image's command inside its root and asks the server: ready, healthy, keys, one reply, what it may write.

Run by deploy/try_image.sh, with what `buildah inspect` says of the image. Needs nothing but Python.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import subprocess
import sys
import time
from typing import Any

KEY = "sk-key-of-this-trial"
READY_WITHIN_S = 400


def as_the_image(config: dict[str, Any], command: list[str]) -> list[str]:
    """The command as the image's user, without capabilities and without a way to get any."""
    user = config["User"]
    return [
        "setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "--no-new-privs", "--bounding-set=-all",
        "--inh-caps=-all", *command,
    ]  # fmt: skip


def ask(path: str, body: dict[str, Any] | None = None, key: str | None = None) -> tuple[int, bytes]:
    """Status and body; status 0 where nothing listens."""
    connection = http.client.HTTPConnection("127.0.0.1", 8000, timeout=60)
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
    try:
        connection.request("GET" if body is None else "POST", path, body and json.dumps(body), headers)
        response = connection.getresponse()
        return response.status, response.read()
    except ConnectionError as error:
        return 0, str(error).encode()
    finally:
        connection.close()


def check(what: str, held: bool, shown: object = "") -> None:
    sys.stdout.write(f"{'yes' if held else 'NO '}  {what}  {shown}".rstrip() + "\n")
    sys.stdout.flush()
    if not held:
        raise SystemExit(1)


def main(config: dict[str, Any]) -> None:
    environment = dict(each.split("=", 1) for each in config["Env"])
    kind, *healthcheck = config["Healthcheck"]["Test"]
    check("the health check is a command", kind == "CMD")

    def run(command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            as_the_image(config, command), env=environment, capture_output=True, text=True, check=False
        )

    who = run(["python", "-c", "import os; print(os.getuid(), os.access('/', os.W_OK), os.access('/tmp', os.W_OK))"])
    check("not root; may write to /tmp and not to /", who.stdout.split()[1:] == ["False", "True"], who.stdout.strip())
    check("uid is not 0", who.stdout.split()[0] not in ("", "0"))
    capabilities = run(["sed", "-n", "s/^CapBnd:\\s*//p", "/proc/self/status"]).stdout.strip()
    check("no capabilities to be had", int(capabilities, 16) == 0, capabilities)

    refused = run([*config["Entrypoint"], *config["Cmd"]])
    last = (refused.stderr.strip().splitlines() or [""])[-1]
    check("refused without keys on an address that others reach", refused.returncode == 2 and "key" in last, last)
    check("the health check fails where nothing runs", run(healthcheck).returncode != 0)

    started = time.monotonic()
    server = subprocess.Popen(
        as_the_image(config, [*config["Entrypoint"], *config["Cmd"]]), env=environment | {"MEET_USER_KEYS": KEY}
    )
    try:
        while ask("/health/ready")[0] != 200:
            if server.poll() is not None or time.monotonic() > started + READY_WITHIN_S:
                check("ready", False, f"status {server.poll()}")
            time.sleep(1)
        check("ready", True, f"{time.monotonic() - started:.0f} s after the start")
        check("the health check holds", run(healthcheck).returncode == 0)
        check("no answer without a key", ask("/v1/models")[0] == 401)
        model = json.loads(ask("/v1/models", key=KEY)[1])["data"][0]["id"]
        preference = json.loads(ask("/v1/preferences", key=KEY)[1])["data"][0]["id"]
        body = {
            "model": model, "messages": [{"role": "user", "content": "Why is the sky blue?"}], "max_tokens": 24,
            "temperature": 0, "preference": preference,
        }  # fmt: skip
        status, reply = ask("/v1/chat/completions", body, KEY)
        check(f"a reply of {model} under {preference}", status == 200, reply.decode())
        server.send_signal(signal.SIGTERM)
        code = server.wait(timeout=60)
        check("ends on SIGTERM", code in (0, 128 + signal.SIGTERM, -signal.SIGTERM), f"status {code}")
    finally:
        with contextlib.suppress(ProcessLookupError):
            server.kill()


if __name__ == "__main__":
    with open(sys.argv[1]) as file:
        main(json.load(file)["Docker"]["config"])
