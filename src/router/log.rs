//! What is left of a request: its log line, its metrics, and its record in the request log.

use std::{borrow::Cow, sync::Arc};

use tokio::time::Instant;

use super::{recorded, replay::Answered, report, resolve::Route};
use crate::{
    call::{Call, Reply},
    error::{Error, ErrorKind},
    otlp::Ended,
    pb::{self, RequestRecord},
    route::cost,
    store::{Logged, Pictures, journal::Journal},
    telemetry::{self, Finished, watch},
};

/// A request in progress. Dropped unfinished, the caller went away.
#[derive(Debug)]
pub struct RequestLog {
    call: Call,
    route: Route,
    operation: pb::Operation,
    journal: Option<Arc<Journal>>,
    created_unix_ms: i64,
    started: Instant,
    finished: bool,
}

/// How a request ended.
struct Outcome<'a> {
    name: &'static str,
    status: u16,
    provider: &'a str,
    model: &'a str,
    message: &'a str,
    answer: Option<&'a Answered>,
}

impl RequestLog {
    /// A request begins. The journal is where records go.
    pub fn begin(call: &Call, route: Route, operation: pb::Operation, journal: Option<Arc<Journal>>) -> Self {
        telemetry::request_begins();
        call.ctx.record.routed();
        let (call, started) = (call.clone(), call.ctx.record.arrived());
        Self { call, route, operation, journal, created_unix_ms: pb::unix_now_ms(), started, finished: false }
    }

    /// It was answered.
    pub fn succeed(mut self, answered: &Answered) {
        let report = &answered.report;
        // A target that is left alone for now has been warned of once.
        let failed_elsewhere = |attempt: &pb::Attempt| attempt.target != report.target && attempt.is_call();
        if report.attempts.iter().any(failed_elsewhere) {
            let attempts = pb::attempts_text(&report.attempts);
            telemetry::rescued(&self.call.ctx.request_id, &report.provider, &attempts);
        }
        let outcome = Outcome {
            name: "ok",
            status: 200,
            provider: &report.provider,
            model: &report.model,
            message: "",
            answer: Some(answered),
        };
        self.finish(&outcome, Some(report));
    }

    /// It failed.
    pub fn fail(mut self, error: &Error) {
        let outcome = Outcome {
            name: error.kind.name(),
            status: error.status,
            provider: &error.provider,
            model: "",
            message: &error.message,
            answer: None,
        };
        self.finish(&outcome, error.report.as_deref());
    }

    fn finish(&mut self, outcome: &Outcome<'_>, report: Option<&pb::RouteReport>) {
        self.finished = true;
        let ctx = &self.call.ctx;
        let report = report.map_or_else(|| Cow::Owned(report::of_context(ctx)), Cow::Borrowed);
        let timings = ctx.record.timings();
        telemetry::request_ends(&Finished {
            request_id: &ctx.request_id,
            trace_id: &ctx.trace_id,
            caller: &ctx.caller,
            route: &self.route.name,
            operation: self.operation.name(),
            outcome: outcome.name,
            status: outcome.status,
            provider: outcome.provider,
            model: outcome.model,
            calls: ctx.record.calls(),
            report: &report,
            timings: &timings,
            duration: self.started.elapsed(),
            message: outcome.message,
        });
        if let Some(traced) = &ctx.traced {
            traced.end(&self.ended(outcome, &report));
        }
        if self.journal.is_none() && !watch::is_on() {
            return;
        }
        let record = self.record(outcome, report.into_owned(), timings);
        let images = match outcome.answer {
            Some(answer) if !ctx.overrides.keep_nothing => answer.reply.images.as_slice(),
            _ => &[],
        };
        watch::show(&record, images.first().map(|(_, pieces)| pieces));
        if let Some(journal) = &self.journal {
            let logged = Logged { tenant: ctx.tenant.clone(), record };
            let kept = ctx.keeps.images;
            let images = images.iter().filter(|_| kept.are_digested()).map(|(_, pieces)| pieces.clone());
            journal.note(logged, Pictures { images: images.collect(), kept });
        }
    }

    fn ended<'a>(&'a self, outcome: &'a Outcome<'_>, report: &'a pb::RouteReport) -> Ended<'a> {
        let answer = outcome.answer;
        let last = report.last_call();
        let providers =
            [outcome.provider, &report.provider, last.map_or("", |attempt| attempt.provider.as_str())];
        Ended {
            call: &self.call,
            route: &self.route,
            operation: self.operation,
            status: outcome.status,
            failure: answer.is_none().then_some((outcome.name, outcome.message)),
            provider: providers.into_iter().find(|provider| !provider.is_empty()).unwrap_or_default(),
            report,
            reply: answer.map(|answer| &answer.reply),
            duration: self.started.elapsed(),
        }
    }

    fn record(
        &self,
        outcome: &Outcome<'_>,
        mut report: pb::RouteReport,
        timings: pb::Timings,
    ) -> RequestRecord {
        let ctx = &self.call.ctx;
        let keeps_nothing = ctx.overrides.keep_nothing;
        // The record says both, and whoever reads it has the report say them again.
        report.request_id.clear();
        report.trace_id.clear();
        if keeps_nothing {
            report.attempts.iter_mut().for_each(|attempt| attempt.message.clear());
        }
        let last = report.last_call();
        let or_last = |said: &str, last: Option<&String>| match said {
            "" => last.cloned().unwrap_or_default(),
            said => said.to_owned(),
        };
        let (cost_usd, cost_unknown) = cost::sum(&report.cost_lines);
        let answer = outcome.answer;
        RequestRecord {
            id: ctx.request_id.clone(),
            trace_id: ctx.trace_id.clone(),
            created_unix_ms: self.created_unix_ms,
            duration_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            caller: ctx.caller.clone(),
            config: self.route.name.clone(),
            config_version: self.route.version,
            operation: self.operation.into(),
            outcome: outcome.name.to_owned(),
            status: outcome.status.into(),
            error_message: if keeps_nothing { String::new() } else { outcome.message.to_owned() },
            provider: or_last(outcome.provider, last.map(|last| &last.provider)),
            model: or_last(outcome.model, last.map(|last| &last.model)),
            virtual_key: {
                let upstream = self.route.upstream(&report.target, &self.call);
                upstream.and_then(|upstream| upstream.virtual_key.clone()).unwrap_or_default()
            },
            target: report.target.clone(),
            fallback: answer.is_some()
                && report.attempts.iter().any(|attempt| attempt.target != report.target),
            refused: !report.refused_by.is_empty(),
            retried: report.is_retried(),
            hedged: report.is_hedged(),
            adjusted: report.is_adjusted(),
            cache_status: report.cache_status,
            calls: u32::try_from(ctx.record.calls()).unwrap_or(u32::MAX),
            cost_usd,
            cost_unknown,
            metadata: {
                let user = if keeps_nothing { "" } else { &self.call.request.end_user };
                recorded::metadata(&ctx.metadata, user)
            },
            prompt: match ctx.keeps.prompts {
                true => self.call.request.prompt.clone(),
                false => String::new(),
            },
            asked: (!keeps_nothing).then(|| asked(&self.call.request)),
            applied: answer.map(|answer| answer.reply.applied),
            images: answer.map_or(0, |answer| u32::try_from(answer.reply.images.len()).unwrap_or(u32::MAX)),
            usage: answer.and_then(|answer| answer.reply.usage),
            report: Some(report),
            feedback: Vec::new(),
            images_made: answer.map(|answer| images_made(&answer.reply)).unwrap_or_default(),
            timings: Some(timings),
            subject: (!keeps_nothing).then(|| {
                let (named, streamed) = (ctx.upstream.as_deref(), ctx.events.is_some());
                recorded::subject(&self.call.request, &ctx.metadata, named, streamed)
            }),
        }
    }
}

/// The images of an answer, as far as they are known without a look at them.
fn images_made(reply: &Reply) -> Vec<pb::LoggedImage> {
    let images = reply.images.iter().map(|(image, pieces)| pb::LoggedImage {
        format: image.format,
        width: image.width,
        height: image.height,
        bytes: pieces.len() as u64,
        ..Default::default()
    });
    images.collect()
}

/// The parameters of a request, without what it is about.
pub fn asked(request: &pb::ImageRequest) -> pb::ImageRequest {
    pb::ImageRequest {
        operation: request.operation,
        model: request.model.clone(),
        n: request.n,
        size: request.size,
        size_policy: request.size_policy,
        quality: request.quality,
        style: request.style.clone(),
        seed: request.seed,
        steps: request.steps,
        guidance: request.guidance,
        sampler: request.sampler.clone(),
        scheduler: request.scheduler.clone(),
        strength: request.strength,
        outpaint: request.outpaint,
        upscale: request.upscale,
        control: request.control,
        input_fidelity: request.input_fidelity,
        output: request.output,
        animation: request.animation,
        prompt_rewrite: request.prompt_rewrite,
        moderation: request.moderation,
        loras: request.loras.clone(),
        partial_images: request.partial_images,
        params_policy: request.params_policy,
        ..Default::default()
    }
}

impl Drop for RequestLog {
    fn drop(&mut self) {
        if !self.finished {
            let kind = ErrorKind::Cancelled;
            let outcome = Outcome {
                name: kind.name(),
                status: kind.http_status(),
                provider: "",
                model: "",
                message: "the caller went away",
                answer: None,
            };
            self.finish(&outcome, None);
        }
    }
}
