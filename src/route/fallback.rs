//! Targets in order, until one succeeds or a failure is not one that lets the next one try.

use crate::{
    call::{Call, Reply},
    config::{
        plan::Fallback,
        spec::{OnRefusal, OnUnsupported},
    },
    error::{Error, ErrorKind, Result},
};

/// Tries the children in order.
pub async fn run(fallback: &Fallback, call: &Call) -> Result<Reply> {
    let mut last: Option<Error> = None;
    for child in &fallback.children {
        let error = match Box::pin(super::run(child, call)).await {
            Ok(reply) => return Ok(reply),
            Err(error) => error,
        };
        let goes_on =
            may_go_on(fallback, &error) && !call.ctx.is_committed() && !call.ctx.remaining().is_zero();
        // A target that was only skipped has nothing to say about why the others failed.
        if error.kind != ErrorKind::Unsupported
            || last.as_ref().is_none_or(|last| last.kind == ErrorKind::Unsupported)
        {
            last = Some(error);
        }
        if !goes_on {
            break;
        }
    }
    Err(last.expect("a fallback has at least one child"))
}

/// Whether this failure lets the next target try.
fn may_go_on(fallback: &Fallback, error: &Error) -> bool {
    match error.kind {
        kind if !kind.may_fall_back() => false,
        ErrorKind::Unsupported => fallback.on_unsupported == OnUnsupported::Skip,
        ErrorKind::ContentRejected if fallback.on_refusal == OnRefusal::Return => false,
        _ => match &fallback.on_status_codes {
            None => true,
            Some(statuses) => statuses.iter().any(|status| error.matches_status(*status)),
        },
    }
}
