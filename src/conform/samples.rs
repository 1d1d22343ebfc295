//! What the kit asks for: prompts and inputs that nobody should refuse.

use bytes::Bytes;
use image::{DynamicImage, GrayImage, Luma, Rgb, RgbImage};
use serde_json::Value;

use crate::{
    images::convert,
    pb::{self, ImageFormat, MaskPolarity, input_image::Source},
};

/// Of an ordinary call.
pub const PROMPT: &str = "a lighthouse at dusk, in the style of a woodcut";

/// Side of inputs where the request names no size.
const SIDE: u32 = 512;

/// A prompt of that many characters, not all of which are one byte.
pub fn prompt(chars: usize) -> String {
    "ein Leuchtturm in der Dämmerung, über ihm Möwen; ".chars().cycle().take(chars).collect()
}

/// Different inputs of the request's size.
pub fn inputs(request: &pb::ImageRequest, count: u32) -> Vec<pb::InputImage> {
    let size = side(request);
    (0..count)
        .map(|seed| pb::InputImage { source: Some(Source::Data(picture(size, seed))), ..Default::default() })
        .collect()
}

/// A mask of the request's size that selects its middle.
pub fn mask(request: &pb::ImageRequest) -> pb::Mask {
    let pb::Dimensions { width, height } = side(request);
    let middle = |at: u32, side: u32| (side / 4..side - side / 4).contains(&at);
    let mask = GrayImage::from_fn(width, height, |x, y| {
        Luma([if middle(x, width) && middle(y, height) { 255 } else { 0 }])
    });
    pb::Mask { data: png(mask.into()), polarity: MaskPolarity::WhiteEdits.into() }
}

fn side(request: &pb::ImageRequest) -> pb::Dimensions {
    request.dimensions().unwrap_or(pb::Dimensions { width: SIDE, height: SIDE })
}

fn picture(size: pb::Dimensions, seed: u32) -> Bytes {
    let shade = |at: u32, side: u32| (at * 255 / side.max(1)) as u8;
    let blue = (seed * 40 % 256) as u8;
    let picture = RgbImage::from_fn(size.width, size.height, |x, y| {
        Rgb([shade(x, size.width), shade(y, size.height), blue])
    });
    png(picture.into())
}

fn png(picture: DynamicImage) -> Bytes {
    convert::encode(&picture, ImageFormat::Png, None).expect("a PNG holds any picture")
}

/// A limit as a request would carry it: whole if it is.
pub fn number(limit: f64) -> Value {
    #[expect(clippy::float_cmp, reason = "whole, not nearly whole")]
    let is_whole = limit.trunc() == limit && limit.abs() < 1e15;
    if is_whole { (limit as i64).into() } else { limit.into() }
}
