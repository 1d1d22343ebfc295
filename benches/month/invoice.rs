//! What providers would send at the end of the month, computed in whole numbers from what each call was. It shares
//! nothing with `route::cost`: prices are decimal fractions here, and amounts are counted in 10^-18 dollars.

use std::collections::BTreeMap;

use imagegate::pb::{Dimensions, Operation, Price, Quality, Usage};

/// In one dollar.
pub const ATTOS: i128 = 1_000_000_000_000_000_000;

/// What a call was.
#[derive(Clone, Debug)]
pub struct Call {
    pub provider: String,
    pub model: String,
    pub prices: Vec<Price>,
    pub operation: Operation,
    pub quality: Quality,
    pub asked: Option<Dimensions>,
    pub made: Vec<Dimensions>,
    pub steps: Option<u32>,
    /// Pixels of each.
    pub inputs: Vec<u64>,
    pub usage: Usage,
    /// What the provider says that it charged, in 10^-10 dollars.
    pub reported_ticks: Option<u64>,
}

/// What was charged, by provider and by model.
#[derive(Debug, Default)]
pub struct Invoice {
    pub by_provider: BTreeMap<String, i128>,
    pub by_model: BTreeMap<String, i128>,
    pub total: i128,
    /// Calls, and those of unknown price.
    pub calls: u64,
    pub unpriced: u64,
}

impl Invoice {
    /// Adds a call.
    pub fn add(&mut self, call: &Call) {
        let (attos, is_known) = charge(call);
        *self.by_provider.entry(call.provider.clone()).or_default() += attos;
        *self.by_model.entry(call.model.clone()).or_default() += attos;
        self.total += attos;
        self.calls += 1;
        self.unpriced += u64::from(!is_known);
    }
}

/// Whole cents, as an invoice has them.
pub fn cents(attos: i128) -> i128 {
    (attos + ATTOS / 200).div_euclid(ATTOS / 100)
}

/// What a call was charged, and whether that is all of it.
fn charge(call: &Call) -> (i128, bool) {
    if let Some(ticks) = call.reported_ticks {
        return (i128::from(ticks) * 100_000_000, true);
    }
    let cached = |item: &str, count: Option<u64>, of: Option<u64>| {
        let count = count.unwrap_or_default().min(of.unwrap_or_default());
        if find(call, item, None).is_some() { count } else { 0 }
    };
    let usage = &call.usage;
    let text = cached("cached_text_token", usage.cached_text_tokens, usage.input_text_tokens);
    let tokens = [
        ("input_text_token", usage.input_text_tokens.unwrap_or_default() - text),
        ("cached_text_token", text),
        ("input_image_token", usage.input_image_tokens.unwrap_or_default()),
        ("output_text_token", usage.output_text_tokens.unwrap_or_default()),
        ("output_image_token", usage.output_image_tokens.unwrap_or_default()),
    ];
    // In thousandths of what is counted.
    let mut counted: Vec<(&str, i128)> = tokens
        .iter()
        .filter(|token| token.1 > 0)
        .map(|token| (token.0, i128::from(token.1) * 1000))
        .collect();
    let has_tokens = counted.iter().any(|(item, _)| find(call, item, None).is_some());
    if !has_tokens {
        counted.clear();
    }
    let thousandths = |number: f64| (number * 1000.0).round() as i128;
    let others = [
        ("credit", usage.credits.map(thousandths)),
        ("megapixel", usage.megapixels.map(thousandths)),
        ("compute_second", usage.compute_ms.map(i128::from)),
    ];
    counted.extend(
        others
            .iter()
            .filter_map(|(item, count)| Some((*item, (*count)?)))
            .filter(|(item, _)| find(call, item, None).is_some()),
    );
    if !counted.is_empty() {
        let mut sum = find(call, "request", None).map_or(0, |price| times(price, 1000));
        let mut is_known = true;
        for (item, count) in counted {
            match find(call, item, None) {
                Some(price) => sum += times(price, count),
                None => is_known = false,
            }
        }
        return (sum, is_known);
    }
    made(call)
}

/// What was made, image by image.
fn made(call: &Call) -> (i128, bool) {
    let (mut sum, mut is_known, mut is_whole) = (0, true, false);
    let mut add = |price: Option<&Price>, count: Option<i128>, whole: bool| match (price, count) {
        (Some(price), Some(count)) => {
            let beyond = (count - decimal(price.beyond, 1)).max(0);
            let unit = decimal(price.round_up_to, 1).max(1);
            let charged = (beyond + unit - 1) / unit * unit;
            sum += times(price, charged * 1000);
            is_whole |= whole && charged > 0;
        }
        (Some(_), None) => {
            is_known = false;
            is_whole |= whole;
        }
        (None, _) => {}
    };
    add(find(call, "request", None), Some(1), true);
    if !call.inputs.is_empty() {
        add(find(call, "input_image", None), Some(call.inputs.len() as i128), false);
    }
    for pixels in &call.inputs {
        add(find(call, "input_pixel", None), Some(i128::from(*pixels)), false);
    }
    for size in &call.made {
        let pixels = i128::from(size.width) * i128::from(size.height);
        let steps = |price: Option<&Price>| {
            let usual = price.map(|price| decimal(price.usual, 1)).filter(|usual| *usual > 0);
            call.steps.map(i128::from).or(usual)
        };
        add(find(call, "image", Some(*size)), Some(1), true);
        add(find(call, "output_pixel", Some(*size)), Some(pixels), true);
        let by_step = find(call, "step", Some(*size));
        add(by_step, steps(by_step), true);
        let by_both = find(call, "pixel_step", Some(*size));
        add(by_both, steps(by_both).map(|steps| steps * pixels), true);
    }
    (sum, is_known && is_whole)
}

/// The first line of the price list that is about this.
fn find<'a>(call: &'a Call, item: &str, made: Option<Dimensions>) -> Option<&'a Price> {
    let size = made.or(call.asked).map(|size| format!("{}x{}", size.width, size.height));
    let grade = if call.quality == Quality::Unspecified { Quality::Medium } else { call.quality };
    call.prices.iter().filter(|price| price.item == item).find(|price| {
        let is_for_size = price.size.is_empty() || size.as_deref() == Some(price.size.as_str());
        let is_for_quality = price.quality == 0 || price.quality == i32::from(grade);
        let is_for_operation = price.operation == 0 || price.operation == i32::from(call.operation);
        is_for_size && is_for_quality && is_for_operation
    })
}

/// A price times thousandths of what it counts. Nothing is rounded: every product here is a whole number.
fn times(price: &Price, thousandths: i128) -> i128 {
    let per = if price.per > 0.0 { decimal(price.per, 1) } else { 1 };
    let product = decimal(price.usd, 1_000_000_000_000) * thousandths * (ATTOS / 1_000_000_000_000_000);
    assert_eq!(product % per, 0, "{price:?} times {thousandths} thousandths is no whole number");
    product / per
}

/// A number as it was written, in parts of one.
fn decimal(number: f64, parts: i128) -> i128 {
    let text = number.to_string();
    let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
    let digits: i128 = format!("{whole}{fraction}").parse().expect("a number is written in digits");
    let scale = 10_i128.pow(fraction.len() as u32);
    assert_eq!(digits * parts % scale, 0, "{number} has more digits than are counted");
    digits * parts / scale
}
