//! The generated messages and services of `proto/imagegate/v1`, and what generated code cannot express.
//!
//! `Debug` of messages that carry prompts, images or credentials is written here: it shows shapes only.

mod record;

use std::{
    fmt::{self, Write as _},
    time::{SystemTime, UNIX_EPOCH},
};

mod generated {
    #![expect(missing_debug_implementations, clippy::allow_attributes, clippy::large_enum_variant)]
    tonic::include_proto!("imagegate.v1");
}
pub use generated::*;

/// Every descriptor of our protos, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Largest piece of an image in one message between processes, in bytes.
pub const CHUNK_BYTES: usize = 256 * 1024;

/// Seconds since 1970.
pub fn unix_now() -> i64 {
    unix_now_ms() / 1000
}

/// Milliseconds since 1970.
pub fn unix_now_ms() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_millis()).unwrap_or(i64::MAX)
}

impl ImageRequest {
    /// The operation that is meant: one to generate that has an image is an edit, one with a mask an inpaint.
    pub fn effective_operation(&self) -> Operation {
        match self.operation() {
            Operation::Unspecified | Operation::Generate | Operation::Edit if self.mask.is_some() => {
                Operation::Inpaint
            }
            Operation::Unspecified | Operation::Generate if !self.inputs.is_empty() => Operation::Edit,
            Operation::Unspecified => Operation::Generate,
            said => said,
        }
    }

    /// How many images the caller wants, at least 1.
    pub fn wanted(&self) -> usize {
        self.n.unwrap_or(1).max(1) as usize
    }

    /// What the caller wants to get, created on first use.
    pub fn output_mut(&mut self) -> &mut Output {
        self.output.get_or_insert_default()
    }

    /// The format asked for, if any.
    pub fn wanted_format(&self) -> ImageFormat {
        self.output.as_ref().map_or(ImageFormat::Unspecified, Output::format)
    }

    /// The size asked for, if it is in pixels.
    pub fn dimensions(&self) -> Option<Dimensions> {
        self.size?.dimensions()
    }
}

impl Provider {
    /// The first entry that matches a model's id.
    pub fn capability(&self, model: &str) -> Option<&ModelCapability> {
        self.models.iter().find(|capability| match capability.model.strip_suffix('*') {
            Some(prefix) => model.starts_with(prefix),
            None => capability.model == model,
        })
    }
}

impl fmt::Debug for ImageRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImageRequest")
            .field("operation", &self.operation())
            .field("model", &self.model)
            .field("prompt_chars", &self.prompt.chars().count())
            .field("n", &self.n)
            .field("size", &self.size)
            .field("inputs", &self.inputs.len())
            .field("mask", &self.mask.is_some())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream").field("has_base_url", &!self.base_url.is_empty()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credential(..)")
    }
}

impl fmt::Debug for InputImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let source = match &self.source {
            Some(input_image::Source::Data(data)) => format!("{} bytes", data.len()),
            // An address may be signed: whoever has it has the image.
            Some(input_image::Source::Url(_)) => "url".to_owned(),
            Some(input_image::Source::FileId(_)) => "file".to_owned(),
            None => "nothing".to_owned(),
        };
        f.debug_struct("InputImage").field("source", &source).field("role", &self.role()).finish()
    }
}

impl fmt::Debug for Mask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mask").field("bytes", &self.data.len()).field("polarity", &self.polarity()).finish()
    }
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Image")
            .field("bytes", &self.data.len())
            .field("format", &self.format())
            .field("size", &(self.width, self.height))
            .field("finish_reason", &self.finish_reason())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for PartialImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PartialImage")
            .field("bytes", &self.data.len())
            .field("image_index", &self.image_index)
            .field("partial_index", &self.partial_index)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for ImageChunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImageChunk")
            .field("bytes", &self.data.len())
            .field("image_index", &self.image_index)
            .finish()
    }
}

// A config may hold a credential of its caller's own.
impl fmt::Debug for SavedConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SavedConfig")
            .field("slug", &self.slug)
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for ConfigVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConfigVersion").field("version", &self.version).finish_non_exhaustive()
    }
}

impl fmt::Debug for CreateConfigRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CreateConfigRequest").field("name", &self.name).finish_non_exhaustive()
    }
}

impl fmt::Debug for UpdateConfigRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpdateConfigRequest").field("slug", &self.slug).finish_non_exhaustive()
    }
}

impl fmt::Debug for RequestRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestRecord")
            .field("id", &self.id)
            .field("outcome", &self.outcome)
            .field("prompt_chars", &self.prompt.chars().count())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for CreateVirtualKeyRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CreateVirtualKeyRequest")
            .field("name", &self.name)
            .field("provider", &self.provider)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for UpdateVirtualKeyRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpdateVirtualKeyRequest").field("slug", &self.slug).finish_non_exhaustive()
    }
}

impl fmt::Debug for CreateApiKeyResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CreateApiKeyResponse").field("api_key", &self.api_key).finish_non_exhaustive()
    }
}

impl fmt::Debug for RotateApiKeyResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RotateApiKeyResponse").field("api_key", &self.api_key).finish_non_exhaustive()
    }
}

impl Size {
    /// A size in pixels.
    pub fn pixels(width: u32, height: u32) -> Self {
        Self { size: Some(size::Size::Dimensions(Dimensions { width, height })) }
    }

    /// The size, if it is in pixels.
    pub fn dimensions(&self) -> Option<Dimensions> {
        match self.size? {
            size::Size::Dimensions(d) => Some(d),
            size::Size::AspectRatio(_) | size::Size::Auto(_) => None,
        }
    }

    /// As OpenAI's API writes it: `1024x1536`, `16:9` or `auto`.
    pub fn text(&self) -> String {
        match self.size {
            Some(size::Size::Dimensions(d)) => d.to_string(),
            Some(size::Size::AspectRatio(r)) => format!("{}:{}", r.width, r.height),
            Some(size::Size::Auto(_)) | None => "auto".into(),
        }
    }
}

impl fmt::Display for Dimensions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.width, self.height)
    }
}

impl ImageFormat {
    /// As OpenAI's `output_format` and file names spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unspecified | Self::Png => "png",
            Self::Jpeg => "jpeg",
            Self::Webp => "webp",
            Self::Gif => "gif",
            Self::Svg => "svg",
            Self::Avif => "avif",
        }
    }

    /// The media type of an image in this format.
    pub fn mime_type(self) -> &'static str {
        match self {
            Self::Unspecified | Self::Png => "image/png",
            Self::Jpeg => "image/jpeg",
            Self::Webp => "image/webp",
            Self::Gif => "image/gif",
            Self::Svg => "image/svg+xml",
            Self::Avif => "image/avif",
        }
    }

    /// The format that `output_format` names.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "png" => Some(Self::Png),
            "jpeg" | "jpg" => Some(Self::Jpeg),
            "webp" => Some(Self::Webp),
            "gif" => Some(Self::Gif),
            "svg" => Some(Self::Svg),
            "avif" => Some(Self::Avif),
            _ => None,
        }
    }
}

impl Operation {
    /// Its path in OpenAI's API, by which routing configs know it.
    pub fn pathname(self) -> &'static str {
        match self {
            Self::Unspecified | Self::Generate => "/v1/images/generations",
            Self::Variation => "/v1/images/variations",
            _ => "/v1/images/edits",
        }
    }

    /// As logs, metrics and model data spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unspecified => "unspecified",
            Self::Generate => "generate",
            Self::Edit => "edit",
            Self::Inpaint => "inpaint",
            Self::Outpaint => "outpaint",
            Self::Variation => "variation",
            Self::Upscale => "upscale",
            Self::RemoveBackground => "remove_background",
            Self::ReplaceBackground => "replace_background",
            Self::Erase => "erase",
            Self::SearchReplace => "search_replace",
            Self::SearchRecolor => "search_recolor",
            Self::Control => "control",
            Self::Vectorize => "vectorize",
        }
    }

    /// The operation that model data names.
    pub fn from_name(name: &str) -> Option<Self> {
        (1..=13).filter_map(|i| Self::try_from(i).ok()).find(|op| op.name() == name)
    }
}

impl CacheStatus {
    /// All names, for messages.
    pub fn names() -> Vec<&'static str> {
        [Self::Hit, Self::Miss, Self::Refresh, Self::SemanticHit, Self::SemanticMiss]
            .into_iter()
            .filter_map(Self::name)
            .collect()
    }

    /// As metrics spell it; none where no cache was asked.
    pub fn name(self) -> Option<&'static str> {
        match self {
            Self::Unspecified => None,
            Self::Hit => Some("hit"),
            Self::Miss => Some("miss"),
            Self::Refresh => Some("refresh"),
            Self::SemanticHit => Some("semantic_hit"),
            Self::SemanticMiss => Some("semantic_miss"),
        }
    }
}

impl worker_endpoint::State {
    /// As metrics spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unspecified => "unspecified",
            Self::Ready => "ready",
            Self::Warming => "warming",
            Self::Ejected => "ejected",
        }
    }
}

impl BillingClass {
    /// As logs, metrics and headers spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unspecified | Self::Unknown => "unknown",
            Self::NotSent => "not_sent",
            Self::RejectedUnbilled => "rejected_unbilled",
            Self::Billed => "billed",
        }
    }
}

impl KeyStatus {
    /// As answers spell it.
    pub fn name(self) -> Option<&'static str> {
        match self {
            Self::Unspecified => None,
            Self::Active => Some("active"),
            Self::Disabled => Some("disabled"),
            Self::Expired => Some("expired"),
            Self::Exhausted => Some("exhausted"),
        }
    }
}

impl KeptImages {
    /// Every one that can be chosen, with its name.
    pub const NAMES: &[(&str, Self)] = &[
        ("none", Self::None),
        ("digests", Self::Digests),
        ("thumbnails", Self::Thumbnails),
        ("full", Self::Full),
    ];

    /// The one of this name.
    ///
    /// # Errors
    /// There is none; says which there are.
    pub fn from_name(name: &str) -> Result<Self, String> {
        let found = Self::NAMES.iter().find(|(known, _)| *known == name);
        found.map(|(_, images)| *images).ok_or_else(Self::allowed)
    }

    /// Which can be chosen, for messages.
    pub fn allowed() -> String {
        format!("allowed: {}", Self::NAMES.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", "))
    }

    /// Whether digests are wanted.
    pub const fn are_digested(self) -> bool {
        matches!(self, Self::Digests | Self::Thumbnails | Self::Full)
    }

    /// Whether there is something to be seen of them.
    pub const fn are_shown(self) -> bool {
        matches!(self, Self::Thumbnails | Self::Full)
    }

    /// As configuration and answers spell it; none where nobody chose.
    pub fn name(self) -> Option<&'static str> {
        Self::NAMES.iter().find(|(_, images)| *images == self).map(|(name, _)| *name)
    }
}

impl CostSource {
    /// As answers spell it; none where nobody told a price.
    pub fn name(self) -> Option<&'static str> {
        match self {
            Self::Unspecified => None,
            Self::Reported => Some("reported"),
            Self::Tokens => Some("tokens"),
            Self::Table => Some("table"),
            Self::UnknownBilling => Some("unknown_billing"),
        }
    }
}

impl warning::Action {
    /// As answers spell it.
    pub fn name(self) -> Option<&'static str> {
        match self {
            Self::Unspecified => None,
            Self::Dropped => Some("dropped"),
            Self::Adjusted => Some("adjusted"),
            Self::Emulated => Some("emulated"),
            Self::Notice => Some("notice"),
        }
    }
}

impl Usage {
    /// Of texts and images.
    pub fn input_tokens(&self) -> u64 {
        self.input_text_tokens.unwrap_or_default().saturating_add(self.input_image_tokens.unwrap_or_default())
    }

    /// Of texts and images.
    pub fn output_tokens(&self) -> u64 {
        self.output_text_tokens
            .unwrap_or_default()
            .saturating_add(self.output_image_tokens.unwrap_or_default())
    }

    /// What a provider counted, as JSON.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "input_text_tokens": self.input_text_tokens,
            "input_image_tokens": self.input_image_tokens,
            "output_text_tokens": self.output_text_tokens,
            "output_image_tokens": self.output_image_tokens,
            "megapixels": self.megapixels,
            "compute_ms": self.compute_ms,
            "credits": self.credits,
        })
    }
}

impl planned_target::Decision {
    /// As JSON says it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tried => "tried",
            Self::Skipped => "skipped",
            Self::Undecided => "undecided",
            Self::NotChosen | Self::Unspecified => "not_chosen",
        }
    }
}

impl dry_run_request::Verdict {
    /// As JSON says it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Routed => "routed",
            Self::Refused => "refused",
            Self::Undecided | Self::Unspecified => "undecided",
        }
    }
}

impl Timings {
    /// All but the time in which a provider call was running, in microseconds.
    pub fn gateway_us(&self) -> u64 {
        self.total_us.saturating_sub(self.upstream_us)
    }

    /// Choosing targets, fitting the request to them and putting the answer together: what no phase has, in
    /// microseconds.
    pub fn rest_us(&self) -> u64 {
        let phases = [self.routing_us, self.cache_us, self.waiting_us, self.upstream_us, self.verifying_us];
        self.total_us.saturating_sub(phases.iter().sum())
    }
}

impl GenerateDone {
    /// The `image_index` that the chunks of an image came with, by its place in `images`.
    pub fn chunks_of(&self, place: usize) -> u32 {
        self.chunks.get(place).copied().unwrap_or_else(|| u32::try_from(place).unwrap_or(u32::MAX))
    }
}

impl Attempt {
    /// The outcome of a target that was passed over.
    pub const SKIPPED: &'static str = "skipped";

    /// Whether the provider was called.
    pub fn is_call(&self) -> bool {
        self.outcome != Self::SKIPPED
    }
}

/// `config.targets[0] stability-ai rate_limited 429`, joined.
pub fn attempts_text(attempts: &[Attempt]) -> String {
    let mut text = String::new();
    for attempt in attempts {
        if !text.is_empty() {
            text.push_str(", ");
        }
        _ = write!(text, "{} {} {}", attempt.target, attempt.provider, attempt.outcome);
        if attempt.status > 0 {
            _ = write!(text, " {}", attempt.status);
        }
        _ = write!(text, " {}ms {}", attempt.duration_ms, attempt.billing().name());
    }
    text
}
