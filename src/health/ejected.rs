//! Why a target is left alone, and whether somebody else can take over.

use std::{fmt, time::Duration};

/// Why a target is left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ejected {
    /// It failed too often; it is probed after this time.
    Open(Duration),
    /// It failed too often, and one request is finding out whether it still does.
    Probing,
    /// It asked not to be called for this time.
    Paused(Duration),
    /// It has come back lately and gets a part of its traffic.
    Warming,
}

/// Whether another target can take a request over from one that should be left alone. A target that nobody
/// stands in for is called whatever its health.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Elsewhere {
    /// From one whose circuit breaker is open.
    pub if_broken: bool,
    /// From one that asked not to be called for a while.
    pub if_paused: bool,
}

impl Ejected {
    /// For machines: metrics, explanations.
    pub fn name(self) -> &'static str {
        match self {
            Self::Open(_) => "breaker_open",
            Self::Probing => "breaker_half_open",
            Self::Paused(_) => "rate_limited",
            Self::Warming => "slow_start",
        }
    }
}

impl fmt::Display for Ejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open(left) => {
                write!(f, "left alone for another {:.1} s after too many failures", left.as_secs_f64())
            }
            Self::Probing => f.write_str("left alone while one request finds out whether it works again"),
            Self::Paused(left) => {
                write!(f, "it asked not to be called for another {:.1} s", left.as_secs_f64())
            }
            Self::Warming => f.write_str("it works again since lately and gets a part of its requests"),
        }
    }
}

impl Elsewhere {
    /// Whether somebody can take over from a target that should be left alone for this reason.
    pub fn covers(self, ejected: Ejected) -> bool {
        match ejected {
            Ejected::Paused(_) => self.if_paused,
            Ejected::Open(_) | Ejected::Probing | Ejected::Warming => self.if_broken,
        }
    }
}
