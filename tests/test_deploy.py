"""The container's files agree with the project. No image is built here: `make test-image` does that."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
import yaml

from meet_server.access.keyring import Keyring
from meet_server.settings import Settings

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def test_targets_and_files_of_the_image() -> None:
    stages = re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE, re.MULTILINE)
    assert {"cpu", "cuda"} <= set(stages)
    assert stages[-1] == "cpu"
    for name in re.findall(r"-r (\S+)", DOCKERFILE):
        assert (ROOT / name).is_file()
    for source in re.findall(r"--from=(\S+)", DOCKERFILE):
        assert source in stages
    assert re.search(r"^USER (?!0|root)", DOCKERFILE, re.MULTILINE)
    assert "/health/ready" in DOCKERFILE


def test_the_health_check_asks_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    words = json.loads(re.findall(r"^ +CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)[0])
    assert words[:2] == ["python", "-c"]
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    status = 200

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/health/ready" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Server) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        code = words[2].replace(":8000/", f":{server.server_port}/")
        exits = []
        for status in (200, 503):  # noqa: B007
            done = subprocess.run([sys.executable, "-c", code], stderr=subprocess.DEVNULL, timeout=60, check=False)
            exits.append(done.returncode)
        server.shutdown()
        thread.join()
    assert exits == [0, 1]


def test_the_build_context_leaves_out_what_no_image_needs() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert {".git", ".venv", "bundles", "build", "**/.env"} <= set(ignored)


def test_compose() -> None:
    services = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"]
    meet = services["meet"]
    assert meet["read_only"] is True
    assert meet["build"]["target"] == "cpu"
    assert all(port.startswith("127.0.0.1:") for each in services.values() for port in each.get("ports", []))
    for service in services.values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("./"):
                assert (ROOT / "deploy" / source).exists()
    scraped = yaml.safe_load((ROOT / "deploy" / "prometheus.yaml").read_text())["scrape_configs"][0]
    assert scraped["static_configs"][0]["targets"] == ["meet:8000"]
    cuda = yaml.safe_load((ROOT / "deploy" / "compose.cuda.yaml").read_text())["services"]["meet"]
    assert cuda["build"]["target"] == "cuda"


def test_grafana_finds_the_dashboard() -> None:
    compose = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())
    mounted = {}
    for volume in compose["services"]["grafana"]["volumes"]:
        source, target, _ = volume.split(":")
        mounted[target] = ROOT / "deploy" / source
    provisioning = "/etc/grafana/provisioning"
    [provider] = yaml.safe_load(mounted[f"{provisioning}/dashboards/meet.yaml"].read_text())["providers"]
    [folder] = {target.rpartition("/")[0] for target, source in mounted.items() if source.suffix == ".json"}
    assert provider["options"]["path"] == folder
    [datasource] = yaml.safe_load(mounted[f"{provisioning}/datasources/meet.yaml"].read_text())["datasources"]
    assert datasource["url"] == "http://prometheus:9090"


def test_what_is_changed_while_serving_has_a_place_on_a_read_only_root() -> None:
    command = json.loads(re.search(r"^CMD (.*)$", DOCKERFILE, re.MULTILINE)[1])  # type: ignore[index]
    assert command[command.index("--set") + 1] == "registry=/registry"
    assert "registry" in Settings.model_fields
    assert re.search(r"^VOLUME /registry$", DOCKERFILE, re.MULTILINE)
    assert "install -d -o meet -g meet /registry" in DOCKERFILE  # a volume takes the owner of what the image has there
    compose = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())
    assert "registry:/registry" in compose["services"]["meet"]["volumes"]
    assert "registry" in compose["volumes"]


def filled(text: str, given: dict[str, str]) -> str:
    """Compose's variables put in: `${NAME:?why}` must be given, `${NAME:-default}` need not."""

    def value(found: re.Match[str]) -> str:
        name, kind, words = found.groups()
        return given[name] if kind == "?" else given.get(name, words)

    return re.sub(r"\$\{(\w+):([?-])([^}]*)\}", value, text)


def test_compose_gives_the_server_keys_and_prometheus_one_of_them() -> None:
    compose = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())
    wanted = compose["services"]["meet"]["environment"]
    given = {"MEET_USER_KEYS": "sk-user-0123456789,sk-other-0123456789", "MEET_SCRAPE_KEY": "sk-scrape-0123456789"}
    keys = Keyring(None, {name: filled(text, given) for name, text in wanted.items()})
    assert not keys.has_admin
    for shown in ("sk-user-0123456789", "sk-other-0123456789", "sk-scrape-0123456789"):
        found = keys.find(shown)
        assert found is not None
        assert found.role == "user"
    admin = {name: filled(text, given | {"MEET_ADMIN_KEYS": "sk-admin-0123456789"}) for name, text in wanted.items()}
    assert Keyring(None, admin).has_admin
    with pytest.raises(KeyError):  # without keys the server would not start on an address that others reach
        filled(wanted["MEET_USER_KEYS"], {})

    [secret] = compose["services"]["prometheus"]["secrets"]
    assert compose["secrets"][secret] == {"environment": "MEET_SCRAPE_KEY"}
    scraped = yaml.safe_load((ROOT / "deploy" / "prometheus.yaml").read_text())["scrape_configs"][0]
    assert scraped["authorization"] == {"credentials_file": f"/run/secrets/{secret}"}
