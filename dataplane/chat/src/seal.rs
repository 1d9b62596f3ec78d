//! Opaque marks on thinking that leaves the system.
//!
//! Clients must send thinking blocks back verbatim with a `signature` (Anthropic) or
//! `encrypted_content` (Responses), so the server mints one. It is not a proof of anything: any
//! mark is accepted back, since a client may write whatever history it likes. When the text itself
//! is withheld (`display: omitted`, reasoning with encrypted content) the mark carries it, so
//! that the next turn renders the same prompt and hits the same cache.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::sync::Arc;

/// A caller's keyed checksum of thinking text; without one an unkeyed hash is used.
pub type ThinkingMac = Arc<dyn Fn(&[u8]) -> u64 + Send + Sync>;

const TAG: &[u8] = b"mainstay-thinking-1";

/// Mints a mark for `text`, with the text inside it if `carry`.
pub(crate) fn seal(text: &str, carry: bool, mac: Option<&ThinkingMac>) -> String {
    let sum = mac.map_or_else(|| fnv1a(text.as_bytes()), |mac| mac(text.as_bytes()));
    let mut raw = TAG.to_vec();
    raw.push(u8::from(carry));
    raw.extend_from_slice(&sum.to_be_bytes());
    if carry {
        raw.extend_from_slice(text.as_bytes());
    }
    STANDARD.encode(raw)
}

/// The text a mark carries, if it is one of ours and carries any.
pub(crate) fn open(mark: &str) -> Option<String> {
    let raw = STANDARD.decode(mark).ok()?;
    let body = raw.strip_prefix(TAG)?.strip_prefix(&[1])?;
    String::from_utf8(body.get(8..)?.to_vec()).ok()
}

fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_carrying_mark_opens_and_others_do_not() {
        assert_eq!(open(&seal("step by step", true, None)).as_deref(), Some("step by step"));
        assert_eq!(open(&seal("step by step", false, None)), None);
        assert_ne!(seal("a", false, None), seal("b", false, None));
        let mac: ThinkingMac = Arc::new(|_| 7);
        assert_eq!(seal("a", false, Some(&mac)), seal("b", false, Some(&mac)));
        for foreign in ["", "c3R1Yi1zaWduYXR1cmU=", "not base64!", "gAAAAstub"] {
            assert_eq!(open(foreign), None, "{foreign}");
        }
    }
}
