//! The size a model makes that comes nearest to the one asked for.

use crate::pb::{
    self, AspectRatio, Dimensions, FreeSize, Size, SizeRule, size::Size as Kind, size_rule::Rule,
};

/// Area that a ratio without pixels stands for.
const USUAL_PIXELS: f64 = 1024.0 * 1024.0;

/// How much a wrong area weighs against a wrong shape.
const AREA_WEIGHT: f64 = 0.2;

/// What to ask a model for.
#[derive(Debug, PartialEq)]
pub struct FittedSize {
    /// Sent to the worker; none leaves it to the model.
    pub size: Option<Size>,
    /// It is not what was asked for.
    pub adjusted: bool,
}

/// Fits a size to a rule.
pub fn fit(size: Option<Size>, rule: Option<&SizeRule>) -> FittedSize {
    let exact = |size| FittedSize { size, adjusted: false };
    let Some(wanted) = size.and_then(|size| size.size) else { return exact(None) };
    let Some(SizeRule { rule, auto }) = rule else {
        // The model has no sizes. Leaving it to the model is what `auto` means.
        return FittedSize { size: None, adjusted: !matches!(wanted, Kind::Auto(_)) };
    };
    let (ratio, pixels) = match wanted {
        Kind::Auto(_) => return exact(size.filter(|_| *auto)),
        Kind::Dimensions(d) => {
            (f64::from(d.width) / f64::from(d.height), f64::from(d.width) * f64::from(d.height))
        }
        Kind::AspectRatio(r) => (r.width / r.height, USUAL_PIXELS),
    };
    let fitted = match rule {
        None => return FittedSize { size: None, adjusted: true },
        Some(Rule::List(list)) => nearest_size(&list.sizes, ratio, pixels),
        Some(Rule::Ratios(list)) => nearest_ratio(&list.ratios, ratio),
        Some(Rule::Free(free)) => Some(within(free, ratio, pixels, wanted)),
    };
    let adjusted = match (wanted, fitted.and_then(|size| size.size)) {
        (Kind::Dimensions(wanted), Some(Kind::Dimensions(got))) => wanted != got,
        // A ratio is kept by pixels of that ratio, and pixels by their own ratio: 1024x1024 and 1:1.
        (Kind::AspectRatio(_), Some(Kind::Dimensions(d))) => {
            (f64::from(d.width) / f64::from(d.height) / ratio).ln().abs() > 0.02
        }
        (_, Some(Kind::AspectRatio(got))) => (got.width / got.height / ratio).ln().abs() > 0.02,
        _ => true,
    };
    FittedSize { size: fitted, adjusted }
}

fn nearest_size(sizes: &[Dimensions], ratio: f64, pixels: f64) -> Option<Size> {
    let score = |d: &Dimensions| {
        let (width, height) = (f64::from(d.width), f64::from(d.height));
        turned(width / height, ratio)
            + (width / height / ratio).ln().abs()
            + AREA_WEIGHT * (width * height / pixels).ln().abs()
    };
    let nearest = sizes.iter().min_by(|a, b| score(a).total_cmp(&score(b)))?;
    Some(Size::pixels(nearest.width, nearest.height))
}

fn nearest_ratio(ratios: &[AspectRatio], ratio: f64) -> Option<Size> {
    let score = |r: &AspectRatio| turned(r.width / r.height, ratio) + (r.width / r.height / ratio).ln().abs();
    let nearest = ratios.iter().min_by(|a, b| score(a).total_cmp(&score(b)))?;
    Some(Size { size: Some(Kind::AspectRatio(*nearest)) })
}

/// A portrait must not become a landscape, however near it is.
fn turned(candidate: f64, wanted: f64) -> f64 {
    if (candidate > 1.0 && wanted < 1.0) || (candidate < 1.0 && wanted > 1.0) { 1000.0 } else { 0.0 }
}

/// Scales and rounds until everything holds; the ratio gives way before the limits do.
fn within(free: &FreeSize, ratio: f64, pixels: f64, wanted: Kind) -> Size {
    let step = free.multiple_of.max(1);
    if let Kind::Dimensions(d) = wanted
        && allows(free, d)
    {
        return Size::pixels(d.width, d.height);
    }
    let max_ratio = if free.max_ratio > 0.0 { free.max_ratio } else { f64::INFINITY };
    let ratio = ratio.clamp(1.0 / max_ratio, max_ratio);
    let min_pixels = free.min_pixels as f64;
    let max_pixels = if free.max_pixels > 0 { free.max_pixels as f64 } else { f64::INFINITY };
    let pixels = pixels.clamp(min_pixels, max_pixels);
    let side = |ideal: f64| {
        let max_side = if free.max_side > 0 { free.max_side / step * step } else { u32::MAX / step * step };
        let min_side = free.min_side.div_ceil(step).max(1) * step;
        let rounded = ((ideal / f64::from(step)).round().clamp(1.0, 1e6) as u32).saturating_mul(step);
        rounded.clamp(min_side.min(max_side), max_side)
    };
    let mut d = Dimensions { width: side((pixels * ratio).sqrt()), height: side((pixels / ratio).sqrt()) };
    // Rounding may have crossed an area limit by a step.
    for _ in 0..8 {
        if allows(free, d) {
            break;
        }
        let area = u64::from(d.width) * u64::from(d.height);
        let longer_is_width = d.width >= d.height;
        let (longer, shorter) =
            if longer_is_width { (&mut d.width, &mut d.height) } else { (&mut d.height, &mut d.width) };
        if free.max_pixels > 0 && area > free.max_pixels {
            *longer = longer.saturating_sub(step).max(step);
        } else if area < free.min_pixels || f64::from(*longer) / f64::from(*shorter) > max_ratio {
            *shorter += step;
        }
    }
    Size::pixels(d.width, d.height)
}

/// Whether a size is within the limits.
pub fn allows(free: &FreeSize, d: pb::Dimensions) -> bool {
    let step = free.multiple_of.max(1);
    let area = u64::from(d.width) * u64::from(d.height);
    let (longer, shorter) = (d.width.max(d.height), d.width.min(d.height));
    d.width.is_multiple_of(step)
        && d.height.is_multiple_of(step)
        && shorter >= free.min_side
        && (free.max_side == 0 || longer <= free.max_side)
        && area >= free.min_pixels
        && (free.max_pixels == 0 || area <= free.max_pixels)
        && (free.max_ratio == 0.0 || f64::from(longer) <= f64::from(shorter) * free.max_ratio)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn list(sizes: &[(u32, u32)]) -> SizeRule {
        let sizes = sizes.iter().map(|&(width, height)| Dimensions { width, height }).collect();
        SizeRule { rule: Some(Rule::List(pb::SizeList { sizes })), auto: false }
    }

    fn fitted(width: u32, height: u32, rule: &SizeRule) -> (String, bool) {
        let fitted = fit(Some(Size::pixels(width, height)), Some(rule));
        (fitted.size.unwrap().text(), fitted.adjusted)
    }

    #[test]
    fn the_nearest_size_keeps_the_orientation() {
        let dalle3 = list(&[(1024, 1024), (1792, 1024), (1024, 1792)]);
        assert_eq!(fitted(1024, 1024, &dalle3), ("1024x1024".into(), false));
        assert_eq!(fitted(1000, 1000, &dalle3), ("1024x1024".into(), true));
        assert_eq!(fitted(1600, 900, &dalle3), ("1792x1024".into(), true));
        assert_eq!(fitted(900, 1600, &dalle3), ("1024x1792".into(), true));
        assert_eq!(fitted(256, 256, &dalle3), ("1024x1024".into(), true));
        let landscape_only = list(&[(1536, 640), (640, 1536)]);
        assert_eq!(fitted(1100, 1000, &landscape_only).0, "1536x640");
    }

    #[test]
    fn pixels_become_a_ratio_where_a_model_knows_only_ratios() {
        let ratios = [(16.0, 9.0), (1.0, 1.0), (9.0, 16.0)];
        let ratios = ratios.map(|(width, height)| AspectRatio { width, height }).to_vec();
        let rule = SizeRule { rule: Some(Rule::Ratios(pb::RatioList { ratios })), auto: false };
        assert_eq!(fitted(1024, 1024, &rule), ("1:1".into(), false));
        assert_eq!(fitted(1920, 1080, &rule), ("16:9".into(), false));
        assert_eq!(fitted(1024, 1536, &rule), ("9:16".into(), true));
    }

    #[test]
    fn auto_is_passed_on_where_the_model_has_it() {
        let auto = Some(Size { size: Some(Kind::Auto(true)) });
        let mut rule = list(&[(1, 1)]);
        assert_eq!(fit(auto, Some(&rule)), FittedSize { size: None, adjusted: false });
        rule.auto = true;
        assert_eq!(fit(auto, Some(&rule)), FittedSize { size: auto, adjusted: false });
    }

    proptest! {
        #[test]
        fn a_free_size_always_ends_within_its_limits(width in 1u32..16_384, height in 1u32..16_384) {
            // gpt-image-2, see openai.yaml
            let gpt = FreeSize {
                multiple_of: 16, min_side: 16, max_side: 3840, min_pixels: 655_360, max_pixels: 8_294_400, max_ratio: 3.0,
            };
            let sd = FreeSize { multiple_of: 64, min_side: 320, max_side: 1536, ..Default::default() };
            for free in [gpt, sd] {
                let rule = SizeRule { rule: Some(Rule::Free(free)), auto: false };
                let fitted = fit(Some(Size::pixels(width, height)), Some(&rule));
                let Some(Kind::Dimensions(d)) = fitted.size.unwrap().size else { panic!("pixels") };
                prop_assert!(allows(&free, d), "{width}x{height} -> {d}");
                let turned = (width > height && d.width < d.height) || (width < height && d.width > d.height);
                prop_assert!(!turned, "{width}x{height} -> {d}");
            }
        }
    }
}
