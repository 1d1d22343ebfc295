//! Makes the sandbox's pictures: art from a hash, laid over the input where there is one, with lettering.
//!
//! The same picture has the same bytes every time. Pure CPU work that blocks.

use image::{DynamicImage, GrayImage, RgbaImage, imageops::FilterType};
use sha2::{Digest as _, Sha256};

use super::{lettering, scene::Scene};
use crate::pb;

/// Everything a picture is made from, but its seed.
pub struct Picture {
    /// Written on it.
    pub prompt: String,
    /// Anything else that shall make a difference.
    pub flavour: String,
    /// Its exact size.
    pub size: pb::Dimensions,
    /// Without a sky.
    pub transparent: bool,
    /// What it is laid over.
    pub input: Option<Input>,
}

/// An image to change.
pub struct Input {
    /// In the size of the result.
    pub image: RgbaImage,
    /// How much of each pixel may change. Absent: all of it.
    pub selection: Option<GrayImage>,
    /// 0 keeps the input, 1 ignores it.
    pub strength: f32,
}

impl Picture {
    /// What all of it comes down to.
    pub fn hash(&self, seed: u64) -> [u8; 32] {
        let mut hash = Sha256::new();
        for text in [&self.prompt, &self.flavour] {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text);
        }
        hash.update(seed.to_le_bytes());
        hash.finalize().into()
    }

    /// The finished picture.
    pub fn render(&self, seed: u64) -> DynamicImage {
        let pb::Dimensions { width, height } = self.size;
        let mut canvas = self.art(seed, self.size, 1.0);
        if let Some(input) = &self.input {
            lay_over(&mut canvas, &input.image, 1.0 - input.strength);
        }
        lettering::label(&mut canvas);
        lettering::caption(&mut canvas, &self.prompt, &format!("seed {seed} - {width}x{height}"));
        if let Some(Input { image, selection: Some(selection), .. }) = &self.input {
            keep_unselected(&mut canvas, image, selection);
        }
        without_idle_alpha(canvas)
    }

    /// What the picture looks like while it is made, at a quarter of its size. `progress` is 0 to 1.
    pub fn preview(&self, seed: u64, progress: f32) -> DynamicImage {
        let side = |full: u32| (full / 4).max(1);
        let size = pb::Dimensions { width: side(self.size.width), height: side(self.size.height) };
        let mut canvas = self.art(seed, size, progress);
        lettering::label(&mut canvas);
        without_idle_alpha(canvas)
    }

    fn art(&self, seed: u64, size: pb::Dimensions, detail: f32) -> RgbaImage {
        let scene = Scene::new(&self.hash(seed));
        if self.transparent {
            scene.draw_without_sky(size.width, size.height, detail)
        } else {
            scene.draw(size.width, size.height, detail)
        }
    }
}

impl Input {
    /// An image of any size, brought to the size of the result.
    pub fn new(
        image: DynamicImage,
        selection: Option<GrayImage>,
        strength: f32,
        size: pb::Dimensions,
    ) -> Self {
        let pb::Dimensions { width, height } = size;
        // The same crop for both, or the mask would slip.
        let fill = |image: DynamicImage| {
            if (image.width(), image.height()) == (width, height) {
                return image;
            }
            image.resize_to_fill(width, height, FilterType::Triangle)
        };
        Self {
            image: fill(image).into_rgba8(),
            selection: selection.map(|selection| fill(selection.into()).into_luma8()),
            strength,
        }
    }
}

fn lay_over(canvas: &mut RgbaImage, image: &RgbaImage, share: f32) {
    for (below, above) in canvas.pixels_mut().zip(image.pixels()) {
        let [red, green, blue, alpha] = above.0.map(|channel| f32::from(channel) / 255.0);
        super::scene::blend(below, [red, green, blue], alpha * share);
    }
}

fn keep_unselected(canvas: &mut RgbaImage, image: &RgbaImage, selection: &GrayImage) {
    for ((new, old), selected) in canvas.pixels_mut().zip(image.pixels()).zip(selection.pixels()) {
        let selected = u32::from(selected.0[0]);
        for (new, old) in new.0.iter_mut().zip(old.0) {
            *new = ((u32::from(*new) * selected + u32::from(old) * (255 - selected) + 127) / 255) as u8;
        }
    }
}

/// Without its alpha channel if nothing shows through: a quarter less to encode and to send.
fn without_idle_alpha(canvas: RgbaImage) -> DynamicImage {
    let is_opaque = canvas.pixels().all(|pixel| pixel.0[3] == 255);
    let canvas = DynamicImage::from(canvas);
    if is_opaque { canvas.into_rgb8().into() } else { canvas }
}
