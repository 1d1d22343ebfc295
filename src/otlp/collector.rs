//! The other side: OTLP over gRPC, through a pool as between the roles, or over HTTP, through the connections that this
//! process has anyway.

use std::{fmt, marker::PhantomData, sync::Arc, time::Duration};

use bytes::{BufMut as _, Bytes};
use http::{HeaderMap, HeaderValue, Request as HttpRequest, header::CONTENT_TYPE, uri::PathAndQuery};
use opentelemetry_proto::tonic::collector::{
    metrics::v1::{ExportMetricsServiceRequest, ExportMetricsServiceResponse},
    trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse},
};
use prost::Message;
use tokio::time::timeout;
use tonic::{
    Code, Request, Status,
    client::Grpc,
    codec::{BufferSettings, Codec, EncodeBuf, Encoder},
    metadata::MetadataMap,
};
use tonic_prost::ProstDecoder;

use crate::{
    config::otlp::{Endpoint, OtlpSettings},
    error::Error,
    gateway::client_tls,
    images::Pieces,
    pool::{Pool, Service},
    worker::http::{Http, Trust},
};

/// How long the collector may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Largest answer that is read, in bytes. One has a number and a text.
const MOST_BYTES: usize = 1 << 20;

/// Statuses after which the same may be sent again, as OTLP has them.
const TRY_AGAIN_HTTP: &[u16] = &[429, 502, 503, 504];
const TRY_AGAIN_GRPC: &[Code] = &[
    Code::Cancelled,
    Code::DeadlineExceeded,
    Code::ResourceExhausted,
    Code::Aborted,
    Code::OutOfRange,
    Code::Unavailable,
    Code::DataLoss,
];

/// Where one signal goes.
struct Place {
    grpc: &'static str,
    http: &'static str,
}

const TRACES: Place =
    Place { grpc: "/opentelemetry.proto.collector.trace.v1.TraceService/Export", http: "/v1/traces" };
const METRICS: Place =
    Place { grpc: "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export", http: "/v1/metrics" };

/// The collector.
pub struct Collector {
    wire: Wire,
    headers: HeaderMap,
}

enum Wire {
    Grpc(Pool),
    Http { http: Arc<Http>, base_url: String },
}

/// Why something was not taken, without a word of the collector's, which may quote a credential.
#[derive(Debug)]
pub enum Failure {
    /// It is not there, or busy: the same may be sent again.
    Away(String),
    /// It does not want it.
    Refused(String),
}

impl Collector {
    /// The one that is configured. Over gRPC it is connected to from now on.
    ///
    /// # Errors
    /// The system's CAs cannot be had.
    pub fn try_new(settings: &OtlpSettings, http: &Arc<Http>) -> anyhow::Result<Self> {
        let wire = match &settings.endpoint {
            Endpoint::Grpc(address) => {
                let addresses = vec![address.clone()];
                // As over HTTP the system's CAs vouch for it: those of the roles vouch for roles.
                let tls = client_tls(&addresses, None)?;
                Wire::Grpc(Pool::new(Service::Collector, addresses, tls))
            }
            Endpoint::Http(base) => Wire::Http { http: Arc::clone(http), base_url: base.url.clone() },
        };
        Ok(Self { wire, headers: settings.headers.clone() })
    }

    /// Hands over spans, and learns how many of them were not wanted.
    ///
    /// # Errors
    /// None was taken.
    pub async fn traces(&self, request: &ExportTraceServiceRequest) -> Result<usize, Failure> {
        let answer: ExportTraceServiceResponse = self.send(&TRACES, request).await?;
        let rejected = answer.partial_success.map_or(0, |partial| partial.rejected_spans);
        Ok(usize::try_from(rejected).unwrap_or_default())
    }

    /// Hands over what was measured.
    ///
    /// # Errors
    /// It was not taken.
    pub async fn metrics(&self, request: &ExportMetricsServiceRequest) -> Result<(), Failure> {
        self.send::<ExportMetricsServiceResponse>(&METRICS, request).await.map(drop)
    }

    async fn send<A>(&self, place: &Place, request: &impl Message) -> Result<A, Failure>
    where
        A: Message + Default + 'static,
    {
        let request = request.encode_to_vec().into();
        let exchange = async {
            match &self.wire {
                Wire::Grpc(pool) => self.call(pool, place, request).await,
                Wire::Http { http, base_url } => self.post(http, base_url, place, request).await,
            }
        };
        let late = |_| Err(Failure::Away(format!("no answer within {} s", ANSWER_WITHIN.as_secs())));
        timeout(ANSWER_WITHIN, exchange).await.unwrap_or_else(late)
    }

    async fn call<A>(&self, pool: &Pool, place: &Place, request: Bytes) -> Result<A, Failure>
    where
        A: Message + Default + 'static,
    {
        let mut request = Request::new(request);
        *request.metadata_mut() = MetadataMap::from_headers(self.headers.clone());
        request.set_timeout(ANSWER_WITHIN);
        let mut client = Grpc::new(pool.clone());
        let path = PathAndQuery::from_static(place.grpc);
        client.ready().await.map_err(|status| failure(&status))?;
        let answer = client.unary(request, path, Encoded::<A>(PhantomData)).await;
        answer.map(tonic::Response::into_inner).map_err(|status| failure(&status))
    }

    async fn post<A: Message + Default>(
        &self,
        http: &Http,
        base_url: &str,
        place: &Place,
        request: Bytes,
    ) -> Result<A, Failure> {
        let mut post = HttpRequest::post(format!("{base_url}{}", place.http))
            .body(Pieces::from(request))
            .map_err(|_| Failure::Refused("its address cannot be called".into()))?;
        *post.headers_mut() = self.headers.clone();
        post.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        let away = |error: Error| Failure::Away(error.message.clone());
        let answer = http.send(post, Trust::Operator).await.map_err(away)?;
        let status = answer.status;
        if !status.is_success() {
            let reason = format!("HTTP {}", status.as_u16());
            let is_busy = TRY_AGAIN_HTTP.contains(&status.as_u16());
            return Err(if is_busy { Failure::Away(reason) } else { Failure::Refused(reason) });
        }
        // Taken is taken, whatever else is said.
        let answer = answer.document(MOST_BYTES).await.unwrap_or_default();
        Ok(A::decode(answer).unwrap_or_default())
    }
}

/// Messages that are encoded already, and answers of some kind.
struct Encoded<A>(PhantomData<A>);

struct AsItIs;

impl<A: Message + Default + 'static> Codec for Encoded<A> {
    type Encode = Bytes;
    type Decode = A;
    type Encoder = AsItIs;
    type Decoder = ProstDecoder<A>;

    fn encoder(&mut self) -> AsItIs {
        AsItIs
    }

    fn decoder(&mut self) -> ProstDecoder<A> {
        ProstDecoder::new(BufferSettings::default())
    }
}

impl Encoder for AsItIs {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.put(message);
        Ok(())
    }
}

fn failure(status: &Status) -> Failure {
    let error = Error::from_status(status);
    // The pool says why in its own words.
    let reason = match error.transport {
        true => error.message.clone(),
        false => format!("gRPC {:?}", status.code()),
    };
    if TRY_AGAIN_GRPC.contains(&status.code()) { Failure::Away(reason) } else { Failure::Refused(reason) }
}

impl fmt::Debug for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.wire {
            Wire::Grpc(pool) => pool.fmt(f),
            Wire::Http { base_url, .. } => f.write_str(base_url),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_collector_says_itself_is_not_repeated() {
        let quoted = |code| failure(&Status::new(code, "bad token secret-1"));
        assert!(
            matches!(quoted(Code::Unauthenticated), Failure::Refused(reason) if reason == "gRPC Unauthenticated")
        );
        assert!(matches!(quoted(Code::Unavailable), Failure::Away(reason) if reason == "gRPC Unavailable"));
        let own = Error::transport(
            crate::error::ErrorKind::Unavailable,
            crate::pb::BillingClass::NotSent,
            "the OTLP collector is not reachable: connection refused",
        );
        assert!(
            matches!(failure(&own.into()), Failure::Away(reason) if reason.ends_with("connection refused"))
        );
    }
}
