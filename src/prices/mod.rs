//! The price book: what providers charge, in lists that name their date and their sources (docs/costs.md).
//!
//! One is embedded and fills the records of the built-in providers; an operator's own is laid over whatever workers
//! describe. What a call comes to by its prices is computed in `route::cost`.

pub mod read;

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock},
};

use crate::pb::Price;

/// What providers count: see `Usage`.
pub const COUNTED: &[&str] = &[
    "input_text_token",
    "cached_text_token",
    "input_image_token",
    "cached_image_token",
    "output_text_token",
    "output_image_token",
    "megapixel",
    "compute_second",
    "credit",
];

/// What is known of a call without its provider's counting.
pub const MADE: &[&str] =
    &["request", "image", "input_image", "output_pixel", "input_pixel", "step", "pixel_step"];

static EMBEDDED: LazyLock<Book> = LazyLock::new(|| {
    let book = serde_json::from_str(data!("book")).expect("the build has written it");
    read::book(&book).expect("tests read the embedded price book")
});

/// Prices by provider and model.
#[derive(Clone, Debug, Default)]
pub struct Book {
    as_of: String,
    providers: BTreeMap<String, Vec<Entry>>,
}

/// What one or several models of a provider charge.
#[derive(Clone, Debug)]
struct Entry {
    /// Exact ids, or prefixes that end in `*`.
    ids: Vec<String>,
    /// Empty: not known.
    prices: Arc<[Price]>,
}

impl Book {
    /// The one that this program brings along.
    pub fn embedded() -> &'static Self {
        &EMBEDDED
    }

    /// The day on which it was right, as `YYYY-MM-DD`; empty if it does not say.
    pub fn as_of(&self) -> &str {
        &self.as_of
    }

    /// A model's prices, those of other days too. `None`: the book does not speak of it; empty: it says that they are
    /// not known.
    pub fn prices(&self, provider: &str, model: &str) -> Option<&Arc<[Price]>> {
        let entries = self.providers.get(provider)?;
        let is_for = |id: &String| match id.strip_suffix('*') {
            Some(prefix) => model.starts_with(prefix),
            None => id == model,
        };
        entries.iter().find(|entry| entry.ids.iter().any(is_for)).map(|entry| &entry.prices)
    }

    /// Everything in it: provider, id or prefix, prices.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &str, &[Price])> {
        self.providers.iter().flat_map(|(provider, entries)| {
            entries.iter().flat_map(move |entry| {
                entry.ids.iter().map(move |id| (provider.as_str(), id.as_str(), &*entry.prices))
            })
        })
    }
}

/// Those of some prices that hold on a day, written as `YYYY-MM-DD`. `None`: all of them, whatever the day.
pub fn in_force(prices: &[Price], day: impl FnOnce() -> String) -> Option<Arc<[Price]>> {
    if prices.iter().all(|price| price.from.is_empty() && price.until.is_empty()) {
        return None;
    }
    let day = day();
    // Written so, days sort as they come.
    let holds = |price: &&Price| price.from <= day && (price.until.is_empty() || day < price.until);
    Some(prices.iter().filter(holds).cloned().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_price_change_is_written_down_before_it_happens() {
        let book = read::text(
            "as_of: 2026-11-22\nproviders: {p: {models: [{ids: [m], prices: [\
             {item: image, usd: 1, until: 2027-01-01}, {item: image, usd: 2, from: 2027-01-01}]}]}}",
        )
        .unwrap();
        let on = |day: &str| {
            let prices = in_force(book.prices("p", "m").unwrap(), || day.to_owned()).unwrap();
            prices.iter().map(|price| price.usd).collect::<Vec<_>>()
        };
        assert_eq!((on("2026-12-31"), on("2027-01-01")), (vec![1.0], vec![2.0]));
    }

    #[test]
    fn the_first_entry_that_matches_counts_and_an_empty_one_says_unknown() {
        let book = read::text(
            "as_of: 2026-11-22\nproviders: {p: {models: [{ids: [a], prices: [{item: image, usd: 1}]}, \
             {ids: [b], prices: []}, {ids: ['*'], prices: [{item: image, usd: 3}]}]}}",
        )
        .unwrap();
        let usd = |model: &str| book.prices("p", model).unwrap().first().map(|price| price.usd);
        assert_eq!((usd("a"), usd("b"), usd("c")), (Some(1.0), None, Some(3.0)));
        assert!(book.prices("other", "a").is_none());
    }

    #[test]
    fn the_embedded_book_is_read_and_dated() {
        let book = Book::embedded();
        assert!(read::is_day(book.as_of()));
        assert!(book.entries().count() > 100);
    }

    #[test]
    fn every_entry_of_the_embedded_book_is_for_a_model_that_a_provider_has() {
        let records: BTreeMap<String, Vec<String>> = crate::provider::all()
            .iter()
            .map(|provider| provider.record())
            .map(|record| {
                (record.name.clone(), record.models.iter().map(|model| model.model.clone()).collect())
            })
            .collect();
        let sandbox = crate::provider::sandbox::Sandbox::NAME;
        for (provider, id, _) in Book::embedded().entries().filter(|(provider, ..)| *provider != sandbox) {
            let models = records.get(provider).unwrap_or_else(|| panic!("no provider is called {provider}"));
            assert!(models.iter().any(|model| model == id), "{provider} has no {id}");
        }
    }
}
