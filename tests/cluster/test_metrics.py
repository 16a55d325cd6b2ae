"""Every panel and alert asks for what a real run and a real service export, tagged by run and trial alone."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from heads import environment, free_ports
from prometheus_client.parser import text_string_to_metric_families

from rws_ray.cluster.metrics import (
    MEANINGS,
    RunMetrics,
    epoch_values,
    examples_since,
)

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "k8s" / "monitoring"
DASHBOARD = json.loads((MONITORING / "dashboard.json").read_text())
RULES = [
    rule
    for group in yaml.safe_load((MONITORING / "rules.yaml").read_text())["spec"]["groups"]
    for rule in group["rules"]
]
OWN = {"run", "trial"}
RAYS = {
    "Component", "NodeAddress", "SessionName", "Version", "WorkerId", "otel_scope_name", "otel_scope_schema_url",
    "otel_scope_version",
}  # fmt: skip
SELECTOR, MATCHER = re.compile(r"\b(ray_rws_\w+)(?:\{([^}]*)\})?"), re.compile(r'(\w+)(=~?)"([^"]*)"')
METRIC, LABEL = re.compile(r"\bray_rws_\w+"), re.compile(r"(\w+)\s*=~?\s*\"")


def panel_expressions() -> dict[str, str]:
    """What panels ask for, by the panel's title and the query's letter; for all runs."""
    return {
        f"{panel['title']} {target['refId']}": target["expr"].replace("$run", ".*")
        for panel in DASHBOARD["panels"]
        for target in panel["targets"]
    }


EXPRESSIONS = panel_expressions() | {rule["alert"]: rule["expr"] for rule in RULES}


def test_every_metric_has_a_panel_and_an_expression_is_about_metrics_that_there_are():
    asked = {
        name.removeprefix("ray_").removesuffix("_bucket")
        for each in EXPRESSIONS.values()
        for name in METRIC.findall(each)
    }
    assert asked == set(MEANINGS)


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_an_expression_is_promql_and_picks_by_run_and_trial(name):
    expression = EXPRESSIONS[name]
    promql_parser.parse(expression)
    assert set(LABEL.findall(expression)) <= OWN
    assert set(re.findall(r"by \(([^)]*)\)", expression)) <= {"run", "le, run"}


def test_an_alert_tells_what_is_wrong_and_how_to_mend_it():
    assert len({rule["alert"] for rule in RULES}) == len(RULES) >= 10
    for rule in RULES:
        assert set(rule["annotations"]) == {"summary", "mend"}
        assert set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"])) <= OWN
        assert rule["labels"]["severity"] in ("info", "warning", "critical")


def test_panels_do_not_overlap_and_ask_one_source():
    places = [tuple(panel["gridPos"][key] for key in "xywh") for panel in DASHBOARD["panels"]]
    assert len({(x, y) for x, y, _, _ in places}) == len(places)
    assert all(x + w <= 24 and x % 8 == y % 8 == 0 for x, y, w, _ in places)
    assert {panel["datasource"]["uid"] for panel in DASHBOARD["panels"]} == {"$datasource"}


def epoch(step: int, seconds: float) -> dict[str, Any]:
    rows, steps = 1000, 10
    return {
        "kind": "epoch", "epoch": step / steps, "step": step, "seconds": seconds, "valid_nll": 9.0, "train_bound": 10.0,
        "ess_ratio": 0.5, "examples_per_second": rows * step / steps / seconds, "checkpoint_seconds": 0.25,
    }  # fmt: skip


def test_steps_and_examples_are_counted_from_where_a_run_goes_on():
    start = {"kind": "start", "epoch": 2.0, "seconds": 4.0}
    assert examples_since(None, epoch(20, 4.0)) == pytest.approx(2000)
    assert examples_since(start, epoch(30, 7.0)) == pytest.approx(1000)
    assert epoch_values(start, epoch(30, 7.0))["rws_step_seconds"] == pytest.approx(0.3)
    assert epoch_values(epoch(30, 7.0), epoch(40, 9.0))["rws_step_seconds"] == pytest.approx(0.2)


def test_losses_and_steps_that_are_not_finite_are_counted_without_ray_too():
    metrics = RunMetrics("digits")
    for record in (
        {"kind": "warning", "message": "worker 1 died.", "lost": [1, 2]},
        {"kind": "warning", "message": "left out", "nonfinite": 1},
        {"kind": "warning", "message": "a checkpoint is passed over", "nonfinite": 0},
        epoch(10, 1.0),
    ):
        metrics.record(record)
    assert dict(metrics.totals) == {"rws_examples_total": 1000, "rws_nonfinite_total": 1, "rws_restarts_total": 1}


def test_each_kind_of_restart_is_counted_once():
    metrics = RunMetrics("digits")
    start, lost = {"kind": "start", "epoch": 0.0, "seconds": 0.0}, {"kind": "warning", "message": "died.", "lost": [0]}
    controller = {"kind": "warning", "message": "Ray's controller of the run died"}
    for records, restarts in (
        ([start], 0),
        ([lost, start], 1),
        ([controller, start], 2),
        ([start], 3),
        ([lost] * 2, 5),
    ):
        for record in records:
            metrics.record(record)
        assert metrics.totals["rws_restarts_total"] == restarts


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """Samples by name, of a run and a service in a cluster of their own."""
    home = tmp_path_factory.mktemp("watched")
    ports = map(str, free_ports(2))
    program = [sys.executable, str(Path(__file__).with_name("exporting.py")), *ports]
    settings = environment(RWS_HOME=str(home), PYTHONPATH=str(ROOT))
    done = subprocess.run(program, env=settings, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["statuses"] == [200, 422, 422]
    samples: dict[str, list[Any]] = {}
    for family in text_string_to_metric_families(found["exported"]):
        for sample in family.samples:
            samples.setdefault(sample.name, []).append(sample)
    return samples


def picked(samples: list[Any], matchers: str) -> list[Any]:
    """The samples that a selector's matchers let through."""
    found = samples
    for label, kind, wanted in MATCHER.findall(matchers):
        pattern = wanted if kind == "=~" else re.escape(wanted)
        found = [sample for sample in found if re.fullmatch(pattern, sample.labels.get(label, ""))]
    return found


@pytest.mark.long
def test_every_panel_and_alert_asks_for_what_a_real_run_exports(exported):
    for name, expression in EXPRESSIONS.items():
        for metric, matchers in SELECTOR.findall(expression):
            assert picked(exported.get(metric, []), matchers), name


@pytest.mark.long
def test_what_is_exported_is_tagged_by_run_and_trial_alone(exported):
    for name, samples in exported.items():
        for sample in samples:
            assert set(sample.labels) == OWN | RAYS | ({"le"} if name.endswith("_bucket") else set())
    runs = {sample.labels["run"] for sample in exported["ray_rws_examples_total"]}
    assert runs == {"watched"}
    assert {sample.labels["run"] for sample in exported["ray_rws_requests_total"]} == {"rws-watched"}


@pytest.mark.long
def test_what_is_exported_is_what_happened(exported):
    value = {name: each[-1].value for name, each in exported.items() if name.startswith("ray_rws_")}
    assert value["ray_rws_epochs"] == 3
    assert value["ray_rws_examples_total"] == pytest.approx(3 * 1437, rel=0.2)
    assert 0 < value["ray_rws_ess_ratio"] <= 1
    assert value["ray_rws_requests_total"] == value["ray_rws_model_version"] == 1
    assert value["ray_rws_refused_total"] == 2
    assert value["ray_rws_failed_total"] == value["ray_rws_restarts_total"] == value["ray_rws_nonfinite_total"] == 0
