//! Whether work ends when nobody waits for it any more: at a deadline, and when a caller goes away.
//!
//! What goes on inside a worker cannot be seen from outside. What can: whether it answers others in time, and,
//! where it lists the model `-idle`, what it says itself of the calls that it is working at.

use std::time::Duration;

use futures::future::join_all;
use tokio::time::{Instant, sleep, timeout};
use tonic::Code;

use super::{
    asking::{Subject, Usual},
    check::Check,
    patient,
    report::Report,
    trigger::Trigger,
};
use crate::pb;

/// How long a slow call would take.
const SLOW: Duration = Duration::from_secs(4);

/// How long calls are let run before they are given up.
const LEFT: Duration = Duration::from_millis(400);

/// How long a worker may take to notice.
const GRACE: Duration = Duration::from_secs(1);

/// Calls that are given up at once: more than a small pool of threads has.
const CALLS: usize = 16;

/// A call that takes less time cannot be caught on its way.
const SHORTEST: Duration = Duration::from_millis(400);

/// Pause between questions to a worker that is still busy.
const AGAIN: Duration = Duration::from_millis(50);

/// How long the kit waits for a worker that goes on, so that its next finding is another one.
const RECOVERY: Duration = Duration::from_secs(30);

/// What one try showed: a finding, nothing, or why nothing could be seen.
type Seen = Result<Result<(), String>, String>;

/// A call whose deadline is shorter than its work.
pub async fn deadline(subject: &Subject, usual: &Usual, report: &mut Report) {
    twice(Check::Deadline, subject, usual, report, async || outlast(subject, usual).await).await;
}

/// Calls whose caller goes away.
pub async fn cancellation(subject: &Subject, usual: &Usual, report: &mut Report) {
    twice(Check::Cancellation, subject, usual, report, async || give_up(subject, usual).await).await;
}

/// A busy machine is no broken worker: what took too long is tried once more before it is a finding.
async fn twice(
    check: Check,
    subject: &Subject,
    usual: &Usual,
    report: &mut Report,
    attempt: impl AsyncFn() -> Seen,
) {
    let mut seen = attempt().await;
    if matches!(seen, Ok(Err(_))) {
        recover(subject, usual).await;
        seen = attempt().await;
    }
    match seen {
        Ok(Ok(())) => report.pass(check),
        Ok(Err(finding)) => {
            report.fail(check, finding);
            recover(subject, usual).await;
        }
        Err(reason) => report.unobserved(check, &reason),
    }
}

async fn outlast(subject: &Subject, usual: &Usual) -> Seen {
    let slow = subject.triggering(Trigger::Slow(SLOW), usual);
    let (request, limit) = match &slow {
        Some(request) => (request.clone(), LEFT),
        None if usual.took >= SHORTEST => (usual.request.clone(), usual.took / 4),
        None => return Err(Trigger::Slow(SLOW).missing(&subject.record)),
    };
    let asked = Instant::now();
    let answer =
        timeout(limit + SLOW + GRACE, patient::ask(&subject.uri, subject.message(request), limit)).await;
    let late = asked.elapsed().saturating_sub(limit);
    let name = subject.name();
    Ok(match answer {
        Err(_) => Err(format!("{name}: no end {} ms after the deadline", late.as_millis())),
        Ok(Ok(_)) if late.is_zero() && slow.is_none() => {
            return Err(format!("{name} answered before the deadline"));
        }
        Ok(Ok(_)) => Err(format!("{name}: a success after {} ms", (limit + late).as_millis())),
        Ok(Err(_)) if late > GRACE => {
            Err(format!("{name}: the end came {} ms after the deadline", late.as_millis()))
        }
        // Some servers say it so, and the router takes both alike.
        Ok(Err(status)) if matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled) => {
            stops_working(subject, usual).await
        }
        Ok(Err(status)) => Err(format!("{name}: {}", subject.told(&status))),
    })
}

async fn give_up(subject: &Subject, usual: &Usual) -> Seen {
    let slow = subject.triggering(Trigger::Slow(SLOW), usual);
    // A paid call that is given up may be billed: one is enough where it proves little.
    let (request, calls) = slow.clone().map_or((usual.request.clone(), 1), |request| (request, CALLS));
    let run = if slow.is_some() { LEFT } else { usual.took / 2 };
    let given_up = join_all((0..calls).map(|_| subject.ask(request.clone())));
    if timeout(run, given_up).await.is_ok() {
        let name = subject.name();
        return match slow {
            Some(request) => Ok(Err(format!("{name}: {} is not slow", request.model))),
            None => Err(format!("{name} answers too fast to be stopped")),
        };
    }
    let result = match stops_working(subject, usual).await {
        Ok(()) => answers_others(subject, usual).await,
        failed => failed,
    };
    if result.is_ok() && slow.is_none() {
        let missing = Trigger::Slow(SLOW).missing(&subject.record);
        return Err(format!(
            "after a cancelled call it answers others; whether it stopped is not seen: {missing}"
        ));
    }
    Ok(result)
}

/// What the worker says itself, if it does.
async fn stops_working(subject: &Subject, usual: &Usual) -> Result<(), String> {
    let Some(request) = subject.triggering(Trigger::Idle, usual) else { return Ok(()) };
    let limit = GRACE + usual.took;
    let mut last = "no answer".to_owned();
    let is_idle = async {
        while let Err(status) = subject.ask(request.clone()).await {
            last = subject.told(&status);
            sleep(AGAIN).await;
        }
    };
    let waited = timeout(limit, is_idle).await;
    waited.map_err(|_| format!("{}: {} ms later it still works: {last}", subject.name(), limit.as_millis()))
}

/// The next call takes hardly longer than the first did.
async fn answers_others(subject: &Subject, usual: &Usual) -> Result<(), String> {
    let limit = GRACE + usual.took;
    match timeout(limit, subject.ask(usual.request.clone())).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(status)) => {
            Err(format!("{}: the next call ends with {}", subject.name(), subject.told(&status)))
        }
        Err(_) => Err(format!(
            "{}: the next call has no answer after {} ms, the first took {} ms",
            subject.name(),
            limit.as_millis(),
            usual.took.as_millis()
        )),
    }
}

async fn recover(subject: &Subject, usual: &Usual) {
    let idle: pb::ImageRequest =
        subject.triggering(Trigger::Idle, usual).unwrap_or_else(|| usual.request.clone());
    let answers = async {
        while subject.ask(idle.clone()).await.is_err() {
            sleep(AGAIN).await;
        }
    };
    _ = timeout(RECOVERY, answers).await;
}
