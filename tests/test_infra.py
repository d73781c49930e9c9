"""What stands in k8s/ and docker/, as far as a machine without a cluster can tell."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).parent.parent
OVERLAYS_AND_TEMPLATES = ("job.yaml", "configmap.yaml", "fetch.yaml", "kind.yaml", "gke.yaml", "kind_cluster.yaml")
MANIFESTS = [path for path in sorted((ROOT / "k8s").glob("*.yaml")) if path.name not in OVERLAYS_AND_TEMPLATES]


@pytest.mark.parametrize("version", ["1.33", "1.34", "1.37"])
@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_manifests_are_what_kubernetes_takes(path: Path, version: str) -> None:
    documents = list(yaml.safe_load_all(path.read_text()))
    assert documents
    for document in documents:
        kubernetes_validate.validate(document, version, strict=True)


def test_pods_keep_to_the_restricted_profile() -> None:
    """PodSecurity's rules, which the schema does not know."""
    pods = [
        yaml.safe_load((ROOT / "k8s" / "job.yaml").read_text())["spec"]["template"]["spec"],
        yaml.safe_load((ROOT / "k8s" / "fetch.yaml").read_text())["spec"],
    ]
    for path in MANIFESTS:
        pods += [d["spec"]["template"]["spec"] for d in yaml.safe_load_all(path.read_text()) if d["kind"] == "Deployment"]
    assert len(pods) == 3
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
        assert not any("hostPath" in volume for volume in pod["volumes"])
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert container["securityContext"]["readOnlyRootFilesystem"]


def test_what_is_named_is_there() -> None:
    """Accounts, claims and the namespace that the Job asks for."""
    known = {
        (document["kind"], document["metadata"]["name"])
        for path in MANIFESTS
        for document in yaml.safe_load_all(path.read_text())
    }
    pod = yaml.safe_load((ROOT / "k8s" / "job.yaml").read_text())["spec"]["template"]["spec"]
    claims = [v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v]
    assert ("ServiceAccount", pod["serviceAccountName"]) in known
    assert {("PersistentVolumeClaim", name) for name in claims} <= known
    assert ("Namespace", "flex-rl") in known


def test_the_dockerfile_is_clean_and_copies_what_is_there() -> None:
    path = ROOT / "docker" / "Dockerfile"
    done = subprocess.run(
        [Path(sys.executable).parent / "hadolint", "--config", ROOT / ".hadolint.yaml", path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    for line in re.findall(r"^COPY (.+) \S+$", path.read_text(), re.MULTILINE):
        for pattern in line.split():
            assert "$" in pattern or list(ROOT.glob(pattern)), pattern
