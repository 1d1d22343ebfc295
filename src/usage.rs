//! Sums over the request log: how groups are added up, and what their durations tell.

use crate::pb::{DurationClass, UsageGroup};

/// Durations of one class differ in what comes after their first four binary digits.
const DIGITS: u32 = 4;

/// The class after which there is no other: of what takes longer than eight hours.
const LAST: u64 = 8 * 21 + 15;

/// The number of the class of a duration, as an expression over a column.
pub fn class_of(column: &str) -> String {
    let exact = 1 << DIGITS;
    // Most requests take seconds: these are asked for in the middle of few questions.
    let short = octaves(column, 1..=7);
    let long = octaves(column, 8..=21);
    format!(
        "CASE WHEN {column} < {exact} THEN {column} WHEN {column} < {} THEN CASE {short} END \
         ELSE CASE {long} ELSE {LAST} END END",
        exact << 7
    )
}

fn octaves(column: &str, shifts: std::ops::RangeInclusive<u64>) -> String {
    let octave = |shift: u64| {
        format!("WHEN {column} < {} THEN {} + ({column} >> {shift})", 16_u64 << shift, 8 * shift)
    };
    shifts.map(octave).collect::<Vec<_>>().join(" ")
}

/// The class of this number.
pub fn class(number: u64, requests: u64) -> DurationClass {
    let shift = (number / 8).saturating_sub(1);
    let from_ms = (number - 8 * shift) << shift;
    let until_ms = if number >= LAST { u64::MAX } else { from_ms + (1 << shift) };
    DurationClass { from_ms, until_ms, requests }
}

impl UsageGroup {
    /// Adds what other requests were.
    pub fn add(&mut self, other: &Self) {
        let all = self.requests + other.requests;
        let sum = self.duration_ms * self.requests as f64 + other.duration_ms * other.requests as f64;
        self.duration_ms = sum / all.max(1) as f64;
        self.requests = all;
        self.succeeded += other.succeeded;
        self.rescued += other.rescued;
        self.refused += other.refused;
        self.cache_hits += other.cache_hits;
        self.images += other.images;
        self.cost_usd += other.cost_usd;
        self.cost_unknown += other.cost_unknown;
        self.input_tokens += other.input_tokens;
        self.output_tokens += other.output_tokens;
        for class in &other.durations {
            match self.durations.binary_search_by_key(&class.from_ms, |known| known.from_ms) {
                Ok(at) => self.durations[at].requests += class.requests,
                Err(at) => self.durations.insert(at, *class),
            }
        }
    }

    /// Those that failed.
    pub fn failed(&self) -> u64 {
        self.requests.saturating_sub(self.succeeded)
    }

    /// How long this part of the requests took at most, in milliseconds, to within 7 %. None: there are none, or nobody
    /// asked for durations.
    pub fn quantile_ms(&self, part: f64) -> Option<u64> {
        let all: u64 = self.durations.iter().map(|class| class.requests).sum();
        let wanted = ((all as f64 * part).ceil() as u64).max(1);
        let mut passed = 0;
        let class = self.durations.iter().find(|class| {
            passed += class.requests;
            passed >= wanted
        })?;
        let last_ms = class.until_ms.saturating_sub(1);
        Some(if class.until_ms == u64::MAX { class.from_ms } else { u64::midpoint(class.from_ms, last_ms) })
    }
}

/// All groups together.
pub fn total<'a>(groups: impl IntoIterator<Item = &'a UsageGroup>) -> UsageGroup {
    groups.into_iter().fold(UsageGroup::default(), |mut total, group| {
        total.add(group);
        total
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the expression says.
    fn number_of(duration_ms: u64) -> u64 {
        let shift = (u64::BITS - duration_ms.leading_zeros()).saturating_sub(DIGITS).min(22);
        if shift > 21 { LAST } else { 8 * u64::from(shift) + (duration_ms >> shift) }
    }

    #[test]
    fn classes_follow_one_another_and_are_narrow() {
        let mut before = class(0, 1);
        assert_eq!((before.from_ms, before.until_ms), (0, 1));
        for number in 1..=LAST {
            let next = class(number, 1);
            assert_eq!(next.from_ms, before.until_ms, "{number}");
            if number < LAST {
                assert!(number < 8 || (next.until_ms - next.from_ms) * 8 <= next.from_ms, "{number}");
                assert_eq!((number_of(next.from_ms), number_of(next.until_ms - 1)), (number, number));
            }
            before = next;
        }
        assert_eq!((before.until_ms, number_of(u64::MAX)), (u64::MAX, LAST));
    }

    fn group(durations: &[(u64, u64)]) -> UsageGroup {
        let mut group = UsageGroup::default();
        for (duration_ms, requests) in durations {
            let durations = vec![class(number_of(*duration_ms), *requests)];
            let duration_ms = *duration_ms as f64;
            group.add(&UsageGroup { requests: *requests, duration_ms, durations, ..Default::default() });
        }
        group
    }

    #[test]
    fn a_quantile_is_near_what_was_counted() {
        let group = group(&[(40, 50), (3, 10), (9000, 30), (40, 9), (120_000, 1)]);
        assert_eq!(group.requests, 100);
        let near = |part: f64, exact: u64| {
            let found = group.quantile_ms(part).unwrap();
            assert!(found.abs_diff(exact) as f64 <= exact as f64 * 0.07, "{part}: {found}, not {exact}");
        };
        near(0.0, 3);
        near(0.1, 3);
        near(0.11, 40);
        near(0.69, 40);
        near(0.7, 9000);
        near(0.99, 9000);
        near(1.0, 120_000);
        assert_eq!(UsageGroup::default().quantile_ms(0.5), None);
    }

    #[test]
    fn what_took_longer_than_all_classes_is_told_as_the_last_of_them() {
        assert_eq!(group(&[(u64::MAX >> 1, 1)]).quantile_ms(0.5), Some(15 << 21));
    }
}
