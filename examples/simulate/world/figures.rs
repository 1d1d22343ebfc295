//! The sums over everything that happened, without the warm-up.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use imagegate::pb::BillingClass;

use super::{
    journal::{CallOutcome, CallRecord, Ended, RequestRecord},
    scenario::Scenario,
};

/// What a scenario comes to.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// Requests that reached the router.
    pub requests: usize,
    /// Of them, with images.
    pub answered: usize,
    /// Of them, whose caller went away. Neither a success nor a failure.
    pub left: usize,
    /// Of them, without any end. A defect.
    pub hung: usize,
    /// Of them, failed, by kind and status.
    pub errors: BTreeMap<(&'static str, u16), usize>,
    /// Answered of those whose caller stayed, 1 if there was none.
    pub success_rate: f64,
    /// Pictures that callers wanted. Less than requests where clients retry.
    pub intents: usize,
    /// Of them, answered at any try.
    pub intents_answered: usize,
    /// Of the answered requests.
    pub latency: Quantiles,
    /// Longest wait of a caller beyond its deadline.
    pub worst_overshoot: Duration,
    /// Calls of providers.
    pub calls: usize,
    /// Calls per request.
    pub amplification: f64,
    /// Calls by provider and model.
    pub calls_by_target: BTreeMap<(String, String), CallCounts>,
    /// Targets that were passed over without a call.
    pub skipped: usize,
    /// Surely billed.
    pub cost_usd: f64,
    /// Perhaps billed on top of that: calls that were given up or failed in the middle.
    pub possible_cost_usd: f64,
    /// Surely or perhaps billed for calls whose images nobody got.
    pub duplicate_usd: f64,
    /// What the router's reports add up to.
    pub reported_usd: f64,
    /// Requests with a call that began while another one, begun earlier, was still running.
    pub hedged: usize,
    /// Of them, answered by another than the first call.
    pub hedges_won: usize,
    /// Requests answered by another than the first call.
    pub rescued: usize,
}

/// The spread of a duration.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quantiles {
    /// Half are faster.
    pub p50: Duration,
    /// One in ten is slower.
    pub p90: Duration,
    /// One in a hundred is slower.
    pub p99: Duration,
    /// The slowest.
    pub max: Duration,
}

/// How the calls of a model ended.
#[derive(Clone, Copy, Debug, Default)]
pub struct CallCounts {
    /// All.
    pub all: usize,
    /// With images.
    pub answered: usize,
    /// With an error or a refusal.
    pub failed: usize,
    /// At once, as the provider was at its limit.
    pub turned_away: usize,
    /// Given up.
    pub cancelled: usize,
}

impl Figures {
    /// Adds everything up.
    pub fn of(scenario: &Scenario, requests: &[RequestRecord], calls: &[CallRecord]) -> Self {
        let counts = |place: usize| requests[place].start >= scenario.warm_up;
        let mut figures = Self::default();
        let mut by_request: Vec<Vec<&CallRecord>> = vec![Vec::new(); requests.len()];
        for call in calls {
            match call.request.filter(|place| *place < requests.len()) {
                Some(place) if counts(place) => by_request[place].push(call),
                Some(_) => continue,
                None => {}
            }
            figures.add_call(call);
        }
        let mut latencies = Vec::new();
        let (mut wanted, mut got) = (BTreeSet::new(), BTreeSet::new());
        for (place, request) in requests.iter().enumerate().filter(|(place, _)| counts(*place)) {
            wanted.insert(request.intent);
            if request.ended == Ended::Answered {
                got.insert(request.intent);
                latencies.push(request.latency());
            }
            figures.add_request(request, &by_request[place], scenario.request.wanted());
        }
        (figures.intents, figures.intents_answered) = (wanted.len(), got.len());
        figures.latency = Quantiles::of(latencies);
        let stayed = figures.requests - figures.left;
        figures.success_rate = if stayed == 0 { 1.0 } else { figures.answered as f64 / stayed as f64 };
        figures.amplification = figures.calls as f64 / figures.requests.max(1) as f64;
        figures
    }

    fn add_call(&mut self, call: &CallRecord) {
        self.calls += 1;
        let counts = self.calls_by_target.entry((call.provider.clone(), call.model.clone())).or_default();
        counts.all += 1;
        match call.outcome {
            CallOutcome::Answered => counts.answered += 1,
            CallOutcome::Failed(_) | CallOutcome::Refused => counts.failed += 1,
            CallOutcome::TurnedAway(_) => counts.turned_away += 1,
            CallOutcome::Cancelled | CallOutcome::Running => counts.cancelled += 1,
        }
        match call.billing {
            BillingClass::Billed => self.cost_usd += call.price_usd,
            BillingClass::Unknown => self.possible_cost_usd += call.price_usd,
            _ => {}
        }
    }

    fn add_request(&mut self, request: &RequestRecord, calls: &[&CallRecord], images: usize) {
        self.requests += 1;
        match request.ended {
            Ended::Answered => self.answered += 1,
            Ended::Failed(kind, status) => *self.errors.entry((kind, status)).or_default() += 1,
            Ended::Left => self.left += 1,
            Ended::Hung => self.hung += 1,
        }
        if request.ended != Ended::Left {
            self.worst_overshoot = self.worst_overshoot.max(request.overshoot());
        }
        self.reported_usd += request.reported_usd;
        self.skipped += request.attempts.iter().filter(|attempt| attempt.outcome == "skipped").count();

        let answering = answering(request, calls, images);
        for (call, answers) in calls.iter().zip(&answering) {
            if !answers && matches!(call.billing, BillingClass::Billed | BillingClass::Unknown) {
                self.duplicate_usd += call.price_usd;
            }
        }
        let rescued = request.ended == Ended::Answered && answering.first() == Some(&false);
        let hedged = overlap(calls);
        self.rescued += usize::from(rescued);
        self.hedged += usize::from(hedged);
        self.hedges_won += usize::from(rescued && hedged);
    }
}

/// Which calls the answer's images are from: the last good ones of the model that answered.
fn answering(request: &RequestRecord, calls: &[&CallRecord], mut missing: usize) -> Vec<bool> {
    let (provider, model) = &request.answered_by;
    let mut answering = vec![false; calls.len()];
    for (call, answers) in calls.iter().zip(&mut answering).rev() {
        let is_good =
            call.outcome == CallOutcome::Answered && call.provider == *provider && call.model == *model;
        if is_good && missing > 0 {
            *answers = true;
            missing = missing.saturating_sub(call.images);
        }
    }
    answering
}

/// Whether a call began while an earlier one was running. Several that begin together make up one answer.
fn overlap(calls: &[&CallRecord]) -> bool {
    let running = |later: &CallRecord, call: &CallRecord| call.start < later.start && later.start < call.end;
    calls.iter().enumerate().any(|(i, later)| calls[..i].iter().any(|call| running(later, call)))
}

impl Quantiles {
    fn of(mut durations: Vec<Duration>) -> Self {
        durations.sort_unstable();
        let at = |fraction: f64| {
            let rank = (durations.len() as f64 * fraction).ceil() as usize;
            durations.get(rank.saturating_sub(1)).copied().unwrap_or_default()
        };
        Self { p50: at(0.5), p90: at(0.9), p99: at(0.99), max: at(1.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(provider: &str, start: u64, end: u64, outcome: CallOutcome, billing: BillingClass) -> CallRecord {
        let (start, end) = (Duration::from_secs(start), Duration::from_secs(end));
        let (provider, model) = (provider.to_owned(), String::new());
        CallRecord {
            request: Some(0),
            provider,
            model,
            images: 1,
            start,
            end,
            outcome,
            billing,
            price_usd: 1.0,
        }
    }

    fn answered_by(provider: &str, calls: &[CallRecord]) -> Figures {
        let request = RequestRecord {
            intent: 0,
            try_number: 1,
            start: Duration::ZERO,
            end: Duration::from_secs(9),
            deadline: Duration::from_secs(60),
            ended: Ended::Answered,
            attempts: Vec::new(),
            answered_by: (provider.to_owned(), String::new()),
            target: String::new(),
            reported_usd: 0.0,
        };
        let mut figures = Figures::default();
        figures.add_request(&request, &calls.iter().collect::<Vec<_>>(), 1);
        figures
    }

    #[test]
    fn the_loser_of_a_hedge_is_duplicate_spend() {
        let slow = call("alpha", 0, 9, CallOutcome::Cancelled, BillingClass::Unknown);
        let late = call("beta", 6, 9, CallOutcome::Answered, BillingClass::Billed);
        let figures = answered_by("beta", &[slow, late]);
        assert_eq!((figures.hedged, figures.hedges_won, figures.rescued), (1, 1, 1));
        assert_eq!(figures.duplicate_usd, 1.0);
    }

    #[test]
    fn one_call_after_the_other_is_no_hedge() {
        let failed = call("alpha", 0, 3, CallOutcome::Failed(429), BillingClass::RejectedUnbilled);
        let second = call("alpha", 3, 9, CallOutcome::Answered, BillingClass::Billed);
        let figures = answered_by("alpha", &[failed, second]);
        assert_eq!((figures.hedged, figures.rescued, figures.duplicate_usd), (0, 1, 0.0));
    }

    #[test]
    fn calls_that_begin_together_are_no_hedge() {
        let part = || call("alpha", 0, 9, CallOutcome::Answered, BillingClass::Billed);
        assert!(!overlap(&[&part(), &part()]));
    }
}
