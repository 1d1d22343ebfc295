//! Images in the terminal, in the best way it knows.

mod blocks;
mod detect;
mod encode;
mod fit;

use std::io::{self, IsTerminal as _, Write, stdout};

use clap::ValueEnum;
use image::{DynamicImage, imageops::FilterType};

use self::fit::Room;
use crate::{config, images::convert};

/// How an image is shown in the terminal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum PreviewMode {
    /// The best that the terminal is known for; nothing with NO_COLOR
    #[default]
    Auto,
    /// kitty's graphics protocol
    Kitty,
    /// iTerm2's inline images
    Iterm,
    /// Sixel graphics
    Sixel,
    /// Half blocks in colours
    Blocks,
    /// Nothing
    Off,
}

/// What a terminal is told to show an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Kitty,
    Iterm,
    Sixel,
    Blocks { true_colour: bool },
}

/// Lines of a small preview.
const SMALL_ROWS: u16 = 6;

/// Shows images on standard output, one below the other, and previews of an image in its place.
#[derive(Debug)]
pub struct Preview {
    protocol: Protocol,
    room: Room,
    /// Lines of the preview that the next image replaces.
    to_replace: u16,
}

impl Preview {
    /// Where standard output is a terminal that can show something, and somebody wants it to.
    pub fn new(mode: PreviewMode) -> Option<Self> {
        if !stdout().is_terminal() {
            return None;
        }
        let protocol = detect::protocol(mode, config::environment)?;
        Some(Self { protocol, room: Room::of_terminal(), to_replace: 0 })
    }

    /// The same in a few lines, beside other things.
    pub fn small(mode: PreviewMode) -> Option<Self> {
        let mut preview = Self::new(mode)?;
        preview.room.rows = preview.room.rows.min(SMALL_ROWS * 2);
        Some(preview)
    }

    /// Shows an image that is not finished: the next one replaces it. What cannot be decoded is not shown.
    pub fn partial(&mut self, image: &[u8]) -> io::Result<()> {
        self.to_replace = self.draw(&mut stdout(), image)?.unwrap_or(self.to_replace);
        Ok(())
    }

    /// Shows an image to stay. What cannot be decoded, such as SVG, is not shown.
    pub fn finished(&mut self, image: &[u8]) -> io::Result<()> {
        self.draw(&mut stdout(), image)?;
        self.to_replace = 0;
        Ok(())
    }

    /// Draws an image over the one to be replaced, and says how many lines it takes.
    fn draw(&self, out: &mut impl Write, image: &[u8]) -> io::Result<Option<u16>> {
        let Ok(picture) = convert::decode(image) else { return Ok(None) };
        let (columns, rows) = self.room.fit(picture.width(), picture.height());
        if self.to_replace > 0 {
            // Up to its first line, and away with all below.
            write!(out, "\u{1b}[{}A\r\u{1b}[J", self.to_replace)?;
        }
        match self.protocol {
            Protocol::Kitty => encode::kitty(out, &self.pixels(&picture, columns, rows), columns, rows)?,
            Protocol::Iterm => encode::iterm(out, &self.pixels(&picture, columns, rows), columns, rows)?,
            Protocol::Sixel => encode::sixel(out, &self.pixels(&picture, columns, rows))?,
            Protocol::Blocks { true_colour } => {
                let small = picture.resize_exact(columns.into(), u32::from(rows) * 2, FilterType::Triangle);
                blocks::write(out, &small.to_rgba8(), true_colour)?;
            }
        }
        out.flush()?;
        Ok(Some(rows))
    }

    /// The picture in the pixels of so many cells.
    fn pixels(&self, picture: &DynamicImage, columns: u16, rows: u16) -> DynamicImage {
        let (width, height) = self.room.pixels(columns, rows);
        picture.resize(width, height, FilterType::Triangle)
    }
}

#[cfg(test)]
mod tests {
    use image::{Rgb, RgbImage};

    use super::*;
    use crate::pb::ImageFormat;

    #[test]
    fn a_finished_image_takes_the_place_of_its_preview() {
        let image = DynamicImage::from(RgbImage::from_pixel(32, 32, Rgb([200, 30, 60])));
        let png = convert::encode(&image, ImageFormat::Png, None).unwrap();
        let mut preview = Preview {
            protocol: Protocol::Blocks { true_colour: true },
            room: Room { columns: 80, rows: 24, cell: (8, 16) },
            to_replace: 0,
        };
        let mut out = Vec::new();
        let rows = preview.draw(&mut out, &png).unwrap().unwrap();
        assert!(!String::from_utf8_lossy(&out).contains("\u{1b}[J"));
        preview.to_replace = rows;
        out.clear();
        preview.draw(&mut out, &png).unwrap();
        assert!(String::from_utf8_lossy(&out).starts_with(&format!("\u{1b}[{rows}A\r\u{1b}[J")));
        assert_eq!(preview.draw(&mut out, b"<svg/>").unwrap(), None);
    }
}
