use image::{GrayImage, Luma, Rgb, RgbImage};

use super::*;
use crate::images::probe::{Probe, probe};

const SIZE: pb::Dimensions = pb::Dimensions { width: 96, height: 64 };

fn request(prompt: &str) -> pb::ImageRequest {
    pb::ImageRequest {
        prompt: prompt.into(),
        size: Some(pb::Size::pixels(SIZE.width, SIZE.height)),
        ..Default::default()
    }
}

fn scripted(model: &str) -> pb::ImageRequest {
    pb::ImageRequest { model: model.into(), n: Some(2), ..request("a cat") }
}

/// A request to change a red square.
fn edit(strength: Option<f32>) -> pb::ImageRequest {
    let red = RgbImage::from_pixel(40, 40, Rgb([255, 0, 0]));
    let data = encode(&red.into(), pb::ImageFormat::Png, None).unwrap();
    let input = pb::InputImage { source: Some(Source::Data(data)), ..Default::default() };
    pb::ImageRequest { inputs: vec![input], strength, ..request("") }
}

/// A mask that selects the right half.
fn mask() -> pb::Mask {
    let half = GrayImage::from_fn(96, 64, |x, _| Luma([if x < 48 { 0 } else { 255 }]));
    let data = encode(&half.into(), pb::ImageFormat::Png, None).unwrap();
    pb::Mask { data, polarity: pb::MaskPolarity::WhiteEdits.into() }
}

async fn events(image: pb::ImageRequest) -> Result<Vec<Event>> {
    let request = pb::GenerateRequest { image: Some(image), ..Default::default() };
    let answer = Sandbox::new().generate(Request::new(request)).await;
    let events = answer.map_err(|status| Error::from_status(&status))?.into_inner();
    Ok(events.map(|event| event.unwrap().event.unwrap()).collect().await)
}

/// The bytes of each image, and the end.
async fn generate(image: pb::ImageRequest) -> (Vec<Bytes>, pb::GenerateDone) {
    let (mut images, mut done) = (Vec::new(), None);
    for event in events(image).await.unwrap() {
        match event {
            Event::ImageChunk(chunk) => {
                assert_eq!(chunk.image_index as usize, images.len());
                images.push(chunk.data);
            }
            Event::Done(end) => done = Some(end),
            Event::Progress(_) | Event::PartialImage(_) => assert!(done.is_none()),
        }
    }
    (images, done.unwrap())
}

async fn pixels(image: pb::ImageRequest) -> image::RgbaImage {
    convert::decode(&generate(image).await.0[0]).unwrap().into_rgba8()
}

#[tokio::test]
async fn every_format_is_whole_and_has_the_exact_size() {
    for format in [pb::ImageFormat::Png, pb::ImageFormat::Jpeg, pb::ImageFormat::Webp] {
        for (width, height) in [(16, 16), (17, 200), (333, 111)] {
            let mut image = request("a lighthouse at dusk with some more words than fit");
            image.size = Some(pb::Size::pixels(width, height));
            image.output_mut().format = format.into();
            let (images, done) = generate(image).await;
            assert_eq!(probe(&images[0].clone().into()), Ok(Probe { format, width, height }));
            let said = &done.images[0];
            assert_eq!((said.format(), said.width, said.height), (format, width, height));
            assert_eq!(said.finish_reason(), pb::FinishReason::Stop);
        }
    }
}

#[test]
fn sizes_without_pixels_have_a_megapixel() {
    let ratio = pb::AspectRatio { width: 16.0, height: 9.0 };
    let wide = size(Some(pb::Size { size: Some(Size::AspectRatio(ratio)) })).unwrap();
    assert_eq!((wide.width, wide.height), (1365, 768));
    assert_eq!(size(None).unwrap(), pb::Dimensions { width: 1024, height: 1024 });
    for (width, height) in [(15, 64), (64, 4097)] {
        let error = size(Some(pb::Size::pixels(width, height))).unwrap_err();
        assert!(error.message.contains(&format!("{width}x{height}")), "{error}");
    }
    let nothing = pb::AspectRatio { width: 0.0, height: 0.0 };
    assert!(size(Some(pb::Size { size: Some(Size::AspectRatio(nothing)) })).is_err());
}

#[tokio::test]
async fn the_same_request_gives_the_same_bytes_and_any_difference_shows() {
    let first = generate(request("a cat")).await;
    assert_eq!(generate(request("a cat")).await, first);
    let seeded = pb::ImageRequest { seed: Some(7), ..request("a cat") };
    let styled = pb::ImageRequest { style: "vivid".into(), ..request("a cat") };
    for other in [request("a dog"), seeded, styled] {
        assert_ne!(generate(other).await.0, first.0);
    }
}

#[tokio::test]
async fn each_image_has_the_next_seed() {
    let several = pb::ImageRequest { n: Some(3), seed: Some(u64::MAX), ..request("a cat") };
    let (images, done) = generate(several).await;
    let seeds: Vec<_> = done.images.iter().map(|image| image.seed).collect();
    assert_eq!(seeds, [Some(u64::MAX), Some(0), Some(1)]);
    let last = pb::ImageRequest { seed: Some(1), ..request("a cat") };
    assert_eq!(generate(last).await.0[0], images[2]);
    assert!(done.upstream_request_id.starts_with("sandbox-"));
}

#[tokio::test]
async fn previews_come_before_their_image() {
    let image = pb::ImageRequest { partial_images: Some(2), n: Some(2), ..request("a cat") };
    let mut order = String::new();
    for event in events(image).await.unwrap() {
        order.push(match event {
            Event::Progress(_) => continue,
            Event::PartialImage(preview) => {
                let size = probe(&preview.data.into()).unwrap();
                assert_eq!((size.width, size.height), (24, 16));
                'p'
            }
            Event::ImageChunk(_) => 'i',
            Event::Done(_) => 'd',
        });
    }
    assert_eq!(order, "ppippid");
}

#[tokio::test]
async fn a_transparent_background_is_for_formats_that_have_one() {
    for format in [pb::ImageFormat::Png, pb::ImageFormat::Webp, pb::ImageFormat::Jpeg] {
        let mut image = request("");
        let output = image.output_mut();
        output.format = format.into();
        output.background = pb::Background::Transparent.into();
        let corner = pixels(image).await.get_pixel(0, 0).0[3];
        assert_eq!(corner, if format == pb::ImageFormat::Jpeg { 255 } else { 0 });
    }
}

#[tokio::test]
async fn an_edit_shows_its_input_as_far_as_its_strength_lets_it() {
    let art = pixels(edit(Some(1.0))).await;
    let half = pixels(edit(None)).await;
    let kept = pixels(edit(Some(0.0))).await;
    // The last row, below all lettering.
    for x in [10, 50, 90] {
        let (art, half) = (art.get_pixel(x, 63).0, half.get_pixel(x, 63).0);
        let expected = [(u16::from(art[0]) + 255) / 2, u16::from(art[1]) / 2, u16::from(art[2]) / 2];
        for (channel, expected) in half.into_iter().zip(expected) {
            assert!(u16::from(channel).abs_diff(expected) <= 1, "{half:?}, {expected}");
        }
        assert_eq!(kept.get_pixel(x, 63).0, [255, 0, 0, 255]);
    }
}

#[tokio::test]
async fn a_mask_protects_what_it_does_not_select() {
    let masked = pb::ImageRequest { mask: Some(mask()), ..edit(None) };
    let result = pixels(masked).await;
    let changed = |columns: std::ops::Range<u32>| {
        columns
            .flat_map(|x| (0..64).map(move |y| (x, y)))
            .filter(|at| result[*at].0 != [255, 0, 0, 255])
            .count()
    };
    assert_eq!(changed(0..48), 0);
    assert_eq!(changed(48..96), 48 * 64);
}

#[tokio::test]
async fn a_variation_is_not_the_edit() {
    let variation = pb::ImageRequest { operation: Operation::Variation.into(), ..edit(None) };
    assert_ne!(generate(variation).await.0, generate(edit(None)).await.0);
}

#[tokio::test]
async fn wrong_requests_name_their_parameter() {
    let mut url = edit(None);
    url.inputs[0].source = Some(Source::Url("https://example.com/a.png".into()));
    let mut damaged = edit(None);
    damaged.inputs[0].source = Some(Source::Data(Bytes::from_static(b"\x89PNG")));
    let mut svg = request("");
    svg.output_mut().format = pb::ImageFormat::Svg.into();
    let missing = pb::ImageRequest { operation: Operation::Edit.into(), ..request("") };
    let upscale = pb::ImageRequest { operation: Operation::Upscale.into(), ..edit(None) };
    let many = pb::ImageRequest { n: Some(11), ..request("") };
    let cases = [
        (url, "image"),
        (damaged, "image"),
        (svg, "output_format"),
        (missing, "image"),
        (many, "n"),
        (upscale, "operation"),
    ];
    for (image, param) in cases {
        let error = events(image).await.unwrap_err();
        assert_eq!((error.param.as_deref(), error.provider.as_str()), (Some(param), "sandbox"), "{error}");
    }
}

#[tokio::test]
async fn scripted_errors_have_the_kind_of_their_status() {
    for (status, kind) in
        [(401, ErrorKind::PermissionDenied), (429, ErrorKind::RateLimited), (503, ErrorKind::Unavailable)]
    {
        let error = events(scripted(&format!("sandbox-fail-{status}"))).await.unwrap_err();
        assert_eq!((error.kind, error.status, error.provider.as_str()), (kind, status, "sandbox"));
        assert_eq!(error.retry_after.is_some(), status == 429);
    }
    let refusal = events(scripted("sandbox-refuse")).await.unwrap_err();
    assert_eq!(refusal.kind, ErrorKind::ContentRejected);
}

#[tokio::test]
async fn scripted_answers_are_wrong_in_the_way_their_name_says() {
    let (good, _) = generate(scripted("sandbox-1")).await;
    assert_eq!(generate(scripted("whatever")).await.0, good);
    let (images, done) = generate(scripted("sandbox-filter")).await;
    assert!(images.is_empty() && done.images.len() == 2);
    assert!(done.images.iter().all(|image| image.finish_reason() == pb::FinishReason::ContentFiltered));
    let (images, _) = generate(scripted("sandbox-truncate")).await;
    assert_eq!(images[0], good[0][..good[0].len() / 2]);
    let (images, done) = generate(scripted("sandbox-empty")).await;
    assert!(images.is_empty() && done.images.is_empty());
    let (images, _) = generate(scripted("sandbox-html")).await;
    assert_eq!(probe(&images[0].clone().into()).unwrap_err().to_string(), "html, not an image");
    let (images, done) = generate(scripted("sandbox-short")).await;
    assert_eq!((images.len(), done.images.len()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn slow_answers_are_late_and_stalled_ones_never_come() {
    let started = tokio::time::Instant::now();
    let (images, _) = generate(scripted("sandbox-slow-30000")).await;
    assert_eq!(images.len(), 2);
    assert!(started.elapsed() >= Duration::from_secs(30));
    let hour = Duration::from_secs(3600);
    assert!(tokio::time::timeout(hour, events(scripted("sandbox-stall"))).await.is_err());
}

#[tokio::test]
async fn the_record_describes_any_model_name_and_costs_nothing() {
    let answer = Sandbox::new().describe(Request::new(pb::DescribeRequest {})).await.unwrap();
    let record = &answer.into_inner().providers[0];
    assert_eq!((record.name.as_str(), record.keyless), ("sandbox", true));
    assert_eq!(record.models.first().unwrap().model, "sandbox-1");
    assert_eq!(record.models.last().unwrap().model, "*");
    assert!(record.models.iter().all(|model| model.prices[0].item == "image" && model.prices[0].usd == 0.0));
}
