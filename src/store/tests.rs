use std::{collections::BTreeMap, sync::Arc};

use secrecy::ExposeSecret as _;
use tempfile::TempDir;

use super::*;
use crate::{
    config::{images::ImagesSettings, memory::VaultKeys, quota::Quota, saved::KeySecrets, spec::Secret},
    objects::{Objects, gallery::Gallery},
    pb::{self, CacheStatus, KeyStatus, RequestFilter, RequestRecord},
    quota::Kept,
};

fn settings(current: u8, previous: &[u8]) -> MemorySettings {
    let key = |byte: u8| Arc::new([byte; 32]);
    MemorySettings {
        store: StoreChoice::File,
        vault: Some(VaultKeys {
            current: key(current),
            previous: previous.iter().map(|byte| key(*byte)).collect(),
        }),
        keeps: Default::default(),
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
        quota: None,
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
async fn a_version_tells_which_requests_used_it() {
    let (_folder, store) = store().await;
    let new = || pb::CreateConfigRequest { slug: "pc-a".into(), ..new_config("a", "{}") };
    let deleted = store.create_config("a", "", &new()).await.unwrap();
    store.delete_config("a", &deleted.slug).await.unwrap();
    let now = store.create_config("a", "", &new()).await.unwrap().created_unix_ms;
    for content in ["{\"n\":2}", "{\"n\":3}"] {
        let change = ConfigChange { content: Some(content.into()), ..Default::default() };
        store.update_config("a", "", "pc-a", change).await.unwrap();
    }
    let used = |number: i64, version: u32, at: i64| {
        request(number, |r| (r.config, r.config_version, r.created_unix_ms) = ("pc-a".into(), version, at))
    };
    let mut log =
        vec![used(1, 1, now - 1000), used(2, 1, now + 10), used(3, 1, now + 30), used(4, 3, now + 40)];
    // Of the file's config of this name, and of another tenant's.
    log.push(used(5, 0, now + 50));
    log.push(Logged { tenant: "b".into(), ..used(6, 2, now + 60) });
    store.log(&mut log).await.unwrap();
    let versions = store.config_versions("a", "pc-a").await.unwrap();
    let uses = versions.into_iter().map(|version| {
        let since = |ms: Option<i64>| ms.map(|ms| ms - now);
        let (first, last) = (since(version.first_request_unix_ms), since(version.last_request_unix_ms));
        (version.version, version.requests, first, last)
    });
    let expected = [(3, 1, Some(40), Some(40)), (2, 0, None, None), (1, 2, Some(10), Some(30))];
    assert_eq!(uses.collect::<Vec<_>>(), expected);
    let by_version = pb::GetUsageRequest { group_by: "config_version".into(), ..Default::default() };
    let mut groups: Vec<_> = store
        .usage("a", &by_version)
        .await
        .unwrap()
        .into_iter()
        .map(|group| (group.key, group.requests))
        .collect();
    groups.sort();
    assert_eq!(groups, [("pc-a".into(), 1), ("pc-a@1".into(), 3), ("pc-a@3".into(), 1)]);
    // Versions are counted in the index alone, however many requests there are.
    let plan = sqlx::AssertSqlSafe(format!("EXPLAIN QUERY PLAN {}", configs::USES_OF_VERSIONS));
    let rows = sqlx::query(plan).bind("a").bind("pc-a").bind(now).fetch_all(&store.pool).await.unwrap();
    let plan: Vec<String> = rows.iter().map(|row| row.try_get("detail").unwrap()).collect();
    assert!(plan.concat().contains("COVERING INDEX requests_by_config"), "{plan:?}");
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
    let mut log = [
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
        request(9, |r| {
            (r.config, r.caller, r.virtual_key) = ("c".into(), "k".into(), "v".into());
            r.config_version = 2;
        }),
        request(10, |r| (r.model, r.trace_id) = ("m".into(), "t".into())),
    ];
    assert_eq!(store.log(&mut log).await.unwrap().kept, 10);
    let base = RequestFilter::default;
    let team = |value: &str| BTreeMap::from([("team".to_owned(), value.to_owned())]);
    for (filter, expected) in [
        (RequestFilter { provider: "p1".into(), ..base() }, vec![1]),
        (RequestFilter { model: "m".into(), ..base() }, vec![10]),
        (RequestFilter { config: "c".into(), ..base() }, vec![9]),
        (RequestFilter { config: "c".into(), config_version: 2, ..base() }, vec![9]),
        (RequestFilter { config: "c".into(), config_version: 1, ..base() }, vec![]),
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
    let mut log: Vec<_> = (0..25).map(|i| request(i, |r| r.created_unix_ms = i / 7)).collect();
    store.log(&mut log).await.unwrap();
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
    let mut log = [
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
        request(86_401, |r| {
            (r.status, r.provider) = (500, "p3".into());
            r.metadata = BTreeMap::from([("team".into(), "red".into())]);
        }),
    ];
    store.log(&mut log).await.unwrap();
    // What is not known to have been kept is written again, and counts once.
    store.log(&mut log).await.unwrap();
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
    let teams: Vec<_> =
        usage("metadata.team").await.unwrap().into_iter().map(|team| (team.key, team.requests)).collect();
    assert_eq!(teams, [(String::new(), 2), ("red".to_owned(), 1)]);
    let days: Vec<_> = usage("day").await.unwrap().into_iter().map(|day| (day.key, day.requests)).collect();
    assert_eq!(days, [("0".to_owned(), 2), ("86400000".to_owned(), 1)]);
    assert!(usage("nonsense").await.unwrap_err().message.contains("metadata.NAME"));
}

#[tokio::test]
async fn usage_counts_tokens_users_and_groups_of_groups() {
    let (_folder, store) = store().await;
    let of_user = |user: &str| BTreeMap::from([("_user".to_owned(), user.to_owned())]);
    let day = |number: i64, user: &str, status: u32| {
        request(number, |r| {
            (r.status, r.metadata) = (status, of_user(user));
            r.usage = Some(pb::Usage {
                input_text_tokens: Some(3),
                input_image_tokens: Some(4),
                output_image_tokens: Some(100),
                megapixels: Some(1.0),
                ..Default::default()
            });
        })
    };
    let mut log = vec![day(1, "mia", 200), day(2, "mia", 429), day(3, "bo", 503), day(90_000, "mia", 503)];
    log.push(request(4, |_| {}));
    store.log(&mut log).await.unwrap();
    let ask = |group_by: &str, then_by: &str| pb::GetUsageRequest {
        group_by: group_by.into(),
        then_by: then_by.into(),
        count_users: true,
        ..Default::default()
    };
    let all = store.usage("a", &ask("", "")).await.unwrap().remove(0);
    assert_eq!((all.input_tokens, all.output_tokens, all.users), (28, 400, 2));
    let days = store.usage("a", &ask("day", "")).await.unwrap();
    assert_eq!(days.iter().map(|day| (day.requests, day.users)).collect::<Vec<_>>(), [(4, 2), (1, 1)]);
    let groups = store.usage("a", &ask("day", "status")).await.unwrap();
    let told: Vec<_> =
        groups.iter().map(|group| (group.key.as_str(), group.then_key.as_str(), group.requests)).collect();
    let expected = [("0", "200", 2), ("0", "429", 1), ("0", "503", 1), ("86400000", "503", 1)];
    assert_eq!(told, expected);
    let by_metadata = store.usage("a", &ask("metadata._user", "metadata._user")).await.unwrap();
    assert_eq!(by_metadata.iter().map(|group| group.requests).sum::<u64>(), 5);
    for (group_by, then_by) in [("provider", "day"), ("day", "model"), ("day", "nonsense")] {
        let error = store.usage("a", &ask(group_by, then_by)).await.unwrap_err();
        assert_eq!(error.param.as_deref(), Some("then_by"), "{group_by} {then_by}");
    }
}

#[tokio::test]
async fn usage_tells_how_long_requests_took() {
    let (_folder, store) = store().await;
    let took = |number: i64, duration_ms: u64, provider: &str| {
        let provider = provider.to_owned();
        let report = costing(&[("a", Some(0.1))]);
        request(number, |r| {
            (r.duration_ms, r.provider, r.cost_usd, r.report) = (duration_ms, provider, Some(0.1), report);
        })
    };
    // A minute has sixty: two minutes.
    let mut log: Vec<_> = (0..100).map(|i| took(i, 1000 + u64::try_from(i).unwrap() * 10, "a")).collect();
    log.push(took(100, 60_000, "b"));
    store.log(&mut log).await.unwrap();
    let ask = async |group_by: &str, count_users: bool| {
        let request = pb::GetUsageRequest {
            group_by: group_by.into(),
            durations: true,
            count_users,
            ..Default::default()
        };
        store.usage("a", &request).await
    };
    let all = ask("", false).await.unwrap().remove(0);
    assert_eq!((all.requests, (all.cost_usd * 10.0).round()), (101, 101.0));
    assert!((all.duration_ms - (149_500.0 + 60_000.0) / 101.0).abs() < 0.01, "{}", all.duration_ms);
    let near = |found: Option<u64>, exact: f64| {
        let found = found.unwrap() as f64;
        assert!((found - exact).abs() <= exact * 0.07, "{found} is not near {exact}");
    };
    near(all.quantile_ms(0.5), 1500.0);
    near(all.quantile_ms(0.95), 1950.0);
    near(all.quantile_ms(1.0), 60_000.0);
    let minutes = ask("minute", false).await.unwrap();
    assert_eq!(
        minutes.iter().map(|minute| (minute.key.as_str(), minute.requests)).collect::<Vec<_>>(),
        [("0", 60), ("60000", 41)]
    );
    near(minutes[0].quantile_ms(1.0), 1590.0);
    let providers = ask("provider", false).await.unwrap();
    assert_eq!((&*providers[0].key, &*providers[1].key), ("a", "b"));
    near(providers[1].quantile_ms(0.5), 60_000.0);
    assert_eq!((providers[1].cost_usd, (providers[0].cost_usd * 10.0).round()), (0.0, 101.0));
    assert_eq!(ask("", true).await.unwrap_err().param.as_deref(), Some("durations"));
}

#[tokio::test]
async fn feedback_is_summed_up_over_time() {
    let (_folder, store) = store().await;
    store.log(&mut [request(1, |r| (r.trace_id, r.model) = ("t".into(), "m".into()))]).await.unwrap();
    for (tenant, trace, value, weight) in
        [("a", "t", 10, 1.0), ("a", "t", -5, 0.5), ("a", "other", -5, 0.0), ("b", "t", 1, 1.0)]
    {
        let new = pb::CreateFeedbackRequest {
            trace_id: trace.into(),
            value,
            weight: Some(weight),
            ..Default::default()
        };
        store.create_feedback(tenant, &new).await.unwrap();
    }
    let ask = async |group_by: &str, filter: RequestFilter| {
        let request = pb::GetFeedbackUsageRequest { filter: Some(filter), group_by: group_by.into() };
        store.feedback_usage("a", &request).await
    };
    let all = ask("", RequestFilter::default()).await.unwrap().remove(0);
    assert_eq!((all.feedbacks, all.mean, all.weighted_mean), (3, 0.0, Some(5.0)));
    assert_eq!(all.scores, [(-5, 2), (10, 1)].into());
    let of_model = RequestFilter { model: "m".into(), ..Default::default() };
    let of_model = ask("", of_model).await.unwrap().remove(0);
    assert_eq!((of_model.feedbacks, of_model.mean), (2, 2.5));
    let days = ask("day", RequestFilter::default()).await.unwrap();
    let today = pb::unix_now_ms() / 86_400_000 * 86_400_000;
    assert!(days.iter().any(|day| day.key == today.to_string()), "{days:?}");
    let long_ago = RequestFilter { until_unix_ms: Some(1000), ..Default::default() };
    assert!(ask("hour", long_ago).await.unwrap().is_empty());
    assert!(ask("model", RequestFilter::default()).await.is_err());
}

#[tokio::test]
async fn old_requests_are_forgotten_with_all_that_belongs_to_them() {
    let (_folder, store) = store().await;
    let mut log: Vec<_> = (1..=4)
        .map(|i| {
            request(i, |r| {
                r.metadata = BTreeMap::from([("team".into(), "red".into())]);
                r.report = costing(&[("p", Some(1.0))]);
            })
        })
        .collect();
    for (tenant, number) in [("b", 5), ("c", 1)] {
        log.push(Logged {
            tenant: tenant.into(),
            ..request(10 + number, |r| r.created_unix_ms = number * 1000)
        });
    }
    store.log(&mut log).await.unwrap();
    assert_eq!(store.forget_before(3000).await.unwrap(), 3);
    assert_eq!(found(&store, RequestFilter::default()).await, ["id-0004", "id-0003"]);
    for (tenant, left) in [("b", 1), ("c", 0)] {
        let page = store.list_requests(tenant, &RequestFilter::default(), 0, "").await.unwrap();
        assert_eq!(page.requests.len(), left, "{tenant}");
    }
    for (table, expected) in [("records", 3), ("request_metadata", 2), ("costs", 2)] {
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
    let mut kept = [
        request(1, |r| r.report = report("id-0001", "trace-1")),
        request(2, |r| r.report = report("id-0002", "another")),
        request(3, |r| r.report = None),
    ];
    store.log(&mut kept).await.unwrap();
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
    let record =
        RequestRecord { id: "old".into(), trace_id: "t".into(), provider: "p".into(), ..Default::default() };
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
    let mut log: Vec<_> = (1..=1200)
        .map(|i| {
            request(i, |r| {
                let team = if i % 600 == 0 { "blue" } else { "red" };
                let number = format!("{}", i % 3);
                r.metadata = BTreeMap::from([("team".into(), team.into()), ("n".into(), number)]);
            })
        })
        .collect();
    store.log(&mut log).await.unwrap();
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
    store.log(&mut [request(1, |r| r.trace_id = "t".into())]).await.unwrap();
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
async fn limits_are_kept_with_what_they_limit() {
    let (_folder, store) = store().await;
    let quota = sixty_a_minute();
    let new = NewVirtualKey { quota: quota.clone(), ..new_key("Painter", "painter") };
    assert_eq!(store.create_virtual_key("a", "me", new).await.unwrap().quota, quota);
    store.create_virtual_key("a", "me", new_key("Free", "free")).await.unwrap();
    let change = KeyChange { name: Some("Other".into()), ..KeyChange::default() };
    assert_eq!(store.update_virtual_key("a", "painter", change).await.unwrap().quota, quota);
    let budgets = vec![pb::Budget { usd: 0.5, ..Default::default() }];
    let other = Some(pb::Quota { rates: Vec::new(), budgets });
    let change = KeyChange { quota: other.clone(), ..KeyChange::default() };
    assert_eq!(store.update_virtual_key("a", "painter", change).await.unwrap().quota, other);
    let record = pb::ApiKey { tenant: "a".into(), name: "app".into(), quota, ..Default::default() };
    store.create_api_key("me", record).await.unwrap();
    let saved = store.load().await.unwrap();
    let limits = |quota: &Quota| quota.message();
    let of_keys: BTreeMap<_, _> =
        saved.virtual_keys.iter().map(|key| (key.slug.as_str(), limits(&key.quota))).collect();
    assert_eq!(of_keys, [("free", None), ("painter", other)].into());
    assert_eq!(limits(&saved.callers[0].caller.quota), sixty_a_minute());
}

fn sixty_a_minute() -> Option<pb::Quota> {
    let rates = vec![pb::RateLimit { unit: pb::RateUnit::Minute.into(), requests: 60 }];
    Some(pb::Quota { rates, budgets: Vec::new() })
}

#[tokio::test]
async fn counters_add_up_and_are_forgotten_when_their_period_is_long_over() {
    let (_folder, store) = store().await;
    let kept = |counter: &str, end_ms, amount| Kept { counter: counter.into(), start_ms: 5, end_ms, amount };
    let future = i64::MAX;
    assert_eq!(store.count(&[kept("b", future, 3), kept("a", future, -1)]).await.unwrap(), [3, -1]);
    assert_eq!(store.count(&[kept("a", future, 5), kept("old", 7, 2)]).await.unwrap(), [4, 2]);
    store.forget_before(0).await.unwrap();
    let mut counters = store.counters().await.unwrap();
    counters.sort_by(|a, b| a.counter.cmp(&b.counter));
    assert_eq!(counters, [kept("a", future, 4), kept("b", future, 3)]);
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

#[test]
fn what_there_is_no_room_for_is_counted() {
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    metrics::with_local_recorder(&recorder, || {
        let folder = tempfile::tempdir().unwrap();
        let images = ImagesSettings::below(folder.path());
        let journal = journal::Journal::new(Gallery::new(Objects::open(&images).unwrap()));
        let none = || digests::Pictures { images: Vec::new(), kept: pb::KeptImages::None };
        (0..10_003).for_each(|number| journal.note(request(number, |_| {}), none()));
    });
    let shown = recorder.handle().render();
    assert!(shown.contains("imagegate_request_log_lost_total{reason=\"queue_full\"} 3"), "{shown}");
}

#[tokio::test]
async fn a_request_that_no_store_takes_costs_only_itself() {
    let (_folder, store) = store().await;
    // A constraint that only some of them break, as a stand-in for whatever a database may refuse of a row.
    let sql = "CREATE TRIGGER picky BEFORE INSERT ON requests WHEN NEW.id IN ('id-0002', 'id-0009') \
               BEGIN SELECT RAISE(ABORT, 'never'); END";
    sqlx::query(sql).execute(&store.pool).await.unwrap();
    let mut log: Vec<_> = (1..=11).map(|number| request(number, |_| {})).collect();
    let written = store.log(&mut log).await.unwrap();
    assert_eq!((written.kept, written.refused), (9, 2));
    let kept = found(&store, RequestFilter::default()).await;
    let missing: Vec<_> = log.iter().map(|one| &one.record.id).filter(|id| !kept.contains(id)).collect();
    assert_eq!(missing, ["id-0002", "id-0009"]);
    assert_eq!(kept.len(), 9);
}

#[tokio::test]
async fn a_store_that_takes_nothing_refuses_no_request_for_good() {
    let (_folder, store) = store().await;
    sqlx::query("ALTER TABLE requests RENAME TO gone").execute(&store.pool).await.unwrap();
    assert!(store.log(&mut [request(1, |_| {})]).await.is_err());
    assert!(store.look().await.is_ok());
    sqlx::query("ALTER TABLE gone RENAME TO requests").execute(&store.pool).await.unwrap();
    assert_eq!(store.log(&mut [request(1, |_| {})]).await.unwrap().kept, 1);
}
