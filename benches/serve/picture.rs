//! Real PNGs of an exact size, always the same ones.

use anyhow::{Context as _, Result};
use image::{ExtendedColorType, ImageEncoder as _, codecs::png::PngEncoder};

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
    png.extend_from_slice(&crc32(&padding).to_be_bytes());
    png.extend(end);
    Ok(png)
}

/// Xorshift.
fn noise() -> impl Iterator<Item = u8> {
    std::iter::successors(Some(0x9e37_79b9_7f4a_7c15_u64), |state| {
        let state = state ^ (state << 13);
        let state = state ^ (state >> 7);
        Some(state ^ (state << 17))
    })
    .map(|state| state.to_le_bytes()[3])
}

fn crc32(data: &[u8]) -> u32 {
    let step = |crc: u32| if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
    !data.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc)))
}
