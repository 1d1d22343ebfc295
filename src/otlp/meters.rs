//! What is measured of provider calls, as OpenTelemetry's conventions for generative AI have it.
//!
//! Labels are bounded: providers are as many as there are workers, models as many as these describe; of more than 2000
//! kinds of calls the SDK makes one.

use std::{fmt, sync::Arc, time::Duration};

use opentelemetry::{
    InstrumentationScope, KeyValue,
    metrics::{Histogram, MeterProvider as _},
};
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    metrics::{
        PeriodicReader, SdkMeterProvider, Temporality, data::ResourceMetrics, exporter::PushMetricExporter,
    },
};
use tokio::{sync::watch, task::spawn_blocking};

use super::attributes::{self, Attributes};
use crate::{
    error::{Error, ErrorKind},
    pb::{Operation, Usage},
};

/// Seconds and tokens, as the conventions have them.
const DURATION_BUCKETS: &[f64] =
    &[0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92];
const TOKEN_BUCKETS: &[f64] = &[
    1.0,
    4.0,
    16.0,
    64.0,
    256.0,
    1024.0,
    4096.0,
    16_384.0,
    65_536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
];

/// What counts calls.
pub struct Meters {
    provider: SdkMeterProvider,
    duration: Histogram<f64>,
    tokens: Histogram<u64>,
    newest: watch::Sender<Measured>,
}

/// All that was measured since the process began.
type Measured = Option<Arc<ExportMetricsServiceRequest>>;

/// A provider call that ended.
#[derive(Debug)]
pub struct ProviderCall<'a> {
    /// Whom.
    pub provider: &'a str,
    /// The entry of the provider's record: callers can name any number of models.
    pub model: &'a str,
    /// For what.
    pub operation: Operation,
    /// How long it took.
    pub duration: Duration,
    /// What was wrong, if something was.
    pub error: Option<&'a Error>,
    /// What the provider counted.
    pub usage: Option<&'a Usage>,
}

/// What was measured, again and again.
#[derive(Debug)]
pub struct Stream(watch::Receiver<Measured>);

/// Where the SDK leaves what it has measured; a newer one replaces one that was not fetched.
struct Shelf(watch::Sender<Measured>);

impl Meters {
    /// Counts from now on, and says how it stands every so often.
    pub fn new(every: Duration, described: &[KeyValue]) -> Self {
        let newest = watch::Sender::new(None);
        let reader = PeriodicReader::builder(Shelf(newest.clone())).with_interval(every).build();
        let resource = Resource::builder_empty().with_attributes(described.iter().cloned()).build();
        let provider = SdkMeterProvider::builder().with_reader(reader).with_resource(resource).build();
        let scope = InstrumentationScope::builder(attributes::SCOPE).with_version(attributes::VERSION);
        let meter = provider.meter_with_scope(scope.build());
        Self {
            duration: meter
                .f64_histogram(attributes::DURATION_METRIC)
                .with_unit("s")
                .with_description("Time of one provider call.")
                .with_boundaries(DURATION_BUCKETS.to_vec())
                .build(),
            tokens: meter
                .u64_histogram(attributes::TOKENS_METRIC)
                .with_unit("{token}")
                .with_description("Tokens of one provider call, where the provider counts them.")
                .with_boundaries(TOKEN_BUCKETS.to_vec())
                .build(),
            provider,
            newest,
        }
    }

    /// Counts a call.
    pub fn called(&self, call: &ProviderCall<'_>) {
        let common = || {
            let mut attributes = Attributes::default();
            attributes.put(attributes::OPERATION_NAME, attributes::operation_name(call.operation));
            attributes.put(attributes::PROVIDER_NAME, attributes::provider_name(call.provider).to_owned());
            attributes.put_text(attributes::REQUEST_MODEL, call.model);
            attributes
        };
        let mut attributes = common();
        attributes.put_some(attributes::ERROR_TYPE, call.error.map(|error| error.kind).map(ErrorKind::name));
        self.duration.record(call.duration.as_secs_f64(), attributes.as_slice());
        let counted =
            call.usage.map(|usage| [("input", usage.input_tokens()), ("output", usage.output_tokens())]);
        for (kind, tokens) in counted.into_iter().flatten().filter(|(_, tokens)| *tokens > 0) {
            let mut attributes = common();
            attributes.put(attributes::TOKEN_TYPE, kind);
            self.tokens.record(tokens, attributes.as_slice());
        }
    }

    /// How it stands, each time it is time to say so.
    pub fn measured(&self) -> Stream {
        Stream(self.newest.subscribe())
    }

    /// How it stands at the end. Nothing is counted after that.
    pub async fn last(&self) -> Measured {
        let provider = self.provider.clone();
        self.newest.send_replace(None);
        // It waits for a thread of its own.
        _ = spawn_blocking(move || provider.shutdown()).await;
        self.newest.borrow().clone()
    }
}

impl Stream {
    /// The next one.
    pub async fn next(&mut self) -> Measured {
        self.0.changed().await.ok()?;
        self.0.borrow_and_update().clone()
    }
}

impl PushMetricExporter for Shelf {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        self.0.send_replace(Some(Arc::new(metrics.into())));
        Ok(())
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }

    fn temporality(&self) -> Temporality {
        Temporality::Cumulative
    }
}

impl fmt::Debug for Meters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Meters(..)")
    }
}
