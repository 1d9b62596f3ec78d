//! The workers that this gateway can reach: one channel, one load stream and one description each.
//!
//! Membership comes from the replica; a worker joins the table once it has described itself, leaves it when its
//! epoch is fenced, and is passed over for a moment after a failed attempt.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mainstay_block::Pressure;
use mainstay_proto::client::{Connector, Whole};
use mainstay_proto::v1;
use mainstay_proto::v1::worker_client::WorkerClient;
use mainstay_types::{Epoch, Region, WorkerId};
use parking_lot::{Mutex, RwLock};
use tokio::task::JoinHandle;

use crate::model::{ModelCard, PromptMemory};
use crate::replica::Replica;
use crate::retention::Flow;

/// A prompt of a million tokens, and a tokenizer file of tens of megabytes, fit.
pub(crate) const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// Named models that one gateway serves at most.
const MODELS_MAX: usize = 64;
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// How long a worker is passed over after an attempt on it failed.
const SUSPECT_FOR: Duration = Duration::from_millis(1_000);

/// One worker, as seen from here.
pub(crate) struct WorkerEntry {
    pub(crate) id: WorkerId,
    pub(crate) epoch: Epoch,
    pub(crate) name: String,
    /// Where others reach it.
    pub(crate) address: String,
    pub(crate) model: String,
    pub(crate) revision: String,
    pub(crate) region: Region,
    pub(crate) client: WorkerClient<Whole>,
    /// The last load, and when it came; `None` while its stream is down.
    load: RwLock<(v1::Load, Option<Instant>)>,
    suspect_until: RwLock<Option<Instant>>,
    flow: Mutex<Flow>,
    block_tokens: u32,
}

impl WorkerEntry {
    /// How much its memory is asked for.
    pub(crate) fn pressure(&self) -> Pressure {
        self.flow.lock().pressure()
    }

    /// Passes this worker over for a moment.
    pub(crate) fn suspect(&self) {
        *self.suspect_until.write() = Some(Instant::now() + SUSPECT_FOR);
    }

    /// Whether requests may be sent to it now.
    pub(crate) fn routable(&self) -> bool {
        let suspected = self.suspect_until.read().is_some_and(|until| Instant::now() < until);
        let (load, heard) = &*self.load.read();
        heard.is_some() && !suspected && !load.draining
    }

    /// What it last said of its load, and when.
    pub(crate) fn load(&self) -> (v1::Load, Option<Instant>) {
        *self.load.read()
    }
}

struct Slot {
    entry: Arc<WorkerEntry>,
    task: JoinHandle<()>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The table of workers and of the models that they serve.
#[derive(Clone)]
pub(crate) struct Workers {
    inner: Arc<Inner>,
}

struct Inner {
    replica: Replica,
    connector: Connector,
    /// How much each model may remember of prompts.
    prompt_memory: PromptMemory,
    slots: RwLock<HashMap<WorkerId, Slot>>,
    models: RwLock<HashMap<String, Arc<ModelCard>>>,
    /// Why a live worker is not in the table, for `/readyz`.
    troubles: RwLock<HashMap<WorkerId, String>>,
}

impl Workers {
    /// An empty table, which [`Workers::follow`] fills.
    pub(crate) fn new(replica: Replica, connector: Connector, prompt_memory: PromptMemory) -> Self {
        let inner = Inner {
            replica,
            connector,
            prompt_memory,
            slots: RwLock::default(),
            models: RwLock::default(),
            troubles: RwLock::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// How much each model may remember of prompts.
    pub(crate) fn prompt_memory(&self) -> PromptMemory {
        self.inner.prompt_memory
    }

    /// The workers of one model's revision: another has other tokens.
    pub(crate) fn of_model(&self, model: &str, revision: &str) -> Vec<Arc<WorkerEntry>> {
        let slots = self.inner.slots.read();
        let mut found: Vec<_> = slots
            .values()
            .filter(|s| s.entry.model == model && s.entry.revision == revision)
            .map(|s| Arc::clone(&s.entry))
            .collect();
        found.sort_by_key(|e| e.id);
        found
    }

    /// The worker of that number.
    pub(crate) fn get(&self, id: WorkerId) -> Option<Arc<WorkerEntry>> {
        self.inner.slots.read().get(&id).map(|slot| Arc::clone(&slot.entry))
    }

    /// All workers, by number.
    pub(crate) fn all(&self) -> Vec<Arc<WorkerEntry>> {
        let slots = self.inner.slots.read();
        let mut found: Vec<_> = slots.values().map(|s| Arc::clone(&s.entry)).collect();
        found.sort_by_key(|e| e.id);
        found
    }

    /// Enters a worker that can take requests, as if it had described itself.
    #[cfg(test)]
    pub(crate) fn test_enter(&self, id: WorkerId, address: &str) {
        let channel = (self.inner.connector)(address).expect("an address");
        let entry = Arc::new(WorkerEntry {
            id,
            epoch: Epoch(1),
            name: format!("w{}", id.0),
            address: address.to_owned(),
            model: "m".to_owned(),
            revision: "r".to_owned(),
            region: Region::default(),
            client: WorkerClient::new(Whole::new(channel)),
            load: RwLock::new((v1::Load::default(), Some(Instant::now()))),
            suspect_until: RwLock::new(None),
            flow: Mutex::default(),
            block_tokens: 16,
        });
        let task = tokio::spawn(std::future::pending());
        self.inner.slots.write().insert(id, Slot { entry, task });
    }

    /// A model that some worker serves.
    pub(crate) fn model(&self, name: &str) -> Option<Arc<ModelCard>> {
        self.inner.models.read().get(name).cloned()
    }

    /// The names of all models, sorted.
    pub(crate) fn model_names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.inner.models.read().keys().cloned().collect();
        names.sort();
        names
    }

    /// Whether any worker can take a request.
    pub(crate) fn any_routable(&self) -> bool {
        self.routable_count() > 0
    }

    /// How many workers can take a request.
    pub(crate) fn routable_count(&self) -> usize {
        self.inner.slots.read().values().filter(|s| s.entry.routable()).count()
    }

    /// What keeps live workers out of the table.
    pub(crate) fn troubles(&self) -> Vec<String> {
        let mut all: Vec<_> = self.inner.troubles.read().values().cloned().collect();
        all.sort();
        all
    }

    /// Keeps the table equal to the replica's live workers, for ever.
    pub(crate) async fn follow(self) {
        let mut changes = self.inner.replica.changes();
        loop {
            self.reconcile();
            if changes.changed().await.is_err() {
                return;
            }
            // Entries come in bursts; once in a while is enough for membership.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn reconcile(&self) {
        let live: HashMap<WorkerId, (Epoch, String, String)> = self.inner.replica.read(|machine| {
            let live = machine.workers().filter(|w| w.is_live());
            live.map(|w| (w.id, (w.epoch, w.address.clone(), w.name.clone()))).collect()
        });
        let mut slots = self.inner.slots.write();
        slots.retain(|id, slot| live.get(id).is_some_and(|(epoch, ..)| *epoch == slot.entry.epoch));
        self.inner.troubles.write().retain(|id, _| live.contains_key(id));
        for (id, (epoch, address, name)) in live {
            if slots.contains_key(&id) {
                continue;
            }
            let Ok(channel) = (self.inner.connector)(&address) else {
                let trouble = format!("worker {name} has the bad address {address:?}");
                self.inner.troubles.write().insert(id, trouble);
                continue;
            };
            let known = |m: &mainstay_state::Machine| {
                m.worker(id).map(|w| (w.model.clone(), w.region.clone()))
            };
            let Some((spec, region)) = self.inner.replica.read(known) else { continue };
            let client = WorkerClient::new(Whole::new(channel))
                .max_decoding_message_size(MESSAGE_BYTES_MAX)
                .max_encoding_message_size(MESSAGE_BYTES_MAX);
            let entry = Arc::new(WorkerEntry {
                id,
                epoch,
                name,
                address,
                model: spec.name,
                revision: spec.revision,
                region,
                client,
                load: RwLock::default(),
                suspect_until: RwLock::new(None),
                flow: Mutex::default(),
                block_tokens: spec.block_tokens,
            });
            let task = tokio::spawn(self.clone().tend(Arc::clone(&entry)));
            slots.insert(id, Slot { entry, task });
        }
    }

    /// Describes one worker, then follows its load for as long as its slot lives.
    async fn tend(self, entry: Arc<WorkerEntry>) {
        loop {
            if let Err(reason) = self.describe(&entry).await {
                self.inner
                    .troubles
                    .write()
                    .insert(entry.id, format!("worker {}: {reason}", entry.name));
            } else {
                self.inner.troubles.write().remove(&entry.id);
                self.follow_load(&entry).await;
                entry.load.write().1 = None;
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    async fn describe(&self, entry: &WorkerEntry) -> Result<(), String> {
        let mut client = entry.client.clone();
        let call = client.describe(v1::DescribeRequest { with_files: false });
        let brief = call.await.map_err(|s| s.message().to_owned())?.into_inner();
        let known = self.model(&brief.model);
        let same = |m: &ModelCard| {
            m.revision == brief.revision
                && m.block_tokens == brief.block_tokens.max(1)
                && m.context_tokens_max == brief.context_tokens_max
        };
        if known.as_deref().is_some_and(same) {
            return Ok(());
        }
        if known.is_none() && self.inner.models.read().len() >= MODELS_MAX {
            return Err(format!("more than {MODELS_MAX} models"));
        }
        let call = client.describe(v1::DescribeRequest { with_files: true });
        let full = call.await.map_err(|s| s.message().to_owned())?.into_inner();
        let memory = self.inner.prompt_memory;
        // Reading a large tokenizer takes seconds of CPU.
        let card = tokio::task::spawn_blocking(move || ModelCard::new(&full, memory))
            .await
            .map_err(|e| e.to_string())?
            .map_err(|e| e.to_string())?;
        self.inner.models.write().insert(card.name.clone(), Arc::new(card));
        Ok(())
    }

    async fn follow_load(&self, entry: &WorkerEntry) {
        let mut client = entry.client.clone();
        let Ok(reply) = client.watch_load(v1::WatchLoadRequest {}).await else { return };
        let mut stream = reply.into_inner();
        while let Ok(Some(load)) = stream.message().await {
            let now = Instant::now();
            entry.flow.lock().take(&load, entry.block_tokens, now);
            *entry.load.write() = (load, Some(now));
        }
    }
}
