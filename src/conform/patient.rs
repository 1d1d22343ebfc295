//! A connection that tells the worker a deadline and does not enforce it.
//!
//! tonic's own client ends a call at its deadline by itself, so that nobody sees what the worker would have done.

use std::time::Duration;

use http_body_util::BodyExt as _;
use tonic::{Request, Status, body::Body, metadata::MetadataValue};
use tower::service_fn;

use super::answer::Answer;
use crate::pb::{self, worker_service_client::WorkerServiceClient};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// One call to its end, however long after its deadline that is.
pub async fn ask(uri: &str, message: pb::GenerateRequest, deadline: Duration) -> Result<Answer, Status> {
    let failed = |error: reqwest::Error| Status::unavailable(error.to_string());
    let origin = uri.parse().map_err(|_| Status::invalid_argument("the worker's address is no URI"))?;
    let client = reqwest::Client::builder().http2_prior_knowledge().no_proxy().build().map_err(failed)?;
    let connection = service_fn(move |request: http::Request<Body>| {
        let client = client.clone();
        async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await?.to_bytes();
            let request = http::Request::from_parts(parts, body).try_into()?;
            Ok::<_, BoxError>(http::Response::from(client.execute(request).await?))
        }
    });
    let wanted = message.image.as_ref().map_or(1, pb::ImageRequest::wanted);
    let mut request = Request::new(message);
    let millis = format!("{}m", deadline.as_millis());
    let millis = MetadataValue::try_from(millis).map_err(|_| Status::internal("the deadline has no text"))?;
    request.metadata_mut().insert("grpc-timeout", millis);
    let events = WorkerServiceClient::with_origin(connection, origin).generate(request).await?;
    Answer::read(events.into_inner(), wanted).await
}
