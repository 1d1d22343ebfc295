//! Callers: when they come, what they send, how long they wait, and what they do with a failure.

use std::{sync::Arc, time::Duration};

use imagegate::{
    error::{Error, ErrorKind},
    pb::{self, router_service_server::RouterService as _},
    router::Router,
};
use tokio::{
    task::{JoinError, JoinSet},
    time::{Instant, sleep, sleep_until, timeout},
};
use tonic::Request;

use super::{
    draws::Draws,
    journal::{Ended, Journal},
    provider,
    scenario::{Arrivals, Process, Scenario},
};

/// How long after its deadline a request counts as lost for good.
const PATIENCE: Duration = Duration::from_secs(600);

struct Callers {
    scenario: Scenario,
    routers: Vec<Router>,
    journal: Arc<Journal>,
}

/// Plays all callers until the last one has its answer.
pub async fn run(scenario: &Scenario, routers: Vec<Router>, journal: Arc<Journal>) {
    let callers = Arc::new(Callers { scenario: scenario.clone(), routers, journal });
    let mut tasks = JoinSet::new();
    match &scenario.arrivals {
        Arrivals::Open { process, rates } => callers.arrive(*process, rates, &mut tasks).await,
        Arrivals::Closed { concurrency, think } => {
            for client in 0..*concurrency {
                tasks.spawn(Arc::clone(&callers).come_again(client, *think));
            }
        }
    }
    while let Some(joined) = tasks.join_next().await {
        finished(joined);
    }
}

/// A panic in a caller's task is a defect of the gateway or of the simulation: never just a lost request.
fn finished(joined: Result<(), JoinError>) {
    if let Err(error) = joined {
        std::panic::resume_unwind(error.into_panic());
    }
}

/// When the next caller comes; none once the rate stays at 0.
fn next_arrival(
    mut at: Duration,
    process: Process,
    rates: &[(Duration, f64)],
    draws: &mut Draws,
) -> Option<Duration> {
    loop {
        let following = rates.partition_point(|(from, _)| *from <= at);
        let (_, rate) = rates[following - 1];
        let change = rates.get(following).map(|(from, _)| *from);
        let gap = match process {
            Process::Poisson => draws.exponential(),
            Process::Uniform => 1.0,
        };
        let next = (rate > 0.0).then(|| at + Duration::from_secs_f64(gap / rate));
        match (next, change) {
            // Another rate from there on: a Poisson process has no memory, so it may begin anew.
            (next, Some(change)) if next.is_none_or(|next| next >= change) => at = change,
            (next, _) => return next,
        }
    }
}

impl Callers {
    async fn arrive(self: &Arc<Self>, process: Process, rates: &[(Duration, f64)], tasks: &mut JoinSet<()>) {
        let beginning = Instant::now();
        let mut draws = Draws::new(self.scenario.seed, "arrivals", 0);
        let mut at = Duration::ZERO;
        let mut intent = 0;
        while let Some(next) = next_arrival(at, process, rates, &mut draws) {
            at = next;
            if at >= self.scenario.duration {
                break;
            }
            sleep_until(beginning + at).await;
            let callers = Arc::clone(self);
            tasks.spawn(async move { callers.want(intent, intent).await });
            intent += 1;
            while let Some(joined) = tasks.try_join_next() {
                finished(joined);
            }
        }
    }

    async fn come_again(self: Arc<Self>, client: u64, think: Duration) {
        let mut draws = Draws::new(self.scenario.seed, "think", client);
        for round in 0_u64.. {
            sleep(think.mul_f64(draws.exponential())).await;
            if self.journal.now() >= self.scenario.duration {
                return;
            }
            self.want(client, (client << 32) | round).await;
        }
    }

    /// Tries to get one picture, as often as the client's library does.
    async fn want(&self, caller: u64, intent: u64) {
        let mut draws = Draws::new(self.scenario.seed, "caller", intent);
        let mut try_number = 1;
        while self.request(caller, intent, try_number, &mut draws).await
            && try_number <= self.scenario.clients.retries
        {
            sleep(self.scenario.clients.pause).await;
            try_number += 1;
        }
    }

    /// Sends one request; whether another try may be worth it.
    async fn request(&self, caller: u64, intent: u64, try_number: u32, draws: &mut Draws) -> bool {
        let Scenario { deadline, cancel, .. } = &self.scenario;
        let place = self.journal.request_starts(intent, try_number, *deadline);
        let leaves = draws.happens(cancel.rate);
        let (shortest, longest) = cancel.after;
        let after = draws.between(shortest, longest);
        let limit = if leaves { after } else { *deadline + PATIENCE };
        let router = &self.routers[(caller % self.routers.len() as u64) as usize];
        let answer = router.generate_image(self.message(place, caller));
        let (ended, report, again) = match timeout(limit, answer).await {
            Ok(Ok(answer)) => {
                let report = answer.into_inner().result.and_then(|result| result.report);
                (Ended::Answered, report, false)
            }
            Ok(Err(status)) => {
                let mut error = Error::from_status(&status);
                let report = error.report.take().map(|report| *report);
                (Ended::Failed(error.kind.name(), error.status), report, is_retried(&error))
            }
            Err(_) if leaves => (Ended::Left, None, false),
            Err(_) => (Ended::Hung, None, false),
        };
        self.journal.request_ends(place, ended, report);
        again
    }

    fn message(&self, place: usize, caller: u64) -> Request<pb::GenerateImageRequest> {
        let image = pb::ImageRequest { prompt: provider::prompt(place), ..self.scenario.request.clone() };
        let mut message = Request::new(pb::GenerateImageRequest { image: Some(image) });
        *message.metadata_mut() = self.scenario.headers.of_caller(caller);
        message.set_timeout(self.scenario.deadline);
        message
    }
}

/// What OpenAI's client libraries try again.
fn is_retried(error: &Error) -> bool {
    error.kind != ErrorKind::ContentRejected && matches!(error.status, 408 | 409 | 429 | 500..)
}
