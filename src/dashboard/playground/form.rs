//! The form, with what can be chosen in it.

use std::collections::BTreeMap;

use futures::future::join3;
use maud::{Markup, html};

use super::asked::{Asked, IN_ADDRESS};
use crate::{
    dashboard::{Dashboard, session::Visitor},
    params::MAX_IMAGES,
    pb::{ListConfigsRequest, ListModelsRequest, ListTargetsRequest},
};

const QUALITIES: [(&str, &str); 6] = [
    ("", "the model's own"),
    ("low", "low"),
    ("medium", "medium"),
    ("high", "high"),
    ("xhigh", "xhigh"),
    ("max", "max"),
];
const FORMATS: [(&str, &str); 4] =
    [("", "as the provider makes it"), ("png", "png"), ("jpeg", "jpeg"), ("webp", "webp")];
const PREVIEWS: [(&str, &str); 4] = [("", "none"), ("1", "1"), ("2", "2"), ("3", "3")];
const SIZES: [&str; 6] = ["1024x1024", "1536x1024", "1024x1536", "1792x1024", "16:9", "auto"];

/// What the visitor can choose from.
#[derive(Debug)]
pub struct Choices {
    /// Ids, each with what people call it.
    configs: BTreeMap<String, String>,
    models: Vec<String>,
}

impl Choices {
    /// As far as the visitor may see it: what cannot be listed can still be written.
    pub async fn of(dashboard: &Dashboard, visitor: &Visitor) -> Self {
        let (saved, targets, models) = join3(
            dashboard.admin.list_configs(visitor.ask(ListConfigsRequest {})),
            // The configs of the file are known by their targets.
            dashboard.admin.list_targets(visitor.ask(ListTargetsRequest::default())),
            dashboard.router.list_models(visitor.ask(ListModelsRequest {})),
        )
        .await;
        let mut configs = BTreeMap::new();
        for target in targets.map(|listed| listed.into_inner().targets).unwrap_or_default() {
            configs.insert(target.config.clone(), target.config);
        }
        for config in saved.map(|listed| listed.into_inner().configs).unwrap_or_default() {
            let shown = format!("{} ({})", config.name, config.slug);
            configs.insert(config.slug, shown);
        }
        let models = models.map(|listed| listed.into_inner().models).unwrap_or_default();
        let mut models: Vec<String> = models.into_iter().map(|model| model.id).collect();
        models.sort_unstable();
        models.dedup();
        Self { configs, models }
    }
}

/// The form with what is asked for in it.
pub fn form(asked: &Asked, choices: &Choices) -> Markup {
    let in_address = |name: &str| IN_ADDRESS.contains(&name);
    let field = |name: &str, label: &str, hint: &str, list: Option<&str>| {
        html! {
            label {
                span { (label) }
                input name=(name) value=(asked.get(name)) placeholder=(hint) list=[list] autocomplete="off"
                    data-in-address[in_address(name)];
            }
        }
    };
    let choice = |name: &str, label: &str, choices: &[(&str, &str)]| {
        let value = asked.get(name);
        html! {
            label {
                span { (label) }
                select name=(name) data-in-address[in_address(name)] {
                    @for (choice, shown) in choices {
                        option value=(choice) selected[*choice == value] { (shown) }
                    }
                    // One that was written into the address.
                    @if !choices.iter().any(|(choice, _)| *choice == value) {
                        option value=(value) selected { (value) }
                    }
                }
            }
        }
    };
    let configs: Vec<(&str, &str)> = [("", "your default config")]
        .into_iter()
        .chain(choices.configs.iter().map(|(id, shown)| (id.as_str(), shown.as_str())))
        .collect();
    html! {
        form id="playground" class="playground" method="post" action="/playground" enctype="multipart/form-data" {
            label class="wide" {
                span { "Prompt" }
                textarea name="prompt" rows="3" required { (asked.get("prompt")) }
            }
            @if choices.configs.is_empty() { (field("config", "Config", "your default config", None)) }
            @else { (choice("config", "Config", &configs)) }
            (field("model", "Model", "the config's own", Some("models")))
            (field("size", "Size", "1024x1024", Some("sizes")))
            label {
                span { "Images" }
                input type="number" name="n" value=(asked.get("n")) min="1" max=(MAX_IMAGES) placeholder="1" data-in-address;
            }
            (choice("quality", "Quality", &QUALITIES))
            (choice("output_format", "Format", &FORMATS))
            (choice("partial_images", "Partial images", &PREVIEWS))
            (field("seed", "Seed", "random", None))
            label class="half" {
                span { "Negative prompt" }
                input name="negative_prompt" value=(asked.get("negative_prompt")) autocomplete="off";
            }
            label class="half" {
                span { "Image to edit" }
                input type="file" name="image" accept="image/png,image/jpeg,image/webp";
            }
            details class="wide" open[!asked.get("inline").is_empty()] {
                summary { "A config written here" }
                label {
                    span { "Config as JSON, in place of the one above" }
                    textarea name="inline" class="code" rows="6" spellcheck="false" { (asked.get("inline")) }
                }
            }
            label class="wide check" {
                input type="checkbox" name="each" value="on" checked[asked.each()] data-in-address;
                " Each target on its own, side by side"
            }
            div class="wide row-of-buttons" {
                // The first is pressed by Enter in any field: what costs nothing.
                button class="quiet" name="do" value="explain" { "Explain" }
                button name="do" value="generate" { "Generate" }
                button type="button" class="quiet" data-cancel hidden { "Cancel" }
            }
        }
        datalist id="models" { @for model in &choices.models { option value=(model) {} } }
        datalist id="sizes" { @for size in SIZES { option value=(size) {} } }
    }
}
