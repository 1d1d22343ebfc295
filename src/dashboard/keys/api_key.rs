//! An API key: made and shown once, changed, given a successor, switched off, deleted.

use std::collections::BTreeMap;

use axum::{
    Form,
    extract::{Path, Query, State},
    response::{IntoResponse as _, Redirect, Response},
};
use maud::{Markup, html};

use super::{
    Done, Refused, Typed, Uses, answer, changed_expiry, expiry, expiry_field, expiry_typed, limits,
    read_expiry, status, switches,
};
use crate::{
    cli::{
        filter::pair,
        times::{date, length},
    },
    config::callers::Scope,
    dashboard::{
        Dashboard,
        failure::Failure,
        filter::read,
        layout::{self, Section, facts, text},
        session::Visitor,
    },
    error::{Error, Result},
    pb::{
        ApiKey, CreateApiKeyRequest, DeleteApiKeyRequest, GetApiKeyRequest, Grant, KeptImages, LogPolicy,
        Metadata, Names, RotateApiKeyRequest, UpdateApiKeyRequest,
    },
};

/// What may be used of something that the tenant has.
const ALL: &str = "all";
const ONLY: &str = "only";

/// `GET /keys/new-api-key`
pub async fn form(visitor: Visitor) -> Markup {
    new(&visitor, &Typed::default().with("scopes", "generate"), None)
}

/// `POST /keys/new-api-key`: the answer shows the key, and nothing does later.
pub async fn create(
    State(dashboard): State<Dashboard>,
    visitor: Visitor,
    Form(typed): Form<Typed>,
) -> Response {
    match created(&dashboard, &visitor, &typed).await {
        Ok(page) => page.into_response(),
        Err(failure) => {
            let refused = Refused { form: "create", typed: &typed, failure };
            answer(Some(&refused), new(&visitor, &typed, Some(&refused)))
        }
    }
}

/// `GET /keys/api/{id}`
pub async fn show(
    State(dashboard): State<Dashboard>,
    visitor: Visitor,
    Path(id): Path<String>,
    Query(done): Query<Done>,
) -> Result<Response, Failure> {
    shown(&dashboard, &visitor, &id, &done, None).await
}

/// `POST /keys/api/{id}`: does what the form's button says.
pub async fn act(
    State(dashboard): State<Dashboard>,
    visitor: Visitor,
    Path(id): Path<String>,
    Form(typed): Form<Typed>,
) -> Result<Response, Failure> {
    match done(&dashboard, &visitor, &id, &typed).await {
        Ok(response) => Ok(response),
        Err(failure) => {
            let refused = Refused { form: typed.text("do"), typed: &typed, failure };
            shown(&dashboard, &visitor, &id, &Done::default(), Some(&refused)).await
        }
    }
}

async fn created(dashboard: &Dashboard, visitor: &Visitor, typed: &Typed) -> Result<Markup, Failure> {
    let names = |grant: Grant| (!grant.all).then_some(Names { names: grant.names });
    let request = CreateApiKeyRequest {
        name: typed.text("name").to_owned(),
        tenant: typed.text("tenant").to_owned(),
        scopes: scopes(typed),
        default_config: typed.text("default_config").to_owned(),
        allow_config_override: Some(!typed.has("only_default_config", "true")),
        metadata: metadata(typed)?,
        configs: names(grant(typed, "configs")?),
        virtual_keys: names(grant(typed, "virtual_keys")?),
        expires_unix_ms: read_expiry(typed)?,
        quota: limits::read(typed)?,
        log: Some(log(typed)?).filter(|log| *log != LogPolicy::default()),
    };
    let made = dashboard.admin.create_api_key(visitor.ask(request)).await?.into_inner();
    Ok(made_key(visitor, &made.api_key.unwrap_or_default(), &made.key, None))
}

async fn done(
    dashboard: &Dashboard,
    visitor: &Visitor,
    id: &str,
    typed: &Typed,
) -> Result<Response, Failure> {
    let id_of = || id.to_owned();
    let (change, done) = match typed.text("do") {
        "change" => (changed(&known(dashboard, visitor, id).await?, typed)?, "changed"),
        "rotate" => {
            let overlap = read("overlap", typed.text("overlap"), length)?;
            let request =
                RotateApiKeyRequest { id: id_of(), overlap_s: overlap.map(|overlap| overlap.as_secs()) };
            let made = dashboard.admin.rotate_api_key(visitor.ask(request)).await?.into_inner();
            let until = Some(made.old_key_expires_unix_ms);
            return Ok(made_key(visitor, &made.api_key.unwrap_or_default(), &made.key, until).into_response());
        }
        "disable" => {
            (UpdateApiKeyRequest { id: id_of(), disabled: Some(true), ..Default::default() }, "disabled")
        }
        "enable" => {
            (UpdateApiKeyRequest { id: id_of(), disabled: Some(false), ..Default::default() }, "enabled")
        }
        "delete" => {
            dashboard.admin.delete_api_key(visitor.ask(DeleteApiKeyRequest { id: id_of() })).await?;
            return Ok(Redirect::to("/keys").into_response());
        }
        other => return Err(Error::invalid("do", format!("do: \"{other}\" is not allowed")).into()),
    };
    dashboard.admin.update_api_key(visitor.ask(change)).await?;
    Ok(Redirect::to(&format!("/keys/api/{id}?done={done}")).into_response())
}

/// All that the form can change.
fn changed(known: &ApiKey, typed: &Typed) -> Result<UpdateApiKeyRequest> {
    // Values of several lines cannot be typed: as long as nothing is changed of them they stay.
    let lines =
        |typed: &Typed| typed.text("metadata").lines().map(|line| line.trim().to_owned()).collect::<Vec<_>>();
    let is_same = lines(typed) == lines(&fields_of(known));
    Ok(UpdateApiKeyRequest {
        id: known.id.clone(),
        name: Some(typed.text("name").to_owned()),
        scopes: Some(Names { names: scopes(typed) }),
        default_config: Some(typed.text("default_config").to_owned()),
        allow_config_override: Some(!typed.has("only_default_config", "true")),
        disabled: None,
        expires_unix_ms: changed_expiry(typed, known.expires_unix_ms)?,
        quota: Some(limits::read(typed)?.unwrap_or_default()),
        metadata: if is_same { None } else { Some(Metadata { values: metadata(typed)? }) },
        configs: Some(grant(typed, "configs")?),
        virtual_keys: Some(grant(typed, "virtual_keys")?),
        log: Some(log(typed)?),
    })
}

fn scopes(typed: &Typed) -> Vec<String> {
    typed.all("scopes").map(str::to_owned).collect()
}

fn metadata(typed: &Typed) -> Result<BTreeMap<String, String>> {
    let lines = typed.text("metadata").lines().filter(|line| !line.trim().is_empty());
    let read = |line: &str| {
        let wrong = |reason: String| {
            Error::invalid("metadata", format!("metadata: '{line}' is not allowed: {reason}"))
        };
        pair(line.trim()).map_err(wrong)
    };
    lines.map(read).collect()
}

fn grant(typed: &Typed, field: &str) -> Result<Grant> {
    let (all, names) = (typed.text(&format!("which_{field}")) != ONLY, typed.words(field));
    if all && !names.is_empty() {
        let message =
            format!("{field}: all and {} are not allowed together; allowed: one of them", names.join(", "));
        return Err(Error::invalid(field, message));
    }
    Ok(Grant { all, names })
}

fn log(typed: &Typed) -> Result<LogPolicy> {
    let prompts = read("log_prompts", typed.text("log_prompts"), |text: &str| {
        text.parse::<bool>().map_err(|_| "allowed: true, false".to_owned())
    })?;
    let images = read("log_images", typed.text("log_images"), KeptImages::from_name)?;
    Ok(LogPolicy { prompts, images: images.unwrap_or_default().into() })
}

async fn known(dashboard: &Dashboard, visitor: &Visitor, id: &str) -> Result<ApiKey, Failure> {
    let request = visitor.ask(GetApiKeyRequest { id: id.to_owned() });
    let found = dashboard.admin.get_api_key(request).await?.into_inner().api_key;
    found.ok_or_else(|| Error::missing("API key", id).into())
}

fn fields_of(key: &ApiKey) -> Typed {
    let log = key.log.unwrap_or_default();
    let metadata: Vec<_> = key.metadata.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let mut typed = Typed::default()
        .with("name", &key.name)
        .with("default_config", &key.default_config)
        .with("metadata", metadata.join("\n"))
        .with("log_prompts", log.prompts.map(|kept| kept.to_string()).unwrap_or_default())
        .with("log_images", log.images().name().unwrap_or_default())
        .with("expires", expiry_typed(key.expires_unix_ms));
    for scope in &key.scopes {
        typed = typed.with("scopes", scope);
    }
    if !key.allow_config_override {
        typed = typed.with("only_default_config", "true");
    }
    for (field, names) in [("configs", &key.configs), ("virtual_keys", &key.virtual_keys)] {
        typed = typed.with(&format!("which_{field}"), if names.is_some() { ONLY } else { ALL });
        typed = typed.with(field, names.as_ref().map(|names| names.names.join(", ")).unwrap_or_default());
    }
    limits::typed(key.quota.as_ref(), typed)
}

/// What new keys have and old ones may get.
fn fields(typed: &Typed) -> Markup {
    html! {
        (typed.required("name", "Name", "team-a"))
        fieldset {
            legend { "It may" }
            @for scope in Scope::names() { (typed.check("scopes", scope, scope)) }
        }
    }
}

fn further_fields(typed: &Typed) -> Markup {
    let which = |field: &str, label: &str, what: &str| {
        html! {
            div class="pair" {
                (typed.choice(&format!("which_{field}"), label, &[(ALL, "all of its tenant"), (ONLY, "only these")]))
                (typed.field(field, what, "a, b"))
            }
        }
    };
    let kept_images: Vec<_> = [("", "as the file says")]
        .into_iter()
        .chain(KeptImages::NAMES.iter().map(|(name, _)| (*name, *name)))
        .collect();
    html! {
        (typed.field("default_config", "Config for requests that name no route", "pc-hero"))
        (typed.check("only_default_config", "true", "Its requests may name no other route"))
        (which("configs", "Configs it may use", "These configs"))
        (which("virtual_keys", "Virtual keys it may use", "These virtual keys"))
        (typed.lines("metadata", "Metadata of its requests, one a line", "team=blue"))
        div class="pair" {
            (typed.choice("log_prompts", "The log keeps prompts", &[("", "as the file says"), ("true", "yes"), ("false", "no")]))
            (typed.choice("log_images", "The log keeps images", &kept_images))
        }
        (expiry_field(typed))
        (limits::fields(typed))
    }
}

fn new(visitor: &Visitor, typed: &Typed, refused: Option<&Refused<'_>>) -> Markup {
    let body = html! {
        h1 { "New API key" }
        form method="post" class="stack" {
            (Refused::problem(refused))
            (fields(typed))
            p class="hint" {
                "Make images, manage configs, manage virtual keys, read the log, see everything and change nothing, or do all of it."
            }
            details open[refused.is_some()] {
                summary { "More" }
                div class="stack" {
                    (typed.field("tenant", "Tenant, if it is another than yours", ""))
                    (further_fields(typed))
                }
            }
            div class="row-of-buttons" { button { "Make" } a class="button quiet" href="/keys" { "Cancel" } }
        }
    };
    layout::page(Some(visitor), Some(Section::Keys), "New API key", &body)
}

/// The only page that ever shows a key.
fn made_key(visitor: &Visitor, api_key: &ApiKey, key: &str, old_until: Option<i64>) -> Markup {
    let body = html! {
        h1 { "The new key of " (api_key.name) }
        p { "Keep it now: it is not shown again." }
        div class="stack" {
            label { span { "API key" } input id="key" class="secret" value=(key) readonly autocomplete="off" spellcheck="false"; }
            div class="row-of-buttons" {
                button type="button" data-copy="key" { "Copy" }
                a class="button quiet" href={ "/keys/api/" (api_key.id) } { "I have it" }
            }
        }
        @if let Some(until) = old_until {
            p { "The old key works until " (layout::time(until, &date(until))) "." }
        }
        @if visitor.name().is_none() {
            p class="notice" { "From now on this gateway asks everybody for a key. Sign in with this one." }
        }
    };
    layout::page(Some(visitor), Some(Section::Keys), "New API key", &body)
}

async fn shown(
    dashboard: &Dashboard,
    visitor: &Visitor,
    id: &str,
    done: &Done,
    refused: Option<&Refused<'_>>,
) -> Result<Response, Failure> {
    let key = known(dashboard, visitor, id).await?;
    let uses = Uses::of(dashboard, visitor).await?;
    let own = fields_of(&key);
    let changing = Refused::of(refused, "change");
    let typed = changing.map_or(&own, |refused| refused.typed);
    let rotating = Refused::of(refused, "rotate");
    let nothing = Typed::default();
    let overlap = rotating.map_or(&nothing, |refused| refused.typed);
    let body = html! {
        div class="head" { h1 { (key.name) } (status(key.status())) }
        (done.notice())
        (facts_of(&key, &uses))
        h2 { "Limits" }
        @if key.quota.is_none() { p class="faint" { "It has none." } }
        @else { (limits::of("api_key", &key.id, key.quota.as_ref(), &uses.quotas)) }
        @if visitor.may(Scope::Admin) {
            h2 { "Change" }
            form method="post" class="stack" {
                (Refused::problem(changing))
                (fields(typed))
                (further_fields(typed))
                p class="hint" { "What has been used of a limit counts on." }
                button name="do" value="change" { "Change" }
            }
            h2 { "Rotate" }
            form method="post" class="stack" {
                (Refused::problem(rotating))
                (overlap.field("overlap", "How long the old key works on; empty: an hour", "30m, 12h, 7d"))
                p class="hint" { "Makes another key for the same caller, and shows it once." }
                button name="do" value="rotate" { "Rotate" }
            }
            (switches(key.status(), &key.name, refused))
        }
    };
    Ok(answer(refused, layout::page(Some(visitor), Some(Section::Keys), &key.name, &body)))
}

fn facts_of(key: &ApiKey, uses: &Uses) -> Markup {
    let names = |names: &Option<Names>| match names {
        None => "all of its tenant".to_owned(),
        Some(names) if names.names.is_empty() => "none".to_owned(),
        Some(names) => names.names.join(", "),
    };
    facts(&[
        ("Key", html! { code { (key.hint) "…" } }),
        ("Id", html! { code { (key.id) } }),
        ("Tenant", text(&key.tenant)),
        ("May", text(&key.scopes.join(", "))),
        ("Default config", text(&key.default_config)),
        ("Configs", text(&names(&key.configs))),
        ("Virtual keys", text(&names(&key.virtual_keys))),
        ("Expires", expiry(key.expires_unix_ms)),
        ("Created", layout::time(key.created_unix_ms, &date(key.created_unix_ms))),
        ("Changed", layout::time(key.updated_unix_ms, &date(key.updated_unix_ms))),
        ("Created by", text(&key.created_by)),
        ("In 30 days", uses.of_api_key(&key.id)),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::{Quota, RateLimit, RateUnit};

    #[test]
    fn a_key_is_typed_as_it_is_known() {
        let rates = vec![RateLimit { unit: RateUnit::Day.into(), requests: 9 }];
        let key = ApiKey {
            id: "id-1".into(),
            name: "batch".into(),
            scopes: vec!["generate".into(), "logs".into()],
            default_config: "hero".into(),
            metadata: [("team".into(), "a=b".into())].into(),
            configs: Some(Names { names: vec!["hero".into(), "other".into()] }),
            expires_unix_ms: Some(5000),
            quota: Some(Quota { rates, budgets: Vec::new() }),
            log: Some(LogPolicy { prompts: Some(false), images: KeptImages::Full.into() }),
            ..Default::default()
        };
        let change = changed(&key, &fields_of(&key)).unwrap();
        let expected = UpdateApiKeyRequest {
            id: "id-1".into(),
            name: Some("batch".into()),
            scopes: Some(Names { names: key.scopes.clone() }),
            default_config: Some("hero".into()),
            allow_config_override: Some(false),
            quota: key.quota.clone(),
            configs: Some(Grant { all: false, names: vec!["hero".into(), "other".into()] }),
            virtual_keys: Some(Grant { all: true, names: Vec::new() }),
            log: key.log,
            ..Default::default()
        };
        assert_eq!(change, expected);
    }

    #[test]
    fn what_cannot_be_meant_is_named() {
        let typed = |name: &str, value: &str| Typed::default().with(name, value);
        assert_eq!(grant(&typed("configs", "a"), "configs").unwrap_err().param.as_deref(), Some("configs"));
        assert_eq!(metadata(&typed("metadata", "team")).unwrap_err().param.as_deref(), Some("metadata"));
        assert_eq!(log(&typed("log_images", "all")).unwrap_err().param.as_deref(), Some("log_images"));
        let several = ApiKey { metadata: [("a".into(), "1\n2".into())].into(), ..Default::default() };
        let kept = changed(&several, &typed("metadata", "a=1\r\n2")).unwrap();
        assert_eq!(kept.metadata, None);
    }
}
