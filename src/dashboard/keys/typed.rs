//! What stands in a form: what somebody has typed, or what is known of the thing that it is about.

use std::fmt;

use maud::{Markup, html};
use serde::Deserialize;

use crate::dashboard::layout;

/// Fields by their names. What is chosen of several has its name several times.
#[derive(Clone, Default, Deserialize)]
#[serde(transparent)]
pub struct Typed(Vec<(String, String)>);

impl Typed {
    /// What a field says, without blanks around it; empty if there is none.
    pub fn text(&self, name: &str) -> &str {
        self.all(name).next().unwrap_or_default().trim()
    }

    /// The same where an empty field means that there is nothing.
    pub fn some(&self, name: &str) -> Option<&str> {
        Some(self.text(name)).filter(|text| !text.is_empty())
    }

    /// Everything that was chosen of a field.
    pub fn all(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |(field, _)| field == name).map(|(_, value)| value.as_str())
    }

    /// Whether this was chosen of a field.
    pub fn has(&self, name: &str, value: &str) -> bool {
        self.all(name).any(|chosen| chosen == value)
    }

    /// Names between commas, blanks and ends of lines.
    pub fn words(&self, name: &str) -> Vec<String> {
        let words = self.text(name).split(|c: char| c == ',' || c.is_whitespace());
        words.filter(|word| !word.is_empty()).map(str::to_owned).collect()
    }

    /// Another field.
    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.0.push((name.to_owned(), value.into()));
        self
    }

    /// A field of one line.
    pub fn field(&self, name: &str, label: &str, hint: &str) -> Markup {
        layout::field(name, label, self.text(name), hint)
    }

    /// The same where something has to be said.
    pub fn required(&self, name: &str, label: &str, hint: &str) -> Markup {
        html! {
            label {
                span { (label) }
                input name=(name) value=(self.text(name)) placeholder=(hint) autocomplete="off" required;
            }
        }
    }

    /// A field of several lines.
    pub fn lines(&self, name: &str, label: &str, hint: &str) -> Markup {
        html! {
            label {
                span { (label) }
                textarea name=(name) rows="2" placeholder=(hint) { (self.text(name)) }
            }
        }
    }

    /// One of these: each with what it is called.
    pub fn choice(&self, name: &str, label: &str, choices: &[(&str, &str)]) -> Markup {
        html! {
            label {
                span { (label) }
                select name=(name) {
                    @for (choice, shown) in choices {
                        option value=(choice) selected[self.text(name) == *choice] { (shown) }
                    }
                }
            }
        }
    }

    /// Something that holds or not.
    pub fn check(&self, name: &str, value: &str, label: &str) -> Markup {
        html! {
            label class="check" {
                input type="checkbox" name=(name) value=(value) checked[self.has(name, value)];
                " " (label)
            }
        }
    }
}

/// There may be secrets in it.
impl fmt::Debug for Typed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Typed(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_is_read_and_written_again() {
        let typed: Typed =
            serde_urlencoded::from_str("name=+a%26b+&scope=logs&scope=keys&configs=a%2C+b%0D%0Ac&note=")
                .unwrap();
        assert_eq!((typed.text("name"), typed.some("note"), typed.text("none")), ("a&b", None, ""));
        assert_eq!(typed.all("scope").collect::<Vec<_>>(), ["logs", "keys"]);
        assert_eq!(typed.words("configs"), ["a", "b", "c"]);
        assert!(typed.check("scope", "keys", "keys").0.contains("checked"));
        assert!(!typed.check("scope", "admin", "admin").0.contains("checked"));
        assert!(typed.field("name", "Name", "").0.contains(r#"value="a&amp;b""#));
        assert!(!format!("{typed:?}").contains("a&b"));
    }
}
