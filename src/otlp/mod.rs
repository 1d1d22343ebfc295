//! Spans and metrics of requests, for a collector that speaks OTLP (docs/tracing.md).
//!
//! Spans are made when a request has ended, of what is recorded of it anyway, and wait in a bounded queue for somebody
//! for whom no request waits. A collector that is slow or away costs spans, never a request anything.

mod attributes;
mod collector;
mod meters;
mod queue;
mod spans;
mod traced;
mod why;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use opentelemetry_proto::tonic::resource::v1::Resource;
use tokio::time::{sleep, timeout};

use self::{
    collector::{Collector, Failure},
    meters::Meters,
    queue::{Queue, Waiting},
};
pub use self::{meters::ProviderCall, spans::Ended, traced::Traced};
use crate::{
    config::otlp::{OtlpSettings, Sampling},
    telemetry::{self, OtlpSignal},
    worker::http::Http,
};

/// Pauses between tries while the collector is away.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);

/// How long a process that ends takes to send what waits.
const FLUSH_WITHIN: Duration = Duration::from_secs(2);

/// Where spans and metrics of this process go.
pub struct Exporter {
    sampling: Sampling,
    /// Whether spans have prompts.
    prompts: bool,
    queue: Queue,
    meters: Option<Meters>,
    collector: Collector,
    /// It did not answer the last time.
    is_away: AtomicBool,
    /// It did not take the last of these, and said so.
    refuses: [AtomicBool; OtlpSignal::ALL.len()],
}

impl Exporter {
    /// Connects when it runs.
    ///
    /// # Errors
    /// The system's CAs cannot be had.
    pub fn try_new(settings: &OtlpSettings, http: &Arc<Http>) -> anyhow::Result<Arc<Self>> {
        let described = attributes::resource(settings);
        let meters = settings.metrics_every.map(|every| Meters::new(every, &described));
        let resource = Resource { attributes: attributes::written(described), ..Default::default() };
        Ok(Arc::new(Self {
            sampling: settings.sampling,
            prompts: settings.prompts,
            queue: Queue::new(resource),
            meters,
            collector: Collector::try_new(settings, http)?,
            is_away: AtomicBool::new(false),
            refuses: Default::default(),
        }))
    }

    /// Where calls are counted, if they are.
    pub fn meters(&self) -> Option<&Meters> {
        self.meters.as_ref()
    }

    /// Sends what there is, as long as it runs.
    pub async fn run(&self) {
        tokio::join!(self.keep_sending_spans(), self.keep_sending_metrics());
    }

    async fn keep_sending_spans(&self) {
        let mut waiting = self.queue.waiting().await;
        let mut pause = FIRST_PAUSE;
        loop {
            waiting.gather().await;
            if self.send_spans(&mut waiting).await {
                pause = FIRST_PAUSE;
            } else {
                sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }

    /// What cannot be sent now is in what is sent the next time.
    async fn keep_sending_metrics(&self) {
        let Some(meters) = &self.meters else { return };
        let mut measured = meters.measured();
        while let Some(request) = measured.next().await {
            let outcome = self.collector.metrics(&request).await;
            _ = self.judge(OtlpSignal::Metrics, outcome);
        }
    }

    /// Sends what still waits, after it has run.
    pub async fn flush(&self) {
        let flush = async {
            if let Some(meters) = &self.meters
                && let Some(request) = meters.last().await
            {
                let outcome = self.collector.metrics(&request).await;
                _ = self.judge(OtlpSignal::Metrics, outcome);
            }
            let mut waiting = self.queue.waiting().await;
            while waiting.take_more() && self.send_spans(&mut waiting).await {}
        };
        _ = timeout(FLUSH_WITHIN, flush).await;
        telemetry::otlp_spans_lost("ended", self.queue.waiting().await.give_up());
    }

    /// False: they have to be sent again.
    async fn send_spans(&self, waiting: &mut Waiting) -> bool {
        let count = waiting.count();
        match self.judge(OtlpSignal::Traces, self.collector.traces(waiting.request()).await) {
            Ok(rejected) => {
                telemetry::otlp_spans_sent(count.saturating_sub(rejected));
                telemetry::otlp_spans_lost("rejected", rejected);
            }
            Err(Failure::Refused(_)) => telemetry::otlp_spans_lost("rejected", count),
            Err(Failure::Away(_)) => return false,
        }
        waiting.done();
        true
    }

    /// Says once what is wrong with the collector, and once that it is well again.
    fn judge<T>(&self, signal: OtlpSignal, outcome: Result<T, Failure>) -> Result<T, Failure> {
        let is_away = matches!(outcome, Err(Failure::Away(_)));
        let was_away = self.is_away.swap(is_away, Ordering::Relaxed);
        telemetry::otlp_up(!is_away);
        match &outcome {
            Err(Failure::Away(reason)) if !was_away => telemetry::otlp_away(reason),
            Ok(_) | Err(Failure::Refused(_)) if was_away => telemetry::otlp_back(),
            _ => {}
        }
        if !is_away {
            let refused = self.refuses[signal as usize].swap(outcome.is_err(), Ordering::Relaxed);
            match &outcome {
                Err(Failure::Refused(reason)) if !refused => telemetry::otlp_refused(signal, reason),
                Ok(_) if refused => telemetry::otlp_taken_again(signal),
                _ => {}
            }
        }
        outcome
    }
}

impl fmt::Debug for Exporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exporter").field("collector", &self.collector).finish_non_exhaustive()
    }
}
