//! Answers as Redis holds them: the messages of the protocol, with the bytes of their images.

use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;

use crate::{
    images::{Pieces, made::Made},
    pb,
};

/// Writes what a target made, with the time.
pub fn write_made(made: &Made) -> Vec<u8> {
    let report = pb::RouteReport { warnings: made.warnings.clone(), ..Default::default() };
    write(&pb::ImageResult { usage: made.usage, report: Some(report), ..Default::default() }, &made.images)
}

/// Reads what a target made, and how old it is. None if this version cannot read it.
pub fn read_made(bytes: Bytes) -> Option<(Made, Duration)> {
    let (result, images) = read(bytes)?;
    let age = Duration::from_secs(u64::try_from(pb::unix_now() - result.created_unix_s).unwrap_or_default());
    let warnings = result.report.unwrap_or_default().warnings;
    Some((Made { images, usage: result.usage, warnings }, age))
}

/// Writes a result, with the time.
pub fn write(result: &pb::ImageResult, images: &[(pb::Image, Pieces)]) -> Vec<u8> {
    let whole = |(image, pieces): &(pb::Image, Pieces)| pb::Image {
        data: pieces.clone().into_bytes(),
        ..image.clone()
    };
    let images = images.iter().map(whole).collect();
    pb::ImageResult { created_unix_s: pb::unix_now(), images, ..result.clone() }.encode_to_vec()
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
        let (back, age) = read_made(write_made(&made).into()).unwrap();
        assert!(age < Duration::from_secs(5));
        assert_eq!((back.usage, back.warnings), (usage, vec![warning]));
        let (read, pieces) = back.images.into_iter().next().unwrap();
        assert_eq!((read, pieces.into_bytes().as_ref()), (image, &b"half and half"[..]));
        assert!(read_made(Bytes::from_static(b"\xff not ours")).is_none());
    }
}
