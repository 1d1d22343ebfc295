//! Fits a request to a model before any money is spent: sizes, counts, parameters, formats.
//!
//! Whatever changes is reported; what cannot be served makes the target unsupported, without a call.

use std::{
    mem,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use serde_json::Value;

use super::size;
use crate::{
    config::{file::RetiredModels, spec::ParamsPolicy},
    error::{Error, Result},
    images::convert::Wish,
    params,
    pb::{self, ImageFormat, ImageRequest, InputRole, ModelCapability, Operation, Quality, warning::Action},
    prices::{self, Book},
};

/// A request as one model can serve it.
#[derive(Debug)]
pub struct Fitted {
    /// What to send: one call, or several that make up the images in this order.
    pub calls: Vec<ImageRequest>,
    /// The provider's record.
    pub record: Arc<pb::Provider>,
    /// Which of its models.
    model: usize,
    /// What that charges today, if it is not what the record says.
    prices: Option<Arc<[pb::Price]>>,
    /// What to do with each image afterwards.
    pub wish: Wish,
    /// Everything that changed.
    pub warnings: Vec<pb::Warning>,
}

/// Fits `request` to the model it names at a provider, or to the provider's default model.
///
/// # Errors
/// [`crate::error::ErrorKind::Unsupported`] with the field that this provider cannot serve.
pub fn fit(
    request: &ImageRequest,
    record: &Arc<pb::Provider>,
    policy: ParamsPolicy,
    retired_models: RetiredModels,
) -> Result<Fitted> {
    let policy = match request.params_policy() {
        pb::ParamsPolicy::Unspecified => policy,
        pb::ParamsPolicy::Strict => ParamsPolicy::Strict,
        pb::ParamsPolicy::Drop => ParamsPolicy::Drop,
    };
    let operation = request.effective_operation();
    let mut request = request.clone();
    request.operation = operation.into();
    let mut notes = Notes { policy, warnings: Vec::new() };
    let capability = choose_model(&mut request, record, operation, retired_models, &mut notes)?;
    let mut fit = Fit { request, capability, notes };
    fit.mask(operation)?;
    fit.operation(operation)?;
    fit.inputs()?;
    fit.parts(operation)?;
    fit.prompt()?;
    let exact_size = fit.size()?;
    let format = fit.format()?;
    fit.parameters()?;
    fit.extras(&record.name)?;
    fit.partial_images()?;
    let wish = Wish { format, compression: fit.compression(format)?, exact_size };
    let Fit { request, mut notes, .. } = fit;
    let model = request.model.clone();
    let calls = fan_out(request, capability);
    if calls.len() > 1 {
        let per_call = calls[0].wanted();
        let why =
            if per_call < capability.max_n.max(1) as usize { ", as previews are of one image" } else { "" };
        let detail = format!("{model} makes {per_call} per call{why}; made by {} calls", calls.len());
        notes.add("n", Action::Emulated, detail);
    }
    let model = record.models.iter().position(|model| std::ptr::eq(model, capability)).unwrap_or_default();
    let prices = prices::in_force(&capability.prices, today);
    Ok(Fitted { calls, record: Arc::clone(record), model, prices, wish, warnings: notes.warnings })
}

impl Fitted {
    /// What the model can do.
    pub fn capability(&self) -> &ModelCapability {
        &self.record.models[self.model]
    }

    /// What the model charges today.
    pub fn prices(&self) -> &[pb::Price] {
        self.prices.as_deref().unwrap_or(&self.capability().prices)
    }

    /// Puts the operator's own prices over what the record says. Those that a virtual key gives its own models (the
    /// first `own` of the record) are of the operator, too, and nearer.
    pub fn price_by(&mut self, book: &Book, own: usize) {
        let is_own = self.model < own && !self.capability().prices.is_empty();
        if let Some(prices) = book.prices(&self.record.name, &self.calls[0].model).filter(|_| !is_own) {
            self.prices = Some(prices::in_force(prices, today).unwrap_or_else(|| Arc::clone(prices)));
        }
    }
}

/// Changes made so far, under the rule for making them.
struct Notes {
    policy: ParamsPolicy,
    warnings: Vec<pb::Warning>,
}

struct Fit<'a> {
    request: ImageRequest,
    capability: &'a ModelCapability,
    notes: Notes,
}

impl Notes {
    fn add(&mut self, field: &str, action: Action, detail: String) {
        let target = String::new();
        self.warnings.push(pb::Warning { field: field.to_owned(), action: action.into(), detail, target });
    }

    /// Notes a change, or refuses it where the caller wants none.
    fn change(&mut self, field: &str, action: Action, detail: String) -> Result<()> {
        if self.policy == ParamsPolicy::Strict {
            return Err(Error::unsupported(field, format!("{field}: {detail}, and params_policy is strict")));
        }
        self.add(field, action, detail);
        Ok(())
    }
}

fn choose_model<'a>(
    request: &mut ImageRequest,
    record: &'a pb::Provider,
    operation: Operation,
    retired_models: RetiredModels,
    notes: &mut Notes,
) -> Result<&'a ModelCapability> {
    if request.model.is_empty() {
        let able = |model: &&ModelCapability| !model.model.ends_with('*') && can(model, operation);
        let default = record.models.iter().filter(able).find(|model| !is_retired(model));
        let default = default.or_else(|| record.models.iter().find(able)).ok_or_else(|| {
            Error::unsupported(
                "model",
                format!("{} has no model for operation {}", record.name, operation.name()),
            )
        })?;
        request.model.clone_from(&default.model);
        notes.add("model", Action::Notice, format!("not given; {} was used", default.model));
    }
    let mut capability = find(record, &request.model)?;
    if capability.model == "*" {
        notes.add(
            "model",
            Action::Notice,
            format!("{} is not known here; passed on as it is", request.model),
        );
    }
    if is_retired(capability) {
        let lifecycle = capability.lifecycle.clone().unwrap_or_default();
        let retired = format!("{} was retired by its provider on {}", request.model, lifecycle.retired_on);
        let successor = lifecycle.successor;
        match retired_models {
            RetiredModels::Substitute if !successor.is_empty() => {
                notes.change("model", Action::Adjusted, format!("{retired}; {successor} was used"))?;
                capability = find(record, &successor)?;
                request.model = successor;
            }
            RetiredModels::Fail => return Err(Error::unsupported("model", retired)),
            RetiredModels::Warn | RetiredModels::Substitute if successor.is_empty() => {
                notes.add("model", Action::Notice, retired);
            }
            RetiredModels::Warn | RetiredModels::Substitute => {
                notes.add("model", Action::Notice, format!("{retired}; its successor is {successor}"));
            }
        }
    }
    Ok(capability)
}

fn find<'a>(record: &'a pb::Provider, model: &str) -> Result<&'a ModelCapability> {
    record.capability(model).ok_or_else(|| {
        let known: Vec<&str> = record.models.iter().map(|model| model.model.as_str()).collect();
        let message = format!("model: {} has no \"{model}\"; it has {}", record.name, known.join(", "));
        Error::unsupported("model", message)
    })
}

fn can(model: &ModelCapability, operation: Operation) -> bool {
    model.operations.contains(&operation.into())
}

/// Whether its provider says that the model is gone.
pub fn is_retired(model: &ModelCapability) -> bool {
    let retired_on = model.lifecycle.as_ref().map_or("", |lifecycle| lifecycle.retired_on.as_str());
    !retired_on.is_empty() && retired_on <= today().as_str()
}

/// The date in UTC as `YYYY-MM-DD`, which sorts like time does.
fn today() -> String {
    let days = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() / 86_400;
    date(days)
}

/// The date that many days after 1970-01-01, by the Gregorian calendar's cycle of 146,097 days.
fn date(days: u64) -> String {
    // Years counted from March, so that the leap day is a year's last.
    let shifted = days + 719_468;
    let (cycle, day_of_cycle) = (shifted / 146_097, shifted % 146_097);
    let year_of_cycle =
        (day_of_cycle - day_of_cycle / 1460 + day_of_cycle / 36_524 - day_of_cycle / 146_096) / 365;
    let day_of_year = day_of_cycle - (365 * year_of_cycle + year_of_cycle / 4 - year_of_cycle / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = cycle * 400 + year_of_cycle + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

impl<'a> Fit<'a> {
    fn model(&self) -> &str {
        &self.request.model
    }

    fn unsupported(&self, field: &str, detail: impl std::fmt::Display) -> Error {
        Error::unsupported(field, format!("{field}: {} {detail}", self.model()))
    }

    fn operation(&mut self, operation: Operation) -> Result<()> {
        if can(self.capability, operation) {
            return Ok(());
        }
        if operation == Operation::Variation && can(self.capability, Operation::Edit) {
            self.request.operation = Operation::Edit.into();
            if self.request.prompt.is_empty() {
                self.request.prompt = "Make a variation of this image: the same subject and style.".into();
            }
            let detail = format!("{} has no variations; made by an edit", self.model());
            return self.notes.change("operation", Action::Emulated, detail);
        }
        Err(self.unsupported("operation", format_args!("cannot {}", in_words(operation))))
    }

    fn inputs(&mut self) -> Result<()> {
        let (given, allowed) = (self.request.inputs.len(), self.capability.max_inputs.max(1) as usize);
        if given > allowed {
            return Err(
                self.unsupported("image", format_args!("takes at most {allowed} input images, not {given}"))
            );
        }
        for i in 0..given {
            self.input(i)?;
        }
        Ok(())
    }

    /// What one input is for, and how much it counts.
    fn input(&mut self, i: usize) -> Result<()> {
        let input = &mut self.request.inputs[i];
        let role = input.role();
        // To be changed or to be looked at: models tell these apart by the prompt.
        let is_plain = matches!(role, InputRole::Unspecified | InputRole::Source | InputRole::Reference);
        let is_weighted = input.weight.is_some();
        let name = || role.as_str_name().trim_start_matches("INPUT_ROLE_").to_ascii_lowercase();
        if !is_plain && !self.rule("image.role").is_some_and(|rule| rule.values.contains(&name())) {
            if role == InputRole::Markup {
                // As a picture like the others it would be drawn.
                return Err(self.unsupported("image", "takes no input as markup"));
            }
            self.request.inputs[i].role = InputRole::Reference.into();
            let detail =
                format!("{} knows no {} image; input {i} is a reference like others", self.model(), name());
            self.notes.change("image.role", Action::Adjusted, detail)?;
        }
        if is_weighted && self.rule("image.weight").is_none() {
            self.request.inputs[i].weight = None;
            let detail = format!("{} has no weights of inputs; that of input {i} was dropped", self.model());
            self.notes.change("image.weight", Action::Dropped, detail)?;
        }
        Ok(())
    }

    /// A mask that is left out would have the whole image changed.
    fn mask(&self, operation: Operation) -> Result<()> {
        let takes = matches!(operation, Operation::Inpaint | Operation::Erase)
            || self.rule("mask.elsewhere").is_some();
        if self.request.mask.is_none() || takes {
            return Ok(());
        }
        Err(self.unsupported("mask", format_args!("takes no mask to {}", in_words(operation))))
    }

    /// Parts of a request that only some operations or models have a use for.
    fn parts(&mut self, operation: Operation) -> Result<()> {
        use Operation as Op;
        let searches = self.rule("search_prompt").is_some()
            && matches!(
                operation,
                // The first three take it in place of a mask.
                Op::Inpaint
                    | Op::Outpaint
                    | Op::ReplaceBackground
                    | Op::Erase
                    | Op::SearchReplace
                    | Op::SearchRecolor
            );
        let has = ["animation", "prompt_rewrite", "loras", "outpaint.creativity"]
            .map(|name| self.rule(name).is_some());
        let request = &mut self.request;
        let useless = [
            ("outpaint", operation != Op::Outpaint && request.outpaint.take().is_some()),
            ("upscale", operation != Op::Upscale && request.upscale.take().is_some()),
            ("control", operation != Op::Control && request.control.take().is_some()),
            ("search_prompt", !searches && !mem::take(&mut request.search_prompt).is_empty()),
        ];
        let creativity = request.outpaint.as_mut().map(|outpaint| &mut outpaint.creativity);
        let unknown = [
            ("animation", !has[0] && request.animation.take().is_some()),
            ("prompt_rewrite", !has[1] && mem::take(&mut request.prompt_rewrite) != 0),
            ("loras", !has[2] && !mem::take(&mut request.loras).is_empty()),
            (
                "outpaint.creativity",
                !has[3] && creativity.is_some_and(|creativity| creativity.take().is_some()),
            ),
        ];
        for (name, _) in useless.into_iter().filter(|(_, is_set)| *is_set) {
            let detail = format!("of no use to {}; dropped", in_words(operation));
            self.notes.change(name, Action::Dropped, detail)?;
        }
        for (name, _) in unknown.into_iter().filter(|(_, is_set)| *is_set) {
            let detail = format!("{} has no such parameter; dropped", self.model());
            self.notes.change(name, Action::Dropped, detail)?;
        }
        Ok(())
    }

    fn prompt(&mut self) -> Result<()> {
        if !self.request.weighted_prompts.is_empty() && self.rule("weighted_prompts").is_none() {
            let wanted = self.request.weighted_prompts.iter().filter(|prompt| prompt.weight > 0.0);
            let texts: Vec<&str> = wanted.map(|prompt| prompt.text.as_str()).collect();
            let joined = texts.join(", ");
            let prompt = &mut self.request.prompt;
            *prompt = if prompt.is_empty() { joined } else { format!("{prompt}, {joined}") };
            self.request.weighted_prompts.clear();
            let detail = format!("{} has no weights; the texts were joined", self.model());
            self.notes.change("weighted_prompts", Action::Emulated, detail)?;
        }
        let (chars, allowed) =
            (self.request.prompt.chars().count(), self.capability.max_prompt_chars as usize);
        if allowed > 0 && chars > allowed {
            // Cutting a prompt makes another picture.
            return Err(
                self.unsupported("prompt", format_args!("takes at most {allowed} characters, not {chars}"))
            );
        }
        Ok(())
    }

    /// Returns the exact size to cut the image to afterwards, if the caller wants that.
    fn size(&mut self) -> Result<Option<pb::Dimensions>> {
        let Some(wanted) = self.request.size else { return Ok(None) };
        let fitted = size::fit(self.request.size, self.capability.size.as_ref());
        self.request.size = fitted.size;
        if !fitted.adjusted {
            return Ok(None);
        }
        let sent = fitted.size.map_or("the model's own size".into(), |size| size.text());
        let detail = format!("{} is not a size of {}; {sent} was used", wanted.text(), self.model());
        match self.request.size_policy() {
            pb::SizePolicy::Strict => {
                Err(Error::unsupported("size", format!("size: {detail}, and size_policy is strict")))
            }
            pb::SizePolicy::ResizeAfter => {
                let exact = match wanted.size {
                    Some(pb::size::Size::Dimensions(dimensions)) => Some(dimensions),
                    _ => None,
                };
                let detail = format!(
                    "{} is not a size of {}; made as {sent} and resized",
                    wanted.text(),
                    self.model()
                );
                self.notes.change("size", Action::Emulated, detail)?;
                Ok(exact)
            }
            pb::SizePolicy::Unspecified => {
                self.notes.change("size", Action::Adjusted, detail)?;
                Ok(None)
            }
        }
    }

    /// Returns the format to convert to afterwards, if the model does not make the one asked for.
    fn format(&mut self) -> Result<Option<ImageFormat>> {
        let wanted = self.request.wanted_format();
        let formats = &self.capability.formats;
        if wanted == ImageFormat::Unspecified {
            return Ok(None);
        }
        if formats.contains(&wanted.into()) {
            // Still checked afterwards: a compatible server may ignore the field.
            return Ok(
                matches!(wanted, ImageFormat::Png | ImageFormat::Jpeg | ImageFormat::Webp).then_some(wanted)
            );
        }
        if !matches!(wanted, ImageFormat::Png | ImageFormat::Jpeg | ImageFormat::Webp) {
            return Err(self.unsupported("output_format", format_args!("does not make {}", wanted.name())));
        }
        params::clear(&mut self.request, "output_format");
        let detail = format!("{} does not make {}; converted", self.model(), wanted.name());
        // The caller gets what it asked for, so that this is no change even under the strict policy.
        self.notes.add("output_format", Action::Emulated, detail);
        Ok(Some(wanted))
    }

    fn parameters(&mut self) -> Result<()> {
        for name in params::NAMES {
            if let Some(value) = params::get(&self.request, name) {
                self.parameter(name, &value)?;
            }
        }
        Ok(())
    }

    fn parameter(&mut self, name: &str, value: &Value) -> Result<()> {
        let Some(rule) = self.rule(name) else {
            // Handled with the format: it may be us who compresses.
            if name == "output_compression" {
                return Ok(());
            }
            return self.drop(
                name,
                format!("{}: {} has no such parameter", params::shown(name, value), self.model()),
            );
        };
        let Some(fitted) = nearest(name, value, rule, self.capability.max_seed) else {
            let allowed = rule.values.join(", ");
            return self.drop(
                name,
                format!(
                    "{} is not allowed by {}; allowed: {allowed}",
                    params::shown(name, value),
                    self.model()
                ),
            );
        };
        if fitted == *value {
            return Ok(());
        }
        if self.notes.policy == ParamsPolicy::Drop {
            return self
                .drop(name, format!("{} is not allowed by {}", params::shown(name, value), self.model()));
        }
        let detail =
            format!("{} is not allowed by {}; {fitted} was used", params::shown(name, value), self.model());
        params::set(&mut self.request, name, &fitted)?;
        self.notes.change(name, Action::Adjusted, detail)
    }

    fn extras(&mut self, provider: &str) -> Result<()> {
        self.request.provider_extras.retain(|key, _| key == provider || key == params::ANY_PROVIDER);
        if self.rule("*").is_some() {
            return Ok(());
        }
        let names = self.request.provider_extras.values().flat_map(|extras| extras.fields.keys().cloned());
        for name in names.collect::<Vec<_>>() {
            if self.rule(&name).is_none() {
                self.drop(&name, format!("{} has no such parameter", self.model()))?;
            }
        }
        Ok(())
    }

    fn partial_images(&mut self) -> Result<()> {
        let wanted = self.request.partial_images.unwrap_or_default();
        let allowed = self.capability.max_partial_images;
        if wanted <= allowed {
            return Ok(());
        }
        self.request.partial_images = (allowed > 0).then_some(allowed);
        let detail = format!("{} sends at most {allowed} previews, not {wanted}", self.model());
        self.notes.change("partial_images", Action::Adjusted, detail)
    }

    /// Returns the compression for our own conversion.
    fn compression(&mut self, format: Option<ImageFormat>) -> Result<Option<u32>> {
        let Some(compression) = self.request.output.and_then(|output| output.compression) else {
            return Ok(None);
        };
        let native = self.capability.formats.contains(&self.request.wanted_format().into());
        if self.rule("output_compression").is_some() && (native || format.is_none()) {
            return Ok(Some(compression));
        }
        params::clear(&mut self.request, "output_compression");
        if format == Some(ImageFormat::Jpeg) {
            return Ok(Some(compression));
        }
        self.drop("output_compression", format!("{} cannot compress this format", self.model()))?;
        Ok(None)
    }

    fn drop(&mut self, name: &str, reason: String) -> Result<()> {
        let detail = format!("{reason}; dropped");
        params::clear(&mut self.request, name);
        self.notes.change(name, Action::Dropped, detail)
    }

    fn rule(&self, name: &str) -> Option<&'a pb::ParameterRule> {
        self.capability
            .parameters
            .iter()
            .find(|rule| params::canonical(&rule.name) == params::canonical(name))
    }
}

fn in_words(operation: Operation) -> String {
    operation.name().replace('_', " ")
}

/// The allowed value that comes nearest; none if nothing is near.
fn nearest(name: &str, value: &Value, rule: &pb::ParameterRule, max_seed: u64) -> Option<Value> {
    if let ("seed", Some(seed)) = (name, value.as_u64()) {
        let max = if max_seed == 0 { u64::from(u32::MAX) } else { max_seed };
        return Some(if seed <= max { seed } else { seed % (max + 1) }.into());
    }
    if let Some(number) = value.as_f64() {
        let clamped = number.max(rule.min.unwrap_or(number)).min(rule.max.unwrap_or(number));
        #[expect(clippy::float_cmp, reason = "unchanged, not nearly equal")]
        let unchanged = clamped == number;
        return Some(match value {
            _ if unchanged => value.clone(),
            Value::Number(n) if n.is_u64() => (clamped as u64).into(),
            _ => clamped.into(),
        });
    }
    let text = value.as_str()?;
    if rule.values.is_empty() || rule.values.iter().any(|allowed| allowed == text) {
        return Some(value.clone());
    }
    if name != "quality" {
        return None;
    }
    let wanted = params::quality(text)?;
    let allowed = rule.values.iter().filter_map(|allowed| params::quality(allowed));
    // Of two that are as near, the cheaper.
    let distance = |quality: &Quality| ((*quality as i32 - wanted as i32).abs(), *quality as i32);
    let fitted = allowed.filter(|quality| *quality != Quality::Unspecified).min_by_key(distance)?;
    params::quality_name(fitted).map(Value::from)
}

/// One call per `max_n` images. Seeds count on, so that the images differ and can be made again.
fn fan_out(request: ImageRequest, capability: &ModelCapability) -> Vec<ImageRequest> {
    let previews = request.partial_images.is_some_and(|previews| previews > 0);
    // Events of a stream do not say which image they are of.
    let per_call = if previews { 1 } else { capability.max_n.max(1) as usize };
    let wanted = request.wanted();
    let max_seed = if capability.max_seed == 0 { u64::from(u32::MAX) } else { capability.max_seed };
    let mut calls = vec![request; wanted.div_ceil(per_call)];
    for (first, call) in (0..wanted).step_by(per_call).zip(&mut calls) {
        call.n = Some(u32::try_from(per_call.min(wanted - first)).unwrap_or(u32::MAX));
        call.seed = call.seed.map(|seed| seed.wrapping_add(first as u64) % max_seed.saturating_add(1).max(1));
    }
    calls
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::error::ErrorKind;

    fn provider() -> Arc<pb::Provider> {
        let rule = |name: &str, values: &[&str], max: Option<f64>| pb::ParameterRule {
            name: name.into(),
            values: values.iter().map(ToString::to_string).collect(),
            min: None,
            max,
        };
        let sizes =
            vec![pb::Dimensions { width: 1024, height: 1024 }, pb::Dimensions { width: 1792, height: 1024 }];
        let fixed = pb::ModelCapability {
            model: "fixed".into(),
            operations: vec![Operation::Generate.into()],
            max_n: 1,
            size: Some(pb::SizeRule {
                rule: Some(pb::size_rule::Rule::List(pb::SizeList { sizes })),
                auto: false,
            }),
            max_prompt_chars: 20,
            formats: vec![ImageFormat::Png.into()],
            parameters: vec![
                rule("quality", &["standard", "hd"], None),
                rule("style", &["vivid"], None),
                rule("cfg_scale", &[], Some(10.0)),
                rule("seed", &[], None),
            ],
            lifecycle: Some(pb::Lifecycle { retired_on: "2000-01-01".into(), successor: "free".into() }),
            ..Default::default()
        };
        let free = pb::ModelCapability {
            model: "free".into(),
            operations: vec![Operation::Generate.into(), Operation::Edit.into()],
            max_n: 4,
            ..Default::default()
        };
        Arc::new(pb::Provider {
            name: "p".into(),
            models: vec![fixed, free],
            keyless: true,
            ..Default::default()
        })
    }

    fn request(fields: Value) -> ImageRequest {
        let mut request = ImageRequest::default();
        for (name, value) in fields.as_object().unwrap() {
            params::set(&mut request, name, value).unwrap();
        }
        request
    }

    fn fit_it(request: &ImageRequest, provider: &Arc<pb::Provider>) -> Result<Fitted> {
        fit(request, provider, ParamsPolicy::Nearest, RetiredModels::Warn)
    }

    fn said(fitted: &Fitted) -> Vec<String> {
        fitted.warnings.iter().map(|w| format!("{} {}", w.field, w.action().as_str_name())).collect()
    }

    #[test]
    fn every_change_is_reported() {
        let provider = provider();
        let request = request(json!({
            "model": "fixed", "prompt": "a cat", "n": 3, "size": "1000x1000", "quality": "low", "style": "anime",
            "cfg_scale": 30, "negative_prompt": "rain", "seed": 7, "output_format": "webp", "tiling": true,
        }));
        let fitted = fit_it(&request, &provider).unwrap();
        assert_eq!(
            said(&fitted),
            [
                "model ACTION_NOTICE",
                "size ACTION_ADJUSTED",
                "output_format ACTION_EMULATED",
                "quality ACTION_ADJUSTED",
                "style ACTION_DROPPED",
                "guidance ACTION_ADJUSTED",
                "negative_prompt ACTION_DROPPED",
                "tiling ACTION_DROPPED",
                "n ACTION_EMULATED",
            ]
        );
        assert_eq!(
            fitted.calls.iter().map(|call| (call.n, call.seed)).collect::<Vec<_>>(),
            [(Some(1), Some(7)), (Some(1), Some(8)), (Some(1), Some(9))]
        );
        let call = &fitted.calls[0];
        assert_eq!(call.size.unwrap().text(), "1024x1024");
        assert_eq!(call.quality(), Quality::Medium);
        assert_eq!(call.guidance, Some(10.0));
        assert!(call.style.is_empty() && call.negative_prompt.is_empty());
        assert_eq!(params::get(call, "tiling"), None);
        assert_eq!(fitted.wish.format, Some(ImageFormat::Webp));
    }

    #[test]
    fn a_request_that_fits_is_left_alone() {
        let provider = provider();
        let request = request(json!({"model": "free", "prompt": "a cat", "n": 6}));
        let fitted = fit_it(&request, &provider).unwrap();
        assert_eq!(said(&fitted), ["n ACTION_EMULATED"]);
        assert_eq!(fitted.calls.iter().map(|call| call.n).collect::<Vec<_>>(), [Some(4), Some(2)]);
    }

    #[test]
    fn what_cannot_be_served_is_unsupported_before_any_call() {
        let provider = provider();
        for (fields, param) in [
            (json!({"model": "nope", "prompt": "x"}), "model"),
            (json!({"model": "fixed", "prompt": "a prompt of more than twenty characters"}), "prompt"),
            (json!({"model": "fixed", "prompt": "x", "output_format": "svg"}), "output_format"),
        ] {
            let error = fit_it(&request(fields), &provider).unwrap_err();
            assert_eq!((error.kind, error.param.as_deref()), (ErrorKind::Unsupported, Some(param)));
        }
        let mut edit = request(json!({"model": "fixed", "prompt": "x"}));
        edit.inputs.push(pb::InputImage::default());
        assert_eq!(fit_it(&edit, &provider).unwrap_err().param.as_deref(), Some("operation"));
    }

    #[test]
    fn the_strict_policy_refuses_every_change() {
        let provider = provider();
        for fields in
            [json!({"quality": "low"}), json!({"size": "1000x1000"}), json!({"negative_prompt": "x"})]
        {
            let mut request = request(fields);
            request.model = "fixed".into();
            let error = fit(&request, &provider, ParamsPolicy::Strict, RetiredModels::Warn).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Unsupported);
        }
    }

    #[test]
    fn a_retired_model_is_named_replaced_or_refused_as_configured() {
        let provider = provider();
        let request = request(json!({"model": "fixed", "prompt": "x"}));
        let warned = fit_it(&request, &provider).unwrap();
        assert!(warned.warnings[0].detail.contains("successor is free"));
        let replaced = fit(&request, &provider, ParamsPolicy::Nearest, RetiredModels::Substitute).unwrap();
        assert_eq!(replaced.calls[0].model, "free");
        assert!(fit(&request, &provider, ParamsPolicy::Nearest, RetiredModels::Fail).is_err());
    }

    #[test]
    fn a_request_without_model_gets_the_first_live_one_that_can() {
        let provider = provider();
        let fitted = fit_it(&request(json!({"prompt": "x"})), &provider).unwrap();
        assert_eq!(fitted.calls[0].model, "free");
        assert_eq!(fitted.warnings[0].field, "model");
    }

    #[test]
    fn days_become_dates() {
        for (days, expected) in
            [(0, "1970-01-01"), (59, "1970-03-01"), (19_782, "2024-02-29"), (20_779, "2026-11-22")]
        {
            assert_eq!(date(days), expected);
        }
    }
}
