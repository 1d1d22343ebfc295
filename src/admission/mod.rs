//! What a process takes in at once, in bytes: memory follows what is let in, not what is sent.
//!
//! A request gets its place before its body is read. Where there is no room it waits for its turn, callers in rotation, so
//! that one who sends much does not stand before all others. The wait is short and the line is bounded: who cannot be served
//! is told so while it still helps. An answer waits where it comes from, see [`Held::add_in_turn`]: it is paid for, so it is
//! never refused.

mod budget;
pub mod grpc;
mod held;

use std::{
    collections::VecDeque,
    fmt,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use http::HeaderMap;
use tokio::{sync::oneshot, time::timeout};

pub use self::{budget::default_budget, held::Held};
use crate::{
    error::{Error, ErrorKind, Result},
    telemetry,
};

/// How long a request may wait for its place.
const WAIT: Duration = Duration::from_millis(30);

/// How many requests may wait.
const LONGEST_LINE: usize = 1000;

/// What a request takes besides its body: two connections' buffers, its tasks, its record.
const OVERHEAD: usize = 64 << 10;

/// When to come again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The room for requests.
#[derive(Clone)]
pub struct Admission(Arc<Shared>);

/// A request's place. It is free again once this is dropped.
pub struct Place {
    shared: Arc<Shared>,
    bytes: usize,
}

struct Shared {
    /// Bytes of requests and answers.
    budget: usize,
    /// Of that, what requests may have: answers find a place when these wait for theirs.
    total: usize,
    state: Mutex<State>,
}

struct State {
    free: usize,
    /// Callers that wait, the one whose turn is next first.
    lines: VecDeque<Line>,
    waiting: usize,
}

/// One caller's requests in their order.
struct Line {
    caller: u64,
    waiters: VecDeque<Waiter>,
}

struct Waiter {
    bytes: usize,
    turn: oneshot::Sender<Place>,
}

impl Admission {
    /// Room for so many bytes of requests and answers, two thirds of it for requests.
    pub fn new(budget: usize) -> Self {
        let total = budget / 3 * 2;
        let state = State { free: total, lines: VecDeque::new(), waiting: 0 };
        Self(Arc::new(Shared { budget, total, state: Mutex::new(state) }))
    }

    /// A place for a request of so many bytes. `caller` tells those apart who wait in turn.
    ///
    /// # Errors
    /// 503 with `overloaded`: there is no room, or it is not this request's turn in time.
    pub async fn admit(&self, caller: u64, bytes: usize) -> Result<Place> {
        let bytes = bytes.saturating_add(OVERHEAD).min(self.0.total);
        let turn = {
            let mut state = self.0.lock();
            if state.waiting == 0 && bytes <= state.free && Held::by_all() < self.0.budget {
                state.free -= bytes;
                return Ok(self.place(bytes));
            }
            if state.waiting >= LONGEST_LINE {
                return Err(self.refusal());
            }
            state.queue(caller, bytes)
        };
        // Dropped here, if it is over: so that nothing is handed to it any more.
        let turn = timeout(WAIT, turn).await;
        match turn {
            Ok(Ok(place)) => Ok(place),
            Ok(Err(_)) | Err(_) => {
                // Whoever stood behind may fit where this one did not.
                self.0.hand_out();
                Err(self.refusal())
            }
        }
    }

    fn place(&self, bytes: usize) -> Place {
        Place { shared: Arc::clone(&self.0), bytes }
    }

    fn refusal(&self) -> Error {
        telemetry::overloaded();
        let message = format!(
            "the gateway works on as many bytes as it may, {} MiB (limits.bytes_in_flight)",
            self.0.budget >> 20
        );
        let mut error = Error::new(ErrorKind::RateLimited, message).with_status(503).with_code("overloaded");
        error.retry_after = Some(RETRY_AFTER);
        error
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shared.lock().free += mem::take(&mut self.bytes);
        self.shared.hand_out();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives what is free to those whose turn it is.
    fn hand_out(self: &Arc<Self>) {
        loop {
            let Some(Waiter { bytes, turn }) = self.lock().next() else { return };
            // Who has given up meanwhile gives it back at once, and with it the turn.
            _ = turn.send(Place { shared: Arc::clone(self), bytes });
        }
    }
}

impl State {
    fn queue(&mut self, caller: u64, bytes: usize) -> oneshot::Receiver<Place> {
        let (turn, wait) = oneshot::channel();
        let waiter = Waiter { bytes, turn };
        match self.lines.iter_mut().find(|line| line.caller == caller) {
            Some(line) => line.waiters.push_back(waiter),
            None => self.lines.push_back(Line { caller, waiters: [waiter].into() }),
        }
        self.waiting += 1;
        wait
    }

    /// The next one, if there is room for it. A large one is waited for: it would never have its turn otherwise.
    fn next(&mut self) -> Option<Waiter> {
        loop {
            let line = self.lines.front_mut()?;
            let Some(waiter) = line.waiters.front() else {
                self.lines.pop_front();
                continue;
            };
            if waiter.turn.is_closed() {
                line.waiters.pop_front();
                self.waiting -= 1;
                continue;
            }
            if waiter.bytes > self.free {
                return None;
            }
            self.free -= waiter.bytes;
            self.waiting -= 1;
            let waiter = line.waiters.pop_front();
            self.lines.rotate_left(1);
            return waiter;
        }
    }
}

/// What tells callers apart who wait: the credentials that they send, whether they are any or not.
pub fn caller(headers: &HeaderMap) -> u64 {
    let mut hasher = DefaultHasher::new();
    ["authorization", "x-portkey-api-key"].map(|name| headers.get(name)).hash(&mut hasher);
    hasher.finish()
}

impl fmt::Debug for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.0.lock();
        f.debug_struct("Admission").field("free", &state.free).field("waiting", &state.waiting).finish()
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Place({} bytes)", self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    /// Room for so many requests of a tenth of it.
    fn room_for_ten() -> (Admission, usize) {
        let tenth = 1 << 20;
        (Admission::new(10 * (tenth + OVERHEAD) / 2 * 3 + 2), tenth)
    }

    #[tokio::test(start_paused = true)]
    async fn what_fits_is_let_in_at_once_and_what_does_not_is_told_soon() {
        let (admission, tenth) = room_for_ten();
        let first = admission.admit(1, 6 * tenth).now_or_never().unwrap().unwrap();
        let began = tokio::time::Instant::now();
        let error = admission.admit(1, 5 * tenth).await.unwrap_err();
        assert!(began.elapsed() < Duration::from_millis(50));
        assert_eq!(
            (error.status, error.code.as_deref(), error.retry_after),
            (503, Some("overloaded"), Some(RETRY_AFTER))
        );
        admission.admit(1, 3 * tenth).now_or_never().unwrap().unwrap();
        drop(first);
        // Whatever there is room for when nobody else is there has its turn.
        admission.admit(1, 100 * tenth).now_or_never().unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn callers_have_their_turns_in_rotation() {
        let (admission, tenth) = room_for_ten();
        let all = admission.admit(0, 10 * tenth).await.unwrap();
        let order = std::cell::RefCell::new(Vec::new());
        let ask = |caller: u64| {
            let (admission, order) = (&admission, &order);
            async move {
                let place = admission.admit(caller, 10 * tenth).await.unwrap();
                order.borrow_mut().push(caller);
                drop(place);
            }
        };
        let waiting = futures::future::join_all([ask(1), ask(1), ask(1), ask(2), ask(3)]);
        futures::join!(waiting, async { drop(all) });
        assert_eq!(*order.borrow(), [1, 2, 3, 1, 1]);
    }

    #[tokio::test(start_paused = true)]
    async fn who_gives_up_is_in_nobodys_way() {
        let (admission, tenth) = room_for_ten();
        let held = admission.admit(0, 5 * tenth).await.unwrap();
        // It does not fit, and stands before one that does.
        let large = admission.admit(1, 10 * tenth);
        let small = admission.admit(2, 4 * tenth);
        let (large, small) = futures::join!(large, small);
        large.unwrap_err();
        small.unwrap();
        drop(held);
        admission.admit(1, 10 * tenth).now_or_never().unwrap().unwrap();
        assert_eq!(admission.0.lock().waiting, 0);
    }
}
