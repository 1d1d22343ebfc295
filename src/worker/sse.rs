//! Server-sent events whose data are JSON with images in them.
//!
//! A preview is one line of megabytes; it goes through the same scanner as a whole document, as it arrives.

use std::collections::VecDeque;

use bytes::Bytes;

use super::scan::Scanner;
use crate::provider::BadBase64;

/// One event's data: JSON without its images, and the images.
#[derive(Debug)]
pub struct RawEvent {
    /// As in [`crate::provider::AnswerBody::Json`].
    pub skeleton: Bytes,
    /// As in [`crate::provider::AnswerBody::Json`].
    pub images: Vec<Result<Bytes, BadBase64>>,
}

/// Puts events together from pieces of a body.
#[derive(Debug)]
pub struct EventReader {
    members: &'static [&'static str],
    /// The beginning of a line, until it is known what line it is.
    line_start: Vec<u8>,
    line: Line,
    /// The length of the last event's data: a preview is about as large as the one before, and the image as the last.
    expected: usize,
    /// That of the event under way.
    length: usize,
    /// The event under way, once it has data.
    scanner: Option<Scanner>,
    ready: VecDeque<RawEvent>,
}

#[derive(Debug, PartialEq)]
enum Line {
    Start,
    Data,
    Other,
}

const DATA: &[u8] = b"data:";

impl EventReader {
    /// `members` as for [`Scanner::new`].
    pub fn new(members: &'static [&'static str]) -> Self {
        Self {
            members,
            line_start: Vec::new(),
            line: Line::Start,
            expected: 0,
            length: 0,
            scanner: None,
            ready: VecDeque::new(),
        }
    }

    /// Reads the next piece.
    pub fn push(&mut self, mut piece: &[u8]) {
        while let Some(first) = piece.first() {
            if self.line == Line::Start && *first != b'\n' && self.line_start.len() < DATA.len() {
                if *first != b'\r' {
                    self.line_start.push(*first);
                }
                piece = &piece[1..];
                if self.line_start == DATA {
                    self.line = Line::Data;
                    // Several data lines of one event are one text.
                    match &mut self.scanner {
                        Some(scanner) => scanner.push(b"\n"),
                        None => self.scanner = Some(Scanner::new(self.members, self.expected)),
                    }
                } else if !DATA.starts_with(&self.line_start) {
                    self.line = Line::Other;
                }
                continue;
            }
            let end = memchr::memchr(b'\n', piece);
            let content = &piece[..end.unwrap_or(piece.len())];
            if let (Line::Data, Some(scanner)) = (&self.line, &mut self.scanner) {
                scanner.push(content.strip_suffix(b"\r").unwrap_or(content));
                self.length += content.len();
            }
            let Some(end) = end else { return };
            if self.line == Line::Start && self.line_start.is_empty() {
                self.dispatch();
            }
            self.line = Line::Start;
            self.line_start.clear();
            piece = &piece[end + 1..];
        }
    }

    /// The next complete event.
    pub fn take(&mut self) -> Option<RawEvent> {
        self.ready.pop_front()
    }

    /// The last event, where the body ended without an empty line.
    pub fn finish(&mut self) -> Option<RawEvent> {
        self.dispatch();
        self.take()
    }

    fn dispatch(&mut self) {
        if let Some(scanner) = self.scanner.take() {
            self.expected = std::mem::take(&mut self.length);
            let (skeleton, images) = scanner.finish();
            self.ready.push_back(RawEvent { skeleton, images });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, size: usize) -> Vec<String> {
        let mut reader = EventReader::new(&["b64_json"]);
        text.as_bytes().chunks(size).for_each(|piece| reader.push(piece));
        let mut events: Vec<RawEvent> = std::iter::from_fn(|| reader.take()).collect();
        events.extend(reader.finish());
        let show = |event: RawEvent| {
            let text = String::from_utf8_lossy(&event.skeleton).trim().to_owned();
            format!("{text} {}", event.images.len())
        };
        events.into_iter().map(show).collect()
    }

    #[test]
    fn events_in_pieces_of_any_size_are_the_same() {
        let image = base64_simd::STANDARD.encode_to_string([7; 90]);
        let text = format!(
            ": hello\r\nevent: a\r\ndata: {{\"x\":1,\"b64_json\":\"{image}\"}}\r\n\r\nid: 3\ndata:{{\"y\":\ndata: 2}}\n\n\ndata: [DONE]"
        );
        for size in 1..text.len() {
            let events = read(&text, size);
            assert_eq!(
                events,
                ["{\"x\":1,\"b64_json\":\"\\u0000@0\"} 1", "{\"y\":\n 2} 0", "[DONE] 0"],
                "{size}"
            );
        }
    }
}
