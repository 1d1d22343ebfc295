use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    sync::oneshot,
};

use super::*;
use crate::{egress::Egress, provider::automatic1111::Automatic1111};

async fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    (listener, address)
}

/// A provider's answer as far as `first`, and the rest of it when it is asked for.
async fn answer(listener: TcpListener, text: String, first: usize, go_on: oneshot::Receiver<()>) {
    let (mut wire, _) = listener.accept().await.unwrap();
    let mut asked = Vec::new();
    while !asked.ends_with(b"}") {
        wire.read_buf(&mut asked).await.unwrap();
    }
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n";
    let head = format!("{head}content-length: {}\r\n\r\n", text.len());
    wire.write_all(head.as_bytes()).await.unwrap();
    wire.write_all(&text.as_bytes()[..first]).await.unwrap();
    if go_on.await.is_ok() {
        wire.write_all(&text.as_bytes()[first..]).await.unwrap();
    }
}

async fn generate(address: String, chunks_first: bool) -> EventStream {
    _ = rustls::crypto::ring::default_provider().install_default();
    let http = Arc::new(Http::try_new(Egress::default()).unwrap());
    let worker = HttpWorker::new(Arc::new(Automatic1111), http, Arc::default());
    let request = pb::GenerateRequest {
        image: Some(pb::ImageRequest { prompt: "a cat".into(), n: Some(1), ..Default::default() }),
        upstream: Some(pb::Upstream { base_url: address, ..Default::default() }),
        chunks_first,
        ..Default::default()
    };
    worker.generate(Request::new(request)).await.unwrap().into_inner()
}

async fn next(events: &mut EventStream) -> std::result::Result<Event, Status> {
    loop {
        match events.next().await.unwrap()?.event.unwrap() {
            Event::Progress(_) => {}
            event => return Ok(event),
        }
    }
}

/// A grid and an image, which its model counts as one.
fn made() -> (Vec<u8>, String) {
    let image: Vec<u8> = (0..1_000_000).map(|i| (i % 251) as u8).collect();
    let [grid, encoded] =
        [&vec![7; 1_000_000], &image].map(|data| base64_simd::STANDARD.encode_to_string(data));
    let info = json!({"all_seeds": [1], "index_of_first_image": 1}).to_string();
    (image, json!({"images": [grid, encoded], "info": info}).to_string())
}

#[tokio::test]
async fn an_image_is_sent_on_before_the_answer_has_ended() {
    let (listener, address) = listen().await;
    let (image, text) = made();
    let (go_on, gone_on) = oneshot::channel();
    let first = text.len() / 4;
    let mut go_on = Some(go_on);
    let read = async {
        let mut events = generate(address, true).await;
        let mut chunks = BTreeMap::<u32, Vec<u8>>::new();
        loop {
            match next(&mut events).await.unwrap() {
                Event::ImageChunk(chunk) => {
                    chunks.entry(chunk.image_index).or_default().extend_from_slice(&chunk.data);
                    if let Some(go_on) = go_on.take() {
                        go_on.send(()).unwrap();
                    }
                }
                Event::Done(done) => return (chunks, done),
                other => panic!("{other:?}"),
            }
        }
    };
    let ((chunks, done), ()) = tokio::join!(read, answer(listener, text, first, gone_on));
    assert_eq!((done.images.len(), done.chunks.as_slice()), (1, [1].as_slice()));
    assert!(chunks[&1] == image && chunks[&0].len() == 1_000_000);
}

#[tokio::test]
async fn whoever_does_not_know_of_chunks_first_gets_them_last() {
    let (listener, address) = listen().await;
    let (image, text) = made();
    let (go_on, gone_on) = oneshot::channel();
    go_on.send(()).unwrap();
    let read = async {
        let mut events = generate(address, false).await;
        let chunk = next(&mut events).await.unwrap();
        (chunk, next(&mut events).await.unwrap())
    };
    let ((chunk, done), ()) = tokio::join!(read, answer(listener, text, 9, gone_on));
    let Event::ImageChunk(chunk) = chunk else { panic!("{chunk:?}") };
    assert!(chunk.image_index == 0 && chunk.data == image);
    let Event::Done(done) = done else { panic!("{done:?}") };
    assert!(done.chunks.is_empty());
}

#[tokio::test]
async fn an_answer_that_breaks_off_after_chunks_is_a_failure() {
    let (listener, address) = listen().await;
    let (_, text) = made();
    let (go_on, gone_on) = oneshot::channel();
    drop(go_on);
    let first = text.len() - 10;
    let read = async {
        let mut events = generate(address, true).await;
        let mut chunks = 0;
        loop {
            match next(&mut events).await {
                Ok(Event::ImageChunk(_)) => chunks += 1,
                Ok(other) => panic!("{other:?}"),
                Err(status) => return (chunks, Error::from_status(&status)),
            }
        }
    };
    let ((chunks, error), ()) = tokio::join!(read, answer(listener, text, first, gone_on));
    assert!(chunks > 5, "{chunks}");
    assert_eq!((error.kind, error.billing), (ErrorKind::BadAnswer, BillingClass::Unknown));
}

#[test]
fn a_withheld_image_takes_no_other_images_address() {
    let image = |data: &'static [u8], reason: FinishReason| pb::Image {
        data: data.into(),
        finish_reason: reason.into(),
        ..Default::default()
    };
    let mut images = [
        image(b"", FinishReason::ContentFiltered),
        image(b"here", FinishReason::Unspecified),
        image(b"", FinishReason::Stop),
    ];
    let fetched: Vec<_> = to_fetch(&mut images).map(|image| image.finish_reason()).collect();
    assert_eq!(fetched, [FinishReason::Stop]);
}
