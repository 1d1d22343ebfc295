//! Writes on the picture: what it is, and the prompt it was made from.
//!
//! Left to right, from DejaVu's glyphs only: other scripts come out as boxes, which a placeholder may.

use std::sync::LazyLock;

use ab_glyph::{Font as _, FontRef, PxScaleFont, ScaleFont as _, point};
use image::RgbaImage;

use super::scene::{Colour, blend};

/// What every picture says, so that nobody takes it for a model's work.
const LABEL: &str = "imagegate sandbox - placeholder";

/// More would not be readable, and laying out a book takes time.
const MAX_PROMPT_CHARS: usize = 600;

/// Pixels; smaller letters cannot be read.
const MIN_LETTER: f32 = 9.0;

const WHITE: Colour = [1.0; 3];
const SHADE: Colour = [0.04, 0.05, 0.09];

type Letters = PxScaleFont<&'static FontRef<'static>>;

/// A filled rectangle with round corners, in pixels.
struct Panel {
    x: f32,
    y: f32,
    width: f32,
    height: f32,
    radius: f32,
}

static REGULAR: LazyLock<FontRef<'static>> =
    LazyLock::new(|| FontRef::try_from_slice(dejavu::sans::regular()).expect("the embedded font is whole"));
static BOLD: LazyLock<FontRef<'static>> =
    LazyLock::new(|| FontRef::try_from_slice(dejavu::sans::bold()).expect("the embedded font is whole"));

/// The label at the top.
pub fn label(canvas: &mut RgbaImage) {
    let (width, side) = (canvas.width() as f32, shorter_side(canvas));
    let margin = side * 0.04;
    let wanted = (side * 0.026).max(11.0);
    // As large as fits with its padding of one letter on both sides.
    let room = width - 2.0 * margin;
    let size = wanted.min(wanted * room / (advance(&BOLD.as_scaled(wanted), LABEL) + 2.0 * wanted));
    let letters = BOLD.as_scaled(size);
    let height = size * 2.0;
    let panel = Panel {
        x: margin,
        y: margin,
        width: advance(&letters, LABEL) + 2.0 * size,
        height,
        radius: height / 2.0,
    };
    panel.fill(canvas, 0.62);
    write(
        canvas,
        &letters,
        LABEL,
        margin + size,
        margin + (height + letters.ascent() + letters.descent()) / 2.0,
        1.0,
    );
}

/// The prompt at the bottom, with a smaller line below. Nothing on a picture that is too small for it.
pub fn caption(canvas: &mut RgbaImage, prompt: &str, footnote: &str) {
    let (width, height, side) = (canvas.width() as f32, canvas.height() as f32, shorter_side(canvas));
    let margin = side * 0.04;
    let padding = side * 0.035;
    let room = width - 2.0 * (margin + padding);
    let words: String = prompt.chars().take(MAX_PROMPT_CHARS).collect();
    let smallest = (side * 0.024).max(MIN_LETTER);
    let mut size = (side * 0.052).max(MIN_LETTER);
    let tallest = height * 0.4;
    let (letters, mut lines) = loop {
        let letters = REGULAR.as_scaled(size);
        let lines = wrap(&letters, &words, room);
        if lines.len() as f32 * size * 1.3 <= tallest || size <= smallest {
            break (letters, lines);
        }
        size = (size * 0.9).max(smallest);
    };
    let line_height = size * 1.3;
    let fitting = (tallest / line_height) as usize;
    if fitting == 0 || room < size * 4.0 {
        return;
    }
    let is_cut = lines.len() > fitting || prompt.chars().nth(MAX_PROMPT_CHARS).is_some();
    lines.truncate(fitting);
    if let Some(last) = lines.last_mut().filter(|_| is_cut) {
        while !last.is_empty() && advance(&letters, last) + size > room {
            last.pop();
        }
        last.push('…');
    }
    let small = REGULAR.as_scaled((side * 0.021).clamp(MIN_LETTER, size));
    let small_height = small.scale().y * 1.6;
    let text_height = lines.len() as f32 * line_height + small_height;
    let panel = Panel {
        x: margin,
        y: height - margin - 2.0 * padding - text_height,
        width: width - 2.0 * margin,
        height: text_height + 2.0 * padding,
        radius: padding * 0.8,
    };
    panel.fill(canvas, 0.56);
    let mut baseline = panel.y + padding + size * 0.95;
    for line in &lines {
        write(canvas, &letters, line, margin + padding, baseline, 1.0);
        baseline += line_height;
    }
    let baseline = panel.y + panel.height - padding;
    write(canvas, &small, footnote, margin + padding, baseline, 0.72);
}

/// Lines of whole words, as far as words fit into a line.
fn wrap(letters: &Letters, text: &str, room: f32) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    let space = advance(letters, " ");
    let mut used = 0.0;
    for word in text.split_whitespace() {
        let wide = advance(letters, word);
        if !line.is_empty() && used + space + wide > room {
            lines.push(std::mem::take(&mut line));
            used = 0.0;
        }
        if !line.is_empty() {
            line.push(' ');
            used += space;
        }
        if used + wide <= room {
            line.push_str(word);
            used += wide;
            continue;
        }
        for letter in word.chars() {
            let wide = letters.h_advance(letters.glyph_id(letter));
            if used + wide > room && !line.is_empty() {
                lines.push(std::mem::take(&mut line));
                used = 0.0;
            }
            line.push(letter);
            used += wide;
        }
    }
    if !line.is_empty() {
        lines.push(line);
    }
    lines
}

fn advance(letters: &Letters, text: &str) -> f32 {
    text.chars().map(|letter| letters.h_advance(letters.glyph_id(letter))).sum()
}

fn write(canvas: &mut RgbaImage, letters: &Letters, text: &str, mut x: f32, baseline: f32, alpha: f32) {
    for letter in text.chars() {
        let mut glyph = letters.scaled_glyph(letter);
        glyph.position = point(x, baseline);
        x += letters.h_advance(glyph.id);
        let Some(outline) = letters.outline_glyph(glyph) else { continue };
        let corner = outline.px_bounds().min;
        outline.draw(|dx, dy, coverage| {
            let (x, y) = (corner.x + dx as f32, corner.y + dy as f32);
            if x < 0.0 || y < 0.0 {
                return;
            }
            if let Some(pixel) = canvas.get_pixel_mut_checked(x as u32, y as u32) {
                blend(pixel, WHITE, coverage.clamp(0.0, 1.0) * alpha);
            }
        });
    }
}

fn shorter_side(canvas: &RgbaImage) -> f32 {
    canvas.width().min(canvas.height()) as f32
}

impl Panel {
    fn fill(&self, canvas: &mut RgbaImage, alpha: f32) {
        let half = (self.width / 2.0, self.height / 2.0);
        let radius = self.radius.min(half.0).min(half.1);
        let centre = (self.x + half.0, self.y + half.1);
        let rows = self.y.max(0.0) as u32..canvas.height().min((self.y + self.height + 1.0) as u32);
        let columns = self.x.max(0.0) as u32..canvas.width().min((self.x + self.width + 1.0) as u32);
        for y in rows {
            let dy = ((y as f32 + 0.5 - centre.1).abs() - half.1 + radius).max(0.0);
            for x in columns.clone() {
                let dx = ((x as f32 + 0.5 - centre.0).abs() - half.0 + radius).max(0.0);
                let outside = if dx > 0.0 && dy > 0.0 { (dx * dx + dy * dy).sqrt() } else { dx.max(dy) };
                let inside = (radius - outside + 0.5).clamp(0.0, 1.0);
                if inside > 0.0 {
                    blend(canvas.get_pixel_mut(x, y), SHADE, inside * alpha);
                }
            }
        }
    }
}
