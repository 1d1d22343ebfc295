//! One live line on standard error, on a terminal only.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::table::plain;
use crate::pb;

/// How often the line is drawn again while nothing happens.
const TICK: Duration = Duration::from_millis(100);

/// What a request is doing. Gone from the terminal when it is dropped.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// Begins to show that something is going on.
    pub fn new() -> Self {
        let bar = ProgressBar::new(100);
        bar.set_style(style("{spinner} {msg} {elapsed}"));
        bar.set_message("asking");
        bar.enable_steady_tick(TICK);
        Self { bar }
    }

    /// Shows how far it is, where the provider tells.
    pub fn show(&self, now: &pb::Progress) {
        if let Some(fraction) = now.fraction {
            self.bar.set_style(style("{spinner} {msg} [{bar:30}] {percent} % {elapsed}"));
            self.bar.set_position((fraction.clamp(0.0, 1.0) * 100.0) as u64);
        }
        self.bar.set_message(plain(&now.state));
    }

    /// Lets something else write to the terminal.
    pub fn aside<T>(&self, write: impl FnOnce() -> T) -> T {
        self.bar.suspend(write)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn style(template: &str) -> ProgressStyle {
    let plain = ProgressStyle::default_spinner();
    plain.clone().template(template).unwrap_or(plain).progress_chars("=> ")
}
