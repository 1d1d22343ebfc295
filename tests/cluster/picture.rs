//! Real PNGs, each like no other: a label goes into chunks all over the file.
//!
//! What stays the same is made once, so that a debug build answers hundreds of requests a second.

use std::sync::LazyLock;

use image::{ExtendedColorType, ImageEncoder as _, codecs::png::PngEncoder};

use self::noise::{crc32, noise};

#[path = "../../benches/serve/noise.rs"]
mod noise;

/// Pixels of each side.
const SMALL_SIDE: u16 = 256;
const LARGE_SIDE: u16 = 1024;

/// Signature and header.
const HEAD: usize = 8 + 25;

/// The chunk that ends a PNG.
const END: usize = 12;

/// The large picture's chunks after its pixels, and the bytes in each.
const PARTS: usize = 16;
const PART_BYTES: usize = 64 << 10;

/// The two sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// About 1 KB: one colour.
    Small,
    /// About 2 MB: noise.
    Large,
}

/// A picture without its label.
struct Template(Vec<Piece>);

enum Piece {
    Fixed(Vec<u8>),
    /// A chunk that ends with the label: its kind and the bytes before that, with the checksum so far.
    Labelled(Vec<u8>, u32),
}

static SMALL: LazyLock<Template> = LazyLock::new(|| {
    let pixels = vec![0x40; usize::from(SMALL_SIDE).pow(2)];
    Template::new(SMALL_SIDE, &pixels, Vec::new())
});

static LARGE: LazyLock<Template> = LazyLock::new(|| {
    let mut noise = noise();
    let pixels: Vec<u8> = noise.by_ref().take(usize::from(LARGE_SIDE).pow(2)).collect();
    let parts = (0..PARTS).map(|_| {
        let mut part = b"paDd".to_vec();
        part.extend(noise.by_ref().take(PART_BYTES));
        part
    });
    Template::new(LARGE_SIDE, &pixels, parts.collect())
});

impl Size {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Small, Self::Large];

    /// In paths and ids.
    pub fn name(self) -> &'static str {
        match self {
            Self::Small => "small",
            Self::Large => "large",
        }
    }

    /// The picture with this label. The same label gives the same bytes.
    pub fn picture(self, label: &str) -> Vec<u8> {
        match self {
            Self::Small => SMALL.labelled(label),
            Self::Large => LARGE.labelled(label),
        }
    }

    /// The same as text.
    pub fn text(self, label: &str) -> String {
        base64_simd::STANDARD.encode_to_string(self.picture(label))
    }
}

impl Template {
    fn new(side: u16, pixels: &[u8], parts: Vec<Vec<u8>>) -> Self {
        let mut png = Vec::new();
        let encoder = PngEncoder::new(&mut png);
        encoder.write_image(pixels, side.into(), side.into(), ExtendedColorType::L8).unwrap();
        let end = png.split_off(png.len() - END);
        let data = png.split_off(HEAD);
        let mut pieces =
            vec![Piece::Fixed(png), Piece::labelled(b"tEXtComment\0".to_vec()), Piece::Fixed(data)];
        pieces.extend(parts.into_iter().map(Piece::labelled));
        pieces.push(Piece::labelled(b"tEXtSoftware\0".to_vec()));
        pieces.push(Piece::Fixed(end));
        Self(pieces)
    }

    fn labelled(&self, label: &str) -> Vec<u8> {
        let mut png = Vec::new();
        for piece in &self.0 {
            match piece {
                Piece::Fixed(bytes) => png.extend_from_slice(bytes),
                Piece::Labelled(bytes, crc) => {
                    let length = u32::try_from(bytes.len() - 4 + label.len()).unwrap();
                    png.extend_from_slice(&length.to_be_bytes());
                    png.extend_from_slice(bytes);
                    png.extend_from_slice(label.as_bytes());
                    png.extend_from_slice(&(!crc32(*crc, label.as_bytes())).to_be_bytes());
                }
            }
        }
        png
    }
}

impl Piece {
    fn labelled(bytes: Vec<u8>) -> Self {
        let crc = crc32(!0, &bytes);
        Self::Labelled(bytes, crc)
    }
}
