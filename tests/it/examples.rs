//! The configurations that are shown to people pass `imagegate check`.

use std::{fs, path::Path};

use imagegate::{config, gateway};

fn check(text: &str) -> Result<config::Settings, String> {
    let secrets = |name: &str| match name {
        "REDIS_URL" => Some("redis://127.0.0.1".to_owned()),
        _ => (name.ends_with("_KEY") || name.ends_with("_SECRET")).then(|| format!("the value of {name}")),
    };
    config::read(text, &gateway::built_in(), &secrets).map_err(|problems| format!("{problems:?}"))
}

#[test]
fn every_example_is_valid() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/configs");
    let mut checked = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let settings = check(&fs::read_to_string(&path).unwrap());
        let settings = settings.unwrap_or_else(|problems| panic!("{}: {problems}", path.display()));
        assert!(!settings.configs.is_empty(), "{}", path.display());
        settings.check_exposure(settings.listen).unwrap_or_else(|why| panic!("{}: {why}", path.display()));
        checked += 1;
    }
    assert!(checked >= 9, "{checked}");
}

#[test]
fn every_file_in_the_routing_guide_is_valid() {
    let guide = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/routing.md");
    let guide = fs::read_to_string(guide).unwrap();
    let blocks: Vec<&str> =
        guide.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    for block in &blocks {
        let settings = check(block).unwrap_or_else(|problems| panic!("{problems}\n{block}"));
        assert!(!settings.configs.is_empty(), "{block}");
    }
    assert!(blocks.len() >= 8, "{}", blocks.len());
}
