//! Requests that run whether or not somebody waits: submitted, watched, given up, and what came of them kept for a
//! day.
//!
//! A job that runs is here; one that is over is in the [`store`], which other routers may share. The router knows
//! who may see which job's caller; nothing here knows routes.

mod store;
mod webhook;

use std::{
    collections::HashMap,
    future::Future,
    panic::AssertUnwindSafe,
    path::Path,
    pin::{Pin, pin},
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use futures::{FutureExt as _, Stream, StreamExt as _, future::BoxFuture, stream};
use serde_json::{Value, json};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, interval_at, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use self::store::{KEPT, Store, TOUCH_EVERY};
pub use self::webhook::Webhook;
use crate::{
    error::{Error, ErrorKind, Result},
    images::Pieces,
    pb::{
        self, BillingClass, Job, WatchJobResponse, job::State, stream_image_response, unix_now,
        watch_job_response::Event,
    },
    telemetry,
};

const ID_PREFIX: &str = "job_";

/// How long a job may take to give up.
const GIVES_UP_WITHIN: Duration = Duration::from_secs(5);

/// How often a job of another process is looked at for somebody who watches it.
const LOOK_EVERY: Duration = Duration::from_secs(1);

const SWEEP_EVERY: Duration = Duration::from_secs(60);

/// What a router answers to `WatchJob`.
pub type JobStream = Pin<Box<dyn Stream<Item = std::result::Result<WatchJobResponse, Status>> + Send>>;

/// The jobs of this process, and those that it finds kept.
#[derive(Clone, Debug)]
pub struct Jobs(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    store: Store,
    running: Mutex<HashMap<String, Arc<Running>>>,
    queue: (mpsc::UnboundedSender<Work>, tokio::sync::Mutex<mpsc::UnboundedReceiver<Work>>),
    draining: CancellationToken,
}

type Work = BoxFuture<'static, ()>;

/// What a request says on its way.
type Said = std::result::Result<stream_image_response::Event, Status>;

/// A job of this process.
#[derive(Debug)]
struct Running {
    now: watch::Sender<Job>,
    given_up: CancellationToken,
    /// What came of it, if that could not be stored.
    made: OnceLock<Made>,
}

/// What comes of a job.
#[derive(Debug)]
pub struct Made {
    /// Its images have everything but their bytes.
    pub result: pb::ImageResult,
    /// Their bytes.
    pub images: Vec<Pieces>,
}

/// A job to be.
#[derive(Debug)]
pub struct New {
    /// What is asked for.
    pub operation: pb::Operation,
    /// The model that is asked for.
    pub model: String,
    /// The request in logs and reports.
    pub request_id: String,
    /// Who submits it.
    pub caller: String,
    /// Who wants to be told when it is over.
    pub webhook: Option<Webhook>,
    /// Jobs that may run at once, this one included.
    pub limit: usize,
}

impl Jobs {
    /// Jobs that are kept below `data_dir`.
    pub fn new(data_dir: &Path) -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        Self(Arc::new(Shared {
            store: Store::new(data_dir),
            running: Mutex::default(),
            queue: (sender, tokio::sync::Mutex::new(receiver)),
            draining: CancellationToken::new(),
        }))
    }

    /// Carries out what is submitted until `draining`, and then what runs to its end.
    pub async fn run(&self, draining: impl Future<Output = ()>) {
        let mut queue = self.0.queue.1.lock().await;
        let mut tasks = JoinSet::new();
        let mut sweeps = interval(SWEEP_EVERY);
        let mut draining = pin!(draining);
        loop {
            tokio::select! {
                Some(work) = queue.recv() => drop(tasks.spawn(work)),
                Some(_) = tasks.join_next(), if !tasks.is_empty() => {}
                _ = sweeps.tick() => self.sweep().await,
                () = &mut draining => break,
            }
        }
        self.0.draining.cancel();
        queue.close();
        while let Some(work) = queue.recv().await {
            tasks.spawn(work);
        }
        while tasks.join_next().await.is_some() {}
    }

    /// Submits a job. `progress` ends when `run` does.
    ///
    /// # Errors
    /// As many run as may, or the process is about to end.
    pub async fn submit(
        &self,
        new: New,
        progress: mpsc::Receiver<Said>,
        run: impl Future<Output = Result<Made>> + Send + 'static,
    ) -> Result<Job> {
        let New { operation, model, request_id, caller, webhook, limit } = new;
        let job = Job {
            id: new_id(),
            state: State::Running.into(),
            operation: operation.into(),
            model,
            created_unix_s: unix_now(),
            request_id,
            caller,
            ..Default::default()
        };
        if self.0.draining.is_cancelled() {
            let message = "the gateway is shutting down and takes no more jobs";
            return Err(Error::transport(ErrorKind::Unavailable, BillingClass::NotSent, message));
        }
        let running = Arc::new(Running {
            now: watch::Sender::new(job.clone()),
            given_up: CancellationToken::new(),
            made: OnceLock::new(),
        });
        {
            let mut all = self.0.running.lock().unwrap_or_else(PoisonError::into_inner);
            if all.values().filter(|running| running.is_on()).count() >= limit {
                let message = format!("{limit} jobs are running, which is the limit (limits.jobs)");
                return Err(Error::new(ErrorKind::RateLimited, message).with_code("too_many_jobs"));
            }
            all.insert(job.id.clone(), Arc::clone(&running));
        }
        telemetry::job_begins();
        self.0.keep(&job, None).await;
        let work = Arc::clone(&self.0).carry_out(running, progress, run, webhook);
        if self.0.queue.0.send(Box::pin(work)).is_err() {
            tracing::error!("nobody carries out jobs");
        }
        Ok(job)
    }

    /// Waits for a job of this process to be over, but no longer than `limit`, and says how it stands then.
    pub async fn wait(&self, job: Job, limit: Duration) -> Job {
        let Some(running) = self.running(&job.id) else {
            return self.0.store.get(&job.id).await.and_then(|kept| kept.job).unwrap_or(job);
        };
        let mut now = running.now.subscribe();
        _ = timeout(limit, now.wait_for(is_over)).await;
        now.borrow().clone()
    }

    /// How a caller's job stands, and what came of it, without the bytes of its images.
    ///
    /// # Errors
    /// The caller has no such job.
    pub async fn get(&self, id: &str, caller: &str) -> Result<(Job, Option<pb::ImageResult>)> {
        let found = match self.running(id) {
            Some(running) => {
                let job = running.now.borrow().clone();
                Some((job, running.made.get().map(|made| made.result.clone())))
            }
            None if is_id(id) => {
                let kept = self.0.store.get(id).await;
                kept.and_then(|kept| Some((kept.job?, kept.result)))
            }
            None => None,
        };
        // Who guesses an id learns nothing from it.
        found.filter(|(job, _)| job.caller == caller).ok_or_else(|| {
            let hours = KEPT.as_secs() / 3600;
            let message =
                format!("there is no such job; jobs are kept for {hours} hours after they are over");
            Error::new(ErrorKind::NotFound, message)
        })
    }

    /// The bytes of one image of a job that has succeeded.
    pub async fn image(
        &self,
        id: &str,
        index: usize,
    ) -> Result<impl Stream<Item = Result<bytes::Bytes>> + use<>> {
        let lost = |error: std::io::Error| {
            tracing::error!(%error, job = id, "an image of a job cannot be read");
            Error::new(ErrorKind::Internal, "the job's image was made but cannot be read")
        };
        let in_memory = self.running(id).and_then(|running| running.made.get()?.images.get(index).cloned());
        if let Some(pieces) = in_memory {
            return Ok(stream::iter(pieces.into_iter().map(Ok)).left_stream());
        }
        let id = id.to_owned();
        let read = self.0.store.image(&id, index).await.map_err(lost)?;
        Ok(read
            .map(|piece| {
                piece.map_err(|error| {
                    tracing::error!(%error, "an image of a job cannot be read");
                    Error::new(ErrorKind::Internal, "the job's image was made but cannot be read")
                })
            })
            .right_stream())
    }

    /// Gives up a caller's job, and says how it stands then: it may just have ended by itself.
    ///
    /// # Errors
    /// The caller has no such job, or it runs in another process.
    pub async fn cancel(&self, id: &str, caller: &str) -> Result<Job> {
        let (job, _) = self.get(id, caller).await?;
        if is_over(&job) {
            return Ok(job);
        }
        let Some(running) = self.running(id) else {
            let message = "the job runs in another process, which alone can give it up";
            return Err(Error::transport(ErrorKind::Unavailable, BillingClass::NotSent, message));
        };
        running.given_up.cancel();
        Ok(self.wait(job, GIVES_UP_WITHIN).await)
    }

    /// A caller's job from now to its end, and then its images.
    ///
    /// # Errors
    /// The caller has no such job.
    pub async fn watch(&self, id: &str, caller: &str) -> Result<JobStream> {
        self.get(id, caller).await?;
        let changes = self.running(id).map(|running| running.now.subscribe());
        let watching = Watching {
            jobs: self.clone(),
            id: id.to_owned(),
            caller: caller.to_owned(),
            changes,
            last: None,
        };
        let jobs = self.clone();
        let events = stream::unfold(watching, Watching::next).flat_map(move |job| {
            let result = match job.state() {
                State::Succeeded => jobs.clone().result(job.clone()).left_stream(),
                _ => stream::empty().right_stream(),
            };
            stream::iter([Ok(Event::Job(job))]).chain(result)
        });
        Ok(Box::pin(events.map(|event| match event {
            Ok(event) => Ok(WatchJobResponse { event: Some(event) }),
            Err(error) => Err(error.into()),
        })))
    }

    fn result(self, job: Job) -> impl Stream<Item = Result<Event>> + Send {
        let read = async move {
            let (_, result) = self.get(&job.id, &job.caller).await?;
            let result = result.ok_or_else(|| Error::new(ErrorKind::Internal, "the job's result is lost"))?;
            let count = result.images.len();
            let chunks = stream::iter(0..count).then(move |index| {
                let (jobs, id) = (self.clone(), job.id.clone());
                async move {
                    match jobs.image(&id, index).await {
                        Ok(pieces) => pieces.map(move |piece| chunk(index, piece)).left_stream(),
                        Err(error) => stream::iter([Err(error)]).right_stream(),
                    }
                }
            });
            Ok::<_, Error>(chunks.flatten().chain(stream::iter([Ok(Event::Result(result))])))
        };
        stream::once(read).flat_map(|read| match read {
            Ok(events) => events.left_stream(),
            Err(error) => stream::iter([Err(error)]).right_stream(),
        })
    }

    async fn sweep(&self) {
        self.0.store.sweep().await;
        let mut all = self.0.running.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, running| running.now.borrow().expires_unix_s.is_none_or(|at| at > unix_now()));
    }

    fn running(&self, id: &str) -> Option<Arc<Running>> {
        self.0.running.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }
}

impl Shared {
    async fn carry_out(
        self: Arc<Self>,
        running: Arc<Running>,
        mut progress: mpsc::Receiver<Said>,
        run: impl Future<Output = Result<Made>> + Send,
        webhook: Option<Webhook>,
    ) {
        let id = running.now.borrow().id.clone();
        let outcome = {
            let mut run = pin!(AssertUnwindSafe(run).catch_unwind());
            let mut touches = interval_at(Instant::now() + TOUCH_EVERY, TOUCH_EVERY);
            touches.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    outcome = &mut run => break Some(outcome),
                    () = running.given_up.cancelled() => break None,
                    Some(event) = progress.recv() => {
                        if let Ok(stream_image_response::Event::Progress(progress)) = event {
                            running.now.send_modify(|job| job.progress = Some(progress));
                        }
                    }
                    _ = touches.tick() => self.store.touch(&id).await,
                }
            }
        };
        let mut job = running.now.borrow().clone();
        let made = match outcome {
            Some(Ok(Ok(made))) => {
                end(&mut job, State::Succeeded);
                Some(made)
            }
            Some(Ok(Err(error))) => {
                fail(&mut job, &error);
                None
            }
            Some(Err(_)) => {
                fail(&mut job, &Error::new(ErrorKind::Internal, "the job broke down"));
                None
            }
            None => {
                end(&mut job, State::Cancelled);
                None
            }
        };
        telemetry::job_ends(state_name(job.state()));
        let is_kept = self.keep(&job, made.as_ref()).await;
        if let (Some(made), false) = (made, is_kept) {
            _ = running.made.set(made);
        }
        running.now.send_replace(job.clone());
        if is_kept {
            self.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        }
        if let Some(webhook) = webhook {
            webhook
                .tell(&self.draining, &format!("image.job.{}", state_name(job.state())), to_json(&job))
                .await;
        }
    }

    /// Whether it worked. Without a disk a job lives as long as its process.
    async fn keep(&self, job: &Job, made: Option<&Made>) -> bool {
        let kept = async {
            if let Some(made) = made {
                self.store.put_images(&job.id, &made.images).await?;
            }
            self.store.put(job, made.map(|made| &made.result)).await
        };
        match kept.await {
            Ok(()) => true,
            Err(error) => {
                tracing::error!(%error, job = job.id, "a job cannot be stored, and is lost if the process ends");
                false
            }
        }
    }
}

impl Running {
    fn is_on(&self) -> bool {
        !is_over(&self.now.borrow())
    }
}

/// Somebody who watches a job.
struct Watching {
    jobs: Jobs,
    id: String,
    caller: String,
    /// None: the job is not of this process.
    changes: Option<watch::Receiver<Job>>,
    last: Option<Job>,
}

impl Watching {
    /// The job as it stands now at first, then whenever it has changed.
    async fn next(mut self) -> Option<(Job, Self)> {
        if self.last.as_ref().is_some_and(is_over) {
            return None;
        }
        let job = loop {
            let job = match &mut self.changes {
                Some(changes) => changes.borrow_and_update().clone(),
                None => self.jobs.get(&self.id, &self.caller).await.ok()?.0,
            };
            if self.last.as_ref() != Some(&job) {
                break job;
            }
            let is_told = match &mut self.changes {
                Some(changes) => changes.changed().await.is_ok(),
                None => false,
            };
            if !is_told {
                self.changes = None;
                sleep(LOOK_EVERY).await;
            }
        };
        self.last = Some(job.clone());
        Some((job, self))
    }
}

/// A job as HTTP and webhooks show it.
pub fn to_json(job: &Job) -> Value {
    json!({
        "id": job.id,
        "object": "image.job",
        "status": state_name(job.state()),
        "model": Some(&job.model).filter(|model| !model.is_empty()),
        "created_at": job.created_unix_s,
        "finished_at": job.finished_unix_s,
        "expires_at": job.expires_unix_s,
        "progress": job.progress.as_ref().map(|progress| json!({
            "state": progress.state,
            "fraction": progress.fraction,
        })),
        "error": error(job).map(|error| error.to_openai()),
        "request_id": job.request_id,
    })
}

/// Why a job has failed.
pub fn error(job: &Job) -> Option<Error> {
    Some(Error::from_detail(&job.error_message, job.error.clone()?))
}

/// Whether nothing will change any more.
pub fn is_over(job: &Job) -> bool {
    !matches!(job.state(), State::Unspecified | State::Running)
}

/// OpenAI's words for the states of what runs in the background.
fn state_name(state: State) -> &'static str {
    match state {
        State::Unspecified | State::Running => "in_progress",
        State::Succeeded => "completed",
        State::Failed => "failed",
        State::Cancelled => "cancelled",
    }
}

fn new_id() -> String {
    format!("{ID_PREFIX}{}", uuid::Uuid::new_v4().simple())
}

/// Only ids that we give: nothing in them can leave the store's folder.
fn is_id(id: &str) -> bool {
    id.strip_prefix(ID_PREFIX).is_some_and(|id| id.len() == 32 && id.bytes().all(|c| c.is_ascii_hexdigit()))
}

fn end(job: &mut Job, state: State) {
    let now = unix_now();
    job.state = state.into();
    job.progress = None;
    job.finished_unix_s = Some(now);
    job.expires_unix_s = Some(now + KEPT.as_secs().cast_signed());
}

fn fail(job: &mut Job, error: &Error) {
    end(job, State::Failed);
    job.error = Some(error.to_detail());
    job.error_message = error.message.clone();
}

/// A job whose process ended before it did.
fn interrupt(job: &mut Job) {
    let message = "the gateway stopped while the job ran; its provider may have charged for it";
    fail(
        job,
        &Error::new(ErrorKind::Internal, message).with_code("job_interrupted").billed(BillingClass::Unknown),
    );
}

fn chunk(index: usize, piece: Result<bytes::Bytes>) -> Result<Event> {
    let image_index = u32::try_from(index).unwrap_or(u32::MAX);
    piece.map(|data| Event::ImageChunk(pb::ImageChunk { image_index, data }))
}
