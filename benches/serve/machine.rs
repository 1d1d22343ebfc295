//! Where and when something was measured.

use std::{fs, path::Path, process::Command, thread};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

/// What has to do with the figures, as JSON.
pub fn describe() -> Result<Value> {
    let processors = fs::read_to_string("/proc/cpuinfo")?;
    let model = processors.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let folder = super::system::binary().parent().and_then(Path::file_name).unwrap_or_default();
    Ok(json!({
        "profile": folder.to_string_lossy(),
        "date": time::OffsetDateTime::now_utc().date().to_string(),
        "processor": model.trim_start_matches(['\t', ' ', ':']),
        "processors": thread::available_parallelism()?.get(),
        "kernel": fs::read_to_string("/proc/sys/kernel/osrelease")?.trim(),
        "commit": said_by("git", &["rev-parse", "--short", "HEAD"]),
        "nginx": said_by("nginx", &["-v"]),
        "node": said_by("node", &["--version"]),
    }))
}

/// The first line that a program writes. None: it is not there.
fn said_by(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().context("it is not there").ok()?;
    let text = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&text).lines().next().map(str::to_owned)
}
