//! Real PNGs of an exact size, always the same ones.

use anyhow::{Context as _, Result};
use image::{ExtendedColorType, ImageEncoder as _, codecs::png::PngEncoder};

use self::noise::{crc32, noise};

#[path = "noise.rs"]
mod noise;

/// What a PNG chunk has beside its data.
const CHUNK_OVERHEAD: usize = 12;

/// The base64 text of a real PNG that is `length` characters long, always the same one.
pub fn image_text(length: usize) -> Result<String> {
    Ok(base64_simd::STANDARD.encode_to_string(png(length / 4 * 3)?))
}

/// Noise, so that it stays large, and a chunk that decoders skip up to the exact size.
pub fn png(size: usize) -> Result<Vec<u8>> {
    let side: u16 = if size > 1 << 20 { 1024 } else { 16 };
    let mut noise = noise();
    let pixels: Vec<u8> = noise.by_ref().take(usize::from(side) * usize::from(side)).collect();
    let mut png = Vec::with_capacity(size);
    let encoder = PngEncoder::new(&mut png);
    encoder.write_image(&pixels, side.into(), side.into(), ExtendedColorType::L8)?;
    let missing = size.checked_sub(png.len() + CHUNK_OVERHEAD).context("the picture alone is too large")?;
    let mut padding = b"paDd".to_vec();
    padding.extend(noise.take(missing));
    let end = png.split_off(png.len() - CHUNK_OVERHEAD);
    png.extend_from_slice(&u32::try_from(missing)?.to_be_bytes());
    png.extend_from_slice(&padding);
    png.extend_from_slice(&(!crc32(!0, &padding)).to_be_bytes());
    png.extend(end);
    Ok(png)
}
