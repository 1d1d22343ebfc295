//! Random configs under random faults: what must hold whatever a config says and providers do.
//!
//! Each case is one number. A failure prints it with the scenario, which the `simulate` example plays as well.

use std::time::Duration;

use crate::{
    random::{Case, case},
    world::{
        self, LeftOver, Outcome,
        journal::{CallOutcome, CallRecord, Ended, RequestRecord},
        scenario::Scenario,
    },
};

/// Timers are rounded to milliseconds at several places.
const GRAIN: Duration = Duration::from_millis(50);

impl Case {
    /// The first promise that was not kept.
    fn check(&self, outcome: &Outcome) -> Result<(), String> {
        let mut calls: Vec<Vec<&CallRecord>> = vec![Vec::new(); outcome.requests.len()];
        for call in &outcome.calls {
            calls[call.request.ok_or("a call without its request")?].push(call);
        }
        for (place, (request, calls)) in outcome.requests.iter().zip(&calls).enumerate() {
            self.check_request(place, request, calls)
                .map_err(|broken| format!("{broken}\n{request:?}\n{calls:#?}"))?;
        }
        if outcome.left_over != LeftOver::default() {
            return Err(format!("left over: {:?}", outcome.left_over));
        }
        Ok(())
    }

    fn check_request(
        &self,
        place: usize,
        request: &RequestRecord,
        calls: &[&CallRecord],
    ) -> Result<(), String> {
        if request.ended == Ended::Hung || request.overshoot() > GRAIN {
            return Err(format!("it ended {:?} after its deadline", request.overshoot()));
        }
        if self.limit.is_some_and(|limit| request.latency() > limit + GRAIN) {
            return Err(format!("it took {:?}, longer than its config allows", request.latency()));
        }
        if calls.len() > self.most_calls {
            return Err(format!("{} calls, at most {} are allowed", calls.len(), self.most_calls));
        }
        for call in calls {
            self.check_call(place, request, call)?;
        }
        for (provider, leaf) in &self.leaves {
            let count = calls.iter().filter(|call| call.provider == *provider).count();
            if count > leaf.most_calls {
                return Err(format!("{count} calls of {provider}, at most {} are allowed", leaf.most_calls));
            }
        }
        for (providers, limit) in &self.limited {
            let below = || calls.iter().filter(|call| providers.contains(&call.provider));
            // A provider that also stands elsewhere in the config is called outside of the limit as well.
            let elsewhere = below().count() > 0 && providers.iter().any(|name| self.stands_twice(name));
            let (start, end) = (below().map(|call| call.start).min(), below().map(|call| call.end).max());
            if !elsewhere && start.zip(end).is_some_and(|(start, end)| end - start > *limit + GRAIN) {
                return Err(format!("calls of {providers:?} over more than {limit:?}"));
            }
        }
        let made = request.attempts.iter().filter(|attempt| attempt.outcome != "skipped").count();
        if request.ended == Ended::Answered && made != calls.len() {
            return Err(format!("the report has {made} calls of {}", calls.len()));
        }
        if request.ended == Ended::Answered && !calls.iter().any(|call| call.outcome == CallOutcome::Answered)
        {
            return Err("an answer that no provider gave".into());
        }
        Ok(())
    }

    fn check_call(&self, place: usize, request: &RequestRecord, call: &CallRecord) -> Result<(), String> {
        let leaf = &self.leaves[&call.provider];
        let chars = world::provider::prompt(place).chars().count();
        let is_too_long = leaf.max_prompt_chars > 0 && chars > leaf.max_prompt_chars;
        if !leaf.generates || is_too_long || !leaf.models.contains(&call.model) {
            return Err(format!("{} cannot serve this", call.provider));
        }
        if leaf.attempt_limit.is_some_and(|limit| call.end - call.start > limit + GRAIN) {
            return Err(format!("a call of {} took {:?}", call.provider, call.end - call.start));
        }
        if call.outcome == CallOutcome::Running || call.start < request.start || call.end > request.end {
            return Err(format!("a call of {} was not within its request", call.provider));
        }
        Ok(())
    }

    fn stands_twice(&self, provider: &str) -> bool {
        self.text.matches(&format!("\"provider\":\"{provider}\"")).count() > 1
    }
}

/// Requests of each part: 104,000 in all with `cargo test --release`, a quarter without optimisation.
const REQUESTS: usize = if cfg!(debug_assertions) { 6_500 } else { 26_000 };

/// Plays cases until there were so many requests.
fn keep(first: u64) {
    let (mut played, mut answered, mut calls) = (0, 0, 0);
    for number in first.. {
        let case = case(number);
        let scenario = Scenario::read(&case.text)
            .unwrap_or_else(|problems| panic!("case {number}: {problems:?}\n{}", case.text));
        let outcome = world::run(&scenario);
        if let Err(broken) = case.check(&outcome) {
            panic!("case {number}: {broken}\n{}", case.text);
        }
        played += outcome.requests.len();
        answered += outcome.figures.answered;
        calls += outcome.calls.len();
        if played >= REQUESTS {
            break;
        }
    }
    // Nothing is promised about requests that all fail at once.
    assert!(answered > played / 5 && calls > played / 2, "{answered} answered, {calls} calls of {played}");
}

#[test]
fn any_config_keeps_its_promises_first_part() {
    keep(10_000);
}

#[test]
fn any_config_keeps_its_promises_second_part() {
    keep(20_000);
}

#[test]
fn any_config_keeps_its_promises_third_part() {
    keep(30_000);
}

#[test]
fn any_config_keeps_its_promises_fourth_part() {
    keep(40_000);
}
