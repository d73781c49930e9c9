"""Copies what a sweep's trials came to from a cluster's workspace into this one, each trial whole or not at all."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import yaml
from kubernetes import client
from kubernetes.client.exceptions import ApiException

from flexrl import job_manifests, snapshots
from flexrl.cluster import NAMESPACE, Cluster, why_of
from flexrl.config import UserError
from flexrl.runs import Failed, OutOfResources
from flexrl.sweep_ledger import Ledger
from flexrl.trial import mark_in

INSIDE = "/app/workspace/sweeps"  # where a pod has what is workspace/sweeps/ here
LEFT_OUT = ("replay", ".lock")  # what nobody reads once a trial is over
MAX_WAIT = 600.0  # s until a machine is found for the pod and the image is there
ID = re.compile(r"[0-9a-f]{12}")


def fetch(sweep: str, ledger: Ledger, cluster: Cluster) -> tuple[list[str], list[str]]:
    """Fetches the finished trials that are not here yet: the ids of those that came, and of those that did not come whole."""
    entries = [entry for entry in ledger.entries().values() if entry.is_current and entry.image is not None]
    wanted = [e.id for e in entries if ledger.status(e.id).state == "done" and ledger.result_of(e.id) is None]
    fetched: list[str] = []
    missing: list[str] = []
    if wanted:
        if shutil.which("kubectl") is None:
            raise UserError("kubectl is not installed: https://kubernetes.io/docs/tasks/tools/")
        with _pod(sweep, str(entries[-1].image), cluster) as pod:
            for key in wanted:
                print(f"fetching {key} ...", file=sys.stderr)
                (fetched if _fetch_trial(key, sweep, pod, ledger, cluster.context) else missing).append(key)
    for entry in entries:  # on Kind they are here already
        status = ledger.status(entry.id)
        if status.state == "done" and ledger.is_given_up(entry.id):  # its pod was gone before anybody read its last words
            status.state = "given up"
            ledger.set_status(entry.id, status)
        elif status.state == "done" and status.result is None:
            status.result = ledger.result_of(entry.id)
            ledger.set_status(entry.id, status)
    return fetched, missing


@contextlib.contextmanager
def _pod(sweep: str, image: str, cluster: Cluster) -> Iterator[str]:
    """The name of a running pod that has the workspace, removed in the end."""
    template = yaml.safe_load((job_manifests.TEMPLATES / "fetch.yaml").read_text(encoding="utf-8"))
    name = f"fetch-{sweep}-{secrets.token_hex(3)}"
    manifest = job_manifests.fill(template, {"name": name, "sweep": sweep, "image": image})
    core = cluster.core
    try:
        try:
            cluster.call(core.create_namespaced_pod, NAMESPACE, client.V1Pod.from_dict(manifest))
        except ApiException as error:
            if error.status != 409:  # nobody else has such a name: an earlier try was done, and its answer lost
                raise UserError(f"pod {name}: refused: {why_of(error)}; ask for the rights of k8s/access.yaml") from None
        waited = 0.0
        while True:
            pod = cluster.tree(cluster.call(core.read_namespaced_pod, name, NAMESPACE))
            phase = pod.get("status", {}).get("phase")
            if phase == "Running":
                break
            if phase in ("Succeeded", "Failed") or waited > MAX_WAIT:
                raise Failed(f"pod {name}: is {phase} after {waited:.0f} s; kubectl -n {NAMESPACE} describe pod {name}")
            cluster.sleep(1.0)
            waited += 1.0
        yield name
    finally:
        with contextlib.suppress(ApiException, Failed):  # it ends by itself
            replace(cluster, patience=min(cluster.patience, 10.0)).call(core.delete_namespaced_pod, name, NAMESPACE)


def _fetch_trial(key: str, sweep: str, pod: str, ledger: Ledger, context: str | None) -> bool:
    """One trial through `tar` in the pod; whether it came whole. The folder here is replaced only then."""
    if not ID.fullmatch(key):
        raise UserError(f"{ledger.folder / 'trials.json'}: {key!r} is no trial's id")
    left_out = [f"--exclude={name}" for name in LEFT_OUT]
    archive = ["tar", "--create", "--file=-", f"--directory={INSIDE}/{sweep}/trials", *left_out, key]
    where = ["--context", context] if context else []
    command = ["kubectl", *where, "--namespace", NAMESPACE, "exec", pod, "--container", "fetch", "--", *archive]
    new = ledger.trials / f".{key}.new"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        whole = _unpack(command, new)
        folder = new / key
        if not whole or not _is_whole(folder):
            return False
        here = ledger.trials / key
        if here.exists():
            shutil.rmtree(here)  # it is a copy
        os.replace(folder, here)
    except OSError as error:
        raise OutOfResources(f"{new}: {error.strerror}; make room, and the same command goes on") from None
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return True


def _unpack(command: Sequence[str], folder: Path) -> bool:
    """Unpacks what the command prints; false if either fails. Nothing is written outside the folder (PEP 706)."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                archive.extractall(folder, filter="data")
            whole = True
        except tarfile.TarError as error:
            print(f"{folder.name}: {error}", file=sys.stderr)
            whole = False
        while process.stdout.read(1 << 16):  # or it would wait for ever to be read
            pass
    return whole and process.returncode == 0


def _is_whole(run: Path) -> bool:
    """Whether every file of its snapshots or its dataset is what their manifest says."""
    folders = [folder for folder in (run, run / "latest", run / "best") if snapshots.exists(folder)]
    try:
        for folder in folders:
            snapshots.check(folder)
    except UserError as error:
        print(error, file=sys.stderr)
        return False
    return bool(folders) or mark_in(run).is_file()
