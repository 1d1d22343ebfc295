//! What the models of a marketplace call the fields of a request: data (`<provider>_names.yaml`), because every
//! model has a schema of its own.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{address_of, data_url, decimal, mask_as};
use crate::{
    error::{Error, Result},
    pb::{self, ImageFormat, MaskPolarity, Moderation, size::Size, warning::Action},
};

/// The names of models that are alike. An empty name: the field is not sent.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Names {
    /// Exact ids, or prefixes that end in `*`. The first entry that matches counts.
    models: Vec<String>,
    #[serde(default)]
    n: String,
    #[serde(default)]
    size: SizeAs,
    #[serde(default)]
    steps: String,
    #[serde(default)]
    guidance: String,
    #[serde(default)]
    strength: String,
    #[serde(default)]
    format: String,
    #[serde(default)]
    compression: String,
    /// Takes the inputs: a list if it ends in `[]`.
    #[serde(default)]
    images: String,
    #[serde(default)]
    mask: String,
    /// Where edits go, below the model's own path.
    #[serde(default)]
    pub(super) edits_at: String,
    /// An edit has the size of its input, and takes none.
    #[serde(default)]
    unsized_edits: bool,
    /// The values of `safety_tolerance` for a strict filter and for a lax one, with their type.
    #[serde(default)]
    safety_tolerance: Option<[Value; 2]>,
}

/// How a model takes a size.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
enum SizeAs {
    /// Not at all.
    #[default]
    None,
    /// `aspect_ratio`
    Ratio,
    /// `aspect_ratio: custom` with `width` and `height`
    CustomRatio,
    /// `image_size` with both sides in it
    ImageSize,
}

/// Reads an embedded data file.
pub(super) fn embedded(text: &str) -> Vec<Names> {
    serde_json::from_str(text).expect("tests read every embedded data file")
}

/// The entry for a model.
pub(super) fn find<'a>(all: &'a [Names], model: &str) -> Option<&'a Names> {
    let is_meant = |id: &String| id.strip_suffix('*').map_or(id == model, |start| model.starts_with(start));
    all.iter().find(|names| names.models.iter().any(is_meant))
}

impl Names {
    /// The request's fields under the model's names. `jpeg` is how the provider spells the format.
    pub(super) fn fields(&self, request: &pb::ImageRequest, jpeg: &str) -> Result<Map<String, Value>> {
        let mut fields = Map::new();
        let mut put = |name: &str, value: Option<Value>| {
            if let (false, Some(value)) = (name.is_empty(), value) {
                fields.insert(name.to_owned(), value);
            }
        };
        let text = |text: &str| (!text.is_empty()).then(|| Value::from(text));
        put("prompt", text(&request.prompt));
        put("negative_prompt", text(&request.negative_prompt));
        put("style", text(&request.style));
        put("seed", request.seed.map(Value::from));
        put(&self.n, request.n.map(Value::from));
        put(&self.steps, request.steps.map(Value::from));
        put(&self.guidance, request.guidance.map(|guidance| decimal(guidance).into()));
        let strength = request.strength.filter(|_| !request.inputs.is_empty());
        put(&self.strength, strength.map(|strength| decimal(strength).into()));
        put(&self.compression, request.output.and_then(|output| output.compression).map(Value::from));
        put(
            &self.format,
            match request.wanted_format() {
                ImageFormat::Unspecified => None,
                ImageFormat::Jpeg => Some(jpeg.into()),
                other => Some(other.name().into()),
            },
        );
        put("safety_tolerance", self.tolerance(request.moderation()));
        fields.extend(self.size(request));
        fields.extend(self.images(request)?);
        Ok(fields)
    }

    fn tolerance(&self, moderation: Moderation) -> Option<Value> {
        let [strict, lax] = self.safety_tolerance.as_ref()?;
        match moderation {
            Moderation::Unspecified => None,
            Moderation::Strict => Some(strict.clone()),
            Moderation::Low => Some(lax.clone()),
        }
    }

    /// What of the request the model does not take after all.
    pub(super) fn dropped(&self, request: &pb::ImageRequest) -> Vec<pb::Warning> {
        let dropped = |field: &str, detail: String| pb::Warning {
            field: field.into(),
            action: Action::Dropped.into(),
            detail,
            target: String::new(),
        };
        let mut warnings = Vec::new();
        if self.leaves_size(request) && request.size.is_some() {
            warnings.push(dropped("size", format!("an edit by {} has the size of its input", request.model)));
        }
        if request.strength.is_some() && request.inputs.is_empty() {
            warnings.push(dropped("strength", "there is no image to keep anything of".into()));
        }
        warnings
    }

    fn leaves_size(&self, request: &pb::ImageRequest) -> bool {
        self.unsized_edits && !request.inputs.is_empty()
    }

    fn size(&self, request: &pb::ImageRequest) -> Map<String, Value> {
        if self.leaves_size(request) {
            return Map::new();
        }
        let size = match (self.size, request.size.and_then(|size| size.size)) {
            (SizeAs::Ratio | SizeAs::CustomRatio, Some(Size::AspectRatio(ratio))) => {
                json!({"aspect_ratio": format!("{}:{}", ratio.width, ratio.height)})
            }
            (SizeAs::CustomRatio, Some(Size::Dimensions(size))) => {
                json!({"aspect_ratio": "custom", "width": size.width, "height": size.height})
            }
            (SizeAs::ImageSize, Some(Size::Dimensions(size))) => {
                json!({"image_size": {"width": size.width, "height": size.height}})
            }
            _ => return Map::new(),
        };
        size.as_object().cloned().unwrap_or_default()
    }

    fn images(&self, request: &pb::ImageRequest) -> Result<Map<String, Value>> {
        let mut fields = Map::new();
        if !request.inputs.is_empty() {
            let images = request
                .inputs
                .iter()
                .map(|input| address_of(input).map(Value::from))
                .collect::<Result<Vec<_>>>()?;
            match self.images.strip_suffix("[]") {
                Some(name) => _ = fields.insert(name.to_owned(), images.into()),
                None if self.images.is_empty() || images.len() > 1 => {
                    let takes = if self.images.is_empty() { "no image" } else { "one image" };
                    return Err(Error::unsupported("image", format!("this model takes {takes}")));
                }
                None => fields.extend(images.into_iter().map(|image| (self.images.clone(), image))),
            }
        }
        if let Some(mask) = &request.mask {
            if self.mask.is_empty() {
                return Err(Error::unsupported("mask", "this model takes no mask"));
            }
            fields.insert(self.mask.clone(), data_url(&mask_as(mask, MaskPolarity::WhiteEdits)?).into());
        }
        Ok(fields)
    }
}
