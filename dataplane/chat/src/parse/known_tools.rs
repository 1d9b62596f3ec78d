//! Lists of tools that were read before, found by their bytes.
//!
//! A harness sends the same tens of kilobytes of tools with every turn. What they were read into is shared by all turns,
//! so that whatever is made of a list (see `template`) can be kept with it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use crate::ir::Tool;
use crate::request::Endpoint;

/// Lists that are remembered, at most.
const LISTS_MAX: usize = 64;
/// The largest list that is remembered, with what it was read into.
const LIST_BYTES_MAX: usize = 1 << 20;
/// Of all of them together.
const BYTES_MAX: usize = 32 << 20;

#[derive(Debug)]
struct List {
    tenant: Arc<str>,
    endpoint: Endpoint,
    raw: Box<str>,
    tools: Arc<Vec<Tool>>,
    bytes: usize,
}

/// The lists of all tenants, the one that was used last at the end.
#[derive(Debug, Default)]
pub struct KnownTools {
    lists: Mutex<VecDeque<List>>,
}

/// A tenant's part of what is known.
#[derive(Clone, Debug)]
pub struct ToolMemory {
    /// What is known.
    pub known: Arc<KnownTools>,
    /// Whose lists are found.
    pub tenant: Arc<str>,
}

impl ToolMemory {
    pub(super) fn find(&self, endpoint: Endpoint, raw: &str) -> Option<Arc<Vec<Tool>>> {
        let mut lists = self.known.lists.lock().unwrap_or_else(PoisonError::into_inner);
        let at = lists.iter().rposition(|list| self.is_meant(list, endpoint, raw))?;
        let list = lists.remove(at)?;
        let tools = Arc::clone(&list.tools);
        lists.push_back(list);
        Some(tools)
    }

    pub(super) fn keep(&self, endpoint: Endpoint, raw: &str, tools: &Arc<Vec<Tool>>) {
        let bytes = raw.len() + tools.iter().map(Tool::bytes).sum::<usize>();
        if bytes > LIST_BYTES_MAX {
            return;
        }
        let mut lists = self.known.lists.lock().unwrap_or_else(PoisonError::into_inner);
        // Another turn may have been quicker.
        lists.retain(|list| !self.is_meant(list, endpoint, raw));
        let mut all = bytes + lists.iter().map(|list| list.bytes).sum::<usize>();
        while lists.len() >= LISTS_MAX || all > BYTES_MAX {
            let Some(oldest) = lists.pop_front() else { break };
            all -= oldest.bytes;
        }
        let tenant = Arc::clone(&self.tenant);
        lists.push_back(List {
            tenant,
            endpoint,
            raw: raw.into(),
            tools: Arc::clone(tools),
            bytes,
        });
    }

    fn is_meant(&self, list: &List, endpoint: Endpoint, raw: &str) -> bool {
        list.endpoint == endpoint && *list.raw == *raw && list.tenant == self.tenant
    }
}
