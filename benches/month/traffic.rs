//! A month of requests as the router would leave them behind, over every price there is in a book.
//!
//! What a call came to is computed by `route::cost`; what it was (images, tokens, steps) goes to the invoice, which
//! computes it again.

use std::collections::BTreeMap;

use imagegate::{
    pb::{
        self, Attempt, BillingClass, CacheStatus, CostLine, CostSource, Dimensions, ImageRequest, Operation,
        Price, Quality, RequestRecord, RouteReport,
    },
    prices::{self, Book, read},
    route::cost,
    store::Logged,
};

use crate::invoice::Call;

/// Whose requests most are.
pub const TENANT: &str = "studio";

/// 2026-11-01.
pub const FROM_MS: i64 = 1_793_491_200_000;

/// Thirty days.
pub const MONTH_MS: i64 = 30 * 86_400_000;

/// What the embedded book has no price for.
const MORE: &str = "
providers:
  gpu-farm:
    models:
      - ids: [by-the-second]
        prices: [{ item: compute_second, usd: 0.000725 }, { item: request, usd: 0.0001 }]
      - ids: [by-the-megapixel]
        prices: [{ item: megapixel, usd: 0.0031 }]
      - ids: [by-the-call]
        prices: [{ item: request, usd: 0.021 }]
      - ids: [by-pixels-and-steps]
        prices: [{ item: pixel_step, usd: 0.0005, per: 1000000, usual: 25 }]
      - ids: [with-inputs]
        prices:
          - { item: image, usd: 0.011 }
          - { item: input_image, usd: 0.0023 }
      - ids: [dearer-in-the-middle]
        prices:
          - { item: image, usd: 0.05, until: 2026-11-16 }
          - { item: image, usd: 0.07, from: 2026-11-16 }
      - ids: [by-the-grade]
        prices:
          - { item: image, usd: 0.0059, quality: low }
          - { item: image, usd: 0.0132, quality: medium }
          - { item: image, usd: 0.0937, quality: xhigh }
          - { item: image, usd: 0.2107, quality: max }
      - ids: [unpriced]
        prices: []
";

const SIZES: &[(u32, u32)] = &[
    (1024, 1024),
    (1024, 1024),
    (512, 512),
    (256, 256),
    (1536, 1024),
    (1024, 1792),
    (2048, 2048),
    (1344, 768),
    (832, 1216),
];

const QUALITIES: &[Quality] = &[
    Quality::Unspecified,
    Quality::Unspecified,
    Quality::Low,
    Quality::Medium,
    Quality::High,
    Quality::Xhigh,
    Quality::Max,
];

/// Makes requests, one after the other, always the same.
pub struct Traffic {
    models: Vec<(String, String, Vec<Price>)>,
    requests: u64,
    made: u64,
    state: u64,
}

/// A request, and what its calls were.
pub struct Made {
    pub logged: Logged,
    pub calls: Vec<Call>,
}

impl Traffic {
    /// So many, spread over a month.
    pub fn new(requests: u64) -> Self {
        let more = read::text(MORE).expect("the book above is right");
        let books = [Book::embedded(), &more];
        let models = books.into_iter().flat_map(Book::entries).map(|(provider, id, prices)| {
            let id = if id.ends_with('*') { id.replace('*', "own") } else { id.to_owned() };
            (provider.to_owned(), id, prices.to_vec())
        });
        Self { models: models.collect(), requests, made: 0, state: 0x1234_5678_9abc_def0 }
    }

    /// How many different entries of books there are.
    pub fn models(&self) -> usize {
        self.models.len()
    }

    /// What the log has of an image.
    fn image(&mut self) -> pb::LoggedImage {
        let digest: Vec<u8> = (0..4).flat_map(|_| self.next_u64().to_le_bytes()).collect();
        pb::LoggedImage {
            sha256: digest.into(),
            format: pb::ImageFormat::Png.into(),
            width: 1024,
            height: 1024,
            bytes: 1_000_000 + self.next_u64() % 1_000_000,
            ..Default::default()
        }
    }

    fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// 0 to `n` - 1.
    fn below(&mut self, n: usize) -> usize {
        (self.next_u64() % n as u64) as usize
    }

    fn percent(&mut self, share: f64) -> bool {
        ((self.next_u64() % 100_000) as f64) < share * 1000.0
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    /// Few are asked for often, as people do.
    fn model(&mut self) -> usize {
        let all = self.models.len();
        if self.percent(50.0) { self.below(12) * 17 % all } else { self.below(all) }
    }

    /// One call to a model on a day.
    fn call(&mut self, model: usize, day: &str, attempt: u32) -> (Call, Vec<CostLine>, u32) {
        let (provider, id, all) = self.models[model].clone();
        let prices = prices::in_force(&all, || day.to_owned()).map_or(all, |held| held.to_vec());
        let named: Vec<Operation> =
            prices.iter().map(Price::operation).filter(|known| *known != Operation::Unspecified).collect();
        let operation = if named.is_empty() || self.percent(20.0) {
            self.pick(&[Operation::Generate, Operation::Generate, Operation::Edit])
        } else {
            self.pick(&named)
        };
        let (width, height) = self.pick(SIZES);
        let made = Dimensions { width, height };
        let quality = self.pick(QUALITIES);
        let n = self.pick(&[1, 1, 1, 1, 2, 4]);
        let steps = if self.percent(40.0) { Some(4 + self.below(40) as u32) } else { None };
        // Some leave the size to the model; some of what was asked for comes otherwise.
        let asked = match self.below(20) {
            0 => None,
            1 => Some(pb::Size::pixels(1024, 1024)),
            _ => Some(pb::Size::pixels(width, height)),
        };
        let inputs = if operation == Operation::Edit { 1 + self.below(3) } else { 0 };
        let input =
            pb::InputImage { source: Some(pb::input_image::Source::Data(input_png())), ..Default::default() };
        let request = ImageRequest {
            operation: operation.into(),
            model: id.clone(),
            prompt: String::new(),
            n: Some(n),
            size: asked,
            quality: quality.into(),
            steps,
            inputs: vec![input; inputs],
            ..Default::default()
        };
        let counts = |items: &[&str]| prices.iter().any(|price| items.contains(&price.item.as_str()));
        let mut usage = pb::Usage::default();
        if counts(&["output_image_token"]) && self.percent(97.0) {
            usage.input_text_tokens = Some(10 + self.below(600) as u64);
            usage.cached_text_tokens = self.percent(20.0).then(|| 4 + self.below(2000) as u64);
            usage.input_image_tokens = (inputs > 0).then(|| 258 * (1 + self.below(9) as u64));
            usage.output_image_tokens = Some(272 + self.below(8000) as u64);
            usage.output_text_tokens = self.percent(10.0).then(|| 1 + self.below(900) as u64);
        }
        if counts(&["credit"]) && self.percent(95.0) {
            usage.credits = Some((1 + self.below(9000)) as f64 / 10.0);
        }
        if counts(&["compute_second"]) || self.percent(5.0) {
            usage.compute_ms = Some(200 + self.below(90_000) as u64);
        }
        if counts(&["megapixel"]) {
            usage.megapixels = Some((25 + self.below(400)) as f64 / 100.0);
        }
        let reported_ticks = self.percent(8.0).then(|| 10_000_000 + 10_000 * self.below(2_000_000) as u64);
        let image = pb::Image { width, height, ..Default::default() };
        let done = pb::GenerateDone {
            images: vec![image; n as usize],
            usage: (usage != pb::Usage::default()).then_some(usage),
            reported_cost_usd: reported_ticks.map(|ticks| ticks as f64 / 1e10),
            ..Default::default()
        };
        let lines = cost::lines(&provider, &request, &prices, &done, attempt);
        let call = Call {
            provider,
            model: id,
            prices,
            operation,
            quality,
            asked: request.dimensions(),
            made: vec![made; n as usize],
            steps,
            inputs: vec![INPUT_PIXELS; inputs],
            usage,
            reported_ticks,
        };
        (call, lines, n)
    }

    fn attempt(&mut self, number: u32, provider: &str, model: &str, outcome: &str, status: u32) -> Attempt {
        let billing = match outcome {
            "ok" => BillingClass::Billed,
            "timeout" | "cancelled" => BillingClass::Unknown,
            _ => BillingClass::RejectedUnbilled,
        };
        Attempt {
            number,
            target: format!("config.targets[{}]", number - 1),
            provider: provider.to_owned(),
            model: model.to_owned(),
            outcome: outcome.to_owned(),
            status,
            message: if outcome == "ok" {
                String::new()
            } else {
                format!("{provider} answered {status}: try again later")
            },
            billing: billing.into(),
            duration_ms: 900 + self.next_u64() % 20_000,
            upstream_request_id: format!("req_{:016x}", self.next_u64()),
            ..Default::default()
        }
    }

    /// The next request.
    fn request(&mut self) -> Made {
        let number = self.made as i64;
        self.made += 1;
        let created_ms = FROM_MS + number * MONTH_MS / self.requests as i64;
        let day = format!("2026-11-{:02}", 1 + (created_ms - FROM_MS) / 86_400_000);
        let is_hit = self.percent(7.0);
        let fails_first = !is_hit && self.percent(6.0);
        let is_lost = fails_first && self.percent(35.0);
        let is_refused = fails_first && self.percent(20.0);
        let mut report = RouteReport { refused_by: Vec::new(), ..Default::default() };
        let (mut calls, mut images) = (Vec::new(), 0);
        let first = self.model();
        let (mut provider, mut model, ..) = self.models[first].clone();
        let (mut outcome, mut status) = ("ok", 200);
        if fails_first {
            let failures = [
                ("rate_limited", 429),
                ("unavailable", 503),
                ("timeout", 408),
                ("cancelled", 499),
                ("bad_answer", 502),
            ];
            (outcome, status) = if is_refused { ("content_rejected", 400) } else { self.pick(&failures) };
            let attempt = self.attempt(1, &provider, &model, outcome, status);
            if attempt.billing() == BillingClass::Unknown {
                report.cost_lines.push(CostLine {
                    item: "request".into(),
                    provider: provider.clone(),
                    model: model.clone(),
                    quantity: 1.0,
                    source: CostSource::UnknownBilling.into(),
                    attempt: 1,
                    ..Default::default()
                });
            }
            if is_refused {
                report.refused_by.push(attempt.target.clone());
            }
            report.attempts.push(attempt);
        }
        if is_hit {
            images = 1;
        } else if !is_lost {
            let answering = if fails_first { self.model() } else { first };
            let attempts = report.attempts.len() as u32 + 1;
            let (call, lines, n) = self.call(answering, &day, attempts);
            (provider, model, images) = (call.provider.clone(), call.model.clone(), n);
            (outcome, status) = ("ok", 200);
            report.attempts.push(self.attempt(attempts, &provider, &model, "ok", 200));
            report.cost_lines.extend(lines);
            calls.push(call);
        }
        let id = uuid(created_ms, self.next_u64());
        let trace_id = if self.percent(30.0) {
            id.clone()
        } else {
            format!("{:032x}", u128::from(self.next_u64()) << 64 | u128::from(self.next_u64()))
        };
        report.request_id.clone_from(&id);
        report.trace_id.clone_from(&trace_id);
        (report.provider, report.model) = (provider.clone(), model.clone());
        report.target = report.attempts.last().map_or_else(String::new, |attempt| attempt.target.clone());
        let amounts = || report.cost_lines.iter().map(|line| line.amount_usd);
        let is_known = report.cost_lines.is_empty() || amounts().any(|amount| amount.is_some());
        let cache_status = match self.below(100) {
            _ if is_hit => CacheStatus::Hit,
            0..30 => CacheStatus::Miss,
            30 => CacheStatus::Refresh,
            _ => CacheStatus::Unspecified,
        };
        report.cache_status = cache_status.into();
        let record = RequestRecord {
            id,
            trace_id,
            created_unix_ms: created_ms,
            duration_ms: 1000 + self.next_u64() % 30_000,
            caller: format!("00000000-0000-4000-8000-{:012x}", self.below(200).pow(2) / 200),
            config: format!("pc-config-{}-{:06x}", self.below(40), 0x3f9a1c),
            config_version: 1 + self.below(9) as u32,
            operation: calls.first().map_or(Operation::Generate, |call| call.operation).into(),
            outcome: outcome.to_owned(),
            status,
            error_message: report.attempts.last().map_or_else(String::new, |attempt| attempt.message.clone()),
            virtual_key: format!("{provider}-key-{}", self.below(2)),
            provider,
            model,
            target: report.target.clone(),
            fallback: fails_first && !is_lost,
            refused: is_refused,
            cache_status: cache_status.into(),
            calls: report.attempts.len() as u32,
            cost_usd: is_known.then(|| amounts().flatten().sum()),
            cost_unknown: amounts().any(|amount| amount.is_none()),
            metadata: self.metadata(),
            asked: calls.first().map(|call| ImageRequest {
                operation: call.operation.into(),
                model: call.model.clone(),
                n: Some(call.made.len() as u32),
                size: call.asked.map(|size| pb::Size::pixels(size.width, size.height)),
                quality: call.quality.into(),
                steps: call.steps,
                ..Default::default()
            }),
            applied: calls.first().map(|call| pb::Applied {
                size: call.asked.map(|size| pb::Size::pixels(size.width, size.height)),
                quality: call.quality.into(),
                ..Default::default()
            }),
            usage: calls.first().map(|call| call.usage).filter(|usage| *usage != pb::Usage::default()),
            report: Some(report),
            images,
            images_made: (0..images).map(|_| self.image()).collect(),
            timings: Some(pb::Timings {
                total_us: 1_000_000 + self.next_u64() % 30_000_000,
                routing_us: self.next_u64() % 200,
                cache_us: self.next_u64() % 200,
                upstream_us: 1_000_000 + self.next_u64() % 30_000_000,
                verifying_us: self.next_u64() % 3000,
                ..Default::default()
            }),
            subject: Some(pb::Subject { prompt_chars: 20 + self.below(400) as u32, ..Default::default() }),
            ..Default::default()
        };
        let tenant = if self.percent(97.0) { TENANT } else { "other" };
        Made { logged: Logged { tenant: tenant.to_owned(), record }, calls }
    }

    fn metadata(&mut self) -> BTreeMap<String, String> {
        let environment = self.pick(&["production", "production", "production", "staging"]);
        let mut metadata = BTreeMap::from([
            ("_user".to_owned(), format!("user-{}", self.below(20_000))),
            ("environment".to_owned(), environment.to_owned()),
        ]);
        if self.percent(80.0) {
            metadata.insert("team".to_owned(), format!("team-{}", self.below(12)));
        }
        if self.percent(20.0) {
            metadata.insert("order".to_owned(), format!("{:08x}", self.next_u64() as u32));
        }
        metadata
    }
}

impl Iterator for Traffic {
    type Item = Made;

    fn next(&mut self) -> Option<Made> {
        (self.made < self.requests).then(|| self.request())
    }
}

/// As the router makes them: by time, then by chance.
fn uuid(ms: i64, chance: u64) -> String {
    let (high, low) = (ms as u64, chance);
    format!(
        "{:08x}-{:04x}-7{:03x}-8{:03x}-{:012x}",
        high >> 16,
        high & 0xffff,
        low >> 52,
        (low >> 40) & 0xfff,
        low & 0xff_ffff_ffff
    )
}

/// Pixels of [`input_png`].
const INPUT_PIXELS: u64 = 1280 * 832;

/// A PNG of 1280 by 832, all in its head.
fn input_png() -> bytes::Bytes {
    use std::sync::LazyLock;
    static PNG: LazyLock<bytes::Bytes> = LazyLock::new(|| {
        let mut png = std::io::Cursor::new(Vec::new());
        let image = image::GrayImage::new(1280, 832);
        image.write_to(&mut png, image::ImageFormat::Png).expect("grey can be encoded");
        png.into_inner().into()
    });
    PNG.clone()
}
