//! What routing did, for answers, errors and logs.

use crate::{
    call::{Reply, RequestContext},
    error::{Error, ErrorKind},
    pb,
};

/// The report of a request that `reply` answered.
pub fn of_reply(ctx: &RequestContext, reply: &Reply) -> pb::RouteReport {
    pb::RouteReport {
        provider: reply.provider.clone(),
        model: reply.model.clone(),
        target: reply.target.clone(),
        retry_count: reply.retry_count,
        cache_status: reply.cache_status.into(),
        warnings: reply.warnings.clone(),
        strict_open_ai_compliance: reply.strict_open_ai_compliance,
        ..of_context(ctx)
    }
}

/// The error of a request that no target answered: the last one's, with every target's failure in its text.
pub fn of_error(ctx: &RequestContext, mut error: Error) -> Error {
    let mut report = of_context(ctx);
    report.warnings = ctx.record.warnings();
    report.cache_status = ctx.record.cache_status().into();
    if let Some(last) = report.attempts.iter().rev().find(|attempt| attempt.is_call()) {
        report.target.clone_from(&last.target);
        report.provider.clone_from(&last.provider);
        report.model.clone_from(&last.model);
        report.retry_count = ctx.record.retry_count();
    } else if let Some(skipped) = report.attempts.last() {
        report.target.clone_from(&skipped.target);
        report.provider.clone_from(&skipped.provider);
    }
    let several = report.attempts.iter().any(|attempt| attempt.target != report.attempts[0].target);
    if several && error.kind != ErrorKind::Cancelled {
        let failures: Vec<String> = report.attempts.iter().map(failure).collect();
        error.message = format!("{} (every target failed: {})", error.message, failures.join("; "));
    }
    error.report = Some(Box::new(report));
    error
}

fn failure(attempt: &pb::Attempt) -> String {
    let status = if attempt.status > 0 { format!(" ({})", attempt.status) } else { String::new() };
    format!("{} {}: {}{status}: {}", attempt.target, attempt.provider, attempt.outcome, attempt.message)
}

/// The report of a request as far as it has come.
pub fn of_context(ctx: &RequestContext) -> pb::RouteReport {
    let attempts = ctx.record.attempts();
    let refused = attempts.iter().filter(|attempt| attempt.outcome == ErrorKind::ContentRejected.name());
    pb::RouteReport {
        request_id: ctx.request_id.clone(),
        trace_id: ctx.trace_id.clone(),
        refused_by: refused.map(|attempt| format!("{} {}", attempt.target, attempt.provider)).collect(),
        cost_lines: ctx.record.cost_lines(),
        attempts,
        ..Default::default()
    }
}
