//! Jobs over HTTP, and `Prefer: respond-async`.

use std::{convert::Infallible, time::Duration};

use axum::{
    Json,
    body::Body,
    extract::{Path, Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use futures::{StreamExt as _, stream};

use super::{Shim, answer, deliver, request, to_router};
use crate::{
    error::{Error, Result},
    images::{Pieces, gather},
    jobs,
    pb::{self, ImageResult, Job, Operation, RouteReport, job::State as Standing, watch_job_response::Event},
    transport,
};

/// How much earlier than the client gives up it is answered.
const MARGIN: f64 = 0.9;

/// What a client prefers (RFC 7240).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Preference {
    /// An answer that says where the result will be, rather than the result.
    respond_async: bool,
    /// How long it waits for the result itself.
    wait: Option<Duration>,
}

impl Preference {
    /// Reads `Prefer`. What is not known in it means nothing.
    pub fn read(headers: &HeaderMap) -> Self {
        let values = headers.get_all("prefer").into_iter().filter_map(|value| value.to_str().ok());
        let mut preference = Self::default();
        for token in values.flat_map(|value| value.split([',', ';'])) {
            let (name, value) = token.split_once('=').unwrap_or((token, ""));
            match name.trim().to_ascii_lowercase().as_str() {
                "respond-async" => preference.respond_async = true,
                "wait" => {
                    preference.wait = value.trim().trim_matches('"').parse().ok().map(Duration::from_secs)
                }
                _ => {}
            }
        }
        preference
    }

    /// How long to wait for a result until the client is told where it will be; none if it does not want that.
    pub fn hand_off_after(self, patience: Option<Duration>) -> Option<Duration> {
        let patience = patience.map(|patience| patience.mul_f64(MARGIN));
        self.respond_async.then(|| self.wait.into_iter().chain(patience).min().unwrap_or_default())
    }
}

/// `POST /v1/images/jobs`: the body of a generation or an edit.
pub async fn submit(State(shim): State<Shim>, request: Request) -> Response {
    let headers = request.headers().clone();
    let submitted = async {
        let parsed = request::read(request, Operation::Unspecified, shim.max_body_bytes).await?;
        if parsed.stream {
            let message = "stream: jobs do not stream; watch one with GET and accept: text/event-stream";
            return Err(Error::invalid("stream", message));
        }
        let wait = Preference::read(&headers).wait.unwrap_or_default();
        start(&shim, parsed.image, &headers, wait).await
    };
    match submitted.await {
        Ok(job) => accepted(&job, &headers),
        Err(error) => answer::error(&error, &headers),
    }
}

/// `GET /v1/images/jobs/{id}`: how it stands, with the result once it is there; or as events, if they are accepted.
pub async fn get(State(shim): State<Shim>, Path(id): Path<String>, headers: HeaderMap) -> Response {
    let accepts = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let answered = if accepts.contains("text/event-stream") {
        watch(&shim, id, &headers).await
    } else {
        show(&shim, id, &headers).await
    };
    answered.unwrap_or_else(|error| answer::error(&error, &headers))
}

/// `POST /v1/images/jobs/{id}/cancel`
pub async fn cancel(State(shim): State<Shim>, Path(id): Path<String>, headers: HeaderMap) -> Response {
    let cancelled = shim.router.cancel_job(to_router(pb::CancelJobRequest { id }, &headers)).await;
    match cancelled {
        Ok(answer) => state(&answer.into_inner().job.unwrap_or_default(), StatusCode::OK, &headers),
        Err(status) => answer::error(&Error::from_status(&status), &headers),
    }
}

/// Answers a request to the image routes by a job: with its result if that is there in time.
pub async fn answer_within(
    shim: &Shim,
    image: pb::ImageRequest,
    headers: &HeaderMap,
    wait: Duration,
) -> Result<Response> {
    let asked_model = image.model.clone();
    let job = start(shim, image, headers, wait).await?;
    match job.state() {
        Standing::Succeeded => {
            let (result, images) = result(shim, &job, headers).await?;
            deliver::respond(shim, &asked_model, &result, images, headers).await
        }
        Standing::Failed => {
            Err(jobs::error(&job).unwrap_or_else(|| Error::bad_answer("the job has no error")))
        }
        Standing::Unspecified | Standing::Running | Standing::Cancelled => {
            let mut response = accepted(&job, headers);
            response.headers_mut().insert("preference-applied", HeaderValue::from_static("respond-async"));
            Ok(response)
        }
    }
}

async fn start(shim: &Shim, image: pb::ImageRequest, headers: &HeaderMap, wait: Duration) -> Result<Job> {
    let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
    let message = to_router(pb::SubmitImageRequest { image: Some(image), wait_ms }, headers);
    let submitted = shim.router.submit_image(message).await.map_err(|status| Error::from_status(&status))?;
    Ok(submitted.into_inner().job.unwrap_or_default())
}

fn accepted(job: &Job, headers: &HeaderMap) -> Response {
    let mut response = state(job, StatusCode::ACCEPTED, headers);
    if let Ok(location) = format!("/v1/images/jobs/{}", job.id).try_into() {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

fn state(job: &Job, status: StatusCode, headers: &HeaderMap) -> Response {
    let mut response = (status, Json(jobs::to_json(job))).into_response();
    answer::report_headers(response.headers_mut(), &report(job), headers);
    response
}

/// What is known of the request's route: all of it if it has failed, else its id.
fn report(job: &Job) -> RouteReport {
    let failed = job.error.as_ref().and_then(|error| error.report.clone());
    failed.unwrap_or_else(|| RouteReport { request_id: job.request_id.clone(), ..Default::default() })
}

async fn show(shim: &Shim, id: String, headers: &HeaderMap) -> Result<Response> {
    let message = to_router(pb::GetJobRequest { id, omit_result: true }, headers);
    let found = shim.router.get_job(message).await.map_err(|status| Error::from_status(&status))?;
    let job = found.into_inner().job.unwrap_or_default();
    if job.state() != Standing::Succeeded {
        return Ok(state(&job, StatusCode::OK, headers));
    }
    let (result, images) = result(shim, &job, headers).await?;
    let given = deliver::give(shim, &job.model, &result, images, headers).await?;
    Ok(answer::job(&jobs::to_json(&job), &result, given, headers))
}

/// Every change of a job as an event; the result is for [`show`].
async fn watch(shim: &Shim, id: String, headers: &HeaderMap) -> Result<Response> {
    let message = to_router(pb::WatchJobRequest { id }, headers);
    let watched = shim.router.watch_job(message).await.map_err(|status| Error::from_status(&status))?;
    let states = watched.into_inner().scan(false, |is_over, event| {
        let event = if *is_over { None } else { Some(event) };
        if let Some(Ok(pb::WatchJobResponse { event: Some(Event::Job(job)) })) = &event {
            *is_over = jobs::is_over(job);
        }
        std::future::ready(event)
    });
    let texts = states.flat_map(|event| {
        let text = match event {
            Ok(pb::WatchJobResponse { event: Some(Event::Job(job)) }) => {
                Some(format!("event: image.job.updated\ndata: {}\n\n", jobs::to_json(&job)))
            }
            Ok(_) => None,
            Err(status) => {
                Some(format!("event: error\ndata: {}\n\n", answer::error_body(&Error::from_status(&status))))
            }
        };
        stream::iter(text.map(|text| Ok::<_, Infallible>(Bytes::from(text))))
    });
    let mut response = Response::new(Body::from_stream(texts));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Ok(response)
}

/// What came of a job that has succeeded.
async fn result(shim: &Shim, job: &Job, headers: &HeaderMap) -> Result<(ImageResult, Vec<Pieces>)> {
    let message = to_router(pb::WatchJobRequest { id: job.id.clone() }, headers);
    let watched = shim.router.watch_job(message).await.map_err(|status| Error::from_status(&status))?;
    let mut events = watched.into_inner();
    let mut images: Vec<Pieces> = Vec::new();
    while let Some(event) = events.next().await {
        match event.map_err(|status| Error::from_status(&status))?.event {
            Some(Event::ImageChunk(chunk)) => gather(&mut images, chunk.image_index, chunk.data),
            Some(Event::Result(result)) => {
                transport::end(events).await;
                return Ok((result, images));
            }
            Some(Event::Job(_)) | None => {}
        }
    }
    Err(Error::bad_answer("the job's result ended early"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn preference(values: &[&str]) -> Preference {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append("prefer", value.parse().unwrap());
        }
        Preference::read(&headers)
    }

    #[test]
    fn preferences_are_read_as_rfc_7240_writes_them() {
        let seconds = |wait| Some(Duration::from_secs(wait));
        for (values, respond_async, wait) in [
            (&["respond-async, wait=10"][..], true, seconds(10)),
            (&["wait=10", "Respond-Async"], true, seconds(10)),
            (&["respond-async; wait=\"3\""], true, seconds(3)),
            (&["return=minimal"], false, None),
            (&["respond-async, wait=soon"], true, None),
            (&[], false, None),
        ] {
            assert_eq!(preference(values), Preference { respond_async, wait }, "{values:?}");
        }
    }

    #[test]
    fn a_client_is_answered_before_it_gives_up() {
        let ten = Some(Duration::from_secs(10));
        assert_eq!(preference(&["wait=5"]).hand_off_after(ten), None);
        assert_eq!(preference(&["respond-async"]).hand_off_after(None), Some(Duration::ZERO));
        assert_eq!(preference(&["respond-async"]).hand_off_after(ten), Some(Duration::from_secs(9)));
        assert_eq!(preference(&["respond-async, wait=5"]).hand_off_after(ten), Some(Duration::from_secs(5)));
        assert_eq!(preference(&["respond-async, wait=60"]).hand_off_after(ten), Some(Duration::from_secs(9)));
    }
}
