"""docs/kubernetes.md and docs/security.md name what there is."""

from __future__ import annotations

import re
import shlex

from flows import ANY, allowed_flows
from manifests import ROOT, find, platform, render

GUIDE = (ROOT / "docs" / "kubernetes.md").read_text()
SECURITY = (ROOT / "docs" / "security.md").read_text()
TEN = GUIDE.split("## From an empty cluster to a registered model")[1].split("```")[1].splitlines()[1:]


def test_ten_commands_lead_from_an_empty_cluster_to_a_registered_model():
    assert len(TEN) == 10
    assert TEN[-1].endswith("python -m rws_ray.registry show rws-digits")
    entrypoint = find(render("dev-jobs"), "RayJob", "rws-tune")["spec"]["entrypoint"]
    (space,) = re.findall(r"/opt/rws/(\S+)", entrypoint)
    assert 'register = "rws-digits"' in (ROOT / space).read_text()


def test_every_path_image_and_object_in_the_guide_is_there():
    for path in re.findall(r"(?:-k|-f|^| )(k8s/[\w./-]+)", GUIDE, re.MULTILINE):
        assert (ROOT / path).exists(), path
    objects = {(each["kind"].lower(), each["metadata"]["name"]) for each in platform("dev")}
    named = set(re.findall(r"\b(rayjob|job|deployment|service|cronjob)/([\w-]+)", GUIDE))
    assert named - objects - {("service", "rws-head-svc")} == set()  # the operator names a cluster's service so
    assert ("raycluster", "rws") in objects
    jobs = {each["metadata"]["labels"].get("rws/job") for each in platform("dev")}
    assert set(re.findall(r"-l rws/job=(\w+)", GUIDE)) <= jobs
    (load,) = [shlex.split(line) for line in TEN if line.startswith("kind load")]
    makefile = (ROOT / "Makefile").read_text()
    assert all(f"--tag {image} " in makefile for image in load[3:])


def test_the_guide_names_the_namespace_of_the_manifests():
    assert set(re.findall(r"--namespace (\w+)", GUIDE)) == {"rws", "kuberay"}


def test_every_document_and_manifest_that_starts_or_asks_ray_sets_token_authentication():
    documents = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "jobs").glob("*.yaml")]
    asking = [each for each in documents if re.search(r"ray (start|job submit) ", each.read_text())]
    assert {each.name for each in asking} >= {"README.md", "kubernetes.md", "security.md", "submit.yaml"}
    assert [each.name for each in asking if "RAY_AUTH_MODE=token" not in each.read_text()] == []


def test_the_security_page_lists_the_flows_that_are_open():
    rows = SECURITY.split("| from | to | port |")[1].split("\n\n")[0]
    told = set(map(int, re.findall(r"\b\d{2,5}\b", rows)))
    opened = {
        port for overlay in ("dev", "prod") for ports in allowed_flows(platform(overlay)).values() for port in ports
    }
    assert told == {int(port.partition("/")[0]) for port in opened - {ANY}}
