//! What requests are searched for, in the bits of two numbers that every index of them has: a search passes over what it
//! does not want without reading its row. Bits may agree by chance, so that the row is asked as well.
//!
//! These numbers are kept: another meaning of a bit needs other columns.

use crate::{
    digest::scramble,
    pb::{RequestFilter, RequestRecord},
};

/// Bits of one number that stand for one value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Field {
    shift: u32,
    bits: u32,
}

const PROVIDER: Field = Field { shift: 0, bits: 8 };
const MODEL: Field = Field { shift: 8, bits: 10 };
const CONFIG: Field = Field { shift: 18, bits: 9 };
const CALLER: Field = Field { shift: 27, bits: 10 };
const VIRTUAL_KEY: Field = Field { shift: 37, bits: 8 };
const STATUS: Field = Field { shift: 45, bits: 7 };
const CACHE_STATUS: Field = Field { shift: 52, bits: 4 };
const FAILED: Field = Field { shift: 56, bits: 1 };
const FALLBACK: Field = Field { shift: 57, bits: 1 };
const REFUSED: Field = Field { shift: 58, bits: 1 };

/// From here on a status is a failure.
const FAILURE: u32 = 400;

/// Bits of one entry of metadata, of 63: few requests have more than five.
const METADATA_BITS: u64 = 3;

/// What a search wants of a number: these bits, with one of these values.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Which bits.
    pub mask: i64,
    /// Their values; any of them.
    pub values: Vec<i64>,
}

impl Field {
    fn mask(self) -> i64 {
        ((1 << self.bits) - 1) << self.shift
    }

    fn of_number(self, number: u64) -> i64 {
        i64::try_from(number % (1 << self.bits)).unwrap_or_default() << self.shift
    }

    fn of_text(self, text: &str) -> i64 {
        self.of_number(hash(text.as_bytes()))
    }
}

/// Of a request. Never negative.
pub fn of_request(record: &RequestRecord) -> i64 {
    PROVIDER.of_text(&record.provider)
        | MODEL.of_text(&record.model)
        | CONFIG.of_text(&record.config)
        | CALLER.of_text(&record.caller)
        | VIRTUAL_KEY.of_text(&record.virtual_key)
        | STATUS.of_number(record.status.into())
        | CACHE_STATUS.of_text(record.cache_status().name().unwrap_or_default())
        | FAILED.of_number(u64::from(record.status >= FAILURE))
        | FALLBACK.of_number(record.fallback.into())
        | REFUSED.of_number(record.refused.into())
}

/// What a filter wants of that; nothing if it is about nothing that these bits tell.
pub fn wanted(filter: &RequestFilter) -> Option<Wanted> {
    let texts = [
        (PROVIDER, &filter.provider),
        (MODEL, &filter.model),
        (CONFIG, &filter.config),
        (CALLER, &filter.caller),
        (VIRTUAL_KEY, &filter.virtual_key),
        (CACHE_STATUS, &filter.cache_status),
    ];
    let flags = [
        (FAILED, filter.success.map(|success| !success)),
        (FALLBACK, filter.fallback),
        (REFUSED, filter.refused),
    ];
    let (mut mask, mut value) = (0, 0);
    for (field, text) in texts.into_iter().filter(|(_, text)| !text.is_empty()) {
        mask |= field.mask();
        value |= field.of_text(text);
    }
    for (field, flag) in flags {
        if let Some(flag) = flag {
            mask |= field.mask();
            value |= field.of_number(flag.into());
        }
    }
    let mut values = vec![value];
    if !filter.statuses.is_empty() {
        mask |= STATUS.mask();
        let of = |status: &u32| value | STATUS.of_number((*status).into());
        values = filter.statuses.iter().map(of).collect();
        values.sort_unstable();
        values.dedup();
    }
    (mask != 0).then_some(Wanted { mask, values })
}

/// Of a request's metadata: what each entry sets is set.
pub fn of_metadata<'a>(entries: impl IntoIterator<Item = (&'a String, &'a String)>) -> i64 {
    let of_entry = |(name, value): (&String, &String)| {
        let hash = hash([name.as_bytes(), &[0], value.as_bytes()].concat().as_slice());
        (0..METADATA_BITS).fold(0, |bits, i| bits | 1 << ((hash >> (16 * i)) % 63))
    };
    entries.into_iter().map(of_entry).fold(0, |all, one| all | one)
}

/// FNV-1a, stirred: always the same.
fn hash(bytes: &[u8]) -> u64 {
    let mix = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    scramble(bytes.iter().fold(0xcbf2_9ce4_8422_2325, mix))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn what_a_filter_wants_a_request_that_it_finds_has() {
        let record = RequestRecord {
            provider: "openai".into(),
            model: "gpt-image-2".into(),
            config: "pc-a".into(),
            caller: "key".into(),
            virtual_key: "vk".into(),
            status: 503,
            refused: true,
            ..Default::default()
        };
        let filters = [
            RequestFilter { provider: "openai".into(), model: "gpt-image-2".into(), ..Default::default() },
            RequestFilter { config: "pc-a".into(), caller: "key".into(), ..Default::default() },
            RequestFilter { virtual_key: "vk".into(), success: Some(false), ..Default::default() },
            RequestFilter {
                statuses: vec![200, 503],
                fallback: Some(false),
                refused: Some(true),
                ..Default::default()
            },
        ];
        let has = |wanted: &Wanted| wanted.values.contains(&(of_request(&record) & wanted.mask));
        assert!(of_request(&record) >= 0);
        for filter in &filters {
            assert!(has(&wanted(filter).unwrap()), "{filter:?}");
        }
        let others = [
            RequestFilter { success: Some(true), ..Default::default() },
            RequestFilter { provider: "stability-ai".into(), ..Default::default() },
            RequestFilter { statuses: vec![200, 429], ..Default::default() },
        ];
        for filter in &others {
            assert!(!has(&wanted(filter).unwrap()), "{filter:?}");
        }
        assert_eq!(wanted(&RequestFilter::default()), None);
    }

    #[test]
    fn what_an_entry_of_metadata_sets_is_set_among_others() {
        let entry = |name: &str, value: &str| BTreeMap::from([(name.to_owned(), value.to_owned())]);
        let mut all = entry("team", "a");
        all.extend(entry("_user", "b"));
        let (all, one) = (of_metadata(&all), of_metadata(&entry("team", "a")));
        assert_eq!(all & one, one);
        assert!(all >= 0 && of_metadata(&BTreeMap::new()) == 0);
        let strange = of_metadata(&entry("team", "c"));
        assert_ne!(all & strange, strange);
    }

    /// Requests that were kept are found by these.
    #[test]
    fn the_numbers_stay_what_they_were() {
        let record = RequestRecord { provider: "openai".into(), status: 200, ..Default::default() };
        assert_eq!(
            (of_request(&record), of_metadata([(&"a".to_owned(), &"b".to_owned())])),
            (2_546_516_266_934_449, 563_018_672_898_050)
        );
    }
}
