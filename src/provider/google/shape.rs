//! A size as Google's models take it.

use crate::pb::{self, size::Size};

/// A ratio, and a tier where the size came in pixels.
pub(in crate::provider) struct Shape {
    /// `16:9`
    pub(in crate::provider) ratio: String,
    /// `2K`
    pub(in crate::provider) tier: Option<&'static str>,
}

impl Shape {
    /// The request's size. Pixels stand for the nearest of these ratios and a tier.
    pub(in crate::provider) fn of(request: &pb::ImageRequest, ratios: &[(u32, u32)]) -> Option<Self> {
        match request.size?.size? {
            Size::AspectRatio(ratio) => {
                Some(Self { ratio: format!("{}:{}", ratio.width, ratio.height), tier: None })
            }
            Size::Dimensions(d) => {
                let (width, height) = (f64::from(d.width), f64::from(d.height));
                let distance = |(w, h): (u32, u32)| (f64::from(w) / f64::from(h) * height / width).ln().abs();
                let (w, h) = ratios.iter().copied().min_by(|a, b| distance(*a).total_cmp(&distance(*b)))?;
                let tier = match (width * height).sqrt() {
                    side if side < 768.0 => "512",
                    side if side < 1536.0 => "1K",
                    side if side < 3072.0 => "2K",
                    _ => "4K",
                };
                Some(Self { ratio: format!("{w}:{h}"), tier: Some(tier) })
            }
            Size::Auto(_) => None,
        }
    }
}
