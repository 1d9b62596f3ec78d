//! Stored responses of the Responses API: what the log keeps so that any gateway can continue, show or delete one.
//!
//! A response holds what is new in it, its own input and output, and names the one before; a conversation is the chain.
//! What was said is somebody's prompt: only members of the control plane keep it, and whoever else follows the log
//! gets the record with its payload withheld, as it does with kept tokens. Bytes never appear in a `Debug` form.

use core::fmt;
use std::sync::Arc;

use crate::hash::block_hash;
use crate::{HashKey, ResponseId, TenantId};

/// The sum is no secret: it finds accidents, and tells an equal record from another.
const SUM_KEY: HashKey = HashKey(*b"mainstay-resp-01");

/// Bytes whose meaning only gateways know; or, withheld, only what they amount to.
#[derive(Clone)]
pub struct Payload {
    bytes: u32,
    sum: u128,
    held: Option<Arc<[u8]>>,
}

impl Payload {
    /// Takes bytes; past 4 GiB they are no payload.
    #[must_use]
    pub fn new(held: &[u8]) -> Option<Self> {
        let bytes = u32::try_from(held.len()).ok()?;
        Some(Self { bytes, sum: sum_of(held), held: Some(held.into()) })
    }

    /// What bytes amount to that somebody else keeps.
    #[must_use]
    pub const fn withheld(bytes: u32, sum: u128) -> Self {
        Self { bytes, sum, held: None }
    }

    /// Forgets the bytes themselves.
    pub fn withhold(&mut self) {
        self.held = None;
    }

    /// Takes the bytes back that were withheld; false if these are others.
    pub fn restore(&mut self, held: &[u8]) -> bool {
        let found = Self::new(held);
        let same = found.as_ref() == Some(self);
        if let Some(found) = found.filter(|_| same) {
            self.held = found.held;
        }
        same
    }

    /// How many bytes: what budgets charge.
    #[must_use]
    pub const fn bytes(&self) -> u32 {
        self.bytes
    }

    /// Equal for equal bytes.
    #[must_use]
    pub const fn sum(&self) -> u128 {
        self.sum
    }

    /// The bytes, unless they are withheld.
    #[must_use]
    pub fn held(&self) -> Option<&[u8]> {
        self.held.as_deref()
    }
}

/// The length is hashed, too, so that zeros at the end count.
fn sum_of(bytes: &[u8]) -> u128 {
    let word = |chunk: &[u8]| {
        let mut word = [0; 4];
        word[..chunk.len()].copy_from_slice(chunk);
        u32::from_le_bytes(word)
    };
    let words: Vec<u32> = bytes.chunks(4).map(word).collect();
    block_hash(SUM_KEY, bytes.len() as u128, &words)
}

/// Equal bytes are equal, whether or not they are withheld.
impl PartialEq for Payload {
    fn eq(&self, other: &Self) -> bool {
        (self.bytes, self.sum) == (other.bytes, other.sum)
    }
}

impl Eq for Payload {}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Payload({} bytes)", self.bytes)
    }
}

/// Where a response stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ResponseState {
    /// A gateway works on it in the background.
    Running,
    /// It has its end, good or bad: the payload says which.
    Ended,
    /// Somebody asked that it stop; whatever comes of it later is not taken.
    Cancelled,
}

impl ResponseState {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Running, Self::Ended, Self::Cancelled];

    /// Its number on wires and in images.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Running => 1,
            Self::Ended => 2,
            Self::Cancelled => 3,
        }
    }

    /// The reverse of [`ResponseState::number`].
    #[must_use]
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|state| u32::from(state.number()) == number)
    }
}

/// A response to be kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResponseRecord {
    /// Whose.
    pub tenant: TenantId,
    /// Chosen by the gateway that answers, so that a retry is the same response.
    pub id: ResponseId,
    /// The one that it continues.
    pub previous: Option<ResponseId>,
    /// How long it is kept after it, or one that continues it, was last put.
    pub ttl_ms: u64,
    /// Where it stands: running or ended.
    pub state: ResponseState,
    /// What was said.
    pub payload: Payload,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn withheld_bytes_are_equal_gone_and_come_back_only_as_they_were() {
        let full = Payload::new(b"hello").expect("short");
        let mut bare = full.clone();
        bare.withhold();
        assert_eq!((&bare, bare.held(), bare.bytes()), (&full, None, 5));
        assert!(!bare.restore(b"hellp") && bare.held().is_none());
        assert!(bare.restore(b"hello"));
        assert_eq!(bare.held(), Some(&b"hello"[..]));
        assert_eq!(format!("{full:?}"), "Payload(5 bytes)");
    }

    #[test]
    fn sums_tell_bytes_apart() {
        let sums: Vec<u128> = [&b""[..], b"\0", b"\0\0", b"\0\0\0\0", b"a", b"a\0", b"b"]
            .map(|bytes| Payload::new(bytes).expect("short").sum())
            .to_vec();
        for (at, sum) in sums.iter().enumerate() {
            assert!(!sums[..at].contains(sum), "{at}");
        }
    }

    #[test]
    fn states_have_numbers() {
        for state in ResponseState::ALL {
            assert_eq!(ResponseState::from_number(u32::from(state.number())), Some(state));
        }
        assert_eq!(ResponseState::from_number(0), None);
    }
}
