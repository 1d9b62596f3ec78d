//! The ways by which blocks come in: this machine's tiers, the store, another worker.

use std::pin::pin;
use std::sync::Arc;
use std::time::Instant;

use futures::StreamExt;
use mainstay_engine_abi::limits::TRANSFER_BLOCKS_MAX;
use mainstay_proto::v1;
use mainstay_proto::v1::worker_client::WorkerClient;
use mainstay_tier::{Fetch, Loaded, RemoteTier, Retention};
use mainstay_types::NamespaceId;

use super::bring::{Ended, Load};
use super::cost::{Far, Made};
use super::{BLOCKS_MIN, CHUNK_BYTES, checksum};
use crate::tiers::{Tiers, now_ms};

/// What a message has beside its blocks.
const MESSAGE_SPARE_BYTES: usize = 64 << 10;

impl Load<'_> {
    /// Bytes of a block.
    fn of(&self) -> usize {
        usize::try_from(self.life.info.block_bytes).unwrap_or(usize::MAX).max(1)
    }

    /// Blocks of one import.
    pub(super) fn step(&self) -> usize {
        (CHUNK_BYTES / self.of()).clamp(1, TRANSFER_BLOCKS_MAX as usize)
    }

    /// Takes over what was said of the next blocks, before they are taken in: whoever copies them on knows it then.
    fn inherit(&mut self, said: impl Iterator<Item = Retention>) {
        let from = self.at;
        for (place, said) in (from..).zip(said) {
            self.inherited.note(place, &said, now_ms());
        }
        self.note_inherited(from);
    }

    fn note_inherited(&self, from: usize) {
        let mut wants = self.shared.wants.lock();
        for (place, said) in self.inherited.said().filter(|(place, _)| *place >= from) {
            wants.note(self.blocks[place], &said);
        }
    }

    fn namespace(&self) -> NamespaceId {
        NamespaceId(self.claim.namespace)
    }

    /// From host memory and the disk.
    pub(super) async fn take_local(&mut self, tiers: &Arc<Tiers>) -> Ended {
        let Some(local) = tiers.local() else { return Ended::Source };
        let mut aged = false;
        while self.at < self.blocks.len() {
            let (begun, before) = (Instant::now(), self.at);
            let end = (before + self.step()).min(self.blocks.len());
            let keys = tiers.keys(self.namespace(), &self.blocks[before..end]);
            let since_ms = if aged { None } else { local.since_ms(&keys[0]) };
            let (asked, reading) = (keys.len(), Arc::clone(tiers));
            let read = tokio::task::spawn_blocking(move || {
                reading.local().map(|local| local.read(&keys)).unwrap_or_default()
            });
            let Ok(read) = read.await else { return Ended::Refused };
            let Some(found) = read.found.first() else { return Ended::Source };
            if let Some(since_ms) = since_ms {
                let age = now_ms().saturating_sub(since_ms) as f64 / 1e3;
                let tier = found.tier.name();
                metrics::histogram!("mainstay_tier_age_at_hit_seconds", "tier" => tier).record(age);
                aged = true;
            }
            let came = read.found.len();
            let furthest = read.found.iter().map(|found| found.tier).max().unwrap_or(found.tier);
            let said = read.found.iter().map(|found| found.held.retention);
            self.inherit(said);
            let imported = self.import(came, read.bytes).await;
            let tokens = (self.at - before) as u64 * u64::from(self.life.info.block_tokens);
            let tokens = u32::try_from(tokens).unwrap_or(u32::MAX);
            self.shared.meter.loaded(furthest, tokens, begun.elapsed());
            if let Err(ended) = imported {
                return ended;
            }
            if came < asked {
                return Ended::Source;
            }
        }
        Ended::Source
    }

    /// From the store, as far as whole packs go.
    pub(super) async fn take_remote(&mut self, tiers: &Arc<Tiers>) -> Ended {
        let Some(remote) = tiers.remote() else { return Ended::Source };
        let pack = remote.pack_blocks();
        loop {
            // The pack in whose middle the missing ones begin is read from its start.
            let start = self.at - self.at % pack;
            let whole = (self.blocks.len() - start) / pack * pack;
            if start + whole < self.at + BLOCKS_MIN {
                return Ended::Source;
            }
            let before = self.at;
            let ended = self.take_packs(tiers, remote, start, whole).await;
            let done = self.at == before || !remote.is_more(whole);
            match ended {
                Ok(()) if !done => {}
                Ok(()) => return Ended::Source,
                Err(ended) => return ended,
            }
        }
    }

    /// Packs of one call to the store, each taken in while the next ones are under way.
    async fn take_packs(
        &mut self,
        tiers: &Tiers,
        remote: &RemoteTier,
        start: usize,
        whole: usize,
    ) -> Result<(), Ended> {
        let (begun, blocks) = (Instant::now(), self.blocks);
        let mut packs = pin!(remote.packs(self.namespace(), &blocks[start..start + whole]));
        let (mut place, mut first, mut bytes) = (start, None, 0);
        let ended = loop {
            let fetched = packs.next().await;
            first = first.or_else(|| Some(begun.elapsed()));
            let pack = match fetched {
                Some(Ok(Fetch::Hit(pack))) => pack,
                Some(Ok(Fetch::Miss)) | None => break Ok(()),
                Some(Ok(Fetch::Bad | Fetch::Failed) | Err(_)) => break Err(Ended::Refused),
            };
            bytes += pack.iter().map(|block| block.payload.len()).sum::<usize>();
            if let Some(last) = pack.last() {
                tiers.learn(last.key.hash);
            }
            // Of the pack in whose middle the missing ones begin, the first are there.
            let known = self.at.saturating_sub(place).min(pack.len());
            place += pack.len();
            if let Err(ended) = self.take_pack(&pack[known..]).await {
                break Err(ended);
            }
        };
        let made = Made {
            asked_blocks: whole,
            got_blocks: if remote.is_more(whole) && ended.is_ok() { whole } else { place - start },
            bytes,
            first,
            total: begun.elapsed(),
        };
        self.shared.transfers.rates.learn(Far::Remote, &made, self.shared.now_ms());
        ended
    }

    async fn take_pack(&mut self, pack: &[Loaded]) -> Result<(), Ended> {
        self.inherit(pack.iter().map(|block| block.held.retention));
        for part in pack.chunks(self.step()) {
            let mut bytes = Vec::with_capacity(part.len() * self.of());
            part.iter().for_each(|block| bytes.extend_from_slice(&block.payload));
            self.import(part.len(), bytes).await?;
        }
        Ok(())
    }

    /// From another worker, up to the block before `reach`.
    pub(super) async fn take_from_peer(&mut self, address: &str, reach: usize) -> Ended {
        let Ok(channel) = self.shared.transfers.peer(address) else { return Ended::Refused };
        let most = CHUNK_BYTES.max(self.of()) + MESSAGE_SPARE_BYTES;
        let mut client = WorkerClient::new(channel).max_decoding_message_size(most);
        let (from, begun) = (self.at, Instant::now());
        let wanted = &self.blocks[from..reach];
        let request = v1::ExportBlocksRequest {
            blocks: wanted.iter().flat_map(|block| block.0.to_le_bytes()).collect(),
            kv_layout: self.life.info.kv_layout,
            namespace: self.claim.namespace.to_le_bytes().to_vec().into(),
        };
        let mut request = tonic::Request::new(request);
        self.loading.parent().go_with(request.metadata_mut());
        let mut stream = match client.export_blocks(request).await {
            Ok(reply) => reply.into_inner(),
            Err(status) => {
                tracing::debug!(address, %status, "a source of blocks refused");
                return Ended::Refused;
            }
        };
        let mut first = None;
        let ended = loop {
            let next = stream.message().await;
            first = first.or_else(|| Some(begun.elapsed()));
            match next {
                Ok(Some(chunk)) => {
                    if let Err(ended) = self.take(chunk, reach).await {
                        break ended;
                    }
                }
                Ok(None) => break Ended::Source,
                Err(_) => break Ended::Refused,
            }
        };
        let got = self.at - from;
        let made = Made {
            asked_blocks: reach - from,
            got_blocks: got,
            bytes: got * self.of(),
            first,
            total: begun.elapsed(),
        };
        self.shared.transfers.rates.learn(Far::Peer, &made, self.shared.now_ms());
        ended
    }

    /// Checks a message of another worker and has the engine take it.
    async fn take(&mut self, chunk: v1::ExportedBlocks, reach: usize) -> Result<(), Ended> {
        let count = chunk.count as usize;
        let blocks = &self.blocks[self.at..reach];
        let due = self.of().checked_mul(count);
        let is_whole = count > 0
            && count <= blocks.len()
            && due == Some(chunk.content.len())
            && checksum(blocks[0], &chunk.content) == chunk.checksum;
        if !is_whole {
            tracing::warn!(
                count,
                "blocks from another worker are damaged; they are computed instead"
            );
            return Err(Ended::Damaged);
        }
        let (before, of) = (self.at, self.of());
        self.inherited.note_wire(before, count, &chunk.retention, now_ms());
        self.note_inherited(before);
        let ended = self.import(count, chunk.content.into()).await;
        let taken = self.at - before;
        metrics::counter!("mainstay_worker_transfer_blocks_total", "direction" => "in")
            .increment(taken as u64);
        metrics::counter!("mainstay_worker_transfer_bytes_total", "direction" => "in")
            .increment((taken * of) as u64);
        ended
    }
}
