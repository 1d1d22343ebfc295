//! The picture behind the text: a low sun over ranges of hills, every number of it drawn from a hash.
//!
//! Written for speed: what can be said once per row or column is not said per pixel.

use std::f32::consts::TAU;

use image::{Rgba, RgbaImage};

/// Red, green, blue, 0 to 1.
pub type Colour = [f32; 3];

const RANGES: usize = 6;

/// A landscape of no particular size.
#[derive(Debug)]
pub struct Scene {
    sky: [Colour; 3],
    sun: Sun,
    /// From the farthest to the nearest.
    ranges: [Range; RANGES],
    haze: Colour,
}

/// Places and lengths are shares of the picture's height, or of its shorter side for the radius.
#[derive(Debug)]
struct Sun {
    x: f32,
    y: f32,
    radius: f32,
    colour: Colour,
}

/// A range of hills: three waves on top of each other.
#[derive(Debug)]
struct Range {
    base: f32,
    /// Height, frequency, phase.
    waves: [(f32, f32, f32); 3],
    colour: Colour,
}

/// Numbers between 0 and 1 out of a hash, byte by byte.
struct Dice<'a>(std::iter::Cycle<std::slice::Iter<'a, u8>>);

impl Scene {
    /// The landscape that a hash means.
    pub fn new(hash: &[u8; 32]) -> Self {
        let mut dice = Dice(hash.iter().cycle());
        // Blue over violet to red: evening skies. An olive zenith looks like a mistake.
        let hue = dice.between(190.0, 355.0);
        // Which way the colours turn from the zenith to the horizon, and how far.
        let turn = if dice.between(0.0, 1.0) < 0.5 { 1.0 } else { -1.0 } * dice.between(35.0, 95.0);
        let horizon = hsl(hue + turn, dice.between(0.55, 0.8), dice.between(0.74, 0.83));
        let sky = [
            hsl(hue, dice.between(0.45, 0.7), dice.between(0.22, 0.34)),
            hsl(hue + turn * 0.45, dice.between(0.38, 0.58), dice.between(0.48, 0.6)),
            horizon,
        ];
        let sun = Sun {
            x: dice.between(0.2, 0.8),
            y: dice.between(0.26, 0.44),
            radius: dice.between(0.07, 0.13),
            colour: hsl(hue + turn * 1.2, 0.95, 0.9),
        };
        let near = hsl(hue - turn * 0.3, dice.between(0.4, 0.6), dice.between(0.09, 0.14));
        let far = mix(horizon, sky[1], 0.55);
        let ranges = std::array::from_fn(|i| {
            let depth = (i + 1) as f32 / RANGES as f32;
            // Far ranges are jagged, near ones are long and smooth.
            let frequency = 2.6 - 1.5 * depth;
            let mut wave = |height: f32, times: f32| {
                (height, frequency * times * dice.between(0.75, 1.25), dice.between(0.0, TAU))
            };
            Range {
                base: 0.44 + 0.46 * depth,
                waves: [wave(0.045, 1.0), wave(0.026, 2.3), wave(0.008 * (1.4 - depth), 7.0)],
                colour: mix(far, near, depth.powf(0.8)),
            }
        });
        Self { sky, sun, ranges, haze: horizon }
    }

    /// The landscape at a size. `detail` is the share of its ranges that are drawn already, 0 to 1.
    pub fn draw(&self, width: u32, height: u32, detail: f32) -> RgbaImage {
        let mut canvas = RgbaImage::new(width, height);
        for (y, row) in canvas.rows_mut().enumerate() {
            let colour = bytes(self.sky_at(y as f32 / height as f32), 255);
            row.for_each(|pixel| *pixel = colour);
        }
        self.shine(&mut canvas);
        self.raise(&mut canvas, detail);
        canvas
    }

    /// The landscape without its sky.
    pub fn draw_without_sky(&self, width: u32, height: u32, detail: f32) -> RgbaImage {
        let mut canvas = RgbaImage::new(width, height);
        self.shine(&mut canvas);
        self.raise(&mut canvas, detail);
        canvas
    }

    fn sky_at(&self, y: f32) -> Colour {
        // The horizon's colour is reached where the farthest hills begin.
        let y = (y / 0.55).min(1.0) * 2.0;
        if y < 1.0 { mix(self.sky[0], self.sky[1], y) } else { mix(self.sky[1], self.sky[2], y - 1.0) }
    }

    fn shine(&self, canvas: &mut RgbaImage) {
        let (width, height) = (canvas.width() as f32, canvas.height() as f32);
        let radius = self.sun.radius * width.min(height);
        let glow = radius * 4.5;
        let (x, y) = (self.sun.x * width, self.sun.y * height);
        let columns = (x - glow).max(0.0) as u32..((x + glow).min(width) as u32);
        for row in (y - glow).max(0.0) as u32..((y + glow).min(height) as u32) {
            for column in columns.clone() {
                let (dx, dy) = (column as f32 + 0.5 - x, row as f32 + 0.5 - y);
                let distance = (dx * dx + dy * dy).sqrt();
                let disc = (radius - distance + 0.5).clamp(0.0, 1.0);
                let fade = (1.0 - distance / glow).max(0.0);
                let light = disc.max(fade * fade * 0.55);
                if light > 0.0 {
                    blend(canvas.get_pixel_mut(column, row), self.sun.colour, light);
                }
            }
        }
    }

    fn raise(&self, canvas: &mut RgbaImage, detail: f32) {
        let (width, height) = (canvas.width() as usize, canvas.height() as f32);
        let shown = (detail * RANGES as f32).ceil() as usize;
        for range in self.ranges.iter().take(shown) {
            let crest: Vec<f32> = (0..width).map(|x| range.crest(x as f32 / height) * height).collect();
            let top = crest.iter().copied().fold(f32::MAX, f32::min);
            let bottom = crest.iter().copied().fold(0.0, f32::max);
            let reach = 0.34 * height;
            let first = (top - 1.0).max(0.0) as usize;
            for (y, row) in canvas.rows_mut().enumerate().skip(first) {
                let y = y as f32 + 0.5;
                // Mist rises from the valley behind the next range.
                let mist = ((y - range.base * height) / reach).clamp(0.0, 1.0) * 0.5;
                let colour = mix(range.colour, self.haze, mist);
                let opaque = bytes(colour, 255);
                if y > bottom + 1.0 {
                    row.for_each(|pixel| *pixel = opaque);
                    continue;
                }
                for (pixel, crest) in row.zip(&crest) {
                    let covered = y - crest + 0.5;
                    if covered >= 1.0 {
                        *pixel = opaque;
                    } else if covered > 0.0 {
                        blend(pixel, colour, covered);
                    }
                }
            }
        }
    }
}

impl Range {
    fn crest(&self, x: f32) -> f32 {
        self.waves
            .iter()
            .fold(self.base, |y, (height, frequency, phase)| y + height * (x * frequency * TAU + phase).sin())
    }
}

impl Dice<'_> {
    fn between(&mut self, low: f32, high: f32) -> f32 {
        let byte = self.0.next().copied().unwrap_or_default();
        low + (high - low) * f32::from(byte) / 255.0
    }
}

/// Lays a colour over a pixel.
pub fn blend(pixel: &mut Rgba<u8>, colour: Colour, alpha: f32) {
    let below = f32::from(pixel.0[3]) / 255.0 * (1.0 - alpha);
    let total = alpha + below;
    if total <= 0.0 {
        return;
    }
    for (channel, colour) in pixel.0.iter_mut().zip(colour) {
        *channel = ((colour * 255.0 * alpha + f32::from(*channel) * below) / total + 0.5) as u8;
    }
    pixel.0[3] = (total * 255.0 + 0.5) as u8;
}

fn bytes(colour: Colour, alpha: u8) -> Rgba<u8> {
    let [red, green, blue] = colour.map(|channel| (channel * 255.0 + 0.5) as u8);
    Rgba([red, green, blue, alpha])
}

fn mix(a: Colour, b: Colour, share: f32) -> Colour {
    std::array::from_fn(|i| a[i] + (b[i] - a[i]) * share)
}

/// Hue in degrees, saturation and lightness 0 to 1.
fn hsl(hue: f32, saturation: f32, lightness: f32) -> Colour {
    let strength = saturation * lightness.min(1.0 - lightness);
    [0.0, 8.0, 4.0].map(|offset| {
        let k = (offset + hue / 30.0).rem_euclid(12.0);
        lightness - strength * (k - 3.0).min(9.0 - k).clamp(-1.0, 1.0)
    })
}
