//! A virtual key: made, shown without its credential, changed, given another credential, switched off, deleted.

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
    cli::{filter::pair, times::date},
    config::callers::Scope,
    dashboard::{
        Dashboard,
        failure::Failure,
        layout::{self, Section, facts, text},
        session::Visitor,
    },
    error::{Error, Result},
    pb::{
        CreateVirtualKeyRequest, DeleteVirtualKeyRequest, GetVirtualKeyRequest, UpdateVirtualKeyRequest,
        VirtualKey,
    },
    provider,
};

/// `GET /keys/new-virtual-key`
pub async fn form(visitor: Visitor) -> Markup {
    new(&visitor, &Typed::default(), None)
}

/// `POST /keys/new-virtual-key`
pub async fn create(
    State(dashboard): State<Dashboard>,
    visitor: Visitor,
    Form(typed): Form<Typed>,
) -> Response {
    match created(&dashboard, &visitor, &typed).await {
        Ok(slug) => Redirect::to(&format!("/keys/virtual/{slug}?done=stored")).into_response(),
        Err(failure) => {
            let refused = Refused { form: "create", typed: &typed, failure };
            answer(Some(&refused), new(&visitor, &typed, Some(&refused)))
        }
    }
}

/// `GET /keys/virtual/{slug}`
pub async fn show(
    State(dashboard): State<Dashboard>,
    visitor: Visitor,
    Path(slug): Path<String>,
    Query(done): Query<Done>,
) -> Result<Response, Failure> {
    shown(&dashboard, &visitor, &slug, &done, None).await
}

/// `POST /keys/virtual/{slug}`: does what the form's button says.
pub async fn act(
    State(dashboard): State<Dashboard>,
    visitor: Visitor,
    Path(slug): Path<String>,
    Form(typed): Form<Typed>,
) -> Result<Response, Failure> {
    match done(&dashboard, &visitor, &slug, &typed).await {
        Ok(address) => Ok(Redirect::to(&address).into_response()),
        Err(failure) => {
            let refused = Refused { form: typed.text("do"), typed: &typed, failure };
            shown(&dashboard, &visitor, &slug, &Done::default(), Some(&refused)).await
        }
    }
}

async fn created(dashboard: &Dashboard, visitor: &Visitor, typed: &Typed) -> Result<String, Failure> {
    let mut options = std::collections::BTreeMap::new();
    for line in typed.text("options").lines().filter(|line| !line.trim().is_empty()) {
        // What is written there may be a secret.
        let option =
            pair(line.trim()).map_err(|reason| Error::invalid("options", format!("options: {reason}")))?;
        options.extend([option]);
    }
    let request = CreateVirtualKeyRequest {
        name: typed.text("name").to_owned(),
        provider: typed.text("provider").to_owned(),
        key: typed.text("key").to_owned(),
        note: typed.text("note").to_owned(),
        base_url: typed.text("base_url").to_owned(),
        options,
        expires_unix_ms: read_expiry(typed)?,
        slug: typed.text("slug").to_owned(),
        quota: limits::read(typed)?,
    };
    let stored = dashboard.admin.create_virtual_key(visitor.ask(request)).await?.into_inner();
    Ok(stored.virtual_key.unwrap_or_default().slug)
}

/// What was asked for, and where to go then.
async fn done(
    dashboard: &Dashboard,
    visitor: &Visitor,
    slug: &str,
    typed: &Typed,
) -> Result<String, Failure> {
    let slug_of = || slug.to_owned();
    let (change, done) = match typed.text("do") {
        "change" => (changed(&known(dashboard, visitor, slug).await?, typed)?, "changed"),
        "secret" => {
            let key = Some(typed.text("key").to_owned());
            (UpdateVirtualKeyRequest { slug: slug_of(), key, ..Default::default() }, "secret")
        }
        "disable" => (
            UpdateVirtualKeyRequest { slug: slug_of(), disabled: Some(true), ..Default::default() },
            "disabled",
        ),
        "enable" => (
            UpdateVirtualKeyRequest { slug: slug_of(), disabled: Some(false), ..Default::default() },
            "enabled",
        ),
        "delete" => {
            dashboard
                .admin
                .delete_virtual_key(visitor.ask(DeleteVirtualKeyRequest { slug: slug_of() }))
                .await?;
            return Ok("/keys".to_owned());
        }
        other => return Err(Error::invalid("do", format!("do: \"{other}\" is not allowed")).into()),
    };
    dashboard.admin.update_virtual_key(visitor.ask(change)).await?;
    Ok(format!("/keys/virtual/{slug}?done={done}"))
}

/// All that the form can change.
fn changed(known: &VirtualKey, typed: &Typed) -> Result<UpdateVirtualKeyRequest> {
    Ok(UpdateVirtualKeyRequest {
        slug: known.slug.clone(),
        name: Some(typed.text("name").to_owned()),
        note: Some(typed.text("note").to_owned()),
        expires_unix_ms: changed_expiry(typed, known.expires_unix_ms)?,
        quota: Some(limits::read(typed)?.unwrap_or_default()),
        ..Default::default()
    })
}

async fn known(dashboard: &Dashboard, visitor: &Visitor, slug: &str) -> Result<VirtualKey, Failure> {
    let request = visitor.ask(GetVirtualKeyRequest { slug: slug.to_owned() });
    let found = dashboard.admin.get_virtual_key(request).await?.into_inner().virtual_key;
    found.ok_or_else(|| Error::missing("virtual key", slug).into())
}

fn fields_of(key: &VirtualKey) -> Typed {
    let typed = Typed::default()
        .with("name", &key.name)
        .with("note", &key.note)
        .with("expires", expiry_typed(key.expires_unix_ms));
    limits::typed(key.quota.as_ref(), typed)
}

fn new(visitor: &Visitor, typed: &Typed, refused: Option<&Refused<'_>>) -> Markup {
    let all = provider::all();
    let mut providers: Vec<&str> = all.iter().map(|provider| provider.record().name.as_str()).collect();
    providers.sort_unstable();
    let body = html! {
        h1 { "New virtual key" }
        form method="post" class="stack" {
            (Refused::problem(refused))
            @if refused.is_some() { p class="hint" { "What may be secret is never shown again: type it once more." } }
            (typed.required("name", "Name", "OpenAI, production"))
            label {
                span { "Provider" }
                input name="provider" value=(typed.text("provider")) list="providers" autocomplete="off" required;
            }
            datalist id="providers" { @for provider in providers { option value=(provider) {} } }
            (secret("Key"))
            p class="hint" { "As the provider gave it to you. It is sealed, and shown to nobody." }
            (typed.lines("note", "Note", "for whoever finds it later"))
            details open[refused.is_some()] {
                summary { "More" }
                div class="stack" {
                    (typed.field("base_url", "Address, instead of the provider's own", "https://"))
                    (typed.field("slug", "Slug, instead of one made from the name", "openai-prod"))
                    label {
                        span { "Settings of the provider's own, one a line" }
                        textarea name="options" rows="2" placeholder="azure_resource_name=images" spellcheck="false" autocomplete="off" {}
                    }
                    (expiry_field(typed))
                    (limits::fields(typed))
                }
            }
            div class="row-of-buttons" { button { "Store" } a class="button quiet" href="/keys" { "Cancel" } }
        }
    };
    layout::page(Some(visitor), Some(Section::Keys), "New virtual key", &body)
}

fn secret(label: &str) -> Markup {
    html! { label { span { (label) } input name="key" type="password" autocomplete="new-password"; } }
}

async fn shown(
    dashboard: &Dashboard,
    visitor: &Visitor,
    slug: &str,
    done: &Done,
    refused: Option<&Refused<'_>>,
) -> Result<Response, Failure> {
    let key = known(dashboard, visitor, slug).await?;
    let uses = Uses::of(dashboard, visitor).await?;
    let own = fields_of(&key);
    let changing = Refused::of(refused, "change");
    let typed = changing.map_or(&own, |refused| refused.typed);
    let rotating = Refused::of(refused, "secret");
    let body = html! {
        div class="head" { h1 { (key.name) } (status(key.status())) }
        (done.notice())
        (facts(&[
            ("Slug", html! { code { (key.slug) } }),
            ("Provider", text(&key.provider)),
            ("Address", text(&key.base_url)),
            ("Settings of the provider's own", text(&key.options.join(", "))),
            ("Note", text(&key.note)),
            ("Expires", expiry(key.expires_unix_ms)),
            ("Created", layout::time(key.created_unix_ms, &date(key.created_unix_ms))),
            ("Changed", layout::time(key.updated_unix_ms, &date(key.updated_unix_ms))),
            ("Created by", text(&key.created_by)),
            ("In 30 days", uses.of_virtual_key(&key.slug)),
        ]))
        h2 { "Limits" }
        @if key.quota.is_none() { p class="faint" { "It has none." } }
        @else { (limits::of("virtual_key", &key.slug, key.quota.as_ref(), &uses.quotas)) }
        @if visitor.may(Scope::Keys) {
            h2 { "Change" }
            form method="post" class="stack" {
                (Refused::problem(changing))
                (typed.required("name", "Name", ""))
                (typed.lines("note", "Note", "for whoever finds it later"))
                (expiry_field(typed))
                (limits::fields(typed))
                p class="hint" { "What has been used of a limit counts on." }
                button name="do" value="change" { "Change" }
            }
            h2 { "Another secret" }
            form method="post" class="stack" {
                (Refused::problem(rotating))
                (secret("New key"))
                p class="hint" { "It is used from the next call on, and the old one is forgotten." }
                button name="do" value="secret" { "Replace" }
            }
            (switches(key.status(), &key.name, refused))
        }
    };
    Ok(answer(refused, layout::page(Some(visitor), Some(Section::Keys), &key.name, &body)))
}
