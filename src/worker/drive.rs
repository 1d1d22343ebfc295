//! Carries out a job of a provider that speaks HTTP: sends what the provider says, reads what comes back,
//! waits and downloads where it must. No strategy, no retries.

use std::{collections::BTreeMap, sync::Arc};

use arc_swap::ArcSwap;
use futures::{FutureExt as _, StreamExt as _};
use tokio::sync::mpsc;
use tonic::{Request, Response, Status};
use url::Url;

use super::{
    EventStream,
    http::{Http, Incoming, Trust, forward},
    sse::EventReader,
};
use crate::{
    config::spec::Secret,
    error::{Error, ErrorKind, Result},
    images::Pieces,
    merge::merge,
    pb::{
        self, FinishReason, credential::Credential, generate_response::Event, input_image::Source,
        worker_service_server::WorkerService,
    },
    provider::{self, Answer, AnswerBody, Job, Output, Provider, Step},
};

/// Largest image that is fetched for a caller or from a provider, in bytes.
const MAX_FETCH_BYTES: usize = 64 << 20;

/// How much longer than the provider says a poll may wait, as a share.
const POLL_SPREAD: f64 = 0.2;

/// Events that may wait for a slow reader.
const EVENTS_WAITING: usize = 4;

/// Where previews and progress go. The other end also takes the answer, which may fail.
type Events = mpsc::Sender<std::result::Result<Event, Status>>;

/// Credentials that the worker holds itself, by name.
pub type Secrets = BTreeMap<String, Secret>;

/// A worker for one provider.
#[derive(Clone)]
pub struct HttpWorker {
    provider: Arc<dyn Provider>,
    http: Arc<Http>,
    secrets: Arc<ArcSwap<Secrets>>,
}

impl HttpWorker {
    /// Puts a provider on the connections of this process.
    pub fn new(provider: Arc<dyn Provider>, http: Arc<Http>, secrets: Arc<ArcSwap<Secrets>>) -> Self {
        Self { provider, http, secrets }
    }

    fn name(&self) -> &str {
        &self.provider.record().name
    }

    /// The job and whether its host is the operator's.
    fn job(&self, request: pb::GenerateRequest) -> Result<(Job, Trust, BTreeMap<String, String>)> {
        let upstream = request.upstream.unwrap_or_default();
        let trust = if upstream.base_url_from_caller { Trust::Stranger } else { Trust::Operator };
        let base_url = match upstream.base_url.trim_end_matches('/') {
            "" => self.provider.default_base_url().to_owned(),
            url => url.to_owned(),
        };
        let api_key = match upstream.credential.and_then(|credential| credential.credential) {
            None => None,
            Some(Credential::ApiKey(key)) => Some(key.into()),
            Some(Credential::HeldByWorker(name)) => {
                let held = self.secrets.load().get(&name).map(|secret| secret.0.clone());
                Some(held.ok_or_else(|| {
                    Error::new(
                        ErrorKind::PermissionDenied,
                        format!("the worker holds no credential \"{name}\""),
                    )
                })?)
            }
        };
        let options = upstream.options.into_iter().collect();
        let headers = upstream.headers.into_iter().collect();
        let request = request.image.unwrap_or_default();
        Ok((Job { request, base_url, api_key, options }, trust, headers))
    }

    async fn run(self, request: pb::GenerateRequest, events: Events) -> Result<Output> {
        let announce_answer = request.announce_answer;
        let (mut job, trust, headers) = self.job(request)?;
        self.fetch_inputs(&mut job).await?;
        let (job, mut request) = self.start(job).await?;
        let mut farewell = Farewell { http: Arc::clone(&self.http), trust, request: None };
        loop {
            forward(request.headers_mut(), &headers);
            let mut incoming = self.http.send(request, trust).await?;
            if announce_answer && incoming.status.is_success() {
                say(&events, "answering");
            }
            if incoming.is_event_stream() {
                return self.read_events(&job, &mut incoming, &events).await;
            }
            let answer = incoming.answer(self.provider.image_members()).await?;
            // Whatever the answer was, the provider has not been asked to go on.
            farewell.request = None;
            match self.provider.advance(&job, answer)? {
                Step::Done(output) => return Ok(output),
                Step::Next { after, request: next, progress, cancel } => {
                    farewell.request = cancel.map(|mut cancel| {
                        forward(cancel.headers_mut(), &headers);
                        *cancel
                    });
                    match progress {
                        Some(progress) => _ = events.try_send(Ok(Event::Progress(progress))),
                        None => say(&events, "running"),
                    }
                    tokio::time::sleep(after.mul_f64(1.0 + POLL_SPREAD * chance())).await;
                    request = next;
                }
                Step::Fetch { urls, output } => return self.fetch_images(&job, trust, urls, output).await,
            }
        }
    }

    /// A mask may have to be drawn anew, which takes long enough to be in the way of other requests.
    async fn start(&self, job: Job) -> Result<(Job, http::Request<Pieces>)> {
        if job.request.mask.is_none() {
            let request = self.provider.start(&job)?;
            return Ok((job, request));
        }
        let provider = Arc::clone(&self.provider);
        let started =
            tokio::task::spawn_blocking(move || provider.start(&job).map(|request| (job, request))).await;
        started.unwrap_or_else(|_| Err(Error::new(ErrorKind::Internal, "preparing the mask failed")))
    }

    async fn read_events(&self, job: &Job, incoming: &mut Incoming, events: &Events) -> Result<Output> {
        let mut reader = EventReader::new(self.provider.image_members());
        while let Some(event) = incoming.next_event(&mut reader).await? {
            // `[DONE]` and the like are no JSON.
            let body = if event.skeleton.trim_ascii_start().starts_with(b"{") {
                AnswerBody::Json { skeleton: event.skeleton, images: event.images }
            } else {
                AnswerBody::Raw(event.skeleton)
            };
            let answer = Answer {
                status: incoming.status,
                headers: incoming.headers.clone(),
                body,
                address: incoming.address(),
            };
            match self.provider.event(job, answer)? {
                provider::Event::Done(output) => return Ok(output),
                provider::Event::Partial { index, data } => {
                    let format = crate::images::probe::sniff(&data).unwrap_or_default();
                    let preview = pb::PartialImage {
                        data,
                        format: format.into(),
                        partial_index: index,
                        image_index: 0,
                    };
                    _ = events.send(Ok(Event::PartialImage(preview))).await;
                }
                provider::Event::Ignored => {}
            }
        }
        Err(Error::bad_answer("the provider's event stream ended before the image was complete"))
    }

    /// Inputs given as addresses become bytes, for providers that do not fetch them.
    async fn fetch_inputs(&self, job: &mut Job) -> Result<()> {
        let capability = self.provider.record().capability(&job.request.model);
        if capability.is_some_and(|known| known.accepts_input_urls) {
            return Ok(());
        }
        for (i, input) in job.request.inputs.iter_mut().enumerate() {
            let Some(Source::Url(url)) = &input.source else { continue };
            let image = self.http.fetch(url, Trust::Stranger, MAX_FETCH_BYTES).await.map_err(|error| {
                Error::invalid("image", format!("image {i} cannot be fetched: {}", error.message))
            })?;
            input.source = Some(Source::Data(image.into_bytes()));
        }
        Ok(())
    }

    async fn fetch_images(
        &self,
        job: &Job,
        trust: Trust,
        urls: Vec<String>,
        mut output: Output,
    ) -> Result<Output> {
        let base = Url::parse(&job.base_url).ok();
        let origin = |url: &Url| (url.host_str().map(str::to_owned), url.port_or_known_default());
        for (image, url) in to_fetch(&mut output.images).zip(urls) {
            // The operator vouches for its own upstream, wherever that is, and for nobody else.
            let same = Url::parse(&url).ok().as_ref().map(origin) == base.as_ref().map(origin);
            let trust = if same { trust } else { Trust::Stranger };
            let data: Pieces = self.http.fetch(&url, trust, MAX_FETCH_BYTES).await?;
            image.data = data.into_bytes();
        }
        Ok(output)
    }
}

#[tonic::async_trait]
impl WorkerService for HttpWorker {
    type GenerateStream = EventStream;

    async fn describe(
        &self,
        _: Request<pb::DescribeRequest>,
    ) -> std::result::Result<Response<pb::DescribeResponse>, Status> {
        let providers = vec![self.provider.record().clone()];
        Ok(Response::new(pb::DescribeResponse { providers }))
    }

    async fn generate(
        &self,
        request: Request<pb::GenerateRequest>,
    ) -> std::result::Result<Response<EventStream>, Status> {
        let (sender, receiver) = mpsc::channel(EVENTS_WAITING);
        let name = self.name().to_owned();
        let run = self.clone().run(request.into_inner(), sender).map(move |outcome| match outcome {
            Ok(output) => finished(output),
            Err(mut error) => {
                if error.provider.is_empty() {
                    error.provider = name;
                }
                vec![Err(error.into())]
            }
        });
        let events = merge(receiver, run).map(|event| Ok(pb::GenerateResponse { event: Some(event?) }));
        Ok(Response::new(Box::pin(events)))
    }
}

/// Tells how far the job is. A slow reader misses some of it.
fn say(events: &Events, state: &str) {
    let progress = pb::Progress { fraction: None, state: state.to_owned() };
    _ = events.try_send(Ok(Event::Progress(progress)));
}

/// What a job leaves to be said to its provider if it is dropped.
struct Farewell {
    http: Arc<Http>,
    trust: Trust,
    request: Option<http::Request<Pieces>>,
}

impl Drop for Farewell {
    fn drop(&mut self) {
        if let Some(request) = self.request.take() {
            self.http.send_later(request, self.trust);
        }
    }
}

/// The images that lie at addresses; one that was withheld has none.
fn to_fetch(images: &mut [pb::Image]) -> impl Iterator<Item = &mut pb::Image> {
    let withheld = |image: &pb::Image| {
        matches!(image.finish_reason(), FinishReason::ContentFiltered | FinishReason::Error)
    };
    images.iter_mut().filter(move |image| image.data.is_empty() && !withheld(image))
}

/// A number of 0 to 1.
fn chance() -> f64 {
    f64::from(uuid::Uuid::new_v4().as_u128() as u32) / f64::from(u32::MAX)
}

/// The images in their order, then the end.
fn finished(mut output: Output) -> Vec<std::result::Result<Event, Status>> {
    let mut events = Vec::with_capacity(output.images.len() + 1);
    for (image_index, image) in (0..).zip(&mut output.images) {
        let data = std::mem::take(&mut image.data);
        if !data.is_empty() {
            events.push(Event::ImageChunk(pb::ImageChunk { image_index, data }));
        }
    }
    events.push(Event::Done(pb::GenerateDone {
        images: output.images,
        usage: output.usage,
        upstream_request_id: output.upstream_request_id,
        warnings: output.warnings,
        reported_cost_usd: output.reported_cost_usd,
    }));
    events.into_iter().map(Ok).collect()
}

impl std::fmt::Debug for HttpWorker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("HttpWorker").field(&self.name()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_withheld_image_takes_no_other_images_address() {
        let image = |data: &'static [u8], reason: FinishReason| pb::Image {
            data: data.into(),
            finish_reason: reason.into(),
            ..Default::default()
        };
        let mut images = [
            image(b"", FinishReason::ContentFiltered),
            image(b"here", FinishReason::Unspecified),
            image(b"", FinishReason::Stop),
        ];
        let fetched: Vec<_> = to_fetch(&mut images).map(|image| image.finish_reason()).collect();
        assert_eq!(fetched, [FinishReason::Stop]);
    }
}
