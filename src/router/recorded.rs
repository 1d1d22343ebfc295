//! A request after it is over: what of it goes into the log, and the request again as far as the log can tell it.
//!
//! What it says is not kept, only how much: a model's limits can be checked against a text of the same length. What
//! depends on the text itself is hidden, and nothing is decided by it.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::{
    config::{condition::Field, plan::Upstream},
    params,
    pb::{self, ImageRequest, RequestRecord, Subject},
};

/// More is not kept: entries of the caller's metadata, and characters of a value, as the reference has it.
const METADATA_ENTRIES: usize = 32;
const METADATA_CHARS: usize = 128;

/// The metadata that a request's `user` is, in the reference's words.
const USER: &str = "_user";

/// More is not kept: names of parameters, their characters, and inputs.
const EXTRAS: usize = 16;
const EXTRA_CHARS: usize = 64;
const INPUTS: usize = 64;

/// A text that is longer than any model takes stands for all that are.
const LONGEST_TEXT: u32 = 1_000_000;

/// Parameters that are fields of every request, beside [`params::NAMES`].
const FIELDS: &[&str] =
    &["prompt", "model", "n", "size", "aspect_ratio", "search_prompt", "response_format", "output_format"];

/// A request of the log.
pub struct Recorded {
    /// With texts of the right length in place of those that are not known.
    pub image: ImageRequest,
    /// As far as it is known.
    pub metadata: Value,
    /// Provider and virtual key that the request named itself, if it did.
    pub named: Option<(String, String)>,
    /// Previews could be shown.
    pub streamed: bool,
    hidden: Hidden,
}

/// Fields whose values are not known.
#[derive(Debug, Default)]
struct Hidden {
    params: Vec<String>,
    metadata: Vec<String>,
    /// There may be others.
    more_params: bool,
    more_metadata: bool,
}

/// What is kept of what a caller says about a request, and for whom it is; empty: for nobody in particular.
pub fn metadata(said: &Value, end_user: &str) -> BTreeMap<String, String> {
    let cut = |text: &str| text.chars().take(METADATA_CHARS).collect::<String>();
    let text = |value: &Value| match value {
        Value::String(text) => cut(text),
        other => cut(&other.to_string()),
    };
    let said = said.as_object().into_iter().flatten().take(METADATA_ENTRIES);
    let mut metadata: BTreeMap<_, _> = said.map(|(name, value)| (cut(name), text(value))).collect();
    if !end_user.is_empty() {
        metadata.entry(USER.to_owned()).or_insert_with(|| cut(end_user));
    }
    metadata
}

/// What a request is about. `named` is what it named itself.
pub fn subject(
    request: &ImageRequest,
    metadata: &Value,
    named: Option<&Upstream>,
    streamed: bool,
) -> Subject {
    let wanted = request.weighted_prompts.iter().filter(|prompt| prompt.weight > 0.0);
    let wanted: Vec<&str> = wanted.map(|prompt| prompt.text.as_str()).collect();
    let extras = request
        .provider_extras
        .iter()
        .flat_map(|(provider, extras)| extras.fields.keys().map(move |name| format!("{provider}.{name}")));
    let cut = |name: String| name.chars().take(EXTRA_CHARS).collect();
    let typed = metadata.as_object().into_iter().flatten().take(METADATA_ENTRIES);
    let typed = typed.filter(|(_, value)| !value.is_string());
    Subject {
        prompt_chars: chars(&request.prompt),
        negative_prompt_chars: chars(&request.negative_prompt),
        search_prompt_chars: chars(&request.search_prompt),
        weighted_prompt_chars: (!request.weighted_prompts.is_empty()).then(|| chars(&wanted.join(", "))),
        inputs: request
            .inputs
            .iter()
            .take(INPUTS)
            .map(|input| pb::InputImage { source: None, role: input.role, weight: input.weight })
            .collect(),
        mask: request.mask.is_some(),
        end_user: !request.end_user.is_empty(),
        extras: extras.take(EXTRAS).map(cut).collect(),
        typed_metadata: typed.map(|(name, _)| name.chars().take(METADATA_CHARS).collect()).collect(),
        provider: named.map_or_else(String::new, |named| named.provider.clone()),
        virtual_key: named.and_then(|named| named.virtual_key.clone()).unwrap_or_default(),
        streamed,
    }
}

impl Recorded {
    /// The request again. None: nothing of it was kept.
    pub fn read(record: &RequestRecord) -> Option<Self> {
        let (asked, subject) = (record.asked.as_ref()?, record.subject.as_ref()?);
        let mut hidden = Hidden::default();
        let mut text = |name: &str, chars: u32| {
            if chars > 0 {
                hidden.params.push(name.to_owned());
            }
            filler(chars)
        };
        let mut image = ImageRequest {
            negative_prompt: text("negative_prompt", subject.negative_prompt_chars),
            search_prompt: text("search_prompt", subject.search_prompt_chars),
            prompt: match record.prompt.as_str() {
                "" => text("prompt", subject.prompt_chars),
                known => known.to_owned(),
            },
            inputs: subject.inputs.clone(),
            mask: subject.mask.then(pb::Mask::default),
            ..asked.clone()
        };
        if let Some(chars) = subject.weighted_prompt_chars {
            image.weighted_prompts.push(pb::WeightedPrompt { text: filler(chars), weight: 1.0 });
        }
        for extra in &subject.extras {
            let Some((provider, name)) = extra.split_once('.') else { continue };
            let extras = image.provider_extras.entry(provider.to_owned()).or_default();
            extras.fields.insert(name.to_owned(), params::from_json(&Value::Bool(true)));
            hidden.params.push(name.to_owned());
        }
        hidden.more_params = subject.extras.len() >= EXTRAS;
        if subject.end_user {
            image.end_user = record.metadata.get(USER).cloned().unwrap_or_default();
            // Both may be the other one's.
            hidden.params.push("user".to_owned());
            hidden.metadata.push(USER.to_owned());
        }
        let metadata = hidden.metadata(record, subject);
        let named =
            (!subject.provider.is_empty()).then(|| (subject.provider.clone(), subject.virtual_key.clone()));
        Some(Self { image, metadata, named, streamed: subject.streamed, hidden })
    }

    /// Whether the value of a field is not known.
    pub fn hides(&self, field: &Field) -> bool {
        let is_in = |names: &[String], path: &str| {
            names.iter().any(|name| {
                path.strip_prefix(name.as_str())
                    .is_some_and(|rest| matches!(rest.chars().next(), None | Some('.')))
            })
        };
        match field {
            Field::Params(path) => {
                let name = params::canonical(path);
                let is_extra = !FIELDS.contains(&name) && !params::NAMES.contains(&name);
                is_in(&self.hidden.params, name) || (self.hidden.more_params && is_extra)
            }
            Field::Metadata(path) => {
                let is_there = self.metadata.get(path.split('.').next().unwrap_or_default()).is_some();
                is_in(&self.hidden.metadata, path) || (self.hidden.more_metadata && !is_there)
            }
            Field::Pathname => false,
        }
    }
}

impl Hidden {
    /// What was kept of the caller's metadata. What may have been cut off is hidden.
    fn metadata(&mut self, record: &RequestRecord, subject: &Subject) -> Value {
        let mut metadata = Map::new();
        self.more_metadata = record.metadata.len() >= METADATA_ENTRIES;
        for (name, text) in &record.metadata {
            let value = match subject.typed_metadata.contains(name) {
                true => serde_json::from_str(text).ok(),
                false => Some(Value::from(text.as_str())),
            };
            if value.is_none() || text.chars().count() >= METADATA_CHARS {
                self.metadata.push(name.clone());
            }
            metadata.insert(name.clone(), value.unwrap_or_default());
        }
        Value::Object(metadata)
    }
}

/// A text as long as the real one.
fn filler(chars: u32) -> String {
    "x".repeat(chars.min(LONGEST_TEXT) as usize)
}

fn chars(text: &str) -> u32 {
    u32::try_from(text.chars().count()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn request() -> ImageRequest {
        let mut request = ImageRequest::default();
        let fields = json!({"prompt": "a secret cat", "n": 2, "negative_prompt": "rain", "user": "mia", "tiling": true});
        for (name, value) in fields.as_object().unwrap() {
            params::set(&mut request, name, value).unwrap();
        }
        request.inputs.push(pb::InputImage {
            source: Some(pb::input_image::Source::FileId("f".into())),
            role: pb::InputRole::Style.into(),
            weight: Some(0.5),
        });
        request
    }

    fn record(request: &ImageRequest, said: &Value) -> RequestRecord {
        RequestRecord {
            asked: Some(ImageRequest { n: request.n, ..Default::default() }),
            subject: Some(subject(request, said, None, false)),
            metadata: metadata(said, &request.end_user),
            ..Default::default()
        }
    }

    fn hides(recorded: &Recorded, field: &str) -> bool {
        recorded.hides(&Field::parse(field).unwrap())
    }

    #[test]
    fn a_request_comes_back_with_as_much_of_everything_and_without_what_it_said() {
        let recorded = Recorded::read(&record(&request(), &json!({}))).unwrap();
        let image = &recorded.image;
        assert_eq!((image.prompt.chars().count(), image.negative_prompt.chars().count()), (12, 4));
        assert!(!image.prompt.contains("secret"));
        assert_eq!(image.n, Some(2));
        assert_eq!((image.inputs[0].role(), image.inputs[0].weight), (pb::InputRole::Style, Some(0.5)));
        assert_eq!(image.effective_operation(), pb::Operation::Edit);
        for hidden in
            ["params.prompt", "params.negative_prompt", "params.tiling", "params.tiling.x", "params.user"]
        {
            assert!(hides(&recorded, hidden), "{hidden}");
        }
        for known in ["params.n", "params.search_prompt", "params.other", "metadata.plan", "url.pathname"] {
            assert!(!hides(&recorded, known), "{known}");
        }
        assert!(Recorded::read(&RequestRecord::default()).is_none());
    }

    #[test]
    fn a_prompt_that_is_kept_is_known() {
        let kept = RequestRecord { prompt: "a secret cat".into(), ..record(&request(), &json!({})) };
        let recorded = Recorded::read(&kept).unwrap();
        assert!(!hides(&recorded, "params.prompt"));
        assert_eq!(recorded.image.prompt, "a secret cat");
    }

    #[test]
    fn metadata_keeps_its_types_and_what_was_cut_is_hidden() {
        let long = "y".repeat(METADATA_CHARS);
        let said = json!({"age": 31, "zip": "31", "geo": {"country": "de"}, "long": long, "list": [long]});
        let recorded = Recorded::read(&record(&ImageRequest::default(), &said)).unwrap();
        for name in ["age", "zip", "geo"] {
            assert_eq!(recorded.metadata[name], said[name], "{name}");
        }
        assert!(hides(&recorded, "metadata.long") && hides(&recorded, "metadata.list.0"));
        assert!(!hides(&recorded, "metadata.geo.country") && !hides(&recorded, "metadata.absent"));
        let many: Map<String, Value> = (0..40).map(|i| (format!("m{i:02}"), json!(i))).collect();
        let recorded = Recorded::read(&record(&ImageRequest::default(), &Value::Object(many))).unwrap();
        assert!(hides(&recorded, "metadata.m39") && !hides(&recorded, "metadata.m03"));
    }
}
