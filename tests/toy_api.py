"""How the toy cluster answers over HTTP: lists, watches, creations, merge patches, logs, and faults on the way."""

from __future__ import annotations

import json
import re
import time
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlparse

if TYPE_CHECKING:
    from toy_cluster import ToyCluster

PLURALS = {"jobs": "Job", "configmaps": "ConfigMap", "pods": "Pod", "resourcequotas": "ResourceQuota", "events": "Event"}
REASONS = {409: "Conflict"}  # of a fault; a name that is taken is AlreadyExists


def refusal(code: int, message: str, reason: str | None = None) -> dict[str, Any]:
    status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": code}
    return status | ({"reason": reason} if reason else {})


class Handler(BaseHTTPRequestHandler):
    cluster: ToyCluster
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        return

    def _answer(self, code: int, body: Any, headers: dict[str, str] | None = None) -> None:
        content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "text/plain" if isinstance(body, str) else "application/json")
        self.send_header("Content-Length", str(len(content)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def _break(self) -> None:
        self.close_connection = True
        self.connection.close()

    def _handle(self) -> None:
        cluster = self.cluster
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else {}
        with cluster.lock:
            cluster.num_requests += 1
            fault = cluster.faults.get(cluster.num_requests)
        try:
            if fault == "restart":
                with cluster.lock:
                    cluster.restart()
                self._break()
            elif fault == "drop" or cluster.is_away:
                self._break()
            elif isinstance(fault, int):
                headers = {"Retry-After": "1"} if fault == 429 else None
                self._answer(fault, refusal(fault, "not now", REASONS.get(fault)), headers)
            elif "watch=true" in self.path.lower():
                self._watch(cut=fault is not None)
            else:
                with cluster.lock:
                    code, answer = self._act(body)
                    content = answer if isinstance(answer, str) else json.loads(json.dumps(answer))
                if fault == "late":
                    self._break()
                else:
                    self._answer(code, content)
        except (BrokenPipeError, ConnectionResetError):
            return  # the client has left

    do_GET = do_POST = do_DELETE = do_PATCH = _handle

    def _act(self, body: dict[str, Any]) -> tuple[int, Any]:
        cluster, url = self.cluster, urlparse(self.path)
        parts = url.path.strip("/").split("/")
        if "selfsubjectaccessreviews" in parts:
            asked = body["spec"]["resourceAttributes"]
            right = f"{asked['verb']} {asked['resource']}" + (f"/{asked['subresource']}" if asked.get("subresource") else "")
            return 201, {**body, "status": {"allowed": cluster.allowed and right not in cluster.denied}}
        parts = parts[parts.index("namespaces") + 2 :]
        if parts[0] == "serviceaccounts":
            return (
                (200, {"metadata": {"name": parts[1]}})
                if cluster.has_namespace
                else (404, refusal(404, "serviceaccounts not found"))
            )
        plural, name = parts[0], parts[1] if len(parts) > 1 else None
        if plural in cluster.refused:
            return cluster.refused[plural], refusal(cluster.refused[plural], f"no {plural} for you")
        if self.command == "POST":
            return cluster.create(plural, body)
        if name is None:
            return 200, {
                "kind": PLURALS[plural] + "List",
                "metadata": {"resourceVersion": str(cluster.version)},
                "items": self._chosen(plural, url.query),
            }
        if (plural, name) not in cluster.objects:
            return 404, refusal(404, f'{plural} "{name}" not found')
        if parts[-1] == "log":
            if cluster.objects[plural, name]["status"]["phase"] in ("Succeeded", "Failed"):
                cluster.read.add(name)
            return 200, cluster.logs.get(name, "")
        if self.command == "DELETE":
            gone = cluster.delete(plural, name)
            return 200, gone if plural == "pods" else {"kind": "Status", "status": "Success"}
        if self.command == "PATCH":
            if self.headers["Content-Type"] != "application/merge-patch+json":
                return 415, refusal(415, f"the toy takes merge patches, not {self.headers['Content-Type']}")
            cluster.objects[plural, name]["metadata"].update(body["metadata"])
        return 200, cluster.objects[plural, name]

    def _chosen(self, plural: str, query: str) -> list[dict[str, Any]]:
        asked = parse_qs(query)
        found = [o for (kind, _), o in self.cluster.objects.items() if kind == plural]
        for pod in found if plural == "pods" else []:
            self.cluster.note_seen(pod)
        for field in filter(None, asked.get("fieldSelector", [""])[0].split(",")):
            path, _, value = field.partition("=")
            found = [o for o in found if self._field(o, path) == value]
        selector = asked.get("labelSelector", [""])[0]
        several = re.fullmatch(r"(\S+) in \((.*)\)", selector)
        label, values = (several[1], several[2]) if several else selector.partition("=")[::2]
        return [o for o in found if not label or o["metadata"].get("labels", {}).get(label) in values.split(",")]

    def _field(self, tree: Any, path: str) -> Any:
        for part in path.split("."):
            tree = tree[part]
        return tree

    def _watch(self, cut: bool) -> None:
        query = parse_qs(urlparse(self.path).query)
        seen = int(query.get("resourceVersion", ["0"])[0])
        until = time.monotonic() + float(query.get("timeoutSeconds", ["10"])[0])
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        if seen < self.cluster.oldest:
            gone = refusal(410, "too old resource version")
            self.wfile.write(json.dumps({"type": "ERROR", "object": gone}).encode() + b"\n")
            return
        while time.monotonic() < until and not self.cluster.stopped.is_set() and not self.cluster.is_away:
            with self.cluster.lock:
                fresh = [event for event in self.cluster.events if event[0] > seen]
            for version, kind, pod in fresh:
                seen = version
                self.wfile.write(json.dumps({"type": kind, "object": pod}).encode() + b"\n")
                self.wfile.flush()
                self.cluster.note_seen(pod)
                if cut:
                    self._break()
                    return
            time.sleep(0.005)
