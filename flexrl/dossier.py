"""What a cluster tells of a pod that failed or vanished, kept beside its log: machine, image, last words, events."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from kubernetes.client.exceptions import ApiException

from flexrl.cluster import Cluster, why_of
from flexrl.config import UserError
from flexrl.runs import Failed

PATIENCE = 10.0  # s that events are worth
MOST_EVENTS = 50  # the last ones


@dataclass(frozen=True)
class Event:
    """What a component of the cluster said of a pod."""

    time: str | None  # ISO 8601, of its last time
    kind: str  # Normal, or Warning
    reason: str  # in one word, such as Evicted
    message: str
    count: int  # how often


@dataclass(frozen=True)
class Dossier:
    """All of it."""

    pod: str
    node: str | None  # null: it never had one, or nobody saw it
    image: str | None  # as the node resolved it, by its digest
    exit_code: int | None  # null: it was not seen to end
    reason: str | None  # such as DeadlineExceeded, OOMKilled
    message: str | None  # its last words
    conditions: list[str]  # of the pod that say why it ended, such as 'DisruptionTarget: DeletionByTaintManager ...'
    events: list[Event] = field(default_factory=list)
    no_events: str | None = None  # why they could not be had

    def document(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def compile_dossier(cluster: Cluster, name: str, node: str | None, pod: Mapping[str, Any], exit_code: int | None) -> Dossier:
    """Of a pod as it was last seen (empty: it is gone)."""
    told = pod.get("status", {})
    container: Mapping[str, Any] = next(iter(told.get("containerStatuses") or []), {})
    ended = container.get("state", {}).get("terminated", {})
    conditions = [
        " ".join(f"{each['type']}: {each.get('reason', '')} {each.get('message', '')}".split())
        for each in told.get("conditions") or []
        if each.get("type") == "DisruptionTarget" and each.get("status") == "True"
    ]
    found, why_none = _events(cluster, name)
    return Dossier(
        pod=name,
        node=node,
        image=container.get("imageID") or container.get("image"),
        exit_code=exit_code,
        reason=told.get("reason") or ended.get("reason"),
        message=told.get("message") or ended.get("message"),
        conditions=conditions,
        events=found,
        no_events=why_none,
    )


def _events(cluster: Cluster, pod: str) -> tuple[list[Event], str | None]:
    """Those of the pod, oldest first, which a cluster keeps for an hour; why there are none if it does not tell."""
    impatient = replace(cluster, patience=min(cluster.patience, PATIENCE))
    chosen = f"involvedObject.kind=Pod,involvedObject.name={pod}"
    try:
        items = impatient.look(impatient.core.list_namespaced_event, cluster.namespace, field_selector=chosen)["items"]
    except ApiException as error:
        return [], why_of(error)
    except (UserError, Failed) as error:
        return [], str(error).partition(";")[0]
    events = [
        Event(
            time=item.get("lastTimestamp") or item.get("eventTime") or item.get("firstTimestamp"),
            kind=str(item.get("type", "Normal")),
            reason=str(item.get("reason", "")),
            message=" ".join(str(item.get("message", "")).split()),
            count=int(item.get("count") or 1),
        )
        for item in items
    ]
    return sorted(events, key=lambda event: str(event.time))[-MOST_EVENTS:], None
