//! Whether and when a target is tried again.

use std::time::Duration;

use crate::{
    config::policies::Retry,
    error::{Error, ErrorKind},
    pb::BillingClass,
};

/// First pause, doubled after every retry.
const FIRST_DELAY: Duration = Duration::from_secs(1);

/// How far the waits that a provider asked for are spread, however short: everybody was asked at the same moment.
const ASKED_SPREAD: Duration = Duration::from_secs(1);

/// Why there is no next try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Withheld {
    /// The config has none, or none for this failure, or all are used up.
    NotWanted,
    /// The wait would outlast the caller.
    NoTime,
    /// More may have been paid for failed attempts than the config allows.
    TooExpensive,
    /// The target's retries have reached their share of its traffic.
    BudgetSpent,
    /// A rate limit or a budget does not allow it.
    OverQuota,
    /// The target's circuit breaker has opened, and another target can take over.
    TargetIsDown,
}

impl Withheld {
    /// For metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::NotWanted => "not_wanted",
            Self::NoTime => "no_time",
            Self::TooExpensive => "max_duplicate_spend",
            Self::BudgetSpent => "budget",
            Self::OverQuota => "over_quota",
            Self::TargetIsDown => "breaker_open",
        }
    }

    /// For the caller, where a retry was to be expected.
    pub fn explanation(self) -> Option<&'static str> {
        match self {
            Self::NotWanted => None,
            Self::NoTime => Some("no retry: the wait before it is longer than the time that is left"),
            Self::TooExpensive => {
                Some("no retry: what may have been paid for failed attempts exceeds max_duplicate_spend_usd")
            }
            Self::BudgetSpent => {
                Some("no retry: the target's retries have reached their share of its requests")
            }
            Self::OverQuota => Some("no retry: a rate limit or a budget does not allow another call"),
            Self::TargetIsDown => Some("no retry: the target has failed too often and another can take over"),
        }
    }
}

/// How long to wait before the next try.
///
/// `retries` counts those already made. `dice` is uniform in 0..1: the pause is drawn from the whole range
/// below the exponential limit, or added to what the provider asked for, so that callers that failed together do not come back together.
///
/// # Errors
/// Why there is none.
pub fn pause(
    retry: &Retry,
    retries: u32,
    error: &Error,
    remaining: Duration,
    dice: f64,
) -> Result<Duration, Withheld> {
    if retries >= retry.attempts || !is_worth_it(retry, error) {
        return Err(Withheld::NotWanted);
    }
    let limit = FIRST_DELAY.saturating_mul(1 << retries.min(16)).min(retry.max_delay);
    let asked = error.retry_after.filter(|pause| retry.use_retry_after_header && !pause.is_zero());
    let dice = if retry.jitter { Some(dice) } else { None };
    let pause = match (asked, dice) {
        // Never sooner than asked; a little later, because others were asked the same.
        (Some(asked), dice) => asked + ASKED_SPREAD.mul_f64(dice.unwrap_or(0.0)),
        (None, Some(dice)) => limit.mul_f64(dice),
        (None, None) => limit,
    };
    // A pause that outlasts the caller helps nobody; an outer fallback may still have time.
    if pause < remaining { Ok(pause) } else { Err(Withheld::NoTime) }
}

/// What a target that failed in the end reports of its retries: how many there were, or -1 if only patience was
/// missing for another.
pub fn count(retry: Option<&Retry>, retries: u32, error: &Error) -> i32 {
    if retry.is_some_and(|retry| retry.attempts > 0 && is_worth_it(retry, error)) {
        return -1;
    }
    i32::try_from(retries).unwrap_or(i32::MAX)
}

fn is_worth_it(retry: &Retry, error: &Error) -> bool {
    let listed = retry.on_status_codes.iter().any(|status| error.matches_status(*status));
    match error.kind {
        // Never the same picture twice: a refusal stays a refusal, credit does not come back by itself.
        ErrorKind::ContentRejected
        | ErrorKind::Unsupported
        | ErrorKind::QuotaExhausted
        | ErrorKind::Cancelled => false,
        // A provider that stayed silent may still be painting, and bill for it: only if the config says so. One
        // that answered 504 has given up.
        ErrorKind::Timeout => retry.on_status_codes.contains(&408) || (listed && !error.transport),
        // Sent for sure and answered by nobody: as above.
        ErrorKind::Unavailable if error.transport => error.billing == BillingClass::NotSent || listed,
        _ => listed && error.billing != BillingClass::Billed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn retry() -> Retry {
        Retry {
            attempts: 2,
            on_status_codes: vec![429, 500, 503, 504],
            use_retry_after_header: true,
            max_delay: Duration::from_secs(16),
            jitter: true,
            budget: None,
            max_duplicate_spend_usd: None,
        }
    }

    const LONG: Duration = Duration::from_secs(600);

    #[test]
    fn pauses_grow_and_end() {
        let error = Error::new(ErrorKind::Unavailable, "x").billed(BillingClass::Unknown);
        assert_eq!(pause(&retry(), 0, &error, LONG, 0.5), Ok(Duration::from_millis(500)));
        assert_eq!(pause(&retry(), 1, &error, LONG, 0.5), Ok(Duration::from_secs(1)));
        let steady = Retry { jitter: false, ..retry() };
        assert_eq!(pause(&steady, 1, &error, LONG, 0.5), Ok(Duration::from_secs(2)));
        assert_eq!(pause(&retry(), 2, &error, LONG, 0.5), Err(Withheld::NotWanted));
    }

    #[test]
    fn the_provider_may_ask_for_its_own_pause_but_not_beyond_the_caller() {
        let mut error = Error::new(ErrorKind::RateLimited, "x");
        error.retry_after = Some(Duration::from_secs(7));
        assert_eq!(pause(&retry(), 0, &error, LONG, 0.0), Ok(Duration::from_secs(7)));
        assert_eq!(pause(&retry(), 0, &error, Duration::from_secs(7), 0.0), Err(Withheld::NoTime));
    }

    #[test]
    fn a_provider_that_says_504_has_not_stayed_silent() {
        let said = Error::new(ErrorKind::Timeout, "x").with_status(504);
        assert!(pause(&retry(), 0, &said, LONG, 0.5).is_ok());
        let unlisted = Retry { on_status_codes: vec![500], ..retry() };
        assert_eq!(pause(&unlisted, 0, &said, LONG, 0.5), Err(Withheld::NotWanted));
    }

    #[test]
    fn what_may_have_been_billed_is_not_repeated_unasked() {
        for error in [
            Error::new(ErrorKind::ContentRejected, "x").with_status(429),
            Error::new(ErrorKind::QuotaExhausted, "x"),
            Error::new(ErrorKind::Timeout, "x"),
            Error::transport(ErrorKind::Timeout, BillingClass::Unknown, "x"),
            Error::bad_answer("x").with_status(500),
        ] {
            assert_eq!(pause(&retry(), 0, &error, LONG, 0.5), Err(Withheld::NotWanted), "{error:?}");
        }
    }
}
