//! Finished requests for a person who looks at this process: each is handed over where it would be a line of the log.

use std::sync::{
    OnceLock,
    atomic::{AtomicU64, Ordering},
};

use tokio::sync::mpsc;

use crate::{
    error::Error,
    images::Pieces,
    pb::{RequestRecord, unix_now_ms},
};

/// Requests that may wait to be shown. A terminal that stands still holds up nobody.
const WAITING: usize = 1000;

static WATCHER: OnceLock<Watcher> = OnceLock::new();

/// A request that is over.
#[derive(Debug)]
pub struct Seen {
    /// What is known of it.
    pub record: RequestRecord,
    /// The first image of its answer, where somebody looks at images and has the time.
    pub image: Option<Pieces>,
    /// Requests before it for which there was no room.
    pub missed: u64,
}

#[derive(Debug)]
struct Watcher {
    sender: mpsc::Sender<Seen>,
    wants_images: bool,
    missed: AtomicU64,
}

/// Has finished requests handed over from now on. The second one in a process gets none.
pub fn begin(wants_images: bool) -> mpsc::Receiver<Seen> {
    let (sender, receiver) = mpsc::channel(WAITING);
    _ = WATCHER.set(Watcher { sender, wants_images, missed: AtomicU64::new(0) });
    receiver
}

/// Whether somebody watches.
pub fn is_on() -> bool {
    WATCHER.get().is_some()
}

/// Hands a request over, if somebody watches.
pub fn show(record: &RequestRecord, image: Option<&Pieces>) {
    if let Some(watcher) = WATCHER.get() {
        watcher.show(record, image);
    }
}

/// Hands over a request that was refused before anything was tried.
pub fn show_rejected(request_id: &str, error: &Error) {
    let record = RequestRecord {
        id: request_id.to_owned(),
        created_unix_ms: unix_now_ms(),
        outcome: error.kind.name().to_owned(),
        status: error.status.into(),
        error_message: error.message.clone(),
        cost_usd: Some(0.0),
        ..Default::default()
    };
    show(&record, None);
}

impl Watcher {
    fn show(&self, record: &RequestRecord, image: Option<&Pieces>) {
        // Images are large: none waits behind another.
        let is_idle = self.sender.capacity() == self.sender.max_capacity();
        let image = image.filter(|_| self.wants_images && is_idle).cloned();
        let missed = self.missed.swap(0, Ordering::Relaxed);
        let seen = Seen { record: record.clone(), image, missed };
        if self.sender.try_send(seen).is_err() {
            self.missed.fetch_add(missed + 1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_there_is_no_room_for_is_counted_and_only_one_image_waits() {
        let (sender, mut receiver) = mpsc::channel(2);
        let watcher = Watcher { sender, wants_images: true, missed: AtomicU64::new(0) };
        let image = Pieces::from(bytes::Bytes::from_static(b"image"));
        for _ in 0..5 {
            watcher.show(&RequestRecord::default(), Some(&image));
        }
        let mut next = || receiver.try_recv().map(|seen| (seen.image.is_some(), seen.missed)).unwrap();
        assert_eq!((next(), next()), ((true, 0), (false, 0)));
        watcher.show(&RequestRecord::default(), None);
        assert_eq!(next(), (false, 3));
    }
}
