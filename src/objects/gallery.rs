//! The images of the request log: thumbnails and whole images, kept beside their records, by day.
//!
//! Made and put while no request waits. How many bytes wait for that is bounded; what finds no room is counted, and lost.
//! One thumbnail is made at a time, so that requests keep the processors.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{
    FutureExt as _, StreamExt as _, TryStreamExt as _, future::BoxFuture, stream::FuturesUnordered,
};
use time::OffsetDateTime;
use tokio::{
    sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc},
    time::timeout,
};

use super::{Away, Objects};
use crate::{
    images::{
        Pieces,
        thumbnail::{self, thumbnail},
    },
    pb::{ImageFormat, KeptImages, RequestRecord},
    telemetry,
};

/// Begins the names of these images.
const BELOW: &str = "log";

/// Bytes of images that wait to be kept.
const MAX_WAITING_BYTES: usize = 64 << 20;

/// Requests that wait, however small their images are.
const MAX_WAITING: usize = 10_000;

/// Requests whose images are being put.
const AT_ONCE: usize = 8;

/// How long a process that ends takes to keep what waits.
const FLUSH_WITHIN: Duration = Duration::from_secs(5);

/// The images of the request log.
#[derive(Debug)]
pub struct Gallery {
    objects: Arc<Objects>,
    sender: mpsc::Sender<Waiting>,
    room: Arc<Semaphore>,
    /// Of whoever makes a thumbnail.
    easel: Arc<Semaphore>,
    work: Mutex<Work>,
}

/// Images of one request that wait to be kept.
#[derive(Debug)]
struct Waiting {
    place: Place,
    images: Vec<(ImageFormat, Pieces)>,
    kept: KeptImages,
    _room: OwnedSemaphorePermit,
}

/// Where the images of a request are.
#[derive(Clone, Debug)]
struct Place {
    day: String,
    tenant: String,
    request: String,
}

#[derive(Debug)]
struct Work {
    queue: mpsc::Receiver<Waiting>,
    /// Goes on where it was if whoever waits for it is dropped.
    running: FuturesUnordered<BoxFuture<'static, ()>>,
}

impl Gallery {
    /// Nothing waits yet.
    pub fn new(objects: Arc<Objects>) -> Arc<Self> {
        let (sender, queue) = mpsc::channel(MAX_WAITING);
        let work = Mutex::new(Work { queue, running: FuturesUnordered::new() });
        let room = Arc::new(Semaphore::new(MAX_WAITING_BYTES));
        Arc::new(Self { objects, sender, room, easel: Arc::new(Semaphore::new(1)), work })
    }

    /// Takes what shall be kept of a request's images, and notes in its record what that is.
    pub fn offer(&self, tenant: &str, record: &mut RequestRecord, images: Vec<Pieces>, kept: KeptImages) {
        if !kept.are_shown() || images.is_empty() {
            return;
        }
        let images: Vec<_> = record.images_made.iter().map(|made| made.format()).zip(images).collect();
        let bytes = images.iter().map(|(_, pieces)| pieces.len()).sum::<usize>();
        let room = u32::try_from(bytes).ok();
        let room = room.and_then(|room| Arc::clone(&self.room).try_acquire_many_owned(room).ok());
        let count = images.len();
        let place = Place::of(tenant, record);
        let waiting = room.map(|room| Waiting { place, images, kept, _room: room });
        if waiting.is_none_or(|waiting| self.sender.try_send(waiting).is_err()) {
            telemetry::logged_images_lost("queue_full", count);
            return;
        }
        for made in &mut record.images_made {
            made.thumbnail = thumbnail::is_possible(made.format());
            made.full = kept == KeptImages::Full;
        }
    }

    /// Keeps what waits, as long as it runs.
    pub async fn keep_hanging(&self) {
        let mut work = self.work.lock().await;
        let Work { queue, running } = &mut *work;
        loop {
            tokio::select! {
                Some(()) = running.next() => {}
                Some(waiting) = queue.recv(), if running.len() < AT_ONCE => running.push(self.hang(waiting)),
            }
        }
    }

    /// Keeps what still waits, after it has run.
    pub async fn flush(&self) {
        let mut work = self.work.lock().await;
        let Work { queue, running } = &mut *work;
        let keep = async {
            loop {
                while running.len() < AT_ONCE
                    && let Ok(waiting) = queue.try_recv()
                {
                    running.push(self.hang(waiting));
                }
                if running.next().await.is_none() {
                    break;
                }
            }
        };
        if timeout(FLUSH_WITHIN, keep).await.is_err() {
            telemetry::logged_images_lost("ended", running.len() + queue.len());
        }
    }

    /// An image of a request, or its thumbnail, if it is there.
    ///
    /// # Errors
    /// The place is away.
    pub async fn get(
        &self,
        tenant: &str,
        record: &RequestRecord,
        index: usize,
        full: bool,
    ) -> Result<Option<(Bytes, ImageFormat)>, Away> {
        let Some(made) = record.images_made.get(index) else { return Ok(None) };
        let format = if full { made.format() } else { thumbnail::FORMAT };
        let place = Place::of(tenant, record);
        let Some(found) = self.objects.get(&place.name(&file(index, full, format))).await? else {
            return Ok(None);
        };
        let pieces: Vec<Bytes> = found.pieces.try_collect().await.map_err(|_| Away)?;
        Ok(Some((pieces.into_iter().collect::<Pieces>().into_bytes(), format)))
    }

    /// Removes the images of all days that ended before a time, in milliseconds since 1970.
    pub async fn forget_before(&self, ms: i64) {
        let first_kept = day(ms);
        for old in self.objects.folders(BELOW).await.unwrap_or_default() {
            // Only what has our form: the order of texts is that of days then.
            if old.len() == first_kept.len() && old < first_kept {
                _ = self.objects.remove_all(&[BELOW, &old]).await;
            }
        }
    }

    fn hang(&self, waiting: Waiting) -> BoxFuture<'static, ()> {
        let (objects, easel) = (Arc::clone(&self.objects), Arc::clone(&self.easel));
        async move {
            let Waiting { place, images, kept, _room } = waiting;
            for (index, (format, image)) in images.into_iter().enumerate() {
                let put = async |full: bool, format: ImageFormat, image: Pieces| {
                    let name = file(index, full, format);
                    let put = objects.put(&place.name(&name), format.mime_type(), image).await;
                    if put.is_err() {
                        telemetry::logged_images_lost("away", 1);
                    }
                };
                if kept == KeptImages::Full {
                    put(true, format, image.clone()).await;
                }
                if !thumbnail::is_possible(format) {
                    continue;
                }
                let turn = easel.acquire().await;
                let made = tokio::task::spawn_blocking(move || thumbnail(&image.into_bytes())).await;
                drop(turn);
                match made {
                    Ok(Ok(small)) => put(false, thumbnail::FORMAT, small.into()).await,
                    Ok(Err(_)) | Err(_) => telemetry::logged_images_lost("unreadable", 1),
                }
            }
        }
        .boxed()
    }
}

impl Place {
    fn of(tenant: &str, record: &RequestRecord) -> Self {
        Self { day: day(record.created_unix_ms), tenant: tenant.to_owned(), request: record.id.clone() }
    }

    fn name<'a>(&'a self, file: &'a str) -> [&'a str; 5] {
        [BELOW, &self.day, &self.tenant, &self.request, file]
    }
}

fn file(index: usize, full: bool, format: ImageFormat) -> String {
    let kind = if full { "image" } else { "thumbnail" };
    format!("{index}.{kind}.{}", format.name())
}

/// `2026-11-27`, in UTC.
fn day(ms: i64) -> String {
    let time = OffsetDateTime::from_unix_timestamp(ms.div_euclid(1000)).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    time.date().to_string()
}

#[cfg(test)]
mod tests {
    use image::{DynamicImage, RgbImage};

    use super::*;
    use crate::{
        config::images::ImagesSettings,
        images::{convert, probe::probe},
        pb::LoggedImage,
    };

    const NOON: i64 = 1_795_780_800_000;
    const DAY_MS: i64 = 86_400_000;

    fn gallery(folder: &std::path::Path) -> Arc<Gallery> {
        Gallery::new(Objects::open(&ImagesSettings::below(folder)).unwrap())
    }

    fn record(id: &str, ms: i64, formats: &[ImageFormat]) -> RequestRecord {
        let made = |format: &ImageFormat| LoggedImage { format: (*format).into(), ..Default::default() };
        let images_made = formats.iter().map(made).collect();
        RequestRecord { id: id.into(), created_unix_ms: ms, images_made, ..Default::default() }
    }

    fn png() -> Pieces {
        convert::encode(&DynamicImage::from(RgbImage::new(512, 512)), ImageFormat::Png, None).unwrap().into()
    }

    #[tokio::test]
    async fn what_a_policy_allows_is_kept_for_its_tenant() {
        let folder = tempfile::tempdir().unwrap();
        let gallery = gallery(folder.path());
        let svg: Pieces = b"<svg xmlns='http://www.w3.org/2000/svg'/>".to_vec().into();
        for (kept, thumbnails, full) in [
            (KeptImages::Unspecified, [false, false], false),
            (KeptImages::None, [false, false], false),
            (KeptImages::Digests, [false, false], false),
            (KeptImages::Thumbnails, [true, false], false),
            (KeptImages::Full, [true, false], true),
        ] {
            let mut record = record(&format!("{kept:?}"), NOON, &[ImageFormat::Png, ImageFormat::Svg]);
            gallery.offer("acme", &mut record, vec![png(), svg.clone()], kept);
            gallery.flush().await;
            for (index, image) in [png(), svg.clone()].into_iter().enumerate() {
                let made = &record.images_made[index];
                assert_eq!((made.thumbnail, made.full), (thumbnails[index], full), "{kept:?} {index}");
                let small = gallery.get("acme", &record, index, false).await.unwrap();
                assert_eq!(small.is_some(), thumbnails[index], "{kept:?} {index}");
                if let Some((small, format)) = small {
                    let found = probe(&small.into()).unwrap();
                    assert_eq!((found.format, found.width, found.height), (format, 256, 256));
                }
                let whole = gallery.get("acme", &record, index, true).await.unwrap();
                assert_eq!(whole.map(|(bytes, _)| bytes), full.then(|| image.into_bytes()), "{kept:?}");
                for full in [true, false] {
                    assert!(gallery.get("other", &record, index, full).await.unwrap().is_none());
                }
            }
        }
    }

    #[tokio::test]
    async fn what_finds_no_room_is_not_promised() {
        let folder = tempfile::tempdir().unwrap();
        let gallery = gallery(folder.path());
        let mut first = record("a", NOON, &[ImageFormat::Png]);
        gallery.offer("acme", &mut first, vec![vec![0; MAX_WAITING_BYTES].into()], KeptImages::Thumbnails);
        let mut second = record("b", NOON, &[ImageFormat::Png]);
        gallery.offer("acme", &mut second, vec![png()], KeptImages::Thumbnails);
        assert!(first.images_made[0].thumbnail && !second.images_made[0].thumbnail);
        gallery.flush().await;
        gallery.offer("acme", &mut second, vec![png()], KeptImages::Thumbnails);
        assert!(second.images_made[0].thumbnail);
    }

    #[tokio::test]
    async fn days_are_forgotten_as_a_whole() {
        let folder = tempfile::tempdir().unwrap();
        let gallery = gallery(folder.path());
        let mut records: Vec<_> =
            (0..3).map(|day| record("r", NOON + day * DAY_MS, &[ImageFormat::Png])).collect();
        for record in &mut records {
            gallery.offer("acme", record, vec![png()], KeptImages::Full);
        }
        gallery.flush().await;
        std::fs::create_dir(folder.path().join("images/log/0")).unwrap();
        gallery.forget_before(NOON + DAY_MS).await;
        let mut left = Vec::new();
        for record in &records {
            left.push(gallery.get("acme", record, 0, true).await.unwrap().is_some());
        }
        assert_eq!(left, [false, true, true]);
        assert!(folder.path().join("images/log/0").exists(), "what is not ours is left alone");
    }
}
