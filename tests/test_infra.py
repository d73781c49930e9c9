"""What stands in k8s/ and docker/, as far as a machine without a cluster can tell."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from flexrl import archive, job_rules, provenance, snapshots
from flexrl.lineage import Attempt

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


def make(target: str, *variables: str, path: Path) -> subprocess.CompletedProcess[str]:
    """What `make` says of a target where only the programs of `path` are there."""
    program = shutil.which("make")
    if program is None:
        pytest.skip("make is not installed")
    environment = {"PATH": str(path), "HOME": str(path)}
    command = [program, "--no-print-directory", target, *variables]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def programs(folder: Path, *names: str) -> Path:
    """A folder of programs that do nothing, well, and of those that the Makefile's own lines are made of."""
    folder.mkdir()
    for name in names:
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    for name in ("make", "sh", "cat", "df", "tail", "tr", "git", "bash", "dirname"):
        (folder / name).symlink_to(str(shutil.which(name)))
    return folder


KIND = ("docker", "kind", "kubectl")
CLOUD = ("terraform", "gcloud")
DOCKER_IS_MISSING = "docker is not installed: apt install docker.io, or https://docs.docker.com/engine/install/"
KIND_IS_MISSING = "kind is not installed: go install sigs.k8s.io/kind@latest, or brew install kind"
KUBECTL_IS_MISSING = "kubectl is not installed: snap install kubectl --classic, or brew install kubectl"


@pytest.mark.parametrize(
    ("target", "there", "variables", "said"),
    [
        ("need-cluster", (), [], [DOCKER_IS_MISSING, KIND_IS_MISSING, KUBECTL_IS_MISSING]),
        ("need-cluster", ("kind", "kubectl"), [], [DOCKER_IS_MISSING]),
        ("need-cluster", ("docker", "kubectl"), [], [KIND_IS_MISSING]),
        ("need-cluster", ("docker", "kind"), [], [KUBECTL_IS_MISSING]),
        ("need-cluster", KIND, [], []),
        ("cluster-up", (), ["ROOM=0"], [DOCKER_IS_MISSING, KIND_IS_MISSING, KUBECTL_IS_MISSING]),
        ("cluster-down", ("docker", "kind"), [], [KUBECTL_IS_MISSING]),
        ("load-image", ("docker", "kubectl"), ["ROOM=0"], [KIND_IS_MISSING]),
        (
            "cluster-up",
            KIND,
            ["ROOM=999999999"],
            ["images and a cluster take 999999999: docker system prune makes room"],
        ),
        ("build-dev", (), [], ["docker is not installed: https://docs.docker.com/engine/install/"]),
        ("build-runtime", (), [], ["docker is not installed: https://docs.docker.com/engine/install/"]),
        ("shell", (), [], ["docker is not installed: https://docs.docker.com/engine/install/"]),
        ("need-kubectl", (), [], [KUBECTL_IS_MISSING]),
        (
            "need-image",
            (),
            ["TARGET=none"],
            ["which image? make load-image (TARGET=kind) or make push-image"],
        ),
        ("need-image", (), ["IMAGE=me/it@sha256:ab"], []),
        ("cloud-plan", ("gcloud",), [], ["terraform is not installed: https://developer.hashicorp.com/terraform/install"]),
        ("cloud-up", ("terraform",), [], ["gcloud is not installed: https://cloud.google.com/sdk/docs/install"]),
        ("cloud-plan", CLOUD, [], ["which project? make cloud-plan PROJECT=my-robots-1 STATE=BUCKET"]),
        (
            "push-image",
            CLOUD,
            ["PROJECT=p"],
            ["which bucket keeps Terraform's state? make push-image PROJECT="],
        ),
        ("kubeconfig", CLOUD, ["PROJECT=p", "STATE=s"], [KUBECTL_IS_MISSING]),
        ("status", (), [], ["which sweep? make status NAME=half-cheetah-sweep"]),
        ("report", (), [], ["which sweep? make report NAME=half-cheetah-sweep"]),
        ("cancel", (), [], ["which sweep? make cancel NAME=half-cheetah-sweep"]),
    ],
)
def test_make_names_what_is_missing_and_what_brings_it(
    tmp_path: Path, target: str, there: tuple[str, ...], variables: list[str], said: list[str]
) -> None:
    done = make(target, *variables, path=programs(tmp_path / "bin", *there))
    told = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert (done.returncode != 0) == bool(said), done.stderr
    assert len(told) == len(said), done.stderr
    for line, start in zip(told, said, strict=True):
        assert start in line


def test_make_runs_what_people_type() -> None:
    """What a target would run, without running it."""
    for target, variables, command in (
        ("train-dt", ["DATA=workspace/mine"], "train_dt.py --name humanoid_dt --config examples/dt_humanoid.yaml --dataset"),
        ("report", ["NAME=walk"], "submit_sweep.py report walk"),
        ("cancel", ["NAME=walk"], "submit_sweep.py cancel walk"),
        ("build-runtime", ["BASE=python:1@sha256:ab"], "docker build --target runtime --build-arg BASE=python:1@sha256:ab"),
    ):
        done = subprocess.run(["make", "-n", target, *variables], cwd=ROOT, capture_output=True, text=True, check=True)
        assert command in done.stdout
    text = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", text, re.MULTILINE))
    phony = re.search(r"^\.PHONY:((?:.*\\\n)*.*)", text, re.MULTILINE)
    assert phony is not None
    assert targets == set(phony[1].replace("\\", " ").split())


def test_an_image_says_what_it_was_built_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commit, and whether what goes into it was changed since."""
    here, git = tmp_path / "house", ["git", "-c", "user.name=x", "-c", "user.email=x@x", "-C", str(tmp_path / "house")]
    script = here / "docker" / "commit.sh"
    script.parent.mkdir(parents=True)
    shutil.copy(ROOT / "docker" / "commit.sh", script)
    for name in ("train.py", "flexrl/rewards.py", "README.md", "requirements.txt", "tests/test_it.py"):
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).write_text("1")

    def said() -> str:
        return subprocess.run([script], capture_output=True, text=True, check=True).stdout.strip()

    assert said() == "unknown"
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*git, *arguments], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert said() == commit
    (here / "README.md").write_text("2")  # not in the image
    (here / "tests" / "test_it.py").write_text("2")
    assert said() == commit
    (here / "flexrl" / "new.py").write_text("")  # in it, though git does not know it
    assert said() == f"{commit}-dirty"
    (here / "flexrl" / "new.py").unlink()
    (here / "train.py").write_text("2")
    assert said() == f"{commit}-dirty"
    dry = subprocess.run(["make", "-n", "build-runtime"], cwd=ROOT, capture_output=True, text=True, check=True)
    ours = subprocess.run([ROOT / "docker" / "commit.sh"], capture_output=True, text=True, check=True).stdout.strip()
    assert f'--build-arg COMMIT="{ours}"' in dry.stdout

    monkeypatch.setenv("FLEXRL_COMMIT", f"{commit}-dirty")  # as in the image, which has no git
    monkeypatch.setattr(provenance, "_git", lambda root, *arguments: None)
    version = provenance.code_version(ROOT)
    assert version == {"git_commit": f"{commit}-dirty", "git_diff_sha256": "not known"}
    attempt = Attempt.model_validate({"command": "", "start": "2026-01-01T00:00:00Z", "how": "", **version})
    assert f"code {commit[:10]} with uncommitted changes" in attempt.tell("done")[1]


def test_what_images_are_built_upon_is_one_version() -> None:
    text = (ROOT / "docker" / "Dockerfile").read_text()
    assert re.findall(r"^ARG BASE=(.+)$", text, re.MULTILINE) == ["python:3.11.14-slim-bookworm"]
    assert re.findall(r"^FROM (\S+)", text, re.MULTILINE) == ["${BASE}", "packages", "packages"]
    assert "--build-arg BASE=python:3.11.14-slim-bookworm@sha256:" in text  # how a digest is given


def test_a_development_container_is_nobody_s_root() -> None:
    asked = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    dev = (ROOT / "docker" / "Dockerfile").read_text().partition(" AS dev\n")[2].partition("\nFROM ")[0]
    assert f"useradd --uid 1000 --create-home --shell /bin/bash {asked['remoteUser']}\n" in dev
    assert "\nUSER 1000:1000\n" in dev
    assert asked["hostRequirements"] == {"gpu": "optional"}
    assert "--gpus" not in json.dumps(asked)


def test_what_terraform_tells_is_asked_for() -> None:
    outputs = re.findall(r'^output "(\w+)"', (ROOT / "terraform" / "outputs.tf").read_text(), re.MULTILINE)
    asked = re.findall(r"(?:\$\(OUTPUT\)|output -json) (\w+)", (ROOT / "Makefile").read_text())
    assert set(outputs) == {*asked, "bucket"}  # that one people type: docs/CLUSTER.md


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
    done = subprocess.run([*command[:3], str(workspace / "nothing"), str(bucket)], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        2,
        f"{workspace / 'nothing'}: there is no such folder to copy; name a workspace\n",
    )
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
