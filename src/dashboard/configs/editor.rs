//! The page of one config: what it does, and a form that changes it.

use axum::{
    Form,
    extract::{Path, Query, State},
    http::StatusCode,
    response::{IntoResponse, Redirect, Response},
};
use maud::{Markup, html};
use serde::{Deserialize, Deserializer};

use super::{found, picture, plan, tried, typed::Typed, versions};
use crate::{
    cli::{
        configs::{diff, pretty},
        times::date,
    },
    config::callers::Scope,
    dashboard::{
        Dashboard, assets,
        failure::Failure,
        layout::{self, Section, facts, text},
        session::Visitor,
    },
    error::{Error, ErrorKind},
    pb::{CheckConfigRequest, CreateConfigRequest, SavedConfig, UpdateConfigRequest},
};

const EXAMPLE: &str = r#"{
  "strategy": { "mode": "fallback" },
  "targets": [
    { "virtual_key": "...", "override_params": { "model": "..." } },
    { "virtual_key": "..." }
  ]
}"#;

/// What the form sends.
#[derive(Default, Deserialize)]
#[serde(default)]
pub struct Draft {
    name: String,
    /// Of a new config.
    slug: String,
    #[serde(deserialize_with = "plain_lines")]
    config: String,
    is_default: bool,
    /// The version that was opened.
    opened: u32,
    action: Action,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Action {
    #[default]
    Save,
    Check,
    DryRun,
}

/// What the address says besides the slug.
#[derive(Default, Deserialize)]
#[serde(default)]
pub struct Which {
    /// 0: the one in force.
    version: u32,
    saved: Option<String>,
}

/// What came of the form, and stands above it.
#[derive(Default)]
pub struct Outcome {
    status: StatusCode,
    said: Markup,
}

impl Outcome {
    /// What was asked for was not done.
    pub fn refused(error: &Error) -> Self {
        let status = error.status_code();
        Self { status, said: layout::problem(error) }
    }

    /// The same of what was typed: what is wrong with the config itself stands beside it anyway.
    fn refused_draft(error: &Error) -> Self {
        let refused = Self::refused(error);
        let is_told = !error.violations.is_empty() || error.param.as_deref() == Some("config");
        if is_told { Self { said: Markup::default(), ..refused } } else { refused }
    }

    fn said(said: Markup) -> Self {
        Self { status: StatusCode::OK, said }
    }
}

impl Draft {
    /// A config as it is.
    pub fn of(config: &SavedConfig) -> Self {
        // One that somebody has laid out stays so.
        let is_laid_out = config.config_json.trim().contains('\n');
        let text = if is_laid_out { config.config_json.clone() } else { pretty(&config.config_json) };
        Self {
            name: config.name.clone(),
            config: text,
            is_default: config.is_default,
            opened: config.version,
            ..Self::default()
        }
    }
}

/// Browsers send two characters for the end of a line.
fn plain_lines<'de, D: Deserializer<'de>>(text: D) -> Result<String, D::Error> {
    Ok(String::deserialize(text)?.replace("\r\n", "\n"))
}

/// `GET /configs/new`
pub async fn blank(State(dashboard): State<Dashboard>, visitor: Visitor) -> Result<Response, Failure> {
    page(&dashboard, &visitor, None, &Draft::default(), Outcome::default()).await
}

/// `POST /configs/new`
pub async fn create(
    State(dashboard): State<Dashboard>,
    visitor: Visitor,
    Form(draft): Form<Draft>,
) -> Result<Response, Failure> {
    let made = match (draft.action, Typed::read(&draft.config).json) {
        (Action::Save, Ok(config_json)) => {
            let request = CreateConfigRequest {
                name: draft.name.clone(),
                config_json,
                is_default: draft.is_default,
                slug: draft.slug.clone(),
            };
            let made = dashboard.admin.create_config(visitor.ask(request)).await;
            made.map(|made| made.into_inner().config.unwrap_or_default())
        }
        (Action::Save, Err(error)) => Err(error.into()),
        (Action::Check | Action::DryRun, _) => {
            let outcome = without_saving(&dashboard, &visitor, &draft).await;
            return page(&dashboard, &visitor, None, &draft, outcome).await;
        }
    };
    match made {
        Ok(config) => Ok(saved(&config.slug)),
        Err(status) => {
            let outcome = Outcome::refused_draft(Failure::from(status).error());
            page(&dashboard, &visitor, None, &draft, outcome).await
        }
    }
}

/// `GET /configs/{slug}`: the version in force, or with `?version=2` another one.
pub async fn show(
    State(dashboard): State<Dashboard>,
    visitor: Visitor,
    Path(slug): Path<String>,
    Query(which): Query<Which>,
) -> Result<Response, Failure> {
    let config = match found(&dashboard, &visitor, &slug, which.version).await {
        Ok(config) => config,
        Err(failure) if which.version == 0 && is_away(&failure) => {
            // What was not saved may stand in the file.
            let shown = of_file(&dashboard, &visitor, &slug).await;
            return shown.map(IntoResponse::into_response).map_err(|_| failure);
        }
        Err(failure) => return Err(failure),
    };
    let notice = which.saved.map(|_| html! { p class="notice" role="status" { "Saved." } });
    let outcome = Outcome::said(notice.unwrap_or_default());
    page(&dashboard, &visitor, Some(&config), &Draft::of(&config), outcome).await
}

/// Whether a config is not there, or the store is not.
fn is_away(failure: &Failure) -> bool {
    matches!(failure.error().kind, ErrorKind::NotFound | ErrorKind::Unavailable)
}

async fn of_file(dashboard: &Dashboard, visitor: &Visitor, slug: &str) -> Result<Markup, Failure> {
    let request = CheckConfigRequest { slug: slug.to_owned(), ..Default::default() };
    let plan = plan(dashboard, visitor, request).await?;
    let body = html! {
        h1 { (slug) }
        p { "This config stands in the gateway's file and is changed there." }
        h2 { "What it does" }
        (picture::draw(&plan))
    };
    Ok(layout::page(Some(visitor), Some(Section::Configs), slug, &body))
}

/// `POST /configs/{slug}`
pub async fn change(
    State(dashboard): State<Dashboard>,
    visitor: Visitor,
    Path(slug): Path<String>,
    Form(mut draft): Form<Draft>,
) -> Result<Response, Failure> {
    let config = match found(&dashboard, &visitor, &slug, 0).await {
        Ok(config) => config,
        Err(failure) if is_away(&failure) => {
            // What was typed stays; it can be saved as a new config.
            let outcome = Outcome::refused(failure.error());
            return page(&dashboard, &visitor, None, &draft, outcome).await;
        }
        Err(failure) => return Err(failure),
    };
    let outcome = if draft.action != Action::Save {
        without_saving(&dashboard, &visitor, &draft).await
    } else if draft.opened != config.version {
        let outcome = Outcome { status: StatusCode::CONFLICT, said: overtaken(&config, &draft) };
        // Saved again, it is meant.
        draft.opened = config.version;
        outcome
    } else {
        match save(&dashboard, &visitor, &config, &draft).await {
            Ok(()) => return Ok(saved(&slug)),
            Err(failure) => Outcome::refused_draft(failure.error()),
        }
    };
    page(&dashboard, &visitor, Some(&config), &draft, outcome).await
}

async fn save(
    dashboard: &Dashboard,
    visitor: &Visitor,
    config: &SavedConfig,
    draft: &Draft,
) -> Result<(), Failure> {
    let json = Typed::read(&draft.config).json?;
    let request = UpdateConfigRequest {
        slug: config.slug.clone(),
        name: (draft.name != config.name).then(|| draft.name.clone()),
        // The same content makes no version.
        config_json: (pretty(&json) != pretty(&config.config_json)).then_some(json),
        is_default: (draft.is_default != config.is_default).then_some(draft.is_default),
        rollback_to: None,
    };
    dashboard.admin.update_config(visitor.ask(request)).await?;
    Ok(())
}

/// Back to the page, which says so.
pub fn saved(slug: &str) -> Response {
    Redirect::to(&format!("/configs/{slug}?saved")).into_response()
}

/// What is said of a config that is only looked at.
async fn without_saving(dashboard: &Dashboard, visitor: &Visitor, draft: &Draft) -> Outcome {
    let Ok(json) = Typed::read(&draft.config).json else { return Outcome::default() };
    if draft.action == Action::DryRun {
        return match tried::tried(dashboard, visitor, &json).await {
            Ok(said) => Outcome::said(said),
            Err(failure) => Outcome::refused_draft(failure.error()),
        };
    }
    let request = CheckConfigRequest { config_json: json, ..Default::default() };
    match plan(dashboard, visitor, request).await {
        Ok(_) => Outcome::said(html! { p class="notice" role="status" { "Valid. Not saved yet." } }),
        Err(_) => Outcome::default(),
    }
}

/// Somebody else was faster.
fn overtaken(config: &SavedConfig, draft: &Draft) -> Markup {
    let theirs = format!("version {}", config.version);
    let differences = Typed::read(&draft.config)
        .json
        .map(|yours| diff(&[theirs.clone(), "yours".to_owned()], &config.config_json, &yours));
    html! {
        div class="problem" role="alert" {
            p {
                "Not saved: while you had version " (draft.opened) " open, " (theirs) " was saved"
                @if !config.updated_by.is_empty() { " by " (config.updated_by) }
                ", " (date(config.updated_unix_ms)) ". Yours is below, as you typed it; saved again, it comes after " (theirs) "."
            }
            @if let Ok(differences) = differences {
                p { "From " (theirs) " to yours:" }
                (versions::shown(&differences))
            }
        }
    }
}

/// The page of a config, or of a new one.
pub async fn page(
    dashboard: &Dashboard,
    visitor: &Visitor,
    config: Option<&SavedConfig>,
    draft: &Draft,
    outcome: Outcome,
) -> Result<Response, Failure> {
    let typed = Typed::read(&draft.config);
    let checked = match &typed.json {
        Ok(json) => {
            let request = CheckConfigRequest { config_json: json.clone(), ..Default::default() };
            plan(dashboard, visitor, request).await.map_err(|failure| failure.error().clone())
        }
        Err(error) => Err(error.clone()),
    };
    let is_begun = config.is_some() || !draft.config.is_empty() || outcome.status != StatusCode::OK;
    let error = checked.as_ref().err().filter(|_| is_begun);
    let listed = match config {
        Some(config) => super::versions(dashboard, visitor, &config.slug).await?,
        None => Vec::new(),
    };
    let newest = listed.first().map_or(0, |version| version.version);
    let is_old = config.is_some_and(|config| config.version != newest);
    let may_change = visitor.may(Scope::Configs);
    let title = config.map_or("New config", |config| &config.name);
    let body = html! {
        div class="head" {
            h1 {
                (title)
                @if let Some(config) = config { " " span class="faint" { "version " (config.version) } }
            }
        }
        @if let Some(config) = config { (about(config)) }
        (outcome.said)
        @if is_old && let Some(config) = config { (versions::old(config, newest, may_change)) }
        h2 { "What it does" }
        @match &checked {
            Ok(plan) => (picture::draw(plan)),
            Err(_) => p class="faint" { "A picture of it, as soon as it is valid." },
        }
        h2 { "Config" }
        @if let Some(error) = error { div id="problems" { (typed.problems(error)) } }
        (form(visitor, config, draft, error.map(|error| typed.marked(error)).as_deref(), is_old || !may_change))
        @if let Some(config) = config {
            (versions::list(&config.slug, &listed, may_change))
            @if may_change { (deletion(config)) }
        }
        script src=(assets::address("editor.js")) defer {}
    };
    Ok((outcome.status, layout::page(Some(visitor), Some(Section::Configs), title, &body)).into_response())
}

fn about(config: &SavedConfig) -> Markup {
    html! {
        (facts(&[
            ("Slug", html! { code { (config.slug) } }),
            ("Default", text(if config.is_default { "yes" } else { "" })),
            ("Changed", layout::time(config.updated_unix_ms, &date(config.updated_unix_ms))),
            ("By", text(&config.updated_by)),
            ("Made", layout::time(config.created_unix_ms, &date(config.created_unix_ms))),
        ]))
        @if !config.problem.is_empty() {
            div class="problem" role="alert" { p { "It is in force and cannot be run: " (config.problem) } }
        }
    }
}

fn form(
    visitor: &Visitor,
    config: Option<&SavedConfig>,
    draft: &Draft,
    marked: Option<&[usize]>,
    is_fixed: bool,
) -> Markup {
    let address = config.map_or("/configs/new".to_owned(), |config| format!("/configs/{}", config.slug));
    let may_try = visitor.may_see(Scope::Configs) && visitor.may_see(Scope::Logs);
    html! {
        form method="post" action=(address) class="editor" {
            input type="hidden" name="opened" value=(draft.opened);
            @if is_fixed {
                // Sent all the same, for the page that shows what came of a try.
                input type="hidden" name="name" value=(draft.name);
                @if draft.is_default { input type="hidden" name="is_default" value="true"; }
            } @else {
                label { span { "Name" } input name="name" value=(draft.name) required maxlength="255" autocomplete="off"; }
                @if config.is_none() {
                    label {
                        span { "Slug, as x-portkey-config names it" }
                        input name="slug" value=(draft.slug) placeholder="made from the name" autocomplete="off";
                    }
                }
                label class="check" {
                    input type="checkbox" name="is_default" value="true" checked[draft.is_default];
                    " The default of callers without one of their own"
                }
            }
            (sheet(&draft.config, marked, is_fixed))
            div class="row-of-buttons" {
                @if !is_fixed {
                    button name="action" value="save" { "Save" }
                    button name="action" value="check" class="quiet" formnovalidate { "Check" }
                }
                @if may_try {
                    button name="action" value="dry_run" class="quiet" formnovalidate { "Try on the log" }
                }
            }
            @if may_try {
                p class="hint" { "A try shows what it would have done with the newest requests of the log. It calls nobody." }
            }
        }
    }
}

/// The text with the numbers of its lines, those with something wrong marked.
fn sheet(config: &str, marked: Option<&[usize]>, is_fixed: bool) -> Markup {
    let lines = config.split('\n').count().max(EXAMPLE.split('\n').count());
    let wrong = marked.unwrap_or_default();
    html! {
        label for="config" { "JSON or YAML" }
        div class="sheet" {
            div class="lines" aria-hidden="true" {
                @for line in 1..=lines {
                    span id={ "line-" (line) } class=[wrong.contains(&line).then_some("wrong")] { (line) }
                }
            }
            textarea id="config" name="config" class="code" rows=(lines) required spellcheck="false" wrap="off"
                autocapitalize="off" placeholder=(EXAMPLE) readonly[is_fixed] aria-invalid=[marked.map(|_| "true")]
                aria-describedby=[marked.map(|_| "problems")] {
                // A browser drops the first line break.
                "\n" (config)
            }
        }
    }
}

fn deletion(config: &SavedConfig) -> Markup {
    let question =
        format!("Delete {} with all its versions? Requests that name it are refused then.", config.name);
    html! {
        h2 { "Delete" }
        form method="post" action={ "/configs/" (config.slug) "/delete" } data-confirm=(question) {
            button class="danger" { "Delete this config" }
        }
    }
}
