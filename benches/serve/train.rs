//! Whatever a gateway may be busy with, each for a while, for a build that counts what runs (container/binary). What it has
//! never counted is made small instead of fast, so this is more than what the table measures.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{
    CONNECTIONS,
    load::{Target, Until},
    system::{Kind, Mock},
    verified,
    workload::{IMAGES, WORKLOADS, Workload},
};

const A_WHILE: Until = Until::Elapsed(Duration::from_secs(2));

/// Times that a picture is drawn and edited. Each takes a few hundredths of a second or, counted, tenths.
const PICTURES: usize = 5;

const FORMATS: [&str; 3] = ["png", "jpeg", "webp"];

const SANDBOX: &str = "x-portkey-provider: sandbox\r\n";

/// Of a form.
const BOUNDARY: &str = "5f1d3c7e";

/// Keeps one system after the other busy; the one that has the sandbox also draws.
pub async fn run(mock: &Mock, folder: &Path) -> Result<()> {
    for kind in [Kind::Serve, Kind::Traced, Kind::Apart(1), Kind::Split, Kind::SplitTls] {
        let system = kind.start(mock, folder).await?;
        for workload in WORKLOADS.iter().chain([&Workload::balanced(100)]) {
            let target = workload.target(&kind, &system, mock).context("no such request")?;
            let length = verified(workload, &kind, &target).await?;
            target.run(CONNECTIONS, A_WHILE, length).await?;
        }
        if let Kind::Serve = kind {
            draw(&system.address).await?;
        }
    }
    Ok(())
}

/// Pictures in every format, of which others are made.
async fn draw(address: &str) -> Result<()> {
    for round in 0..PICTURES {
        for format in FORMATS {
            let asked = json!({ "prompt": format!("a lighthouse, {round}"), "output_format": format });
            let drawn = image_of(&Target::new(address, IMAGES, SANDBOX, &asked.to_string())).await?;
            let edited = json!({ "prompt": "at dusk", "images": [{ "image_url": format!("data:image/{format};base64,{drawn}") }] });
            image_of(&Target::new(address, "/v1/images/edits", SANDBOX, &edited.to_string())).await?;
            let picture = base64_simd::STANDARD.decode_to_vec(&drawn)?;
            let (content_type, form) = form(format, &picture);
            image_of(&Target::of_type(address, "/v1/images/edits", SANDBOX, &content_type, &form)).await?;
        }
    }
    Ok(())
}

async fn image_of(target: &Target) -> Result<String> {
    let answer: Value = serde_json::from_slice(&target.once().await?)?;
    answer["data"][0]["b64_json"].as_str().map(str::to_owned).context("an answer without an image")
}

/// The content type and the body of an upload.
fn form(format: &str, picture: &[u8]) -> (String, Vec<u8>) {
    let part =
        |header: &str| format!("--{BOUNDARY}\r\ncontent-disposition: form-data; name={header}\r\n\r\n");
    let mut body = part("\"prompt\"").into_bytes();
    body.extend_from_slice(b"in the morning\r\n");
    let file = format!("\"image\"; filename=\"picture.{format}\"\r\ncontent-type: image/{format}");
    body.extend_from_slice(part(&file).as_bytes());
    body.extend_from_slice(picture);
    body.extend_from_slice(format!("\r\n--{BOUNDARY}--\r\n").as_bytes());
    (format!("multipart/form-data; boundary={BOUNDARY}"), body)
}
