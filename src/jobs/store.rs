//! Jobs on disk: how each stands, and its images.
//!
//! A job is `<id>.job`, an encoded `GetJobResponse` without bytes, and `<id>.0`, `<id>.1`, ... are its images. A job
//! that runs has its file touched again and again: one that has not been touched for a while has lost its process.

use std::{
    io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use prost::Message as _;
use tokio::fs;
use tokio_util::io::ReaderStream;

use super::job::{KEPT, interrupt};
use crate::{
    disk,
    images::Pieces,
    pb::{self, CHUNK_BYTES, GetJobResponse, job::State},
};

/// How often the file of a running job is touched, and how long it takes until its process is thought dead.
pub const TOUCH_EVERY: Duration = Duration::from_secs(15);
const LOST_AFTER: Duration = Duration::from_secs(60);

/// The jobs below one folder, which several routers may share.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
}

impl Store {
    /// Jobs below `data_dir`. The folder is made when the first one is kept.
    pub fn new(data_dir: &Path) -> Self {
        Self { folder: data_dir.join("jobs") }
    }

    /// Keeps how a job stands.
    pub async fn put(&self, job: &pb::Job, result: Option<&pb::ImageResult>) -> io::Result<()> {
        let kept = GetJobResponse { job: Some(job.clone()), result: result.cloned() };
        disk::write(&self.folder, &format!("{}.job", job.id), &[kept.encode_to_vec().into()]).await
    }

    /// Keeps the images of a job.
    pub async fn put_images(&self, id: &str, images: &[Pieces]) -> io::Result<()> {
        for (i, image) in images.iter().enumerate() {
            disk::write(&self.folder, &format!("{id}.{i}"), image.iter()).await?;
        }
        Ok(())
    }

    /// Says that a job still runs.
    pub async fn touch(&self, id: &str) {
        let touched = async {
            let file =
                fs::OpenOptions::new().append(true).open(self.folder.join(format!("{id}.job"))).await?;
            file.into_std().await.set_modified(SystemTime::now())
        };
        if let Err(error) = touched.await {
            tracing::warn!(%error, job = id, "the file of a running job cannot be touched");
        }
    }

    /// A job and its result. One that was running in a process that is gone has failed.
    pub async fn get(&self, id: &str) -> Option<GetJobResponse> {
        let path = self.folder.join(format!("{id}.job"));
        let kept = GetJobResponse::decode(fs::read(&path).await.ok()?.as_slice()).ok()?;
        let mut job = kept.job?;
        let age = fs::metadata(&path).await.and_then(|metadata| metadata.modified()).ok()?.elapsed();
        let age = age.unwrap_or_default();
        if job.state() == State::Running {
            if age > LOST_AFTER {
                interrupt(&mut job);
            }
        } else if age > KEPT {
            return None;
        }
        Some(GetJobResponse { job: Some(job), result: kept.result })
    }

    /// The bytes of one of a job's images.
    pub async fn image(
        &self,
        id: &str,
        index: usize,
    ) -> io::Result<impl Stream<Item = io::Result<Bytes>> + use<>> {
        let file = fs::File::open(self.folder.join(format!("{id}.{index}"))).await?;
        Ok(ReaderStream::with_capacity(file, CHUNK_BYTES).fuse())
    }

    /// Removes what is older than a job may be.
    pub async fn sweep(&self) {
        disk::sweep(&self.folder, KEPT).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::job::new_id;

    fn job(state: State) -> pb::Job {
        pb::Job { id: new_id(), state: state.into(), ..Default::default() }
    }

    fn age(store: &Store, id: &str, by: Duration) {
        let file =
            std::fs::File::options().append(true).open(store.folder.join(format!("{id}.job"))).unwrap();
        file.set_modified(SystemTime::now() - by).unwrap();
    }

    #[tokio::test]
    async fn a_running_job_that_nobody_touches_has_failed() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path());
        let running = job(State::Running);
        store.put(&running, None).await.unwrap();
        age(&store, &running.id, LOST_AFTER * 2);
        let found = store.get(&running.id).await.unwrap().job.unwrap();
        assert_eq!(found.state(), State::Failed);
        assert_eq!(found.error.unwrap().code, "job_interrupted");
        store.touch(&running.id).await;
        assert_eq!(store.get(&running.id).await.unwrap().job.unwrap().state(), State::Running);
    }

    #[tokio::test]
    async fn a_job_is_forgotten_after_a_day() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path());
        let over = job(State::Succeeded);
        let result = pb::ImageResult { created_unix_s: 7, ..Default::default() };
        store.put_images(&over.id, &[Bytes::from_static(b"bytes").into()]).await.unwrap();
        store.put(&over, Some(&result)).await.unwrap();
        store.sweep().await;
        assert_eq!(store.get(&over.id).await.unwrap().result, Some(result));
        let bytes: Vec<_> = store.image(&over.id, 0).await.unwrap().map(Result::unwrap).collect().await;
        assert_eq!(bytes.concat(), b"bytes");
        age(&store, &over.id, KEPT + Duration::from_secs(1));
        assert_eq!(store.get(&over.id).await, None);
        store.sweep().await;
        assert!(!store.folder.join(format!("{}.job", over.id)).exists());
    }
}
