//! Answers as Redis holds them: the messages of the protocol, with the bytes of their images.

use std::time::Duration;

use bytes::{Buf as _, Bytes};
use prost::Message as _;

use super::millis;
use crate::{
    images::{Pieces, made::Made},
    pb,
};

/// Writes what a target made, and how long it may be given.
pub fn write_made(made: &Made, max_age: Duration) -> Vec<u8> {
    let report = pb::RouteReport { warnings: made.warnings.clone(), ..Default::default() };
    let result = pb::ImageResult { usage: made.usage, report: Some(report), ..Default::default() };
    let mut bytes = millis(max_age).to_be_bytes().to_vec();
    encode(&result, &made.images, &mut bytes);
    bytes
}

/// Reads how long an answer may be given, and what a target made. None if this version cannot read it.
pub fn read_made(mut bytes: Bytes) -> Option<(Duration, Made)> {
    let life = bytes.try_get_u64().ok()?;
    let (result, images) = read(bytes)?;
    let warnings = result.report.unwrap_or_default().warnings;
    Some((Duration::from_millis(life), Made { images, usage: result.usage, warnings }))
}

/// Writes a result.
pub fn write(result: &pb::ImageResult, images: &[(pb::Image, Pieces)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode(result, images, &mut bytes);
    bytes
}

fn encode(result: &pb::ImageResult, images: &[(pb::Image, Pieces)], into: &mut Vec<u8>) {
    let whole = |(image, pieces): &(pb::Image, Pieces)| pb::Image {
        data: pieces.clone().into_bytes(),
        ..image.clone()
    };
    let result = pb::ImageResult { images: images.iter().map(whole).collect(), ..result.clone() };
    result.encode(into).expect("a Vec has room for everything");
}

/// Reads a result. Its images share the buffer.
pub fn read(bytes: Bytes) -> Option<(pb::ImageResult, Vec<(pb::Image, Pieces)>)> {
    let mut result = pb::ImageResult::decode(bytes).ok()?;
    let images = std::mem::take(&mut result.images).into_iter().map(|mut image| {
        let data = std::mem::take(&mut image.data);
        (image, Pieces::from(data))
    });
    let images = images.collect();
    Some((result, images))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_made_comes_back_byte_for_byte() {
        let pieces: Pieces =
            [Bytes::from_static(b"half "), Bytes::from_static(b"and half")].into_iter().collect();
        let image = pb::Image { width: 7, seed: Some(0), ..Default::default() };
        let usage = Some(pb::Usage { output_image_tokens: Some(0), ..Default::default() });
        let warning = pb::Warning { field: "size".into(), ..Default::default() };
        let made = Made { images: vec![(image.clone(), pieces)], usage, warnings: vec![warning.clone()] };
        let minute = Duration::from_secs(60);
        let (life, back) = read_made(write_made(&made, minute).into()).unwrap();
        assert_eq!(life, minute);
        assert_eq!((back.usage, back.warnings), (usage, vec![warning]));
        let (read, pieces) = back.images.into_iter().next().unwrap();
        assert_eq!((read, pieces.into_bytes().as_ref()), (image, &b"half and half"[..]));
        assert!(
            read_made(Bytes::from_static(b"\xff not ours")).is_none() && read_made(Bytes::new()).is_none()
        );
    }
}
