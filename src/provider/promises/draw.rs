//! Random canonical requests, and their fields one by one.

use std::sync::LazyLock;

use image::{GrayImage, Luma, Rgb, RgbImage, Rgba, RgbaImage};
use serde_json::{Value, json};

use super::super::*;
use crate::{
    images::convert::encode,
    params::{self, ANY_PROVIDER},
    pb::{Operation, input_image::Source},
};

/// Four inputs that differ, and a mask in each polarity.
static INPUTS: LazyLock<Vec<Bytes>> = LazyLock::new(|| {
    (0..4).map(|shade| png(RgbImage::from_pixel(4, 4, Rgb([shade * 60, 10, 200])).into())).collect()
});
static GRAY_MASK: LazyLock<Bytes> =
    LazyLock::new(|| png(GrayImage::from_fn(4, 4, |x, _| Luma([if x < 2 { 255 } else { 0 }])).into()));
static ALPHA_MASK: LazyLock<Bytes> = LazyLock::new(|| {
    png(RgbaImage::from_fn(4, 4, |x, _| Rgba([0, 0, 0, if x < 1 { 0 } else { 255 }])).into())
});

/// Texts that a parameter may have; of those without limits.
const WORDS: &[&str] = &["vivid", "anime", "photographic", "dpmpp_2m", "karras", "REALISTIC"];

/// Numbers that are drawn anew for each test, the same for each run.
pub struct Draws(u64);

/// What a caller can ask for, as far as it can be missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Field {
    /// One that [`params`] knows by this name.
    Named(&'static str),
    /// One of the provider's own.
    Extra(String),
    /// The last of the inputs.
    Image,
    /// What the first input is for.
    ImageRole,
    /// How much the first input counts.
    ImageWeight,
    Mask,
    WeightedPrompts,
    Outpaint,
    Upscale,
    Control,
    Animation,
    PromptRewrite,
    Loras,
}

impl Draws {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// SplitMix64.
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    fn percent(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn pick<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())].clone()
    }

    fn side(&mut self) -> u32 {
        match self.below(3) {
            0 => self.pick(&[256, 512, 768, 1024, 1280, 1536, 1792, 2048]),
            1 => 64 * (1 + self.below(64) as u32),
            _ => 16 + self.below(5000) as u32,
        }
    }

    fn fraction(&mut self) -> f32 {
        self.below(101) as f32 / 100.0
    }

    /// A request for a model, more often than not one that it can serve.
    pub fn request(
        &mut self,
        model: &str,
        capability: &pb::ModelCapability,
        provider: &str,
    ) -> pb::ImageRequest {
        let known: Vec<_> =
            capability.operations.iter().filter_map(|op| Operation::try_from(*op).ok()).collect();
        let any = || (1..=13).filter_map(|op| Operation::try_from(op).ok()).collect::<Vec<_>>();
        let operation = if self.percent(90) { self.pick(&known) } else { self.pick(&any()) };
        let mut request = pb::ImageRequest {
            model: model.to_owned(),
            prompt: format!("picture {}", self.below(1000)),
            ..Default::default()
        };
        if self.percent(3) {
            request.prompt = "a long story ".repeat(400);
        }
        self.give_what_it_needs(&mut request, operation, capability);
        // What is meant is often left to what comes with the request.
        let is_plain = matches!(operation, Operation::Generate | Operation::Edit | Operation::Inpaint);
        let is_meant =
            || pb::ImageRequest { operation: 0, ..request.clone() }.effective_operation() == operation;
        if !(is_plain && is_meant() && self.percent(70)) {
            request.operation = operation.into();
        }
        for field in Field::of_any_request() {
            if self.percent(field.percent()) {
                field.draw(&mut request, self);
            }
        }
        let own = capability.parameters.iter().map(|rule| rule.name.as_str());
        let own = own.filter(|name| *name != "*" && Field::is_extra(name)).chain(["made_up"]);
        for name in own {
            if self.percent(15) {
                let key = self.pick(&[ANY_PROVIDER, provider]).to_owned();
                let value = extra(name, capability, self);
                request.provider_extras.entry(key).or_default().fields.insert(name.to_owned(), value);
            }
        }
        request.size_policy = self.pick(&[0, 0, 0, 1, 2]);
        request.params_policy = self.pick(&[0, 0, 0, 1, 2]);
        request
    }

    fn give_what_it_needs(
        &mut self,
        request: &mut pb::ImageRequest,
        operation: Operation,
        capability: &pb::ModelCapability,
    ) {
        if operation != Operation::Generate || self.percent(3) {
            let most = if self.percent(95) { capability.max_inputs.clamp(1, 4) } else { 4 };
            for _ in 0..=self.below(most as usize) {
                let data = INPUTS[request.inputs.len()].clone();
                let source = if capability.accepts_input_urls && self.percent(30) {
                    Source::Url(format!("https://images.example/{}.png", request.inputs.len()))
                } else {
                    Source::Data(data)
                };
                request.inputs.push(pb::InputImage { source: Some(source), ..Default::default() });
            }
        }
        let needed = match operation {
            Operation::Inpaint => Some(Field::Mask),
            Operation::Erase if self.percent(50) => Some(Field::Mask),
            Operation::Erase | Operation::SearchReplace | Operation::SearchRecolor => {
                Some(Field::Named("search_prompt"))
            }
            Operation::Outpaint => {
                Field::Named("size").draw(request, self);
                Some(Field::Outpaint)
            }
            Operation::Control => Some(Field::Control),
            _ => None,
        };
        if let Some(field) = needed {
            field.draw(request, self);
        }
        if operation == Operation::Upscale && self.percent(60) {
            Field::Upscale.draw(request, self);
        }
    }
}

impl Field {
    /// Those that are not one provider's own.
    fn of_any_request() -> impl Iterator<Item = Self> {
        let more = ["n", "size", "output_format", "partial_images", "search_prompt", "response_format"];
        let named = params::NAMES.iter().copied().chain(more).map(Self::Named);
        named.chain([
            Self::ImageRole,
            Self::ImageWeight,
            Self::Mask,
            Self::WeightedPrompts,
            Self::Outpaint,
            Self::Upscale,
            Self::Control,
            Self::Animation,
            Self::PromptRewrite,
            Self::Loras,
        ])
    }

    /// Those that a request has.
    pub fn of(request: &pb::ImageRequest) -> Vec<Self> {
        let extras = request.provider_extras.values().flat_map(|extras| extras.fields.keys());
        let mut fields: Vec<_> = Self::of_any_request()
            .chain([Self::Image])
            .chain(extras.map(|name| Self::Extra(name.clone())))
            .filter(|field| field.is_set(request))
            .collect();
        fields.dedup();
        fields
    }

    /// How often it is in a request that does not need it.
    fn percent(&self) -> usize {
        match self {
            Self::Named("size") => 70,
            Self::Named("n") => 40,
            Self::Named("search_prompt") => 3,
            Self::Named(_) => 25,
            _ => 3,
        }
    }

    /// Whether no field of the canonical request has this name.
    fn is_extra(name: &str) -> bool {
        let mut probe = pb::ImageRequest::default();
        let known = ["n", "size", "aspect_ratio", "output_format", "partial_images", "search_prompt"];
        let is_canonical = params::NAMES.contains(&params::canonical(name)) || known.contains(&name);
        // These have messages of their own.
        let is_message =
            ["weighted_prompts", "animation", "loras", "prompt_rewrite", "control"].contains(&name);
        !is_canonical && !is_message && params::set(&mut probe, name, &json!(1)).is_ok()
    }

    /// As warnings name it.
    pub fn name(&self) -> &str {
        match self {
            Self::Named(name) => name,
            Self::Extra(name) => name,
            Self::Image => "image",
            Self::ImageRole => "image.role",
            Self::ImageWeight => "image.weight",
            Self::Mask => "mask",
            Self::WeightedPrompts => "weighted_prompts",
            Self::Outpaint => "outpaint",
            Self::Upscale => "upscale",
            Self::Control => "control",
            Self::Animation => "animation",
            Self::PromptRewrite => "prompt_rewrite",
            Self::Loras => "loras",
        }
    }

    pub fn is_set(&self, request: &pb::ImageRequest) -> bool {
        match self {
            Self::Named(name) => params::get(request, name).is_some(),
            Self::Extra(name) => {
                request.provider_extras.values().any(|extras| extras.fields.contains_key(name))
            }
            Self::Image => !request.inputs.is_empty(),
            Self::ImageRole => request.inputs.first().is_some_and(|input| input.role != 0),
            Self::ImageWeight => request.inputs.first().is_some_and(|input| input.weight.is_some()),
            Self::Mask => request.mask.is_some(),
            Self::WeightedPrompts => !request.weighted_prompts.is_empty(),
            Self::Outpaint => request.outpaint.is_some(),
            Self::Upscale => request.upscale.is_some(),
            Self::Control => request.control.is_some(),
            Self::Animation => request.animation.is_some(),
            Self::PromptRewrite => request.prompt_rewrite != 0,
            Self::Loras => !request.loras.is_empty(),
        }
    }

    pub fn clear(&self, request: &mut pb::ImageRequest) {
        // What the operation is was told by what is taken away.
        request.operation = request.effective_operation().into();
        match self {
            Self::Named(name) => params::clear(request, name),
            Self::Extra(name) => {
                request.provider_extras.values_mut().for_each(|extras| _ = extras.fields.remove(name));
            }
            Self::Image => _ = request.inputs.pop(),
            Self::ImageRole => request.inputs.iter_mut().for_each(|input| input.role = 0),
            Self::ImageWeight => request.inputs.iter_mut().for_each(|input| input.weight = None),
            Self::Mask => request.mask = None,
            Self::WeightedPrompts => request.weighted_prompts.clear(),
            Self::Outpaint => request.outpaint = None,
            Self::Upscale => request.upscale = None,
            Self::Control => request.control = None,
            Self::Animation => request.animation = None,
            Self::PromptRewrite => request.prompt_rewrite = 0,
            Self::Loras => request.loras.clear(),
        }
    }

    /// Sets it, to anything.
    pub fn draw(&self, request: &mut pb::ImageRequest, draws: &mut Draws) {
        match self {
            Self::Named(name) => {
                let value = value(name, draws);
                params::set(request, name, &value).unwrap();
            }
            Self::Extra(name) => {
                for extras in request.provider_extras.values_mut() {
                    if let Some(value) = extras.fields.get_mut(name) {
                        *value = params::from_json(&json!(draws.pick(WORDS)));
                    }
                }
            }
            Self::Image => {
                let other = INPUTS[draws.below(INPUTS.len())].clone();
                if let Some(input) = request.inputs.last_mut() {
                    input.source = Some(Source::Data(other));
                }
            }
            Self::ImageRole => {
                // Marks alone are no picture to edit.
                let roles = if request.inputs.len() > 1 { 6 } else { 5 };
                let role = 1 + draws.below(roles) as i32;
                request.inputs.iter_mut().take(1).for_each(|input| input.role = role);
            }
            Self::ImageWeight => {
                let weight = draws.fraction();
                request.inputs.iter_mut().take(1).for_each(|input| input.weight = Some(weight));
            }
            Self::Mask => {
                let polarity = draws.pick(&[0, 2, 3]);
                let data = if polarity == 3 { ALPHA_MASK.clone() } else { GRAY_MASK.clone() };
                request.mask = Some(pb::Mask { data, polarity });
            }
            Self::WeightedPrompts => {
                let text = |text: &str, weight| pb::WeightedPrompt { text: text.into(), weight };
                request.weighted_prompts = vec![text("a boat", draws.fraction() + 0.1), text("rain", -0.5)];
            }
            Self::Outpaint => {
                let mut side = || [0, 0, 64, 128, 200][draws.below(5)];
                let (left, right, up, down) = (side() + 1, side(), side(), side());
                let creativity = draws.percent(30).then(|| draws.fraction());
                request.outpaint = Some(pb::Outpaint { left, right, up, down, creativity });
            }
            Self::Upscale => {
                let factor = draws.percent(50).then(|| draws.pick(&[2.0, 4.0]));
                let target = (factor.is_none() && draws.percent(50))
                    .then_some(pb::Dimensions { width: 2048, height: 1024 });
                let creativity = draws.percent(20).then(|| draws.fraction());
                request.upscale =
                    Some(pb::Upscale { mode: draws.below(4) as i32, factor, target, creativity });
            }
            Self::Control => {
                let strength = draws.percent(70).then(|| draws.fraction());
                request.control = Some(pb::Control { kind: 1 + draws.below(6) as i32, strength });
            }
            Self::Animation => {
                let frame_count = 2 + draws.below(14) as u32;
                request.animation = Some(pb::Animation { frame_count, frame_duration_ms: 100 });
            }
            Self::PromptRewrite => request.prompt_rewrite = 1 + draws.below(2) as i32,
            Self::Loras => request.loras = vec![pb::Lora { id: "a/b".into(), scale: draws.fraction() }],
        }
    }
}

fn png(picture: image::DynamicImage) -> Bytes {
    encode(&picture, pb::ImageFormat::Png, None).unwrap()
}

fn value(name: &str, draws: &mut Draws) -> Value {
    let word = |draws: &mut Draws, words: &[&str]| json!(draws.pick(words));
    match name {
        "quality" => word(draws, &["low", "medium", "high", "xhigh", "max"]),
        "background" => word(draws, &["opaque", "transparent"]),
        "moderation" => word(draws, &["low", "strict"]),
        "input_fidelity" => word(draws, &["low", "high"]),
        "response_format" => word(draws, &["url", "b64_json"]),
        "output_format" => word(draws, &["png", "png", "jpeg", "jpeg", "webp", "webp", "gif", "svg", "avif"]),
        "size" => match draws.below(10) {
            0 => json!("auto"),
            1..4 => word(
                draws,
                &[
                    "1:1", "16:9", "9:16", "4:3", "3:4", "3:2", "2:3", "21:9", "9:21", "5:4", "4:5",
                    "2.39:1", "1:3",
                ],
            ),
            4 => {
                let side = draws.side();
                json!(format!("{side}x{side}"))
            }
            _ => json!(format!("{}x{}", draws.side(), draws.side())),
        },
        "n" => json!(1 + draws.below(12)),
        "seed" => match draws.below(4) {
            0 => json!(0),
            1 => json!(u64::from(u32::MAX) + draws.next() % 100_000),
            _ => json!(draws.next() % 1_000_000),
        },
        "steps" => json!(1 + draws.below(120)),
        "guidance" => json!(draws.below(300) as f64 / 10.0),
        "strength" => json!(f64::from(draws.below(101) as u32) / 100.0),
        "output_compression" => json!(draws.below(101)),
        "partial_images" => json!(draws.below(4)),
        "search_prompt" => json!(format!("the thing {}", draws.below(100))),
        "user" => json!(format!("user-{}", draws.below(100))),
        "negative_prompt" => json!(format!("rain {}", draws.below(100))),
        _ => word(draws, WORDS),
    }
}

/// A value that a parameter of a provider's own may have.
fn extra(name: &str, capability: &pb::ModelCapability, draws: &mut Draws) -> prost_types::Value {
    let rule = capability.parameters.iter().find(|rule| rule.name == name);
    let value = match rule {
        Some(rule) if !rule.values.is_empty() => json!(draws.pick(&rule.values)),
        Some(rule) if rule.min.is_some() || rule.max.is_some() => json!(rule.min.or(rule.max)),
        _ => draws.pick(&[json!(true), json!(7), json!("text"), json!({"a": 1})]),
    };
    params::from_json(&value)
}
