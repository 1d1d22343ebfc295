"""The chart's alerts, judged by Prometheus itself: each fires when it should, and is silent when nothing is wrong."""

import json
from typing import NamedTuple

import pytest
import yaml

import chart
import promtool
from chart import NAMESPACE, RELEASE, render

# One sample a minute. Everything is looked at after `AT` minutes.
AT, MINUTES = 88, 95


def steady(value):
    return f"{value}+0x{MINUTES}"


def counter(per_minute):
    return f"0+{per_minute}x{MINUTES}"


def begins(value, minute):
    """A series that is not there before."""
    return f"_x{minute} {value}+0x{MINUTES - minute}"


class Case(NamedTuple):
    """Series, each `metric{labels}` without those of the place, with their values: when an alert fires, and when not.
    No two cases have a series in common, so that all can be looked at at once, which is much quicker."""

    fires: dict
    silent: dict


def up(metric):
    return Case({metric: steady(0)}, {metric: steady(1)})


def requests_of(failed):
    name = "imagegate_requests_total"
    return {f'{name}{{outcome="ok"}}': counter(100 - failed), f'{name}{{outcome="unavailable"}}': counter(failed)}


def calls_of(failed):
    name = 'imagegate_attempts_total{provider="openai"'
    return {f'{name},outcome="ok"}}': counter(100 - failed), f'{name},outcome="timeout"}}': counter(failed)}


def latency(quick):
    name = "imagegate_request_duration_seconds"
    buckets = {"81.92": quick, "327.68": 100, "+Inf": 100}
    series = {f'{name}_bucket{{le="{le}"}}': counter(count) for le, count in buckets.items()}
    return {**series, f"{name}_count": counter(100)}


def breakers(closed, opened, half_open=0):
    counts = {"closed": closed, "open": opened, "half_open": half_open}
    return {f'imagegate_breakers{{provider="openai",state="{state}"}}': steady(n) for state, n in counts.items()}


def endpoints(ready):
    counts = {"ready": ready, "warming": 0, "ejected": 1}
    return {f'imagegate_endpoints{{service="openai",state="{state}"}}': steady(n) for state, n in counts.items()}


def once(metric, minute, silent=steady(1)):
    """Something that is told of when it happens for the first time, and not for ever."""
    return Case({metric: begins(1, minute)}, {metric: silent})


EXPIRY = "imagegate_tls_certificate_expiry_timestamp_seconds"
CASES = {
    "ImagegateNoRouter": up("up"),
    "ImagegateNoReadyEndpoints": Case(endpoints(0), endpoints(1)),
    "ImagegateEndpointsEjected": Case(
        {'imagegate_endpoint_ejections_total{service="openai"}': counter(1)},
        {'imagegate_endpoint_ejections_total{service="openai"}': steady(1)},
    ),
    "ImagegateErrorRate": Case(requests_of(failed=10), requests_of(failed=1)),
    "ImagegateSlow": Case(latency(quick=10), latency(quick=100)),
    "ImagegateOverloaded": Case({"imagegate_overloaded_total": counter(10)}, {"imagegate_overloaded_total": counter(0.5)}),
    "ImagegateProviderFails": Case(calls_of(failed=60), calls_of(failed=40)),
    "ImagegateCredentialRefused": once('imagegate_attempts_total{provider="fal",outcome="unauthenticated"}', 80),
    # Of the requests of ImagegateErrorRate.
    "ImagegateFallbacksRise": Case(
        {"imagegate_rescued_requests_total": counter(30)}, {"imagegate_rescued_requests_total": counter(10)}
    ),
    "ImagegateProviderDown": Case(breakers(closed=0, opened=1, half_open=1), breakers(closed=1, opened=0)),
    "ImagegateBreakerOpen": Case(
        {'imagegate_breakers_open{provider="openai"}': steady(1)},
        {'imagegate_breakers_open{provider="openai"}': steady(0)},
    ),
    "ImagegateCertificateExpires": Case({EXPIRY: steady(10 * 86400)}, {EXPIRY: steady(100 * 86400)}),
    "ImagegateHandshakesRefused": Case(
        {'imagegate_tls_refusals_total{reason="no_certificate"}': counter(1)},
        {'imagegate_tls_refusals_total{reason="no_certificate"}': steady(1)},
    ),
    "ImagegateRedisDown": up("imagegate_redis_up"),
    "ImagegateRedisErrors": Case(
        {'imagegate_redis_errors_total{operation="ping"}': counter(12)},
        {'imagegate_redis_errors_total{operation="ping"}': counter(1)},
    ),
    "ImagegateStoreDown": up("imagegate_store_up"),
    "ImagegateRequestLogLost": once('imagegate_request_log_lost_total{reason="queue_full"}', 80),
    "ImagegateUnknownPrices": once('imagegate_unknown_prices_total{provider="openai",model="new"}', 80),
    "ImagegateBudgetNearlySpent": Case(
        {'imagegate_budget_used_ratio{subject="tenant",name="a"}': steady(0.95)},
        {'imagegate_budget_used_ratio{subject="tenant",name="a"}': steady(0.5)},
    ),
    "ImagegateImagesDown": up("imagegate_images_up"),
    "ImagegateConfigRefused": once('imagegate_config_reloads_total{outcome="rejected"}', 80, silent=steady(0)),
}


def placed(series):
    """As Prometheus stores what it has scraped from a router of the release."""
    router = f'namespace="{NAMESPACE}",pod="{RELEASE}-imagegate-router-1"'
    for name, values in series.items():
        metric, _, labels = name.rstrip("}").partition("{")
        yield {"series": f"{metric}{{{','.join(filter(None, [labels, router]))}}}", "values": values}


def look(cases, firing):
    """A test of promtool's: the series of all cases, and the alerts that fire then."""
    series = [one for case in cases for one in placed(case)]
    assert len({one["series"] for one in series}) == len(series)
    found = [{"labels": f'{{alertname="{alert}"}}', "value": 1} for alert in firing]
    question = {
        "expr": 'count by (alertname) (count by (alertname) (ALERTS{alertstate="firing"}))',
        "eval_time": f"{AT}m",
        "exp_samples": found,
    }
    return {"interval": "1m", "input_series": series, "promql_expr_test": [question]}


@pytest.fixture(scope="module")
def rules(tmp_path_factory):
    """The rules of the chart as a file of Prometheus, and the folder it is in."""
    if missing := promtool.needs():
        pytest.skip(missing)
    (rule,) = render(example="production").kinds("PrometheusRule")
    folder = tmp_path_factory.mktemp("rules")
    (folder / "rules.yaml").write_text(yaml.safe_dump(rule["spec"]))
    return rule["spec"], folder


def test_prometheus_takes_the_rules(rules):
    _, folder = rules
    content, said = promtool.promtool("check", "rules", folder / "rules.yaml")
    assert content, said


def test_every_alert_fires_when_it_should_and_only_then(rules):
    spec, folder = rules
    assert {rule["alert"] for group in spec["groups"] for rule in group["rules"]} == set(CASES)
    cases = CASES.values()
    tests = [look([case.fires for case in cases], CASES), look([case.silent for case in cases], [])]
    file = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": tests}
    (folder / "tests.yaml").write_text(json.dumps(file))
    content, said = promtool.promtool("test", "rules", "tests.yaml", cwd=folder)
    assert content, said


def test_the_dashboard_asks_what_prometheus_understands(rules):
    _, folder = rules
    board = json.loads((chart.CHART / "dashboards" / "imagegate.json").read_text())
    asked = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    asked = [expression.replace("$__rate_interval", "5m") for expression in asked]
    records = [{"record": f"panel:{number}", "expr": expression} for number, expression in enumerate(asked)]
    (folder / "board.yaml").write_text(json.dumps({"groups": [{"name": "board", "rules": records}]}))
    content, said = promtool.promtool("check", "rules", folder / "board.yaml")
    assert content, said
