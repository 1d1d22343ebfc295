//! What an answer cost, as lines.

use crate::pb::{self, CostLine, CostSource, GenerateDone, ImageRequest, ModelCapability, Price, Quality};

/// The lines for one successful call: what the provider reported, else tokens and images at list price. An
/// unknown price is a line without an amount.
pub fn lines(
    provider: &str,
    request: &ImageRequest,
    capability: &ModelCapability,
    done: &GenerateDone,
    attempt: u32,
) -> Vec<CostLine> {
    let line = |item: &str, quantity: f64, amount_usd: Option<f64>, source: CostSource| CostLine {
        item: item.to_owned(),
        provider: provider.to_owned(),
        model: request.model.clone(),
        operation: request.operation,
        quantity,
        amount_usd,
        source: source.into(),
        attempt,
        size: request.size.map_or_else(String::new, |size| size.text()),
        quality: request.quality,
    };
    let images = done.images.len() as f64;
    if let Some(amount) = done.reported_cost_usd {
        return vec![line("image", images, Some(amount), CostSource::Reported)];
    }
    let counted: Vec<CostLine> = counted(done.usage.as_ref())
        .into_iter()
        .filter_map(|(item, quantity)| {
            let price = price(capability, item, request)?;
            Some(line(item, quantity, Some(quantity * price), CostSource::Tokens))
        })
        .collect();
    if !counted.is_empty() {
        return counted;
    }
    match price(capability, "image", request) {
        Some(price) => vec![line("image", images, Some(images * price), CostSource::Table)],
        None => vec![line("image", images, None, CostSource::Unspecified)],
    }
}

/// What a call's images cost at list price in USD, if that is known beforehand.
pub fn expected(request: &ImageRequest, capability: &ModelCapability) -> Option<f64> {
    Some(request.wanted() as f64 * price(capability, "image", request)?)
}

/// The lines for a call that was billed but gave nothing: its images at list price.
pub fn estimate(
    provider: &str,
    request: &ImageRequest,
    capability: &ModelCapability,
    attempt: u32,
) -> Vec<CostLine> {
    let images = vec![pb::Image::default(); request.wanted()];
    lines(provider, request, capability, &GenerateDone { images, ..Default::default() }, attempt)
}

fn counted(usage: Option<&pb::Usage>) -> Vec<(&'static str, f64)> {
    let Some(usage) = usage else { return Vec::new() };
    let tokens = [
        ("input_text_token", usage.input_text_tokens),
        ("input_image_token", usage.input_image_tokens),
        ("output_text_token", usage.output_text_tokens),
        ("output_image_token", usage.output_image_tokens),
    ];
    let tokens = tokens.into_iter().filter_map(|(item, count)| Some((item, count? as f64)));
    tokens.chain(usage.credits.map(|credits| ("credit", credits))).filter(|(_, count)| *count > 0.0).collect()
}

/// The first price whose conditions all hold, for one unit.
fn price(capability: &ModelCapability, item: &str, request: &ImageRequest) -> Option<f64> {
    let size = request.size.map(|size| size.text()).unwrap_or_default();
    // A model left to its own choice usually makes the middle one.
    let quality = if request.quality() == Quality::Unspecified { Quality::Medium } else { request.quality() };
    let holds = |price: &&Price| {
        price.item == item
            && (price.size.is_empty() || price.size == size)
            && (price.quality() == Quality::Unspecified || price.quality() == quality)
            && (price.operation() == pb::Operation::Unspecified || price.operation() == request.operation())
    };
    let price = capability.prices.iter().find(holds)?;
    Some(price.usd / if price.per > 0.0 { price.per } else { 1.0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn priced(prices: Vec<Price>) -> ModelCapability {
        ModelCapability { prices, ..Default::default() }
    }

    fn done(usage: Option<pb::Usage>) -> GenerateDone {
        GenerateDone { images: vec![pb::Image::default(); 2], usage, ..Default::default() }
    }

    #[test]
    fn an_unknown_price_is_not_zero() {
        let lines = lines("p", &ImageRequest::default(), &priced(vec![]), &done(None), 1);
        assert_eq!((lines[0].quantity, lines[0].amount_usd), (2.0, None));
    }

    #[test]
    fn tokens_count_before_the_list_price_of_an_image() {
        let prices = vec![
            Price { item: "output_image_token".into(), usd: 30.0, per: 1e6, ..Default::default() },
            Price { item: "image".into(), usd: 0.04, ..Default::default() },
        ];
        let capability = priced(prices);
        let usage = pb::Usage { output_image_tokens: Some(1000), ..Default::default() };
        let with_tokens = lines("p", &ImageRequest::default(), &capability, &done(Some(usage)), 1);
        assert!((with_tokens[0].amount_usd.unwrap() - 0.03).abs() < 1e-9);
        let without = lines("p", &ImageRequest::default(), &capability, &done(None), 1);
        assert!((without[0].amount_usd.unwrap() - 0.08).abs() < 1e-9);
    }

    #[test]
    fn what_the_provider_reports_wins() {
        let mut done = done(None);
        done.reported_cost_usd = Some(0.5);
        let lines = lines("p", &ImageRequest::default(), &priced(vec![]), &done, 3);
        assert_eq!((lines[0].amount_usd, lines[0].attempt), (Some(0.5), 3));
    }
}
