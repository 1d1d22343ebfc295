//! The way of finished requests into the store: a bounded queue, written in batches by somebody for whom no request
//! waits. What does not fit is counted, and lost; what waits is in files, too, for the case that the process is killed.

use std::{
    path::Path,
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio::{
    sync::{Mutex, mpsc},
    task::spawn_blocking,
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};

use super::{
    Logged, Store,
    digests::{Digests, Pictures},
    spool::{self, Spool},
};
use crate::{objects::gallery::Gallery, pb::unix_now_ms, telemetry};

/// Requests that wait to be written, about 2 KB each.
const QUEUED: usize = 10_000;

/// Requests of one transaction: each waits for the disk once, and keeps others from writing for as long as it takes.
const BATCH: usize = 2000;

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
    /// Once the store is open.
    spool: OnceLock<Arc<Spool>>,
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
        let (digests, spool) = (Digests::new(), OnceLock::new());
        Arc::new(Self { sender, waiting, digests, gallery, spool })
    }

    /// Keeps what waits in files of this folder from now on, and takes over what other processes left there. Without
    /// them, whatever waits when the process is killed is lost.
    pub async fn protect(&self, data_dir: &Path) {
        let data_dir = data_dir.to_owned();
        let opened = spawn_blocking(move || Spool::open(&data_dir)).await;
        match opened.unwrap_or_else(|error| Err(std::io::Error::other(error))) {
            Ok((spool, left)) => {
                telemetry::log_found(left.requests.len(), left.torn);
                self.waiting.lock().await.batch.extend(left.requests);
                _ = self.spool.set(Arc::new(spool));
            }
            Err(error) => telemetry::log_unprotected(&error.to_string()),
        }
    }

    /// Notes a finished request and the images that it was answered with.
    pub fn note(&self, request: Logged, pictures: Pictures) {
        let frame = self.spool.get().map(|spool| (spool, spool::frame(&request)));
        if pictures.images.is_empty() {
            // First into the queue: what is in a file before a turn must have been there to be written.
            self.queue(request);
        } else if let Some((request, pictures)) = self.digests.add(request, pictures) {
            telemetry::digests_skipped(pictures.images.len());
            self.hand_on(request, pictures);
        }
        // One that waits for its digests stays in its file for another turn: a flush takes longer than they do.
        if let Some((spool, frame)) = frame {
            spool.note(&frame);
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
            // Until a batch is not full: what has come since can wait for the next time, with others.
            while let Some(is_full) = waiting.take() {
                if !self.write(store, &mut waiting.batch).await {
                    sleep(PAUSE).await;
                } else if !is_full {
                    break;
                }
            }
            if let Some(spool) = self.spool.get().cloned() {
                // May wait for the disk.
                _ = spawn_blocking(move || spool.turn()).await;
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

    /// Writes what still waits, after it has run. What the store does not take stays in the files.
    pub async fn flush(&self, store: Option<&Arc<Store>>) {
        let write = async {
            let Some(store) = store else { return };
            let mut work = self.digests.work().await;
            while let Some((request, pictures)) = work.next_waiting().await {
                self.hand_on(request, pictures);
            }
            let mut waiting = self.waiting.lock().await;
            while waiting.take().is_some() && self.write(store, &mut waiting.batch).await {}
        };
        _ = timeout(FLUSH_WITHIN, write).await;
        let waiting = self.waiting.lock().await;
        match (waiting.batch.len() + waiting.queue.len(), self.spool.get()) {
            (0, None) => {}
            (0, Some(spool)) => spool.remove(),
            (left, None) => telemetry::log_lost("ended", left),
            (left, Some(spool)) => {
                spool.write_rest();
                telemetry::log_left(left);
            }
        }
    }

    /// False: the store does not take it, and what it has of it is found again.
    async fn write(&self, store: &Store, batch: &mut Vec<Logged>) -> bool {
        let part = batch.len().min(BATCH);
        let began = Instant::now();
        store.alarm.writes();
        match store.log(&mut batch[..part]).await {
            Ok(written) => {
                batch.drain(..part);
                store.alarm.wrote(Ok(began.elapsed()));
                telemetry::log_written(written.kept, began.elapsed());
                if written.refused > 0 {
                    telemetry::log_lost("refused", written.refused);
                }
                true
            }
            Err(reason) => {
                // It is away, or it answers and takes nothing: a disk that is full, a replica that is only read.
                if store.look().await.is_ok() {
                    store.alarm.wrote(Err(&reason));
                }
                false
            }
        }
    }
}

impl Waiting {
    /// Fills the batch from the queue, and says whether it is full. None: there is nothing to write.
    fn take(&mut self) -> Option<bool> {
        while self.batch.len() < BATCH {
            let Ok(request) = self.queue.try_recv() else { break };
            self.batch.push(request);
        }
        (!self.batch.is_empty()).then_some(self.batch.len() >= BATCH)
    }
}
