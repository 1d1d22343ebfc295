//! A job from now to its end, and then what came of it.

use futures::{Stream, StreamExt as _, stream};
use tokio::{
    sync::watch,
    time::{Duration, sleep},
};

use super::{JobStream, Jobs, job::is_over};
use crate::{
    error::{Error, ErrorKind, Result},
    pb::{self, Job, WatchJobResponse, job::State, watch_job_response::Event},
};

/// How often a job of another process is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

impl Jobs {
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

fn chunk(index: usize, piece: Result<bytes::Bytes>) -> Result<Event> {
    let image_index = u32::try_from(index).unwrap_or(u32::MAX);
    piece.map(|data| Event::ImageChunk(pb::ImageChunk { image_index, data }))
}
