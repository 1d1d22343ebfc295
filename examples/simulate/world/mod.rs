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
use tokio::{
    runtime::Handle,
    time::{Instant, sleep},
};

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
    /// When circuit breakers opened or closed, to the second.
    pub breaker_changes: Vec<Duration>,
    /// What was still there after the last caller had gone.
    pub left_over: LeftOver,
    /// SHA-256 in hex over every start and end, with its virtual time. Equal for equal seeds.
    pub trace_hash: String,
}

/// What must be nothing when nobody waits for anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeftOver {
    /// Calls that the routers count as under way.
    pub calls_of_routers: u64,
    /// Calls that providers count as under way.
    pub calls_at_providers: usize,
    /// Tasks of the runtime.
    pub tasks: usize,
}

/// Plays a scenario. Not to be called inside of another runtime.
pub fn run(scenario: &Scenario) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime without sockets and threads needs nothing that could be missing");
    let (journal, breaker_changes, left_over) = runtime.block_on(play(scenario));
    let (requests, calls, trace_hash) = journal.finish();
    let figures = Figures::of(scenario, &requests, &calls);
    Outcome { figures, requests, calls, breaker_changes, left_over, trace_hash }
}

async fn play(scenario: &Scenario) -> (Arc<Journal>, Vec<Duration>, LeftOver) {
    let journal = Arc::new(Journal::begin(Instant::now()));
    let mut workers = Workers::default();
    let mut providers = Vec::new();
    for (name, script) in &scenario.providers {
        let provider = Arc::new(Provider::new(name, script.clone(), scenario.seed, Arc::clone(&journal)));
        workers.insert(name.clone(), Arc::clone(&provider) as _);
        providers.push(provider);
    }
    let workers = Arc::new(workers);
    let router = |number| {
        let state = State::new(Arc::clone(&scenario.settings), Arc::clone(&workers), &scenario.built_in());
        Router::seeded(state, scenario.seed + number)
    };
    let routers: Vec<Router> = (0..scenario.routers).map(router).collect();
    let mut breaker_changes = Vec::new();
    tokio::select! {
        () = callers::run(scenario, routers.clone(), Arc::clone(&journal)) => {}
        () = watch_breakers(&routers, &journal, &mut breaker_changes) => {}
    }
    let left_over = LeftOver {
        calls_of_routers: routers.iter().map(Router::calls_in_flight).sum(),
        calls_at_providers: providers.iter().map(|provider| provider.in_flight()).sum(),
        tasks: Handle::current().metrics().num_alive_tasks(),
    };
    (journal, breaker_changes, left_over)
}

/// Notes once a second how often breakers have changed.
async fn watch_breakers(routers: &[Router], journal: &Journal, changes: &mut Vec<Duration>) {
    loop {
        sleep(Duration::from_secs(1)).await;
        let count: u64 = routers.iter().map(Router::breaker_changes).sum();
        changes.resize(usize::try_from(count).unwrap_or(usize::MAX), journal.now());
    }
}

impl Outcome {
    /// Answers within their deadline, by the second of virtual time in which they came.
    pub fn goodput_per_second(&self) -> Vec<usize> {
        let good = self.requests.iter().filter(|request| {
            matches!(request.ended, Ended::Answered) && request.overshoot() == Duration::ZERO
        });
        per_second(good.map(|request| request.end))
    }

    /// The most changes of circuit breakers within any minute.
    pub fn breaker_changes_per_minute(&self) -> usize {
        let minute = Duration::from_secs(60);
        let within = |from: &Duration| {
            self.breaker_changes.iter().filter(|at| **at >= *from && **at < *from + minute).count()
        };
        self.breaker_changes.iter().map(within).max().unwrap_or_default()
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
