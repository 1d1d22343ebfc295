//! `cargo bench --bench micro`: the steps of a request one by one (docs/performance.md).

use std::sync::Arc;

use bytes::Bytes;
use divan::{Bencher, black_box, counter::BytesCount};
use imagegate::{
    config::{file::RetiredModels, spec::ParamsPolicy},
    images::{Pieces, probe},
    pb::{ImageChunk, ImageRequest, StreamImageResponse, stream_image_response::Event},
    provider,
    route::fit,
    shim::encode::Encoder,
    worker::scan::Scanner,
};
use prost::Message as _;

#[path = "../serve/picture.rs"]
mod picture;

/// What is read from a socket at once.
const READ: usize = 128 << 10;

/// Characters of base64.
const SIZES: [usize; 3] = [1 << 10, 2 << 20, 8 << 20];

fn main() {
    divan::main();
}

fn text(length: usize) -> String {
    picture::image_text(length).expect("a picture of this size")
}

/// A provider's answer, read as it arrives.
#[divan::bench(args = SIZES)]
fn json_extraction(bencher: Bencher<'_, '_>, length: usize) {
    let json = format!("{{\"created\":1700000000,\"data\":[{{\"b64_json\":\"{}\"}}]}}", text(length));
    bencher.counter(BytesCount::new(json.len())).bench_local(|| {
        let mut scanner = Scanner::new(&["b64_json"], json.len());
        json.as_bytes().chunks(READ).for_each(|piece| scanner.push(black_box(piece)));
        scanner.finish()
    });
}

/// The way back to text, piece by piece.
#[divan::bench(args = SIZES)]
fn base64_encoding(bencher: Bencher<'_, '_>, length: usize) {
    let image = Bytes::from(picture::png(length / 4 * 3).expect("a picture of this size"));
    bencher.counter(BytesCount::new(image.len())).bench_local(|| {
        Encoder::new(black_box(Pieces::from(image.clone()))).map(|text| text.len()).sum::<usize>()
    });
}

/// Whether an image is one, and whole.
#[divan::bench(args = SIZES)]
fn verification(bencher: Bencher<'_, '_>, length: usize) {
    let image = Pieces::from(picture::png(length / 4 * 3).expect("a picture of this size"));
    bencher.bench_local(|| probe::probe(black_box(&image)));
}

/// A request fitted to what a model can do.
#[divan::bench(args = ["openai", "stability-ai", "bedrock", "google"])]
fn negotiation(bencher: Bencher<'_, '_>, provider: &str) {
    let mut providers = provider::all().into_iter();
    let found = providers.find(|known| known.record().name == provider).expect("a provider of this name");
    let record = Arc::new(found.record().clone());
    let request = ImageRequest { prompt: "a lighthouse at dusk".into(), ..ImageRequest::default() };
    bencher
        .bench_local(|| fit::fit(black_box(&request), &record, ParamsPolicy::Nearest, RetiredModels::Warn));
}

/// What an image costs from one process to the next beside the sockets: written as messages of 256 KiB, and read.
#[divan::bench(args = SIZES)]
fn protobuf_hop(bencher: Bencher<'_, '_>, length: usize) {
    let image = Bytes::from(picture::png(length / 4 * 3).expect("a picture of this size"));
    bencher.counter(BytesCount::new(image.len())).bench_local(|| {
        let mut rest = black_box(image.clone());
        let mut read = 0;
        while !rest.is_empty() {
            let data = rest.split_to(rest.len().min(256 << 10));
            let chunk = ImageChunk { image_index: 0, data };
            let message = StreamImageResponse { event: Some(Event::ImageChunk(chunk)) };
            let wire = Bytes::from(message.encode_to_vec());
            if let Ok(StreamImageResponse { event: Some(Event::ImageChunk(chunk)) }) =
                StreamImageResponse::decode(wire)
            {
                read += chunk.data.len();
            }
        }
        read
    });
}
