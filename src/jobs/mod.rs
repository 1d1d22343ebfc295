//! Requests that run whether or not somebody waits: submitted, watched, given up, and what came of them kept for a
//! day.
//!
//! A job that runs is here; one that is over is in the [`store`], which other routers may share. Nothing here
//! knows routes: what a job runs is a future.

mod job;
mod run;
mod store;
mod watching;
mod webhook;

use std::{
    collections::HashMap,
    future::Future,
    path::Path,
    pin::{Pin, pin},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use futures::{Stream, StreamExt as _, future::BoxFuture, stream};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{interval, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use self::{
    job::{KEPT, is_id, new_id},
    store::Store,
};
pub use self::{
    job::{error, is_over, to_json},
    webhook::Webhook,
};
use crate::{
    error::{Error, ErrorKind, Result},
    images::Pieces,
    pb::{self, BillingClass, Job, WatchJobResponse, job::State, stream_image_response, unix_now},
    telemetry,
};

/// How long a job may take to give up.
const GIVES_UP_WITHIN: Duration = Duration::from_secs(5);

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

    /// Whether one more job may run.
    ///
    /// # Errors
    /// As many run as may, or the process is about to end.
    pub fn admit(&self, limit: usize) -> Result<()> {
        if self.0.draining.is_cancelled() {
            let message = "the gateway is shutting down and takes no more jobs";
            return Err(Error::transport(ErrorKind::Unavailable, BillingClass::NotSent, message));
        }
        if self.0.running().values().filter(|running| running.is_on()).count() >= limit {
            let message = format!("{limit} jobs are running, which is the limit (limits.jobs)");
            return Err(Error::new(ErrorKind::RateLimited, message).with_code("too_many_jobs"));
        }
        Ok(())
    }

    /// Submits a job. `progress` ends when `run` does. Nothing is waited for: whoever submits may go away at any
    /// moment.
    pub fn submit(
        &self,
        new: New,
        progress: mpsc::Receiver<Box<Said>>,
        run: impl Future<Output = Result<Made>> + Send + 'static,
    ) -> Job {
        let New { operation, model, request_id, caller, webhook } = new;
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
        let running = Arc::new(Running {
            now: watch::Sender::new(job.clone()),
            given_up: CancellationToken::new(),
            made: OnceLock::new(),
        });
        self.0.running().insert(job.id.clone(), Arc::clone(&running));
        telemetry::job_begins();
        let work = Arc::clone(&self.0).carry_out(running, progress, run, webhook);
        if self.0.queue.0.send(Box::pin(work)).is_err() {
            tracing::error!("nobody carries out jobs");
        }
        job
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
        let in_memory = self.running(id).and_then(|running| running.made.get()?.images.get(index).cloned());
        if let Some(pieces) = in_memory {
            return Ok(stream::iter(pieces.into_iter().map(Ok)).left_stream());
        }
        let job = id.to_owned();
        let lost = move |error: std::io::Error| {
            tracing::error!(%error, job, "an image of a job cannot be read");
            Error::new(ErrorKind::Internal, "the job's image was made but cannot be read")
        };
        let read = self.0.store.image(id, index).await.map_err(&lost)?;
        Ok(read.map(move |piece| piece.map_err(&lost)).right_stream())
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

    async fn sweep(&self) {
        self.0.store.sweep().await;
        let is_known =
            |running: &Running| running.now.borrow().expires_unix_s.is_none_or(|at| at > unix_now());
        self.0.running().retain(|_, running| is_known(running));
    }

    fn running(&self, id: &str) -> Option<Arc<Running>> {
        self.0.running().get(id).cloned()
    }
}

impl Shared {
    fn running(&self) -> MutexGuard<'_, HashMap<String, Arc<Running>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Running {
    fn is_on(&self) -> bool {
        !is_over(&self.now.borrow())
    }
}
