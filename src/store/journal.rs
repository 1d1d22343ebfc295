//! The way of finished requests into the store: a bounded queue, written in batches by somebody for whom no request
//! waits. What does not fit is counted, and lost.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Mutex, mpsc},
    time::{MissedTickBehavior, interval, sleep, timeout},
};

use super::{
    Logged, Store,
    digests::{Digests, Pictures},
};
use crate::{objects::gallery::Gallery, pb::unix_now_ms, telemetry};

/// Requests that wait to be written, about 2 KB each.
const QUEUED: usize = 10_000;

/// Requests of one transaction.
const BATCH: usize = 500;

/// How long a store that was away is left alone.
const PAUSE: Duration = Duration::from_secs(1);

/// How long a process that ends takes to write what waits.
const FLUSH_WITHIN: Duration = Duration::from_secs(5);

/// How often old requests are looked for.
const FORGET_EVERY: Duration = Duration::from_secs(600);

/// The queue.
#[derive(Debug)]
pub struct Journal {
    sender: mpsc::Sender<Logged>,
    waiting: Mutex<Waiting>,
    digests: Digests,
    gallery: Arc<Gallery>,
    is_failing: AtomicBool,
}

/// What waits to be written.
#[derive(Debug)]
struct Waiting {
    queue: mpsc::Receiver<Logged>,
    /// Taken from the queue, and not known to be kept.
    batch: Vec<Logged>,
}

impl Journal {
    /// Nothing waits yet. The gallery keeps images.
    pub fn new(gallery: Arc<Gallery>) -> Arc<Self> {
        let (sender, queue) = mpsc::channel(QUEUED);
        let waiting = Mutex::new(Waiting { queue, batch: Vec::new() });
        let is_failing = AtomicBool::new(false);
        Arc::new(Self { sender, waiting, digests: Digests::new(), gallery, is_failing })
    }

    /// Notes a finished request and the images that it was answered with.
    pub fn note(&self, request: Logged, pictures: Pictures) {
        if pictures.images.is_empty() {
            return self.queue(request);
        }
        if let Some((request, pictures)) = self.digests.add(request, pictures) {
            telemetry::digests_skipped(pictures.images.len());
            self.hand_on(request, pictures);
        }
    }

    fn hand_on(&self, mut request: Logged, pictures: Pictures) {
        let Pictures { images, kept } = pictures;
        self.gallery.offer(&request.tenant, &mut request.record, images, kept);
        self.queue(request);
    }

    fn queue(&self, request: Logged) {
        if self.sender.try_send(request).is_err() {
            telemetry::log_lost("queue_full", 1);
        }
    }

    /// Computes digests, as long as it runs.
    pub async fn keep_digesting(&self) {
        let mut work = self.digests.work().await;
        loop {
            let (request, pictures) = work.next().await;
            self.hand_on(request, pictures);
        }
    }

    /// Notes one that others go before: only while half of the queue is free. False: it is not.
    pub fn note_lesser(&self, request: impl FnOnce() -> Logged) -> bool {
        self.sender.capacity() > QUEUED / 2 && self.sender.try_send(request()).is_ok()
    }

    /// Writes what waits, as long as it runs.
    pub async fn keep_writing(&self, store: &Store, flush_every: Duration) {
        let mut waiting = self.waiting.lock().await;
        let mut ticks = interval(flush_every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            while waiting.take() {
                if !self.write(store, &mut waiting.batch).await {
                    sleep(PAUSE).await;
                }
            }
        }
    }

    /// Forgets what is older than this, images too, as long as it runs.
    pub async fn keep_forgetting(&self, store: &Store, retention: Duration) {
        let retention = i64::try_from(retention.as_millis()).unwrap_or(i64::MAX);
        loop {
            let before = unix_now_ms().saturating_sub(retention);
            self.gallery.forget_before(before).await;
            if let Ok(forgotten @ 1..) = store.forget_before(before).await {
                tracing::info!(requests = forgotten, "forgot old requests");
            }
            sleep(FORGET_EVERY).await;
        }
    }

    /// Writes what still waits, after it has run.
    pub async fn flush(&self, store: &Store) {
        let write = async {
            let mut work = self.digests.work().await;
            while let Some((request, pictures)) = work.next_waiting().await {
                self.hand_on(request, pictures);
            }
            let mut waiting = self.waiting.lock().await;
            while waiting.take() && self.write(store, &mut waiting.batch).await {}
            waiting.batch.len() + waiting.queue.len()
        };
        let lost = timeout(FLUSH_WITHIN, write).await.unwrap_or_default();
        if lost > 0 {
            telemetry::log_lost("ended", lost);
        }
    }

    /// False: the store is away, and nothing of it is kept.
    async fn write(&self, store: &Store, batch: &mut Vec<Logged>) -> bool {
        match store.log(batch).await {
            Ok(written) => {
                batch.clear();
                if self.is_failing.swap(false, Ordering::Relaxed) {
                    telemetry::log_written_again();
                }
                telemetry::log_written(written.kept);
                if written.refused > 0 {
                    telemetry::log_lost("refused", written.refused);
                }
                true
            }
            Err(_) => {
                if !self.is_failing.swap(true, Ordering::Relaxed) {
                    telemetry::log_not_written();
                }
                false
            }
        }
    }
}

impl Waiting {
    /// Fills the batch from the queue. False: there is nothing to write.
    fn take(&mut self) -> bool {
        while self.batch.len() < BATCH {
            let Ok(request) = self.queue.try_recv() else { break };
            self.batch.push(request);
        }
        !self.batch.is_empty()
    }
}
