//! Conversations behind Responses ids, for `previous_response_id`: bounded, scoped by tenant, oldest out first.
//!
//! They live in this gateway's memory: another gateway answers that it does not know the id, as the API does for
//! ids that have expired, and the client sends the whole conversation.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use mainstay_chat::{ApiError, Content, Conversation, ErrorKind};
use mainstay_types::TenantId;
use parking_lot::Mutex;

/// Conversations kept at most.
const ENTRIES_MAX: usize = 4_096;
/// Bytes of text kept at most, all conversations together.
const BYTES_MAX: usize = 256 << 20;

type Key = (TenantId, String);

#[derive(Default)]
struct Entries {
    by_id: HashMap<Key, (Arc<Conversation>, usize)>,
    oldest: VecDeque<Key>,
    bytes: usize,
}

/// The store of one gateway.
#[derive(Clone, Default)]
pub(crate) struct ResponsesStore {
    entries: Arc<Mutex<Entries>>,
}

impl ResponsesStore {
    /// The conversation that ended in this response.
    pub(crate) fn get(&self, tenant: &TenantId, id: &str) -> Result<Arc<Conversation>, ApiError> {
        let key = (tenant.clone(), id.to_owned());
        let found = self.entries.lock().by_id.get(&key).map(|(c, _)| Arc::clone(c));
        found.ok_or_else(|| {
            let message = format!(
                "previous response with id `{id}` not found; send the whole conversation as `input`"
            );
            let mut error = ApiError::new(ErrorKind::NotFound, message);
            error.param = Some("previous_response_id".to_owned());
            error.with_code("previous_response_not_found")
        })
    }

    /// Keeps a conversation; one larger than the whole store is not kept.
    pub(crate) fn put(&self, tenant: &TenantId, id: String, conversation: Conversation) {
        let bytes = bytes_of(&conversation);
        if bytes > BYTES_MAX {
            return;
        }
        let key = (tenant.clone(), id);
        let mut entries = self.entries.lock();
        while entries.by_id.len() >= ENTRIES_MAX || entries.bytes + bytes > BYTES_MAX {
            let Some(oldest) = entries.oldest.pop_front() else { break };
            if let Some((_, freed)) = entries.by_id.remove(&oldest) {
                entries.bytes -= freed;
            }
        }
        entries.bytes += bytes;
        entries.oldest.push_back(key.clone());
        if let Some((_, former)) = entries.by_id.insert(key, (Arc::new(conversation), bytes)) {
            entries.bytes -= former;
        }
    }
}

fn bytes_of(conversation: &Conversation) -> usize {
    let messages = conversation.messages.iter().flat_map(|m| &m.blocks);
    conversation.system.iter().chain(messages).map(|b| content_bytes(&b.content)).sum()
}

fn content_bytes(content: &Content) -> usize {
    // What the block itself takes, beside its text.
    const OVERHEAD: usize = 128;
    OVERHEAD
        + match content {
            Content::Text(text) | Content::Thinking { text, .. } => text.len(),
            Content::ToolCall { name, arguments, .. } => name.len() + arguments.len(),
            Content::ToolResult { blocks, .. } => {
                blocks.iter().map(|b| content_bytes(&b.content)).sum()
            }
        }
}

#[cfg(test)]
mod tests {
    use mainstay_chat::{Block, Role};

    use super::*;

    fn said(bytes: usize) -> Conversation {
        let mut conversation = Conversation::default();
        conversation.push(Role::User, vec![Block::text("x".repeat(bytes))]);
        conversation
    }

    #[test]
    fn tenants_do_not_see_each_other() {
        let store = ResponsesStore::default();
        let [a, b] = ["a", "b"].map(|t| TenantId::new(t).expect("valid"));
        store.put(&a, "resp_1".into(), said(1));
        assert!(store.get(&a, "resp_1").is_ok());
        let error = store.get(&b, "resp_1").expect_err("not theirs");
        assert_eq!(error.code.as_deref(), Some("previous_response_not_found"));
    }

    #[test]
    fn the_oldest_go_when_it_is_full() {
        let store = ResponsesStore::default();
        let tenant = TenantId::new("a").expect("valid");
        for n in 0..5 {
            store.put(&tenant, format!("resp_{n}"), said(BYTES_MAX / 4));
        }
        assert!(store.get(&tenant, "resp_0").is_err());
        assert!(store.get(&tenant, "resp_4").is_ok());
        assert!(store.entries.lock().bytes <= BYTES_MAX);
        for n in 0..=ENTRIES_MAX {
            store.put(&tenant, format!("small_{n}"), said(1));
        }
        assert_eq!(store.entries.lock().by_id.len(), ENTRIES_MAX);
    }
}
