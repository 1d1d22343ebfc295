//! Spans on their way to the collector: a bounded queue, emptied in batches by somebody for whom no request waits. What
//! does not fit is counted, and lost.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    resource::v1::Resource,
    trace::v1::{ResourceSpans, ScopeSpans, Span},
};
use prost::Message as _;
use tokio::{
    sync::{Mutex, MutexGuard, mpsc},
    time::{Instant, timeout_at},
};

use super::attributes;
use crate::telemetry;

/// Requests whose spans may wait, and the memory that these may take. With prompts a span has as much as its prompt.
const QUEUED: usize = 2048;
const QUEUED_BYTES: usize = 32 << 20;

/// A batch is sent with so many spans, or bytes: collectors take 4 MiB by default.
const BATCH: usize = 512;
const BATCH_BYTES: usize = 1 << 20;

/// How long a batch waits for more.
const GATHER_WITHIN: Duration = Duration::from_millis(500);

/// The queue.
#[derive(Debug)]
pub struct Queue {
    sender: mpsc::Sender<Parcel>,
    bytes: Arc<AtomicUsize>,
    waiting: Mutex<Waiting>,
}

/// The end of it from which spans are taken.
#[derive(Debug)]
pub struct Waiting {
    queue: mpsc::Receiver<Parcel>,
    queued_bytes: Arc<AtomicUsize>,
    /// What was taken from the queue, and is not known to be sent, as it is sent.
    request: ExportTraceServiceRequest,
    bytes: usize,
}

/// The spans of a request.
#[derive(Debug)]
struct Parcel {
    spans: Vec<Span>,
    bytes: usize,
}

impl Queue {
    /// Nothing waits yet. The resource is who sends.
    pub fn new(resource: Resource) -> Self {
        let (sender, queue) = mpsc::channel(QUEUED);
        let bytes = Arc::<AtomicUsize>::default();
        let queued_bytes = Arc::clone(&bytes);
        let scope_spans = vec![ScopeSpans { scope: Some(attributes::scope()), ..Default::default() }];
        let resource_spans =
            vec![ResourceSpans { resource: Some(resource), scope_spans, ..Default::default() }];
        let request = ExportTraceServiceRequest { resource_spans };
        let waiting = Waiting { queue, queued_bytes, request, bytes: 0 };
        Self { sender, bytes, waiting: Mutex::new(waiting) }
    }

    /// Puts the spans of a request at its end, if there is room for them; else they need not be made. `count` says how
    /// many they are.
    pub fn put(&self, count: usize, spans: impl FnOnce() -> Vec<Span>) {
        let is_full = self.bytes.load(Ordering::Relaxed) >= QUEUED_BYTES;
        let Some(place) = self.sender.try_reserve().ok().filter(|_| !is_full) else {
            telemetry::otlp_spans_lost("queue_full", count);
            return;
        };
        let spans = spans();
        let bytes = spans.iter().map(Span::encoded_len).sum();
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        place.send(Parcel { spans, bytes });
    }

    /// Whoever has it sends.
    pub async fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().await
    }
}

impl Waiting {
    /// Waits until there is something to send, and a moment for more.
    pub async fn gather(&mut self) {
        if self.count() == 0 {
            let Some(first) = self.queue.recv().await else { return };
            self.add(first);
        }
        let deadline = Instant::now() + GATHER_WITHIN;
        while self.has_room() {
            let Ok(Some(more)) = timeout_at(deadline, self.queue.recv()).await else { return };
            self.add(more);
        }
    }

    /// Takes what waits already. False: there is nothing to send.
    pub fn take_more(&mut self) -> bool {
        while self.has_room() {
            let Ok(more) = self.queue.try_recv() else { break };
            self.add(more);
        }
        self.count() > 0
    }

    /// What to send next.
    pub fn request(&self) -> &ExportTraceServiceRequest {
        &self.request
    }

    /// How many spans that are.
    pub fn count(&self) -> usize {
        self.request.resource_spans[0].scope_spans[0].spans.len()
    }

    /// They need not be sent any more.
    pub fn done(&mut self) {
        self.spans().clear();
        self.bytes = 0;
    }

    /// Gives up all that waits, and counts it.
    pub fn give_up(&mut self) -> usize {
        let mut count = 0;
        while self.take_more() {
            count += self.count();
            self.done();
        }
        count
    }

    fn has_room(&self) -> bool {
        self.count() < BATCH && self.bytes < BATCH_BYTES
    }

    fn add(&mut self, parcel: Parcel) {
        self.queued_bytes.fetch_sub(parcel.bytes, Ordering::Relaxed);
        self.bytes += parcel.bytes;
        self.spans().extend(parcel.spans);
    }

    fn spans(&mut self) -> &mut Vec<Span> {
        &mut self.request.resource_spans[0].scope_spans[0].spans
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spans(count: usize, name: &str) -> Vec<Span> {
        vec![Span { name: name.to_owned(), ..Default::default() }; count]
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_waits_a_moment_for_more_and_is_not_larger_than_a_collector_takes() {
        let queue = Queue::new(Resource::default());
        let mut waiting = queue.waiting().await;
        queue.put(2, || spans(2, "a"));
        queue.put(1, || spans(1, "b"));
        let begun = Instant::now();
        waiting.gather().await;
        assert_eq!((waiting.count(), begun.elapsed()), (3, GATHER_WITHIN));
        // It could not be sent: the next one has it and more.
        queue.put(1, || spans(1, "c"));
        waiting.gather().await;
        assert_eq!(waiting.count(), 4);
        waiting.done();
        let large = "x".repeat(BATCH_BYTES / 2);
        for _ in 0..3 {
            queue.put(1, || spans(1, &large));
        }
        waiting.gather().await;
        assert_eq!(waiting.count(), 2);
        waiting.done();
        assert_eq!(waiting.give_up(), 1);
        assert!(!waiting.take_more());
    }

    #[tokio::test]
    async fn what_does_not_fit_is_not_even_made() {
        let queue = Queue::new(Resource::default());
        let large = "x".repeat(QUEUED_BYTES);
        queue.put(1, || spans(1, &large));
        queue.put(1, || unreachable!("there is no room"));
        assert!(queue.waiting().await.take_more());
        for _ in 0..QUEUED {
            queue.put(1, || spans(1, "a"));
        }
        queue.put(1, || unreachable!("there is no room"));
        assert_eq!(queue.waiting().await.give_up(), QUEUED + 1);
    }
}
