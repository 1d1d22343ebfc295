//! Turns an image into the format and the exact size somebody asked for, where the provider cannot.
//!
//! Pure CPU work that blocks: call it on a blocking thread. It decides nothing about when to convert.

use std::{borrow::Cow, io::Cursor};

use bytes::Bytes;
use image::{
    DynamicImage, ImageDecoder as _, ImageReader, Limits, RgbImage, codecs::jpeg::JpegEncoder,
    imageops::FilterType,
};

use super::probe;
use crate::pb;

/// What an image shall become. Nothing set: it stays as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Wish {
    /// Absent: the format it has.
    pub format: Option<pb::ImageFormat>,
    /// JPEG quality, 0 (smallest) to 100 (best). Default 90. Other formats are written without loss.
    pub compression: Option<u32>,
    /// Cropped around the centre to this ratio, then scaled. Absent: the size it has.
    pub exact_size: Option<pb::Dimensions>,
}

/// The largest side that we decode or make. WebP cannot hold more.
pub const MAX_SIDE: u32 = 16_384;

/// The most pixels that we decode or make: half as many again as the largest camera's. Whoever declares more is refused
/// by the header alone.
pub const MAX_PIXELS: u64 = 100_000_000;

/// Memory that a decoded image may take. A few kilobytes of PNG can claim gigabytes.
const MAX_DECODED_BYTES: u64 = 512 * 1024 * 1024;

const DEFAULT_JPEG_QUALITY: u32 = 90;

/// The image as wished, or its own bytes if it is so already. Metadata is lost, except that its orientation
/// is applied.
///
/// # Errors
/// What is wrong with the image or the wish, in words for people.
pub fn convert(image: &[u8], wish: &Wish) -> Result<Bytes, String> {
    let from = probe::sniff(image);
    let format = match wish.format {
        Some(format) if format != pb::ImageFormat::Unspecified => format,
        _ => from.unwrap_or(pb::ImageFormat::Png),
    };
    let picture = decode(image)?;
    let has = pb::Dimensions { width: picture.width(), height: picture.height() };
    let size = wish.exact_size.unwrap_or(has);
    if size == has && from == Some(format) && wish.compression.is_none() {
        return Ok(Bytes::copy_from_slice(image));
    }
    let picture = fit(picture, size)?;
    encode(&picture, format, wish.compression)
}

/// Reads an image's pixels, upright.
///
/// # Errors
/// Why it cannot be read: unknown format, damage, or larger than we are ready to hold.
pub fn decode(image: &[u8]) -> Result<DynamicImage, String> {
    let unreadable = |error: image::ImageError| format!("the image cannot be decoded: {error}");
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(MAX_DECODED_BYTES);
    let mut reader = ImageReader::new(Cursor::new(image));
    reader.limits(limits);
    let reader = reader.with_guessed_format().map_err(|error| unreadable(error.into()))?;
    let mut decoder = reader.into_decoder().map_err(unreadable)?;
    let (width, height) = decoder.dimensions();
    // The reader checks its own buffers against the limit, not the one that takes the pixels.
    if is_too_large(width, height) || decoder.total_bytes() > MAX_DECODED_BYTES {
        return Err(format!("the image is too large to decode: {width}x{height}"));
    }
    let orientation = decoder.orientation().map_err(unreadable)?;
    let mut picture = DynamicImage::from_decoder(decoder).map_err(unreadable)?;
    picture.apply_orientation(orientation);
    Ok(picture)
}

/// Whether an image of this size has more than [`MAX_PIXELS`].
pub fn is_too_large(width: u32, height: u32) -> bool {
    u64::from(width) * u64::from(height) > MAX_PIXELS
}

/// Writes pixels as PNG, JPEG (without alpha: over white) or WebP (without loss).
///
/// # Errors
/// A format that we cannot write, or a picture that the format cannot hold.
pub fn encode(
    picture: &DynamicImage,
    format: pb::ImageFormat,
    compression: Option<u32>,
) -> Result<Bytes, String> {
    let mut bytes = Cursor::new(Vec::new());
    let written = match format {
        pb::ImageFormat::Png => picture.write_to(&mut bytes, image::ImageFormat::Png),
        pb::ImageFormat::Jpeg => {
            // The encoder has no quality 0, and clamping keeps every number of the request meaningful.
            let quality = compression.unwrap_or(DEFAULT_JPEG_QUALITY).clamp(1, 100) as u8;
            JpegEncoder::new_with_quality(&mut bytes, quality).encode_image(&*over_white(picture))
        }
        pb::ImageFormat::Webp => eight_bit(picture).write_to(&mut bytes, image::ImageFormat::WebP),
        pb::ImageFormat::Unspecified
        | pb::ImageFormat::Gif
        | pb::ImageFormat::Svg
        | pb::ImageFormat::Avif => {
            return Err(format!("images cannot be converted to {}", format.name()));
        }
    };
    written.map_err(|error| format!("the image cannot be written as {}: {error}", format.name()))?;
    Ok(bytes.into_inner().into())
}

/// Crops around the centre and scales to exactly this size.
fn fit(picture: DynamicImage, size: pb::Dimensions) -> Result<DynamicImage, String> {
    let pb::Dimensions { width, height } = size;
    if !(1..=MAX_SIDE).contains(&width) || !(1..=MAX_SIDE).contains(&height) {
        return Err(format!("images cannot be scaled to {size}, a side is 1 to {MAX_SIDE} pixels"));
    }
    if is_too_large(width, height) {
        return Err(format!(
            "images cannot be scaled to {size}, the most is {} megapixels",
            MAX_PIXELS / 1_000_000
        ));
    }
    if (picture.width(), picture.height()) == (width, height) {
        return Ok(picture);
    }
    let (has_width, has_height) = (u64::from(picture.width()), u64::from(picture.height()));
    let (width_part, height_part) = (u64::from(width), u64::from(height));
    // The largest window of the wanted ratio; a side is at least one pixel.
    let (crop_width, crop_height) = if has_width * height_part > has_height * width_part {
        ((has_height * width_part / height_part).max(1), has_height)
    } else {
        (has_width, (has_width * height_part / width_part).max(1))
    };
    let pixels = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
    let cropped = picture.crop_imm(
        pixels((has_width - crop_width) / 2),
        pixels((has_height - crop_height) / 2),
        pixels(crop_width),
        pixels(crop_height),
    );
    Ok(cropped.resize_exact(width, height, FilterType::Lanczos3))
}

fn over_white(picture: &DynamicImage) -> Cow<'_, RgbImage> {
    if let DynamicImage::ImageRgb8(picture) = picture {
        return Cow::Borrowed(picture);
    }
    if !picture.color().has_alpha() {
        return Cow::Owned(picture.to_rgb8());
    }
    let source = picture.to_rgba8();
    let mut flat = RgbImage::new(source.width(), source.height());
    for (from, to) in source.pixels().zip(flat.pixels_mut()) {
        let [red, green, blue, alpha] = from.0.map(u32::from);
        to.0 = [red, green, blue].map(|colour| ((colour * alpha + 255 * (255 - alpha) + 127) / 255) as u8);
    }
    Cow::Owned(flat)
}

/// The WebP encoder takes nothing else.
fn eight_bit(picture: &DynamicImage) -> Cow<'_, DynamicImage> {
    match picture {
        DynamicImage::ImageRgb8(_) | DynamicImage::ImageRgba8(_) => Cow::Borrowed(picture),
        other if other.color().has_alpha() => Cow::Owned(other.to_rgba8().into()),
        other => Cow::Owned(other.to_rgb8().into()),
    }
}

#[cfg(test)]
mod tests {
    use image::{ImageBuffer, Rgb, Rgba, RgbaImage};

    use super::*;
    use crate::images::probe::{Probe, probe};

    const FORMATS: [pb::ImageFormat; 3] =
        [pb::ImageFormat::Png, pb::ImageFormat::Jpeg, pb::ImageFormat::Webp];

    fn png(picture: impl Into<DynamicImage>) -> Bytes {
        encode(&picture.into(), pb::ImageFormat::Png, None).unwrap()
    }

    fn to(format: pb::ImageFormat) -> Wish {
        Wish { format: Some(format), ..Wish::default() }
    }

    /// Red on the left, green in the middle third, blue on the right.
    fn stripes() -> RgbImage {
        RgbImage::from_fn(90, 30, |x, _| match x {
            0..30 => Rgb([255, 0, 0]),
            30..60 => Rgb([0, 255, 0]),
            _ => Rgb([0, 0, 255]),
        })
    }

    #[test]
    fn every_format_becomes_every_other() {
        let picture = DynamicImage::from(stripes());
        for from in FORMATS {
            let source = encode(&picture, from, None).unwrap();
            for format in FORMATS {
                let result = convert(&source, &to(format)).unwrap();
                assert_eq!(probe(&result.into()), Ok(Probe { format, width: 90, height: 30 }));
            }
        }
    }

    #[test]
    fn an_exact_size_crops_around_the_centre() {
        let wish =
            Wish { exact_size: Some(pb::Dimensions { width: 17, height: 17 }), ..to(pb::ImageFormat::Png) };
        let result = decode(&convert(&png(stripes()), &wish).unwrap()).unwrap().to_rgb8();
        assert_eq!(result.dimensions(), (17, 17));
        assert!(result.pixels().all(|pixel| pixel.0 == [0, 255, 0]));
    }

    #[test]
    fn a_thin_image_still_has_a_pixel_to_scale() {
        let exact_size = Some(pb::Dimensions { width: 5, height: 900 });
        let result = convert(&png(RgbImage::new(100, 1)), &Wish { exact_size, ..Wish::default() }).unwrap();
        assert_eq!(decode(&result).unwrap().to_rgb8().dimensions(), (5, 900));
    }

    #[test]
    fn alpha_is_kept_by_webp_and_becomes_white_in_jpeg() {
        let glass = png(RgbaImage::from_pixel(8, 8, Rgba([0, 0, 0, 0])));
        let webp = decode(&convert(&glass, &to(pb::ImageFormat::Webp)).unwrap()).unwrap();
        assert_eq!(webp.to_rgba8().get_pixel(3, 3).0[3], 0);
        let jpeg = decode(&convert(&glass, &to(pb::ImageFormat::Jpeg)).unwrap()).unwrap();
        assert_eq!(jpeg.to_rgb8().get_pixel(3, 3).0, [255; 3]);
    }

    #[test]
    fn deep_and_gray_images_can_be_written_in_every_format() {
        let deep = png(ImageBuffer::<Rgba<u16>, _>::from_pixel(4, 4, Rgba([9000, 1, 2, 40_000])));
        let gray = png(image::GrayImage::new(4, 4));
        for format in FORMATS {
            assert!(convert(&deep, &to(format)).is_ok(), "{format:?}");
            assert!(convert(&gray, &to(format)).is_ok(), "{format:?}");
        }
    }

    #[test]
    fn compression_is_the_quality_of_a_jpeg() {
        let noisy = RgbImage::from_fn(64, 64, |x, y| Rgb([(x * 91) as u8, (y * 57) as u8, (x * y) as u8]));
        let size = |compression| {
            let wish = Wish { compression: Some(compression), ..to(pb::ImageFormat::Jpeg) };
            convert(&png(noisy.clone()), &wish).unwrap().len()
        };
        assert!(size(0) < size(50) && size(50) < size(100));
    }

    #[test]
    fn nothing_to_do_gives_the_same_bytes() {
        let source = png(stripes());
        assert_eq!(convert(&source, &Wish::default()).unwrap(), source);
        assert_eq!(convert(&source, &to(pb::ImageFormat::Png)).unwrap(), source);
    }

    #[test]
    fn a_decompression_bomb_is_refused() {
        let mut bomb = png(RgbImage::new(1, 1)).to_vec();
        // 65536, 16384 and 10240 a side.
        for claimed in
            [[0, 1, 0, 0, 0, 1, 0, 0], [0, 0, 0x40, 0, 0, 0, 0x40, 0], [0, 0, 0x28, 0, 0, 0, 0x28, 0]]
        {
            bomb[16..24].copy_from_slice(&claimed);
            let checksum = crc32(&bomb[12..29]);
            bomb[29..33].copy_from_slice(&checksum.to_be_bytes());
            let error = decode(&bomb).unwrap_err();
            assert!(error.contains("limit") || error.contains("too large"), "{error}");
        }
    }

    #[test]
    fn what_cannot_be_done_is_said() {
        assert!(convert(b"<html>", &to(pb::ImageFormat::Png)).unwrap_err().contains("cannot be decoded"));
        let error = convert(&png(stripes()), &to(pb::ImageFormat::Avif)).unwrap_err();
        assert_eq!(error, "images cannot be converted to avif");
        let exact_size = Some(pb::Dimensions { width: 0, height: 5 });
        let error = convert(&png(stripes()), &Wish { exact_size, ..Wish::default() }).unwrap_err();
        assert!(error.contains("0x5"), "{error}");
        let exact_size = Some(pb::Dimensions { width: 16_384, height: 16_384 });
        let error = convert(&png(stripes()), &Wish { exact_size, ..Wish::default() }).unwrap_err();
        assert!(error.contains("100 megapixels"), "{error}");
    }

    fn crc32(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0, |sum, byte| {
            (0..8).fold(sum ^ u32::from(*byte), |sum, _| (sum >> 1) ^ (0xedb8_8320 * (sum & 1)))
        })
    }
}
