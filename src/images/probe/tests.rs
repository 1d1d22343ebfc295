use std::io::Cursor;

use bytes::Bytes;
use image::{DynamicImage, ImageFormat as Codec, Rgb, RgbImage};
use proptest::prelude::*;

use super::*;

fn picture(width: u32, height: u32) -> DynamicImage {
    RgbImage::from_fn(width, height, |x, y| Rgb([(x * 37) as u8, (y * 11) as u8, (x * y) as u8])).into()
}

fn encoded(codec: Codec) -> Vec<u8> {
    let mut bytes = Vec::new();
    picture(37, 23).write_to(&mut Cursor::new(&mut bytes), codec).unwrap();
    bytes
}

/// The three formats that we have an encoder for.
fn encodings() -> [(ImageFormat, Vec<u8>); 3] {
    [
        (ImageFormat::Png, encoded(Codec::Png)),
        (ImageFormat::Jpeg, encoded(Codec::Jpeg)),
        (ImageFormat::Webp, encoded(Codec::WebP)),
    ]
}

fn check(bytes: &[u8]) -> Result<Probe, Defect> {
    probe(&Bytes::copy_from_slice(bytes).into())
}

fn size(bytes: &[u8]) -> (ImageFormat, u32, u32) {
    let probe = check(bytes).unwrap();
    (probe.format, probe.width, probe.height)
}

fn png_chunk(kind: &[u8; 4], body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    [&length[..], kind, body, &[0; 4]].concat()
}

fn avif_box(kind: &[u8; 4], body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 8).unwrap().to_be_bytes();
    [&length[..], kind, body].concat()
}

fn avif() -> Vec<u8> {
    let ispe = |width: u32, height: u32| {
        avif_box(b"ispe", &[&[0; 4][..], &width.to_be_bytes(), &height.to_be_bytes()].concat())
    };
    let list = avif_box(b"ipco", &[ispe(64, 64), avif_box(b"pixi", &[0; 8]), ispe(120, 80)].concat());
    let meta = [vec![0; 4], avif_box(b"hdlr", &[0; 24]), avif_box(b"iprp", &list)].concat();
    let ftyp = avif_box(b"ftyp", b"avif\0\0\0\0mif1");
    [ftyp, avif_box(b"meta", &meta), avif_box(b"mdat", &[7; 99])].concat()
}

#[test]
fn real_images_tell_format_and_size() {
    for (format, bytes) in encodings() {
        assert_eq!(size(&bytes), (format, 37, 23));
        assert_eq!(sniff(&bytes), Some(format));
    }
}

#[test]
fn every_truncation_is_a_defect() {
    for (format, bytes) in encodings() {
        for length in 0..bytes.len() {
            let defect = check(&bytes[..length]).unwrap_err();
            let expected = match length {
                0 => Defect::Empty,
                // Too short to be known for what it is.
                1..12 if sniff(&bytes[..length]).is_none() => continue,
                _ => Defect::Truncated(format),
            };
            assert_eq!(defect, expected, "{format:?} cut at {length} of {}", bytes.len());
        }
    }
}

#[test]
fn a_thumbnail_does_not_pass_for_the_end_of_a_jpeg() {
    let plain = encoded(Codec::Jpeg);
    let thumbnail = encoded(Codec::Jpeg);
    let length = u16::try_from(thumbnail.len() + 2).unwrap().to_be_bytes();
    let whole = [&plain[..2], &[0xff, 0xe1], &length, &thumbnail, &plain[2..]].concat();
    assert_eq!(size(&whole), (ImageFormat::Jpeg, 37, 23));
    for cut in thumbnail.len()..whole.len() {
        assert_eq!(check(&whole[..cut]), Err(Defect::Truncated(ImageFormat::Jpeg)));
    }
}

#[test]
fn a_padded_jpeg_and_bytes_after_a_png_are_tolerated() {
    let mut jpeg = encoded(Codec::Jpeg);
    jpeg.extend([0; 50_000]);
    assert_eq!(size(&jpeg), (ImageFormat::Jpeg, 37, 23));
    jpeg.extend([0; 50_000]);
    assert_eq!(check(&jpeg), Err(Defect::Truncated(ImageFormat::Jpeg)));
    let mut png = encoded(Codec::Png);
    png.extend(b"trailing");
    assert_eq!(size(&png), (ImageFormat::Png, 37, 23));
}

#[test]
fn a_png_without_size_or_pixels_is_broken() {
    let broken = Err(Defect::BrokenHeader(ImageFormat::Png));
    let header = |width: u8| png_chunk(b"IHDR", &[0, 0, 0, width, 0, 0, 0, 9, 8, 2, 0, 0, 0]);
    let png = |chunks: &[Vec<u8>]| check(&[PNG_MAGIC, &chunks.concat()].concat());
    let (pixels, end) = (png_chunk(b"IDAT", &[1, 2, 3]), png_chunk(b"IEND", &[]));
    assert!(png(&[header(9), pixels.clone(), end.clone()]).is_ok());
    assert_eq!(png(&[header(0), pixels.clone(), end.clone()]), broken);
    assert_eq!(png(&[header(9), end.clone()]), broken);
    assert_eq!(png(&[pixels, header(9), end]), broken);
}

#[test]
fn an_extended_webp_has_the_size_of_its_canvas() {
    let plain = encoded(Codec::WebP);
    let canvas = [&b"VP8X\x0a\0\0\0\0\0\0\0"[..], &[99, 0, 0, 49, 0, 0]].concat();
    let body = [b"WEBP", &canvas[..], &plain[12..]].concat();
    let length = u32::try_from(body.len()).unwrap().to_le_bytes();
    assert_eq!(size(&[b"RIFF", &length[..], &body].concat()), (ImageFormat::Webp, 100, 50));
}

#[test]
fn a_gif_needs_its_trailer() {
    let gif = [&b"GIF89a"[..], &[10, 0, 20, 0, 0, 0, 0], &[0x2c, 0, 0x3b]].concat();
    assert_eq!(size(&gif), (ImageFormat::Gif, 10, 20));
    assert_eq!(check(&gif[..gif.len() - 1]), Err(Defect::Truncated(ImageFormat::Gif)));
}

#[test]
fn an_svg_has_the_size_of_its_root_element() {
    let sized =
        r#"<?xml version="1.0"?><!-- a <html> --><svg stroke-width="2" width="40.2px" height='30'></svg>"#;
    assert_eq!(size(sized.as_bytes()), (ImageFormat::Svg, 41, 30));
    let boxed = r#"<svg width="100%" height="100%" viewBox="0 0 640 480"><path/></svg>"#;
    assert_eq!(size(format!("\u{feff}\n{boxed}\n").as_bytes()), (ImageFormat::Svg, 640, 480));
    assert_eq!(size(b"<svg>a</svg>"), (ImageFormat::Svg, 300, 150));
    assert_eq!(check(&boxed.as_bytes()[..40]), Err(Defect::Truncated(ImageFormat::Svg)));
}

#[test]
fn an_avif_has_the_size_of_its_largest_part() {
    let whole = avif();
    assert_eq!(size(&whole), (ImageFormat::Avif, 120, 80));
    for length in 12..whole.len() {
        assert_eq!(check(&whole[..length]), Err(Defect::Truncated(ImageFormat::Avif)));
    }
}

#[test]
fn what_is_no_image_is_named() {
    let text = |bytes: &[u8]| check(bytes).unwrap_err().to_string();
    assert_eq!(text(b""), "no bytes");
    assert_eq!(text(b"<!DOCTYPE html><html><svg></svg>"), "html, not an image");
    assert_eq!(text(b"  <HTML><body>502 Bad Gateway"), "html, not an image");
    assert_eq!(text(b"<Error><Code>AccessDenied"), "xml, not an image");
    assert_eq!(text(b"{\"error\": 1}"), "json, not an image");
    assert_eq!(text(b"upstream connect error"), "text, not an image");
    assert_eq!(text(&[0, 1, 2, 3]), "unknown binary data, not an image");
    assert_eq!(text(&encoded(Codec::Png)[..50]), "a png that ends too early");
}

proptest! {
    #[test]
    fn pieces_make_no_difference(
        which in 0usize..4,
        keep in 0.0f64..1.1,
        cuts in prop::collection::vec(0usize..6000, 0..20),
    ) {
        let images = encodings().map(|(_, bytes)| bytes);
        let whole = images.get(which).cloned().unwrap_or_else(avif);
        let length = whole.len().min((whole.len() as f64 * keep) as usize);
        let whole = Bytes::from(whole).slice(..length);
        let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut % (length + 1)).collect();
        cuts.extend([0, length]);
        cuts.sort_unstable();
        let pieces: Pieces = cuts.windows(2).map(|pair| whole.slice(pair[0]..pair[1])).collect();
        prop_assert_eq!(probe(&pieces), probe(&whole.into()));
    }

    #[test]
    fn no_bytes_make_it_panic(start in 0usize..5, rest in prop::collection::vec(any::<u8>(), 0..200)) {
        let magics: [&[u8]; 5] =
            [PNG_MAGIC, b"\xff\xd8\xff", b"RIFF\x20\0\0\0WEBP", b"\0\0\0\x10ftypavif\0\0\0\0", b"<svg "];
        let _ = probe(&[magics[start], &rest].concat().into());
    }
}
