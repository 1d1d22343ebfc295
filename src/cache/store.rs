//! Kept answers, within a number of bytes. The least lately used go first.
//!
//! Written for few, large entries: what an entry takes is known and given back at once, so that the bound holds
//! at every moment. General caches evict later and in batches, and a batch of images is a lot of memory.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use super::{key::Key, semantic::Vector};
use crate::images::made::Made;

/// What an entry takes besides its images: itself, its places in the indexes, and its messages.
const OVERHEAD_BYTES: usize = 1024;

/// Prompts that are compared with a new one. Older ones are then found by the very same prompt only.
const VECTORS_PER_BUCKET: usize = 1000;

/// Answers by key.
#[derive(Debug, Default)]
pub struct Store {
    capacity: usize,
    bytes: usize,
    entries: HashMap<Key, Entry>,
    /// By when they were last used.
    by_use: BTreeMap<u64, Key>,
    /// By when they end.
    by_end: BTreeSet<(Instant, Key)>,
    /// Entries with a vector, the oldest first.
    buckets: HashMap<Key, VecDeque<Key>>,
    uses: u64,
}

/// An answer to be kept.
#[derive(Debug)]
pub struct Answer {
    /// What was made.
    pub made: Made,
    /// How long it may be given again, from when it was made.
    pub max_age: Duration,
    /// How long ago that was.
    pub age: Duration,
    /// What its prompt means, if that is known.
    pub vector: Option<Arc<Vector>>,
    /// Where prompts are compared.
    pub bucket: Key,
    /// The number of the call that made it; a later call's answer is never replaced by an earlier one's.
    pub number: u64,
}

#[derive(Debug)]
struct Entry {
    answer: Answer,
    stored: Instant,
    ends: Instant,
    last_use: u64,
}

impl Store {
    /// An empty store. Without capacity it keeps nothing.
    pub fn new(capacity: usize) -> Self {
        Self { capacity, ..Self::default() }
    }

    /// The bound.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// What is held.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Changes the bound.
    pub fn resize(&mut self, capacity: usize) {
        self.capacity = capacity;
        self.make_room(0);
    }

    /// The answer of this key, unless it is older than `max_age`.
    pub fn get(&mut self, key: &Key, max_age: Duration) -> Option<Made> {
        let now = Instant::now();
        let entry = self.entries.get_mut(key).filter(|entry| entry.is_fresh(now, max_age))?;
        self.uses += 1;
        self.by_use.remove(&entry.last_use);
        self.by_use.insert(self.uses, *key);
        entry.last_use = self.uses;
        Some(entry.answer.made.clone())
    }

    /// Whether there is an answer of this key that is not older than `max_age`.
    pub fn has(&self, key: &Key, max_age: Duration) -> bool {
        let now = Instant::now();
        self.entries.get(key).is_some_and(|entry| entry.is_fresh(now, max_age))
    }

    /// What can be compared with a prompt, not older than `max_age`.
    pub fn vectors(&self, bucket: &Key, max_age: Duration) -> Vec<(Key, Arc<Vector>)> {
        let now = Instant::now();
        let keys = self.buckets.get(bucket).into_iter().flatten();
        keys.filter_map(|key| {
            let entry = self.entries.get(key).filter(|entry| entry.is_fresh(now, max_age))?;
            Some((*key, Arc::clone(entry.answer.vector.as_ref()?)))
        })
        .collect()
    }

    /// Keeps an answer in place of the one that its key has.
    pub fn put(&mut self, key: Key, answer: Answer) {
        if self.entries.get(&key).is_some_and(|kept| kept.answer.number > answer.number) {
            return;
        }
        self.remove(&key);
        let bytes = answer.bytes();
        if bytes > self.capacity {
            return;
        }
        self.make_room(bytes);
        let now = Instant::now();
        let stored = now.checked_sub(answer.age).unwrap_or(now);
        let ends = stored + answer.max_age;
        self.uses += 1;
        self.bytes += bytes;
        self.by_use.insert(self.uses, key);
        self.by_end.insert((ends, key));
        if answer.vector.is_some() {
            self.remember_vector(answer.bucket, key);
        }
        self.entries.insert(key, Entry { answer, stored, ends, last_use: self.uses });
    }

    fn remember_vector(&mut self, bucket: Key, key: Key) {
        let keys = self.buckets.entry(bucket).or_default();
        keys.push_back(key);
        if keys.len() <= VECTORS_PER_BUCKET {
            return;
        }
        let oldest = keys.pop_front().and_then(|oldest| self.entries.get_mut(&oldest));
        if let Some(vector) = oldest.and_then(|entry| entry.answer.vector.take()) {
            self.bytes -= vector.bytes();
        }
    }

    /// Drops an answer.
    pub fn forget(&mut self, key: &Key) {
        self.remove(key);
    }

    /// Drops what has ended, then the least lately used, until `bytes` more fit in.
    fn make_room(&mut self, bytes: usize) {
        let now = Instant::now();
        while let Some((_, key)) = self.by_end.first().copied().filter(|(ends, _)| *ends <= now) {
            self.remove(&key);
        }
        while self.bytes + bytes > self.capacity {
            let Some((_, key)) = self.by_use.first_key_value() else { break };
            let key = *key;
            self.remove(&key);
        }
    }

    fn remove(&mut self, key: &Key) {
        let Some(entry) = self.entries.remove(key) else { return };
        self.bytes -= entry.answer.bytes();
        self.by_use.remove(&entry.last_use);
        self.by_end.remove(&(entry.ends, *key));
        if entry.answer.vector.is_some()
            && let Some(keys) = self.buckets.get_mut(&entry.answer.bucket)
        {
            keys.retain(|other| other != key);
            if keys.is_empty() {
                self.buckets.remove(&entry.answer.bucket);
            }
        }
    }
}

impl Answer {
    fn bytes(&self) -> usize {
        let images = self.made.images.iter().map(|(image, pieces)| pieces.len() + image.revised_prompt.len());
        let warnings = self.made.warnings.iter().map(|warning| warning.detail.len());
        let vector = self.vector.as_ref().map_or(0, |vector| vector.bytes());
        OVERHEAD_BYTES + vector + images.sum::<usize>() + warnings.sum::<usize>()
    }
}

impl Entry {
    fn is_fresh(&self, now: Instant, max_age: Duration) -> bool {
        now < self.ends && now.saturating_duration_since(self.stored) < max_age
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::pb;

    const HOUR: Duration = Duration::from_secs(3600);

    fn key(name: &str) -> Key {
        Key::of_text(name)
    }

    fn made(bytes: usize) -> Made {
        let pieces = Bytes::from(vec![0; bytes]).into();
        Made { images: vec![(pb::Image::default(), pieces)], usage: None, warnings: Vec::new() }
    }

    fn answer(bytes: usize) -> Answer {
        Answer {
            made: made(bytes),
            max_age: HOUR,
            age: Duration::ZERO,
            vector: None,
            bucket: key("bucket"),
            number: 1,
        }
    }

    fn with_vector(values: &[f32]) -> Answer {
        let vector = Vector::try_new("m".into(), values.to_vec()).map(Arc::new);
        Answer { vector, ..answer(0) }
    }

    fn has(store: &mut Store, name: &str) -> bool {
        store.get(&key(name), HOUR).is_some()
    }

    #[tokio::test(start_paused = true)]
    async fn the_least_lately_used_goes_first() {
        let mut store = Store::new(3 * (OVERHEAD_BYTES + 1000));
        for name in ["a", "b", "c"] {
            store.put(key(name), answer(1000));
        }
        assert!(has(&mut store, "a"));
        store.put(key("d"), answer(1000));
        let kept: Vec<_> = ["a", "b", "c", "d"].into_iter().filter(|name| has(&mut store, name)).collect();
        assert_eq!(kept, ["a", "c", "d"]);
        assert_eq!(store.bytes(), store.capacity());
        store.resize(OVERHEAD_BYTES + 1000);
        assert!(has(&mut store, "d") && !has(&mut store, "a"));
        store.resize(0);
        assert_eq!((store.bytes(), store.by_use.len(), store.by_end.len()), (0, 0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_larger_than_everything_is_not_kept_nor_is_what_it_replaces() {
        let mut store = Store::new(10_000);
        store.put(key("a"), answer(1000));
        store.put(key("b"), answer(1000));
        store.put(key("a"), answer(10_000));
        assert!(!has(&mut store, "a") && has(&mut store, "b"));
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_ended_goes_without_being_asked_for() {
        let mut store = Store::new(1 << 20);
        store.put(key("a"), Answer { max_age: Duration::from_secs(10), ..answer(1000) });
        tokio::time::advance(Duration::from_secs(9)).await;
        assert!(has(&mut store, "a") && store.get(&key("a"), Duration::from_secs(9)).is_none());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!has(&mut store, "a"));
        store.put(key("b"), answer(1));
        assert_eq!(store.bytes(), OVERHEAD_BYTES + 1);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_was_made_elsewhere_is_as_old_as_it_is() {
        let second = Duration::from_secs(1);
        tokio::time::advance(HOUR).await;
        let mut store = Store::new(1 << 20);
        store.put(key("a"), Answer { max_age: 10 * second, age: 7 * second, ..answer(1) });
        assert!(store.get(&key("a"), 8 * second).is_some());
        tokio::time::advance(2 * second).await;
        assert!(store.get(&key("a"), 8 * second).is_none() && has(&mut store, "a"));
        tokio::time::advance(second).await;
        assert!(!has(&mut store, "a"));
        store.put(key("b"), answer(1));
        store.forget(&key("b"));
        assert_eq!(store.bytes(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn an_earlier_call_does_not_replace_a_later_ones_answer() {
        let mut store = Store::new(1 << 20);
        store.put(key("a"), Answer { number: 2, ..answer(2) });
        store.put(key("a"), Answer { number: 1, ..answer(1) });
        assert_eq!(store.get(&key("a"), HOUR).unwrap().images[0].1.len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_bucket_drops_its_oldest_vectors_and_keeps_their_answers() {
        let mut store = Store::new(64 << 20);
        for i in 0..=VECTORS_PER_BUCKET {
            store.put(key(&i.to_string()), with_vector(&[1.0, i as f32]));
        }
        let vectors = store.vectors(&key("bucket"), HOUR);
        assert_eq!(vectors.len(), VECTORS_PER_BUCKET);
        assert!(vectors.iter().all(|(found, _)| *found != key("0")));
        assert!(has(&mut store, "0"));
        store.resize(0);
        assert_eq!((store.bytes(), store.buckets.len()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn vectors_count_and_go_with_their_answers() {
        let mut store = Store::new(1 << 20);
        store.put(key("a"), with_vector(&[1.0; 500]));
        assert!(store.bytes() > OVERHEAD_BYTES + 2000);
        store.put(key("a"), answer(0));
        assert!(store.vectors(&key("bucket"), HOUR).is_empty());
        assert_eq!(store.bytes(), OVERHEAD_BYTES);
    }
}
