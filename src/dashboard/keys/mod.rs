//! Keys: providers' credentials under names of our own, and the keys by which callers are known. What each may use, has used
//! and has cost.

mod api_key;
mod limits;
mod typed;
mod virtual_key;

use std::collections::BTreeMap;

use axum::{
    Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse as _, Response},
    routing::get,
};
use maud::{Markup, html};
use serde::Deserialize;

use self::typed::Typed;
use super::{
    Dashboard,
    failure::Failure,
    filter::read,
    layout::{self, Section},
    session::Visitor,
};
use crate::{
    cli::{
        json::status as status_name,
        table::usd,
        times::{When, date},
    },
    config::callers::Scope,
    error::Result,
    moment,
    pb::{
        ApiKey, GetUsageRequest, KeyStatus, ListApiKeysRequest, ListQuotasRequest, ListVirtualKeysRequest,
        QuotaUse, RequestFilter, UsageGroup, VirtualKey, unix_now_ms,
    },
};

/// How far back costs are counted.
const COUNTED_MS: i64 = 30 * 24 * 60 * 60 * 1000;

/// All routes.
pub fn routes() -> Router<Dashboard> {
    Router::new()
        .route("/keys", get(list))
        .route("/keys/new-virtual-key", get(virtual_key::form).post(virtual_key::create))
        .route("/keys/virtual/{slug}", get(virtual_key::show).post(virtual_key::act))
        .route("/keys/new-api-key", get(api_key::form).post(api_key::create))
        .route("/keys/api/{id}", get(api_key::show).post(api_key::act))
}

/// A form whose content was refused.
#[derive(Debug)]
struct Refused<'a> {
    /// Which of the page's forms.
    form: &'a str,
    /// What was typed into it.
    typed: &'a Typed,
    failure: Failure,
}

impl Refused<'_> {
    /// Of a form: what was typed into it, and what is wrong with that.
    fn of<'a>(refused: Option<&'a Self>, form: &str) -> Option<&'a Self> {
        refused.filter(|refused| refused.form == form)
    }

    fn problem(refused: Option<&Self>) -> Markup {
        html! { @if let Some(refused) = refused { (layout::problem(refused.failure.error())) } }
    }
}

/// A page with the status that it has if something was refused.
fn answer(refused: Option<&Refused<'_>>, page: Markup) -> Response {
    let status = refused.map_or(StatusCode::OK, |refused| refused.failure.error().status_code());
    (status, page).into_response()
}

/// What has just been done, as the address says after it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Done {
    done: String,
}

impl Done {
    fn notice(&self) -> Markup {
        let said = match self.done.as_str() {
            "stored" => "It is stored.",
            "changed" => "It is changed.",
            "secret" => "It has another secret.",
            "disabled" => "It is disabled: requests that use it are refused.",
            "enabled" => "It can be used again.",
            _ => return Markup::default(),
        };
        html! { p class="notice" role="status" { (said) } }
    }
}

/// What is known of the use of keys, as far as the visitor may see it.
#[derive(Default)]
struct Uses {
    quotas: Vec<QuotaUse>,
    /// By virtual key and by API key. None: the visitor may not see it.
    costs: Option<[BTreeMap<String, UsageGroup>; 2]>,
}

impl Uses {
    async fn of(dashboard: &Dashboard, visitor: &Visitor) -> Result<Self, Failure> {
        if !visitor.may_see(Scope::Logs) {
            return Ok(Self::default());
        }
        let filter = RequestFilter { from_unix_ms: Some(unix_now_ms() - COUNTED_MS), ..Default::default() };
        let by = async |group_by: &str| -> Result<BTreeMap<String, UsageGroup>, Failure> {
            let request = GetUsageRequest {
                filter: Some(filter.clone()),
                group_by: group_by.to_owned(),
                ..Default::default()
            };
            let groups = dashboard.admin.get_usage(visitor.ask(request)).await?.into_inner().groups;
            Ok(groups.into_iter().map(|group| (group.key.clone(), group)).collect())
        };
        let quotas = async {
            let quotas = dashboard.admin.list_quotas(visitor.ask(ListQuotasRequest {})).await;
            Ok(quotas?.into_inner().quotas)
        };
        let (quotas, keys, callers) = tokio::try_join!(quotas, by("virtual_key"), by("caller"))?;
        Ok(Self { quotas, costs: Some([keys, callers]) })
    }

    fn of_virtual_key(&self, slug: &str) -> Markup {
        self.cost(0, slug, &format!("/logs?virtual_key={slug}&since=30d"))
    }

    fn of_api_key(&self, id: &str) -> Markup {
        self.cost(1, id, &format!("/logs?caller={id}&since=30d"))
    }

    fn cost(&self, which: usize, key: &str, address: &str) -> Markup {
        let Some(costs) = &self.costs else { return Markup::default() };
        match costs[which].get(key) {
            None => html! { span class="faint" { "no requests" } },
            Some(group) => html! {
                (usd(Some(group.cost_usd), group.cost_unknown > 0)) " "
                a href=(address) { (group.requests) @if group.requests == 1 { " request" } @else { " requests" } }
            },
        }
    }
}

/// `GET /keys`
async fn list(State(dashboard): State<Dashboard>, visitor: Visitor) -> Result<Markup, Failure> {
    let virtual_keys = dashboard.admin.list_virtual_keys(visitor.ask(ListVirtualKeysRequest {}));
    let virtual_keys = virtual_keys.await?.into_inner().virtual_keys;
    let api_keys = if visitor.may_see(Scope::Admin) {
        let api_keys = dashboard.admin.list_api_keys(visitor.ask(ListApiKeysRequest {}));
        Some(api_keys.await?.into_inner().api_keys)
    } else {
        None
    };
    let uses = Uses::of(&dashboard, &visitor).await?;
    let others = others(&uses.quotas, &virtual_keys, api_keys.as_deref().unwrap_or_default());
    let body = html! {
        div class="head" { h1 { "Keys" } }
        div class="head" {
            h2 { "Virtual keys" }
            @if visitor.may(Scope::Keys) { a class="button" href="/keys/new-virtual-key" { "New virtual key" } }
        }
        p class="hint" { "Credentials of providers, under the names by which requests and configs mean them." }
        (table_of_virtual_keys(&virtual_keys, &uses))
        @if let Some(api_keys) = &api_keys {
            div class="head" {
                h2 { "API keys" }
                @if visitor.may(Scope::Admin) { a class="button" href="/keys/new-api-key" { "New API key" } }
            }
            p class="hint" { "By which callers are known, and visitors of these pages." }
            (table_of_api_keys(api_keys, &uses))
        }
        @if !others.is_empty() {
            h2 { "Other limits" }
            p class="hint" { "Of keys that are written in the configuration file, of tenants and of metadata." }
            ul class="uses other" {
                @for quota in others {
                    li { strong { (quota.subject.replace('_', " ")) " " (quota.name) } " " (limits::used(quota)) }
                }
            }
        }
    };
    Ok(layout::page(Some(&visitor), Some(Section::Keys), "Keys", &body))
}

fn table_of_virtual_keys(keys: &[VirtualKey], uses: &Uses) -> Markup {
    html! {
        table class="cards" {
            thead {
                tr {
                    th scope="col" { "Name" }
                    th scope="col" { "Provider" }
                    th scope="col" { "Status" }
                    th scope="col" { "Used" }
                    th scope="col" class="number" { "In 30 days" }
                    th scope="col" { "Expires" }
                }
            }
            tbody {
                @for key in keys {
                    tr {
                        th scope="row" {
                            a class="row" href={ "/keys/virtual/" (key.slug) } { (key.name) }
                            div class="faint" { code { (key.slug) } }
                            @if !key.note.is_empty() { div class="note" { (key.note) } }
                        }
                        td data-label="Provider" { (key.provider) }
                        td data-label="Status" { (status(key.status())) }
                        td data-label="Used" { (limits::of("virtual_key", &key.slug, key.quota.as_ref(), &uses.quotas)) }
                        td data-label="In 30 days" class="number" { (uses.of_virtual_key(&key.slug)) }
                        td data-label="Expires" { (expiry(key.expires_unix_ms)) }
                    }
                }
            }
        }
        p class="empty" { "None is stored. Those that are written in the configuration file are not listed here." }
    }
}

fn table_of_api_keys(keys: &[ApiKey], uses: &Uses) -> Markup {
    html! {
        table class="cards" {
            thead {
                tr {
                    th scope="col" { "Name" }
                    th scope="col" { "May" }
                    th scope="col" { "Tenant" }
                    th scope="col" { "Status" }
                    th scope="col" { "Used" }
                    th scope="col" class="number" { "In 30 days" }
                    th scope="col" { "Expires" }
                }
            }
            tbody {
                @for key in keys {
                    tr {
                        th scope="row" {
                            a class="row" href={ "/keys/api/" (key.id) } { (key.name) }
                            div class="faint" { code { (key.hint) "…" } }
                        }
                        td data-label="May" { (key.scopes.join(", ")) }
                        td data-label="Tenant" { (key.tenant) }
                        td data-label="Status" { (status(key.status())) }
                        td data-label="Used" { (limits::of("api_key", &key.id, key.quota.as_ref(), &uses.quotas)) }
                        td data-label="In 30 days" class="number" { (uses.of_api_key(&key.id)) }
                        td data-label="Expires" { (expiry(key.expires_unix_ms)) }
                    }
                }
            }
        }
        p class="empty" { "None is stored. Those that are written in the configuration file are not listed here." }
    }
}

/// Limits of what is in neither list.
fn others<'a>(quotas: &'a [QuotaUse], virtual_keys: &[VirtualKey], api_keys: &[ApiKey]) -> Vec<&'a QuotaUse> {
    let is_listed = |quota: &QuotaUse| match quota.subject.as_str() {
        "virtual_key" => virtual_keys.iter().any(|key| key.slug == quota.name),
        "api_key" => api_keys.iter().any(|key| key.id == quota.name),
        _ => false,
    };
    quotas.iter().filter(|quota| !is_listed(quota)).collect()
}

/// Whether a key works.
fn status(status: KeyStatus) -> Markup {
    let kind = match status {
        KeyStatus::Active | KeyStatus::Unspecified => "good",
        KeyStatus::Disabled => "skipped",
        KeyStatus::Expired | KeyStatus::Exhausted => "bad",
    };
    html! { span class={ "status " (kind) } { (status_name(status)) } }
}

/// When a key stops working.
fn expiry(unix_ms: Option<i64>) -> Markup {
    match unix_ms {
        None => html! { span class="faint" { "never" } },
        Some(unix_ms) => layout::time(unix_ms, &date(unix_ms)),
    }
}

/// The field of the same.
fn expiry_field(typed: &Typed) -> Markup {
    typed.field("expires", "Expires; empty: never", "90d, 2026-11-27 or 2026-11-27T10:30:00Z")
}

/// As it would be typed.
fn expiry_typed(unix_ms: Option<i64>) -> String {
    unix_ms.map(moment::text).unwrap_or_default()
}

/// As it was typed; none: never.
fn read_expiry(typed: &Typed) -> Result<Option<i64>> {
    let when = read("expires", typed.text("expires"), |text: &str| text.parse::<When>())?;
    Ok(when.map(|when| when.ahead(unix_now_ms())))
}

/// A change of it, where 0 is never. None if it stands there as it was: it may have passed, and would be refused.
fn changed_expiry(typed: &Typed, known: Option<i64>) -> Result<Option<i64>> {
    if typed.text("expires") == expiry_typed(known) {
        return Ok(None);
    }
    Ok(Some(read_expiry(typed)?.unwrap_or(0)))
}

/// Switching a key off and on, and deleting it.
fn switches(key: KeyStatus, name: &str, refused: Option<&Refused<'_>>) -> Markup {
    let is_disabled = key == KeyStatus::Disabled;
    html! {
        h2 { "Switch off or delete" }
        (Refused::problem(Refused::of(refused, "disable")))
        (Refused::problem(Refused::of(refused, "enable")))
        (Refused::problem(Refused::of(refused, "delete")))
        div class="row-of-buttons" {
            form method="post" {
                @if is_disabled { button name="do" value="enable" class="quiet" { "Enable" } }
                @else { button name="do" value="disable" class="quiet" { "Disable" } }
            }
            form method="post" data-confirm={ "Delete " (name) "? Requests that use it are refused from then on." } {
                button name="do" value="delete" class="danger" { "Delete" }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expiry_that_has_passed_does_not_keep_a_key_from_being_changed() {
        let typed = |text: &str| Typed::default().with("expires", text);
        assert_eq!(changed_expiry(&typed(&expiry_typed(Some(5000))), Some(5000)).unwrap(), None);
        assert_eq!(changed_expiry(&typed(""), Some(5000)).unwrap(), Some(0));
        assert_eq!(changed_expiry(&typed("1970-01-01T00:00:09Z"), Some(5000)).unwrap(), Some(9000));
        assert_eq!(changed_expiry(&typed("1970-01-01T00:00:09Z"), None).unwrap(), Some(9000));
        assert_eq!(changed_expiry(&typed("soon"), None).unwrap_err().param.as_deref(), Some("expires"));
    }

    #[test]
    fn limits_that_are_in_no_list_are_shown_by_themselves() {
        let quota = |subject: &str, name: &str| QuotaUse {
            subject: subject.into(),
            name: name.into(),
            ..Default::default()
        };
        let quotas = [
            quota("virtual_key", "a"),
            quota("virtual_key", "b"),
            quota("tenant", "a"),
            quota("api_key", "a"),
        ];
        let listed = [VirtualKey { slug: "a".into(), ..Default::default() }];
        let names: Vec<_> =
            others(&quotas, &listed, &[]).iter().map(|one| (&*one.subject, &*one.name)).collect();
        assert_eq!(names, [("virtual_key", "b"), ("tenant", "a"), ("api_key", "a")]);
    }
}
