"""Traces and metrics by OTLP, at a real receiver: over gRPC and HTTP, of one process and of four."""

import json
import time

import openai
import pytest

from emulators import faults
from gateway import TEAM_KEY, eventually, founding_config
from otlp_collector import Collector

SECRET = "collector-secret-4d7e1a"
PROMPT = "a lighthouse that nobody shall read about"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = "00f067aa0ba902b7"


@pytest.fixture
def collector(request):
    """A receiver that listens; over gRPC unless the test says otherwise."""
    collector = Collector(getattr(request, "param", "grpc"))
    yield collector.start()
    collector.stop()


def config(stability_api, openai_api, collector, **more):
    otlp = {"endpoint": collector.url, "headers": {"authorization": {"env": "COLLECTOR_KEY"}}, **more}
    return founding_config(stability_api, openai_api, default_config="pc-sdxl-dalle", otlp=otlp)


def generate(gateway, flags="01", **headers):
    """One image with OpenAI's SDK, as part of a trace."""
    if flags:
        headers["traceparent"] = f"00-{TRACE}-{CALLER}-{flags}"
    client = openai.OpenAI(api_key=TEAM_KEY, base_url=gateway.base_url, max_retries=0)
    raw = client.images.with_raw_response.generate(
        model="dall-e-3", prompt=PROMPT, size="1024x1024", response_format="b64_json", extra_headers=headers
    )
    assert raw.parse().data[0].b64_json
    return raw.headers["x-imagegate-request-id"]


def of_request(spans, request):
    """The span of a request, and those of its provider calls in their order."""
    mine = [span for span in spans if span.attributes["imagegate.request_id"] == request]
    (root,) = [span for span in mine if span.kind == "server"]
    calls = sorted((span for span in mine if span.kind == "client"), key=lambda span: span.start)
    assert all((span.trace, span.parent) == (root.trace, root.id) for span in calls)
    assert all(root.start <= span.start <= span.end <= root.end for span in calls)
    return root, calls


def has(span, **expected):
    """Whether a span's attributes are these; names are written with underscores for dots where that is clear."""
    for name, value in expected.items():
        assert span.attributes.get(name.replace("__", ".")) == value, (name, span.attributes)


def test_one_trace_from_the_sdk_through_all_processes_to_the_providers(cluster, collector, stability_api, openai_api):
    four = cluster(config(stability_api, openai_api, collector), env={"COLLECTOR_KEY": f"Bearer {SECRET}"})
    stability_api.always = faults.status(429, retry_after="7")
    request = generate(four, tracestate="vendor=1")
    spans = collector.wait_for_spans(3)
    assert len(spans) == 3 and {span.trace for span in spans} == {TRACE}
    root, (first, second) = of_request(spans, request)

    assert (root.name, root.parent, root.state) == ("image_generation dall-e-3", CALLER, "vendor=1")
    assert (root.flags, first.flags) == (0x301, 0x101), "only the request's parent is somebody else's"
    for api, span in [(stability_api, first), (openai_api, second)]:
        sent = api.calls[-1].headers
        assert (sent["traceparent"], sent["tracestate"]) == (f"00-{TRACE}-{span.id}-01", "vendor=1")

    has(
        root,
        gen_ai__operation__name="image_generation",
        gen_ai__provider__name="openai",
        gen_ai__request__model="dall-e-3",
        gen_ai__response__model="dall-e-3",
        gen_ai__output__type="image",
        gen_ai__request__choice__count=1,
        gen_ai__response__finish_reasons=["stop"],
        error__type=None,
        http__response__status_code=200,
        imagegate__config="pc-sdxl-dalle",
        imagegate__target="config.targets[1]",
        imagegate__virtual_key="open-ai-virtual-key",
        imagegate__fallback=True,
        imagegate__trace_id=TRACE,
        imagegate__cost_usd=second.attributes["imagegate.cost_usd"],
    )
    assert root.attributes["imagegate.cost_usd"] > 0
    assert ("imagegate.fallback", "config.targets[0]", "config.targets[1]", "rate_limited") in [
        (name, said.get("imagegate.from_target"), said.get("imagegate.target"), said.get("imagegate.attempt.cause"))
        for name, said in root.events
    ]
    has(
        first,
        gen_ai__provider__name="stability-ai",
        gen_ai__request__model="stable-diffusion-v1-6",
        server__address="127.0.0.1",
        error__type="rate_limited",
        http__response__status_code=429,
        imagegate__attempt__number=1,
        imagegate__billing="rejected_unbilled",
        imagegate__retry_after_s=7.0,
        imagegate__virtual_key="stability-ai-virtualkey",
    )
    has(
        second,
        error__type=None,
        imagegate__attempt__number=2,
        imagegate__attempt__reason="fallback",
        imagegate__attempt__cause="rate_limited",
        imagegate__billing="billed",
    )
    assert [span.status for span in (root, first, second)] == ["unset", "error", "unset"]
    assert first.end <= second.start

    assert root.resource["service.name"] == "imagegate"
    assert collector.headers[0]["authorization"] == f"Bearer {SECRET}"
    assert PROMPT not in "".join(span.text for span in spans)
    assert SECRET not in four.log and PROMPT not in four.log


@pytest.mark.parametrize("collector", ["http"], indirect=True)
def test_the_standards_variables_are_enough_and_the_end_loses_nothing(serve, collector, stability_api, openai_api):
    variables = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer%20{SECRET}",
        "OTEL_SERVICE_NAME": "pictures",
        "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test",
    }
    gateway = serve(founding_config(stability_api, openai_api, default_config="pc-openai"), variables)
    answer = gateway.post(body={"prompt": PROMPT, "model": "gpt-image-1"})
    assert answer.status_code == 200, answer.text
    openai_api.always = faults.refusal()
    assert gateway.post(body={"prompt": PROMPT, "model": "gpt-image-1"}).status_code == 400
    gateway.back.terminate()
    assert gateway.back.wait(10) == 0

    root, (call,) = of_request(collector.spans, answer.headers["x-imagegate-request-id"])
    trace = answer.headers["x-imagegate-request-id"].replace("-", "")
    assert (root.trace, root.id, root.parent) == (trace, trace[16:], "")
    assert openai_api.calls[0].headers["traceparent"] == f"00-{trace}-{call.id}-01"
    usage = answer.json()["usage"]
    has(root, gen_ai__usage__input_tokens=usage["input_tokens"], gen_ai__usage__output_tokens=usage["output_tokens"])
    (refused,) = [span for span in collector.spans if span.kind == "server" and span.id != root.id]
    has(refused, error__type="content_rejected", gen_ai__response__finish_reasons=["content_filter"])
    assert refused.status == "error" and refused.attributes["imagegate.refused_by"]
    assert {key: root.resource[key] for key in ("service.name", "deployment.environment.name")} == {
        "service.name": "pictures",
        "deployment.environment.name": "test",
    }

    measured = collector.wait_for_metrics()
    points = measured["gen_ai.client.operation.duration"].histogram.data_points
    labels = lambda point: {pair.key: pair.value.string_value for pair in point.attributes}
    common = {
        "gen_ai.operation.name": "image_generation",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-image-1",
    }
    expected = [common, {**common, "error.type": "content_rejected"}]
    assert sorted(map(labels, points), key=len) == expected
    assert all(point.count == 1 and point.explicit_bounds[-1] == 81.92 for point in points)
    tokens = {labels(point)["gen_ai.token.type"]: point.sum for point in measured["gen_ai.client.token.usage"].histogram.data_points}
    assert tokens == {"input": usage["input_tokens"], "output": usage["output_tokens"]}
    assert {headers["authorization"] for headers in collector.headers} == {f"Bearer {SECRET}"}
    assert SECRET not in gateway.log
    assert PROMPT not in "".join(span.text for span in collector.spans)


def test_only_what_is_sampled_is_sent(serve, collector, stability_api, openai_api):
    gateway = serve(config(stability_api, openai_api, collector, sample_ratio=0), {"COLLECTOR_KEY": SECRET})
    generate(gateway, flags=None)
    begun = stability_api.calls[-1].headers["traceparent"]
    generate(gateway, flags="00")
    assert begun.endswith("-00") and stability_api.calls[-1].headers["traceparent"].endswith("-00")
    # Whoever records the trace wants all of it.
    request = generate(gateway)
    assert {span.attributes["imagegate.request_id"] for span in collector.wait_for_spans(2)} == {request}


@pytest.mark.parametrize("collector", ["http"], indirect=True)
def test_prompts_are_sent_where_the_operator_wants_it_and_the_caller_hides_nothing(
    serve, collector, stability_api, openai_api
):
    otlp = {"protocol": "http", "prompts": True}
    gateway = serve(config(stability_api, openai_api, collector, **otlp), {"COLLECTOR_KEY": SECRET})
    generate(gateway, flags="00")
    hidden = generate(gateway, **{"x-portkey-debug": "false"})
    shown = generate(gateway)
    spans = collector.wait_for_spans(4)
    assert len(spans) == 4, "what the caller does not record is not sent"
    root, _ = of_request(spans, shown)
    messages = [{"role": "user", "parts": [{"type": "text", "content": PROMPT}]}]
    assert json.loads(root.attributes["gen_ai.input.messages"]) == messages
    root, calls = of_request(spans, hidden)
    assert not any(PROMPT in span.text for span in [root, *calls])
    assert PROMPT not in gateway.log


def test_the_references_headers_name_a_request_and_its_place(serve, collector, stability_api, openai_api):
    gateway = serve(config(stability_api, openai_api, collector), {"COLLECTOR_KEY": SECRET})
    span, parent = "1111111111111111", "2222222222222222"
    headers = {"x-portkey-span-id": span, "x-portkey-parent-span-id": parent, "x-portkey-span-name": "hero picture"}
    alone = generate(gateway, flags=None, **headers, **{"x-portkey-trace-id": TRACE})
    beside = generate(gateway, **headers)
    free = {"x-portkey-span-id": "my span", "x-portkey-parent-span-id": "0" * 16, "x-portkey-trace-id": "my trace"}
    text = generate(gateway, flags=None, **free)
    spans = collector.wait_for_spans(6)
    root, (call,) = of_request(spans, alone)
    assert (root.name, root.trace, root.id, root.parent) == ("hero picture", TRACE, span, parent)
    assert any(sent.headers["traceparent"] == f"00-{TRACE}-{call.id}-01" for sent in stability_api.calls)
    root, _ = of_request(spans, beside)
    assert (root.trace, root.id, root.parent) == (TRACE, span, CALLER)
    has(root, imagegate__span_id=None, imagegate__parent_span_id=parent)
    root, _ = of_request(spans, text)
    assert (root.trace, root.parent) == (text.replace("-", ""), "")
    has(root, imagegate__trace_id="my trace", imagegate__span_id="my span", imagegate__parent_span_id="0" * 16)


def test_hedges_overlap_and_what_was_not_called_is_no_call(serve, collector, stability_api, openai_api, image_files):
    settings = config(stability_api, openai_api, collector)
    stability, dalle = settings["configs"]["pc-sdxl-dalle"]["targets"]
    hedge = {"mode": "hedge", "after_ms": 50, "budget": 1.0}
    settings["configs"]["pc-sdxl-dalle"] = {"strategy": hedge, "targets": [stability, dalle]}
    # DALL-E 3 makes no variations: it is passed over.
    settings["configs"]["kept"] = {
        "strategy": {"mode": "fallback"},
        "targets": [dalle, {**dalle, "override_params": {"model": "dall-e-2"}}],
        "cache": {"mode": "simple", "max_age": 600},
    }
    gateway = serve(settings, {"COLLECTOR_KEY": SECRET})
    stability_api.always = faults.hang()
    late = generate(gateway)
    nobody = gateway.post(body={"prompt": "x"}, key="wrong")
    refused = gateway.post(body={"prompt": "x"}, headers={"x-portkey-config": "no-such"})
    assert (nobody.status_code, refused.status_code) == (401, 404)
    vary = lambda: gateway.post(
        "/images/variations", files={"image": image_files["a"].read_bytes()}, headers={"x-portkey-config": "kept"}
    )
    varied, hit = [answer.headers["x-imagegate-request-id"] for answer in (vary(), vary())]
    spans = collector.wait_for_spans(7)

    root, (first, second) = of_request(spans, late)
    assert first.start < second.start < first.end
    has(first, error__type="cancelled", imagegate__billing="unknown")
    has(second, imagegate__attempt__reason="hedge")
    assert [name for name, _ in root.events if name == "imagegate.hedge"]
    assert [span.status for span in (root, first, second)] == ["unset"] * 3
    root, (call,) = of_request(spans, varied)
    assert (root.name, call.name) == ("image_variation", "image_variation dall-e-2")
    (skipped,) = [said for name, said in root.events if name == "imagegate.target_skipped"]
    assert (skipped["imagegate.target"], skipped["imagegate.reason"]) == ("config.targets[0]", "unsupported")
    has(call, imagegate__attempt__number=2, imagegate__attempt__reason=None)
    root, calls = of_request(spans, hit)
    assert calls == []
    has(root, imagegate__cache_status="hit", imagegate__cost_usd=None)
    root, calls = of_request(spans, refused.headers["x-imagegate-request-id"])
    assert calls == [] and root.status == "error"
    has(root, error__type="not_found", http__response__status_code=404)
    known = {span.attributes["imagegate.request_id"] for span in spans}
    assert nobody.headers["x-imagegate-request-id"] not in known


def test_a_collector_that_is_away_is_nobodys_concern(serve, stability_api, openai_api):
    collector = Collector("grpc")
    gateway = serve(config(stability_api, openai_api, collector), {"COLLECTOR_KEY": f"Bearer {SECRET}"})
    said = lambda message: [event["level"] for event in gateway.back.events if event["fields"]["message"] == message]
    away, back = "the OTLP collector is away: spans wait for it, and are lost when too many do", "the OTLP collector is back"
    try:
        early = generate(gateway)
        gateway.back.wait_for_log(lambda fields: fields["message"] == away)
        late = generate(gateway)
        collector.start()
        spans = collector.wait_for_spans(4)
        assert [len(of_request(spans, request)[1]) for request in (early, late)] == [1, 1], "none was lost"
        gateway.back.wait_for_log(lambda fields: fields["message"] == back)
        assert (said(away), said(back)) == (["WARN"], ["INFO"])
        collector.stop()
        generate(gateway)
    finally:
        collector.stop()
    begun = time.monotonic()
    gateway.back.terminate()
    assert gateway.back.wait(10) == 0
    assert time.monotonic() - begun < 5
    assert SECRET not in gateway.log
