//! Faults that a model id asks for, so that routing can be tried without breaking anything real.

use std::time::Duration;

use bytes::Bytes;

use crate::{
    error::{Error, ErrorKind},
    pb::BillingClass,
};

/// How a call goes. `sandbox.yaml` tells users about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Script {
    /// Well.
    Good,
    /// `sandbox-fail-<status>`: with the error of an HTTP status.
    Fail(u16),
    /// `sandbox-refuse`: the prompt is refused.
    Refuse,
    /// `sandbox-filter`: images withheld.
    Filter,
    /// `sandbox-truncate`: half of the bytes of each image.
    Truncate,
    /// `sandbox-empty`: no images.
    Empty,
    /// `sandbox-html`: a web page for each image.
    Html,
    /// `sandbox-short`: one image fewer than asked for.
    Short,
    /// `sandbox-stall`: no answer.
    Stall,
    /// `sandbox-slow-<ms>`: well, but late.
    Slow(Duration),
    /// `sandbox-large`: well, but PNGs have 64 MB.
    Large,
    /// `sandbox-idle`: well, unless another call is being worked at.
    Idle,
}

/// What a proxy in front of a provider sends when it is in trouble.
const PAGE: &[u8] = b"<!DOCTYPE html>\n<html><head><title>502 Bad Gateway</title></head>\
    <body><h1>502 Bad Gateway</h1></body></html>\n";

/// Zeros in a large PNG, in a chunk that decoders skip.
const PADDING_BYTES: u32 = 64_000_000;
const PADDING_CHUNK: &[u8; 4] = b"paDd";
/// The checksum of that chunk's type and zeros.
const PADDING_CHECKSUM: u32 = 0xf34f_6c49;
/// The chunk at the end of each PNG, with its length and checksum.
const END_BYTES: usize = 12;

impl Script {
    /// The script that a model id names; good for any other.
    pub fn of(model: &str) -> Self {
        if let Some(status) = model.strip_prefix("sandbox-fail-") {
            return status
                .parse()
                .ok()
                .filter(|status| (400..=599).contains(status))
                .map_or(Self::Good, Self::Fail);
        }
        if let Some(delay) = model.strip_prefix("sandbox-slow-") {
            return delay.parse().map_or(Self::Good, |ms| Self::Slow(Duration::from_millis(ms)));
        }
        match model {
            "sandbox-refuse" => Self::Refuse,
            "sandbox-filter" => Self::Filter,
            "sandbox-truncate" => Self::Truncate,
            "sandbox-empty" => Self::Empty,
            "sandbox-html" => Self::Html,
            "sandbox-short" => Self::Short,
            "sandbox-stall" => Self::Stall,
            "sandbox-large" => Self::Large,
            "sandbox-idle" => Self::Idle,
            _ => Self::Good,
        }
    }

    /// The error that the call ends with, if that is the script.
    pub fn error(self) -> Option<Error> {
        match self {
            Self::Fail(status) => {
                let kind = ErrorKind::from_http_status(status);
                let billing =
                    if status < 500 { BillingClass::RejectedUnbilled } else { BillingClass::Unknown };
                let message = format!("the sandbox fails with status {status}, as its model says");
                let mut error = Error::new(kind, message).with_status(status).billed(billing);
                error.retry_after = (status == 429).then_some(Duration::from_secs(1));
                Some(error)
            }
            Self::Refuse => {
                Some(Error::refused("prompt", "the sandbox refuses the prompt, as its model says"))
            }
            _ => None,
        }
    }

    /// How many images the answer has where so many were asked for.
    pub fn count(self, wanted: u32) -> u32 {
        match self {
            Self::Empty => 0,
            Self::Short => wanted - 1,
            _ => wanted,
        }
    }

    /// What becomes of an image's bytes.
    pub fn spoil(self, image: Bytes) -> Bytes {
        match self {
            Self::Truncate => image.slice(..image.len() / 2),
            Self::Html => Bytes::from_static(PAGE),
            Self::Large if image.starts_with(b"\x89PNG") => padded(&image),
            _ => image,
        }
    }
}

/// The same PNG with many bytes that mean nothing.
fn padded(png: &[u8]) -> Bytes {
    let (pixels, end) = png.split_at(png.len() - END_BYTES);
    let mut bytes = Vec::with_capacity(png.len() + END_BYTES + PADDING_BYTES as usize);
    bytes.extend_from_slice(pixels);
    bytes.extend_from_slice(&PADDING_BYTES.to_be_bytes());
    bytes.extend_from_slice(PADDING_CHUNK);
    bytes.resize(bytes.len() + PADDING_BYTES as usize, 0);
    bytes.extend_from_slice(&PADDING_CHECKSUM.to_be_bytes());
    bytes.extend_from_slice(end);
    bytes.into()
}
