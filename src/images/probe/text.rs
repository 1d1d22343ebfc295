//! What can be told from bytes that are text: whether they are SVG and how large, or else what they are.
//!
//! Looks at the start only, and parses no XML beyond the root element's tag.

use super::MAX_SIDE;

/// What something that is no image most likely is.
pub(super) fn describe(start: &[u8]) -> &'static str {
    let root = root_element(start);
    if starts_with_ignoring_case(root, b"<html") || starts_with_ignoring_case(root, b"<!doctype html") {
        "html"
    } else if root.starts_with(b"<") {
        "xml"
    } else if !looks_like_text(start) {
        "unknown binary data"
    } else if root.starts_with(b"{") || root.starts_with(b"[") {
        "json"
    } else {
        "text"
    }
}

/// Whether the root element is `<svg>`.
pub(super) fn is_svg(start: &[u8]) -> bool {
    root_element(start)
        .strip_prefix(b"<svg")
        .and_then(<[u8]>::first)
        .is_some_and(|next| next.is_ascii_whitespace() || *next == b'>')
}

/// Width and height of an SVG in pixels.
pub(super) fn svg_size(start: &[u8]) -> (u32, u32) {
    let root = root_element(start);
    let tag = &root[..root.iter().position(|byte| *byte == b'>').unwrap_or(root.len())];
    let tag = String::from_utf8_lossy(tag);
    if let (Some(width), Some(height)) = (svg_length(&tag, "width"), svg_length(&tag, "height")) {
        return (width, height);
    }
    let view_box = attribute(&tag, "viewBox").unwrap_or_default();
    let mut numbers = view_box.split([' ', ',']).filter(|part| !part.is_empty()).skip(2).map(pixels);
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(width), Some(height)) => (width, height),
        // What CSS gives a replaced element that has no size of its own.
        _ => (300, 150),
    }
}

fn looks_like_text(start: &[u8]) -> bool {
    let utf8 = match std::str::from_utf8(start) {
        Ok(_) => true,
        // The window may cut a character in two.
        Err(error) => error.error_len().is_none(),
    };
    utf8 && start.iter().all(|byte| !byte.is_ascii_control() || byte.is_ascii_whitespace())
}

/// Text without white space, byte order mark, XML declarations, comments and document types before its
/// first element. An HTML document type stays: it says more than what follows it.
fn root_element(start: &[u8]) -> &[u8] {
    let mut rest = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start).trim_ascii_start();
    loop {
        let close: &[u8] = if rest.starts_with(b"<?") {
            b"?>"
        } else if rest.starts_with(b"<!--") {
            b"-->"
        } else if rest.starts_with(b"<!DOCTYPE svg") {
            b">"
        } else {
            return rest;
        };
        match rest.windows(close.len()).position(|window| window == close) {
            Some(at) => rest = rest[at + close.len()..].trim_ascii_start(),
            None => return rest,
        }
    }
}

fn starts_with_ignoring_case(text: &[u8], prefix: &[u8]) -> bool {
    text.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
}

/// A length in pixels; a share of the page, such as `100%`, tells no size.
fn svg_length(tag: &str, name: &str) -> Option<u32> {
    pixels(attribute(tag, name)?.trim().trim_end_matches("px"))
}

/// The value of an attribute of an XML start tag.
fn attribute<'a>(tag: &'a str, name: &str) -> Option<&'a str> {
    let value = tag.match_indices(name).find_map(|(at, _)| {
        // `stroke-width` is not `width`.
        let is_whole_name = tag[..at].ends_with(char::is_whitespace);
        tag[at + name.len()..].strip_prefix('=').filter(|_| is_whole_name)
    })?;
    let quote = value.chars().next().filter(|quote| matches!(quote, '"' | '\''))?;
    value[1..].split(quote).next()
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range is checked before")]
fn pixels(text: &str) -> Option<u32> {
    let number: f64 = text.parse().ok()?;
    (number > 0.0 && number <= f64::from(MAX_SIDE)).then(|| number.ceil() as u32)
}
