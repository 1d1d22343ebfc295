//! Saved configs: what they do as a picture, an editor, and their versions.

mod editor;
mod picture;
mod tried;
mod typed;
mod versions;

use std::collections::BTreeSet;

use axum::{
    Router,
    extract::{Path, State},
    response::Redirect,
    routing::{get, post},
};
use maud::{Markup, html};

use super::{
    Dashboard,
    failure::Failure,
    layout::{self, Section},
    session::Visitor,
};
use crate::{
    cli::times::date,
    config::callers::Scope,
    error::{Error, ErrorKind},
    pb::{
        CheckConfigRequest, ConfigVersion, DeleteConfigRequest, GetConfigRequest, ListConfigVersionsRequest,
        ListConfigsRequest, ListTargetsRequest, PlanNode, SavedConfig,
    },
};

/// All routes below `/configs`.
pub fn routes() -> Router<Dashboard> {
    Router::new()
        .route("/configs", get(list))
        .route("/configs/new", get(editor::blank).post(editor::create))
        .route("/configs/{slug}", get(editor::show).post(editor::change))
        .route("/configs/{slug}/delete", post(delete))
        .route("/configs/{slug}/rollback", post(versions::roll_back))
        .route("/configs/{slug}/diff", get(versions::differences))
}

/// `GET /configs`
async fn list(State(dashboard): State<Dashboard>, visitor: Visitor) -> Result<Markup, Failure> {
    let request = visitor.ask(ListConfigsRequest {});
    let (saved, away) = match dashboard.admin.list_configs(request).await {
        Ok(listed) => (listed.into_inner().configs, None),
        Err(status) => {
            let failure = Failure::from(status);
            // The gateway may well have no store; what the file says is there all the same.
            if failure.error().kind != ErrorKind::Unavailable {
                return Err(failure);
            }
            (Vec::new(), Some(failure))
        }
    };
    let others = others(&dashboard, &visitor, &saved).await?;
    let body = html! {
        div class="head" {
            h1 { "Configs" }
            @if visitor.may(Scope::Configs) && away.is_none() { a class="button" href="/configs/new" { "New config" } }
        }
        @if let Some(failure) = &away { (layout::problem(failure.error())) }
        @else if saved.is_empty() { p class="faint" { "No config has been saved yet." } }
        @else { (layout::scroll("Saved configs", &table(&saved))) }
        @if !others.is_empty() {
            h2 { "In the file" }
            ul { @for id in &others { li { a href={ "/configs/" (id) } { (id) } } } }
            p class="hint" { "What stands in the gateway's file is changed there." }
        }
    };
    Ok(layout::page(Some(&visitor), Some(Section::Configs), "Configs", &body))
}

fn table(saved: &[SavedConfig]) -> Markup {
    html! {
        table {
            thead {
                tr {
                    th scope="col" { "Name" }
                    th scope="col" { "Slug" }
                    th scope="col" class="number" { "Version" }
                    th scope="col" { "Changed" }
                    th scope="col" { "By" }
                    th scope="col" { "Problem" }
                }
            }
            tbody {
                @for config in saved {
                    tr {
                        th scope="row" {
                            a class="row" href={ "/configs/" (config.slug) } { (config.name) }
                            @if config.is_default { " " span class="badge" { "default" } }
                        }
                        td { code { (config.slug) } }
                        td class="number" { (config.version) }
                        td { (layout::time(config.updated_unix_ms, &date(config.updated_unix_ms))) }
                        td { (config.updated_by) }
                        td class="bad" { (config.problem) }
                    }
                }
            }
        }
    }
}

/// Configs that can be named and were not saved: those of the file. Only who may see targets is told.
async fn others(
    dashboard: &Dashboard,
    visitor: &Visitor,
    saved: &[SavedConfig],
) -> Result<BTreeSet<String>, Failure> {
    if !visitor.may_see(Scope::Logs) {
        return Ok(BTreeSet::new());
    }
    let request = visitor.ask(ListTargetsRequest::default());
    let targets = dashboard.admin.list_targets(request).await?.into_inner().targets;
    let ids = targets.into_iter().map(|target| target.config);
    Ok(ids.filter(|id| saved.iter().all(|config| config.slug != *id)).collect())
}

/// `POST /configs/{slug}/delete`
async fn delete(
    State(dashboard): State<Dashboard>,
    visitor: Visitor,
    Path(slug): Path<String>,
) -> Result<Redirect, Failure> {
    dashboard.admin.delete_config(visitor.ask(DeleteConfigRequest { slug })).await?;
    Ok(Redirect::to("/configs"))
}

/// A version of a config; 0 is the one in force.
async fn found(
    dashboard: &Dashboard,
    visitor: &Visitor,
    slug: &str,
    version: u32,
) -> Result<SavedConfig, Failure> {
    let request = visitor.ask(GetConfigRequest { slug: slug.to_owned(), version });
    let found = dashboard.admin.get_config(request).await?.into_inner().config;
    found.ok_or_else(|| Error::missing("config", slug).into())
}

/// All versions of a config, the newest first.
async fn versions(
    dashboard: &Dashboard,
    visitor: &Visitor,
    slug: &str,
) -> Result<Vec<ConfigVersion>, Failure> {
    let request = visitor.ask(ListConfigVersionsRequest { slug: slug.to_owned() });
    Ok(dashboard.admin.list_config_versions(request).await?.into_inner().versions)
}

/// What a config does, or everything that is wrong with it.
async fn plan(
    dashboard: &Dashboard,
    visitor: &Visitor,
    request: CheckConfigRequest,
) -> Result<PlanNode, Failure> {
    let checked = dashboard.admin.check_config(visitor.ask(request)).await?.into_inner();
    Ok(checked.plan.unwrap_or_default())
}
