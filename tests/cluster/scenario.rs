//! What every scenario does: wait for its turn, wait for conditions, say what it found.

use std::{fmt::Display, future::Future, time::Duration};

use tokio::{
    sync::{Mutex, MutexGuard},
    time::Instant,
};

/// Time between two looks at a condition.
const LOOK: Duration = Duration::from_millis(20);

static TURN: Mutex<()> = Mutex::const_new(());

/// Waits until no other scenario of this process runs.
pub async fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().await
}

/// Waits until `condition` gives something, and gives it back. `Err` is what is missing.
#[track_caller]
pub fn eventually<T, E: Display>(
    what: &str,
    within: Duration,
    mut condition: impl AsyncFnMut() -> Result<T, E>,
) -> impl Future<Output = T> {
    let place = std::panic::Location::caller();
    async move {
        let started = Instant::now();
        loop {
            let missing = match condition().await {
                Ok(value) => return value,
                Err(missing) => missing,
            };
            assert!(started.elapsed() < within, "{place}: {what} within {within:?}: {missing}");
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// Lets a load run.
pub async fn under_load(time: Duration) {
    tokio::time::sleep(time).await;
}

/// A line for whoever reads the test's output.
#[expect(clippy::print_stderr, reason = "figures that no assertion holds")]
pub fn tell(line: impl Display) {
    eprintln!("{line}");
}
