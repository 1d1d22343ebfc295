use super::*;
use crate::prices::read;

/// The prices of one model, as a book has them.
fn prices(yaml: &str) -> Vec<Price> {
    let book = format!("providers: {{p: {{models: [{{ids: [m], prices: {yaml}}}]}}}}");
    read::text(&book).unwrap().prices("p", "m").unwrap().to_vec()
}

fn made(sizes: &[(u32, u32)]) -> GenerateDone {
    let image =
        |(width, height): &(u32, u32)| pb::Image { width: *width, height: *height, ..Default::default() };
    GenerateDone { images: sizes.iter().map(image).collect(), ..Default::default() }
}

fn counting(usage: pb::Usage) -> GenerateDone {
    GenerateDone { usage: Some(usage), ..made(&[(1024, 1024); 2]) }
}

/// Item, quantity, and amount in billionths.
fn bill(request: &ImageRequest, prices: &[Price], done: &GenerateDone) -> Vec<(String, f64, Option<i64>)> {
    let nanos = |usd: f64| (usd * 1e9).round() as i64;
    let lines = lines("p", request, prices, done, 1);
    lines.into_iter().map(|line| (line.item, line.quantity, line.amount_usd.map(nanos))).collect()
}

fn item(name: &str, quantity: f64, nanos: i64) -> (String, f64, Option<i64>) {
    (name.to_owned(), quantity, Some(nanos))
}

fn unknown(name: &str, quantity: f64) -> (String, f64, Option<i64>) {
    (name.to_owned(), quantity, None)
}

#[test]
fn an_unknown_price_is_not_zero() {
    let plain = ImageRequest::default();
    assert_eq!(bill(&plain, &[], &made(&[(8, 8); 2])), [unknown("image", 2.0)]);
    let free = prices("[{item: image, usd: 0}]");
    assert_eq!(bill(&plain, &free, &made(&[(8, 8); 2])), [item("image", 2.0, 0)]);
    let of_another_size = prices("[{item: image, usd: 1, size: 512x512}]");
    assert_eq!(bill(&plain, &of_another_size, &made(&[(8, 8)])), [unknown("image", 1.0)]);
}

#[test]
fn tokens_count_before_the_list_price_of_an_image() {
    let prices = prices("[{item: output_image_token, usd: 30, per: 1000000}, {item: image, usd: 0.04}]");
    let plain = ImageRequest::default();
    let done = counting(pb::Usage { output_image_tokens: Some(1000), ..Default::default() });
    assert_eq!(bill(&plain, &prices, &done), [item("output_image_token", 1000.0, 30_000_000)]);
    assert_eq!(bill(&plain, &prices, &made(&[(8, 8); 2])), [item("image", 2.0, 80_000_000)]);
}

#[test]
fn cached_tokens_are_charged_at_their_own_price_and_only_once() {
    let prices = prices(
        "[{item: input_text_token, usd: 5, per: 1000000}, {item: cached_text_token, usd: 1.25, per: 1000000}, \
         {item: input_image_token, usd: 8, per: 1000000}]",
    );
    let usage = pb::Usage {
        input_text_tokens: Some(100),
        cached_text_tokens: Some(60),
        input_image_tokens: Some(10),
        // Without a price of their own they cost what others do.
        cached_image_tokens: Some(10),
        ..Default::default()
    };
    assert_eq!(
        bill(&ImageRequest::default(), &prices, &counting(usage)),
        [
            item("input_text_token", 40.0, 200_000),
            item("cached_text_token", 60.0, 75_000),
            item("input_image_token", 10.0, 80_000)
        ]
    );
}

#[test]
fn tokens_without_a_price_among_others_are_unknown() {
    let prices = prices("[{item: output_image_token, usd: 30, per: 1000000}, {item: image, usd: 1}]");
    let usage = pb::Usage {
        input_text_tokens: Some(7),
        output_image_tokens: Some(1),
        // Measured, not charged.
        compute_ms: Some(900),
        ..Default::default()
    };
    assert_eq!(
        bill(&ImageRequest::default(), &prices, &counting(usage)),
        [unknown("input_text_token", 7.0), item("output_image_token", 1.0, 30_000)]
    );
}

#[test]
fn credits_seconds_and_megapixels_are_charged_as_they_are_counted() {
    let prices = prices(
        "[{item: credit, usd: 0.011, per: 1000}, {item: compute_second, usd: 0.000225}, \
         {item: megapixel, usd: 0.003}, {item: request, usd: 0.0001}]",
    );
    let usage = pb::Usage {
        credits: Some(57.6),
        compute_ms: Some(2500),
        megapixels: Some(1.05),
        ..Default::default()
    };
    assert_eq!(
        bill(&ImageRequest::default(), &prices, &counting(usage)),
        [
            item("megapixel", 1.05, 3_150_000),
            item("compute_second", 2.5, 562_500),
            item("credit", 57.6, 633_600),
            item("request", 1.0, 100_000)
        ]
    );
}

#[test]
fn what_was_made_counts_and_not_what_was_asked_for() {
    let prices =
        prices("[{item: image, usd: 0.08, size: 1792x1024}, {item: image, usd: 0.04, size: 1024x1024}]");
    let request = ImageRequest { size: Some(pb::Size::pixels(1792, 1024)), ..Default::default() };
    assert_eq!(
        bill(&request, &prices, &made(&[(1024, 1024), (1792, 1024), (1024, 1024)])),
        [item("image", 2.0, 80_000_000), item("image", 1.0, 80_000_000)]
    );
    assert_eq!(expected(&request, &prices), Some(0.08));
    let lines = lines("p", &request, &prices, &made(&[(1024, 1024)]), 1);
    assert_eq!(lines[0].size, "1024x1024");
}

#[test]
fn the_first_price_holds_whose_conditions_all_do() {
    let prices = prices(
        "[{item: image, usd: 1, quality: high, operation: edit}, {item: image, usd: 2, quality: medium}, \
         {item: image, usd: 3, size: '16:9'}, {item: image, usd: 4}]",
    );
    let usd = |quality: Quality, operation: Operation, size: Option<pb::Size>| {
        let request =
            ImageRequest { quality: quality.into(), operation: operation.into(), size, ..Default::default() };
        lines("p", &request, &prices, &made(&[(1024, 576)]), 1)[0].amount_usd.unwrap()
    };
    let wide = pb::AspectRatio { width: 16.0, height: 9.0 };
    let wide = Some(pb::Size { size: Some(pb::size::Size::AspectRatio(wide)) });
    assert_eq!(usd(Quality::High, Operation::Edit, None), 1.0);
    // Left to its own choice a model usually makes the middle one.
    assert_eq!(usd(Quality::Unspecified, Operation::Edit, None), 2.0);
    assert_eq!(usd(Quality::High, Operation::Generate, wide), 3.0);
    assert_eq!(usd(Quality::High, Operation::Generate, None), 4.0);
}

#[test]
fn pixels_beyond_the_first_are_rounded_up_image_by_image() {
    let prices = prices(
        "[{item: image, usd: 0.03}, \
         {item: output_pixel, usd: 0.015, per: 1048576, beyond: 1048576, round_up_to: 1048576}]",
    );
    let plain = ImageRequest::default();
    assert_eq!(bill(&plain, &prices, &made(&[(1024, 1024)])), [item("image", 1.0, 30_000_000)]);
    // Two started megapixels of the first image, none of the second, three of the third.
    assert_eq!(
        bill(&plain, &prices, &made(&[(1792, 1024), (512, 512), (2048, 2048)])),
        [item("image", 3.0, 90_000_000), item("output_pixel", 4.0 * 1_048_576.0, 60_000_000)]
    );
}

#[test]
fn pixels_of_inputs_are_read_from_the_inputs() {
    let prices = prices(
        "[{item: output_pixel, usd: 2, per: 1000000}, {item: input_pixel, usd: 1, per: 1000000}, \
         {item: input_image, usd: 0.001}]",
    );
    let mut png = Vec::new();
    let image = image::RgbImage::new(500, 200);
    image.write_to(&mut std::io::Cursor::new(&mut png), image::ImageFormat::Png).unwrap();
    let input = |source| pb::InputImage { source: Some(source), ..Default::default() };
    let mut request = ImageRequest { inputs: vec![input(Source::Data(png.into()))], ..Default::default() };
    assert_eq!(
        bill(&request, &prices, &made(&[(1000, 1000)])),
        [
            item("input_image", 1.0, 1_000_000),
            item("output_pixel", 1e6, 2_000_000_000),
            item("input_pixel", 1e5, 100_000_000)
        ]
    );
    request.inputs.push(input(Source::Url("https://example.com/a.png".into())));
    let lines = bill(&request, &prices, &made(&[(1000, 1000)]));
    assert_eq!(lines[2], unknown("input_pixel", 0.0));
}

#[test]
fn steps_are_those_asked_for_else_the_usual_ones_else_unknown() {
    let usual = prices("[{item: step, usd: 0.0005, usual: 30}]");
    let by_pixels = prices("[{item: pixel_step, usd: 0.0005, per: 1000000}]");
    let request = |steps| ImageRequest { steps, n: Some(2), ..Default::default() };
    let two = made(&[(1000, 1000); 2]);
    assert_eq!(bill(&request(Some(20)), &usual, &two), [item("step", 40.0, 20_000_000)]);
    assert_eq!(bill(&request(None), &usual, &two), [item("step", 60.0, 30_000_000)]);
    assert_eq!(bill(&request(Some(4)), &by_pixels, &two), [item("pixel_step", 8e6, 4_000_000)]);
    assert_eq!(bill(&request(None), &by_pixels, &two), [unknown("pixel_step", 0.0)]);
    assert_eq!(expected(&request(None), &by_pixels), None);
    assert_eq!(expected(&request(None), &usual), Some(0.03));
}

#[test]
fn what_the_provider_reports_wins() {
    let mut done = made(&[(8, 8); 2]);
    done.reported_cost_usd = Some(0.5);
    let prices = prices("[{item: image, usd: 1}]");
    assert_eq!(bill(&ImageRequest::default(), &prices, &done), [item("image", 2.0, 500_000_000)]);
    done.reported_cost_usd = Some(f64::NAN);
    assert_eq!(bill(&ImageRequest::default(), &prices, &done), [item("image", 2.0, 2_000_000_000)]);
}

#[test]
fn a_sum_says_what_is_not_known() {
    let line = |amount_usd| CostLine { amount_usd, ..Default::default() };
    let (none, is_part) = sum(&[]);
    assert_eq!((none.map(f64::is_sign_positive), is_part), (Some(true), false));
    assert_eq!(sum(&[line(Some(0.5)), line(Some(0.25))]), (Some(0.75), false));
    assert_eq!(sum(&[line(Some(0.5)), line(None)]), (Some(0.5), true));
    assert_eq!(sum(&[line(None)]), (None, true));
}

#[test]
fn a_call_that_gave_nothing_is_charged_as_it_was_asked_for() {
    let prices = prices("[{item: output_pixel, usd: 1, per: 1000000}]");
    let request = ImageRequest { size: Some(pb::Size::pixels(1000, 500)), n: Some(3), ..Default::default() };
    let lines = estimate("p", &request, &prices, 2);
    assert_eq!((lines[0].quantity, lines[0].amount_usd, lines[0].attempt), (1.5e6, Some(1.5), 2));
    assert_eq!(estimate("p", &ImageRequest::default(), &prices, 1)[0].amount_usd, None);
}
