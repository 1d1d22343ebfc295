//! A provider's credential on its way to the router: from a file, a variable or standard input, never from an argument,
//! which shells and process lists keep.

use std::{
    fs,
    io::{IsTerminal as _, Read as _, Write as _, stderr, stdin},
    path::PathBuf,
};

use anyhow::{Context as _, Result, bail};

use crate::config;

const VARIABLE: &str = "IMAGEGATE_PROVIDER_KEY";

/// Where the credential is.
#[derive(Debug, clap::Args)]
pub struct SecretArgs {
    /// File with the provider's key. Without one it is read from IMAGEGATE_PROVIDER_KEY, or else from standard input
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
}

impl SecretArgs {
    /// Reads it, without the line break that editors leave at the end.
    pub fn read(&self) -> Result<String> {
        let (source, text) = match &self.key_file {
            Some(file) => {
                let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
                (file.display().to_string(), text)
            }
            None => match config::environment(VARIABLE) {
                Some(text) => (VARIABLE.to_owned(), text),
                None => ("standard input".to_owned(), from_stdin()?),
            },
        };
        let key = text.trim();
        if key.is_empty() {
            bail!("{source} has no key");
        }
        Ok(key.to_owned())
    }
}

fn from_stdin() -> Result<String> {
    let mut text = String::new();
    if stdin().is_terminal() {
        writeln!(
            stderr(),
            "Type the provider's key and Enter. It will be seen; --key-file and {VARIABLE} hide it."
        )?;
        stdin().read_line(&mut text)?;
    } else {
        stdin().read_to_string(&mut text)?;
    }
    Ok(text)
}
