//! What the form asks for: read from a browser, and meant for the router.

use std::{collections::BTreeMap, fmt};

use axum::{
    extract::{Multipart, multipart::MultipartError},
    http::{HeaderMap, HeaderValue},
};
use bytes::Bytes;
use serde_json::Value;

use crate::{
    error::{Error, Result},
    params,
    pb::{ImageRequest, InputImage, InputRole, input_image::Source},
};

/// Fields that may stand in an address. Prompts may not, nor may a config that is written out: it may hold a key.
pub const IN_ADDRESS: [&str; 9] =
    ["config", "model", "size", "n", "quality", "output_format", "seed", "partial_images", "each"];

/// Fields that are parameters of the request, by their names everywhere.
const PARAMETERS: [&str; 9] =
    ["prompt", "negative_prompt", "model", "size", "n", "quality", "output_format", "seed", "partial_images"];

/// The fields of the form, and the image that goes with them.
#[derive(Clone, Default)]
pub struct Asked {
    fields: BTreeMap<String, String>,
    input: Bytes,
}

impl Asked {
    /// What an address says.
    pub fn in_address(mut fields: BTreeMap<String, String>) -> Self {
        fields.retain(|name, _| IN_ADDRESS.contains(&name.as_str()));
        Self { fields, input: Bytes::new() }
    }

    /// What a browser sends.
    ///
    /// # Errors
    /// It is no whole form, or one that is too large.
    pub async fn read(mut form: Multipart) -> Result<Self> {
        let mut asked = Self::default();
        while let Some(part) = form.next_field().await.map_err(|error| unread(&error))? {
            match part.name().unwrap_or_default().to_owned().as_str() {
                // A browser also sends it where no file was chosen.
                "image" => asked.input = part.bytes().await.map_err(|error| unread(&error))?,
                name => {
                    let text = part.text().await.map_err(|error| unread(&error))?;
                    asked.fields.insert(name.to_owned(), text);
                }
            }
        }
        Ok(asked)
    }

    /// A field; empty if it was left out.
    pub fn get(&self, name: &str) -> &str {
        self.fields.get(name).map_or("", String::as_str)
    }

    /// What the button that was pressed stands for.
    pub fn wants(&self, doing: &str) -> bool {
        self.get("do") == doing
    }

    /// Each target is asked on its own.
    pub fn each(&self) -> bool {
        !self.get("each").is_empty()
    }

    /// An image goes with it.
    pub fn has_input(&self) -> bool {
        !self.input.is_empty()
    }

    /// The request.
    ///
    /// # Errors
    /// A field whose value is not allowed.
    pub fn image(&self) -> Result<ImageRequest> {
        let mut image = ImageRequest::default();
        for name in PARAMETERS {
            let text = self.get(name);
            if !text.trim().is_empty() {
                params::set_text(
                    &mut image,
                    name,
                    if name.ends_with("prompt") { text } else { text.trim() },
                )?;
            }
        }
        if self.has_input() {
            let source = Some(Source::Data(self.input.clone()));
            image.inputs.push(InputImage { source, role: InputRole::Source.into(), weight: None });
        }
        Ok(image)
    }

    /// The headers that say which route is meant.
    ///
    /// # Errors
    /// The config is no JSON, or its id cannot be one.
    pub fn headers(&self) -> Result<HeaderMap> {
        let written = self.get("inline").trim();
        let config = if written.is_empty() { self.get("config").trim().to_owned() } else { ascii(written)? };
        let mut headers = HeaderMap::new();
        if !config.is_empty() {
            let mut config = HeaderValue::try_from(config)
                .map_err(|_| Error::invalid("config", "config: an id has letters, digits and signs only"))?;
            config.set_sensitive(true);
            headers.insert("x-portkey-config", config);
        }
        Ok(headers)
    }
}

/// Without what was written: names only.
impl fmt::Debug for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Asked")
            .field("fields", &self.fields.keys())
            .field("input_bytes", &self.input.len())
            .finish()
    }
}

fn unread(error: &MultipartError) -> Error {
    let message = if error.status() == 413 {
        format!("image: larger than {} MiB", super::LARGEST_FORM >> 20)
    } else {
        "the form could not be read".to_owned()
    };
    Error::invalid("image", message).with_status(error.status().as_u16())
}

/// A JSON document as one line that a header can hold.
fn ascii(text: &str) -> Result<String> {
    let value: Value = serde_json::from_str(text)
        .map_err(|error| Error::invalid("config", format!("config: not JSON: {error}")))?;
    let mut line = String::new();
    let mut units = [0; 2];
    for c in value.to_string().chars() {
        if c.is_ascii() {
            line.push(c);
        } else {
            line.extend(c.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}")));
        }
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(fields: &[(&str, &str)]) -> Asked {
        let fields = fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Asked { fields: fields.collect(), input: Bytes::new() }
    }

    #[test]
    fn what_is_left_empty_is_not_asked_for() {
        let image =
            asked(&[("prompt", " a fox "), ("size", ""), ("n", " 2 "), ("seed", "0")]).image().unwrap();
        assert_eq!(
            (image.prompt.as_str(), image.n, image.seed, image.size),
            (" a fox ", Some(2), Some(0), None)
        );
        let error = asked(&[("n", "many")]).image().unwrap_err();
        assert!(error.message.contains("\"many\" is not allowed"), "{}", error.message);
    }

    #[test]
    fn a_config_that_is_written_out_goes_before_one_that_is_named() {
        let fields =
            [("config", "pc-a"), ("inline", "{\n  \"provider\": \"sandbox\", \"options\": \"é😀\"\n}")];
        let headers = asked(&fields).headers().unwrap();
        let sent = headers["x-portkey-config"].to_str().unwrap();
        assert_eq!(sent, r#"{"options":"\u00e9\ud83d\ude00","provider":"sandbox"}"#);
        assert_eq!(asked(&fields[..1]).headers().unwrap()["x-portkey-config"], "pc-a");
        assert!(asked(&[]).headers().unwrap().is_empty());
        let error = asked(&[("inline", "{")]).headers().unwrap_err();
        assert!(error.message.starts_with("config: not JSON: EOF"), "{}", error.message);
    }

    #[test]
    fn an_address_holds_no_prompt() {
        let fields = [("prompt", "x"), ("inline", "{}"), ("model", "m")];
        let asked = Asked::in_address(asked(&fields).fields);
        assert_eq!((asked.get("prompt"), asked.get("inline"), asked.get("model")), ("", "", "m"));
        assert!(!format!("{asked:?}").contains("\"m\""));
    }
}
