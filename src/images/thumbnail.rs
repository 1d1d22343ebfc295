//! A small picture of an image, for people who look through many.
//!
//! Pure CPU work that blocks: call it on a blocking thread.

use bytes::Bytes;

use super::convert;
use crate::pb::ImageFormat;

/// The longer side, in pixels.
pub const SIDE: u32 = 256;

/// What thumbnails are: JPEG is a tenth of what WebP is without loss.
pub const FORMAT: ImageFormat = ImageFormat::Jpeg;

const QUALITY: u32 = 80;

/// Whether there can be a thumbnail of an image in this format.
pub fn is_possible(format: ImageFormat) -> bool {
    matches!(format, ImageFormat::Png | ImageFormat::Jpeg | ImageFormat::Webp)
}

/// The image no larger than [`SIDE`], in [`FORMAT`], over white.
///
/// # Errors
/// Why the image cannot be read.
pub fn thumbnail(image: &[u8]) -> Result<Bytes, String> {
    let picture = convert::decode(image)?;
    let is_large = picture.width().max(picture.height()) > SIDE;
    let small = if is_large { picture.thumbnail(SIDE, SIDE) } else { picture };
    convert::encode(&small, FORMAT, Some(QUALITY))
}

#[cfg(test)]
mod tests {
    use image::{DynamicImage, Rgb, RgbImage, Rgba, RgbaImage};

    use super::*;
    use crate::images::probe::probe;

    fn sized(width: u32, height: u32) -> (u32, u32) {
        let image = DynamicImage::from(RgbImage::from_pixel(width, height, Rgb([200, 30, 60])));
        let small = thumbnail(&convert::encode(&image, ImageFormat::Png, None).unwrap()).unwrap();
        let found = probe(&small.into()).unwrap();
        assert_eq!(found.format, FORMAT);
        (found.width, found.height)
    }

    #[test]
    fn the_longer_side_is_bounded_and_nothing_grows() {
        assert_eq!(sized(1024, 512), (256, 128));
        assert_eq!(sized(300, 1200), (64, 256));
        assert_eq!(sized(4000, 2), (256, 1));
        assert_eq!(sized(100, 60), (100, 60));
    }

    #[test]
    fn what_can_be_seen_through_is_white() {
        let glass = DynamicImage::from(RgbaImage::from_pixel(600, 600, Rgba([0, 0, 0, 0])));
        let small = thumbnail(&convert::encode(&glass, ImageFormat::Webp, None).unwrap()).unwrap();
        assert_eq!(convert::decode(&small).unwrap().to_rgb8().get_pixel(128, 128).0, [255; 3]);
    }

    #[test]
    fn what_is_no_image_has_none() {
        assert!(thumbnail(b"<svg/>").is_err());
    }
}
