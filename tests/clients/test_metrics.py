"""What /metrics shows: all that is documented and nothing else, counted right, and bounded whatever callers write."""

import json
import os
import re
import threading

import pytest
import requests

import chart
import promtool
from emulators import faults
from gateway import ROOT, TEAM_KEY, eventually, founding_config

DOCS = ROOT / "docs" / "metrics.md"
# Of every process, under the names that all Prometheus clients have; others are told by Kubernetes.
ELSEWHERE = ("container_",)
# Who bring names of their own. 10,000 take 17 s with a build that is optimised, and too long with the one that the suite drives.
CALLERS = int(os.environ.get("CALLERS", "2000"))
SERIES = re.compile(r"^([a-z_]+?)(?:_bucket|_sum|_count)?(?:\{(.*)\})? ([-+.0-9e]+|NaN)$")


def shown(gateway):
    return requests.get(gateway.admin + "/metrics", timeout=10).text


def types(text):
    """Every metric that there is, with its type."""
    return dict(re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE))


def labels(text):
    return dict(re.findall(r'(\w+)="([^"]*)"', text or ""))


def value(gateway, name, **wanted):
    """The sum of the series with these labels."""
    total = 0.0
    for line in shown(gateway).splitlines():
        found = re.match(rf"^{name}(?:\{{(.*)\}})? (\S+)$", line)
        if found and wanted.items() <= labels(found[1]).items():
            total += float(found[2])
    return total


def documented():
    """Every metric of ours in the docs: its type and labels."""
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*?) \|", DOCS.read_text(), re.MULTILINE)
    return {name: (kind, set(re.findall(r"`(\w+)`", names))) for name, kind, names in rows}


def routed(config, **more):
    return {"x-portkey-config": json.dumps(config), **more}


STABILITY = {"virtual_key": "stability-ai-virtualkey", "override_params": {"model": "stable-diffusion-v1-6"}}
OPENAI = {"virtual_key": "open-ai-virtual-key", "override_params": {"model": "dall-e-3"}}
FALLBACK = {"strategy": {"mode": "fallback"}, "targets": [STABILITY, OPENAI]}
CACHED = {**OPENAI, "cache": {"mode": "simple", "max_age": 60}}
PROMPT = {"prompt": "a red fox", "size": "1024x1024", "response_format": "b64_json"}


@pytest.fixture
def busy(founding, stability_api, openai_api):
    """A gateway at which everything has happened once."""
    stability_api.script.append(faults.status(503))
    config = {**FALLBACK, "targets": [{**STABILITY, "breaker": {"consecutive_failures": 1}}, OPENAI]}
    for headers in [routed(config), routed(config), routed(CACHED), routed(CACHED)]:
        assert founding.post(body=PROMPT, headers=headers).status_code == 200
    assert founding.post(body={**PROMPT, "n": 0}, headers=routed(OPENAI)).status_code == 400
    return founding


def test_the_docs_tell_of_every_metric_and_its_labels(busy):
    text = shown(busy)
    there = {name: kind for name, kind in types(text).items() if name.startswith("imagegate_")}
    told = documented()
    assert there == {name: kind for name, (kind, _) in told.items()}
    for line in text.splitlines():
        found = SERIES.match(line)
        if found and found[1] in told:
            assert labels(found[2]).keys() - {"le"} == told[found[1]][1], line


def test_what_dashboard_and_rules_ask_for_is_there(founding):
    there = types(shown(founding))
    asked = (chart.CHART / "dashboards" / "imagegate.json").read_text()
    asked += json.dumps(chart.render(example="production").objects)
    names = set(re.findall(r"\b(?:imagegate|process|container)_[a-z_]+", asked))
    names = {re.sub(r"_(bucket|count)$", "", name) for name in names if not name.startswith(ELSEWHERE)}
    assert len(names) > 40 and names <= there.keys(), names - there.keys()


def test_prometheus_takes_the_metrics(busy):
    if missing := promtool.needs():
        pytest.skip(missing)
    content, said = promtool.promtool("check", "metrics", stdin=shown(busy))
    assert content, said


def test_what_happened_is_counted(busy):
    assert value(busy, "imagegate_fallbacks_total", provider="stability-ai", cause="unavailable") == 1
    assert value(busy, "imagegate_rescued_requests_total", provider="openai") == 1
    # Three of dall-e-3 at 0.04 USD, and a fourth that the cache had.
    assert value(busy, "imagegate_cost_nano_usd_total", provider="openai", model="dall-e-3") == 120_000_000
    assert value(busy, "imagegate_cache_saved_nano_usd_total", provider="openai", model="dall-e-3") == 40_000_000
    assert value(busy, "imagegate_images_total", provider="openai", model="dall-e-3") == 3
    assert value(busy, "imagegate_cache_lookups_total", status="hit") == 1
    assert value(busy, "imagegate_breakers", provider="stability-ai", state="open") == 1
    assert value(busy, "imagegate_breakers", provider="openai", state="closed") == 1
    assert value(busy, "imagegate_breakers_open", provider="stability-ai") == 1
    requests_there = value(busy, "imagegate_requests_total", outcome="ok")
    assert requests_there == value(busy, "imagegate_phase_duration_seconds_count", phase="routing") == 4
    assert value(busy, "imagegate_phase_duration_seconds_count", phase="upstream") == 3
    assert 'imagegate_phase_duration_seconds_bucket{phase="upstream",le="655.36"} 3' in shown(busy)
    assert value(busy, "imagegate_build_info") == 1
    for name in ("process_resident_memory_bytes", "process_open_fds", "process_start_time_seconds"):
        assert value(busy, name) > 1
    assert value(busy, "imagegate_runtime_workers") >= 1 and value(busy, "imagegate_runtime_alive_tasks") >= 1


def test_calls_that_are_given_up_are_counted(founding, openai_api):
    openai_api.always = faults.hang()
    with pytest.raises(requests.Timeout):
        founding.post(body=PROMPT, headers=routed(OPENAI), timeout=1)
    given_up = {"provider": "openai", "outcome": "cancelled", "billing": "unknown"}
    eventually(lambda: value(founding, "imagegate_attempts_total", **given_up) == 1, what="the call")


@pytest.mark.parametrize("processes", ["one", "four"])
def test_bytes_are_in_flight_as_long_as_somebody_holds_them(processes, serve, cluster, stability_api, openai_api):
    gateway = (serve if processes == "one" else cluster)(founding_config(stability_api, openai_api))
    openai_api.always = faults.hold()
    body = {**PROMPT, "prompt": "x" * 3000}
    asking = threading.Thread(target=gateway.post, kwargs={"body": body, "headers": routed(OPENAI)})
    asking.start()
    openai_api.wait_for_calls(1)
    assert 3000 < value(gateway, "imagegate_bytes_in_flight") < 10_000
    openai_api.release()
    asking.join(30)
    eventually(lambda: value(gateway, "imagegate_bytes_in_flight") == 0, what="the end of the request")


def test_callers_add_no_series(serve, stability_api, openai_api):
    """Thousands of models, users, prompts, providers and values of metadata, by every way that there is to name them."""
    budget = {"metadata": "user", "usage_limits": {"credit_limit": 1000}}
    config = founding_config(stability_api, openai_api, default_config="sandbox", quotas=[budget])
    config["configs"]["sandbox"] = {"provider": "sandbox"}
    gateway = serve(config)
    session = threading.local()

    def ask(planted):
        if not hasattr(session, "requests"):
            session.requests = requests.Session()
        metadata = {"user": f"{planted}-metadata", "_user": f"{planted}-user"}
        headers = {"authorization": f"Bearer {TEAM_KEY}", "x-portkey-metadata": json.dumps(metadata)}
        headers |= {"x-portkey-trace-id": f"{planted}-trace"}
        body = {"prompt": f"{planted} prompt", "user": f"{planted}-caller", "model": f"{planted}-model", "size": "16x16"}
        if planted.endswith("7"):
            # Refused for its provider; another is passed over for its model.
            headers |= {"x-portkey-provider": f"{planted}-provider", "authorization": "Bearer none"}
            headers |= {"x-portkey-api-key": TEAM_KEY}
        elif planted.endswith("8"):
            headers |= {"x-portkey-config": f"{planted}-config"}
        elif planted.endswith("9"):
            headers |= {"x-portkey-config": json.dumps({"provider": "sandbox", "cache": {"mode": "simple"}})}
        session.requests.post(gateway.base_url + "/images/generations", json=body, headers=headers, timeout=30)

    def ask_all(numbers):
        threads = [
            threading.Thread(target=lambda of=numbers[at::8]: [ask(f"planted{number}") for number in of])
            for at in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)

    def series():
        """Those with labels; there is one of each other metric."""
        return {line.rpartition(" ")[0] for line in shown(gateway).splitlines() if line[:1] != "#" and "{" in line}

    ask_all(range(100))
    # What is counted of the log comes with its first batch.
    eventually(lambda: value(gateway, "imagegate_request_log_written_total") > 0, what="the first batch of the log")
    before = series()
    ask_all(range(100, CALLERS))
    assert series() == before
    assert value(gateway, "imagegate_requests_total") == CALLERS
    assert "planted" not in shown(gateway)
    assert value(gateway, "imagegate_images_total", provider="sandbox", model="other") > CALLERS / 2
