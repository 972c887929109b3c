"""The container's files agree with the project. No image is built here."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

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


def test_the_build_context_leaves_out_what_no_image_needs() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert {".git", ".venv", "bundles"} <= set(ignored)


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
