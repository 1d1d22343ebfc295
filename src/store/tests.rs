use std::{collections::BTreeMap, sync::Arc};

use secrecy::ExposeSecret as _;
use tempfile::TempDir;

use super::*;
use crate::{
    config::{memory::VaultKeys, saved::KeySecrets, spec::Secret},
    pb::{self, CacheStatus, KeyStatus, RequestFilter, RequestRecord},
};

fn settings(current: u8, previous: &[u8]) -> MemorySettings {
    let key = |byte: u8| Arc::new([byte; 32]);
    MemorySettings {
        store: StoreChoice::File,
        vault: Some(VaultKeys {
            current: key(current),
            previous: previous.iter().map(|byte| key(*byte)).collect(),
        }),
        prompts: false,
        retention: Duration::from_secs(3600),
        flush_every: Duration::from_millis(10),
    }
}

async fn store() -> (TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&settings(1, &[]), folder.path()).await.unwrap();
    (folder, store)
}

fn new_config(name: &str, content: &str) -> pb::CreateConfigRequest {
    pb::CreateConfigRequest { name: name.into(), config_json: content.into(), ..Default::default() }
}

fn new_key(name: &str, slug: &str) -> NewVirtualKey {
    let options = BTreeMap::from([("api_version".to_owned(), Secret::new("v1-secret"))]);
    NewVirtualKey {
        name: name.into(),
        slug: slug.into(),
        provider: "openai".into(),
        note: String::new(),
        base_url: String::new(),
        secrets: KeySecrets { key: Some(Secret::new("sk-secret")), options },
        expires_ms: None,
    }
}

fn request(number: i64, change: impl FnOnce(&mut RequestRecord)) -> Logged {
    let mut record = RequestRecord {
        id: format!("id-{number:04}"),
        trace_id: format!("trace-{number}"),
        created_unix_ms: number * 1000,
        duration_ms: 10,
        status: 200,
        outcome: "ok".into(),
        cost_usd: Some(0.0),
        ..Default::default()
    };
    change(&mut record);
    Logged { tenant: "a".into(), record }
}

fn costing(lines: &[(&str, Option<f64>)]) -> Option<pb::RouteReport> {
    let line = |(provider, amount_usd): &(&str, Option<f64>)| pb::CostLine {
        provider: (*provider).into(),
        model: "m".into(),
        amount_usd: *amount_usd,
        ..Default::default()
    };
    Some(pb::RouteReport { cost_lines: lines.iter().map(line).collect(), ..Default::default() })
}

async fn found(store: &Store, filter: RequestFilter) -> Vec<String> {
    let page = store.list_requests("a", &filter, 0, "").await.unwrap();
    page.requests.into_iter().map(|request| request.id).collect()
}

#[tokio::test]
async fn every_update_is_a_version_and_an_old_one_stays_readable() {
    let (_folder, store) = store().await;
    let before = store.revision().await.unwrap();
    let made = store.create_config("a", "ann", &new_config("Hero shots", "{\"n\":1}")).await.unwrap();
    assert!(made.slug.starts_with("pc-hero-shots-"), "{}", made.slug);
    assert_eq!((made.version, made.created_by.as_str()), (1, "ann"));
    let change = ConfigChange { content: Some("{\"n\":2}".into()), ..Default::default() };
    let changed = store.update_config("a", "bob", &made.slug, change).await.unwrap();
    assert_eq!((changed.version, changed.updated_by.as_str()), (2, "bob"));
    assert_ne!(changed.version_id, made.version_id);
    let renamed = ConfigChange { name: Some("Other".into()), ..Default::default() };
    assert_eq!(store.update_config("a", "bob", &made.id, renamed).await.unwrap().version, 2);
    assert_eq!(store.get_config("a", &made.slug, 1).await.unwrap().config_json, "{\"n\":1}");
    let versions = store.config_versions("a", &made.slug).await.unwrap();
    let authors: Vec<_> = versions.iter().map(|one| (one.version, one.created_by.as_str())).collect();
    assert_eq!(authors, [(2, "bob"), (1, "ann")]);
    assert_eq!(store.revision().await.unwrap(), before + 3);
    let missing = store.get_config("a", &made.slug, 9).await.unwrap_err();
    assert!(missing.message.ends_with("has no version 9; its newest is 2"), "{}", missing.message);
    let missing = store.get_config("b", &made.slug, 9).await.unwrap_err();
    assert_eq!(missing.code.as_deref(), Some("config_not_found"));
}

#[tokio::test]
async fn one_tenant_has_one_default_and_sees_nothing_of_another() {
    let (_folder, store) = store().await;
    let default =
        |slug: &str| pb::CreateConfigRequest { is_default: true, slug: slug.into(), ..new_config("c", "{}") };
    for (tenant, slug) in [("a", "one"), ("a", "two"), ("b", "one")] {
        store.create_config(tenant, "", &default(slug)).await.unwrap();
    }
    let taken = store.create_config("a", "", &default("one")).await.unwrap_err();
    assert_eq!(taken.status, 409);
    let defaults = |saved: &Saved, tenant: &str| {
        let of = saved.configs.iter().filter(|config| config.tenant == tenant && config.is_default);
        of.map(|config| config.slug.clone()).collect::<Vec<_>>()
    };
    let saved = store.load().await.unwrap();
    // A default that is taken leaves the one before in force.
    assert_eq!((defaults(&saved, "a"), defaults(&saved, "b")), (vec!["two".into()], vec!["one".into()]));
    store.delete_config("b", "one").await.unwrap();
    assert!(store.get_config("b", "one", 0).await.is_err());
    assert_eq!(store.list_configs("a").await.unwrap().len(), 2);
    assert!(store.delete_config("b", "two").await.is_err());
}

#[tokio::test]
async fn what_a_key_holds_is_sealed_and_rotates_with_the_vault() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&settings(1, &[]), folder.path()).await.unwrap();
    let made = store.create_virtual_key("a", "ann", new_key("Open AI", "")).await.unwrap();
    assert_eq!((made.slug.as_str(), made.status()), ("open-ai", KeyStatus::Active));
    let second = store.create_virtual_key("a", "ann", new_key("Open AI", "")).await.unwrap();
    assert!(second.slug.starts_with("open-ai-"));
    assert_eq!(store.create_virtual_key("a", "", new_key("x", "open-ai")).await.unwrap_err().status, 409);
    store.close().await;
    for file in std::fs::read_dir(folder.path()).unwrap() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        assert!(!bytes.windows(6).any(|window| window == b"secret"));
    }
    let held = |saved: &Saved| {
        let secrets = saved.virtual_keys.iter().find(|key| key.slug == "open-ai").unwrap().secrets.clone();
        secrets.and_then(|secrets| Some(secrets.key?.0.expose_secret().to_owned()))
    };
    // The old key opens; what it has sealed is sealed anew, so that it is not needed again.
    let store = Store::open(&settings(2, &[1]), folder.path()).await.unwrap();
    assert_eq!(held(&store.load().await.unwrap()).as_deref(), Some("sk-secret"));
    store.close().await;
    let store = Store::open(&settings(2, &[]), folder.path()).await.unwrap();
    assert_eq!(held(&store.load().await.unwrap()).as_deref(), Some("sk-secret"));
    store.close().await;
    let store = Store::open(&settings(3, &[]), folder.path()).await.unwrap();
    assert_eq!(held(&store.load().await.unwrap()), None);
}

#[tokio::test]
async fn a_key_that_rests_or_has_expired_says_so() {
    let (_folder, store) = store().await;
    let slug = store.create_virtual_key("a", "", new_key("k", "")).await.unwrap().slug;
    let saved = async || {
        let key = store.load().await.unwrap().virtual_keys.remove(0);
        (key.is_disabled, key.expires_ms)
    };
    assert_eq!(saved().await, (false, None));
    let change = |disabled, expires_ms| KeyChange { disabled, expires_ms, ..Default::default() };
    let disabled = store.update_virtual_key("a", &slug, change(Some(true), None)).await.unwrap();
    assert_eq!((disabled.status(), saved().await), (KeyStatus::Disabled, (true, None)));
    let soon = unix_now_ms() + 60_000;
    store.update_virtual_key("a", &slug, change(Some(false), Some(soon))).await.unwrap();
    assert_eq!(saved().await, (false, Some(soon)));
    let expired = store.update_virtual_key("a", &slug, change(None, Some(1))).await.unwrap();
    assert_eq!((expired.status(), saved().await), (KeyStatus::Expired, (false, Some(1))));
    let forever = store.update_virtual_key("a", &slug, change(None, Some(0))).await.unwrap();
    assert_eq!((forever.expires_unix_ms, forever.options), (None, vec!["api_version".to_owned()]));
}

#[tokio::test]
async fn an_api_key_is_known_by_its_digest_only_and_two_work_while_it_rotates() {
    let (_folder, store) = store().await;
    let record = pb::ApiKey {
        name: "svc".into(),
        tenant: "a".into(),
        scopes: vec!["logs".into()],
        allow_config_override: true,
        virtual_keys: Some(pb::Names { names: vec!["vk".into()] }),
        ..Default::default()
    };
    let made = store.create_api_key("ann", record).await.unwrap();
    let key = made.key.0.expose_secret();
    assert!(key.starts_with("ig_") && key.starts_with(&made.record.hint) && key.len() == 46, "{key}");
    let works = async |key: &Secret| {
        let digest = crate::config::callers::digest(key.0.expose_secret());
        let saved = store.load().await.unwrap();
        let found = saved.callers.into_iter().find(|saved| saved.digest == digest)?;
        found.expires_ms.is_none_or(|at| at > unix_now_ms()).then_some(found.caller)
    };
    let caller = works(&made.key).await.unwrap();
    assert_eq!((caller.id.as_str(), caller.tenant.as_str()), (made.record.id.as_str(), "a"));
    assert!(caller.virtual_keys.unwrap().contains("vk") && caller.configs.is_none());
    let id = made.record.id.as_str();
    let second = store.rotate_api_key("a", id, unix_now_ms() + 60_000).await.unwrap();
    assert!(works(&made.key).await.is_some() && works(&second.key).await.is_some());
    let third = store.rotate_api_key("a", id, unix_now_ms() - 1).await.unwrap();
    assert!(works(&made.key).await.is_none() && works(&second.key).await.is_none());
    assert!(works(&third.key).await.is_some());
    // Administrators of the tenant `default` see every tenant's.
    assert_eq!(store.list_api_keys("default").await.unwrap().len(), 1);
    assert!(store.list_api_keys("b").await.unwrap().is_empty());
    assert!(store.delete_api_key("b", id).await.is_err());
    let disabled = pb::ApiKey { status: KeyStatus::Disabled.into(), ..third.record };
    store.update_api_key(&disabled).await.unwrap();
    assert!(works(&third.key).await.is_none());
}

#[tokio::test]
async fn a_filter_finds_exactly_what_it_says() {
    let (_folder, store) = store().await;
    let log = [
        request(1, |r| r.provider = "p1".into()),
        request(2, |r| (r.status, r.outcome) = (503, "unavailable".into())),
        request(3, |r| r.fallback = true),
        request(4, |r| r.refused = true),
        request(5, |r| {
            r.metadata = BTreeMap::from([("team".into(), "red".into()), ("env".into(), "x".into())])
        }),
        request(6, |r| r.metadata = BTreeMap::from([("team".into(), "blue".into())])),
        request(7, |r| r.report = costing(&[("p2", Some(0.25))])),
        request(8, |r| r.set_cache_status(CacheStatus::Hit)),
        request(9, |r| (r.config, r.caller, r.virtual_key) = ("c".into(), "k".into(), "v".into())),
        request(10, |r| (r.model, r.trace_id) = ("m".into(), "t".into())),
    ];
    assert_eq!(store.log(&log).await.unwrap().kept, 10);
    let base = RequestFilter::default;
    let team = |value: &str| BTreeMap::from([("team".to_owned(), value.to_owned())]);
    for (filter, expected) in [
        (RequestFilter { provider: "p1".into(), ..base() }, vec![1]),
        (RequestFilter { model: "m".into(), ..base() }, vec![10]),
        (RequestFilter { config: "c".into(), ..base() }, vec![9]),
        (RequestFilter { caller: "k".into(), ..base() }, vec![9]),
        (RequestFilter { virtual_key: "v".into(), ..base() }, vec![9]),
        (RequestFilter { trace_id: "t".into(), ..base() }, vec![10]),
        (RequestFilter { cache_status: "hit".into(), ..base() }, vec![8]),
        (RequestFilter { success: Some(false), ..base() }, vec![2]),
        (RequestFilter { statuses: vec![503, 504], ..base() }, vec![2]),
        (RequestFilter { fallback: Some(true), ..base() }, vec![3]),
        (RequestFilter { refused: Some(true), ..base() }, vec![4]),
        (RequestFilter { metadata: team("red"), ..base() }, vec![5]),
        (RequestFilter { metadata: team("green"), ..base() }, vec![]),
        (RequestFilter { min_cost_usd: Some(0.2), max_cost_usd: Some(0.25), ..base() }, vec![7]),
        (RequestFilter { from_unix_ms: Some(9000), until_unix_ms: Some(10_000), ..base() }, vec![9]),
        (RequestFilter { success: Some(true), provider: "p1".into(), refused: Some(true), ..base() }, vec![]),
    ] {
        let ids: Vec<String> = expected.iter().map(|number: &i32| format!("id-{number:04}")).collect();
        assert_eq!(found(&store, filter.clone()).await, ids, "{filter:?}");
    }
    assert_eq!(store.list_requests("b", &base(), 0, "").await.unwrap().requests.len(), 0);
    assert!(store.get_request("b", "id-0001").await.is_err());
}

#[tokio::test]
async fn pages_show_everything_once_the_newest_first() {
    let (_folder, store) = store().await;
    // Several of the same millisecond, across the ends of pages.
    let log: Vec<_> = (0..25).map(|i| request(i, |r| r.created_unix_ms = i / 7)).collect();
    store.log(&log).await.unwrap();
    let (mut seen, mut token) = (Vec::new(), String::new());
    loop {
        let page = store.list_requests("a", &RequestFilter::default(), 4, &token).await.unwrap();
        seen.extend(page.requests.into_iter().map(|request| request.id));
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    let expected: Vec<_> = (0..25).rev().map(|number| format!("id-{number:04}")).collect();
    assert_eq!(seen, expected);
    for wrong in ["x", "1", ".a"] {
        assert!(store.list_requests("a", &RequestFilter::default(), 4, wrong).await.is_err(), "{wrong}");
    }
    assert!(store.list_requests("a", &RequestFilter::default(), 1001, "").await.is_err());
}

#[tokio::test]
async fn usage_counts_money_for_whoever_was_paid() {
    let (_folder, store) = store().await;
    let log = [
        request(1, |r| {
            (r.provider, r.fallback, r.images) = ("p2".into(), true, 2);
            r.report = costing(&[("p1", Some(0.1)), ("p2", Some(0.2))]);
            r.cost_usd = Some(0.3);
        }),
        request(2, |r| {
            r.provider = "p2".into();
            r.report = costing(&[("p2", None)]);
            (r.cost_usd, r.cost_unknown) = (None, true);
        }),
        request(86_401, |r| (r.status, r.provider) = (500, "p3".into())),
    ];
    store.log(&log).await.unwrap();
    // What is not known to have been kept is written again, and counts once.
    store.log(&log).await.unwrap();
    let usage = async |group_by: &str| {
        let request = pb::GetUsageRequest { group_by: group_by.into(), ..Default::default() };
        store.usage("a", &request).await
    };
    let all = usage("").await.unwrap();
    let one =
        |groups: &[pb::UsageGroup], key: &str| groups.iter().find(|group| group.key == key).cloned().unwrap();
    let total = one(&all, "");
    assert_eq!((total.requests, total.succeeded, total.rescued, total.images), (3, 2, 1, 2));
    assert_eq!((total.cost_unknown, (total.cost_usd * 1e9).round()), (1, 3e8));
    let by_provider = usage("provider").await.unwrap();
    let cost = |key: &str| one(&by_provider, key).cost_usd;
    assert_eq!((cost("p1"), cost("p2"), cost("p3")), (0.1, 0.2, 0.0));
    assert_eq!((one(&by_provider, "p1").requests, one(&by_provider, "p2").cost_unknown), (0, 1));
    let days: Vec<_> = usage("day").await.unwrap().into_iter().map(|day| (day.key, day.requests)).collect();
    assert_eq!(days, [("0".to_owned(), 2), ("86400000".to_owned(), 1)]);
    assert!(usage("nonsense").await.unwrap_err().message.contains("metadata.NAME"));
}

#[tokio::test]
async fn old_requests_are_forgotten_with_all_that_belongs_to_them() {
    let (_folder, store) = store().await;
    let log: Vec<_> = (1..=4)
        .map(|i| {
            request(i, |r| {
                r.metadata = BTreeMap::from([("team".into(), "red".into())]);
                r.report = costing(&[("p", Some(1.0))]);
            })
        })
        .collect();
    store.log(&log).await.unwrap();
    assert_eq!(store.forget_before(3000).await.unwrap(), 2);
    assert_eq!(found(&store, RequestFilter::default()).await, ["id-0004", "id-0003"]);
    for (table, expected) in [("records", 2), ("request_metadata", 2), ("costs", 2)] {
        let sql = sqlx::AssertSqlSafe(format!("SELECT COUNT(*) FROM {table}"));
        let left: i64 = sqlx::query(sql).fetch_one(&store.pool).await.unwrap().try_get(0).unwrap();
        assert_eq!(left, expected, "{table}");
    }
}

#[tokio::test]
async fn a_record_comes_back_as_it_was() {
    let (_folder, store) = store().await;
    let report = |id: &str, trace: &str| {
        let lines = costing(&[("p", Some(1.0))]);
        Some(pb::RouteReport { request_id: id.into(), trace_id: trace.into(), ..lines.unwrap() })
    };
    let kept = [
        request(1, |r| r.report = report("id-0001", "trace-1")),
        request(2, |r| r.report = report("id-0002", "another")),
        request(3, |r| r.report = None),
    ];
    store.log(&kept).await.unwrap();
    for Logged { record, .. } in &kept {
        assert_eq!(store.get_request("a", &record.id).await.unwrap(), *record);
    }
}

#[tokio::test]
async fn requests_of_an_older_schema_are_found_as_before() {
    let folder = tempfile::tempdir().unwrap();
    sqlx::any::install_default_drivers();
    let url = sqlite_url(folder.path()).unwrap();
    let pool = AnyPoolOptions::new().max_connections(1).connect(&url).await.unwrap();
    let first = migrations(Engine::Sqlite).into_iter().take(1).collect();
    Migrator::with_migrations(first).run(&pool).await.unwrap();
    let record = RequestRecord { id: "old".into(), provider: "p".into(), ..Default::default() };
    let insert = "INSERT INTO requests VALUES ('old', 'a', 5, 't', 'key', 'pc', 'generate', 'ok', 503, 'p', 'm', 'vk', \
                  0, 1, 'hit', 1, 10, 70000000, 0, $1)";
    sqlx::query(insert).bind(prost::Message::encode_to_vec(&record)).execute(&pool).await.unwrap();
    for sql in [
        "INSERT INTO request_metadata VALUES ('team', 'red', 'old')",
        "INSERT INTO costs VALUES ('old', 'q', 'm', 70000000, 0)",
    ] {
        sqlx::query(sql).execute(&pool).await.unwrap();
    }
    pool.close().await;

    let store = Store::open(&settings(1, &[]), folder.path()).await.unwrap();
    let metadata = BTreeMap::from([("team".into(), "red".into())]);
    for filter in [
        RequestFilter {
            provider: "p".into(),
            model: "m".into(),
            statuses: vec![503, 200],
            ..Default::default()
        },
        RequestFilter { refused: Some(true), success: Some(false), ..Default::default() },
        RequestFilter { cache_status: "hit".into(), metadata, ..Default::default() },
    ] {
        assert_eq!(found(&store, filter).await, ["old"]);
    }
    assert_eq!(store.get_request("a", "old").await.unwrap(), record);
    let by_provider = pb::GetUsageRequest { group_by: "provider".into(), ..Default::default() };
    let usage = store.usage("a", &by_provider).await.unwrap();
    let paid: Vec<_> =
        usage.iter().map(|group| (group.key.as_str(), group.requests, group.cost_usd)).collect();
    assert_eq!(paid, [("q", 0, 0.07), ("p", 1, 0.0)]);
}

#[tokio::test]
async fn metadata_that_many_requests_have_is_found_as_what_few_have() {
    let (_folder, store) = store().await;
    let log: Vec<_> = (1..=1200)
        .map(|i| {
            request(i, |r| {
                let team = if i % 600 == 0 { "blue" } else { "red" };
                let number = format!("{}", i % 3);
                r.metadata = BTreeMap::from([("team".into(), team.into()), ("n".into(), number)]);
            })
        })
        .collect();
    store.log(&log).await.unwrap();
    let metadata = |pairs: &[(&str, &str)]| RequestFilter {
        metadata: pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        ..Default::default()
    };
    assert_eq!(found(&store, metadata(&[("team", "blue")])).await, ["id-1200", "id-0600"]);
    let many = found(&store, metadata(&[("team", "red"), ("n", "0")])).await;
    assert_eq!((many.len(), many[0].as_str(), many[49].as_str()), (50, "id-1197", "id-1050"));
    assert!(found(&store, metadata(&[("team", "blue"), ("n", "1")])).await.is_empty());
}

#[tokio::test]
async fn feedback_belongs_to_a_trace_of_ones_own() {
    let (_folder, store) = store().await;
    store.log(&[request(1, |r| r.trace_id = "t".into())]).await.unwrap();
    let new = pb::CreateFeedbackRequest { trace_id: "t".into(), value: 5, ..Default::default() };
    let given = store.create_feedback("a", &new).await.unwrap();
    store.create_feedback("b", &new).await.unwrap();
    let change = pb::UpdateFeedbackRequest { id: given.id.clone(), weight: Some(0.5), ..Default::default() };
    assert!(store.update_feedback("b", &change).await.is_err());
    store.update_feedback("a", &change).await.unwrap();
    let seen = store.get_request("a", "id-0001").await.unwrap().feedback;
    assert_eq!(seen.iter().map(|one| (one.value, one.weight)).collect::<Vec<_>>(), [(5, 0.5)]);
}

#[tokio::test]
async fn stores_that_are_opened_together_make_the_tables_once() {
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(1, &[]);
    let open = || Store::open(&settings, folder.path());
    let (a, b, c) = tokio::join!(open(), open(), open());
    for store in [a.unwrap(), b.unwrap(), c.unwrap()] {
        assert_eq!(store.revision().await.unwrap(), 1);
    }
}

#[tokio::test]
async fn a_folder_that_cannot_be_written_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let problem = Store::open(&settings(1, &[]), &file.join("data")).await.unwrap_err().to_string();
    assert!(problem.contains("data_dir"), "{problem}");
}

#[test]
fn a_name_becomes_a_slug() {
    assert_eq!(slugified("My config!"), "my-config");
    assert_eq!(slugified("  --Ünïcode 2 "), "n-code-2");
    assert_eq!(slugified("???"), "");
}
