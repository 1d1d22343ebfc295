//! What stays the same from request to request, so that the past can be looked up: whom a target calls, and
//! which strategy node this is.

use std::{
    fmt,
    hash::{DefaultHasher, Hash as _, Hasher as _},
};

use crate::digest::Framed;

/// A digest. Two targets that call the same provider, address and model with the same credential are one,
/// whatever configs they stand in; a caller that brings another credential is another.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity(u128);

impl Identity {
    /// Of a list of texts. Credentials may be among them: the digest cannot be turned back.
    pub fn of<'a>(parts: impl IntoIterator<Item = &'a str>) -> Self {
        let digest = parts.into_iter().collect::<Framed>().finish();
        let (half, _) = digest.split_first_chunk().expect("a digest has 32 bytes");
        Self(u128::from_le_bytes(*half))
    }

    /// Of this and a text that comes with a request. Cheap enough for every target of every request; not
    /// to be foreseen without knowing the digest it starts from.
    #[must_use]
    pub fn with(self, text: &str) -> Self {
        let mut hasher = DefaultHasher::new();
        self.0.hash(&mut hasher);
        text.hash(&mut hasher);
        Self(self.0.rotate_left(1) ^ u128::from(hasher.finish()))
    }

    /// Of this and another.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0.rotate_left(1) ^ other.0)
    }

    /// The identity that another process shows so.
    pub fn parse(shown: &str) -> Option<Self> {
        (shown.len() == 32).then(|| u128::from_str_radix(shown, 16).ok().map(Self)).flatten()
    }

    /// A number for choosing among a few.
    pub fn to_u64(self) -> u64 {
        self.0 as u64
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn different_parts_are_different_identities() {
        let of = |parts: &[&str]| Identity::of(parts.iter().copied());
        assert_eq!(of(&["a", "b"]), of(&["a", "b"]));
        assert_ne!(of(&["a", "b"]), of(&["ab", ""]));
        assert_ne!(of(&["a"]).with("x"), of(&["a"]).with("y"));
        assert_ne!(of(&["a"]).with("x"), of(&["b"]).with("x"));
        assert_ne!(of(&["a"]).and(of(&["b"])), of(&["b"]).and(of(&["a"])));
        assert_eq!(Identity::parse(&format!("{:?}", of(&["a"]))), Some(of(&["a"])));
        assert_eq!(Identity::parse("a"), None);
    }
}
