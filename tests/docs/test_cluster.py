"""The files in cluster/: what they promise of safety, and that the commands in them are there."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import typer
import yaml

from thalweg.cli.main import app

CLUSTER = Path(__file__).parents[2] / "cluster"
MANIFESTS = sorted((CLUSTER / "kubernetes").glob("*.yaml"))
SCRIPTS = sorted((CLUSTER / "slurm").glob("*.sh"))


def objects():
    found = [each for path in MANIFESTS for each in yaml.safe_load_all(path.read_text("utf-8"))]
    return {each["kind"]: each for each in found}


def test_the_pods_of_the_service():
    """Not root, nothing writable but /tmp, no capabilities, limits, and probes at the paths of the service."""
    pod = objects()["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    own = container["securityContext"]
    assert (own["readOnlyRootFilesystem"], own["allowPrivilegeEscalation"]) == (True, False)
    assert own["capabilities"]["drop"] == ["ALL"]
    assert set(container["resources"]["limits"]) == {"cpu", "memory"}
    assert container["livenessProbe"]["httpGet"]["path"] == "/livez"
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert [mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")] == ["/tmp"]
    tag = container["image"].rpartition(":")[2]
    assert re.fullmatch(r"\d+\.\d+\.\d+", tag)


def test_the_job_of_ray_can_be_submitted():
    """KubeRay reaches the dashboard of the head from other pods, so it asks for a token; the image has a dashboard."""
    cluster = objects()["RayJob"]["spec"]["rayClusterSpec"]
    assert cluster["headGroupSpec"]["rayStartParams"]["dashboard-host"] == "0.0.0.0"
    assert cluster["authOptions"] == {"mode": "token"}
    assert "ray[default]" in (CLUSTER / "Containerfile").read_text("utf-8")


def test_objects_name_the_same_pods_and_ports():
    found = objects()
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    for kind, path in (("Service", "selector"), ("PodDisruptionBudget", "selector"), ("NetworkPolicy", "podSelector")):
        selector = found[kind]["spec"][path]
        wanted = selector.get("matchLabels", selector)
        assert wanted.items() <= labels.items(), kind
    (container,) = found["Deployment"]["spec"]["template"]["spec"]["containers"]
    port = container["ports"][0]["containerPort"]
    assert container["args"][container["args"].index("--port") + 1] == str(port)
    assert found["NetworkPolicy"]["spec"]["ingress"][0]["ports"] == [{"protocol": "TCP", "port": port}]
    assert found["HorizontalPodAutoscaler"]["spec"]["metrics"][0]["pods"]["metric"]["name"] == "thalweg_queue_depth"


def test_clients_and_prometheus_are_let_in():
    """By the service's own name in the cluster, and by a pod's address; other hosts are refused by 403."""
    found = objects()
    (container,) = found["Deployment"]["spec"]["template"]["spec"]["containers"]
    args = container["args"]
    hosts = [args[i + 1] for i, word in enumerate(args) if word == "--allowed-host"]
    name = found["Service"]["metadata"]["name"]
    assert {name, f"{name}.default.svc", "$(POD_IP)"} <= set(hosts)
    assert container["env"] == [{"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}]


def used():
    """(file, words after thalweg) of each command in the files."""
    for path in (*SCRIPTS, *MANIFESTS):
        text = path.read_text("utf-8").replace("\\\n", " ")
        for line in re.findall(r"^\s*(?:thalweg|.*-m thalweg) (.*)$", text, re.MULTILINE):
            yield path.name, shlex.split(line.replace("&", ""))
    args = objects()["Deployment"]["spec"]["template"]["spec"]["containers"][0]["args"]
    yield "serve.yaml", args


def test_commands_and_options_are_there():
    """A mutant with --engin or a command that is not there is told."""
    seen = set()
    for name, words in used():
        command = typer.main.get_command(app)
        while getattr(command, "commands", None) and words:
            if words[0] not in command.commands:  # of an extra that is not in this version
                break
            command, words = command.commands[words[0]], words[1:]
        if getattr(command, "commands", None):
            assert words[0] == "serve", (name, words)
            continue
        seen.add(command.name)
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        assert {word for word in words if word.startswith("-")} <= known, name
    assert {"train", "score"} <= seen


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_of_slurm(path):
    """They parse, stop at the first error, and can be run."""
    text = path.read_text("utf-8")
    assert "set -euo pipefail" in text
    assert path.stat().st_mode & 0o111
    if shutil.which("bash"):
        assert subprocess.run(["bash", "-n", path]).returncode == 0


def test_the_container():
    """Not root; bases by a version, never `latest`."""
    text = (CLUSTER / "Containerfile").read_text("utf-8")
    bases = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    assert len(bases) == 2
    assert all(re.fullmatch(r"[\w./-]+:\d+\.\d+\.\d+[\w.-]*(@sha256:[0-9a-f]{64})?", base) for base in bases)
    assert re.findall(r"^USER (\S+)", text, re.MULTILINE)[-1].split(":")[0] not in ("root", "0")
