//! A region: the machines that are near each other, such as one datacenter's. Members, workers and gateways each say
//! theirs when they start, so that reads, routing and pins can stay near.

use core::fmt;

/// A region's name: 1 to [`Region::BYTES_MAX`] of `a-z A-Z 0-9 - _ .`, so that it fits flags, headers and labels.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Region(String);

impl Region {
    /// The longest that is accepted, in bytes.
    pub const BYTES_MAX: usize = 64;
    /// The region of everything that names none.
    pub const LOCAL: &'static str = "local";

    /// A region of that name, if it may be one.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let fine = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        let fits = (1..=Self::BYTES_MAX).contains(&text.len());
        (fits && text.bytes().all(fine)).then(|| Self(text.to_owned()))
    }

    /// [`Region::new`], where an empty text is [`Region::LOCAL`]: what a program that knows no regions sends.
    #[must_use]
    pub fn or_local(text: &str) -> Option<Self> {
        if text.is_empty() { Some(Self::default()) } else { Self::new(text) }
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Region {
    fn default() -> Self {
        Self(Self::LOCAL.to_owned())
    }
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_and_plain() {
        for fine in ["local", "eu-west-1", "DC_2.rack3", &"x".repeat(64)] {
            assert_eq!(Region::new(fine).expect(fine).as_str(), fine);
        }
        for bad in ["", " ", "eu west", "é", "a/b", "a\n", "a,b", "region:a", &"x".repeat(65)] {
            assert_eq!(Region::new(bad), None, "{bad:?}");
        }
        assert_eq!(Region::or_local("").expect("the default").as_str(), "local");
        assert_eq!(Region::or_local("a b"), None);
    }
}
