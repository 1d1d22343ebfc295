//! Power of two choices: of two endpoints by chance, the one to which one more call costs less.
//!
//! As even as looking at all of them, and several routers that look at the same moment do not all choose the same.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::digest::scramble;

/// Where chance comes from. What it gives need not be hard to guess.
#[derive(Debug)]
pub struct Dice(AtomicU64);

impl Dice {
    /// Other throws in every process.
    pub fn new() -> Self {
        Self(AtomicU64::new(uuid::Uuid::new_v4().as_u128() as u64))
    }

    /// A number below `bound`, which is above 0.
    fn below(&self, bound: usize) -> usize {
        let throw = scramble(self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed));
        // Not exactly even, by as much as 2^32 is no multiple of the bound: nothing, for endpoints.
        ((u128::from(throw) * bound as u128) >> 64) as usize
    }

    /// The cheaper of two different ones by chance. None if there is none.
    pub fn cheaper<'a, T>(&self, among: &'a [T], cost: impl Fn(&T) -> f64) -> Option<&'a T> {
        match among {
            [] => None,
            [only] => Some(only),
            _ => {
                let first = self.below(among.len());
                let second = (first + 1 + self.below(among.len() - 1)) % among.len();
                let (first, second) = (&among[first], &among[second]);
                // If they cost the same, the first is as much by chance as the second.
                Some(if cost(second) < cost(first) { second } else { first })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_load_of_equals_is_even_and_the_dearest_is_never_chosen() {
        let dice = Dice::new();
        let mut calls = [0_u32; 5];
        for _ in 0..10_000 {
            let indexes: Vec<usize> = (0..calls.len()).collect();
            let chosen = *dice.cheaper(&indexes, |i| f64::from(calls[*i])).unwrap();
            calls[chosen] += 1;
        }
        assert!(calls.iter().all(|calls| calls.abs_diff(2000) < 20), "{calls:?}");
        let dearest = (0..1000).filter(|_| *dice.cheaper(&[1.0, 2.0, 9.0], |cost| *cost).unwrap() == 9.0);
        assert_eq!(dearest.count(), 0);
    }

    #[test]
    fn one_is_chosen_and_of_none_none() {
        let dice = Dice::new();
        assert_eq!(dice.cheaper(&[7.0], |cost| *cost), Some(&7.0));
        assert_eq!(dice.cheaper::<f64>(&[], |cost| *cost), None);
    }
}
