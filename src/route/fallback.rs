//! Targets in order, until one succeeds or a failure is not one that lets the next one try.
//!
//! A target that should be left alone is passed over as long as a later one can take the request. If nobody
//! was called in the end, those that were left alone are: a bad chance beats none. They keep their order.

use super::standing;
use crate::{
    call::{Call, Reply},
    config::{
        plan::{Fallback, Plan},
        strategy::{OnRefusal, OnUnsupported},
    },
    error::{Error, ErrorKind, Result},
    health::{Ejected, Elsewhere},
};

/// Tries the children in order.
pub async fn run(fallback: &Fallback, call: &Call) -> Result<Reply> {
    let mut failures = Failures::new(call);
    for (i, child) in fallback.children.iter().enumerate() {
        let error = match Box::pin(super::run(child, &call.or(elsewhere(fallback, i, call)))).await {
            Ok(reply) => return Ok(reply),
            Err(error) => error,
        };
        let goes_on = may_go_on(fallback, &error, call);
        failures.add(child, error);
        if !goes_on {
            break;
        }
    }
    last_resort(fallback, failures, call).await
}

/// What became of children that did not answer.
pub struct Failures<'a> {
    call: &'a Call,
    calls_before: usize,
    left_alone: Vec<&'a Plan>,
    last: Option<Error>,
}

impl<'a> Failures<'a> {
    /// None yet.
    pub fn new(call: &'a Call) -> Self {
        Self { call, calls_before: call.ctx.record.calls(), left_alone: Vec::new(), last: None }
    }

    /// A child failed, or was left alone because of those beside it.
    pub fn add(&mut self, child: &'a Plan, error: Error) {
        if error.ejected.is_some_and(|ejected| !self.call.elsewhere.covers(ejected)) {
            self.left_alone.push(child);
        }
        self.last = Some(more_telling(self.last.take(), error));
    }
}

/// The end of a fallback that nobody answered: if nobody was called, those that were left alone are.
pub async fn last_resort(fallback: &Fallback, failures: Failures<'_>, call: &Call) -> Result<Reply> {
    let Failures { calls_before, left_alone, mut last, .. } = failures;
    if call.ctx.record.calls() == calls_before {
        for child in left_alone {
            let error = match Box::pin(super::run(child, call)).await {
                Ok(reply) => return Ok(reply),
                Err(error) => error,
            };
            let goes_on = may_go_on(fallback, &error, call);
            last = Some(more_telling(last, error));
            if !goes_on {
                break;
            }
        }
    }
    Err(last.expect("a fallback has at least one child"))
}

/// Whether a child after the `i`th can take the request over, and from what.
pub fn elsewhere(fallback: &Fallback, i: usize, call: &Call) -> Elsewhere {
    let rest = &fallback.children[i + 1..];
    let (if_broken, if_paused) = (lets_broken(fallback), lets_paused(fallback));
    if !(if_broken || if_paused) || !rest.iter().any(|child| standing::is_available(child, call)) {
        return Elsewhere::default();
    }
    Elsewhere { if_broken, if_paused }
}

/// Whether this failure lets the next target try.
pub fn may_go_on(fallback: &Fallback, error: &Error, call: &Call) -> bool {
    if call.ctx.is_committed() || call.remaining().is_zero() {
        return false;
    }
    match (error.ejected, error.kind) {
        (Some(Ejected::Paused(_)), _) => lets_paused(fallback),
        (Some(_), _) => lets_broken(fallback),
        (None, kind) if !kind.may_fall_back() => false,
        (None, ErrorKind::Unsupported) => fallback.on_unsupported == OnUnsupported::Skip,
        (None, ErrorKind::ContentRejected) if fallback.on_refusal == OnRefusal::Return => false,
        (None, _) => match &fallback.on_status_codes {
            None => true,
            Some(statuses) => statuses.iter().any(|status| error.matches_status(*status)),
        },
    }
}

/// A fallback on any server error is one for a target that had too many of them.
fn lets_broken(fallback: &Fallback) -> bool {
    fallback.on_status_codes.as_ref().is_none_or(|statuses| statuses.iter().any(|status| *status >= 500))
}

fn lets_paused(fallback: &Fallback) -> bool {
    fallback.on_status_codes.as_ref().is_none_or(|statuses| statuses.contains(&429))
}

/// The later failure, unless only the earlier one is of a target that was called: one that was passed over has
/// nothing to say about why the others failed.
pub fn more_telling(last: Option<Error>, error: Error) -> Error {
    let rank = |error: &Error| match (error.ejected, error.kind) {
        (None, ErrorKind::Unsupported) => 0,
        (Some(_), _) => 1,
        (None, _) => 2,
    };
    match last {
        Some(last) if rank(&last) > rank(&error) => last,
        _ => error,
    }
}
