//! Blocks from elsewhere into the engine, and out to other workers: what was computed once need not be again.
//!
//! Before a request starts, the worker looks what of its prompt the engine lacks, asks its own tiers, then the store of
//! objects or the workers that the gateway named, has its engine take the blocks in, and only then starts the
//! request, which hits them. Nothing depends on it: a source that is gone, slow or wrong costs a moment, no
//! longer than computing would take, and the rest of the prompt is computed. Bytes are checked as they come, and
//! names are keyed hashes chained from the tenant's namespace, so that nobody can ask for blocks whose prompt he does
//! not know.
//!
//! `serve` gives; `bring` takes for a request and `prefetch` before there is one, by the ways of `from`, at the cost that `cost` knows, once for all that ask for the same
//! (`loading`), and not from who has just failed (`pause`).

mod bring;
mod cost;
mod from;
mod inherit;
mod loading;
mod pause;
mod prefetch;
mod serve;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use mainstay_engine_abi::sdk::EngineError;
use mainstay_identity::{Identity, Role};
use mainstay_proto::client::{Connector, channel, connector};
use mainstay_types::SequenceHash;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tonic::Status;
use tonic::transport::Channel;

pub(crate) use bring::bring_in;
pub(crate) use prefetch::prefetch;

use crate::engine::KvImport;
use crate::shared::Life;
use cost::Rates;
use loading::Loading;
use pause::Pauses;
pub(crate) use serve::export;

/// Sources in one request.
pub(crate) const SOURCES_MAX: usize = 8;
/// Blocks in one request for them: a prompt of four million tokens in blocks of 16.
const BLOCKS_MAX: usize = 1 << 18;
/// Bytes of one message, as far as single blocks allow.
const CHUNK_BYTES: usize = 4 << 20;
/// Transfers that one worker serves, and takes, at once.
const TRANSFERS_MAX: usize = 8;
/// Prefetches at once: half of what may be taken is left to requests that wait for it.
const PREFETCHES_MAX: usize = TRANSFERS_MAX / 2;
/// Copies in and out of the engine at once, all sides together; the host takes 16.
const COPIES_MAX: usize = 12;
/// Fewer blocks than these are not worth the way.
const BLOCKS_MIN: usize = 4;
/// How long one transfer may be served, however slowly it is read.
const SERVE_MAX: Duration = Duration::from_millis(if cfg!(test) { 3_000 } else { 10_000 });
/// Channels to other workers that are kept.
const PEERS_MAX: usize = 256;

/// What a worker needs for transfers.
pub(crate) struct Transfers {
    connector: Connector,
    peers: Mutex<HashMap<String, Channel>>,
    serving: Arc<Semaphore>,
    taking: Semaphore,
    prefetching: Arc<Semaphore>,
    /// Copies in and out of the engine, of which it refuses more.
    copies: Semaphore,
    loading: Loading,
    pauses: Mutex<Pauses>,
    rates: Rates,
}

impl Transfers {
    pub(crate) fn new(identity: Option<Identity>) -> Self {
        let connector: Connector = match identity {
            Some(identity) => connector(move |to| identity.channel(to, Role::Worker)),
            None => Arc::new(channel),
        };
        Self {
            connector,
            peers: Mutex::default(),
            serving: Arc::new(Semaphore::new(TRANSFERS_MAX)),
            taking: Semaphore::new(TRANSFERS_MAX),
            prefetching: Arc::new(Semaphore::new(PREFETCHES_MAX)),
            copies: Semaphore::new(COPIES_MAX),
            loading: Loading::default(),
            pauses: Mutex::default(),
            rates: Rates::default(),
        }
    }

    /// The bytes of a chain's leading blocks, once it is their turn.
    pub(crate) async fn export(
        &self,
        life: &Life,
        blocks: Vec<u128>,
    ) -> Result<Vec<u8>, EngineError> {
        let _turn = self.copies.acquire().await;
        life.engine.kv_export(blocks).await
    }

    /// Has the engine take blocks in, once it is their turn.
    async fn import(&self, life: &Life, import: KvImport) -> Result<u32, EngineError> {
        let _turn = self.copies.acquire().await;
        life.engine.kv_import(import).await
    }

    /// A channel to another worker, opened when it is first used.
    fn peer(&self, address: &str) -> Result<Channel, Status> {
        let mut peers = self.peers.lock();
        if let Some(known) = peers.get(address) {
            return Ok(known.clone());
        }
        let channel = (self.connector)(address)?;
        // Addresses come and go with workers; to begin anew costs a connection each.
        if peers.len() >= PEERS_MAX {
            peers.clear();
        }
        peers.insert(address.to_owned(), channel.clone());
        Ok(channel)
    }
}

/// What shows that a message's bytes came as they were sent, under the names that they were sent for.
fn checksum(first: SequenceHash, content: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64_with_seed(content, first.0 as u64)
}

#[cfg(test)]
mod tests;
