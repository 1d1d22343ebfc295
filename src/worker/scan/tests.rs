use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// An image, or that it is none.
type Found = Result<Bytes, BadBase64>;

fn scan(text: &[u8], sizes: impl IntoIterator<Item = usize>) -> (Value, Vec<Found>) {
    let mut scanner = Scanner::new(&["b64_json", "images"], text.len());
    let mut rest = text;
    for size in sizes {
        let (piece, later) = rest.split_at(size.min(rest.len()));
        scanner.push(piece);
        rest = later;
    }
    scanner.push(rest);
    let (skeleton, images) = scanner.finish();
    (serde_json::from_slice(&skeleton).unwrap(), images)
}

fn encode(data: &[u8]) -> String {
    base64_simd::STANDARD.encode_to_string(data)
}

#[test]
fn images_leave_and_the_rest_stays() {
    let (a, b) = (vec![1; 100], vec![2; 1001]);
    let text = json!({
        "created": 1,
        "data": [{"b64_json": encode(&a), "revised_prompt": "say \"b64_json\", please"}, {"b64_json": encode(&b)}],
        "url": "http://example.com/b64_json",
        "list": ["b64_json", "not an image however long it is, because its name is not one of an image's"],
    });
    let (skeleton, images) = scan(text.to_string().as_bytes(), []);
    assert_eq!(images, [Ok(a.into()), Ok(b.into())]);
    assert_eq!(skeleton["data"][0]["revised_prompt"], text["data"][0]["revised_prompt"]);
    assert_eq!(skeleton["data"][1]["b64_json"], "\u{0}@1");
    assert_eq!(skeleton["list"], text["list"]);
}

#[test]
fn arrays_of_images_data_urls_and_escaped_slashes_are_understood() {
    let image = vec![0xff; 300];
    let text = json!({"images": [encode(&image), format!("data:image/png;base64,{}", encode(&image))]});
    let text = text.to_string().replace('/', "\\/").replace("image\\/png", "image/png");
    let (_, images) = scan(text.as_bytes(), []);
    assert_eq!(images, [Ok(image.clone().into()), Ok(image.into())]);
}

#[test]
fn what_is_no_base64_is_told_apart() {
    let long = "A".repeat(200);
    for bad in [format!("{long}!"), format!("{long}=A"), format!("{long}A"), format!("{long}====")] {
        let (_, images) = scan(json!({"b64_json": bad}).to_string().as_bytes(), []);
        assert_eq!(images, [Err(BadBase64)], "{bad}");
    }
    let url = format!("https://example.com/{long}");
    let (skeleton, images) = scan(json!({"b64_json": url}).to_string().as_bytes(), []);
    assert!(images.is_empty());
    assert_eq!(skeleton["b64_json"], url.as_str());
}

/// The images of a document that were passed on, by their tokens, and what the end says of all.
fn pass(text: &str, piece: usize) -> (Vec<(Bytes, Vec<u8>)>, Vec<Found>) {
    let mut scanner = Scanner::new(&["b64_json"], text.len()).passing_on();
    let mut images: Vec<(Bytes, Vec<u8>)> = Vec::new();
    for piece in text.as_bytes().chunks(piece) {
        scanner.push(piece);
        for Passed { token, data } in scanner.passed() {
            assert!(data.len() <= crate::pb::CHUNK_BYTES);
            match images.iter_mut().find(|(known, _)| known.as_ptr() == token.as_ptr()) {
                Some((_, image)) => image.extend_from_slice(&data),
                None => images.push((token, data.into())),
            }
        }
    }
    (images, scanner.finish().1)
}

#[test]
fn large_images_are_passed_on_and_small_ones_stay() {
    let large = |seed: usize| (0..900_001 + seed).map(|i| (i * seed % 251) as u8).collect::<Vec<_>>();
    let (a, small, b) = (large(3), vec![2; 1000], large(7));
    let items = [&a, &small, &b].map(|image| json!({"b64_json": encode(image)}));
    let text = json!({"data": items}).to_string();
    for piece in [128 << 10, 100_003, 4096] {
        let (passed, images) = pass(&text, piece);
        let [(first, one), (second, other)] = passed.as_slice() else { panic!("{}", passed.len()) };
        assert!(*one == a && *other == b);
        assert!(a.starts_with(first) && b.starts_with(second));
        assert_eq!(images, [Ok(first.clone()), Ok(small.clone().into()), Ok(second.clone())]);
    }
}

#[test]
fn an_image_that_was_passed_on_may_turn_out_bad() {
    let text = |end: &str| format!("{{\"b64_json\": \"{}{end}", "A".repeat(600_000));
    for end in ["\"}", "!\"}", "A\"}", ""] {
        let (passed, images) = pass(&text(end), 64 << 10);
        assert!(passed[0].1.len() > 300_000);
        assert_eq!(images[0].is_ok(), end == "\"}", "{end}");
    }
}

proptest! {
    #[test]
    fn pieces_of_any_size_give_the_same(
        data in proptest::collection::vec(any::<u8>(), 60..600),
        prompt in "\\PC{0,40}",
        sizes in proptest::collection::vec(1usize..40, 0..60),
        escape in any::<bool>(),
    ) {
        let text = json!({"p": prompt, "data": [{"b64_json": encode(&data)}], "q": prompt, "n": [1, {"b64_json": "x"}]});
        let text = if escape { text.to_string().replace('/', "\\/") } else { text.to_string() };
        let (skeleton, images) = scan(text.as_bytes(), sizes);
        prop_assert_eq!(&images, &[Ok(Bytes::from(data))]);
        prop_assert_eq!(&skeleton["p"], prompt.as_str());
        prop_assert_eq!(&skeleton["q"], prompt.as_str());
        prop_assert_eq!(&skeleton["n"][1]["b64_json"], "x");
    }
}
