//! The cluster's seal on thinking: what leaves a gateway in an opaque form can be read by any gateway of the cluster
//! for the same tenant, and by nobody else.
//!
//! Equal texts give equal seals, since the nonce is a keyed hash of the text: nothing has to be kept, and a nonce
//! comes up a second time only with the same text. Keys follow from the cluster's hashing secret and the tenant's
//! name; who changes that secret makes older seals open to nothing, which costs a cache miss.

use core::fmt;

use std::sync::Arc;

use mainstay_chat::{ParseOptions, Seal};
use mainstay_types::{HashKey, TenantId};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hmac;

use crate::replica::Replica;

/// Keeps hashes of one use apart from those of another.
const MARK: u8 = 0;
const NONCE: u8 = 1;

/// How a tenant's bodies are read: as the server is set, with what was sealed for it opened.
pub(crate) fn parsing_of(
    tenant: &TenantId,
    replica: &Replica,
    parsing: &ParseOptions,
) -> ParseOptions {
    let mut parsing = parsing.clone();
    let name: Arc<str> = tenant.as_str().into();
    if let Some(memory) = &mut parsing.tools {
        memory.tenant = Arc::clone(&name);
    }
    if let Some(memory) = &mut parsing.bodies {
        memory.tenant = name;
    }
    if let Some(key) = replica.read(mainstay_state::Machine::hash_key) {
        parsing.sealer = Some(Arc::new(TenantSeal::new(key, tenant)));
    }
    parsing
}

/// The seal of one tenant.
struct TenantSeal {
    mac: hmac::Key,
    cipher: LessSafeKey,
}

impl fmt::Debug for TenantSeal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TenantSeal(secret)")
    }
}

impl TenantSeal {
    fn new(key: HashKey, tenant: &TenantId) -> Self {
        let root = hmac::Key::new(hmac::HMAC_SHA256, &key.0);
        let derived = |label: &[u8]| {
            let mut context = hmac::Context::with_key(&root);
            context.update(label);
            context.update(tenant.as_str().as_bytes());
            context.sign()
        };
        let cipher = derived(b"mainstay thinking, cipher\0");
        let cipher = UnboundKey::new(&CHACHA20_POLY1305, cipher.as_ref())
            .expect("a SHA-256 is as long as this cipher's key");
        Self {
            mac: hmac::Key::new(hmac::HMAC_SHA256, derived(b"mainstay thinking, mac\0").as_ref()),
            cipher: LessSafeKey::new(cipher),
        }
    }

    fn hash<const BYTES: usize>(&self, purpose: u8, text: &[u8]) -> [u8; BYTES] {
        let mut context = hmac::Context::with_key(&self.mac);
        context.update(&[purpose]);
        context.update(text);
        let tag = context.sign();
        let mut out = [0; BYTES];
        for (to, from) in out.iter_mut().zip(tag.as_ref()) {
            *to = *from;
        }
        out
    }
}

impl Seal for TenantSeal {
    fn mark(&self, text: &[u8]) -> [u8; 16] {
        self.hash(MARK, text)
    }

    fn seal(&self, text: &[u8]) -> Vec<u8> {
        let nonce: [u8; NONCE_LEN] = self.hash(NONCE, text);
        let mut body = text.to_vec();
        let nonce_once = Nonce::assume_unique_for_key(nonce);
        self.cipher
            .seal_in_place_append_tag(nonce_once, Aad::empty(), &mut body)
            .expect("a text in memory is shorter than the cipher's limit of 256 GiB");
        [nonce.as_slice(), &body].concat()
    }

    fn open(&self, sealed: &[u8]) -> Option<Vec<u8>> {
        let (nonce, body) = sealed.split_at_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut body = body.to_vec();
        let text_bytes = self.cipher.open_in_place(nonce, Aad::empty(), &mut body).ok()?.len();
        body.truncate(text_bytes);
        Some(body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seal(key: u8, tenant: &str) -> TenantSeal {
        TenantSeal::new(HashKey([key; 16]), &TenantId::new(tenant).expect("valid"))
    }

    #[test]
    fn only_the_same_tenant_of_the_same_cluster_opens_it() {
        let sealed = seal(1, "a").seal(b"step by step");
        assert_eq!(seal(1, "a").open(&sealed).as_deref(), Some(b"step by step".as_slice()));
        assert_eq!(seal(1, "a").seal(b"step by step"), sealed);
        assert_eq!(seal(1, "b").open(&sealed), None);
        assert_eq!(seal(2, "a").open(&sealed), None);
        assert!(!sealed.windows(4).any(|w| w == b"step"));
        assert_ne!(seal(1, "a").mark(b"x"), seal(1, "b").mark(b"x"));
        assert_eq!(seal(1, "a").open(&seal(1, "a").seal(b"")).as_deref(), Some(b"".as_slice()));
    }

    #[test]
    fn whatever_was_changed_or_cut_opens_to_nothing() {
        let mine = seal(1, "a");
        let sealed = mine.seal(b"text");
        for at in 0..sealed.len() {
            let mut flipped = sealed.clone();
            flipped[at] ^= 1;
            assert_eq!(mine.open(&flipped), None, "byte {at}");
            assert_eq!(mine.open(&sealed[..at]), None, "cut to {at}");
        }
    }
}
