//! A config as a picture: its plan from left to right, every box beside the one that chooses it.

use maud::{Markup, html};

use crate::pb::{PlanNode, plan_node::Kind};

/// Of a letter, and of a line of them. Letters are as wide as this or narrower: the font is a fixed one.
const LETTER: f64 = 7.4;
const LINE: f64 = 17.0;

/// Letters in a line; what is longer is told in the list and beside the pointer.
const LONGEST: usize = 38;

const PADDING: f64 = 9.0;
const BETWEEN_COLUMNS: f64 = 44.0;
const BETWEEN_ROWS: f64 = 14.0;

/// One node, placed.
struct Placed<'a> {
    node: &'a PlanNode,
    x: f64,
    y: f64,
    width: f64,
    height: f64,
    lines: Vec<Line>,
    /// Where the line to its parent ends.
    from: Option<(f64, f64)>,
}

/// One line of a box.
struct Line {
    kind: &'static str,
    text: String,
}

/// The picture, and the same as a list.
pub fn draw(root: &PlanNode) -> Markup {
    let boxes = place(root);
    let width = boxes.iter().map(|placed| placed.x + placed.width).fold(0.0, f64::max) + 2.0;
    let height = boxes.iter().map(|placed| placed.y + placed.height).fold(0.0, f64::max) + 2.0;
    html! {
        div class="picture scroll" tabindex="0" role="region" aria-label="Picture of the routing tree" {
            svg viewBox={ "-1 -1 " (number(width)) " " (number(height)) } width=(number(width)) height=(number(height))
                role="img" aria-label={ "Routing tree: " (count(root)) ". The list below says the same." } {
                @for placed in &boxes { (edge(placed)) }
                @for placed in &boxes { (shown(placed)) }
            }
        }
        details class="as-list" {
            summary { "As a list" }
            ul { (listed(root)) }
        }
    }
}

/// Every node with its place: nothing overlaps, as each has a band of its own with all that is below it.
fn place(root: &PlanNode) -> Vec<Placed<'_>> {
    let mut columns = Vec::new();
    widen(root, 0, &mut columns);
    let mut boxes = Vec::new();
    put(root, 0, 0.0, None, &columns, &mut boxes);
    boxes
}

/// How wide each column is: as its widest box.
fn widen(node: &PlanNode, depth: usize, columns: &mut Vec<f64>) {
    let width = size(&lines(node)).0;
    match columns.get_mut(depth) {
        Some(column) => *column = column.max(width),
        None => columns.push(width),
    }
    node.children.iter().for_each(|child| widen(child, depth + 1, columns));
}

/// Puts a node and what is below it from `top` on.
fn put<'a>(
    node: &'a PlanNode,
    depth: usize,
    top: f64,
    from: Option<(f64, f64)>,
    columns: &[f64],
    boxes: &mut Vec<Placed<'a>>,
) {
    let lines = lines(node);
    let (width, height) = size(&lines);
    let x = columns[..depth].iter().map(|width| width + BETWEEN_COLUMNS).sum();
    let band = band(node);
    let y = top + (band - height) / 2.0;
    boxes.push(Placed { node, x, y, width, height, lines, from });
    let mut top = top + (band - bands(node)) / 2.0;
    for child in &node.children {
        put(child, depth + 1, top, Some((x + width, y + height / 2.0)), columns, boxes);
        top += self::band(child) + BETWEEN_ROWS;
    }
}

/// How high a node is with all that is below it.
fn band(node: &PlanNode) -> f64 {
    size(&lines(node)).1.max(bands(node))
}

fn bands(node: &PlanNode) -> f64 {
    let gaps = node.children.len().saturating_sub(1) as f64 * BETWEEN_ROWS;
    node.children.iter().map(band).sum::<f64>() + gaps
}

fn size(lines: &[Line]) -> (f64, f64) {
    let letters = lines.iter().map(|line| line.text.chars().count()).max().unwrap_or_default();
    (letters as f64 * LETTER + 2.0 * PADDING, lines.len() as f64 * LINE + 2.0 * PADDING)
}

fn lines(node: &PlanNode) -> Vec<Line> {
    let when = node.when.iter().map(|text| ("when", text.clone()));
    let name = [("name", name(node))].into_iter();
    let who =
        [("who", node.model.clone()), ("who", key(node))].into_iter().filter(|(_, text)| !text.is_empty());
    let settings = node.settings.iter().map(|text| ("setting", text.clone()));
    let all = when.chain(name).chain(who).chain(settings);
    all.map(|(kind, text)| Line { kind, text: cut(&text) }).collect()
}

fn cut(text: &str) -> String {
    if text.chars().count() <= LONGEST {
        return text.to_owned();
    }
    text.chars().take(LONGEST - 1).chain(['…']).collect()
}

/// What a node is.
fn name(node: &PlanNode) -> String {
    match node.kind() {
        Kind::Target | Kind::Unspecified if node.provider.is_empty() => "whom the request names".to_owned(),
        Kind::Target | Kind::Unspecified => node.provider.clone(),
        Kind::Fallback => "fallback".to_owned(),
        Kind::Loadbalance => "load balance".to_owned(),
        Kind::Conditional => "conditional".to_owned(),
        Kind::Hedge => "hedge".to_owned(),
    }
}

fn key(node: &PlanNode) -> String {
    if node.virtual_key.is_empty() { String::new() } else { format!("key {}", node.virtual_key) }
}

fn class(kind: Kind) -> &'static str {
    match kind {
        Kind::Target | Kind::Unspecified => "target",
        Kind::Fallback => "fallback",
        Kind::Loadbalance => "loadbalance",
        Kind::Conditional => "conditional",
        Kind::Hedge => "hedge",
    }
}

fn edge(placed: &Placed<'_>) -> Markup {
    let Some((from_x, from_y)) = placed.from else { return Markup::default() };
    let (x, y) = (placed.x, placed.y + placed.height / 2.0);
    let bend = x - BETWEEN_COLUMNS / 2.0;
    let [from_x, from_y, x, y, bend] = [from_x, from_y, x, y, bend].map(number);
    html! {
        path class={ "edge" (if placed.node.never { " never" } else { "" }) }
            d={ "M" (from_x) " " (from_y) " H" (bend) " V" (y) " H" (x) } {}
    }
}

fn shown(placed: &Placed<'_>) -> Markup {
    let Placed { node, x, y, width, height, lines, .. } = placed;
    html! {
        g class={ "node " (class(node.kind())) (if node.never { " never" } else { "" }) } {
            title { (words(node)) }
            rect x=(number(*x)) y=(number(*y)) width=(number(*width)) height=(number(*height)) rx="6" {}
            @for (i, line) in lines.iter().enumerate() {
                text class=(line.kind) x=(number(x + PADDING)) y=(number(y + PADDING + (i as f64 + 0.75) * LINE)) { (line.text) }
            }
        }
    }
}

fn number(number: f64) -> String {
    format!("{number:.1}")
}

/// A node in one line, with nothing left out.
fn words(node: &PlanNode) -> String {
    let when = node.when.join("; ");
    let who: Vec<_> =
        [name(node), node.model.clone(), key(node)].into_iter().filter(|text| !text.is_empty()).collect();
    let mut text = if when.is_empty() { who.join(", ") } else { format!("{when}: {}", who.join(", ")) };
    if !node.settings.is_empty() {
        text.push_str(&format!(" ({})", node.settings.join("; ")));
    }
    text
}

fn listed(node: &PlanNode) -> Markup {
    html! {
        li {
            (words(node))
            @if !node.children.is_empty() { ul { @for child in &node.children { (listed(child)) } } }
        }
    }
}

fn count(root: &PlanNode) -> String {
    match targets(root) {
        1 => "1 target".to_owned(),
        targets => format!("{targets} targets"),
    }
}

fn targets(node: &PlanNode) -> usize {
    if node.children.is_empty() { 1 } else { node.children.iter().map(targets).sum() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn target(when: &str, provider: &str) -> PlanNode {
        PlanNode {
            when: vec![when.into()],
            kind: Kind::Target.into(),
            provider: provider.into(),
            ..Default::default()
        }
    }

    #[test]
    fn a_picture_has_every_box_with_what_it_says() {
        let pro = PlanNode {
            model: "dall-e-3".into(),
            virtual_key: "main".into(),
            settings: vec!["2 retries".into()],
            ..target(r#"1. if metadata.plan = "<pro>""#, "openai")
        };
        let rest = PlanNode { never: true, ..target("never: no case names it", "") };
        let root =
            PlanNode { kind: Kind::Conditional.into(), children: vec![pro, rest], ..Default::default() };
        let drawn = draw(&root).0;
        for piece in [
            r#"class="node conditional""#,
            r#"class="node target never""#,
            r#"class="edge never""#,
            ">2 retries</text>",
            ">dall-e-3</text>",
            ">key main</text>",
            ">whom the request names</text>",
            "if metadata.plan = &quot;&lt;pro&gt;&quot;</text>",
            "Routing tree: 2 targets",
            "<li>conditional<ul><li>1. if metadata.plan = &quot;&lt;pro&gt;&quot;: openai, dall-e-3, key main (2 retries)</li>",
        ] {
            assert!(drawn.contains(piece), "{piece}: {drawn}");
        }
        assert!(!drawn.contains("style="), "the policy of the pages forbids it");
    }

    #[test]
    fn what_is_long_is_cut_in_the_picture_and_whole_beside_it() {
        let long = "params.prompt matches /ä/ and ".repeat(9);
        let drawn = draw(&target(&long, "openai")).0;
        assert!(drawn.contains("…</text>") && drawn.contains(&format!("<title>{long}: openai</title>")));
        assert_eq!(cut(&long).chars().count(), LONGEST);
        assert_eq!(cut("short"), "short");
    }

    fn trees() -> impl Strategy<Value = PlanNode> {
        let texts = || proptest::collection::vec("[a-zä ]{0,60}", 0..4);
        let leaf = (texts(), texts(), "[a-z]{0,50}").prop_map(|(when, settings, model)| PlanNode {
            when,
            settings,
            model,
            ..Default::default()
        });
        leaf.prop_recursive(5, 40, 6, move |inner| {
            (texts(), texts(), proptest::collection::vec(inner, 1..6)).prop_map(
                |(when, settings, children)| PlanNode {
                    when,
                    settings,
                    children,
                    kind: Kind::Fallback.into(),
                    ..Default::default()
                },
            )
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn no_box_lies_on_another_and_children_stand_to_the_right(root in trees()) {
            let boxes = place(&root);
            for (i, one) in boxes.iter().enumerate() {
                prop_assert!(one.x >= 0.0 && one.y >= -0.01);
                for other in &boxes[i + 1..] {
                    let beside = one.x + one.width <= other.x || other.x + other.width <= one.x;
                    let above = one.y + one.height <= other.y + 0.01 || other.y + other.height <= one.y + 0.01;
                    prop_assert!(beside || above);
                }
                for line in &one.lines {
                    prop_assert!(line.text.chars().count() as f64 * LETTER <= one.width - 2.0 * PADDING + 0.01);
                }
                if let Some((from_x, _)) = one.from {
                    prop_assert!(from_x + BETWEEN_COLUMNS <= one.x + 0.01);
                }
            }
        }
    }
}
