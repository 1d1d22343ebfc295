//! What a terminal is known for, by its environment.

use super::{PreviewMode, Protocol};

/// How to show an image, if at all. `env` reads an environment variable.
pub fn protocol(mode: PreviewMode, env: impl Fn(&str) -> Option<String>) -> Option<Protocol> {
    let blocks = Protocol::Blocks { true_colour: has_true_colour(&env) };
    match mode {
        PreviewMode::Kitty => Some(Protocol::Kitty),
        PreviewMode::Iterm => Some(Protocol::Iterm),
        PreviewMode::Sixel => Some(Protocol::Sixel),
        PreviewMode::Blocks => Some(blocks),
        PreviewMode::Off => None,
        PreviewMode::Auto => {
            let is_set = |name| env(name).is_some_and(|value| !value.is_empty());
            let term = env("TERM").unwrap_or_default();
            if is_set("NO_COLOR") || term.is_empty() || term == "dumb" {
                return None;
            }
            // What lies between does not pass graphics on.
            if is_set("TMUX") || is_set("STY") || term.starts_with("screen") || term.starts_with("tmux") {
                return Some(blocks);
            }
            Some(by_name(&term, &env).unwrap_or(blocks))
        }
    }
}

fn by_name(term: &str, env: &impl Fn(&str) -> Option<String>) -> Option<Protocol> {
    let program = env("TERM_PROGRAM").unwrap_or_default();
    let is_set = |name| env(name).is_some();
    if is_set("KITTY_WINDOW_ID") || term == "xterm-kitty" || term == "xterm-ghostty" || program == "ghostty" {
        return Some(Protocol::Kitty);
    }
    if matches!(program.as_str(), "iTerm.app" | "WezTerm" | "mintty") || is_set("ITERM_SESSION_ID") {
        return Some(Protocol::Iterm);
    }
    let has_sixel = term.contains("sixel")
        || ["foot", "mlterm", "contour", "yaft"].iter().any(|name| term.starts_with(name));
    has_sixel.then_some(Protocol::Sixel)
}

fn has_true_colour(env: &impl Fn(&str) -> Option<String>) -> bool {
    let said = env("COLORTERM").unwrap_or_default();
    said.contains("truecolor")
        || said.contains("24bit")
        || env("TERM").is_some_and(|term| term.ends_with("-direct"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(mode: PreviewMode, variables: &[(&str, &str)]) -> Option<Protocol> {
        protocol(mode, |name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    fn auto(variables: &[(&str, &str)]) -> Option<Protocol> {
        found(PreviewMode::Auto, variables)
    }

    #[test]
    fn terminals_are_known_by_their_names() {
        assert_eq!(auto(&[("TERM", "xterm-kitty")]), Some(Protocol::Kitty));
        assert_eq!(auto(&[("TERM", "xterm-256color"), ("TERM_PROGRAM", "iTerm.app")]), Some(Protocol::Iterm));
        assert_eq!(auto(&[("TERM", "foot-extra")]), Some(Protocol::Sixel));
    }

    #[test]
    fn all_others_show_blocks() {
        assert_eq!(auto(&[("TERM", "xterm-256color")]), Some(Protocol::Blocks { true_colour: false }));
        let colours = [("TERM", "xterm-256color"), ("COLORTERM", "truecolor")];
        assert_eq!(auto(&colours), Some(Protocol::Blocks { true_colour: true }));
    }

    #[test]
    fn graphics_do_not_pass_tmux() {
        let within = [("TERM", "tmux-256color"), ("KITTY_WINDOW_ID", "1"), ("TMUX", "/tmp/s,1,0")];
        assert_eq!(auto(&within), Some(Protocol::Blocks { true_colour: false }));
    }

    #[test]
    fn nothing_is_shown_where_nobody_wants_it() {
        assert_eq!(auto(&[("TERM", "xterm-kitty"), ("NO_COLOR", "1")]), None);
        assert_eq!(auto(&[("TERM", "dumb")]), None);
        assert_eq!(auto(&[]), None);
        assert_eq!(found(PreviewMode::Off, &[("TERM", "xterm-kitty")]), None);
    }

    #[test]
    fn a_person_knows_better() {
        assert_eq!(found(PreviewMode::Sixel, &[("TERM", "xterm"), ("NO_COLOR", "1")]), Some(Protocol::Sixel));
    }
}
