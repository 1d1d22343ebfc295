//! Why there is a provider call: by when the calls of a request began and ended, and how.

use opentelemetry_proto::tonic::trace::v1::span::Event;

use super::{
    attributes::{self as names, Attributes},
    spans::event,
};
use crate::pb::Attempt;

/// The outcome of a call that gave images.
pub const OK: &str = "ok";

/// Why there is a provider call.
pub enum Why<'a> {
    /// It is the first, or one of several that make up one answer.
    Planned,
    /// The same target again, after this one.
    Retry(&'a Attempt),
    /// Another target, after this one.
    Fallback(&'a Attempt),
    /// Another target, beside this one, which is late.
    Hedge(&'a Attempt),
}

impl<'a> Why<'a> {
    /// Why, after the calls that began earlier.
    pub fn of(attempt: &Attempt, earlier: &[&'a Attempt]) -> Self {
        let has_ended = |one: &Attempt| one.started_ms.saturating_add(one.duration_ms) <= attempt.started_ms;
        let has_failed = |one: &Attempt| has_ended(one) && one.outcome != OK;
        let last =
            |is_wanted: &dyn Fn(&Attempt) -> bool| earlier.iter().rev().copied().find(|one| is_wanted(one));
        let is_same = |one: &Attempt| one.target == attempt.target;
        if let Some(failed) = last(&|one| is_same(one) && has_failed(one)) {
            Self::Retry(failed)
        } else if earlier.iter().any(|one| is_same(one)) {
            Self::Planned
        } else if let Some(late) = last(&|one| !has_ended(one)) {
            Self::Hedge(late)
        } else {
            last(&has_failed).map_or(Self::Planned, Self::Fallback)
        }
    }

    /// What the call's span says of it.
    pub fn put(&self, attributes: &mut Attributes) {
        let (reason, other) = match self {
            Self::Planned => return,
            Self::Retry(failed) => ("retry", Some(failed)),
            Self::Fallback(failed) => ("fallback", Some(failed)),
            Self::Hedge(_) => ("hedge", None),
        };
        attributes.put(names::ATTEMPT_REASON, reason);
        attributes.put_some(names::ATTEMPT_CAUSE, other.map(|failed| failed.outcome.clone()));
    }

    /// What the request's span says of it.
    pub fn event(&self, attempt: &Attempt, at: u64) -> Option<Event> {
        let (name, other) = match self {
            Self::Planned | Self::Retry(_) => return None,
            Self::Fallback(failed) => (names::FALLBACK_EVENT, failed),
            Self::Hedge(late) => (names::HEDGE_EVENT, late),
        };
        let mut attributes = Attributes::default();
        attributes.put_text(names::FROM_TARGET, &other.target);
        attributes.put_text(names::TARGET, &attempt.target);
        self.put(&mut attributes);
        Some(event(name, at, attributes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(target: &str, outcome: &str, started_ms: u64, duration_ms: u64) -> Attempt {
        let (target, outcome) = (target.to_owned(), outcome.to_owned());
        Attempt { target, outcome, started_ms, duration_ms, ..Default::default() }
    }

    fn reasons(calls: &[Attempt]) -> Vec<String> {
        let calls: Vec<&Attempt> = calls.iter().collect();
        let why = |(i, attempt): (usize, &&Attempt)| match Why::of(attempt, &calls[..i]) {
            Why::Planned => "planned".to_owned(),
            Why::Retry(other) => format!("retry after {}", other.outcome),
            Why::Fallback(other) => format!("fallback from {} after {}", other.target, other.outcome),
            Why::Hedge(other) => format!("hedge beside {}", other.target),
        };
        calls.iter().enumerate().map(why).collect()
    }

    #[test]
    fn every_call_has_a_reason() {
        let one_after_the_other = [
            call("a", "timeout", 0, 10),
            call("a", "unavailable", 30, 10),
            call("b", "rate_limited", 40, 0),
            call("c", "ok", 40, 5),
        ];
        let expected = [
            "planned",
            "retry after timeout",
            "fallback from a after unavailable",
            "fallback from b after rate_limited",
        ];
        assert_eq!(reasons(&one_after_the_other), expected);
        let side_by_side = [call("a", "cancelled", 0, 50), call("b", "ok", 20, 30)];
        assert_eq!(reasons(&side_by_side), ["planned", "hedge beside a"]);
        // Three images by three calls, tried twice, and then elsewhere.
        let together = [
            call("a", "ok", 0, 9),
            call("a", "unavailable", 0, 10),
            call("a", "cancelled", 0, 10),
            call("a", "ok", 20, 9),
            call("a", "timeout", 20, 10),
            call("b", "ok", 30, 10),
            call("b", "ok", 30, 10),
        ];
        let again = "retry after cancelled";
        let elsewhere = "fallback from a after timeout";
        let expected = ["planned", "planned", "planned", again, again, elsewhere, "planned"];
        assert_eq!(reasons(&together), expected);
    }
}
