//! A small world on a paused clock: callers, the production router, and providers that follow a script.
//!
//! [`run`] plays a scenario and gives back everything that happened. Nothing in here depends on anything but the
//! scenario and its seed: one thread, no wall clock, no hash order, and a generator of random numbers of its own.
//! Tests include this folder as a module and state what must hold.

pub mod behaviour;
pub mod callers;
pub mod draws;
pub mod figures;
pub mod journal;
pub mod provider;
pub mod report;
pub mod scenario;

use std::{sync::Arc, time::Duration};

use imagegate::{
    router::{Router, State},
    worker::Workers,
};
use tokio::time::Instant;

use figures::Figures;
use journal::{CallRecord, Ended, Journal, RequestRecord};
use provider::Provider;
use scenario::Scenario;

/// Everything that happened.
#[derive(Debug)]
pub struct Outcome {
    /// The sums, without the requests of the warm-up.
    pub figures: Figures,
    /// Every request in the order of their starts.
    pub requests: Vec<RequestRecord>,
    /// Every call of a provider in the order of their starts.
    pub calls: Vec<CallRecord>,
    /// SHA-256 in hex over every start and end, with its virtual time. Equal for equal seeds.
    pub trace_hash: String,
}

/// Plays a scenario. Not to be called inside of another runtime.
pub fn run(scenario: &Scenario) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime without sockets and threads needs nothing that could be missing");
    let journal = runtime.block_on(play(scenario));
    let (requests, calls, trace_hash) = journal.finish();
    let figures = Figures::of(scenario, &requests, &calls);
    Outcome { figures, requests, calls, trace_hash }
}

async fn play(scenario: &Scenario) -> Arc<Journal> {
    let journal = Arc::new(Journal::begin(Instant::now()));
    let mut workers = Workers::default();
    for (name, script) in &scenario.providers {
        let provider = Provider::new(name, script.clone(), scenario.seed, Arc::clone(&journal));
        workers.insert(name.clone(), Arc::new(provider));
    }
    let settings = Arc::clone(&scenario.settings);
    let state = State::new(settings, Arc::new(workers), &scenario.built_in());
    let router = Router::seeded(state, scenario.seed);
    callers::run(scenario, router, Arc::clone(&journal)).await;
    journal
}

impl Outcome {
    /// Answers within their deadline, by the second of virtual time in which they came.
    pub fn goodput_per_second(&self) -> Vec<usize> {
        let good = self.requests.iter().filter(|request| {
            matches!(request.ended, Ended::Answered) && request.overshoot() == Duration::ZERO
        });
        per_second(good.map(|request| request.end))
    }

    /// Calls of providers, by the second of virtual time in which they began.
    pub fn calls_per_second(&self) -> Vec<usize> {
        per_second(self.calls.iter().map(|call| call.start))
    }
}

fn per_second(times: impl Iterator<Item = Duration>) -> Vec<usize> {
    let mut seconds = Vec::new();
    for time in times {
        let second = usize::try_from(time.as_secs()).unwrap_or(usize::MAX);
        if seconds.len() <= second {
            seconds.resize(second + 1, 0);
        }
        seconds[second] += 1;
    }
    seconds
}
