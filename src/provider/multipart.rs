//! Builds `multipart/form-data` bodies (RFC 7578) without copying the files in them.
//!
//! Text parts and part headers are joined into few small pieces; a file goes into the body as the buffer it
//! arrived in. Reading forms is the shim's business, not done here.

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use serde_json::{Map, Value};

use crate::{
    error::Result,
    images::{Pieces, probe},
    pb::ImageFormat,
};

/// A form under construction.
#[derive(Debug)]
pub struct Form {
    boundary: String,
    /// Finished pieces; what `open` holds comes after them.
    pieces: Pieces,
    open: BytesMut,
}

impl Form {
    /// A form without parts. Its boundary is random, so that no file can contain it by design.
    pub fn new() -> Self {
        Self {
            boundary: format!("imagegate-{}", uuid::Uuid::new_v4().simple()),
            pieces: Pieces::default(),
            open: BytesMut::new(),
        }
    }

    /// Adds a text field.
    #[must_use]
    pub fn text(mut self, name: &str, value: &str) -> Self {
        self.write(&format!(
            "--{}\r\ncontent-disposition: form-data; name=\"{}\"\r\n\r\n{value}\r\n",
            self.boundary,
            quoted(name)
        ));
        self
    }

    /// Adds the members of a JSON object as text fields. A nested member is spelt `svg[model]`, the items of a
    /// list `name[]`.
    #[must_use]
    pub fn fields(self, fields: &Map<String, Value>) -> Self {
        fields.iter().fold(self, |form, (name, value)| form.field(name, value))
    }

    fn field(self, name: &str, value: &Value) -> Self {
        match value {
            Value::Null => self,
            Value::String(text) => self.text(name, text),
            Value::Bool(_) | Value::Number(_) => self.text(name, &value.to_string()),
            Value::Array(items) => {
                items.iter().fold(self, |form, item| form.field(&format!("{name}[]"), item))
            }
            Value::Object(members) => members
                .iter()
                .fold(self, |form, (member, value)| form.field(&format!("{name}[{member}]"), value)),
        }
    }

    /// Adds a file.
    #[must_use]
    pub fn file(mut self, name: &str, filename: &str, content_type: &str, data: Bytes) -> Self {
        self.write(&format!(
            "--{}\r\ncontent-disposition: form-data; name=\"{}\"; filename=\"{}\"\r\ncontent-type: {content_type}\r\n\r\n",
            self.boundary,
            quoted(name),
            quoted(filename)
        ));
        self.pieces.push(self.open.split().freeze());
        self.pieces.push(data);
        self.write("\r\n");
        self
    }

    /// Adds an image, with a file name and a content type that fit its bytes: some servers look at one, some
    /// at the other.
    #[must_use]
    pub fn image(self, name: &str, stem: &str, data: Bytes) -> Self {
        // What is no image we know is left to the server to judge.
        let format = probe::sniff(&data).unwrap_or(ImageFormat::Png);
        let filename = format!("{stem}.{}", format.name());
        self.file(name, &filename, format.mime_type(), data)
    }

    /// The request with the form as its body, and the two headers that belong to it.
    pub fn into_request(mut self, request: http::request::Builder) -> Result<http::Request<Pieces>> {
        self.write(&format!("--{}--\r\n", self.boundary));
        self.pieces.push(self.open.freeze());
        let request = request
            .header(CONTENT_TYPE, format!("multipart/form-data; boundary={}", self.boundary))
            .header(CONTENT_LENGTH, self.pieces.len());
        super::finish(request, self.pieces)
    }

    fn write(&mut self, text: &str) {
        self.open.extend_from_slice(text.as_bytes());
    }
}

impl Default for Form {
    fn default() -> Self {
        Self::new()
    }
}

/// Escaped as browsers do it (WHATWG HTML, "multipart/form-data encoding algorithm"): names come from
/// callers' extra fields, and a line break in one would add headers.
fn quoted(name: &str) -> String {
    name.replace('"', "%22").replace('\r', "%0D").replace('\n', "%0A")
}

/// The format of an image by its first bytes; what is none of these is left to the server to judge.
#[cfg(test)]
mod tests {
    use super::*;

    fn body(form: Form) -> (http::Request<Pieces>, String) {
        let request = form.into_request(http::Request::post("https://example.com/")).unwrap();
        let text = request.body().iter().map(|piece| String::from_utf8_lossy(piece).into_owned()).collect();
        (request, text)
    }

    #[test]
    fn a_form_is_what_the_standard_says() {
        let form =
            Form::new().text("prompt", "a cat").image("image", "image", Bytes::from_static(b"\x89PNG"));
        let boundary = form.boundary.clone();
        let (request, text) = body(form);
        assert_eq!(
            text.replace('\u{FFFD}', "?"),
            format!(
                "--{boundary}\r\ncontent-disposition: form-data; name=\"prompt\"\r\n\r\na cat\r\n\
                 --{boundary}\r\ncontent-disposition: form-data; name=\"image\"; filename=\"image.png\"\r\n\
                 content-type: image/png\r\n\r\n?PNG\r\n--{boundary}--\r\n"
            )
        );
        assert_eq!(request.headers()[CONTENT_LENGTH], request.body().len().to_string());
        assert_eq!(request.headers()[CONTENT_TYPE], format!("multipart/form-data; boundary={boundary}"));
    }

    #[test]
    fn a_file_is_moved_not_copied() {
        let data = Bytes::from(vec![7; 1000]);
        let (request, _) = body(Form::new().text("a", "b").file("image", "x.png", "image/png", data.clone()));
        assert!(request.body().iter().any(|piece| piece.as_ptr() == data.as_ptr()));
    }

    #[test]
    fn a_name_cannot_add_headers() {
        let (_, text) = body(Form::new().text("a\"\r\nx: y", "b"));
        assert!(text.contains("name=\"a%22%0D%0Ax: y\""), "{text}");
    }

    #[test]
    fn two_forms_never_share_a_boundary() {
        assert_ne!(Form::new().boundary, Form::new().boundary);
    }
}
