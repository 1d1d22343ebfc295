//! A token bucket that traffic fills: so many extra calls per request, on average.

use tokio::time::Instant;

/// Tokens for extra calls.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    capacity: f64,
    trickle: f64,
    tokens: f64,
    filled: Instant,
}

impl Bucket {
    /// Full. As many extra calls as `capacity` may come at once; `trickle` tokens per second come without
    /// traffic, so that rare requests are not left without.
    pub fn new(capacity: f64, trickle: f64) -> Self {
        Self { capacity, trickle, tokens: capacity, filled: Instant::now() }
    }

    /// A request came: `share` of an extra call is earned.
    pub fn deposit(&mut self, share: f64) {
        let now = Instant::now();
        let idle = now.saturating_duration_since(self.filled).as_secs_f64();
        self.filled = now;
        let trickle = if share > 0.0 { idle * self.trickle } else { 0.0 };
        self.tokens = (self.tokens + share + trickle).min(self.capacity);
    }

    /// Takes a token, if there is one.
    pub fn withdraw(&mut self) -> bool {
        let may = self.tokens >= 1.0;
        if may {
            self.tokens -= 1.0;
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn extra_calls_are_a_share_of_the_traffic() {
        let mut bucket = Bucket::new(10.0, 0.1);
        let extra = (0..1000).filter(|_| {
            bucket.deposit(0.2);
            bucket.withdraw()
        });
        assert_eq!(extra.count(), 209);
    }

    #[tokio::test(start_paused = true)]
    async fn rare_requests_are_not_left_without() {
        let mut bucket = Bucket::new(10.0, 0.1);
        while bucket.withdraw() {}
        tokio::time::advance(std::time::Duration::from_secs(60)).await;
        bucket.deposit(0.2);
        assert!(bucket.withdraw());
    }

    #[tokio::test(start_paused = true)]
    async fn a_budget_of_nothing_allows_the_first_few_only() {
        let mut bucket = Bucket::new(10.0, 0.1);
        while bucket.withdraw() {}
        tokio::time::advance(std::time::Duration::from_secs(3600)).await;
        bucket.deposit(0.0);
        assert!(!bucket.withdraw());
    }
}
