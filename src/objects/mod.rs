//! Images that can be fetched later, in a folder or in a bucket: put, got, and swept when their time is over.
//!
//! Knows names and bytes, and nothing of what they are. A place that is away is said once, and once that it is back.

pub mod gallery;

use std::{
    error::Error as _,
    fmt, io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream::BoxStream};
use object_store::{
    Attribute, Attributes, BackoffConfig, ClientOptions, GetResultPayload, ObjectStore, ObjectStoreExt as _,
    PutOptions, RetryConfig,
    aws::{AmazonS3Builder, AmazonS3ConfigKey},
    local::LocalFileSystem,
    path::Path,
};
use secrecy::ExposeSecret as _;
use tokio::time::timeout;
use tokio_util::io::ReaderStream;

use crate::{
    config::images::{Bucket, ImagesSettings, Place, usual_variables},
    disk,
    pb::{CHUNK_BYTES, unix_now_ms},
    telemetry,
};

/// How often a bucket is asked again within its time.
const MAX_RETRIES: usize = 3;

/// The object whose age says when some replica last swept.
const SWEPT: &str = "swept";

/// Where images are kept.
pub struct Objects {
    store: Arc<dyn ObjectStore>,
    /// In front of every name.
    root: Path,
    /// Of a place that is a folder.
    folder: Option<PathBuf>,
    timeout: Duration,
    is_away: AtomicBool,
}

/// What is kept under a name.
pub struct Found {
    /// Its length.
    pub bytes: u64,
    /// Since it was put.
    pub age: Duration,
    /// Its bytes as they come.
    pub pieces: BoxStream<'static, io::Result<Bytes>>,
}

/// The place does not do what it was asked for. The log has the reason.
#[derive(Clone, Copy, Debug)]
pub struct Away;

impl Objects {
    /// Makes ready for a place, and asks nothing of it: it may come later.
    ///
    /// # Errors
    /// What is wrong with the settings.
    pub fn open(settings: &ImagesSettings) -> Result<Arc<Self>, String> {
        let (store, root, folder): (Arc<dyn ObjectStore>, _, _) = match &settings.place {
            Place::Folder(folder) => {
                let wrong = |why: &dyn fmt::Display| format!("{} cannot be used: {why}", folder.display());
                let folder = std::path::absolute(folder).map_err(|error| wrong(&error))?;
                let root = Path::from_absolute_path(&folder).map_err(|error| wrong(&error))?;
                (Arc::new(LocalFileSystem::new()), root, Some(folder))
            }
            Place::Bucket(bucket) => {
                let root = Path::from_url_path(&bucket.prefix).map_err(|error| format!("url: {error}"))?;
                (Arc::new(s3(bucket, settings.timeout)?), root, None)
            }
        };
        let is_away = AtomicBool::new(false);
        Ok(Arc::new(Self { store, root, folder, timeout: settings.timeout, is_away }))
    }

    /// Keeps something under a name, as a whole or not at all. Nothing is copied together.
    pub async fn put(
        &self,
        name: &[&str],
        media_type: &'static str,
        pieces: impl IntoIterator<Item = Bytes>,
    ) -> Result<(), Away> {
        let attributes = match self.folder {
            // A folder has no place for it.
            Some(_) => Attributes::new(),
            None => Attributes::from_iter([(Attribute::ContentType, media_type)]),
        };
        let options = PutOptions { attributes, ..PutOptions::default() };
        let payload = pieces.into_iter().collect();
        let path = self.path(name);
        self.ask("put", self.store.put_opts(&path, payload, options)).await.map(drop)
    }

    /// What is kept under a name, if there is anything.
    pub async fn get(&self, name: &[&str]) -> Result<Option<Found>, Away> {
        let path = self.path(name);
        let Some(found) = self.ask("get", self.store.get(&path)).await? else { return Ok(None) };
        let (bytes, age) = (found.meta.size, age(found.meta.last_modified.timestamp_millis()));
        let pieces = match found.payload {
            GetResultPayload::File(file, _) => {
                ReaderStream::with_capacity(tokio::fs::File::from_std(file), CHUNK_BYTES).boxed()
            }
            GetResultPayload::Stream(pieces) => pieces.map_err(io::Error::from).boxed(),
        };
        Ok(Some(Found { bytes, age, pieces }))
    }

    /// Removes what is older than its lifetime below a name, again and again. Of the replicas that share a bucket one
    /// does it.
    pub async fn keep_swept(&self, below: &str, lifetime: Duration) {
        let most = Duration::from_secs(if self.folder.is_some() { 60 } else { 900 });
        let every = (lifetime / 4).clamp(Duration::from_secs(1), most);
        loop {
            if let Some(folder) = &self.folder {
                // Also what a process that was killed has left unfinished.
                disk::sweep(&folder.join(below), lifetime).await;
            } else if let Ok(true) = self.is_ours(below, every).await {
                _ = self.sweep(below, lifetime).await;
            }
            tokio::time::sleep(every).await;
        }
    }

    /// The names right below a name that have something below themselves.
    pub async fn folders(&self, below: &str) -> Result<Vec<String>, Away> {
        let path = self.path(&[below]);
        let listed = self.ask("list", self.store.list_with_delimiter(Some(&path))).await?;
        let names = listed.into_iter().flat_map(|listed| listed.common_prefixes);
        Ok(names.filter_map(|path| path.filename().map(str::to_owned)).collect())
    }

    /// Removes everything below a name.
    pub async fn remove_all(&self, below: &[&str]) -> Result<(), Away> {
        match &self.folder {
            Some(folder) => {
                let folder = below.iter().fold(folder.clone(), |folder, part| folder.join(part));
                match tokio::fs::remove_dir_all(&folder).await {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        Err(self.note_failure("delete", &error.to_string()))
                    }
                    _ => Ok(()),
                }
            }
            None => self.remove_older(&self.path(below), Duration::ZERO).await,
        }
    }

    async fn sweep(&self, below: &str, lifetime: Duration) -> Result<(), Away> {
        self.remove_older(&self.path(&[below]), lifetime).await
    }

    async fn remove_older(&self, below: &Path, lifetime: Duration) -> Result<(), Away> {
        let is_over = move |millis: i64| age(millis) >= lifetime;
        let over = self.store.list(Some(below)).try_filter_map(move |meta| {
            let is_over = is_over(meta.last_modified.timestamp_millis());
            std::future::ready(Ok(is_over.then_some(meta.location)))
        });
        let removed = self.store.delete_stream(over.boxed()).try_for_each(|_| std::future::ready(Ok(())));
        // As long as it takes: each request of it has its own time.
        match removed.await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => {
                self.note_success();
                Ok(())
            }
            Err(error) => Err(self.note_failure("sweep", &reason(&error))),
        }
    }

    /// Whether it is time to sweep, and nobody else has begun to.
    async fn is_ours(&self, below: &str, every: Duration) -> Result<bool, Away> {
        let mark = [SWEPT, below];
        let path = self.path(&mark);
        let swept = self.ask("get", self.store.head(&path)).await?;
        if swept.is_some_and(|meta| age(meta.last_modified.timestamp_millis()) < every) {
            return Ok(false);
        }
        self.put(&mark, "text/plain", []).await?;
        Ok(true)
    }

    fn path(&self, name: &[&str]) -> Path {
        name.iter().fold(self.root.clone(), |path, part| path.join(*part))
    }

    /// Waits for the place no longer than its time. None: there is no such thing.
    async fn ask<T>(
        &self,
        operation: &'static str,
        work: impl Future<Output = object_store::Result<T>>,
    ) -> Result<Option<T>, Away> {
        match timeout(self.timeout, work).await {
            Ok(Ok(done)) => {
                self.note_success();
                Ok(Some(done))
            }
            // A bucket that does not exist is no answer about an object. Nothing else is put in vain for that reason.
            Ok(Err(object_store::Error::NotFound { .. })) if operation != "put" => {
                self.note_success();
                Ok(None)
            }
            Ok(Err(error)) => Err(self.note_failure(operation, &reason(&error))),
            Err(_) => {
                let reason = format!("no answer within {} ms", self.timeout.as_millis());
                Err(self.note_failure(operation, &reason))
            }
        }
    }

    fn note_success(&self) {
        telemetry::images_up(true);
        if self.is_away.swap(false, Ordering::Relaxed) {
            telemetry::images_back();
        }
    }

    fn note_failure(&self, operation: &'static str, reason: &str) -> Away {
        telemetry::images_failed(operation, reason);
        telemetry::images_up(false);
        if !self.is_away.swap(true, Ordering::Relaxed) {
            telemetry::images_away(reason);
        }
        Away
    }
}

fn s3(bucket: &Bucket, timeout: Duration) -> Result<object_store::aws::AmazonS3, String> {
    let usual = usual_variables();
    let wanted = |name: &str| match &bucket.credentials {
        None => true,
        // Half of another key's would make none that works.
        Some(_) => matches!(name, "aws_region" | "aws_default_region" | "aws_endpoint_url_s3"),
    };
    let mut builder = AmazonS3Builder::new().with_bucket_name(&bucket.name);
    for (name, value) in usual.iter().filter(|(name, _)| wanted(name)) {
        if let Ok(key) = name.parse::<AmazonS3ConfigKey>() {
            builder = builder.with_config(key, value.0.expose_secret());
        }
    }
    if let Some(credentials) = &bucket.credentials {
        builder = builder
            .with_access_key_id(credentials.access_key_id.0.expose_secret())
            .with_secret_access_key(credentials.secret_access_key.0.expose_secret());
    }
    if let Some(region) = &bucket.region {
        builder = builder.with_region(region);
    }
    if let Some(endpoint) = &bucket.endpoint {
        // The one that goes before all others.
        builder = builder.with_config(AmazonS3ConfigKey::S3Endpoint, endpoint);
    }
    builder
        .with_virtual_hosted_style_request(bucket.virtual_hosted)
        .with_retry(RetryConfig {
            backoff: BackoffConfig::default(),
            max_retries: MAX_RETRIES,
            retry_timeout: timeout,
        })
        .with_client_options(
            ClientOptions::new()
                .with_allow_http(bucket.allow_http)
                .with_connect_timeout(timeout)
                // An image may take longer than this to its client; a server that is silent may not.
                .with_timeout_disabled()
                .with_read_timeout(timeout),
        )
        .build()
        .map_err(|error| reason(&error))
}

/// In words. Neither the name of an object, which is all that protects it, nor what a server repeats of a key.
fn reason(error: &object_store::Error) -> String {
    match error {
        object_store::Error::NotFound { source, .. } => {
            format!("there is no such bucket: {}", innermost(&**source))
        }
        object_store::Error::PermissionDenied { source, .. } => {
            format!("access denied: {}", innermost(&**source))
        }
        object_store::Error::Unauthenticated { source, .. } => {
            format!("who are you: {}", innermost(&**source))
        }
        other => other.source().map_or_else(|| other.to_string(), innermost),
    }
}

/// The end of a chain of causes: those before it repeat addresses.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    let text = last.to_string();
    // S3 answers in XML; its code says what is wrong.
    let code = text.split_once("<Code>").and_then(|(_, rest)| rest.split_once("</Code>"));
    match code {
        Some((code, _)) => code.to_owned(),
        None => text.lines().next().unwrap_or_default().trim_end_matches([':', ' ']).to_owned(),
    }
}

fn age(since_ms: i64) -> Duration {
    Duration::from_millis(u64::try_from(unix_now_ms().saturating_sub(since_ms)).unwrap_or_default())
}

impl fmt::Debug for Objects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Objects").field("root", &self.root).finish_non_exhaustive()
    }
}

impl fmt::Debug for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Found").field("bytes", &self.bytes).field("age", &self.age).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
