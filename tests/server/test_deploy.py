"""The Kubernetes manifests: what they say to the server is what it understands."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from meet_cli.commands.serve import serve
from meet_server.http.paths import OPEN
from meet_server.settings import read_settings

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"


def manifest(name: str) -> Any:
    return yaml.safe_load((FOLDER / name).read_text())


def test_every_file_is_named_and_every_reference_is_met() -> None:
    kustomization = manifest("kustomization.yaml")
    resources = {name: manifest(name) for name in kustomization["resources"]}
    used = {*resources, *kustomization["configMapGenerator"][0]["files"], "kustomization.yaml"}
    assert used == {path.name for path in FOLDER.iterdir()}
    spec = resources["deployment.yaml"]["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in spec["volumes"]}
    by_name = {volume["name"]: volume for volume in spec["volumes"]}
    assert by_name["bundles"]["persistentVolumeClaim"]["claimName"] == resources["volume.yaml"]["metadata"]["name"]
    assert by_name["settings"]["configMap"]["name"] == kustomization["configMapGenerator"][0]["name"]
    labels = resources["deployment.yaml"]["spec"]["template"]["metadata"]["labels"]
    assert resources["service.yaml"]["spec"]["selector"] == labels


def test_arguments_go_on_where_the_entrypoint_of_the_image_ends() -> None:
    """`meet serve` is the image's; what follows is one bundle and options of that command."""
    dockerfile = (FOLDER.parents[1] / "Dockerfile").read_text()
    [entrypoint, command] = [json.loads(each) for each in re.findall(r"^(?:ENTRYPOINT|CMD) (.*)$", dockerfile, re.M)]
    assert entrypoint == ["meet", "serve"]
    (container,) = manifest("deployment.yaml")["spec"]["template"]["spec"]["containers"]
    options = {name for parameter in serve.params for name in parameter.opts}
    for arguments in (command, container["args"]):
        bundle, *rest = arguments
        assert bundle.startswith("/bundle")
        assert set(rest[::2]) <= options


def test_probes_need_no_key_and_there_is_time_to_stop() -> None:
    spec = manifest("deployment.yaml")["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    probes = [container[name]["httpGet"] for name in ("startupProbe", "readinessProbe", "livenessProbe")]
    assert {probe["path"] for probe in probes} <= OPEN
    settings = read_settings(FOLDER / "settings.yaml", [], {"bundle": Path("x")})
    assert settings.drain_delay_s + settings.shutdown_grace_s + 10 < spec["terminationGracePeriodSeconds"]
    assert settings.drain_delay_s > 2 * container["readinessProbe"]["periodSeconds"]


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl here")
def test_kubectl_renders_them() -> None:
    """On this side alone: no cluster is asked."""
    rendered = subprocess.run(["kubectl", "kustomize", str(FOLDER)], capture_output=True, text=True, check=False)
    assert rendered.returncode == 0, rendered.stderr
    kinds = {each["kind"]: each for each in yaml.safe_load_all(rendered.stdout)}
    assert set(kinds) == {"ConfigMap", "Deployment", "PersistentVolumeClaim", "Service"}
    spec = kinds["Deployment"]["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert container["image"] != "meet"  # the name that the kustomization gives
    settings = next(volume["configMap"]["name"] for volume in spec["volumes"] if "configMap" in volume)
    assert settings == kinds["ConfigMap"]["metadata"]["name"]
    assert kinds["ConfigMap"]["data"]["settings.yaml"] == (FOLDER / "settings.yaml").read_text()
