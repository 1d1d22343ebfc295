//! The one log line of a request, and its metrics.

use std::sync::Arc;

use tokio::time::Instant;

use crate::{
    call::RequestContext,
    error::{Error, ErrorKind},
    pb,
    telemetry::{self, Finished},
};

/// A request in progress. Dropped unfinished, the caller went away.
#[derive(Debug)]
pub struct RequestLog {
    ctx: Arc<RequestContext>,
    route: String,
    operation: &'static str,
    started: Instant,
    finished: bool,
}

impl RequestLog {
    /// A request begins.
    pub fn begin(ctx: Arc<RequestContext>, route: String, operation: pb::Operation) -> Self {
        telemetry::request_begins();
        Self { ctx, route, operation: operation.name(), started: Instant::now(), finished: false }
    }

    /// It was answered.
    pub fn succeed(mut self, report: &pb::RouteReport) {
        // A target that is left alone for now has been warned of once.
        let failed_elsewhere = |attempt: &pb::Attempt| attempt.target != report.target && attempt.is_call();
        if report.attempts.iter().any(failed_elsewhere) {
            let attempts = pb::attempts_text(&report.attempts);
            telemetry::rescued(&self.ctx.request_id, &report.provider, &attempts);
        }
        self.finish("ok", 200, (&report.provider, &report.model), "");
    }

    /// It failed.
    pub fn fail(mut self, error: &Error) {
        self.finish(error.kind.name(), error.status, (&error.provider, ""), &error.message);
    }

    fn finish(&mut self, outcome: &'static str, status: u16, (provider, model): (&str, &str), message: &str) {
        self.finished = true;
        telemetry::request_ends(&Finished {
            request_id: &self.ctx.request_id,
            trace_id: &self.ctx.trace_id,
            caller: &self.ctx.caller,
            route: &self.route,
            operation: self.operation,
            outcome,
            status,
            provider,
            model,
            calls: self.ctx.record.calls(),
            duration: self.started.elapsed(),
            message,
        });
    }
}

impl Drop for RequestLog {
    fn drop(&mut self) {
        if !self.finished {
            let kind = ErrorKind::Cancelled;
            self.finish(kind.name(), kind.http_status(), ("", ""), "the caller went away");
        }
    }
}
