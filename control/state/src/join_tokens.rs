//! Tokens by which nodes join: each good for one node, in one role, for a while of cluster time.
//!
//! A used or expired one is remembered until its place is needed, so that whoever shows it again is told what became
//! of it. A node whose answer was lost may ask again for the same key while the token's time runs.

use std::collections::BTreeMap;

use mainstay_types::{ErrorCode, JoinRequest, JoinTokenRequest, KeyId, SecretHash};

use crate::limits::Limits;
use crate::outcome::{Outcome, Refusal};
use crate::tenants::full;
use crate::workers::{NAME_BYTES_MAX, text_is_fine};

/// A token as the log knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// What was asked for.
    pub request: JoinTokenRequest,
    /// Cluster time when it was made.
    pub created_ms: u64,
    /// Cluster time from which on it is good for nothing.
    pub expires_ms: u64,
    /// Who joined by it.
    pub used: Option<JoinTokenUse>,
}

/// The one use of a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinTokenUse {
    /// The node's name.
    pub node: String,
    /// Of the key that was certified.
    pub key: SecretHash,
}

impl JoinToken {
    /// Whether a node may still join by it.
    #[must_use]
    pub fn is_open(&self, now_ms: u64) -> bool {
        self.used.is_none() && now_ms < self.expires_ms
    }
}

#[derive(Debug, Clone, Default)]
pub(crate) struct JoinTokens {
    all: BTreeMap<KeyId, JoinToken>,
    ids: BTreeMap<SecretHash, KeyId>,
}

fn refuse<T>(code: ErrorCode, text: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::new(code, text))
}

impl JoinTokens {
    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = &JoinToken> {
        self.all.values()
    }

    pub(crate) fn put(
        &mut self,
        now_ms: u64,
        limits: &Limits,
        request: &JoinTokenRequest,
    ) -> Result<Outcome, Refusal> {
        if let Some(known) = self.all.get(&request.id) {
            if known.request == *request {
                return Ok(Outcome::JoinToken { changed: false });
            }
            let text = format!("join token {} exists with other contents", request.id);
            return refuse(ErrorCode::AlreadyExists, text);
        }
        if self.ids.contains_key(&request.hash) {
            return refuse(ErrorCode::AlreadyExists, "that join token exists under another name");
        }
        if !(1..=limits.ttl_ms_max).contains(&request.ttl_ms) {
            let text =
                format!("ttl: must be 1 to {} ms, not {}", limits.ttl_ms_max, request.ttl_ms);
            return refuse(ErrorCode::InvalidArgument, text);
        }
        if request.node.as_ref().is_some_and(|node| !text_is_fine(node, 1, NAME_BYTES_MAX)) {
            let text = format!("name: must be 1 to {NAME_BYTES_MAX} bytes of text");
            return refuse(ErrorCode::InvalidArgument, text);
        }
        if self.all.len() >= limits.join_tokens_max as usize {
            self.forget_one(now_ms);
        }
        full(self.all.len(), limits.join_tokens_max, "join tokens")?;
        let expires_ms = now_ms.saturating_add(request.ttl_ms);
        let token =
            JoinToken { request: request.clone(), created_ms: now_ms, expires_ms, used: None };
        self.ids.insert(request.hash, request.id.clone());
        self.all.insert(request.id.clone(), token);
        Ok(Outcome::JoinToken { changed: true })
    }

    /// Makes room by the longest expired of those that are good for nothing any more.
    fn forget_one(&mut self, now_ms: u64) {
        let over = self.all.values().filter(|token| !token.is_open(now_ms));
        let oldest =
            over.min_by_key(|token| token.expires_ms).map(|token| token.request.id.clone());
        if let Some(id) = oldest {
            self.remove(&id);
        }
    }

    pub(crate) fn remove(&mut self, id: &KeyId) -> Outcome {
        let gone = self.all.remove(id);
        if let Some(token) = &gone {
            self.ids.remove(&token.request.hash);
        }
        Outcome::JoinToken { changed: gone.is_some() }
    }

    pub(crate) fn take(&mut self, now_ms: u64, join: &JoinRequest) -> Result<Outcome, Refusal> {
        let another = "make another with mainstay control token add";
        let id = self.ids.get(&join.token);
        let Some(token) = id.and_then(|id| self.all.get_mut(id)) else {
            return refuse(ErrorCode::Unauthenticated, format!("unknown join token; {another}"));
        };
        let id = &token.request.id;
        if now_ms >= token.expires_ms {
            let text = format!("join token {id} has expired; {another}");
            return refuse(ErrorCode::Unauthenticated, text);
        }
        if token.request.role != join.role {
            let (is, asked) = (token.request.role.name(), join.role.name());
            let text = format!("join token {id} is for a {is}, and this is a {asked}; {another}");
            return refuse(ErrorCode::PermissionDenied, text);
        }
        if let Some(node) = token.request.node.as_ref().filter(|node| **node != join.node) {
            let text = format!("join token {id} is for {node}; join with --name {node}");
            return refuse(ErrorCode::PermissionDenied, text);
        }
        if !text_is_fine(&join.node, 1, NAME_BYTES_MAX) {
            let text = format!("name: must be 1 to {NAME_BYTES_MAX} bytes of text");
            return refuse(ErrorCode::InvalidArgument, text);
        }
        let this = JoinTokenUse { node: join.node.clone(), key: join.key };
        match &token.used {
            None => token.used = Some(this),
            Some(earlier) if *earlier == this => {}
            Some(earlier) => {
                let text =
                    format!("join token {id} was used already, by {}; {another}", earlier.node);
                return refuse(ErrorCode::Unauthenticated, text);
            }
        }
        Ok(Outcome::Joined)
    }

    /// Rebuilds everything from an image's tokens; `None` if two are equal.
    pub(crate) fn restore(tokens: Vec<JoinToken>) -> Option<Self> {
        let mut all = Self::default();
        for token in tokens {
            let id = token.request.id.clone();
            if all.ids.insert(token.request.hash, id.clone()).is_some() {
                return None;
            }
            all.all.insert(id, token);
        }
        Some(all)
    }
}

#[cfg(test)]
mod tests;
