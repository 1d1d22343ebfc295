//! Digests of images on the way of their requests into the log, computed beside everything else. How many bytes wait for
//! that is bounded: where there is no room, a request goes on without.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{Mutex, MutexGuard, OwnedSemaphorePermit, Semaphore, mpsc};

use super::Logged;
use crate::{digest::sha256, images::Pieces, pb::KeptImages};

/// Bytes of images that wait. One processor digests them in a fraction of a second.
const MAX_WAITING_BYTES: usize = 64 << 20;

/// Requests that wait, however small their images are.
const MAX_WAITING: usize = 10_000;

/// The images that a request was answered with.
#[derive(Debug)]
pub struct Pictures {
    /// In order; none where nothing of them is kept.
    pub images: Vec<Pieces>,
    /// What the log keeps of them.
    pub kept: KeptImages,
}

/// Requests whose images wait for their digests.
#[derive(Debug)]
pub struct Digests {
    sender: mpsc::Sender<Undigested>,
    room: Arc<Semaphore>,
    work: Mutex<Work>,
}

/// What is to be done, for the one who does it.
#[derive(Debug)]
pub struct Work {
    queue: mpsc::Receiver<Undigested>,
    /// Taken from the queue and not done: nothing is lost if whoever waits for it is dropped.
    current: Option<Undigested>,
}

#[derive(Debug)]
struct Undigested {
    request: Logged,
    pictures: Pictures,
    _room: OwnedSemaphorePermit,
}

impl Digests {
    /// Nothing waits yet.
    pub fn new() -> Self {
        let (sender, queue) = mpsc::channel(MAX_WAITING);
        let work = Mutex::new(Work { queue, current: None });
        Self { sender, room: Arc::new(Semaphore::new(MAX_WAITING_BYTES)), work }
    }

    /// Lets a request wait for the digests of its images, or gives it back if there is no room.
    pub fn add(&self, request: Logged, pictures: Pictures) -> Option<(Logged, Pictures)> {
        let bytes = pictures.images.iter().map(Pieces::len).sum::<usize>();
        let room = u32::try_from(bytes).ok();
        let Some(room) = room.and_then(|room| Arc::clone(&self.room).try_acquire_many_owned(room).ok())
        else {
            return Some((request, pictures));
        };
        let undigested = Undigested { request, pictures, _room: room };
        let Undigested { request, pictures, .. } = self.sender.try_send(undigested).err()?.into_inner();
        Some((request, pictures))
    }

    /// The work, of which one does it at a time.
    pub async fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().await
    }
}

impl Work {
    /// The next request with its digests, once there is one.
    pub async fn next(&mut self) -> (Logged, Pictures) {
        loop {
            if self.current.is_none() {
                self.current = self.queue.recv().await;
            }
            match self.digest().await {
                Some(done) => return done,
                // Whoever adds something has gone.
                None => std::future::pending().await,
            }
        }
    }

    /// The next one of those that wait.
    pub async fn next_waiting(&mut self) -> Option<(Logged, Pictures)> {
        if self.current.is_none() {
            self.current = self.queue.try_recv().ok();
        }
        self.digest().await
    }

    async fn digest(&mut self) -> Option<(Logged, Pictures)> {
        let images = self.current.as_ref()?.pictures.images.clone();
        let digests =
            tokio::task::spawn_blocking(move || images.iter().map(sha256).collect::<Vec<_>>()).await;
        let Undigested { mut request, pictures, .. } = self.current.take()?;
        for (image, digest) in request.record.images_made.iter_mut().zip(digests.unwrap_or_default()) {
            image.sha256 = Bytes::copy_from_slice(digest.as_ref());
        }
        Some((request, pictures))
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;
    use crate::{
        digest::hex,
        pb::{LoggedImage, RequestRecord},
    };

    fn request(id: &str) -> Logged {
        let images_made = vec![LoggedImage::default(); 2];
        let record = RequestRecord { id: id.into(), images_made, ..Default::default() };
        Logged { tenant: "default".into(), record }
    }

    fn images(bytes: usize) -> Pictures {
        let abc = [Bytes::from_static(b"a"), Bytes::from_static(b"bc")].into_iter().collect();
        Pictures { images: vec![abc, vec![0; bytes].into()], kept: KeptImages::None }
    }

    #[tokio::test]
    async fn an_image_in_pieces_has_the_digest_of_the_whole() {
        let digests = Digests::new();
        assert!(digests.add(request("r"), images(0)).is_none());
        let (done, _) = digests.work().await.next().await;
        let [abc, empty] = &done.record.images_made[..] else { panic!() };
        assert_eq!(hex(&abc.sha256), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(hex(&empty.sha256), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }

    #[tokio::test]
    async fn bytes_that_wait_are_bounded_and_free_again_once_they_are_done() {
        let digests = Digests::new();
        assert!(digests.add(request("a"), images(MAX_WAITING_BYTES / 2)).is_none());
        let (refused, _) = digests.add(request("b"), images(MAX_WAITING_BYTES / 2)).unwrap();
        assert_eq!(refused.record.id, "b");
        assert!(digests.add(request("c"), images(10)).is_none());
        let mut work = digests.work().await;
        assert_eq!(work.next_waiting().await.unwrap().0.record.id, "a");
        assert!(digests.add(request("d"), images(MAX_WAITING_BYTES / 2)).is_none());
        for id in ["c", "d"] {
            assert_eq!(work.next_waiting().await.unwrap().0.record.id, id);
        }
        assert!(work.next_waiting().await.is_none());
        assert!(digests.add(request("e"), images(MAX_WAITING_BYTES)).is_some());
    }

    #[tokio::test]
    async fn a_request_is_not_lost_with_the_one_who_waits_for_its_digests() {
        let digests = Digests::new();
        assert!(digests.add(request("a"), images(8 << 20)).is_none());
        let mut work = digests.work().await;
        assert!(work.next().now_or_never().is_none());
        let (done, _) = work.next_waiting().await.unwrap();
        assert_eq!((done.record.id.as_str(), done.record.images_made[1].sha256.len()), ("a", 32));
    }
}
