//! A store of objects: S3, what speaks like it, or a folder that many machines see.
//!
//! **Packs.** An object is a run of blocks of one chain, cut where the chain's length is a multiple of the pack, and
//! is named by its last block. Whoever has a prompt has its hashes, and so the names of its packs: a hit
//! needs no list and no index, and equal prefixes have equal objects, whoever wrote them first. One object for each block
//! would do the same, but a store answers in tens of milliseconds and bills by request: 9,000 blocks of a long
//! prompt are 9,000 of both. A pack is as many blocks as make a few MiB, so large blocks do get objects of
//! their own. The tail of a prompt that fills no pack is not stored.
//!
//! **Trust.** An object is read whole, and each block in it has a header with its key and checksum. One that is not
//! what it should be is moved to `quarantine/`, not asked for again, and written over by the next who has the blocks.
//!
//! **Waiting.** Each call has a deadline, so many run at once, so many more may wait; others are turned away. So the
//! bytes in memory are bounded: a pack for each call that runs, and what [`RemoteSettings::load_bytes`] says for each
//! load.
//!
//! **Forgetting.** There is no way yet to forget all of a namespace: its objects lie below one name
//! (`v1/LAYOUT-PACK/NAMESPACE/`), so an operator can delete them there; what was put aside has the namespace in its name.
//!
//! Credentials come from the environment alone, and nothing that a store says is logged as it said it, since
//! some repeat them.

mod gate;
mod open;

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt};
use mainstay_types::{NamespaceId, SequenceHash};
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::figures::{add, count};
use crate::record::{HEADER_BYTES, Header, Kind};
use crate::{BlockKey, Figures, Held, Layout, Put, Record, Refusal, TierError, copy_summed, sum};
use gate::{Called, Gate};
pub use open::RemoteSettings;
use open::open_store;

/// What a pack should have at least, so that the time to the first byte is not most of a request's.
const PACK_BYTES: u32 = 4 << 20;
/// The most blocks of a pack.
pub const PACK_BLOCKS_MAX: u32 = 64;
/// Names of bad objects that are remembered, besides being moved away.
const BAD_MAX: usize = 4096;
/// The most calls at once that a setting may ask for.
const PARALLEL_MAX: usize = 1024;

/// A block that came out of a store.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// Which.
    pub key: BlockKey,
    /// What the store knew about it.
    pub held: Held,
    /// Its bytes, checked.
    pub payload: Bytes,
}

/// The start of a chain, no more than the bytes of one call.
#[derive(Debug, Clone)]
#[must_use]
pub struct Run {
    /// Its blocks, in order.
    pub blocks: Vec<Loaded>,
    /// Whether the bytes of one call ended it, and the store may have what comes next: ask again from there.
    pub more: bool,
    /// Whether the store did not answer, or not in time, or gave what was not whole: it says nothing about what it has.
    pub failed: bool,
}

/// The answer to a read of a pack.
#[derive(Debug, Clone)]
#[must_use]
pub enum Fetch {
    /// Its blocks, in order.
    Hit(Vec<Loaded>),
    /// The store has no such pack.
    Miss,
    /// It had one that was not whole; it is quarantined.
    Bad,
    /// The store did not answer, or not in time, or too many wait for it.
    Failed,
}

#[derive(Default)]
struct BadNames {
    names: HashSet<Path>,
    order: VecDeque<Path>,
}

impl BadNames {
    fn note(&mut self, name: Path) {
        if self.names.insert(name.clone()) {
            self.order.push_back(name);
        }
        if self.order.len() > BAD_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.names.remove(&oldest);
        }
    }

    fn forget(&mut self, name: &Path) {
        if self.names.remove(name) {
            self.order.retain(|other| other != name);
        }
    }
}

/// See the module.
pub struct RemoteTier {
    layout: Layout,
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    pack_blocks: u32,
    gate: Gate,
    /// Packs that one load gives at most.
    load_packs: usize,
    bad: Mutex<BadNames>,
    figures: Figures,
}

impl RemoteTier {
    /// Opens the store that the address names. Whether it answers is seen at the first call.
    pub fn open(layout: Layout, settings: &RemoteSettings) -> Result<Self, TierError> {
        let (store, prefix) = open_store(settings)?;
        Self::with_store(layout, settings, store, prefix)
    }

    /// Takes a store that is open; the address in the settings is not looked at.
    pub fn with_store(
        layout: Layout,
        settings: &RemoteSettings,
        store: Arc<dyn ObjectStore>,
        prefix: Path,
    ) -> Result<Self, TierError> {
        layout.check()?;
        let pack_blocks = match settings.pack_blocks {
            0 => (PACK_BYTES / layout.block_bytes).clamp(1, PACK_BLOCKS_MAX),
            given => given,
        };
        if pack_blocks > PACK_BLOCKS_MAX {
            return Err(TierError::Setting(format!(
                "packs of {pack_blocks} blocks; the most is {PACK_BLOCKS_MAX}"
            )));
        }
        if !(1..=PARALLEL_MAX).contains(&settings.parallel) || settings.timeout_ms == 0 {
            return Err(TierError::Setting(format!(
                "{} calls at once of {} ms; 1 to {PARALLEL_MAX} of at least 1 ms can be made",
                settings.parallel, settings.timeout_ms
            )));
        }
        let pack_bytes = u64::from(pack_blocks) * u64::from(layout.block_bytes);
        let load_packs = (settings.load_bytes / pack_bytes).max(1);
        let timeout = Duration::from_millis(settings.timeout_ms);
        Ok(Self {
            layout,
            store,
            prefix,
            pack_blocks,
            gate: Gate::new(timeout, settings.parallel, settings.waiting_max),
            load_packs: usize::try_from(load_packs).unwrap_or(usize::MAX),
            bad: Mutex::default(),
            figures: Figures::default(),
        })
    }

    /// The layout of its blocks.
    #[must_use]
    pub const fn layout(&self) -> Layout {
        self.layout
    }

    /// What it has counted; blocks, not objects.
    #[must_use]
    pub const fn figures(&self) -> &Figures {
        &self.figures
    }

    /// Blocks of an object. A pack starts where a chain's length is a multiple of it.
    #[must_use]
    pub const fn pack_blocks(&self) -> usize {
        self.pack_blocks as usize
    }

    /// Stores one pack, in the order of the chain. A pack that is there already is not written again.
    pub async fn put_pack(&self, records: &[Record<'_>]) -> Result<Put, TierError> {
        self.check(records.len(), records.iter().map(|record| &record.key))?;
        let want = self.layout.block_bytes as usize;
        if let Some(wrong) = records.iter().find(|record| record.payload.len() != want) {
            return Err(TierError::WrongLength { got: wrong.payload.len(), want });
        }
        let name = self.name(&records[records.len() - 1].key);
        let blocks = records.len() as u64;
        let bytes = blocks * (HEADER_BYTES as u64 + u64::from(self.layout.block_bytes));
        // A bad one that could not be moved away must not keep a good one out.
        let was_bad = self.bad.lock().names.contains(&name);
        let mode = if was_bad { PutMode::Overwrite } else { PutMode::Create };
        let options = PutOptions { mode, ..PutOptions::default() };
        let call = || {
            let (store, name) = (Arc::clone(&self.store), name.clone());
            // The second copy of the bytes is made when it can be sent, not while it waits.
            let body = encode(records);
            async move {
                let payload = PutPayload::from_bytes(body?);
                Some(store.put_opts(&name, payload, options).await)
            }
        };
        let answer = match self.gate.pass(&self.figures, call).await {
            Called::Done(None) => {
                count(&self.figures.bad_sums);
                return Ok(Put::Refused(Refusal::Broken));
            }
            Called::Done(Some(Ok(_))) => {
                self.bad.lock().forget(&name);
                add(&self.figures.stored, blocks);
                add(&self.figures.written_bytes, bytes);
                return Ok(Put::Stored);
            }
            Called::Done(Some(Err(Error::AlreadyExists { .. } | Error::Precondition { .. }))) => {
                add(&self.figures.present, blocks);
                return Ok(Put::Present);
            }
            Called::Done(Some(Err(error))) => {
                self.fault("write an object", &error);
                Refusal::Failed
            }
            Called::Late => Refusal::Failed,
            Called::Busy => Refusal::Busy,
        };
        add(&self.figures.refused, blocks);
        Ok(Put::Refused(answer))
    }

    /// Whether the store has a pack with these blocks, by its name and length alone; `None` if it does not say.
    pub async fn has_pack(&self, keys: &[BlockKey]) -> Result<Option<bool>, TierError> {
        self.check(keys.len(), keys.iter())?;
        let name = self.name(&keys[keys.len() - 1]);
        // One that is known to be bad is to be written anew.
        if self.bad.lock().names.contains(&name) {
            return Ok(Some(false));
        }
        let want = keys.len() * (HEADER_BYTES + self.layout.block_bytes as usize);
        let call = || {
            let (store, name) = (Arc::clone(&self.store), name.clone());
            async move { store.head(&name).await }
        };
        Ok(match self.gate.pass(&self.figures, call).await {
            Called::Done(Ok(found)) => Some(found.size == want as u64),
            Called::Done(Err(Error::NotFound { .. })) => Some(false),
            Called::Done(Err(error)) => {
                self.fault("look for an object", &error);
                None
            }
            Called::Late | Called::Busy => None,
        })
    }

    /// Reads one pack; `keys` are its blocks in order.
    pub async fn get_pack(&self, keys: &[BlockKey]) -> Result<Fetch, TierError> {
        self.fetch(keys, None).await
    }

    /// The same, and tells as soon as it is known that the store has it, before its bytes are here.
    async fn fetch(
        &self,
        keys: &[BlockKey],
        found: Option<watch::Sender<bool>>,
    ) -> Result<Fetch, TierError> {
        self.check(keys.len(), keys.iter())?;
        let name = self.name(&keys[keys.len() - 1]);
        let blocks = keys.len() as u64;
        if self.bad.lock().names.contains(&name) {
            add(&self.figures.misses, blocks);
            return Ok(Fetch::Miss);
        }
        let want = keys.len() * (HEADER_BYTES + self.layout.block_bytes as usize);
        let call = || {
            let (store, name) = (Arc::clone(&self.store), name.clone());
            async move {
                let answer = store.get(&name).await?;
                // What has another length is not read: it may be anything, and without end.
                if answer.meta.size != want as u64 {
                    return Ok(Bytes::new());
                }
                if let Some(found) = found {
                    found.send_replace(true);
                }
                answer.bytes().await
            }
        };
        match self.gate.pass(&self.figures, call).await {
            Called::Done(Ok(body)) => {
                if let Some(loaded) = self.decode(keys, &body) {
                    add(&self.figures.hits, blocks);
                    add(&self.figures.read_bytes, body.len() as u64);
                    return Ok(Fetch::Hit(loaded));
                }
                count(&self.figures.bad_sums);
                self.quarantine(name).await;
                Ok(Fetch::Bad)
            }
            Called::Done(Err(Error::NotFound { .. })) => {
                add(&self.figures.misses, blocks);
                Ok(Fetch::Miss)
            }
            Called::Done(Err(error)) => {
                self.fault("read an object", &error);
                Ok(Fetch::Failed)
            }
            Called::Late | Called::Busy => Ok(Fetch::Failed),
        }
    }

    /// The longest run of whole packs that the store has of a chain, from its start on or from a later multiple of
    /// the pack, as far as the bytes of one call go. See [`Self::packs`].
    pub async fn load(
        &self,
        namespace: NamespaceId,
        hashes: &[SequenceHash],
    ) -> Result<Run, TierError> {
        let mut run = Run { blocks: Vec::new(), more: false, failed: false };
        let mut packs = std::pin::pin!(self.packs(namespace, hashes));
        while let Some(fetch) = packs.next().await {
            match fetch? {
                Fetch::Hit(blocks) => run.blocks.extend(blocks),
                Fetch::Miss => return Ok(run),
                Fetch::Bad | Fetch::Failed => return Ok(Run { failed: true, ..run }),
            }
        }
        run.more = self.is_more(hashes.len());
        Ok(run)
    }

    /// Whether a chain of so many blocks has more packs than one call gives.
    #[must_use]
    pub const fn is_more(&self, blocks: usize) -> bool {
        blocks / self.pack_blocks() > self.load_packs
    }

    /// The packs of a chain in order, as many as the bytes of one call go; what comes after one that is not a hit is of
    /// no use. The first is asked for alone, so that a chain that is not there costs one request; once the store says
    /// that it has that one, several are fetched at once, and go on while whoever reads this does something with those
    /// that came.
    pub fn packs(
        &self,
        namespace: NamespaceId,
        hashes: &[SequenceHash],
    ) -> impl Stream<Item = Result<Fetch, TierError>> + Send {
        let layout = self.layout.id;
        let key = |hash: &SequenceHash| BlockKey { namespace, hash: *hash, layout };
        // Names first, so that what is waited for borrows none of them and can move between threads.
        let packs: Vec<Vec<BlockKey>> = hashes
            .chunks_exact(self.pack_blocks())
            .take(self.load_packs)
            .map(|pack| pack.iter().map(key).collect())
            .collect();
        let (found, is_found) = watch::channel(false);
        let mut found = Some(found);
        let fetches = packs.into_iter().map(move |keys| {
            // Only the first has it; gone without a word, it means that there is nothing.
            let (found, mut is_found) = (found.take(), is_found.clone());
            async move {
                if found.is_none() && is_found.wait_for(|found| *found).await.is_err() {
                    return Ok(Fetch::Miss);
                }
                self.fetch(&keys, found).await
            }
        });
        futures::stream::iter(fetches).buffered(self.gate.parallel())
    }

    fn check<'a>(
        &self,
        length: usize,
        mut keys: impl Iterator<Item = &'a BlockKey>,
    ) -> Result<(), TierError> {
        if length != self.pack_blocks() {
            return Err(TierError::WrongLength { got: length, want: self.pack_blocks() });
        }
        if keys.any(|key| key.layout != self.layout.id) {
            return Err(TierError::WrongLayout);
        }
        Ok(())
    }

    fn name(&self, key: &BlockKey) -> Path {
        let hash = format!("{:032x}", key.hash.0);
        self.prefix
            .clone()
            .join("v1")
            .join(format!("{:016x}-{}", key.layout.0, self.pack_blocks))
            .join(format!("{:032x}", key.namespace.0))
            .join(&hash[..2])
            .join(hash.as_str())
    }

    fn decode(&self, keys: &[BlockKey], body: &Bytes) -> Option<Vec<Loaded>> {
        let block_bytes = self.layout.block_bytes as usize;
        let mut loaded = Vec::with_capacity(keys.len());
        for (index, key) in keys.iter().enumerate() {
            let at = index * (HEADER_BYTES + block_bytes);
            let header = Header::decode(body.get(at..at + HEADER_BYTES)?)?;
            let from = at + HEADER_BYTES;
            let meant = header.kind == Kind::Block
                && header.key == *key
                && header.slot as usize == index
                && header.length as usize == block_bytes;
            let bytes = body.get(from..from + block_bytes)?;
            if !meant || sum(bytes) != header.sum {
                return None;
            }
            let payload = body.slice(from..from + block_bytes);
            loaded.push(Loaded { key: *key, held: header.held(), payload });
        }
        Some(loaded)
    }

    async fn quarantine(&self, name: Path) {
        count(&self.figures.quarantined);
        tracing::warn!(object = %name, "an object is not what it should be; it is quarantined");
        self.bad.lock().note(name.clone());
        let aside = self.prefix.clone().join("quarantine").join(name.as_ref().replace('/', "_"));
        let moved = || {
            let (store, name) = (Arc::clone(&self.store), name.clone());
            async move {
                store.copy(&name, &aside).await?;
                store.delete(&name).await
            }
        };
        match self.gate.pass(&self.figures, moved).await {
            // Gone from its place, so the next who asks gets a miss, and who has the blocks can store them.
            Called::Done(Ok(())) => self.bad.lock().forget(&name),
            Called::Done(Err(error)) => self.fault("quarantine an object", &error),
            Called::Late | Called::Busy => {}
        }
    }

    fn fault(&self, what: &str, error: &Error) {
        count(&self.figures.faults);
        let kind = match error {
            Error::PermissionDenied { .. } => "permission denied",
            Error::Unauthenticated { .. } => "credentials refused",
            Error::NotFound { .. } => "not found",
            Error::NotSupported { .. } | Error::NotImplemented { .. } => "not supported",
            _ => "no usable answer",
        };
        tracing::warn!(kind, "the store of objects could not {what}");
    }
}

/// The bytes of a pack; `None` if a block is not what its sum says.
fn encode(records: &[Record<'_>]) -> Option<Bytes> {
    let total: usize = records.iter().map(|record| HEADER_BYTES + record.payload.len()).sum();
    let mut body = BytesMut::zeroed(total);
    let mut rest = &mut body[..];
    for (index, record) in records.iter().enumerate() {
        let (head, behind) = rest.split_at_mut(HEADER_BYTES);
        let (payload, behind) = behind.split_at_mut(record.payload.len());
        let mut header = Header::of_slot(Kind::Block, index as u32);
        header.key = record.key;
        header.parent = record.parent;
        header.retention = record.retention;
        header.length = record.payload.len() as u32;
        header.sum = copy_summed(record.payload, payload);
        if record.sum.is_some_and(|given| given != header.sum) {
            return None;
        }
        head.copy_from_slice(&header.encode());
        rest = behind;
    }
    Some(body.freeze())
}
