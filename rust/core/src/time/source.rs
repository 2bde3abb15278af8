//! Name of a counter, held inline.

use core::fmt;

/// Name of a counter: 1 to 32 characters of `a-z`, `0-9` and `_`.
///
/// Names are printed as they are, so a file's name must not bring its own escape sequences; and a stamp is a small value,
/// so the text is held inline.
///
/// ```
/// use guestclock_core::time::SourceName;
/// assert_eq!(SourceName::new("cntvct_el0").unwrap().as_str(), "cntvct_el0");
/// assert_eq!(SourceName::new("\x1b[2J"), None);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SourceName {
    length: u8,
    text: [u8; Self::MAX_BYTES],
}

impl SourceName {
    /// The longest name, in bytes.
    pub const MAX_BYTES: usize = 32;

    /// Source of a host that nobody knows: see [`Stamp::of_unknown_host`](crate::time::Stamp::of_unknown_host).
    pub const UNKNOWN: Self = Self::fixed("unknown");

    /// Source of a counter that a program moves, and that belongs to no machine.
    pub const MANUAL: Self = Self::fixed("manual");

    /// A name; `None` where it is empty, too long or has another character.
    #[must_use]
    pub const fn new(name: &str) -> Option<Self> {
        let bytes = name.as_bytes();
        if bytes.is_empty() || bytes.len() > Self::MAX_BYTES {
            return None;
        }
        let mut text = [0; Self::MAX_BYTES];
        let mut at = 0;
        while at < bytes.len() {
            if !matches!(bytes[at], b'a'..=b'z' | b'0'..=b'9' | b'_') {
                return None;
            }
            text[at] = bytes[at];
            at += 1;
        }
        #[expect(clippy::cast_possible_truncation, reason = "at most 32")]
        Some(Self { length: bytes.len() as u8, text })
    }

    /// A name that is written in the code.
    ///
    /// # Panics
    /// For text that is no name: a mistake in the calling code.
    #[must_use]
    pub const fn fixed(name: &str) -> Self {
        Self::new(name).expect("a counter's name has 1 to 32 characters of a-z, 0-9 and _")
    }

    /// Returns whether the name is that of a counter whose time namespace isn't known: its counts aren't host-wide.
    #[must_use]
    pub fn is_local(&self) -> bool {
        self.as_str().ends_with("_local")
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        str::from_utf8(&self.text[..usize::from(self.length)]).unwrap_or_default()
    }
}

impl fmt::Display for SourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for SourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
    }
}

#[cfg(feature = "serde")]
impl serde::Serialize for SourceName {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(self.as_str())
    }
}

#[cfg(feature = "serde")]
impl<'de> serde::Deserialize<'de> for SourceName {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let name = <&str>::deserialize(from)?;
        Self::new(name).ok_or_else(|| serde::de::Error::custom("no name of a counter"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::String;

    #[test]
    fn a_name_is_short_and_plain() {
        for name in ["a", "clock_monotonic_raw", "0_z9", &"x".repeat(32)] {
            assert_eq!(SourceName::new(name).map(|name| String::from(name.as_str())).as_deref(), Some(name));
        }
        for text in ["", "A", "a b", "a-b", "\u{e4}", "a\0", "\x1b[2J", &"x".repeat(33)] {
            assert_eq!(SourceName::new(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_counter_of_an_unknown_namespace_is_local() {
        let local = |name| SourceName::new(name).unwrap().is_local();
        assert!(local("clock_monotonic_local") && local("clock_monotonic_raw_local"));
        assert!(!local("clock_monotonic") && !local("local") && !local("_localtime"));
    }

    #[test]
    fn names_differ_where_their_texts_do() {
        let name = |text| SourceName::new(text).unwrap();
        assert_ne!(name("a"), name("aa"));
        assert_ne!(name("a0"), name("a1"));
        assert_eq!(name("unknown"), SourceName::UNKNOWN);
    }
}
