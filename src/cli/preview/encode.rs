//! Pixels for terminals: kitty's graphics protocol, iTerm2's inline images, sixel.

use std::io::{self, Write};

use image::DynamicImage;

use crate::{images::convert, pb::ImageFormat};

/// Most characters of base64 in one of kitty's escapes.
const KITTY_CHUNK: usize = 4096;

/// kitty's: a PNG in pieces, shown in so many cells; the terminal answers nothing.
pub fn kitty(out: &mut impl Write, picture: &DynamicImage, columns: u16, rows: u16) -> io::Result<()> {
    let text = base64_simd::STANDARD.encode_to_string(png(picture)?);
    let last = text.len().div_ceil(KITTY_CHUNK).saturating_sub(1);
    for (i, chunk) in text.as_bytes().chunks(KITTY_CHUNK).enumerate() {
        out.write_all(b"\x1b_G")?;
        if i == 0 {
            write!(out, "a=T,f=100,q=2,c={columns},r={rows},")?;
        }
        write!(out, "m={};", u8::from(i < last))?;
        out.write_all(chunk)?;
        out.write_all(b"\x1b\\")?;
    }
    out.write_all(b"\n")
}

/// iTerm2's: the same in one piece.
pub fn iterm(out: &mut impl Write, picture: &DynamicImage, columns: u16, rows: u16) -> io::Result<()> {
    let image = png(picture)?;
    let size = image.len();
    let text = base64_simd::STANDARD.encode_to_string(image);
    let what = format!("inline=1;size={size};width={columns};height={rows};preserveAspectRatio=1");
    writeln!(out, "\u{1b}]1337;File={what}:{text}\u{7}")
}

/// Sixel: as large as its pixels.
pub fn sixel(out: &mut impl Write, picture: &DynamicImage) -> io::Result<()> {
    let picture = picture.to_rgba8();
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    let options = icy_sixel::EncodeOptions::default();
    let text = icy_sixel::sixel_encode(&picture, width, height, &options).map_err(io::Error::other)?;
    writeln!(out, "{text}")
}

fn png(picture: &DynamicImage) -> io::Result<bytes::Bytes> {
    convert::encode(picture, ImageFormat::Png, None).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use image::{Rgb, RgbImage};

    use super::*;

    fn noise() -> DynamicImage {
        // Hard to compress, so that it takes several pieces.
        let pixel =
            |x: u32, y: u32| Rgb([x.wrapping_mul(97), y.wrapping_mul(61), x * y].map(|part| part as u8));
        RgbImage::from_fn(80, 60, pixel).into()
    }

    #[test]
    fn kitty_gets_the_same_pixels_in_pieces() {
        let mut out = Vec::new();
        kitty(&mut out, &noise(), 10, 4).unwrap();
        let text = String::from_utf8(out).unwrap();
        let pieces: Vec<(&str, &str)> = text
            .trim_end()
            .split_terminator("\u{1b}\\")
            .map(|escape| escape.strip_prefix("\u{1b}_G").unwrap().split_once(';').unwrap())
            .collect();
        assert!(pieces.len() > 1 && pieces.iter().all(|(_, data)| data.len() <= KITTY_CHUNK));
        assert_eq!(pieces[0].0, "a=T,f=100,q=2,c=10,r=4,m=1");
        assert_eq!(pieces.last().unwrap().0, "m=0");
        let data: String = pieces.iter().map(|(_, data)| *data).collect();
        let image = base64_simd::STANDARD.decode_to_vec(data).unwrap();
        assert_eq!(convert::decode(&image).unwrap().to_rgb8(), noise().to_rgb8());
    }

    #[test]
    fn iterm_gets_the_same_pixels() {
        let mut out = Vec::new();
        iterm(&mut out, &noise(), 10, 4).unwrap();
        let text = String::from_utf8(out).unwrap();
        let (what, data) = text.trim_end_matches(['\n', '\u{7}']).split_once(':').unwrap();
        let image = base64_simd::STANDARD.decode_to_vec(data).unwrap();
        assert!(
            what.starts_with("\u{1b}]1337;File=inline=1;")
                && what.contains(&format!("size={};", image.len()))
        );
        assert_eq!(convert::decode(&image).unwrap().to_rgb8(), noise().to_rgb8());
    }

    #[test]
    fn sixel_keeps_size_and_colour() {
        let red = DynamicImage::from(RgbImage::from_pixel(20, 12, Rgb([255, 0, 0])));
        let mut out = Vec::new();
        sixel(&mut out, &red).unwrap();
        let shown = icy_sixel::SixelImage::decode(&out).unwrap();
        assert_eq!((shown.width, shown.height), (20, 12));
        assert!(shown.pixels.chunks(4).all(|pixel| pixel[0] > 250 && pixel[1] < 5 && pixel[2] < 5));
    }
}
