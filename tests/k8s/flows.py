"""Who may talk to whom under a set of NetworkPolicies, worked out as Kubernetes does: a flow needs an egress rule of
its source and an ingress rule of its destination, wherever policies select them."""

from __future__ import annotations

from typing import NamedTuple

from manifests import Object, pods
from policies import matches

PORTS = (
    ("UDP", 53),
    *(("TCP", port) for port in (22, 53, 80, 443, 5000, 5432, 6379, 6443, 7070, 8000, 8080, 8265, 10001)),
)
ANY = "any port"


class Place(NamedTuple):
    """One end of a flow; `namespace` is empty for addresses outside the cluster."""

    name: str
    namespace: str
    labels: dict[str, str]


OUTSIDE = (
    Place("dns", "kube-system", {"k8s-app": "kube-dns"}),
    Place("operator", "kuberay", {"app.kubernetes.io/name": "kuberay-operator"}),
    Place("ingress", "ingress-nginx", {"app.kubernetes.io/name": "ingress-nginx"}),
    Place("neighbour", "default", {"rws/part": "ray", "ray.io/node-type": "head"}),
    Place("address", "", {}),
)


def places(objects: list[Object]) -> list[Place]:
    """The kinds of pods in the namespace, once each."""
    found: dict[str, Place] = {}
    for pod in pods(objects):
        node = pod.labels.get("ray.io/node-type", "")
        name = "-".join(filter(None, [pod.labels["rws/part"], node]))
        found.setdefault(name, Place(name, "rws", pod.labels))
    return [*found.values(), Place("client", "rws", {"rws/part": "client"})]


def allowed_flows(objects: list[Object]) -> dict[tuple[str, str], set[str]]:
    """For each source and destination, the ports of PORTS that are open between them; ANY where all are."""
    policies = [each["spec"] for each in objects if each["kind"] == "NetworkPolicy"]
    inside = places(objects)
    flows: dict[tuple[str, str], set[str]] = {}
    for source in [*inside, *OUTSIDE]:
        for target in [*inside, *OUTSIDE]:
            if source not in inside and target not in inside:
                continue
            ports = {
                f"{port}/{protocol}"
                for protocol, port in PORTS
                if _passes(policies, "Egress", source, target, protocol, port)
                and _passes(policies, "Ingress", target, source, protocol, port)
            }
            if ports:
                flows[source.name, target.name] = {ANY} if len(ports) == len(PORTS) else ports
    return flows


def _passes(policies: list[Object], direction: str, place: Place, peer: Place, protocol: str, port: int) -> bool:
    """Whether the policies that select a place let the other end through."""
    if place.namespace != "rws":
        return True
    selecting = [
        each for each in policies if direction in each["policyTypes"] and matches(each["podSelector"], place.labels)
    ]
    key, side = ("egress", "to") if direction == "Egress" else ("ingress", "from")
    rules = [rule for each in selecting for rule in each.get(key, [])]
    return not selecting or any(
        (side not in rule or any(_is_peer(each, peer) for each in rule[side]))
        and ("ports" not in rule or {"protocol": protocol, "port": port} in rule["ports"])
        for rule in rules
    )


def _is_peer(described: Object, peer: Place) -> bool:
    if "ipBlock" in described:
        return peer.namespace == ""
    if peer.namespace == "":
        return False
    if "namespaceSelector" in described:
        if not matches(described["namespaceSelector"], {"kubernetes.io/metadata.name": peer.namespace}):
            return False
    elif peer.namespace != "rws":
        return False
    return matches(described.get("podSelector", {}), peer.labels)
