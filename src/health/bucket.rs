//! A token bucket that traffic fills: so many extra calls per request, on average.

use std::time::Duration;

use tokio::time::Instant;

/// As many extra calls may come at once.
const CAPACITY: f64 = 10.0;

/// Tokens per second that come without traffic, so that rare requests are not left without.
const TRICKLE: f64 = 0.1;

/// Tokens for extra calls.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    tokens: f64,
    filled: Instant,
}

impl Bucket {
    /// A full one.
    pub fn new() -> Self {
        Self { tokens: CAPACITY, filled: Instant::now() }
    }

    /// A request came: `share` of an extra call is earned.
    pub fn deposit(&mut self, share: f64) {
        let now = Instant::now();
        let idle: Duration = now.saturating_duration_since(self.filled);
        self.filled = now;
        self.tokens = (self.tokens + share + idle.as_secs_f64() * TRICKLE * share.min(1.0)).min(CAPACITY);
    }

    /// Takes a token, if there is one.
    pub fn withdraw(&mut self) -> bool {
        let may = self.tokens >= 1.0;
        if may {
            self.tokens -= 1.0;
        }
        may
    }

    /// Whether there is a token.
    pub fn has_token(&self) -> bool {
        self.tokens >= 1.0
    }
}

impl Default for Bucket {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn extra_calls_are_a_share_of_the_traffic() {
        let mut bucket = Bucket::new();
        let extra = (0..1000).filter(|_| {
            bucket.deposit(0.2);
            bucket.withdraw()
        });
        assert_eq!(extra.count(), 209);
    }

    #[tokio::test(start_paused = true)]
    async fn rare_requests_are_not_left_without() {
        let mut bucket = Bucket::new();
        while bucket.withdraw() {}
        tokio::time::advance(Duration::from_secs(60)).await;
        bucket.deposit(0.2);
        assert!(bucket.withdraw());
    }

    #[tokio::test(start_paused = true)]
    async fn a_budget_of_nothing_allows_the_first_few_only() {
        let mut bucket = Bucket::new();
        while bucket.withdraw() {}
        tokio::time::advance(Duration::from_secs(3600)).await;
        bucket.deposit(0.0);
        assert!(!bucket.has_token());
    }
}
