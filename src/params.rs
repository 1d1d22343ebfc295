//! Request parameters by name: what OpenAI's JSON, a multipart form and a config's `override_params` write,
//! as fields of [`ImageRequest`].
//!
//! One table of names for reading, setting and clearing, so that a body, an override and a model's parameter
//! rule can never mean different fields. What no field has is an extra for the provider.

use serde_json::Value;

use crate::{
    error::{Error, Result},
    pb::{self, ImageRequest, Quality},
};

/// Most images one request may ask for; ten times what most providers make in one call.
pub const MAX_IMAGES: u32 = 50;

/// The extras of whichever target serves the request.
pub const ANY_PROVIDER: &str = "*";

/// Every parameter that is a field of its own and that a model may lack, by its canonical name.
pub const NAMES: &[&str] = &[
    "quality",
    "style",
    "seed",
    "steps",
    "guidance",
    "negative_prompt",
    "strength",
    "sampler",
    "scheduler",
    "background",
    "output_compression",
    "moderation",
    "input_fidelity",
    "user",
];

/// The canonical name for any spelling that clients use.
pub fn canonical(name: &str) -> &str {
    match name {
        "cfg_scale" | "guidance_scale" => "guidance",
        "style_preset" => "style",
        "safety_identifier" => "user",
        "num_inference_steps" => "steps",
        name => name,
    }
}

/// Sets a parameter. `null` clears it. Unknown names become extras for the provider.
///
/// # Errors
/// [`Error::invalid`] with the name, the value and what is allowed.
pub fn set(request: &mut ImageRequest, name: &str, value: &Value) -> Result<()> {
    if value.is_null() {
        clear(request, name);
        return Ok(());
    }
    match canonical(name) {
        "prompt" => request.prompt = text(name, value)?.into(),
        "model" => request.model = text(name, value)?.into(),
        "n" => request.n = Some(whole(name, value, 1, u64::from(MAX_IMAGES))? as u32),
        "size" => request.size = Some(parse_size(name, text(name, value)?)?),
        "aspect_ratio" => request.size = Some(parse_ratio(name, text(name, value)?)?),
        "quality" => {
            request.quality = quality(text(name, value)?)
                .ok_or_else(|| not_allowed(name, value, "auto, low, medium, standard, high, hd, xhigh, max"))?
                .into();
        }
        "style" => request.style = text(name, value)?.into(),
        "seed" => request.seed = Some(whole(name, value, 0, u64::MAX)?),
        "steps" => request.steps = Some(whole(name, value, 1, 10_000)? as u32),
        "guidance" => request.guidance = Some(number(name, value)? as f32),
        "negative_prompt" => request.negative_prompt = text(name, value)?.into(),
        "strength" => request.strength = Some(fraction(name, value)?),
        "sampler" => request.sampler = text(name, value)?.into(),
        "scheduler" => request.scheduler = text(name, value)?.into(),
        "search_prompt" => request.search_prompt = text(name, value)?.into(),
        "user" => request.end_user = text(name, value)?.into(),
        "response_format" => {
            let delivery = match text(name, value)? {
                "url" => pb::Delivery::Url,
                "b64_json" => pb::Delivery::Bytes,
                _ => return Err(not_allowed(name, value, "url, b64_json")),
            };
            request.output_mut().delivery = delivery.into();
        }
        "output_format" => {
            let format = pb::ImageFormat::from_name(text(name, value)?)
                .ok_or_else(|| not_allowed(name, value, "png, jpeg, webp, gif, svg, avif"))?;
            request.output_mut().format = format.into();
        }
        "output_compression" => {
            request.output_mut().compression = Some(whole(name, value, 0, 100)? as u32);
        }
        "background" => {
            let background = match text(name, value)? {
                "auto" => pb::Background::Unspecified,
                "opaque" => pb::Background::Opaque,
                "transparent" => pb::Background::Transparent,
                _ => return Err(not_allowed(name, value, "auto, opaque, transparent")),
            };
            request.output_mut().background = background.into();
        }
        "moderation" => {
            let moderation = match text(name, value)? {
                "auto" => pb::Moderation::Unspecified,
                "low" => pb::Moderation::Low,
                "strict" => pb::Moderation::Strict,
                _ => return Err(not_allowed(name, value, "auto, low, strict")),
            };
            request.moderation = moderation.into();
        }
        "input_fidelity" => {
            let fidelity = match text(name, value)? {
                "low" => pb::InputFidelity::Low,
                "high" => pb::InputFidelity::High,
                _ => return Err(not_allowed(name, value, "low, high")),
            };
            request.input_fidelity = fidelity.into();
        }
        "partial_images" => request.partial_images = Some(whole(name, value, 0, 3)? as u32),
        // Streaming is how the answer is delivered, decided where the request came in.
        "stream" => {}
        extra => {
            let extras = request.provider_extras.entry(ANY_PROVIDER.into()).or_default();
            extras.fields.insert(extra.to_owned(), from_json(value));
        }
    }
    Ok(())
}

/// Sets a parameter from a form's text, where numbers are written like texts.
pub fn set_text(request: &mut ImageRequest, name: &str, text: &str) -> Result<()> {
    let value = match canonical(name) {
        "n" | "seed" | "steps" | "guidance" | "strength" | "output_compression" | "partial_images" => {
            serde_json::from_str(text.trim()).unwrap_or_else(|_| Value::String(text.to_owned()))
        }
        _ => Value::String(text.to_owned()),
    };
    set(request, name, &value)
}

/// A parameter's value as its name would be written, if it is set.
pub fn get(request: &ImageRequest, name: &str) -> Option<Value> {
    let text = |value: &str| (!value.is_empty()).then(|| Value::from(value));
    let output = request.output.unwrap_or_default();
    match canonical(name) {
        "prompt" => text(&request.prompt),
        "model" => text(&request.model),
        "n" => request.n.map(Value::from),
        "size" | "aspect_ratio" => request.size.map(|size| Value::from(size.text())),
        "quality" => quality_name(request.quality()).map(Value::from),
        "style" => text(&request.style),
        "seed" => request.seed.map(Value::from),
        "steps" => request.steps.map(Value::from),
        "guidance" => request.guidance.map(decimal),
        "negative_prompt" => text(&request.negative_prompt),
        "strength" => request.strength.map(decimal),
        "sampler" => text(&request.sampler),
        "scheduler" => text(&request.scheduler),
        "search_prompt" => text(&request.search_prompt),
        "user" => text(&request.end_user),
        "response_format" => match output.delivery() {
            pb::Delivery::Unspecified => None,
            pb::Delivery::Bytes => Some("b64_json".into()),
            pb::Delivery::Url => Some("url".into()),
        },
        "output_format" => {
            (output.format() != pb::ImageFormat::Unspecified).then(|| output.format().name().into())
        }
        "output_compression" => output.compression.map(Value::from),
        "background" => background_name(output.background()).map(Value::from),
        "moderation" => match request.moderation() {
            pb::Moderation::Unspecified => None,
            pb::Moderation::Low => Some("low".into()),
            pb::Moderation::Strict => Some("strict".into()),
        },
        "input_fidelity" => match request.input_fidelity() {
            pb::InputFidelity::Unspecified => None,
            pb::InputFidelity::Low => Some("low".into()),
            pb::InputFidelity::High => Some("high".into()),
        },
        "partial_images" => request.partial_images.map(Value::from),
        extra => request.provider_extras.get(ANY_PROVIDER)?.fields.get(extra).map(to_json),
    }
}

/// Removes a parameter. The path of an extra may go inside it: `a.b`, `a[0].b`, `a[*].b`.
pub fn clear(request: &mut ImageRequest, path: &str) {
    match canonical(path) {
        "prompt" => request.prompt.clear(),
        "model" => request.model.clear(),
        "n" => request.n = None,
        "size" | "aspect_ratio" => request.size = None,
        "quality" => request.quality = 0,
        "style" => request.style.clear(),
        "seed" => request.seed = None,
        "steps" => request.steps = None,
        "guidance" => request.guidance = None,
        "negative_prompt" => request.negative_prompt.clear(),
        "strength" => request.strength = None,
        "sampler" => request.sampler.clear(),
        "scheduler" => request.scheduler.clear(),
        "search_prompt" => request.search_prompt.clear(),
        "user" => request.end_user.clear(),
        "response_format" => request.output_mut().delivery = 0,
        "output_format" => request.output_mut().format = 0,
        "output_compression" => request.output_mut().compression = None,
        "background" => request.output_mut().background = 0,
        "moderation" => request.moderation = 0,
        "input_fidelity" => request.input_fidelity = 0,
        "partial_images" => request.partial_images = None,
        path => {
            for extras in request.provider_extras.values_mut() {
                remove_at(extras, path);
            }
        }
    }
}

/// The quality that any provider's word for it means; `auto` is [`Quality::Unspecified`].
pub fn quality(name: &str) -> Option<Quality> {
    match name {
        "auto" => Some(Quality::Unspecified),
        "low" => Some(Quality::Low),
        "medium" | "standard" => Some(Quality::Medium),
        "high" | "hd" => Some(Quality::High),
        "xhigh" => Some(Quality::Xhigh),
        "max" => Some(Quality::Max),
        _ => None,
    }
}

/// `low` to `max`; none for the model's own choice.
pub fn quality_name(quality: Quality) -> Option<&'static str> {
    match quality {
        Quality::Unspecified => None,
        Quality::Low => Some("low"),
        Quality::Medium => Some("medium"),
        Quality::High => Some("high"),
        Quality::Xhigh => Some("xhigh"),
        Quality::Max => Some("max"),
    }
}

/// `opaque` or `transparent`; none for the model's own choice.
pub fn background_name(background: pb::Background) -> Option<&'static str> {
    match background {
        pb::Background::Unspecified => None,
        pb::Background::Opaque => Some("opaque"),
        pb::Background::Transparent => Some("transparent"),
    }
}

/// A protobuf value as JSON.
pub fn to_json(value: &prost_types::Value) -> Value {
    use prost_types::value::Kind;
    match &value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(value)) => Value::Bool(*value),
        // JSON has one kind of number, protobuf's Struct only doubles: whole ones are written as integers.
        Some(Kind::NumberValue(value)) if value.fract() == 0.0 && value.abs() < 9e15 => {
            (*value as i64).into()
        }
        Some(Kind::NumberValue(value)) => {
            serde_json::Number::from_f64(*value).map_or(Value::Null, Value::Number)
        }
        Some(Kind::StringValue(value)) => Value::String(value.clone()),
        Some(Kind::StructValue(value)) => {
            Value::Object(value.fields.iter().map(|(name, value)| (name.clone(), to_json(value))).collect())
        }
        Some(Kind::ListValue(value)) => Value::Array(value.values.iter().map(to_json).collect()),
    }
}

/// JSON as a protobuf value.
pub fn from_json(value: &Value) -> prost_types::Value {
    use prost_types::value::Kind;
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(value) => Kind::BoolValue(*value),
        Value::Number(value) => Kind::NumberValue(value.as_f64().unwrap_or(f64::NAN)),
        Value::String(value) => Kind::StringValue(value.clone()),
        Value::Array(values) => {
            Kind::ListValue(prost_types::ListValue { values: values.iter().map(from_json).collect() })
        }
        Value::Object(fields) => Kind::StructValue(prost_types::Struct {
            fields: fields.iter().map(|(name, value)| (name.clone(), from_json(value))).collect(),
        }),
    };
    prost_types::Value { kind: Some(kind) }
}

/// The number that was written: 0.7, not its nearest binary fraction 0.699999988.
fn decimal(value: f32) -> Value {
    value.to_string().parse::<f64>().map_or(Value::Null, Value::from)
}

fn text<'a>(name: &str, value: &'a Value) -> Result<&'a str> {
    value.as_str().ok_or_else(|| not_allowed(name, value, "a text"))
}

fn number(name: &str, value: &Value) -> Result<f64> {
    value.as_f64().filter(|n| n.is_finite()).ok_or_else(|| not_allowed(name, value, "a number"))
}

fn fraction(name: &str, value: &Value) -> Result<f32> {
    let number = number(name, value)?;
    if !(0.0..=1.0).contains(&number) {
        return Err(not_allowed(name, value, "0 to 1"));
    }
    Ok(number as f32)
}

fn whole(name: &str, value: &Value, min: u64, max: u64) -> Result<u64> {
    // To JavaScript and to protobuf's Struct 2.0 is a whole number.
    let from_float =
        || value.as_f64().filter(|n| n.fract() == 0.0 && (0.0..9e15).contains(n)).map(|n| n as u64);
    value.as_u64().or_else(from_float).filter(|n| (min..=max).contains(n)).ok_or_else(|| {
        let allowed =
            if max == u64::MAX { format!("a whole number from {min}") } else { format!("{min} to {max}") };
        not_allowed(name, value, &allowed)
    })
}

fn parse_size(name: &str, text: &str) -> Result<pb::Size> {
    if text.eq_ignore_ascii_case("auto") {
        return Ok(pb::Size { size: Some(pb::size::Size::Auto(true)) });
    }
    if text.contains(':') {
        return parse_ratio(name, text);
    }
    let side = |text: &str| text.trim().parse::<u32>().ok().filter(|side| (1..=16_384).contains(side));
    text.to_ascii_lowercase()
        .split_once('x')
        .and_then(|(width, height)| Some(pb::Size::pixels(side(width)?, side(height)?)))
        .ok_or_else(|| {
            not_allowed(name, &text.into(), "auto, WIDTHxHEIGHT such as 1024x1024, or W:H such as 16:9")
        })
}

fn parse_ratio(name: &str, text: &str) -> Result<pb::Size> {
    let part = |text: &str| text.trim().parse::<f64>().ok().filter(|part| *part > 0.0 && *part <= 100_000.0);
    text.split_once(':')
        .and_then(|(width, height)| Some(pb::AspectRatio { width: part(width)?, height: part(height)? }))
        .map(|ratio| pb::Size { size: Some(pb::size::Size::AspectRatio(ratio)) })
        .ok_or_else(|| not_allowed(name, &text.into(), "W:H such as 16:9"))
}

fn not_allowed(name: &str, value: &Value, allowed: &str) -> Error {
    let message = format!("{name}: {} is not allowed; allowed: {allowed}", shown(name, value));
    Error::invalid(name, message).with_code("invalid_value")
}

/// A parameter's value for messages and logs. What people write in their own words is not shown.
pub fn shown(name: &str, value: &Value) -> String {
    let settings =
        ["model", "n", "size", "aspect_ratio", "response_format", "output_format", "partial_images"];
    let is_setting = settings.contains(&name) || NAMES.contains(&canonical(name));
    let is_private = matches!(canonical(name), "negative_prompt" | "user");
    match value {
        Value::Bool(_) | Value::Number(_) | Value::Null => value.to_string(),
        Value::String(text) if is_setting && !is_private && text.chars().count() <= 64 => value.to_string(),
        Value::String(_) => "this text".into(),
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "an object".into(),
    }
}

fn remove_at(fields: &mut prost_types::Struct, path: &str) {
    use prost_types::value::Kind;
    let (head, rest) = match path.find(['.', '[']) {
        None => {
            fields.fields.remove(path);
            return;
        }
        Some(end) => path.split_at(end),
    };
    let Some(kind) = fields.fields.get_mut(head).and_then(|value| value.kind.as_mut()) else { return };
    let Some(index) = rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) else {
        if let Kind::StructValue(inner) = kind {
            remove_at(inner, rest.trim_start_matches('.'));
        }
        return;
    };
    let (Kind::ListValue(list), (index, rest)) = (kind, index) else { return };
    let rest = rest.trim_start_matches('.');
    for (i, item) in list.values.iter_mut().enumerate() {
        let chosen = index == "*" || index.parse() == Ok(i);
        if let (true, Some(Kind::StructValue(inner))) = (chosen, item.kind.as_mut()) {
            remove_at(inner, rest);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_set_can_be_read_and_cleared() {
        for (name, value) in [
            ("prompt", json!("a cat")),
            ("model", json!("dall-e-3")),
            ("n", json!(3)),
            ("size", json!("1024x1536")),
            ("size", json!("16:9")),
            ("size", json!("auto")),
            ("quality", json!("high")),
            ("style", json!("vivid")),
            ("seed", json!(0)),
            ("steps", json!(30)),
            ("guidance", json!(7.5)),
            ("negative_prompt", json!("rain")),
            ("strength", json!(0.5)),
            ("response_format", json!("url")),
            ("output_format", json!("webp")),
            ("output_compression", json!(80)),
            ("background", json!("transparent")),
            ("moderation", json!("low")),
            ("input_fidelity", json!("high")),
            ("user", json!("u1")),
            ("partial_images", json!(2)),
            ("svg", json!({"model": "x", "list": [1, true, null]})),
        ] {
            let mut request = ImageRequest::default();
            set(&mut request, name, &value).unwrap();
            assert_eq!(get(&request, name), Some(value), "{name}");
            clear(&mut request, name);
            assert_eq!(get(&request, name), None, "{name}");
        }
    }

    #[test]
    fn a_wrong_value_is_refused_with_name_value_and_what_is_allowed() {
        for (name, value, said) in [
            ("n", json!(0), "n: 0 is not allowed; allowed: 1 to 50"),
            ("n", json!("2"), "n: \"2\" is not allowed; allowed: 1 to 50"),
            ("size", json!("big"), "size: \"big\" is not allowed"),
            ("size", json!(1024), "size: 1024 is not allowed; allowed: a text"),
            ("quality", json!("ultra"), "quality: \"ultra\" is not allowed; allowed: auto, low"),
            ("response_format", json!("png"), "allowed: url, b64_json"),
            ("output_compression", json!(101), "allowed: 0 to 100"),
        ] {
            let error = set(&mut ImageRequest::default(), name, &value).unwrap_err();
            assert!(error.message.contains(said), "{}", error.message);
            assert_eq!(error.param.as_deref(), Some(name));
        }
    }

    #[test]
    fn a_form_writes_numbers_as_text() {
        let mut request = ImageRequest::default();
        set_text(&mut request, "n", "3").unwrap();
        set_text(&mut request, "user", "42").unwrap();
        assert_eq!((request.n, request.end_user.as_str()), (Some(3), "42"));
        assert!(set_text(&mut request, "n", "three").is_err());
    }

    #[test]
    fn a_drop_path_reaches_into_extras() {
        let mut request = ImageRequest::default();
        set(&mut request, "a", &json!({"b": 1, "c": [{"d": 1, "e": 2}, {"d": 3}]})).unwrap();
        clear(&mut request, "a.b");
        clear(&mut request, "a.c[*].d");
        clear(&mut request, "a.missing.path");
        assert_eq!(get(&request, "a"), Some(json!({"c": [{"e": 2}, {}]})));
    }
}
