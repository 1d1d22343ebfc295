//! Reads one call's events to the end, and notes what is wrong with their order and shape.

use futures::{Stream, StreamExt as _};
use tonic::Status;

use super::check::Check;
use crate::{
    images::Pieces,
    pb::{self, CHUNK_BYTES, generate_response::Event},
};

/// A check that was not passed, and what was seen.
pub type Fault = (Check, String);

/// Everything that came.
#[derive(Debug)]
pub struct Answer {
    /// The first `done`.
    pub done: Option<pb::GenerateDone>,
    /// The chunks of each image that was asked for.
    pub images: Vec<Pieces>,
    /// As they came.
    pub previews: Vec<pb::PartialImage>,
    /// What was wrong with the events.
    pub faults: Vec<Fault>,
    /// The image of the last chunk.
    at: u32,
}

impl Answer {
    /// Reads until the stream ends.
    pub async fn read<S>(mut events: S, wanted: usize) -> Result<Self, Status>
    where
        S: Stream<Item = Result<pb::GenerateResponse, Status>> + Unpin,
    {
        let images = vec![Pieces::default(); wanted];
        let mut answer = Self { done: None, images, previews: Vec::new(), faults: Vec::new(), at: 0 };
        while let Some(event) = events.next().await {
            answer.take(event?.event);
        }
        if answer.done.is_none() {
            answer.fault(Check::Done, "the stream ends without `done`".to_owned());
        }
        Ok(answer)
    }

    fn take(&mut self, event: Option<Event>) {
        if self.done.is_some() {
            let what = if matches!(event, Some(Event::Done(_))) { "a second `done`" } else { "an event" };
            return self.fault(Check::Done, format!("{what} comes after `done`"));
        }
        match event {
            Some(Event::Progress(progress)) => self.progress(&progress),
            Some(Event::PartialImage(preview)) => self.previews.push(preview),
            Some(Event::ImageChunk(chunk)) => self.chunk(chunk),
            Some(Event::Done(done)) => self.finish(done),
            None => self.fault(Check::Done, "an event is empty".to_owned()),
        }
    }

    fn progress(&mut self, progress: &pb::Progress) {
        if let Some(fraction) = progress.fraction
            && !(0.0..=1.0).contains(&fraction)
        {
            self.fault(Check::Progress, format!("progress is {fraction}"));
        }
    }

    fn chunk(&mut self, chunk: pb::ImageChunk) {
        let (index, bytes, wanted) = (chunk.image_index, chunk.data.len(), self.images.len());
        if bytes > CHUNK_BYTES {
            self.fault(Check::Chunks, format!("a chunk has {bytes} bytes"));
        }
        if index < self.at {
            self.fault(
                Check::Chunks,
                format!("a chunk of image {index} comes after one of image {}", self.at),
            );
        }
        self.at = index;
        match self.images.get_mut(index as usize) {
            Some(image) => image.push(chunk.data),
            None => {
                self.fault(Check::Chunks, format!("a chunk is of image {index}, the last is {}", wanted - 1))
            }
        }
    }

    fn finish(&mut self, done: pb::GenerateDone) {
        if let Some(index) = done.images.iter().position(|image| !image.data.is_empty()) {
            self.fault(Check::Done, format!("image {index} in `done` has data"));
        }
        self.done = Some(done);
    }

    /// Once for each check: a fault of every chunk is one finding.
    fn fault(&mut self, check: Check, what: String) {
        if self.faults.iter().all(|(known, _)| *known != check) {
            self.faults.push((check, what));
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::stream;

    use super::*;

    fn chunk(image_index: u32, bytes: usize) -> Event {
        Event::ImageChunk(pb::ImageChunk { image_index, data: vec![0; bytes].into() })
    }

    fn done() -> Event {
        Event::Done(pb::GenerateDone::default())
    }

    async fn faults(events: Vec<Event>) -> Vec<(&'static str, String)> {
        let events = events.into_iter().map(|event| Ok(pb::GenerateResponse { event: Some(event) }));
        let answer = Answer::read(stream::iter(events), 2).await.unwrap();
        answer.faults.into_iter().map(|(check, what)| (check.id(), what)).collect()
    }

    #[tokio::test]
    async fn a_good_order_has_no_faults() {
        let events = vec![chunk(0, CHUNK_BYTES), chunk(0, 1), chunk(1, 5), done()];
        assert_eq!(faults(events).await, []);
    }

    #[tokio::test]
    async fn every_broken_rule_is_named() {
        let cases = [
            (vec![chunk(0, 1)], "done", "without `done`"),
            (vec![done(), done()], "done", "second `done`"),
            (vec![done(), chunk(0, 1)], "done", "after `done`"),
            (vec![chunk(0, CHUNK_BYTES + 1), done()], "chunks", "262145 bytes"),
            (vec![chunk(1, 1), chunk(0, 1), done()], "chunks", "image 0 comes after one of image 1"),
            (vec![chunk(2, 1), done()], "chunks", "image 2, the last is 1"),
            (
                vec![Event::Progress(pb::Progress { fraction: Some(1.5), ..Default::default() }), done()],
                "progress",
                "1.5",
            ),
        ];
        for (events, id, part) in cases {
            let found = faults(events).await;
            assert!(found.len() == 1 && found[0].0 == id && found[0].1.contains(part), "{id}: {found:?}");
        }
    }
}
