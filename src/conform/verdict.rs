//! What an answer is worth: as many images as were asked for, whole, of the format and size that were asked for.

use super::{
    answer::{Answer, Fault},
    check::Check,
};
use crate::{
    images::{Pieces, convert, probe},
    pb::{self, FinishReason, ImageFormat, ImageRequest, ModelCapability, size::Size},
    prices::MADE,
};

/// How far an image's ratio may be from the one asked for: models round their sides, 21:9 is 1536x640 at some.
const RATIO_SLACK: f64 = 0.06;

/// Everything that is wrong with an answer.
pub fn faults(answer: &Answer, request: &ImageRequest, model: &ModelCapability) -> Vec<Fault> {
    // Images of a broken stream say nothing of their own.
    let Some(done) = answer.done.as_ref().filter(|_| answer.faults.is_empty()) else {
        return answer.faults.clone();
    };
    let mut faults = Vec::new();
    let (given, wanted) = (done.images.len(), request.wanted());
    if given != wanted {
        faults.push((Check::Count, format!("{given} images of {wanted}")));
    }
    for (i, (image, pieces)) in done.images.iter().zip(&answer.images).enumerate() {
        let found = of_image(image, pieces, request, model);
        faults.extend(found.into_iter().map(|(check, what)| (check, format!("image {i}: {what}"))));
    }
    if let (Some(asked), Some(said)) = (request.seed, done.images.first().and_then(|image| image.seed))
        && asked != said
    {
        faults.push((Check::Parameters, format!("`done` says that the seed was {said}")));
    }
    faults.extend(of_previews(&answer.previews, request));
    faults.extend(of_usage(done, model).map(|what| (Check::Usage, what)));
    if let Some(cost) = done.reported_cost_usd.filter(|cost| !cost.is_finite() || *cost < 0.0) {
        faults.push((Check::Cost, format!("reported_cost_usd is {cost}")));
    }
    faults
}

fn of_image(
    image: &pb::Image,
    pieces: &Pieces,
    request: &ImageRequest,
    model: &ModelCapability,
) -> Vec<Fault> {
    let reason = image.finish_reason();
    if matches!(reason, FinishReason::ContentFiltered | FinishReason::Error) {
        let check = if pieces.is_empty() { Check::Count } else { Check::Images };
        return vec![(check, format!("{} with {} bytes", reason.as_str_name(), pieces.len()))];
    }
    let found = match probe::probe(pieces) {
        Ok(found) => found,
        Err(defect) => return vec![(Check::Images, defect.to_string())],
    };
    let mut faults = Vec::new();
    if matches!(found.format, ImageFormat::Png | ImageFormat::Jpeg | ImageFormat::Webp)
        && let Err(damage) = convert::decode(&pieces.clone().into_bytes())
    {
        faults.push((Check::Images, damage));
    }
    let is = pb::Dimensions { width: found.width, height: found.height };
    let said = pb::Dimensions { width: image.width, height: image.height };
    if (said.width > 0 || said.height > 0) && said != is {
        faults.push((Check::Images, format!("`done` says {said}, it is {is}")));
    }
    if image.format() != ImageFormat::Unspecified && image.format() != found.format {
        let (said, is) = (image.format().name(), found.format.name());
        faults.push((Check::Images, format!("`done` says {said}, it is {is}")));
    }
    let promised = match request.wanted_format() {
        ImageFormat::Unspecified => {
            model.formats.first().and_then(|number| ImageFormat::try_from(*number).ok())
        }
        asked => Some(asked),
    };
    if let Some(promised) = promised.filter(|promised| *promised != found.format) {
        faults.push((Check::Format, format!("it is {}, not {}", found.format.name(), promised.name())));
    }
    // Drawings have no pixels.
    if found.format != ImageFormat::Svg && !has_size(is, request.size) {
        faults.push((Check::Size, format!("it is {is}, not {}", request.size.unwrap_or_default().text())));
    }
    faults
}

fn has_size(is: pb::Dimensions, asked: Option<pb::Size>) -> bool {
    match asked.and_then(|size| size.size) {
        Some(Size::Dimensions(asked)) => is == asked,
        Some(Size::AspectRatio(asked)) => {
            let ratio = f64::from(is.width) / f64::from(is.height);
            (ratio / (asked.width / asked.height)).ln().abs() <= RATIO_SLACK
        }
        Some(Size::Auto(_)) | None => true,
    }
}

fn of_previews(previews: &[pb::PartialImage], request: &ImageRequest) -> Option<Fault> {
    let wanted = request.partial_images.unwrap_or(0) as usize * request.wanted();
    if previews.len() > wanted {
        return Some((Check::Progress, format!("{} previews of {wanted}", previews.len())));
    }
    if let Some(preview) = previews.iter().find(|preview| preview.image_index as usize >= request.wanted()) {
        return Some((Check::Progress, format!("a preview is of image {}", preview.image_index)));
    }
    let defect = previews.iter().find_map(|preview| probe::probe(&preview.data.clone().into()).err())?;
    Some((Check::Progress, format!("a preview is no image: {defect}")))
}

fn of_usage(done: &pb::GenerateDone, model: &ModelCapability) -> Option<String> {
    let usage = done.usage.unwrap_or_default();
    for (name, amount) in [("megapixels", usage.megapixels), ("credits", usage.credits)] {
        if let Some(amount) = amount.filter(|amount| !amount.is_finite() || *amount < 0.0) {
            return Some(format!("{name} is {amount}"));
        }
    }
    let has_price = |item: &str| model.prices.iter().any(|price| price.item == item);
    if done.reported_cost_usd.is_some() || model.prices.is_empty() || MADE.iter().any(|item| has_price(item))
    {
        return None;
    }
    let counted = [
        ("input_text_token", usage.input_text_tokens.is_some()),
        ("input_image_token", usage.input_image_tokens.is_some()),
        ("output_text_token", usage.output_text_tokens.is_some()),
        ("output_image_token", usage.output_image_tokens.is_some()),
        ("megapixel", usage.megapixels.is_some()),
        ("compute_second", usage.compute_ms.is_some()),
        ("credit", usage.credits.is_some()),
    ];
    let is_counted = counted.iter().any(|(item, is_counted)| *is_counted && has_price(item));
    (!is_counted).then(|| "nothing is counted that the record has a price for".to_owned())
}

#[cfg(test)]
mod tests {
    use futures::stream;
    use image::RgbImage;

    use super::*;
    use crate::pb::generate_response::Event;

    fn png(width: u32, height: u32) -> Vec<u8> {
        convert::encode(&RgbImage::new(width, height).into(), ImageFormat::Png, None).unwrap().to_vec()
    }

    fn request() -> ImageRequest {
        ImageRequest { n: Some(1), size: Some(pb::Size::pixels(16, 8)), ..Default::default() }
    }

    fn model() -> ModelCapability {
        ModelCapability { formats: vec![ImageFormat::Png.into()], ..Default::default() }
    }

    async fn found(
        image: Vec<u8>,
        done: pb::GenerateDone,
        model: &ModelCapability,
    ) -> Vec<(&'static str, String)> {
        let chunk = pb::ImageChunk { image_index: 0, data: image.into() };
        let events = [Event::ImageChunk(chunk), Event::Done(done)];
        let events = events.map(|event| Ok(pb::GenerateResponse { event: Some(event) }));
        let answer = Answer::read(stream::iter(events), 1).await.unwrap();
        faults(&answer, &request(), model).into_iter().map(|(check, what)| (check.id(), what)).collect()
    }

    fn done(image: pb::Image) -> pb::GenerateDone {
        pb::GenerateDone { images: vec![image], ..Default::default() }
    }

    #[tokio::test]
    async fn a_good_answer_has_no_faults() {
        let image = pb::Image { width: 16, height: 8, format: ImageFormat::Png.into(), ..Default::default() };
        assert_eq!(found(png(16, 8), done(image), &model()).await, []);
    }

    #[tokio::test]
    async fn each_fault_is_named_under_its_check() {
        let plain = || done(pb::Image::default());
        let withheld =
            pb::Image { finish_reason: FinishReason::ContentFiltered.into(), ..Default::default() };
        let lying = pb::Image { width: 8, height: 16, ..Default::default() };
        let per_token = pb::Price { item: "output_image_token".into(), ..Default::default() };
        let mut damaged = png(16, 8);
        let middle = damaged.len() / 2;
        damaged[middle] ^= 0xff;
        let jpeg_only = ModelCapability { formats: vec![ImageFormat::Jpeg.into()], ..Default::default() };
        let by_token = ModelCapability { prices: vec![per_token], ..model() };
        let cases = [
            (png(8, 16), plain(), model(), "size"),
            (png(16, 8), plain(), jpeg_only, "format"),
            (png(16, 8)[..40].to_vec(), plain(), model(), "images"),
            (damaged, plain(), model(), "images"),
            (png(16, 8), done(lying), model(), "images"),
            (png(16, 8), done(withheld), model(), "images"),
            (png(16, 8), pb::GenerateDone::default(), model(), "count"),
            (png(16, 8), plain(), by_token, "usage"),
            (png(16, 8), pb::GenerateDone { reported_cost_usd: Some(-0.1), ..plain() }, model(), "cost"),
            (
                png(16, 8),
                pb::GenerateDone {
                    usage: Some(pb::Usage { credits: Some(f64::NAN), ..Default::default() }),
                    ..plain()
                },
                model(),
                "usage",
            ),
        ];
        for (image, done, model, id) in cases {
            let found = found(image, done, &model).await;
            assert!(found.len() == 1 && found[0].0 == id, "{id}: {found:?}");
        }
    }

    #[test]
    fn ratios_may_be_rounded_but_not_turned() {
        let ratio = |width, height| {
            Some(pb::Size { size: Some(Size::AspectRatio(pb::AspectRatio { width, height })) })
        };
        assert!(has_size(pb::Dimensions { width: 1536, height: 640 }, ratio(21.0, 9.0)));
        assert!(!has_size(pb::Dimensions { width: 640, height: 1536 }, ratio(21.0, 9.0)));
        assert!(!has_size(pb::Dimensions { width: 1024, height: 1024 }, ratio(4.0, 3.0)));
    }
}
