//! What a month costs, by our log and by the providers' invoices (benches/month has it larger).

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use imagegate::{
    config::memory::{Keeps, MemorySettings, StoreChoice, VaultKeys},
    pb::{GetUsageRequest, UsageGroup},
    store::{Logged, Store},
};

use crate::{
    invoice::{ATTOS, Invoice, cents},
    traffic::Traffic,
};

const REQUESTS: u64 = 20_000;

/// Everything of every tenant.
async fn usage(store: &Store, group_by: &str) -> Vec<UsageGroup> {
    let mut groups = Vec::new();
    for tenant in ["studio", "other"] {
        let request = GetUsageRequest { group_by: group_by.to_owned(), ..Default::default() };
        groups.extend(store.usage(tenant, &request).await.unwrap());
    }
    groups
}

fn attos(groups: &[UsageGroup]) -> i128 {
    groups.iter().map(|group| (group.cost_usd * 1e9).round() as i128 * (ATTOS / 1_000_000_000)).sum()
}

#[tokio::test]
async fn the_logs_total_is_the_invoices_to_the_cent() {
    let folder = tempfile::tempdir().unwrap();
    let settings = MemorySettings {
        store: StoreChoice::File,
        vault: Some(VaultKeys { current: Arc::new([1; 32]), previous: Vec::new() }),
        keeps: Keeps::default(),
        retention: Duration::from_secs(3600),
        flush_every: Duration::from_millis(10),
    };
    let store = Store::open(&settings, folder.path()).await.unwrap();
    let (mut invoice, mut batch) = (Invoice::default(), Vec::<Logged>::new());
    let traffic = Traffic::new(REQUESTS);
    assert!(traffic.models() > 200);
    for made in traffic {
        made.calls.iter().for_each(|call| invoice.add(call));
        batch.push(made.logged);
        if batch.len() == 2000 {
            assert_eq!(store.log(&mut batch).await.unwrap().kept, batch.len());
            batch.clear();
        }
    }
    assert!(invoice.unpriced > 100 && invoice.unpriced < invoice.calls / 4, "{} unpriced", invoice.unpriced);

    let total = usage(&store, "").await;
    assert_eq!(total.iter().map(|group| group.requests).sum::<u64>(), REQUESTS);
    assert_eq!(cents(attos(&total)), cents(invoice.total));
    // Each line is rounded by half a billionth of a dollar at most.
    let most = i128::from(invoice.calls) * 6 * ATTOS / 2_000_000_000;
    assert!((attos(&total) - invoice.total).abs() <= most);
    assert_eq!(attos(&usage(&store, "day").await), attos(&total));
    for (by, expected) in [("provider", &invoice.by_provider), ("model", &invoice.by_model)] {
        let mut ours = BTreeMap::<String, Vec<UsageGroup>>::new();
        for group in usage(&store, by).await {
            ours.entry(group.key.clone()).or_default().push(group);
        }
        for (key, expected) in expected {
            assert_eq!(cents(attos(&ours[key])), cents(*expected), "{key}");
        }
    }
}
