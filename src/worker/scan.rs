//! Takes the images out of a JSON document while it is read.
//!
//! An image in base64 is nearly all of such a document. It is decoded as its text arrives and never kept as
//! text; the rest, a few hundred bytes, is copied into a skeleton in which a placeholder stands for each
//! image, and that is what serde reads.

use bytes::Bytes;

use crate::provider::{BadBase64, IMAGE_REF_PREFIX};

/// So much of an image, decoded, is passed on at once, or up to as much more as one piece of text can add: together less
/// than a chunk may have.
const PASSED_BYTES: usize = 64 << 10;
const PIECE_BYTES: usize = 96 << 10;

/// Of an image that is passed on its first bytes stay: enough to tell its format.
const TOKEN_BYTES: usize = 32;

/// Strings under an image member up to this length stay in the skeleton: a URL, an empty text.
const SHORTEST_IMAGE: usize = 64;

/// Reads a document piece by piece.
#[derive(Debug)]
pub struct Scanner {
    members: &'static [&'static str],
    /// Most bytes an image can decode to, by the document's length.
    expected: usize,
    skeleton: Vec<u8>,
    images: Vec<Result<Bytes, BadBase64>>,
    /// What is to be passed on, if anything is.
    passed: Option<Vec<Passed>>,
    state: State,
    /// Whether the last complete string at this level was the name of an image member.
    after_image_name: bool,
    /// Inside an array that is the value of an image member.
    image_array: bool,
    string_start: usize,
}

/// A part of an image that is passed on before the rest has come.
#[derive(Debug)]
pub struct Passed {
    /// Stands for the image, in [`Scanner::finish`] as well: its first bytes. Where they lie tells which image it is.
    pub token: Bytes,
    /// What follows the parts before.
    pub data: Bytes,
}

#[derive(Debug)]
enum State {
    /// Between strings.
    Outside,
    /// In a string; `escaped` after a backslash.
    String { escaped: bool },
    /// At the start of a string that may be an image.
    Maybe(Vec<u8>),
    /// In an image.
    Image(Decoder),
}

/// Decodes base64 whose text comes in pieces.
#[derive(Debug)]
struct Decoder {
    decoded: Vec<u8>,
    /// Once a part was passed on.
    token: Option<Bytes>,
    /// Characters that do not make a whole group yet.
    carry: Vec<u8>,
    /// In a JSON escape: only `\/` can stand in base64.
    escaped: bool,
    bad: bool,
    /// Padding was seen: nothing may follow.
    ended: bool,
}

impl Scanner {
    /// `members` are the names whose string values are images; `expected` is the document's length, if known.
    pub fn new(members: &'static [&'static str], expected: usize) -> Self {
        Self {
            members,
            expected: expected / 4 * 3 + 3,
            skeleton: Vec::with_capacity(1024),
            images: Vec::new(),
            passed: None,
            state: State::Outside,
            after_image_name: false,
            image_array: false,
            string_start: 0,
        }
    }

    /// The same, and large images are passed on part by part. None is larger than a chunk may be if the pieces that are
    /// pushed have at most 128 KiB.
    #[must_use]
    pub fn passing_on(mut self) -> Self {
        self.expected = self.expected.min(PASSED_BYTES + PIECE_BYTES);
        self.passed = Some(Vec::new());
        self
    }

    /// What is to be passed on since the last time.
    pub fn passed(&mut self) -> Vec<Passed> {
        self.passed.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Reads the next piece.
    pub fn push(&mut self, mut piece: &[u8]) {
        while !piece.is_empty() {
            piece = match &mut self.state {
                State::Outside => self.outside(piece),
                State::String { escaped } => {
                    let escaped = *escaped;
                    self.string(piece, escaped)
                }
                State::Maybe(_) => self.maybe(piece),
                State::Image(_) => self.image(piece),
            };
        }
    }

    /// The skeleton and the images, with a token for each that was passed on. A document that broke off inside an image
    /// has that one as bad.
    pub fn finish(mut self) -> (Bytes, Vec<Result<Bytes, BadBase64>>) {
        match std::mem::replace(&mut self.state, State::Outside) {
            State::Outside | State::String { .. } => {}
            State::Maybe(text) => self.skeleton.extend_from_slice(&text),
            State::Image(_) => self.images.push(Err(BadBase64)),
        }
        (self.skeleton.into(), self.images)
    }

    fn outside<'a>(&mut self, piece: &'a [u8]) -> &'a [u8] {
        for (i, byte) in piece.iter().enumerate() {
            match byte {
                b'"' => {
                    self.skeleton.extend_from_slice(&piece[..=i]);
                    self.string_start = self.skeleton.len();
                    self.state = if self.after_image_name || self.image_array {
                        State::Maybe(Vec::new())
                    } else {
                        State::String { escaped: false }
                    };
                    return &piece[i + 1..];
                }
                b'[' => self.image_array = self.after_image_name,
                b']' => self.image_array = false,
                b'{' | b'}' | b',' => {
                    self.after_image_name = false;
                    // An array of objects is no array of images.
                    if *byte == b'{' {
                        self.image_array = false;
                    }
                }
                _ => {}
            }
        }
        self.skeleton.extend_from_slice(piece);
        &[]
    }

    fn string<'a>(&mut self, piece: &'a [u8], mut escaped: bool) -> &'a [u8] {
        for (i, byte) in piece.iter().enumerate() {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => {
                    self.skeleton.extend_from_slice(&piece[..i]);
                    let text = &self.skeleton[self.string_start..];
                    // A value of that name would do as well; it is followed by a comma, which forgets it.
                    self.after_image_name = self.members.iter().any(|member| member.as_bytes() == text);
                    self.skeleton.push(b'"');
                    self.state = State::Outside;
                    return &piece[i + 1..];
                }
                _ => {}
            }
        }
        self.skeleton.extend_from_slice(piece);
        self.state = State::String { escaped };
        &[]
    }

    /// Waits until the string is long enough to be an image, or over.
    fn maybe<'a>(&mut self, piece: &'a [u8]) -> &'a [u8] {
        let State::Maybe(text) = &mut self.state else { return piece };
        for (i, byte) in piece.iter().enumerate() {
            // A short text, or one with escapes that base64 has not, is a string like any other.
            if *byte == b'"' || text.len() + i >= SHORTEST_IMAGE {
                text.extend_from_slice(&piece[..i]);
                let text = std::mem::take(text);
                let rest = &piece[i..];
                if *byte == b'"' || !looks_like_base64(&text) {
                    let escaped = text.iter().rev().take_while(|byte| **byte == b'\\').count() % 2 == 1;
                    self.skeleton.extend_from_slice(&text);
                    self.state = State::String { escaped };
                } else {
                    let mut decoder = Decoder::new(self.expected);
                    decoder.push(strip_data_url(&text));
                    self.state = State::Image(decoder);
                }
                return rest;
            }
        }
        text.extend_from_slice(piece);
        &[]
    }

    fn image<'a>(&mut self, piece: &'a [u8]) -> &'a [u8] {
        let State::Image(decoder) = &mut self.state else { return piece };
        let Some(rest) = decoder.push(piece) else {
            if let Some(passed) = self.passed.as_mut().filter(|_| decoder.decoded.len() >= PASSED_BYTES) {
                passed.push(decoder.pass());
            }
            return &[];
        };
        if let State::Image(mut decoder) = std::mem::replace(&mut self.state, State::Outside) {
            let place = format!("{}{}\"", IMAGE_REF_PREFIX.replace('\0', "\\u0000"), self.images.len());
            self.skeleton.extend_from_slice(place.as_bytes());
            let token = decoder.token.take();
            self.images.push(match (decoder.finish(), token, &mut self.passed) {
                (Ok(data), Some(token), Some(passed)) => {
                    passed.push(Passed { token: token.clone(), data });
                    Ok(token)
                }
                (image, ..) => image,
            });
        }
        self.after_image_name = false;
        rest
    }
}

/// A URL has a colon early on, a data URL as well but says what follows.
fn looks_like_base64(text: &[u8]) -> bool {
    let text = strip_data_url(text);
    text.iter().all(|byte| byte.is_ascii_alphanumeric() || b"+/=\\-_".contains(byte))
}

fn strip_data_url(text: &[u8]) -> &[u8] {
    const MARK: &[u8] = b";base64,";
    if !text.starts_with(b"data:") {
        return text;
    }
    match text.windows(MARK.len()).position(|window| window == MARK) {
        Some(at) => &text[at + MARK.len()..],
        None => text,
    }
}

impl Decoder {
    fn new(capacity: usize) -> Self {
        Self {
            decoded: Vec::with_capacity(capacity),
            token: None,
            carry: Vec::with_capacity(4),
            escaped: false,
            bad: false,
            ended: false,
        }
    }

    /// Reads up to the string's closing quote and gives what follows it, nothing if the text ends before.
    fn push<'a>(&mut self, mut text: &'a [u8]) -> Option<&'a [u8]> {
        if self.decoded.capacity() == 0 {
            // As much as is passed on at once: this piece, or several small ones.
            let more = text.len() / 4 * 3 + 3;
            self.decoded.reserve(if more < PASSED_BYTES { PASSED_BYTES + more } else { more });
        }
        while let [first, rest @ ..] = text {
            if self.escaped {
                self.escaped = false;
                self.bad |= *first != b'/';
                self.group(b"/");
                text = rest;
                continue;
            }
            if self.all(text) {
                return None;
            }
            let Some(end) = memchr::memchr2(b'"', b'\\', text) else {
                self.group(text);
                return None;
            };
            self.group(&text[..end]);
            let (ended, rest) = (text[end] == b'"', &text[end + 1..]);
            if ended {
                return Some(rest);
            }
            self.escaped = true;
            text = rest;
        }
        None
    }

    /// Decodes the text if nothing in it ends the string or is escaped, as in all pieces but the last: the
    /// decoder notices by itself, so that most of an image is looked at only once. Else changes nothing.
    fn all(&mut self, text: &[u8]) -> bool {
        let head = (4 - self.carry.len()) % 4;
        let Some((head, rest)) = text.split_at_checked(head) else { return false };
        let (whole, tail) = rest.split_at(rest.len() / 4 * 4);
        let plain = |byte: &u8| !matches!(byte, b'"' | b'\\' | b'=');
        if whole.is_empty() || self.bad || self.ended || !head.iter().chain(tail).all(plain) {
            return false;
        }
        let before = self.decoded.len();
        let group = [self.carry.as_slice(), head].concat();
        if !self.append(&group) || !self.append(whole) {
            self.decoded.truncate(before);
            return false;
        }
        self.ended = whole.ends_with(b"=");
        self.carry.clear();
        self.carry.extend_from_slice(tail);
        true
    }

    /// Decodes whole groups of four, and keeps the rest for later.
    fn group(&mut self, mut text: &[u8]) {
        if text.is_empty() || self.bad {
            return;
        }
        if self.ended {
            self.bad = true;
            return;
        }
        if !self.carry.is_empty() {
            let missing = (4 - self.carry.len()).min(text.len());
            self.carry.extend_from_slice(&text[..missing]);
            text = &text[missing..];
            if self.carry.len() < 4 {
                return;
            }
            let group = std::mem::take(&mut self.carry);
            self.decode(&group);
        }
        let whole = text.len() / 4 * 4;
        self.decode(&text[..whole]);
        self.carry.extend_from_slice(&text[whole..]);
    }

    fn decode(&mut self, text: &[u8]) {
        if text.is_empty() || self.bad {
            return;
        }
        if self.ended {
            self.bad = true;
            return;
        }
        self.ended = text.ends_with(b"=");
        self.bad = !self.append(text);
    }

    /// Adds nothing if the text is no base64.
    fn append(&mut self, text: &[u8]) -> bool {
        // The decoder reserves what it needs and no more: without a known length every piece would move all
        // that came before it.
        self.decoded.reserve(text.len() / 4 * 3);
        base64_simd::STANDARD.decode_append(text, &mut self.decoded).is_ok()
    }

    /// What was decoded since the last time.
    fn pass(&mut self) -> Passed {
        let data = Bytes::from(std::mem::take(&mut self.decoded));
        let token = self.token.get_or_insert_with(|| Bytes::copy_from_slice(&data[..TOKEN_BYTES]));
        Passed { token: token.clone(), data }
    }

    fn finish(mut self) -> Result<Bytes, BadBase64> {
        // Some leave the padding away.
        if !self.carry.is_empty() && !self.ended && !self.bad {
            let carry = std::mem::take(&mut self.carry);
            self.bad = base64_simd::STANDARD_NO_PAD.decode_append(&carry, &mut self.decoded).is_err();
        }
        if self.bad || self.escaped || !self.carry.is_empty() {
            return Err(BadBase64);
        }
        Ok(self.decoded.into())
    }
}

#[cfg(test)]
mod tests;
