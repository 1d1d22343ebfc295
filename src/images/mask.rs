//! Rewrites an edit mask from one provider's convention to another's.
//!
//! The pixels keep their size: whether a mask fits its image is not decided here.

use bytes::Bytes;
use image::{DynamicImage, GrayImage, Luma, Rgba, RgbaImage};

use super::convert::{decode, encode};
use crate::pb::{ImageFormat, MaskPolarity};

/// The same selection in another polarity, as a PNG; or the same bytes if the polarity is the same.
/// Blocks, like every decoder: call it on a blocking thread.
///
/// # Errors
/// Why the mask cannot be decoded.
pub fn convert(mask: &Bytes, from: MaskPolarity, to: MaskPolarity) -> Result<Bytes, String> {
    if resolve(from) == resolve(to) {
        return Ok(mask.clone());
    }
    let selection = selection(mask, from)?;
    let (width, height) = selection.dimensions();
    let picture: DynamicImage = match resolve(to) {
        MaskPolarity::Unspecified | MaskPolarity::WhiteEdits => selection.into(),
        MaskPolarity::BlackEdits => {
            GrayImage::from_fn(width, height, |x, y| Luma([255 - selection.get_pixel(x, y).0[0]])).into()
        }
        MaskPolarity::AlphaEdits => {
            RgbaImage::from_fn(width, height, |x, y| Rgba([0, 0, 0, 255 - selection.get_pixel(x, y).0[0]]))
                .into()
        }
    };
    encode(&picture, ImageFormat::Png, None)
}

/// The same selection in black and white alone, as a PNG without alpha, for models that refuse anything else.
/// What is selected by half or more counts as selected. Blocks, like [`convert`].
///
/// # Errors
/// Why the mask cannot be decoded.
pub fn two_tone(mask: &[u8], from: MaskPolarity, white_edits: bool) -> Result<Bytes, String> {
    let mut tones = selection(mask, from)?;
    tones.iter_mut().for_each(|value| *value = if (*value >= 128) == white_edits { 255 } else { 0 });
    encode(&tones.into(), ImageFormat::Png, None)
}

/// How much a mask selects of each pixel: 255 is all of it.
///
/// # Errors
/// Why the mask cannot be decoded.
pub fn selection(mask: &[u8], polarity: MaskPolarity) -> Result<GrayImage, String> {
    let picture = decode(mask).map_err(|error| format!("mask: {error}"))?;
    let mut selection = match resolve(polarity) {
        MaskPolarity::Unspecified | MaskPolarity::WhiteEdits => return Ok(picture.into_luma8()),
        MaskPolarity::BlackEdits => picture.into_luma8(),
        MaskPolarity::AlphaEdits => {
            let alpha = picture.into_rgba8();
            GrayImage::from_fn(alpha.width(), alpha.height(), |x, y| Luma([alpha.get_pixel(x, y).0[3]]))
        }
    };
    selection.iter_mut().for_each(|value| *value = 255 - *value);
    Ok(selection)
}

fn resolve(polarity: MaskPolarity) -> MaskPolarity {
    if polarity == MaskPolarity::Unspecified { MaskPolarity::WhiteEdits } else { polarity }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLARITIES: [MaskPolarity; 4] = [
        MaskPolarity::Unspecified,
        MaskPolarity::WhiteEdits,
        MaskPolarity::BlackEdits,
        MaskPolarity::AlphaEdits,
    ];

    fn gradient() -> GrayImage {
        GrayImage::from_fn(16, 16, |x, y| Luma([(x * 16 + y) as u8]))
    }

    fn white_edits() -> Bytes {
        encode(&gradient().into(), ImageFormat::Png, None).unwrap()
    }

    #[test]
    fn every_polarity_and_back_selects_the_same() {
        for via in POLARITIES {
            for via_too in POLARITIES {
                let mask = convert(&white_edits(), MaskPolarity::Unspecified, via).unwrap();
                let mask = convert(&mask, via, via_too).unwrap();
                assert_eq!(selection(&mask, via_too).unwrap(), gradient(), "{via:?}, {via_too:?}");
            }
        }
    }

    #[test]
    fn the_same_polarity_leaves_the_bytes_alone() {
        let nonsense = Bytes::from_static(b"not even an image");
        for polarity in POLARITIES {
            let same = convert(&nonsense, polarity, polarity).unwrap();
            assert_eq!(same.as_ptr(), nonsense.as_ptr());
        }
        assert!(convert(&nonsense, MaskPolarity::WhiteEdits, MaskPolarity::Unspecified).is_ok());
    }

    #[test]
    fn masks_look_as_their_polarity_says() {
        let black = convert(&white_edits(), MaskPolarity::WhiteEdits, MaskPolarity::BlackEdits).unwrap();
        assert!(matches!(decode(&black).unwrap(), DynamicImage::ImageLuma8(gray) if gray[(0, 1)].0 == [254]));
        let alpha = convert(&white_edits(), MaskPolarity::WhiteEdits, MaskPolarity::AlphaEdits).unwrap();
        assert!(
            matches!(decode(&alpha).unwrap(), DynamicImage::ImageRgba8(glass) if glass[(0, 1)].0[3] == 254)
        );
    }

    #[test]
    fn two_tones_are_left_of_a_gradient() {
        for polarity in POLARITIES {
            let mask = convert(&white_edits(), MaskPolarity::WhiteEdits, polarity).unwrap();
            for (white_edits, below, above) in [(true, 0, 255), (false, 255, 0)] {
                let mask = two_tone(&mask, polarity, white_edits).unwrap();
                let DynamicImage::ImageLuma8(gray) = decode(&mask).unwrap() else { panic!("not gray") };
                assert_eq!((gray[(7, 15)].0, gray[(8, 0)].0), ([below], [above]), "{polarity:?}");
                assert!(gray.iter().all(|value| matches!(value, 0 | 255)));
            }
        }
    }

    #[test]
    fn an_unreadable_mask_is_named() {
        let error = convert(&Bytes::new(), MaskPolarity::WhiteEdits, MaskPolarity::BlackEdits).unwrap_err();
        assert!(error.starts_with("mask: the image cannot be decoded"), "{error}");
    }
}
