//! Bytes of an entry: by the index's own account, and by what the process grew.
//!
//! An entry is a block on one worker. Fills of chains show the two ends, unique blocks and blocks that sixteen
//! workers hold; a corpus lies between. What the process grew is coarse below some ten megabytes.

use anyhow::Result;
use mainstay_index::{BlockIndex, Memory};
use serde_json::{Value, json};

use super::corpus::Corpus;
use super::events::apply_keys;
use super::fill::{Family, Room, empty};
use super::growth::fill_up;
use super::machine::resident_bytes;
use super::measure::{ratio, round};

/// What was there before an index.
struct Before {
    resident: u64,
}

impl Before {
    fn now() -> Self {
        Self { resident: resident_bytes() }
    }

    fn row(&self, set: &str, index: &BlockIndex) -> Value {
        let (entries, blocks) = (index.held_count() as f64, index.block_count() as f64);
        let grown = resident_bytes().saturating_sub(self.resident) as f64;
        let memory: Memory = index.memory();
        let total = memory.total() as f64;
        json!({
            "set": set, "entries": index.held_count(), "blocks": index.block_count(),
            "index_bytes": memory.total(),
            "bytes_per_entry": round(ratio(total, entries)),
            "bytes_per_block": round(ratio(total, blocks)),
            "rss_bytes_per_entry": round(ratio(grown, entries)),
            "keys_bytes": memory.keys, "block_map_bytes": memory.block_map,
            "heads_bytes": memory.heads, "lists_bytes": memory.lists,
            "head_table_bytes": memory.head_table, "other_bytes": memory.other,
        })
    }
}

/// Fills of chains: each block once, and each on sixteen workers.
pub(super) fn run_fills(seed: u64, entries: u64) -> Result<Vec<Value>> {
    let mut rows = Vec::new();
    for (set, copies) in [("unique chains", 1), ("16 copies", 16)] {
        super::say(&format!("memory: {set}"));
        let before = Before::now();
        let (mut index, mut chains) = (empty(), 0);
        let family = Family { salt: seed ^ 0x3e3 ^ u64::from(copies) };
        fill_up(&mut index, family, copies, entries, &mut chains, Room::now())?;
        rows.push(before.row(set, &index));
    }
    Ok(rows)
}

/// A corpus at its end: full caches.
pub(super) fn run_corpus(corpus: &Corpus) -> Value {
    super::say(&format!("{}: memory", corpus.name));
    let before = Before::now();
    let mut index = empty();
    apply_keys(&mut index, corpus, &corpus.all_events(), 32);
    before.row(&corpus.name, &index)
}
