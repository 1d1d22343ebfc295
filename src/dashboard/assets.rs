//! The style and the script of the pages, which are in the binary.

use std::sync::LazyLock;

use axum::{
    extract::Path,
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
};
use sha2::{Digest as _, Sha256};

use crate::digest::hex;

struct Asset {
    name: &'static str,
    mime_type: &'static str,
    text: &'static str,
}

const ASSETS: [Asset; 5] = [
    Asset { name: "style.css", mime_type: "text/css", text: include_str!("assets/style.css") },
    Asset { name: "script.js", mime_type: "text/javascript", text: include_str!("assets/script.js") },
    Asset { name: "editor.js", mime_type: "text/javascript", text: include_str!("assets/editor.js") },
    Asset { name: "playground.js", mime_type: "text/javascript", text: include_str!("assets/playground.js") },
    Asset { name: "icon.svg", mime_type: "image/svg+xml", text: include_str!("assets/icon.svg") },
];

/// Another binary, another address, so that a browser may keep what it has.
static VERSION: LazyLock<String> = LazyLock::new(|| {
    let all = ASSETS.iter().fold(Sha256::new(), |digest, asset| digest.chain_update(asset.text));
    hex(&all.finalize()[..6])
});

/// Where the asset of this name is.
pub fn address(name: &str) -> String {
    format!("/assets/{name}?{}", *VERSION)
}

/// `GET /assets/{name}`
pub async fn get(Path(name): Path<String>) -> Response {
    match ASSETS.iter().find(|asset| asset.name == name) {
        Some(asset) => {
            let kept = (header::CACHE_CONTROL, "public, max-age=31536000, immutable");
            ([(header::CONTENT_TYPE, asset.mime_type), kept], asset.text).into_response()
        }
        None => StatusCode::NOT_FOUND.into_response(),
    }
}
