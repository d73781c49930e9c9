"""What stands in k8s/ and docker/, as far as a machine without a cluster can tell."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from flexrl import archive, job_rules, snapshots

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
        for document in yaml.safe_load_all(path.read_text()):
            if document["kind"] in ("Deployment", "CronJob"):
                spec = document["spec"]
                pods.append(spec.get("jobTemplate", {"spec": spec})["spec"]["template"]["spec"])
    assert len(pods) == 4
    for pod in pods:
        assert not list(job_rules.of_security(pod))


CHART_IMAGE = "registry.example/flex-rl@sha256:" + "ab" * 32
MANY_GPUS = "gpus=2,sharding=tensor_parallel,nodes=2,monitoring=true,autoscaling.enabled=true,spot=true,apiKeysSecret=keys"


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    """What Helm says of the chart with these arguments; skips where it is not installed."""
    program = shutil.which("helm")
    if program is None:
        pytest.skip("helm is not installed")
    given = ["--set", f"image={CHART_IMAGE}", "--set", "model.path=/models/tiny"]
    chart = str(ROOT / "k8s" / "chart")
    command = [program, *(["lint", chart] if arguments[0] == "lint" else ["template", "llm", chart, "--namespace", "flex-rl"])]
    return subprocess.run([*command, *given, *arguments[1:]], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("options", ["replicas=2", "gpus=0", "monitoring=true,autoscaling.enabled=true", MANY_GPUS])
def test_the_chart_comes_to_what_kubernetes_takes(options: str) -> None:
    linted = helm("lint", "--set", options)
    assert linted.returncode == 0, linted.stdout
    done = helm("template", "--set", options)
    assert done.returncode == 0, done.stderr
    documents = [document for document in yaml.safe_load_all(done.stdout) if document]
    core = [d for d in documents if not d["apiVersion"].startswith(("leaderworkerset.x-k8s.io", "monitoring.googleapis.com"))]
    for document in core:
        for version in ("1.33", "1.34", "1.37"):
            kubernetes_validate.validate(document, version, strict=True)
    kinds = {document["kind"]: document for document in documents}
    if "nodes=2" in options:
        template = kinds["LeaderWorkerSet"]["spec"]["leaderWorkerTemplate"]
        pods = [template["leaderTemplate"], template["workerTemplate"]]
        assert [("readinessProbe" in pod["spec"]["containers"][0]) for pod in pods] == [True, False]
        assert kinds["Service"]["spec"]["selector"]["flex-rl/role"] == "leader"
        assert "Deployment" not in kinds
    else:
        pods = [kinds["Deployment"]["spec"]["template"]]
    assert ("HorizontalPodAutoscaler" in kinds) == ("autoscaling" in options)
    for pod in pods:
        assert not list(job_rules.of_security(pod["spec"]))
        labels = pod["metadata"]["labels"]
        wanted = kinds["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"]
        assert wanted.items() <= labels.items()
        limits = pod["spec"]["containers"][0]["resources"]["limits"]
        assert limits.get("nvidia.com/gpu") == (None if "gpus=0" in options else "2" if "gpus=2" in options else "1")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("image=flex-rl:latest", "image"),
        ("sharding=pipeline", "sharding"),
        ("nodes=2", "sharding"),  # device_map is of one machine
        ("gpus=0,sharding=tensor_parallel", "gpus"),
        ("autoscaling.enabled=true", "monitoring"),
        ("model.path=../etc", "path"),
        ("replica=3", "replica"),
    ],
)
def test_the_chart_refuses_what_cannot_be(options: str, said: str) -> None:
    done = helm("template", "--set", options)
    assert done.returncode != 0
    assert said in done.stderr


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


def test_a_workspace_is_archived_whole_while_runs_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is new is copied, what is the same is not; a snapshot that is replaced meanwhile is whole, or not there."""
    workspace, bucket = tmp_path / "workspace", tmp_path / "bucket"
    run = workspace / "walk"
    snapshots.write(run / "latest", {"policy.safetensors": b"1"})
    (run / "metrics.jsonl").write_text('{"step": 1}\n')
    for left_out in ("walk/replay/rows", ".kind_image", "lost+found/x", "walk/.latest.old/policy.safetensors"):
        (workspace / left_out).parent.mkdir(parents=True, exist_ok=True)
        (workspace / left_out).write_text("")
    command = [sys.executable, "-m", "flexrl.archive", str(workspace), str(bucket)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == f"3 files copied to {bucket}\n"
    assert sorted(str(path.relative_to(bucket)) for path in bucket.rglob("*") if path.is_file()) == [
        "walk/latest/manifest.json",
        "walk/latest/policy.safetensors",
        "walk/metrics.jsonl",
    ]
    assert archive.archive(workspace, bucket) == (0, [])
    with (run / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"step": 2}\n')
    assert archive.archive(workspace, bucket) == (1, [])
    assert (bucket / "walk" / "metrics.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'

    copy, replacements = archive._copy, iter([b"3", b"4"])

    def slowly(file: Path, there: Path) -> None:
        """The run saves twice while its snapshot is copied."""
        copy(file, there)
        content = next(replacements, None)
        if content is not None:
            snapshots.write(run / "latest", {"policy.safetensors": content})

    monkeypatch.setattr(archive, "_copy", slowly)
    snapshots.write(run / "latest", {"policy.safetensors": b"2"})
    assert archive.archive(workspace, bucket) == (2, [])
    snapshots.check(bucket / "walk" / "latest")
    assert (bucket / "walk" / "latest" / "policy.safetensors").read_bytes() == b"4"
    replacements = iter([b"5", b"6", b"7"])
    snapshots.write(run / "latest", {"policy.safetensors": b"0"})
    assert archive.archive(workspace, bucket) == (0, [run / "latest"])
    assert not (bucket / "walk" / "latest" / "manifest.json").exists()
