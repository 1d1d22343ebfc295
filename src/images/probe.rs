//! Tells what an image is, how big it is and whether all of it has arrived, without decoding a pixel.
//!
//! Only the structure is walked (chunks, segments, boxes), in constant memory and over the pieces as they
//! are. Damaged pixels inside a complete structure are not noticed: that takes a decoder.

mod text;

use std::fmt;

use super::Pieces;
use crate::pb::ImageFormat;

/// What a complete image says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// By its first bytes, whatever its sender called it.
    pub format: ImageFormat,
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
}

/// Why bytes are not a usable image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defect {
    /// No bytes.
    Empty,
    /// No format of ours; what it looks like instead.
    NotAnImage(&'static str),
    /// It stops before its end.
    Truncated(ImageFormat),
    /// Its header, or the header of one of its parts, makes no sense.
    BrokenHeader(ImageFormat),
}

/// Bytes of the start and the end that are looked at as text. XML prologs of real SVG files are shorter.
const TEXT_WINDOW: usize = 4096;

/// The largest side of any format here but AVIF and PNG, where nobody sends more.
const MAX_SIDE: u32 = 65_535;

/// Chunks, segments or boxes before we stop: a 512 MiB PNG in pieces of libpng's default 8 KiB.
const MAX_PARTS: usize = 65_536;

/// How far the end of a JPEG may be from the end of the bytes; cameras pad to sectors.
const MAX_JPEG_PADDING: usize = 64 * 1024;

const PNG_MAGIC: &[u8] = b"\x89PNG\r\n\x1a\n";

/// An image and its format, which is all that a defect needs to be named.
struct Walk<'a> {
    image: &'a Pieces,
    len: usize,
    format: ImageFormat,
}

/// The head of an AVIF box.
struct AvifBox {
    kind: [u8; 4],
    body: usize,
    end: usize,
}

/// Format, dimensions and completeness of an image.
///
/// # Errors
/// What is wrong with it, in words for people.
pub fn probe(image: &Pieces) -> Result<Probe, Defect> {
    let len = image.len();
    if len == 0 {
        return Err(Defect::Empty);
    }
    let mut start = [0; TEXT_WINDOW];
    let start = &mut start[..len.min(TEXT_WINDOW)];
    image.read_at(0, start);
    let format = sniff(start).ok_or_else(|| Defect::NotAnImage(text::describe(start)))?;
    let walk = Walk { image, len, format };
    let (width, height) = match format {
        ImageFormat::Png => walk.png(),
        ImageFormat::Jpeg => walk.jpeg(),
        ImageFormat::Webp => walk.webp(),
        ImageFormat::Gif => walk.gif(),
        ImageFormat::Svg => walk.svg(start),
        ImageFormat::Avif => walk.avif(),
        ImageFormat::Unspecified => Err(walk.broken()),
    }?;
    if !(1..=MAX_SIDE).contains(&width) || !(1..=MAX_SIDE).contains(&height) {
        return Err(walk.broken());
    }
    Ok(Probe { format, width, height })
}

/// The format that the first bytes of an image announce. 64 bytes are enough for all but SVG, which may
/// begin with comments.
pub fn sniff(start: &[u8]) -> Option<ImageFormat> {
    let brand = |brand: &[u8]| start.get(4..8) == Some(b"ftyp") && start.get(8..12) == Some(brand);
    if start.starts_with(PNG_MAGIC) {
        Some(ImageFormat::Png)
    } else if start.starts_with(b"\xff\xd8\xff") {
        Some(ImageFormat::Jpeg)
    } else if start.starts_with(b"RIFF") && start.get(8..12) == Some(b"WEBP") {
        Some(ImageFormat::Webp)
    } else if start.starts_with(b"GIF87a") || start.starts_with(b"GIF89a") {
        Some(ImageFormat::Gif)
    } else if brand(b"avif") || brand(b"avis") {
        Some(ImageFormat::Avif)
    } else if text::is_svg(start) {
        Some(ImageFormat::Svg)
    } else {
        None
    }
}

impl Walk<'_> {
    /// Chunks from IHDR to IEND. What follows IEND is ignored, as decoders do.
    fn png(&self) -> Result<(u32, u32), Defect> {
        let mut at = PNG_MAGIC.len();
        let mut dimensions = None;
        let mut has_pixels = false;
        for _ in 0..MAX_PARTS {
            let [a, b, c, d, kind @ ..]: [u8; 8] = self.array(at)?;
            let size = u32::from_be_bytes([a, b, c, d]) as usize;
            match (&kind, dimensions) {
                (b"IHDR", None) if size == 13 => {
                    dimensions = Some((self.u32_be(at + 8)?, self.u32_be(at + 12)?));
                }
                (b"IHDR", _) | (_, None) => return Err(self.broken()),
                (b"IDAT", _) => has_pixels = true,
                (b"IEND", Some(dimensions)) if size == 0 && has_pixels => {
                    let _checksum = self.u32_be(at + 8)?;
                    return Ok(dimensions);
                }
                (b"IEND", _) => return Err(self.broken()),
                _ if !kind.iter().all(u8::is_ascii_alphabetic) => return Err(self.broken()),
                _ => {}
            }
            // Length, type and checksum beside the data.
            at = self.skip(at, size + 12)?;
        }
        Err(self.broken())
    }

    /// Segments up to the first scan, with a frame header among them, then the end marker near the end.
    ///
    /// The search must not reach before the scan: the segments may hold a whole thumbnail, end marker
    /// included. Inside the scan the marker cannot occur, every 0xFF there is stuffed.
    fn jpeg(&self) -> Result<(u32, u32), Defect> {
        let mut at = 2;
        let mut dimensions = None;
        for _ in 0..MAX_PARTS {
            let [first, marker] = self.array(at)?;
            if first != 0xff {
                return Err(self.broken());
            }
            match marker {
                // Fill bytes.
                0xff => {
                    at += 1;
                    continue;
                }
                // Markers without a segment.
                0x01 | 0xd0..=0xd8 => {
                    at += 2;
                    continue;
                }
                // Frame headers: every Cn but the tables DHT, JPG and DAC.
                0xc0..=0xc3 | 0xc5..=0xc7 | 0xc9..=0xcb | 0xcd..=0xcf => {
                    let [height_high, height_low, width_high, width_low] = self.array(at + 5)?;
                    dimensions = Some((
                        u16::from_be_bytes([width_high, width_low]).into(),
                        u16::from_be_bytes([height_high, height_low]).into(),
                    ));
                }
                // No image without a scan.
                0xd9 | 0x00 => return Err(self.broken()),
                _ => {}
            }
            let size = usize::from(u16::from_be_bytes(self.array(at + 2)?));
            if size < 2 {
                return Err(self.broken());
            }
            at = self.skip(at, size + 2)?;
            if marker == 0xda {
                let dimensions = dimensions.ok_or(self.broken())?;
                return if self.jpeg_ends_after(at) { Ok(dimensions) } else { Err(self.truncated()) };
            }
        }
        Err(self.broken())
    }

    fn jpeg_ends_after(&self, scan: usize) -> bool {
        const BLOCK: usize = 1024;
        let floor = scan.max(self.len.saturating_sub(MAX_JPEG_PADDING));
        let mut block = [0; BLOCK];
        let mut end = self.len;
        while end > floor + 1 {
            let start = floor.max(end.saturating_sub(BLOCK));
            let block = &mut block[..end - start];
            self.image.read_at(start, block);
            if block.windows(2).any(|pair| pair == b"\xff\xd9") {
                return true;
            }
            // Blocks overlap by one byte, for a marker that lies across their border.
            end = start + 1;
        }
        false
    }

    /// The RIFF size is what there is, and one of the chunks holds pixels. Bytes after it are ignored, as
    /// decoders do.
    fn webp(&self) -> Result<(u32, u32), Defect> {
        let end = self.skip(8, u32::from_le_bytes(self.array(4)?) as usize)?;
        let mut at = 12;
        let mut canvas = None;
        for _ in 0..MAX_PARTS {
            if at + 8 > end {
                break;
            }
            let [kind @ .., a, b, c, d]: [u8; 8] = self.array(at)?;
            let size = u32::from_le_bytes([a, b, c, d]) as usize;
            let body = at + 8;
            if size > end - body {
                return Err(self.broken());
            }
            match &kind {
                b"VP8 " => return Ok(canvas.unwrap_or(self.vp8(body)?)),
                b"VP8L" => return Ok(canvas.unwrap_or(self.vp8l(body)?)),
                b"ANMF" => return canvas.ok_or(self.broken()),
                b"VP8X" => {
                    let [w0, w1, w2, h0, h1, h2] = self.array(body + 4)?;
                    canvas = Some((
                        u32::from_le_bytes([w0, w1, w2, 0]) + 1,
                        u32::from_le_bytes([h0, h1, h2, 0]) + 1,
                    ));
                }
                _ => {}
            }
            at = body + size + size % 2;
        }
        Err(self.broken())
    }

    fn vp8(&self, at: usize) -> Result<(u32, u32), Defect> {
        let [_, _, _, sync @ .., w0, w1, h0, h1]: [u8; 10] = self.array(at)?;
        if sync != [0x9d, 0x01, 0x2a] {
            return Err(self.broken());
        }
        // The upper two bits are a hint for scaling.
        let side = |low, high| u32::from(u16::from_le_bytes([low, high]) & 0x3fff);
        Ok((side(w0, w1), side(h0, h1)))
    }

    fn vp8l(&self, at: usize) -> Result<(u32, u32), Defect> {
        let [signature, packed @ ..]: [u8; 5] = self.array(at)?;
        if signature != 0x2f {
            return Err(self.broken());
        }
        let packed = u32::from_le_bytes(packed);
        Ok(((packed & 0x3fff) + 1, ((packed >> 14) & 0x3fff) + 1))
    }

    /// Header and trailer. The blocks between them are 255 bytes long at most, too many to visit.
    fn gif(&self) -> Result<(u32, u32), Defect> {
        let [w0, w1, h0, h1] = self.array(6)?;
        let [last] = self.array(self.len - 1)?;
        if self.len < 14 || last != 0x3b {
            return Err(self.truncated());
        }
        Ok((u16::from_le_bytes([w0, w1]).into(), u16::from_le_bytes([h0, h1]).into()))
    }

    fn svg(&self, start: &[u8]) -> Result<(u32, u32), Defect> {
        let mut end = [0; 256];
        let end = &mut end[..self.len.min(256)];
        self.image.read_at(self.len - end.len(), end);
        let text_end = end.iter().rposition(|byte| !byte.is_ascii_whitespace() && *byte != 0);
        if !end[..text_end.map_or(0, |last| last + 1)].ends_with(b"</svg>") {
            return Err(self.truncated());
        }
        Ok(text::svg_size(start))
    }

    /// Boxes from `ftyp` to the end. The image's size is the largest `ispe`: the others belong to its tiles,
    /// thumbnail and alpha plane.
    fn avif(&self) -> Result<(u32, u32), Defect> {
        let mut at = 0;
        let mut dimensions = None;
        let mut has_pixels = false;
        for _ in 0..MAX_PARTS {
            if at == self.len {
                return if has_pixels { dimensions.ok_or(self.broken()) } else { Err(self.truncated()) };
            }
            let part = self.avif_box(at, self.len)?;
            match &part.kind {
                b"meta" => dimensions = self.largest_ispe(&part)?,
                b"mdat" => has_pixels = true,
                _ => {}
            }
            at = part.end;
        }
        Err(self.broken())
    }

    fn largest_ispe(&self, meta: &AvifBox) -> Result<Option<(u32, u32)>, Defect> {
        // `meta` starts with version and flags, unlike the other two.
        let Some(properties) = self.avif_child(meta.body + 4, meta.end, *b"iprp")? else { return Ok(None) };
        let Some(list) = self.avif_child(properties.body, properties.end, *b"ipco")? else { return Ok(None) };
        let mut largest = None;
        let mut at = list.body;
        while let Some(ispe) = self.avif_child(at, list.end, *b"ispe")? {
            let size = (self.u32_be(ispe.body + 4)?, self.u32_be(ispe.body + 8)?);
            let area = |(width, height)| u64::from(width) * u64::from(height);
            if largest.is_none_or(|before| area(size) > area(before)) {
                largest = Some(size);
            }
            at = ispe.end;
        }
        Ok(largest)
    }

    /// The first box of a kind between two places.
    fn avif_child(&self, mut at: usize, end: usize, kind: [u8; 4]) -> Result<Option<AvifBox>, Defect> {
        for _ in 0..MAX_PARTS {
            if at >= end {
                return Ok(None);
            }
            let part = self.avif_box(at, end)?;
            if part.kind == kind {
                return Ok(Some(part));
            }
            at = part.end;
        }
        Err(self.broken())
    }

    fn avif_box(&self, at: usize, limit: usize) -> Result<AvifBox, Defect> {
        let [a, b, c, d, kind @ ..]: [u8; 8] = self.array(at)?;
        let (header, size) = match u32::from_be_bytes([a, b, c, d]) {
            // To the end of the file.
            0 => (8, limit - at),
            1 => (16, usize::try_from(u64::from_be_bytes(self.array(at + 8)?)).unwrap_or(usize::MAX)),
            size => (8, size as usize),
        };
        if size < header {
            return Err(self.broken());
        }
        let end = self.skip(at, size)?;
        if end > limit {
            return Err(self.broken());
        }
        Ok(AvifBox { kind, body: at + header, end })
    }

    /// `at` plus `count`, if the image reaches that far.
    fn skip(&self, at: usize, count: usize) -> Result<usize, Defect> {
        at.checked_add(count).filter(|end| *end <= self.len).ok_or(self.truncated())
    }

    fn u32_be(&self, at: usize) -> Result<u32, Defect> {
        self.array(at).map(u32::from_be_bytes)
    }

    fn array<const N: usize>(&self, at: usize) -> Result<[u8; N], Defect> {
        let mut bytes = [0; N];
        if self.image.read_at(at, &mut bytes) { Ok(bytes) } else { Err(self.truncated()) }
    }

    fn truncated(&self) -> Defect {
        Defect::Truncated(self.format)
    }

    fn broken(&self) -> Defect {
        Defect::BrokenHeader(self.format)
    }
}

impl fmt::Display for Defect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("no bytes"),
            Self::NotAnImage(looks_like) => write!(f, "{looks_like}, not an image"),
            Self::Truncated(format) => write!(f, "a {} that ends too early", format.name()),
            Self::BrokenHeader(format) => write!(f, "a {} with a broken header", format.name()),
        }
    }
}

impl std::error::Error for Defect {}

#[cfg(test)]
mod tests;
