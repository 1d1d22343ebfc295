//! Half blocks: two pixels in a cell, one above the other.

use std::io::{self, Write};

use image::{Rgba, RgbaImage};

/// Writes an image with a column for each pixel and a line for two rows, over white.
pub fn write(out: &mut impl Write, image: &RgbaImage, true_colour: bool) -> io::Result<()> {
    for y in (0..image.height()).step_by(2) {
        for x in 0..image.width() {
            let upper = over_white(*image.get_pixel(x, y));
            let lower = image.get_pixel_checked(x, y + 1).map_or([255; 3], |pixel| over_white(*pixel));
            if true_colour {
                let ([r, g, b], [under_r, under_g, under_b]) = (upper, lower);
                write!(out, "\u{1b}[38;2;{r};{g};{b};48;2;{under_r};{under_g};{under_b}m▀")?;
            } else {
                write!(out, "\u{1b}[38;5;{};48;5;{}m▀", of_cube(upper), of_cube(lower))?;
            }
        }
        writeln!(out, "\u{1b}[0m")?;
    }
    Ok(())
}

fn over_white(Rgba([r, g, b, alpha]): Rgba<u8>) -> [u8; 3] {
    let alpha = u32::from(alpha);
    [r, g, b].map(|part| ((u32::from(part) * alpha + 255 * (255 - alpha)) / 255) as u8)
}

/// The nearest of the 216 colours of the cube that terminals with 256 colours have.
fn of_cube(colour: [u8; 3]) -> u8 {
    let step = |part: u8| match part {
        0..48 => 0,
        48..115 => 1,
        _ => (part - 35) / 40,
    };
    let [r, g, b] = colour.map(step);
    16 + 36 * r + 6 * g + b
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_rows_share_a_line() {
        let mut image = RgbaImage::from_pixel(1, 2, Rgba([255, 0, 0, 255]));
        image.put_pixel(0, 1, Rgba([0, 0, 255, 255]));
        let mut out = Vec::new();
        write(&mut out, &image, true).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "\u{1b}[38;2;255;0;0;48;2;0;0;255m▀\u{1b}[0m\n");
    }

    #[test]
    fn without_true_colour_the_nearest_of_the_cube_is_taken() {
        assert_eq!([[0; 3], [255; 3], [255, 0, 0], [95, 135, 175]].map(of_cube), [16, 231, 196, 67]);
        let mut out = Vec::new();
        write(&mut out, &RgbaImage::from_pixel(2, 3, Rgba([255, 0, 0, 255])), false).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!((text.lines().count(), text.matches('▀').count()), (2, 4));
        assert!(text.contains("38;5;196;48;5;231"), "the row below the last is white: {text}");
    }

    #[test]
    fn what_can_be_seen_through_is_white() {
        assert_eq!(over_white(Rgba([0, 0, 0, 0])), [255; 3]);
        assert_eq!(over_white(Rgba([10, 20, 30, 255])), [10, 20, 30]);
    }
}
