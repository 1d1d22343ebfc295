//! What a call says while it runs, and its images, some of them before all of their bytes are there.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;
use tonic::Status;

use super::scan::Passed;
use crate::{
    admission::Held,
    images::probe,
    pb::{self, generate_response::Event},
    provider::Output,
};

/// Events that may wait for a slow reader.
pub const WAITING: usize = 1;

/// Whatever goes to the caller.
pub type Said = Result<Event, Status>;

/// One call's way to its caller.
#[derive(Debug)]
pub struct Relay {
    events: mpsc::Sender<Box<Said>>,
    /// What is on this way.
    held: Arc<Held>,
    /// For each image of which something was passed on, what stands for it. Its place is the `image_index`.
    tokens: Vec<Bytes>,
    /// The caller can make sense of chunks that come before it is known what they are of.
    chunks_first: bool,
}

impl Relay {
    /// `held` counts chunks until somebody else counts them. `chunks_first` as the request has it.
    pub const fn new(events: mpsc::Sender<Box<Said>>, held: Arc<Held>, chunks_first: bool) -> Self {
        Self { events, held, tokens: Vec::new(), chunks_first }
    }

    /// Whether images may be passed on before they are whole.
    pub const fn chunks_first(&self) -> bool {
        self.chunks_first
    }

    /// Tells how far the job is. A slow reader misses some of it.
    pub fn tell(&self, progress: Option<pb::Progress>) {
        match progress {
            Some(progress) => _ = self.events.try_send(Box::new(Ok(Event::Progress(progress)))),
            None => self.say("running"),
        }
    }

    /// Tells in which state the job is.
    pub fn say(&self, state: &str) {
        self.tell(Some(pb::Progress { fraction: None, state: state.to_owned() }));
    }

    /// Shows a preview.
    pub async fn show(&self, index: u32, data: Bytes) {
        let format = probe::sniff(&data).unwrap_or_default().into();
        self.send(Event::PartialImage(pb::PartialImage {
            data,
            format,
            partial_index: index,
            image_index: 0,
        }))
        .await;
    }

    /// Passes on a part of an image, when the caller has taken what came before.
    pub async fn pass(&mut self, Passed { token, data }: Passed) {
        let index = self.index_of(&token).unwrap_or_else(|| {
            self.tokens.push(token);
            self.tokens.len() - 1
        });
        if !data.is_empty() {
            self.send(self.chunk(index, data)).await;
        }
    }

    /// The images that are not passed on yet, then the end.
    pub fn end(self, mut output: Output) -> Vec<Said> {
        let mut events = Vec::with_capacity(output.images.len() + 1);
        let mut next = self.tokens.len();
        let mut chunks = Vec::with_capacity(output.images.len());
        for image in &mut output.images {
            let data = std::mem::take(&mut image.data);
            let index = self.index_of(&data).unwrap_or_else(|| {
                next += 1;
                if !data.is_empty() {
                    events.push(self.chunk(next - 1, data));
                }
                next - 1
            });
            chunks.push(number(index));
        }
        if chunks.iter().copied().eq(0..number(chunks.len())) {
            chunks.clear();
        }
        events.push(Event::Done(pb::GenerateDone {
            images: output.images,
            usage: output.usage,
            upstream_request_id: output.upstream_request_id,
            warnings: output.warnings,
            reported_cost_usd: output.reported_cost_usd,
            chunks,
        }));
        events.into_iter().map(Ok).collect()
    }

    async fn send(&self, event: Event) {
        // Nobody reads: the call is about to be dropped.
        _ = self.events.send(Box::new(Ok(event))).await;
    }

    fn chunk(&self, index: usize, data: Bytes) -> Event {
        self.held.add(data.len());
        Event::ImageChunk(pb::ImageChunk { image_index: number(index), data })
    }

    fn index_of(&self, token: &Bytes) -> Option<usize> {
        self.tokens.iter().position(|known| known.as_ptr() == token.as_ptr())
    }
}

fn number(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use futures::StreamExt as _;
    use tokio_stream::wrappers::ReceiverStream;

    use super::*;

    fn passed(token: &Bytes, data: &'static [u8]) -> Passed {
        Passed { token: token.clone(), data: Bytes::from_static(data) }
    }

    fn output(images: impl IntoIterator<Item = Bytes>) -> Output {
        let image = |data| pb::Image { data, ..Default::default() };
        Output { images: images.into_iter().map(image).collect(), ..Default::default() }
    }

    /// What came with which number, and what the end says of it.
    async fn relayed(parts: Vec<Passed>, images: Vec<Bytes>) -> (Vec<(u32, Bytes)>, Vec<u32>) {
        let (sender, receiver) = mpsc::channel(100);
        let held = Arc::new(Held::default());
        let mut relay = Relay::new(sender, held, true);
        for part in parts {
            relay.pass(part).await;
        }
        let end = relay.end(output(images));
        let on_the_way = ReceiverStream::new(receiver).map(|said| *said);
        let mut chunks = Vec::new();
        let mut numbers = None;
        for said in on_the_way.chain(futures::stream::iter(end)).collect::<Vec<_>>().await {
            match said.unwrap() {
                Event::ImageChunk(chunk) => chunks.push((chunk.image_index, chunk.data)),
                Event::Done(done) => {
                    assert!(done.images.iter().all(|image| image.data.is_empty()));
                    numbers = Some(done.chunks);
                }
                other => panic!("{other:?}"),
            }
        }
        (chunks, numbers.unwrap())
    }

    #[tokio::test]
    async fn images_are_known_by_the_numbers_of_their_chunks() {
        let [grid, a, b] = ["same", "same", "same"].map(|start| Bytes::copy_from_slice(start.as_bytes()));
        let parts = vec![passed(&grid, b"g"), passed(&a, b"a1"), passed(&a, b"a2"), passed(&b, b"b")];
        let small = Bytes::from_static(b"small");
        let (chunks, numbers) = relayed(parts, vec![b, small.clone(), Bytes::new(), a]).await;
        let expected: [(u32, &[u8]); 5] = [(0, b"g"), (1, b"a1"), (1, b"a2"), (2, b"b"), (3, b"small")];
        assert_eq!(chunks, expected.map(|(number, data)| (number, Bytes::from_static(data))));
        assert_eq!(numbers, [2, 3, 4, 1]);
    }

    #[tokio::test]
    async fn whose_places_are_their_numbers_needs_no_more_words() {
        let token = Bytes::copy_from_slice(b"a");
        let small = Bytes::from_static(b"small");
        let (chunks, numbers) = relayed(vec![passed(&token, b"a")], vec![token, small.clone()]).await;
        assert_eq!((chunks.len(), numbers), (2, vec![]));
        let (chunks, numbers) = relayed(Vec::new(), vec![Bytes::new(), small.clone()]).await;
        assert_eq!((chunks, numbers), (vec![(1, small)], vec![]));
    }
}
