//! What a record of the request log tells at a glance.

use super::{Attempt, RequestRecord, RouteReport, warning::Action};

impl RequestRecord {
    /// What is remarkable about it, in a word each, in the order in which things happen.
    pub fn badges(&self) -> Vec<String> {
        let marks = [(self.fallback, "fallback"), (self.retried, "retry"), (self.hedged, "hedge")];
        let mut badges = chosen(&marks);
        if self.calls > 1 {
            badges.push(format!("calls:{}", self.calls));
        }
        badges.extend(chosen(&[(self.refused, "refused"), (self.adjusted, "adjusted")]));
        badges.extend(self.cache_status().name().map(|status| format!("cache:{status}")));
        badges
    }

    /// Who answered, or failed last: `openai/dall-e-3`; empty where nobody was asked.
    pub fn answered_by(&self) -> String {
        format!("{}/{}", self.provider, self.model).trim_end_matches('/').to_owned()
    }

    /// When it was over, in milliseconds since 1970.
    pub fn ended_unix_ms(&self) -> i64 {
        self.created_unix_ms.saturating_add_unsigned(self.duration_ms)
    }
}

fn chosen(marks: &[(bool, &str)]) -> Vec<String> {
    marks.iter().filter(|(is_so, _)| *is_so).map(|(_, name)| (*name).to_owned()).collect()
}

impl RouteReport {
    /// The provider call that began last.
    pub fn last_call(&self) -> Option<&Attempt> {
        self.attempts.iter().rev().find(|attempt| attempt.is_call())
    }

    /// Whether some target was called again after it had failed.
    pub fn is_retried(&self) -> bool {
        self.has_pair(|before, after| {
            before.target == after.target && before.has_failed() && before.ended_ms() <= after.started_ms
        })
    }

    /// Whether another target was called beside one that was late.
    pub fn is_hedged(&self) -> bool {
        self.has_pair(|before, after| before.target != after.target && before.ended_ms() > after.started_ms)
    }

    /// Whether a parameter reached the target otherwise than written, or not at all.
    pub fn is_adjusted(&self) -> bool {
        self.warnings.iter().any(|warning| matches!(warning.action(), Action::Adjusted | Action::Dropped))
    }

    /// Whether this holds for a call and one that began later.
    fn has_pair(&self, holds: impl Fn(&Attempt, &Attempt) -> bool) -> bool {
        let calls: Vec<_> = self.attempts.iter().filter(|attempt| attempt.is_call()).collect();
        calls.iter().enumerate().any(|(i, after)| calls[..i].iter().any(|before| holds(before, after)))
    }
}

impl Attempt {
    /// Whether it ended by itself, and badly.
    fn has_failed(&self) -> bool {
        !matches!(self.outcome.as_str(), "ok" | "cancelled")
    }

    /// Since the request came. Both parts are rounded down, so it is never after the begin of what followed it.
    fn ended_ms(&self) -> u64 {
        self.started_ms.saturating_add(self.duration_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::{CacheStatus, Warning};

    fn report(attempts: &[(&str, &str, u64, u64)]) -> RouteReport {
        let attempt = |(target, outcome, started_ms, duration_ms): &(&str, &str, u64, u64)| Attempt {
            target: (*target).into(),
            outcome: (*outcome).into(),
            started_ms: *started_ms,
            duration_ms: *duration_ms,
            ..Default::default()
        };
        RouteReport { attempts: attempts.iter().map(attempt).collect(), ..Default::default() }
    }

    #[test]
    fn a_retry_is_the_same_target_after_its_failure() {
        assert!(report(&[("a", "unavailable", 0, 10), ("a", "ok", 20, 10)]).is_retried());
        assert!(!report(&[("a", "unavailable", 0, 10), ("b", "ok", 10, 10)]).is_retried());
        // Several images by several calls.
        assert!(!report(&[("a", "ok", 0, 10), ("a", "ok", 10, 10)]).is_retried());
        assert!(!report(&[("a", "unavailable", 0, 10), ("a", "cancelled", 0, 10)]).is_retried());
        assert!(!report(&[("a", "skipped", 0, 0), ("a", "ok", 5, 10)]).is_retried());
    }

    #[test]
    fn a_hedge_is_another_target_at_the_same_time() {
        assert!(report(&[("a", "cancelled", 0, 30), ("b", "ok", 10, 20)]).is_hedged());
        assert!(!report(&[("a", "unavailable", 0, 10), ("b", "ok", 10, 20)]).is_hedged());
        assert!(!report(&[("a", "ok", 0, 10), ("a", "ok", 0, 10)]).is_hedged());
    }

    #[test]
    fn what_was_done_for_the_provider_is_no_change() {
        let with = |action: Action| RouteReport {
            warnings: vec![Warning { action: action.into(), ..Default::default() }],
            ..Default::default()
        };
        assert!(with(Action::Adjusted).is_adjusted() && with(Action::Dropped).is_adjusted());
        assert!(!with(Action::Emulated).is_adjusted() && !with(Action::Notice).is_adjusted());
    }

    #[test]
    fn badges_are_in_the_order_of_things() {
        let record = RequestRecord {
            fallback: true,
            retried: true,
            hedged: true,
            calls: 3,
            refused: true,
            adjusted: true,
            cache_status: CacheStatus::Miss.into(),
            ..Default::default()
        };
        let badges = record.badges().join(" ");
        assert_eq!(badges, "fallback retry hedge calls:3 refused adjusted cache:miss");
        assert!(RequestRecord { calls: 1, ..Default::default() }.badges().is_empty());
    }

    #[test]
    fn who_answered_may_have_no_model_or_be_nobody() {
        let by = |provider: &str, model: &str| RequestRecord {
            provider: provider.into(),
            model: model.into(),
            ..Default::default()
        };
        assert_eq!(by("openai", "dall-e-3").answered_by(), "openai/dall-e-3");
        assert_eq!(by("openai", "").answered_by(), "openai");
        assert_eq!(by("", "").answered_by(), "");
    }
}
