"""The board and the alerts ask only for what the service tells Ray, by the names and labels under which Ray gives it out."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving.metrics import EncoderMetrics, HypernetworkMetrics, IngressMetrics, Metric, Publish
from serving.proxy_gate import SHED_METRIC
from tests.unit.deploy_helpers import KUBERAY, ROOT

MONITORING = ROOT / "infra/monitoring"
OWN = {"up": {"job"}}
"""What Prometheus itself adds: metric and labels."""


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


BOARD = json.loads((MONITORING / "board.json").read_text())
RULES = [rule for group in load(MONITORING / "alerts.yml")["groups"] for rule in group["rules"]]
QUERIES = [target["expr"] for panel in BOARD["panels"] for target in panel["targets"]] + [rule["expr"] for rule in RULES]


def exported(metric: Metric) -> tuple[str, ...]:
    """Names under which Ray gives it out."""
    if metric.kind == "histogram":
        return tuple(f"ray_{metric.name}_{suffix}" for suffix in ("bucket", "sum", "count"))
    return (f"ray_{metric.name}_total" if metric.kind == "counter" else f"ray_{metric.name}",)


def published() -> dict[str, set[str]]:
    """Labels by name of everything that proxies and replicas tell Ray; not what merely stands in the table of metrics."""
    found: dict[str, set[str]] = {**OWN, f"ray_{SHED_METRIC}_total": set()}

    def publisher(metric: Metric) -> Publish:
        for name in exported(metric):
            found[name] = {*metric.labels, *(["le"] if name.endswith("_bucket") else [])}
        return lambda _value, _labels: None

    for replica in (IngressMetrics, HypernetworkMetrics, EncoderMetrics):
        replica(publisher)
    return found


def asked(query: str) -> tuple[set[str], set[str]]:
    """Names of metrics and of labels in a query."""
    bare = re.sub(r'"[^"]*"|\[[^]]*\]', "", query)
    grouped = r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)"
    labels = {name.strip() for group in re.findall(grouped, bare) for name in group.split(",")}
    labels |= set(re.findall(r"(\w+)\s*[=!]", " ".join(re.findall(r"\{([^}]*)\}", bare))))
    rest = re.sub(grouped + r"|\{[^}]*\}", "", bare)
    return set(re.findall(r"\b[a-zA-Z_]\w*\b(?!\s*\()", rest)) - {"and", "or", "unless", "bool"}, labels


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_names_metrics_and_labels_that_there_are(query: str) -> None:
    known = published()
    metrics, labels = asked(query)
    assert metrics and metrics <= known.keys()
    assert labels <= set().union(*(known[name] for name in metrics))


def test_a_query_is_read_as_prometheus_reads_it() -> None:
    query = 'histogram_quantile(0.95, sum by (le, stage) (rate(a_bucket{stage=~"q.*", x!="b"}[5m]))) / sum(c) > 0.5 or d'
    assert asked(query) == ({"a_bucket", "c", "d"}, {"le", "stage", "x"})


def test_the_board_shows_every_metric() -> None:
    def base(name: str) -> str:
        return re.sub("_(bucket|sum|count)$", "", name)

    shown = {base(name) for panel in BOARD["panels"] for target in panel["targets"] for name in asked(target["expr"])[0]}
    assert shown == {base(name) for name in published().keys() - OWN.keys()}


def test_legends_and_summaries_fill_in_labels_that_their_queries_keep() -> None:
    for panel in BOARD["panels"]:
        for target in panel["targets"]:
            assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= asked(target["expr"])[1]
    for rule in RULES:
        assert set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"])) <= asked(rule["expr"])[1]


def test_prometheus_scrapes_what_the_network_policy_lets_it() -> None:
    config = load(MONITORING / "prometheus.yml")
    assert [(MONITORING / name).is_file() for name in config["rule_files"]] == [True]
    (job,) = config["scrape_configs"]
    assert f'absent(up{{job="{job["job_name"]}"}} == 1)' in QUERIES
    (discovery,) = job["kubernetes_sd_configs"]
    assert discovery["namespaces"]["names"] == [load(KUBERAY / "kustomization.yaml")["namespace"]]
    (address,) = [rule["replacement"] for rule in job["relabel_configs"] if rule.get("target_label") == "__address__"]
    policies = [one for one in yaml.safe_load_all((KUBERAY / "ground.yaml").read_text()) if one["kind"] == "NetworkPolicy"]
    open_ports = {
        port["port"]
        for policy in policies
        for rule in policy["spec"].get("ingress", [])
        if {"kubernetes.io/metadata.name": "monitoring"}
        in [
            one["namespaceSelector"]["matchLabels"] for one in rule["from"] if "matchLabels" in one.get("namespaceSelector", {})
        ]
        for port in rule["ports"]
    }
    assert open_ports == {int(address.rpartition(":")[2])}
