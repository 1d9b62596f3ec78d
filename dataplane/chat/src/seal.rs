//! Opaque marks on thinking that leaves the system.
//!
//! Clients must send thinking blocks back verbatim with a `signature` (Anthropic) or `encrypted_content` (Responses),
//! so the server mints one. It is not a proof of anything: any mark is accepted back, since a client may write
//! whatever history it likes. When the text itself is withheld (`display: omitted`, reasoning with encrypted content)
//! the mark carries it, so that the next turn renders the same prompt and hits the same cache. Under a [`Seal`] only
//! the cluster can read it, and a mark of another tenant opens to nothing. Marks from before there was one still open.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::fmt;
use std::sync::Arc;

/// A caller's key, kept from this crate. Equal texts must give equal marks: answers encode to the same bytes.
pub trait Seal: fmt::Debug + Send + Sync {
    /// A keyed checksum.
    fn mark(&self, text: &[u8]) -> [u8; 16];
    /// The text, encrypted and authenticated.
    fn seal(&self, text: &[u8]) -> Vec<u8>;
    /// The reverse of [`Seal::seal`]; `None` for anything that it did not make.
    fn open(&self, sealed: &[u8]) -> Option<Vec<u8>>;
}

/// A shared [`Seal`].
pub type Sealer = Arc<dyn Seal>;

/// Marks made without a key.
const TAG: &[u8] = b"mainstay-thinking-1";
/// Marks made under a key.
const KEYED_TAG: &[u8] = b"mainstay-thinking-2";

/// Mints a mark for `text`, with the text inside it if `carry`.
pub(crate) fn seal(text: &str, carry: bool, sealer: Option<&Sealer>) -> String {
    let mut raw;
    if let Some(sealer) = sealer {
        raw = KEYED_TAG.to_vec();
        raw.push(u8::from(carry));
        let body = if carry {
            sealer.seal(text.as_bytes())
        } else {
            sealer.mark(text.as_bytes()).to_vec()
        };
        raw.extend_from_slice(&body);
    } else {
        raw = TAG.to_vec();
        raw.push(u8::from(carry));
        raw.extend_from_slice(&fnv1a(text.as_bytes()).to_be_bytes());
        if carry {
            raw.extend_from_slice(text.as_bytes());
        }
    }
    STANDARD.encode(raw)
}

/// The text a mark carries, if it is one of ours and carries any.
pub(crate) fn open(mark: &str, sealer: Option<&Sealer>) -> Option<String> {
    let raw = STANDARD.decode(mark).ok()?;
    let text = match raw.strip_prefix(KEYED_TAG) {
        Some(body) => sealer?.open(body.strip_prefix(&[1])?)?,
        None => raw.strip_prefix(TAG)?.strip_prefix(&[1])?.get(8..)?.to_vec(),
    };
    String::from_utf8(text).ok()
}

fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Adds a number to every byte: enough to tell keys apart.
    #[derive(Debug)]
    pub(crate) struct Shift(pub(crate) u8);

    impl Seal for Shift {
        fn mark(&self, text: &[u8]) -> [u8; 16] {
            [text.iter().fold(self.0, |sum, byte| sum.wrapping_add(*byte)); 16]
        }

        fn seal(&self, text: &[u8]) -> Vec<u8> {
            let head = std::iter::once(self.0);
            head.chain(text.iter().map(|b| b.wrapping_add(self.0))).collect()
        }

        fn open(&self, sealed: &[u8]) -> Option<Vec<u8>> {
            let text = sealed.strip_prefix(&[self.0])?;
            Some(text.iter().map(|b| b.wrapping_sub(self.0)).collect())
        }
    }

    #[test]
    fn a_carrying_mark_opens_and_others_do_not() {
        assert_eq!(open(&seal("step by step", true, None), None).as_deref(), Some("step by step"));
        assert_eq!(open(&seal("step by step", false, None), None), None);
        assert_ne!(seal("a", false, None), seal("b", false, None));
        for foreign in ["", "c3R1Yi1zaWduYXR1cmU=", "not base64!", "gAAAAstub"] {
            assert_eq!(open(foreign, None), None, "{foreign}");
        }
    }

    #[test]
    fn a_keyed_mark_opens_under_its_key_only() {
        let [mine, other]: [Sealer; 2] = [Arc::new(Shift(3)), Arc::new(Shift(4))];
        let sealed = seal("step by step", true, Some(&mine));
        assert_eq!(open(&sealed, Some(&mine)).as_deref(), Some("step by step"));
        assert_eq!(open(&sealed, Some(&other)), None);
        assert_eq!(open(&sealed, None), None);
        assert!(!STANDARD.decode(&sealed).unwrap().windows(4).any(|w| w == b"step"));
        assert_ne!(seal("a", false, Some(&mine)), seal("a", false, Some(&other)));
        // A history from before there was a key.
        assert_eq!(open(&seal("old", true, None), Some(&mine)).as_deref(), Some("old"));
    }
}
