//! The spans of a request that has ended: one of the request as a whole, and below it one for each provider call.
//!
//! What was passed over without a call is an event of the request's span, and so is every change of a parameter.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use opentelemetry::{Array, StringValue, Value};
use opentelemetry_proto::tonic::trace::v1::{
    Span, SpanFlags, Status,
    span::{Event, SpanKind},
    status::StatusCode,
};
use serde_json::json;
use url::Url;

use super::{
    attributes::{self as names, Attributes},
    traced::Traced,
    why::{self, Why},
};
use crate::{
    call::{Call, Reply},
    config::plan::Upstream,
    error::{Error, ErrorKind},
    pb::{Attempt, CacheStatus, CostLine, FinishReason, ImageRequest, Operation, RouteReport},
    router::resolve::Route,
    trace::SpanId,
};

/// The flag of a trace that is recorded.
const SAMPLED: u32 = 1;

/// The outcome of what was given up for something else. Nothing was wrong with it.
const CANCELLED: ErrorKind = ErrorKind::Cancelled;

const NANOS_PER_MS: u64 = 1_000_000;

/// A request that has ended.
#[derive(Debug)]
pub struct Ended<'a> {
    /// The request at the top of its plan.
    pub call: &'a Call,
    /// Its plan.
    pub route: &'a Route,
    /// What was asked for.
    pub operation: Operation,
    /// HTTP status.
    pub status: u16,
    /// What was wrong, if something was: an error's kind and text.
    pub failure: Option<(&'a str, &'a str)>,
    /// Who answered, or failed last.
    pub provider: &'a str,
    /// What happened.
    pub report: &'a RouteReport,
    /// The answer.
    pub reply: Option<&'a Reply>,
    /// From its arrival.
    pub duration: Duration,
}

/// When things happened, in nanoseconds since 1970.
struct Clock {
    start: u64,
    end: u64,
}

/// All spans of a request, its own first.
pub fn of(traced: &Traced, ended: &Ended<'_>) -> Vec<Span> {
    let clock = Clock::ending_now(ended.duration);
    let calls: Vec<&Attempt> = ended.report.attempts.iter().filter(|attempt| attempt.is_call()).collect();
    let mut spans = Vec::with_capacity(1 + calls.len());
    let mut events: Vec<Event> = ended.events(&clock).collect();
    spans.push(ended.span(traced, &clock));
    for (i, attempt) in calls.iter().enumerate() {
        let why = Why::of(attempt, &calls[..i]);
        events.extend(why.event(attempt, clock.at(attempt.started_ms)));
        spans.push(ended.attempt(traced, attempt, &why, &clock));
    }
    events.sort_by_key(|event| event.time_unix_nano);
    spans[0].events = events;
    spans
}

/// The span of a request that was refused before anything was tried.
pub fn of_refused(
    traced: &Traced,
    image: &ImageRequest,
    (request_id, trace_id): (&str, &str),
    error: &Error,
    duration: Duration,
) -> Span {
    let mut attributes = Attributes::default();
    let operation = image.effective_operation();
    put_asked(&mut attributes, operation, image);
    attributes.put_text(names::REQUEST_ID, request_id);
    attributes.put_text(names::TRACE_ID, trace_id);
    attributes.put(names::STATUS_CODE, i64::from(error.status));
    attributes.put(names::ERROR_TYPE, error.kind.name());
    // The text may quote what the caller sent, and is in the log.
    let status = Some(failed(""));
    root(traced, operation, image, attributes, status, &Clock::ending_now(duration))
}

impl Ended<'_> {
    /// The request as a whole.
    fn span(&self, traced: &Traced, clock: &Clock) -> Span {
        let (ctx, report) = (&self.call.ctx, self.report);
        let image = &*self.call.request;
        let mut attributes = Attributes::default();
        put_asked(&mut attributes, self.operation, image);
        attributes.put_text(names::PROVIDER_NAME, names::provider_name(self.provider));
        if let Some(reply) = self.reply {
            attributes.put_text(names::RESPONSE_MODEL, &reply.model);
        }
        attributes.put_some(names::FINISH_REASONS, self.finish_reasons().map(texts));
        // What was counted for another request was paid there.
        let is_own = report.replay_of.is_empty()
            && !matches!(report.cache_status(), CacheStatus::Hit | CacheStatus::SemanticHit);
        if let Some(usage) = self.reply.filter(|_| is_own).and_then(|reply| reply.usage) {
            for (name, tokens) in
                [(names::INPUT_TOKENS, usage.input_tokens()), (names::OUTPUT_TOKENS, usage.output_tokens())]
            {
                if tokens > 0 {
                    attributes.put_count(name, tokens);
                }
            }
        }
        if traced.shows_prompts() && !ctx.overrides.keep_nothing {
            attributes.put(names::INPUT_MESSAGES, messages(image));
        }
        attributes.put(names::STATUS_CODE, i64::from(self.status));
        attributes.put_some(names::ERROR_TYPE, self.failure.map(|(kind, _)| kind.to_owned()));
        attributes.put_text(names::REQUEST_ID, &ctx.request_id);
        attributes.put_text(names::TRACE_ID, &ctx.trace_id);
        attributes.put_text(names::CALLER, &ctx.caller);
        attributes.put_text(names::CONFIG, &self.route.name);
        if self.route.version > 0 {
            attributes.put(names::CONFIG_VERSION, i64::from(self.route.version));
        }
        attributes.put_text(names::TARGET, &report.target);
        put_virtual_key(&mut attributes, self.route.upstream(&report.target, self.call));
        attributes.put_some(names::CACHE_STATUS, report.cache_status().name());
        attributes.put_text(names::REPLAY_OF, &report.replay_of);
        if !report.refused_by.is_empty() {
            attributes.put(names::REFUSED_BY, texts(report.refused_by.iter().cloned()));
        }
        if self.reply.is_some() && report.attempts.iter().any(|attempt| attempt.target != report.target) {
            attributes.put(names::FALLBACK, true);
        }
        put_cost(&mut attributes, report.cost_lines.iter());
        let status = self.failure.map(|(_, message)| failed(self.shown(message)));
        root(traced, self.operation, image, attributes, status, clock)
    }

    /// One provider call.
    fn attempt(&self, traced: &Traced, attempt: &Attempt, why: &Why<'_>, clock: &Clock) -> Span {
        let mut attributes = Attributes::default();
        attributes.put(names::OPERATION_NAME, names::operation_name(self.operation));
        attributes.put(names::OUTPUT_TYPE, "image");
        attributes.put_text(names::PROVIDER_NAME, names::provider_name(&attempt.provider));
        attributes.put_text(names::REQUEST_MODEL, &attempt.model);
        if attempt.outcome == ErrorKind::ContentRejected.name() {
            attributes.put(names::FINISH_REASONS, texts(["content_filter".to_owned()]));
        }
        let is_ok = attempt.outcome == why::OK;
        if attempt.status > 0 {
            attributes.put(names::STATUS_CODE, i64::from(attempt.status));
        }
        if !is_ok {
            attributes.put_text(names::ERROR_TYPE, &attempt.outcome);
        }
        attributes.put_text(names::REQUEST_ID, &self.call.ctx.request_id);
        attributes.put(names::ATTEMPT_NUMBER, i64::from(attempt.number));
        why.put(&mut attributes);
        attributes.put_text(names::TARGET, &attempt.target);
        let upstream = self.route.upstream(&attempt.target, self.call);
        put_virtual_key(&mut attributes, upstream);
        self.put_server(&mut attributes, upstream);
        attributes.put(names::BILLING, attempt.billing().name());
        let retry_after = self.call.ctx.record.retry_after(attempt.number);
        attributes.put_some(names::RETRY_AFTER_S, retry_after.map(|after| after.as_secs_f64()));
        attributes.put_text(names::UPSTREAM_REQUEST_ID, &attempt.upstream_request_id);
        put_cost(
            &mut attributes,
            self.report.cost_lines.iter().filter(|line| line.attempt == attempt.number),
        );
        let is_failure = !is_ok && attempt.outcome != CANCELLED.name();
        Span {
            trace_id: traced.context().trace().to_vec(),
            span_id: traced.attempt_span(attempt.number).to_vec(),
            parent_span_id: traced.span.to_vec(),
            trace_state: traced.context().state().to_owned(),
            flags: SAMPLED | SpanFlags::ContextHasIsRemoteMask as u32,
            name: span_name(self.operation, &attempt.model),
            kind: SpanKind::Client.into(),
            start_time_unix_nano: clock.at(attempt.started_ms),
            end_time_unix_nano: clock.at(attempt.started_ms.saturating_add(attempt.duration_ms)),
            attributes: attributes.written(),
            status: is_failure.then(|| failed(self.shown(&attempt.message))),
            ..Default::default()
        }
    }

    /// The provider's host, as far as this router knows it.
    fn put_server(&self, attributes: &mut Attributes, upstream: Option<&Upstream>) {
        let base = upstream.and_then(|upstream| upstream.base_url.as_ref());
        let base = self.call.ctx.overrides.custom_host.as_ref().or(base);
        let url = base.and_then(|base| Url::parse(&base.url).ok());
        attributes.put_text(names::SERVER_ADDRESS, url.as_ref().and_then(Url::host_str).unwrap_or_default());
    }

    /// What was passed over, and what was changed.
    fn events<'a>(&'a self, clock: &'a Clock) -> impl Iterator<Item = Event> + 'a {
        let skipped = self.report.attempts.iter().filter(|attempt| !attempt.is_call()).map(move |attempt| {
            let mut attributes = Attributes::default();
            attributes.put_text(names::TARGET, &attempt.target);
            attributes.put_text(names::PROVIDER_NAME, names::provider_name(&attempt.provider));
            attributes.put_text(names::REQUEST_MODEL, &attempt.model);
            attributes.put_text(names::REASON, &attempt.reason);
            attributes.put_text(names::DETAIL, self.shown(&attempt.message));
            event(names::SKIPPED_EVENT, clock.at(attempt.started_ms), attributes)
        });
        let changed = self.report.warnings.iter().map(move |warning| {
            let mut attributes = Attributes::default();
            attributes.put_text(names::FIELD, &warning.field);
            attributes.put_some(names::ACTION, warning.action().name());
            attributes.put_text(names::DETAIL, self.shown(&warning.detail));
            attributes.put_text(names::TARGET, &warning.target);
            event(names::PARAMETER_EVENT, clock.end, attributes)
        });
        skipped.chain(changed)
    }

    /// For each image why it ends, or why there is none.
    fn finish_reasons(&self) -> Option<Vec<String>> {
        if let Some(reply) = self.reply {
            return Some(
                reply.images.iter().map(|(image, _)| finish_reason(image.finish_reason())).collect(),
            );
        }
        let is_refused = self.failure.is_some_and(|(kind, _)| kind == ErrorKind::ContentRejected.name());
        is_refused.then(|| vec![finish_reason(FinishReason::ContentFiltered)])
    }

    /// A text that may be about the content of the request.
    fn shown<'a>(&self, text: &'a str) -> &'a str {
        if self.call.ctx.overrides.keep_nothing { "" } else { text }
    }
}

impl Clock {
    fn ending_now(duration: Duration) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let nanos = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Self { start: nanos(now.saturating_sub(duration)), end: nanos(now) }
    }

    /// So long after the request came, at its end at the latest.
    fn at(&self, ms: u64) -> u64 {
        self.start.saturating_add(ms.saturating_mul(NANOS_PER_MS)).min(self.end)
    }
}

/// The span that all others are below.
fn root(
    traced: &Traced,
    operation: Operation,
    image: &ImageRequest,
    mut attributes: Attributes,
    status: Option<Status>,
    clock: &Clock,
) -> Span {
    for (name, text) in &traced.references {
        attributes.put_text(name, text);
    }
    let parent = traced.parent.map_or_else(Vec::new, |parent: SpanId| parent.to_vec());
    let remote = if parent.is_empty() { 0 } else { SpanFlags::ContextIsRemoteMask as u32 };
    Span {
        trace_id: traced.context().trace().to_vec(),
        span_id: traced.span.to_vec(),
        parent_span_id: parent,
        trace_state: traced.context().state().to_owned(),
        flags: SAMPLED | SpanFlags::ContextHasIsRemoteMask as u32 | remote,
        name: traced.name.clone().unwrap_or_else(|| span_name(operation, &image.model)),
        kind: SpanKind::Server.into(),
        start_time_unix_nano: clock.start,
        end_time_unix_nano: clock.end,
        attributes: attributes.written(),
        status,
        ..Default::default()
    }
}

/// As the conventions name spans.
fn span_name(operation: Operation, model: &str) -> String {
    format!("{} {model}", names::operation_name(operation)).trim_end().to_owned()
}

fn put_asked(attributes: &mut Attributes, operation: Operation, image: &ImageRequest) {
    attributes.put(names::OPERATION_NAME, names::operation_name(operation));
    attributes.put(names::OUTPUT_TYPE, "image");
    attributes.put_text(names::REQUEST_MODEL, &image.model);
    attributes.put_count(names::CHOICE_COUNT, image.wanted() as u64);
    attributes.put(names::OPERATION, operation.name());
}

/// The credential by its name.
fn put_virtual_key(attributes: &mut Attributes, upstream: Option<&Upstream>) {
    let named = upstream.and_then(|upstream| upstream.virtual_key.as_deref());
    attributes.put_text(names::VIRTUAL_KEY, named.unwrap_or_default());
}

/// What is known of the cost. An unknown price is not 0.
fn put_cost<'a>(attributes: &mut Attributes, lines: impl Iterator<Item = &'a CostLine> + Clone) {
    let amounts = lines.map(|line| line.amount_usd);
    if amounts.clone().any(|amount| amount.is_some()) {
        attributes.put(names::COST_USD, amounts.clone().flatten().sum::<f64>());
    }
    if amounts.clone().any(|amount| amount.is_none()) {
        attributes.put(names::COST_UNKNOWN, true);
    }
}

/// The prompt, in the form that the conventions' JSON schema of input messages has.
fn messages(image: &ImageRequest) -> String {
    let weighted = image.weighted_prompts.iter().map(|prompt| prompt.text.as_str());
    let texts = Some(image.prompt.as_str()).filter(|prompt| !prompt.is_empty()).into_iter().chain(weighted);
    let parts: Vec<_> = texts.map(|text| json!({"type": "text", "content": text})).collect();
    json!([{"role": "user", "parts": parts}]).to_string()
}

fn finish_reason(reason: FinishReason) -> String {
    let name = match reason {
        FinishReason::Unspecified | FinishReason::Stop => "stop",
        FinishReason::ContentFiltered => "content_filter",
        FinishReason::Error => "error",
    };
    name.to_owned()
}

fn texts(texts: impl IntoIterator<Item = String>) -> Value {
    Value::Array(Array::String(texts.into_iter().map(StringValue::from).collect()))
}

fn failed(message: &str) -> Status {
    Status { message: message.to_owned(), code: StatusCode::Error.into() }
}

/// Something that happened during a span.
pub fn event(name: &str, at: u64, attributes: Attributes) -> Event {
    Event {
        time_unix_nano: at,
        name: name.to_owned(),
        attributes: attributes.written(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_has_the_form_of_the_conventions() {
        let weighted = crate::pb::WeightedPrompt { text: "a dog".into(), weight: 0.5 };
        let image = ImageRequest {
            prompt: "a \"cat\"".into(),
            weighted_prompts: vec![weighted],
            ..Default::default()
        };
        let expected = r#"[{"parts":[{"content":"a \"cat\"","type":"text"},{"content":"a dog","type":"text"}],"role":"user"}]"#;
        assert_eq!(messages(&image), expected);
    }

    #[test]
    fn an_unknown_price_is_not_zero() {
        let cost = |amounts: &[Option<f64>]| {
            let lines: Vec<_> =
                amounts.iter().map(|amount| CostLine { amount_usd: *amount, ..Default::default() }).collect();
            let mut attributes = Attributes::default();
            put_cost(&mut attributes, lines.iter());
            attributes.as_slice().iter().map(|one| format!("{} {}", one.key, one.value)).collect::<Vec<_>>()
        };
        assert_eq!(cost(&[]), [""; 0]);
        assert_eq!(cost(&[Some(0.25), Some(0.5)]), ["imagegate.cost_usd 0.75"]);
        assert_eq!(cost(&[None]), ["imagegate.cost_unknown true"]);
        assert_eq!(cost(&[Some(0.25), None]), ["imagegate.cost_usd 0.25", "imagegate.cost_unknown true"]);
    }
}
