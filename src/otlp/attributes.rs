//! Names of attributes and events, and how they are written down: the only list of them.
//!
//! `gen_ai.*`, `error.type`, `http.*` and `server.*` are OpenTelemetry's, `imagegate.*` ours.

use opentelemetry::{KeyValue, Value};
use opentelemetry_proto::{
    tonic::common::v1::{InstrumentationScope, KeyValue as Written},
    transform::common::tonic::Attributes as Transformed,
};

use crate::{config::otlp::OtlpSettings, pb::Operation};

pub const OPERATION_NAME: &str = "gen_ai.operation.name";
pub const PROVIDER_NAME: &str = "gen_ai.provider.name";
pub const REQUEST_MODEL: &str = "gen_ai.request.model";
pub const RESPONSE_MODEL: &str = "gen_ai.response.model";
pub const OUTPUT_TYPE: &str = "gen_ai.output.type";
pub const CHOICE_COUNT: &str = "gen_ai.request.choice.count";
pub const FINISH_REASONS: &str = "gen_ai.response.finish_reasons";
pub const INPUT_TOKENS: &str = "gen_ai.usage.input_tokens";
pub const OUTPUT_TOKENS: &str = "gen_ai.usage.output_tokens";
pub const INPUT_MESSAGES: &str = "gen_ai.input.messages";
pub const TOKEN_TYPE: &str = "gen_ai.token.type";
pub const ERROR_TYPE: &str = "error.type";
pub const STATUS_CODE: &str = "http.response.status_code";
pub const SERVER_ADDRESS: &str = "server.address";

pub const REQUEST_ID: &str = "imagegate.request_id";
pub const TRACE_ID: &str = "imagegate.trace_id";
pub const SPAN_ID: &str = "imagegate.span_id";
pub const PARENT_SPAN_ID: &str = "imagegate.parent_span_id";
pub const CALLER: &str = "imagegate.caller";
pub const OPERATION: &str = "imagegate.operation";
pub const CONFIG: &str = "imagegate.config";
pub const CONFIG_VERSION: &str = "imagegate.config_version";
pub const TARGET: &str = "imagegate.target";
pub const VIRTUAL_KEY: &str = "imagegate.virtual_key";
pub const COST_USD: &str = "imagegate.cost_usd";
pub const COST_UNKNOWN: &str = "imagegate.cost_unknown";
pub const CACHE_STATUS: &str = "imagegate.cache_status";
pub const REFUSED_BY: &str = "imagegate.refused_by";
pub const REPLAY_OF: &str = "imagegate.replay_of";
pub const FALLBACK: &str = "imagegate.fallback";
pub const ATTEMPT_NUMBER: &str = "imagegate.attempt.number";
pub const ATTEMPT_REASON: &str = "imagegate.attempt.reason";
pub const ATTEMPT_CAUSE: &str = "imagegate.attempt.cause";
pub const BILLING: &str = "imagegate.billing";
pub const RETRY_AFTER_S: &str = "imagegate.retry_after_s";
pub const UPSTREAM_REQUEST_ID: &str = "imagegate.upstream_request_id";
pub const FROM_TARGET: &str = "imagegate.from_target";
pub const REASON: &str = "imagegate.reason";
pub const FIELD: &str = "imagegate.field";
pub const ACTION: &str = "imagegate.action";
pub const DETAIL: &str = "imagegate.detail";

/// A target was passed over without a call.
pub const SKIPPED_EVENT: &str = "imagegate.target_skipped";
/// Another target was called after one had failed.
pub const FALLBACK_EVENT: &str = "imagegate.fallback";
/// Another target was called beside one that was late.
pub const HEDGE_EVENT: &str = "imagegate.hedge";
/// A parameter reached the provider otherwise than written.
pub const PARAMETER_EVENT: &str = "imagegate.parameter_changed";

pub const DURATION_METRIC: &str = "gen_ai.client.operation.duration";
pub const TOKENS_METRIC: &str = "gen_ai.client.token.usage";

/// Who has made spans and metrics.
pub const SCOPE: &str = "imagegate";
/// In which version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Attributes in their order.
#[derive(Debug, Default)]
pub struct Attributes(Vec<KeyValue>);

impl Attributes {
    /// Adds one.
    pub fn put(&mut self, name: &'static str, value: impl Into<Value>) {
        self.0.push(KeyValue::new(name, value));
    }

    /// Adds one if there is a value.
    pub fn put_some(&mut self, name: &'static str, value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            self.put(name, value);
        }
    }

    /// Adds a text unless it is empty.
    pub fn put_text(&mut self, name: &'static str, text: &str) {
        if !text.is_empty() {
            self.put(name, text.to_owned());
        }
    }

    /// Adds a number of something.
    pub fn put_count(&mut self, name: &'static str, count: u64) {
        self.put(name, i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// As measurements take them.
    pub fn as_slice(&self) -> &[KeyValue] {
        &self.0
    }

    /// As they are sent.
    pub fn written(self) -> Vec<Written> {
        written(self.0)
    }
}

/// As they are sent.
pub fn written(attributes: Vec<KeyValue>) -> Vec<Written> {
    Transformed::from(attributes).0
}

/// What is said of this process.
pub fn resource(settings: &OtlpSettings) -> Vec<KeyValue> {
    let mut described = vec![
        KeyValue::new("service.name", settings.service_name.clone()),
        KeyValue::new("service.version", VERSION),
        KeyValue::new("service.instance.id", uuid::Uuid::new_v4().to_string()),
    ];
    for (name, value) in &settings.resource_attributes {
        described.retain(|known| known.key.as_str() != name);
        described.push(KeyValue::new(name.clone(), value.clone()));
    }
    described
}

/// Who has made the spans.
pub fn scope() -> InstrumentationScope {
    InstrumentationScope { name: SCOPE.to_owned(), version: VERSION.to_owned(), ..Default::default() }
}

/// The operation as the conventions would call it.
pub fn operation_name(operation: Operation) -> &'static str {
    match operation {
        Operation::Unspecified | Operation::Generate => "image_generation",
        Operation::Variation => "image_variation",
        _ => "image_edit",
    }
}

/// The provider as the conventions call it, where they know it.
pub fn provider_name(provider: &str) -> &str {
    match provider {
        "azure-openai" => "azure.ai.openai",
        "bedrock" => "aws.bedrock",
        "google" => "gcp.gemini",
        "vertex-ai" => "gcp.vertex_ai",
        "x-ai" => "x_ai",
        other => other,
    }
}
