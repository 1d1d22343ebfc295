//! Random numbers that depend on nothing but a seed.
//!
//! Everyone who draws has a stream of its own, named after what it is for: another routing config changes which
//! calls are made, and must change neither when callers arrive nor how the first call of a provider ends.

use std::{f64::consts::TAU, time::Duration};

/// A stream of random numbers (splitmix64).
#[derive(Clone, Debug)]
pub struct Draws(u64);

impl Draws {
    /// The stream of one purpose.
    pub fn new(seed: u64, purpose: &str, number: u64) -> Self {
        let mut draws = Self(seed);
        for part in purpose.bytes().map(u64::from).chain([number]) {
            draws.0 = draws.next() ^ part;
        }
        draws
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in 0..1.
    pub fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// True that often.
    pub fn happens(&mut self, rate: f64) -> bool {
        self.fraction() < rate
    }

    /// Uniform between two durations.
    pub fn between(&mut self, min: Duration, max: Duration) -> Duration {
        min + max.saturating_sub(min).mul_f64(self.fraction())
    }

    /// Exponential with mean 1.
    pub fn exponential(&mut self) -> f64 {
        -(1.0 - self.fraction()).ln()
    }

    /// Normal with mean 0 and deviation 1 (Box-Muller).
    pub fn normal(&mut self) -> f64 {
        let radius = (2.0 * self.exponential()).sqrt();
        radius * (TAU * self.fraction()).cos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_repeatable_and_their_own() {
        let first = |seed, purpose, number| Draws::new(seed, purpose, number).next();
        assert_eq!(first(7, "alpha", 3), first(7, "alpha", 3));
        assert_ne!(first(7, "alpha", 3), first(8, "alpha", 3));
        assert_ne!(first(7, "alpha", 3), first(7, "beta", 3));
        assert_ne!(first(7, "alpha", 3), first(7, "alpha", 4));
    }

    #[test]
    fn averages_are_what_they_should_be() {
        let mut draws = Draws::new(1, "test", 0);
        let mut mean = |draw: fn(&mut Draws) -> f64| (0..20_000).map(|_| draw(&mut draws)).sum::<f64>() / 2e4;
        assert!((mean(Draws::fraction) - 0.5).abs() < 0.01);
        assert!((mean(Draws::exponential) - 1.0).abs() < 0.03);
        assert!(mean(Draws::normal).abs() < 0.03);
    }
}
