//! What an answer cost, as lines: what the provider reports, else what it counted, else what was made, at list price.
//!
//! Every amount is one multiplication and one division of what was counted: nothing is summed that was rounded.

use crate::{
    images::{Pieces, probe},
    pb::{
        self, CostLine, CostSource, Dimensions, GenerateDone, ImageRequest, Operation, Price, Quality,
        input_image::Source,
    },
    prices::MADE,
};

/// What a call is paid by, where one of these has a price; the rest comes on top.
const WHOLE: &[&str] = &["request", "image", "output_pixel", "step", "pixel_step"];

/// The lines for one successful call. What has no price is a line without an amount.
pub fn lines(
    provider: &str,
    request: &ImageRequest,
    prices: &[Price],
    done: &GenerateDone,
    attempt: u32,
) -> Vec<CostLine> {
    let bill = Bill { provider, request, prices, attempt };
    let images = done.images.len() as f64;
    if let Some(amount) = done.reported_cost_usd.filter(|amount| amount.is_finite() && *amount >= 0.0) {
        return vec![bill.line("image", images, Some(amount), CostSource::Reported)];
    }
    let mut counted = bill.counted(&done.usage.unwrap_or_default());
    if counted.iter().any(|line| line.amount_usd.is_some()) {
        counted.extend(bill.made(&["request"], &[]));
        return counted;
    }
    let sizes: Vec<_> = done.images.iter().map(|image| made_size(image).or(request.dimensions())).collect();
    let made = bill.made(MADE, &sizes);
    if made.iter().any(|line| WHOLE.contains(&line.item.as_str())) {
        return made;
    }
    let mut lines = vec![bill.line("image", images, None, CostSource::Unspecified)];
    lines.extend(made);
    lines
}

/// What a call's images cost at list price in USD, if that is known beforehand.
pub fn expected(request: &ImageRequest, prices: &[Price]) -> Option<f64> {
    estimate("", request, prices, 0).iter().map(|line| line.amount_usd).sum()
}

/// What lines come to, as far as their amounts are known, and whether one is not.
pub fn sum(lines: &[CostLine]) -> (Option<f64>, bool) {
    let amounts = || lines.iter().map(|line| line.amount_usd);
    let is_known = lines.is_empty() || amounts().any(|amount| amount.is_some());
    // A sum of nothing would be -0.
    let known = || amounts().flatten().fold(0.0, |sum, amount| sum + amount);
    (is_known.then(known), amounts().any(|amount| amount.is_none()))
}

/// The lines for a call that was billed but gave nothing: what was asked for, at list price.
pub fn estimate(provider: &str, request: &ImageRequest, prices: &[Price], attempt: u32) -> Vec<CostLine> {
    let images = vec![pb::Image::default(); request.wanted()];
    lines(provider, request, prices, &GenerateDone { images, ..Default::default() }, attempt)
}

/// One call, and what is charged for it.
struct Bill<'a> {
    provider: &'a str,
    request: &'a ImageRequest,
    prices: &'a [Price],
    attempt: u32,
}

impl<'a> Bill<'a> {
    fn line(&self, item: &str, quantity: f64, amount_usd: Option<f64>, source: CostSource) -> CostLine {
        CostLine {
            item: item.to_owned(),
            provider: self.provider.to_owned(),
            model: self.request.model.clone(),
            operation: self.request.operation,
            quantity,
            amount_usd,
            source: source.into(),
            attempt: self.attempt,
            size: self.request.size.map_or_else(String::new, |size| size.text()),
            quality: self.request.quality,
        }
    }

    /// The lines for what the provider counted.
    fn counted(&self, usage: &pb::Usage) -> Vec<CostLine> {
        let cached = |count: Option<u64>, of: Option<u64>, item: &str| {
            let is_priced = self.price(item, self.request.dimensions()).is_some();
            count.filter(|_| is_priced).unwrap_or_default().min(of.unwrap_or_default())
        };
        let text = cached(usage.cached_text_tokens, usage.input_text_tokens, "cached_text_token");
        let image = cached(usage.cached_image_tokens, usage.input_image_tokens, "cached_image_token");
        let tokens = [
            ("input_text_token", usage.input_text_tokens.unwrap_or_default() - text),
            ("cached_text_token", text),
            ("input_image_token", usage.input_image_tokens.unwrap_or_default() - image),
            ("cached_image_token", image),
            ("output_text_token", usage.output_text_tokens.unwrap_or_default()),
            ("output_image_token", usage.output_image_tokens.unwrap_or_default()),
        ];
        let tokens: Vec<CostLine> = tokens
            .into_iter()
            .filter(|(_, count)| *count > 0)
            .map(|(item, count)| self.counted_line(item, count as f64))
            .collect();
        // One kind of tokens without a price among others is not free. Where none has a price something else has.
        let is_by_tokens = tokens.iter().any(|line| line.amount_usd.is_some());
        let others = [
            ("megapixel", usage.megapixels.unwrap_or_default()),
            ("compute_second", usage.compute_ms.unwrap_or_default() as f64 / 1000.0),
            ("credit", usage.credits.unwrap_or_default()),
        ];
        let others = others.into_iter().filter(|(_, count)| count.is_finite() && *count > 0.0);
        let others = others.map(|(item, count)| self.counted_line(item, count));
        let others = others.filter(|line| line.amount_usd.is_some());
        tokens.into_iter().filter(|_| is_by_tokens).chain(others).collect()
    }

    fn counted_line(&self, item: &str, count: f64) -> CostLine {
        match self.price(item, self.request.dimensions()) {
            Some(price) => self.line(item, count, Some(amount(price, count)), CostSource::Tokens),
            None => self.line(item, count, None, CostSource::Unspecified),
        }
    }

    /// The lines for what was made, of some items: one for each price. Sizes are those of the images.
    fn made(&self, items: &[&str], sizes: &[Option<Dimensions>]) -> Vec<CostLine> {
        let mut all = Vec::new();
        for item in items {
            // A price, how much of it, and one of the sizes. None: nobody knows how much.
            let mut sums: Vec<(&Price, Option<f64>, Option<Dimensions>)> = Vec::new();
            if !self.prices.iter().any(|price| price.item == *item) {
                continue;
            }
            for part in self.parts(item, sizes) {
                let Some(price) = self.price(item, part.size) else { continue };
                let Some(quantity) = quantity(price, part.quantity) else { continue };
                match sums.iter_mut().find(|(other, ..)| std::ptr::eq(*other, price)) {
                    Some((_, sum, _)) => *sum = sum.zip(quantity).map(|(a, b)| a + b),
                    None => sums.push((price, quantity, part.size)),
                }
            }
            all.extend(sums.into_iter().map(|(price, quantity, size)| {
                let line = match quantity {
                    Some(count) => self.line(item, count, Some(amount(price, count)), CostSource::Table),
                    None => self.line(item, 0.0, None, CostSource::Unspecified),
                };
                let is_asked = self.request.dimensions().is_some() && size == self.request.dimensions();
                let size = size.filter(|_| !is_asked).map_or(line.size.clone(), |size| size.to_string());
                CostLine { size, ..line }
            }));
        }
        all
    }

    /// What an item counts: for the whole call, or for each image.
    fn parts(&self, item: &str, sizes: &[Option<Dimensions>]) -> Vec<Part> {
        let asked = self.request.dimensions();
        let whole = |quantity: f64| vec![Part { size: asked, quantity: Quantity::Known(quantity) }];
        let each = |count: &dyn Fn(Option<Dimensions>) -> Quantity| {
            sizes.iter().map(|size| Part { size: *size, quantity: count(*size) }).collect()
        };
        let known = |quantity: Option<f64>| quantity.map_or(Quantity::Unknown, Quantity::Known);
        let steps = self.request.steps.map(f64::from);
        match item {
            "request" => whole(1.0),
            "input_image" => whole(self.request.inputs.len() as f64),
            "input_pixel" => {
                let inputs = self.request.inputs.iter();
                inputs.map(|input| Part { size: asked, quantity: known(input_pixels(input)) }).collect()
            }
            "image" => each(&|_| Quantity::Known(1.0)),
            "output_pixel" => each(&|size| known(size.map(pixels))),
            "step" => each(&|_| Quantity::Steps { steps, times: Some(1.0) }),
            _ => each(&|size| Quantity::Steps { steps, times: size.map(pixels) }),
        }
    }

    /// The first price whose conditions all hold.
    fn price(&self, item: &str, made: Option<Dimensions>) -> Option<&'a Price> {
        let asked = self.request.size.map(|size| size.text()).unwrap_or_default();
        let made = made.map(|size| size.to_string());
        let is_pixels = self.request.dimensions().is_some();
        let has_size = |size: &str| match &made {
            // What was made counts; a ratio is something that can only be asked for.
            Some(made) => size == made || (!is_pixels && size == asked),
            None => size == asked,
        };
        // A model left to its own choice usually makes the middle one.
        let quality = match self.request.quality() {
            Quality::Unspecified => Quality::Medium,
            said => said,
        };
        let holds = |price: &&Price| {
            price.item == item
                && (price.size.is_empty() || has_size(&price.size))
                && (price.quality() == Quality::Unspecified || price.quality() == quality)
                && (price.operation() == Operation::Unspecified
                    || price.operation() == self.request.operation())
        };
        self.prices.iter().find(holds)
    }
}

/// Something that is counted.
struct Part {
    size: Option<Dimensions>,
    quantity: Quantity,
}

enum Quantity {
    Known(f64),
    Unknown,
    /// So often the steps that were asked for, or the usual ones.
    Steps {
        steps: Option<f64>,
        times: Option<f64>,
    },
}

/// How much of something a price counts; `Some(None)` if nobody knows, `None` if nothing.
fn quantity(price: &Price, quantity: Quantity) -> Option<Option<f64>> {
    let counted = match quantity {
        Quantity::Known(count) => count,
        Quantity::Unknown => return Some(None),
        Quantity::Steps { steps, times } => {
            let steps = steps.or((price.usual > 0.0).then_some(price.usual));
            let Some((steps, times)) = steps.zip(times) else { return Some(None) };
            steps * times
        }
    };
    let beyond = (counted - price.beyond).max(0.0);
    let rounded = match price.round_up_to {
        multiple if multiple > 0.0 => (beyond / multiple).ceil() * multiple,
        _ => beyond,
    };
    (rounded > 0.0).then_some(Some(rounded))
}

fn amount(price: &Price, quantity: f64) -> f64 {
    quantity * price.usd / if price.per > 0.0 { price.per } else { 1.0 }
}

fn made_size(image: &pb::Image) -> Option<Dimensions> {
    let (width, height) = (image.width, image.height);
    (width > 0 && height > 0).then_some(Dimensions { width, height })
}

fn pixels(size: Dimensions) -> f64 {
    f64::from(size.width) * f64::from(size.height)
}

/// Of an input whose bytes are here.
fn input_pixels(input: &pb::InputImage) -> Option<f64> {
    let Some(Source::Data(data)) = &input.source else { return None };
    let found = probe::probe(&Pieces::from(data.clone())).ok()?;
    Some(f64::from(found.width) * f64::from(found.height))
}

#[cfg(test)]
mod tests;
