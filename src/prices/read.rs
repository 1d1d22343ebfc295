//! Reads a price book, with all that is wrong with it at once.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Book, COUNTED, Entry, MADE};
use crate::{
    config::{
        Problem,
        read::{Object, Problems, suggestion},
        yaml,
    },
    params,
    pb::{self, Operation, Price},
    provider::canonical_name,
};

/// Nobody charges more for anything, in USD.
const HIGHEST_USD: f64 = 1e6;

/// What an amount can be for, and what it is rounded up to.
const LARGEST_QUANTITY: f64 = 1e12;

/// What `usual` is said of.
const STEPS: &[&str] = &["step", "pixel_step"];

/// What `beyond` and `round_up_to` are said of.
const PIXELS: &[&str] = &["output_pixel", "input_pixel"];

/// Reads a book's text, of whatever providers.
///
/// # Errors
/// Everything that is wrong with it, with lines.
pub fn text(text: &str) -> Result<Book, Vec<Problem>> {
    let document = yaml::parse(text).map_err(|problem| vec![problem])?;
    let located = |found: Vec<_>| found.into_iter().map(|problem| document.locate(problem)).collect();
    book(&document.value).map_err(located)
}

/// Reads a book, of whatever providers.
///
/// # Errors
/// Everything that is wrong with it.
pub fn book(value: &Value) -> Result<Book, Vec<Problem>> {
    let problems = Problems::default();
    let book = Object::open(value, "", &problems).map(|book| read(book, None));
    let found = problems.into_vec();
    book.filter(|_| found.is_empty()).ok_or(found)
}

/// Reads a book for some providers, or for whatever it speaks of.
pub fn read(mut book: Object<'_>, providers: Option<&[&str]>) -> Book {
    let as_of = day(&mut book, "as_of");
    book.texts("sources");
    let mut all = BTreeMap::new();
    book.required("providers");
    for (name, value) in book.map("providers").into_iter().flatten() {
        let path = book.at(&format!("providers.{name}"));
        let canonical = canonical_name(name);
        if let Some(known) = providers.filter(|known| !known.contains(&canonical)) {
            let hint = suggestion(name, known);
            book.problems().add(&path, format!("unknown provider \"{name}\"{hint}"));
        }
        let Some(mut provider) = Object::open(value, path, book.problems()) else { continue };
        provider.texts("sources");
        provider.required("models");
        let mut entries = Vec::new();
        for (i, value) in provider.list("models").into_iter().flatten().enumerate() {
            let path = provider.at(&format!("models.{i}"));
            entries.extend(Object::open(value, path, provider.problems()).map(entry));
        }
        provider.finish();
        all.insert(canonical.to_owned(), entries);
    }
    book.finish();
    Book { as_of, providers: all }
}

/// Reads a list of prices.
pub fn prices(list: &[Value], path: &str, problems: &Problems) -> Vec<Price> {
    let open = |(i, value)| Object::open(value, format!("{path}.{i}"), problems);
    list.iter().enumerate().filter_map(open).map(price).collect()
}

/// Whether a text is a day such as 2026-01-31.
pub fn is_day(text: &str) -> bool {
    let numbers: Vec<u32> = text.split('-').filter_map(|part| part.parse().ok()).collect();
    let [year, month, day] = numbers[..] else { return false };
    let is_leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let days = match month {
        4 | 6 | 9 | 11 => 30,
        2 if is_leap => 29,
        2 => 28,
        1..=12 => 31,
        _ => 0,
    };
    let dashes: Vec<usize> = text.match_indices('-').map(|(at, _)| at).collect();
    text.len() == 10 && dashes == [4, 7] && (1..=days).contains(&day)
}

fn entry(mut entry: Object<'_>) -> Entry {
    entry.required("ids");
    let ids = entry.texts("ids").unwrap_or_default();
    if entry.has("ids") && ids.is_empty() {
        entry.problem("ids", "at least one id is required, or a prefix that ends in *");
    }
    entry.required("prices");
    let prices = entry.list("prices").unwrap_or_default();
    let prices = self::prices(prices, &entry.at("prices"), entry.problems());
    entry.finish();
    Entry { ids: ids.into_iter().map(str::to_owned).collect(), prices: prices.into() }
}

fn price(mut price: Object<'_>) -> Price {
    price.required("item");
    price.required("usd");
    let item = price.text("item").unwrap_or_default();
    let is_known = COUNTED.contains(&item) || MADE.contains(&item);
    if !item.is_empty() && !is_known {
        let hint = suggestion(item, &[COUNTED, MADE].concat());
        price.problem("item", format!("\"{item}\" is not an item{hint}"));
    }
    let usd = price.between("usd", 0.0, HIGHEST_USD).unwrap_or_default();
    let mut quantity = |name: &str, of: &[&str]| {
        let number = price.between(name, 0.0, LARGEST_QUANTITY)?;
        if number == 0.0 {
            price.problem(name, "0 is not allowed; allowed: a number above it");
        }
        if is_known && !of.is_empty() && !of.contains(&item) {
            price.problem(name, format!("\"{item}\" has no such field; allowed: {}", of.join(", ")));
        }
        Some(number)
    };
    let per = quantity("per", &[]).unwrap_or_default();
    let usual = quantity("usual", STEPS).unwrap_or_default();
    let beyond = quantity("beyond", PIXELS).unwrap_or_default();
    let round_up_to = quantity("round_up_to", PIXELS).unwrap_or_default();
    let size = price.text("size").unwrap_or_default();
    if !size.is_empty() && !is_size(size) {
        price.problem("size", format!("\"{size}\" is not a size; allowed: 1024x1024, 16:9 or auto"));
    }
    let quality = price.text("quality").unwrap_or_default();
    let known_quality = params::quality(quality);
    if !quality.is_empty() && known_quality.is_none_or(|known| known == pb::Quality::Unspecified) {
        let allowed = "low, medium, high, xhigh, max";
        price.problem("quality", format!("\"{quality}\" is not a quality; allowed: {allowed}"));
    }
    let operation = price.text("operation").unwrap_or_default();
    let known_operation = Operation::from_name(operation);
    if !operation.is_empty() && known_operation.is_none() {
        price.problem("operation", format!("\"{operation}\" is not an operation"));
    }
    let (from, until) = (day(&mut price, "from"), day(&mut price, "until"));
    if !from.is_empty() && !until.is_empty() && until <= from {
        price.problem("until", format!("{until} is not after {from}"));
    }
    price.finish();
    Price {
        item: item.to_owned(),
        usd,
        per,
        size: size.to_owned(),
        quality: known_quality.unwrap_or_default().into(),
        operation: known_operation.unwrap_or_default().into(),
        usual,
        beyond,
        round_up_to,
        from,
        until,
    }
}

fn is_size(text: &str) -> bool {
    let pair = text.split_once('x').or_else(|| text.split_once(':'));
    let is_side = |side: &str| side.parse::<f64>().is_ok_and(|side| side > 0.0);
    text == "auto" || pair.is_some_and(|(width, height)| is_side(width) && is_side(height))
}

fn day(object: &mut Object<'_>, name: &str) -> String {
    let day = object.text(name).unwrap_or_default();
    if !day.is_empty() && !is_day(day) {
        object.problem(name, format!("\"{day}\" is no date like 2026-01-31"));
    }
    day.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_is_wrong_is_said_at_once_with_its_line() {
        let book = "as_of: yesterday\n\
                    providers:\n  \
                      p:\n    \
                        models:\n      \
                          - ids: []\n        \
                            prices:\n          \
                              - { item: imagee, usd: 1 }\n          \
                              - { item: image, usd: -1, size: big }\n          \
                              - { item: image, usd: 1, quality: best, operation: paint }\n          \
                              - { item: image, usd: 1, usual: 4, per: 0 }\n          \
                              - { item: image, usd: 1, from: 2027-01-01, until: 2026-01-01 }\n          \
                              - { usd: 1, fro: 2027-01-01 }\n";
        let problems: Vec<String> = text(book).unwrap_err().iter().map(ToString::to_string).collect();
        let said = [
            (1, "as_of: \"yesterday\" is no date"),
            (5, "ids: at least one id"),
            (7, "\"imagee\" is not an item; did you mean \"image\"?"),
            (8, "usd: -1 is not allowed"),
            (8, "size: \"big\" is not a size"),
            (9, "quality: \"best\""),
            (9, "operation: \"paint\""),
            (10, "per: 0 is not allowed"),
            (10, "usual: \"image\" has no such field; allowed: step, pixel_step"),
            (11, "until: 2026-01-01 is not after 2027-01-01"),
            (12, "item: Required"),
            (12, "fro: unknown field; did you mean \"from\"?"),
        ];
        for (line, said) in said {
            let found = problems.iter().any(|p| p.starts_with(&format!("line {line},")) && p.contains(said));
            assert!(found, "line {line}: {said}: {problems:#?}");
        }
        assert_eq!(problems.len(), said.len(), "{problems:#?}");
    }

    #[test]
    fn providers_that_nobody_has_are_refused() {
        let value = serde_json::json!({"providers": {"opnai": {"models": []}}});
        let problems = Problems::default();
        read(Object::open(&value, "prices", &problems).unwrap(), Some(&["openai"]));
        let found = problems.into_vec();
        let expected = "prices.providers.opnai: unknown provider \"opnai\"; did you mean \"openai\"?";
        assert_eq!(found.iter().map(ToString::to_string).collect::<Vec<_>>(), [expected]);
    }

    #[test]
    fn a_day_is_one_of_the_calendar() {
        for (text, is) in
            [("2026-02-28", true), ("2024-02-29", true), ("2026-02-29", false), ("2026-1-031", false)]
        {
            assert_eq!(is_day(text), is, "{text}");
        }
    }
}
