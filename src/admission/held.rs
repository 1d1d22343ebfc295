//! The bytes that this process holds for requests and answers, as they are counted where they lie.

use std::{
    fmt,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use tokio::{
    sync::{Mutex, Notify},
    time::timeout,
};

/// How long an answer waits for room. It goes on then: the provider has been paid.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the process holds.
static PROCESS: Sum = Sum::new();

/// Bytes that are held for a request or a call. They are no longer once this is dropped.
pub struct Held {
    bytes: AtomicUsize,
    sum: &'static Sum,
}

/// What is held together.
struct Sum {
    bytes: AtomicUsize,
    released: Notify,
    /// Held by the answer whose turn it is to wait.
    turn: Mutex<()>,
}

impl Held {
    /// So many from the beginning.
    pub fn new(bytes: usize) -> Self {
        let held = Self::default();
        held.add(bytes);
        held
    }

    /// What all requests and calls of this process hold.
    pub fn by_all() -> usize {
        PROCESS.bytes.load(Ordering::Relaxed)
    }

    /// So many more.
    pub fn add(&self, bytes: usize) {
        self.sum.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.note(bytes);
    }

    /// So many more, when all hold no more than `budget` with them, or after five seconds. Those come first who waited
    /// before.
    pub async fn add_in_turn(&self, bytes: usize, budget: usize) {
        if self.sum.turn.try_lock().is_ok() && self.sum.add_within(bytes, budget) {
            return self.note(bytes);
        }
        let waited = timeout(PATIENCE, async {
            let _turn = self.sum.turn.lock().await;
            loop {
                let released = self.sum.released.notified();
                if self.sum.add_within(bytes, budget) {
                    return;
                }
                released.await;
            }
        });
        match waited.await {
            Ok(()) => self.note(bytes),
            Err(_) => self.add(bytes),
        }
    }

    /// So many less.
    pub fn release(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.sum.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.sum.released.notify_waiters();
    }

    fn note(&self, bytes: usize) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Sum {
    const fn new() -> Self {
        Self { bytes: AtomicUsize::new(0), released: Notify::const_new(), turn: Mutex::const_new(()) }
    }

    /// False, and nothing was added: there would be more than `budget`.
    fn add_within(&self, bytes: usize, budget: usize) -> bool {
        let with = |sum: usize| sum.checked_add(bytes).filter(|sum| *sum <= budget);
        self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, with).is_ok()
    }
}

impl Default for Held {
    fn default() -> Self {
        Self { bytes: AtomicUsize::new(0), sum: &PROCESS }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.release(self.bytes.load(Ordering::Relaxed));
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Held({:?} bytes)", self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use tokio::time::Instant;

    use super::*;

    fn all_by_themselves() -> impl Fn() -> Held {
        let sum: &'static Sum = Box::leak(Box::new(Sum::new()));
        move || Held { bytes: AtomicUsize::new(0), sum }
    }

    #[tokio::test(start_paused = true)]
    async fn answers_wait_for_room_in_the_order_in_which_they_came() {
        let held = all_by_themselves();
        let (first, large, small) = (held(), held(), held());
        first.add_in_turn(60, 100).now_or_never().unwrap();
        let order = std::cell::RefCell::new(Vec::new());
        let large_waits = large.add_in_turn(80, 100).map(|()| order.borrow_mut().push("large"));
        // It would fit, and is not first.
        let small_waits = small.add_in_turn(20, 100).map(|()| order.borrow_mut().push("small"));
        futures::join!(large_waits, small_waits, async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert!(order.borrow().is_empty());
            drop(first);
        });
        assert_eq!(*order.borrow(), ["large", "small"]);
        assert_eq!(large.sum.bytes.load(Ordering::Relaxed), 100);
        drop((large, small));
        assert_eq!(held().sum.bytes.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_goes_on_that_has_waited_long() {
        let held = all_by_themselves();
        let (stuck, waits) = (held(), held());
        stuck.add(100);
        let began = Instant::now();
        waits.add_in_turn(1, 100).await;
        assert_eq!(began.elapsed(), PATIENCE);
        assert_eq!(waits.sum.bytes.load(Ordering::Relaxed), 101);
    }
}
