//! Conversations behind the ids of responses, as this gateway has them in memory: bounded, scoped by tenant, oldest out
//! first.
//!
//! It spares a gateway that continues its own answers the way to the control plane, and keeps what could not be put
//! into the log. Whoever reads it asks the log first whether what was put there is there still.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use mainstay_chat::{Content, Conversation};
use mainstay_types::{ResponseId, TenantId};
use parking_lot::Mutex;

/// Conversations kept at most.
const ENTRIES_MAX: usize = 4_096;
/// Bytes of text kept at most, all conversations together.
const BYTES_MAX: usize = 256 << 20;

type Key = (TenantId, ResponseId);

/// A conversation that ended in a response.
#[derive(Clone)]
pub(super) struct Remembered {
    pub(super) conversation: Arc<Conversation>,
    /// The log has it, too; once it has not, it is over here.
    pub(super) logged: bool,
}

#[derive(Default)]
struct Entries {
    by_id: HashMap<Key, (Remembered, usize)>,
    oldest: VecDeque<Key>,
    bytes: usize,
}

impl Entries {
    fn remove(&mut self, key: &Key) {
        if let Some((_, freed)) = self.by_id.remove(key) {
            self.bytes -= freed;
        }
    }
}

/// The memory of one gateway.
#[derive(Clone, Default)]
pub(super) struct Memory {
    entries: Arc<Mutex<Entries>>,
}

impl Memory {
    pub(super) fn get(&self, tenant: &TenantId, id: &ResponseId) -> Option<Remembered> {
        let key = (tenant.clone(), id.clone());
        self.entries.lock().by_id.get(&key).map(|(remembered, _)| remembered.clone())
    }

    /// Keeps a conversation; one larger than the whole memory is not kept.
    pub(super) fn put(&self, tenant: &TenantId, id: &ResponseId, remembered: Remembered) {
        let bytes = bytes_of(&remembered.conversation);
        if bytes > BYTES_MAX {
            return;
        }
        let key = (tenant.clone(), id.clone());
        let mut entries = self.entries.lock();
        // Its place in the queue stays; a key that comes up there twice is removed once.
        if !entries.by_id.contains_key(&key) {
            entries.oldest.push_back(key.clone());
        }
        entries.remove(&key);
        while entries.oldest.len() > ENTRIES_MAX || entries.bytes + bytes > BYTES_MAX {
            let Some(oldest) = entries.oldest.pop_front() else { break };
            entries.remove(&oldest);
        }
        entries.bytes += bytes;
        entries.by_id.insert(key, (remembered, bytes));
    }

    pub(super) fn forget(&self, tenant: &TenantId, id: &ResponseId) {
        let key = (tenant.clone(), id.clone());
        let mut entries = self.entries.lock();
        entries.remove(&key);
        entries.oldest.retain(|other| *other != key);
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

    fn said(bytes: usize) -> Remembered {
        let mut conversation = Conversation::default();
        conversation.push(Role::User, vec![Block::text("x".repeat(bytes))]);
        Remembered { conversation: Arc::new(conversation), logged: false }
    }

    fn id(name: &str) -> ResponseId {
        ResponseId::new(name).expect("valid")
    }

    #[test]
    fn tenants_do_not_see_each_other() {
        let memory = Memory::default();
        let [a, b] = ["a", "b"].map(|t| TenantId::new(t).expect("valid"));
        memory.put(&a, &id("resp_1"), said(1));
        assert!(memory.get(&a, &id("resp_1")).is_some() && memory.get(&b, &id("resp_1")).is_none());
        memory.forget(&a, &id("resp_1"));
        assert!(memory.get(&a, &id("resp_1")).is_none());
        let entries = memory.entries.lock();
        assert_eq!((entries.bytes, entries.oldest.len()), (0, 0));
    }

    #[test]
    fn the_oldest_go_when_it_is_full() {
        let memory = Memory::default();
        let tenant = TenantId::new("a").expect("valid");
        for n in 0..5 {
            memory.put(&tenant, &id(&format!("resp_{n}")), said(BYTES_MAX / 4));
        }
        assert!(memory.get(&tenant, &id("resp_0")).is_none());
        assert!(memory.get(&tenant, &id("resp_4")).is_some());
        assert!(memory.entries.lock().bytes <= BYTES_MAX);
        for n in 0..=ENTRIES_MAX {
            memory.put(&tenant, &id(&format!("small_{n}")), said(1));
            memory.put(&tenant, &id(&format!("small_{n}")), said(2));
        }
        let entries = memory.entries.lock();
        assert_eq!((entries.by_id.len(), entries.oldest.len()), (ENTRIES_MAX, ENTRIES_MAX));
        assert_eq!(entries.bytes, ENTRIES_MAX * (128 + 2));
    }
}
