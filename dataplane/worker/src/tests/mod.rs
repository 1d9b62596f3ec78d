//! Tests of the whole worker, between a control plane in memory and an engine on strings.
//!
//! The control plane runs the real state machine, so that what it refuses here it refuses there too.

mod events;
pub(crate) mod fake_control;
pub(crate) mod fake_engine;
mod fake_streams;
pub(crate) mod hosted;
mod keeper_loads;
mod pins;
mod probes;
mod recompute;
mod requests;
mod schedules;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use mainstay_proto::tokens::pack;
use mainstay_proto::v1;
use mainstay_proto::v1::worker_client::WorkerClient;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tonic::transport::Channel;

use crate::config::Settings;
use crate::events::frames::FrameLimits;
use crate::lifecycle::{WorkerHandle, start_with};
use fake_control::FakeControl;
use fake_engine::{FakeEngine, FakeOpener};

/// What is expected to happen happens within this time, on a busy machine too.
const SOON: Duration = Duration::from_secs(20);

/// Waits until something holds.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = tokio::time::Instant::now() + SOON;
    while !holds() {
        assert!(tokio::time::Instant::now() < end, "{what}: not within {SOON:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The sum of a counter's series that have all of these labels, such as `from="peer"`; of all tests in this process.
pub(crate) fn counted(name: &str, labels: &[&str]) -> u64 {
    static HANDLE: OnceLock<PrometheusHandle> = OnceLock::new();
    let handle = HANDLE.get_or_init(|| {
        PrometheusBuilder::new().install_recorder().expect("this process has no other recorder")
    });
    let rendered = handle.render();
    let is_series = |line: &&str| {
        line.split(['{', ' ']).next() == Some(name) && labels.iter().all(|l| line.contains(l))
    };
    let values = rendered.lines().filter(is_series).filter_map(|line| line.rsplit(' ').next());
    values.filter_map(|value| value.parse::<u64>().ok()).sum()
}

/// A worker between its two fakes.
pub(crate) struct Stage {
    control: FakeControl,
    opener: Arc<FakeOpener>,
    worker: WorkerHandle,
}

fn settings(control: &FakeControl) -> Settings {
    Settings {
        name: "w1".into(),
        listen: ([127, 0, 0, 1], 0).into(),
        advertise: None,
        control: control.addresses(),
        region: mainstay_types::Region::default(),
        identity: None,
        insecure: false,
        engine_config: serde_json::Map::new(),
        model_name: "toy".into(),
        revision: "r1".into(),
        model_files: vec![("tokenizer.json".into(), Bytes::from_static(b"{}"))],
        requests_max: 2,
        start_timeout_ms: 20_000,
        drain_timeout_ms: 20_000,
        engine_restarts_max: 3,
        tiers: crate::tiers::TierConfig::default(),
    }
}

impl Stage {
    pub(crate) async fn set() -> Self {
        Self::set_with(|_| {}, FrameLimits::standard()).await
    }

    async fn set_with(change: impl FnOnce(&mut Settings), limits: FrameLimits) -> Self {
        Self::set_before(FakeControl::start().await, change, limits).await
    }

    /// With `members` members, or in the plain form of the index.
    async fn set_among(members: usize, plain: bool, limits: FrameLimits) -> Self {
        Self::set_before(FakeControl::start_with(members, plain).await, |_| {}, limits).await
    }

    async fn set_before(
        control: FakeControl,
        change: impl FnOnce(&mut Settings),
        limits: FrameLimits,
    ) -> Self {
        let opener = Arc::new(FakeOpener::default());
        let mut settings = settings(&control);
        change(&mut settings);
        let worker = start_with(settings, Arc::clone(&opener) as _, limits).await.expect("starts");
        Self { control, opener, worker }
    }

    pub(crate) fn engine(&self) -> Arc<FakeEngine> {
        self.opener.current()
    }

    pub(crate) fn client(&self) -> WorkerClient<Channel> {
        let channel = mainstay_proto::client::channel(&self.worker.address().to_string());
        WorkerClient::new(channel.expect("an address"))
    }

    pub(crate) fn request() -> v1::GenerateRequest {
        v1::GenerateRequest {
            namespace: Bytes::from_static(&[1; 16]),
            tokens: pack(&[1, 2, 3, 4, 5]),
            sampling: Some(v1::Sampling {
                top_p: 1.0,
                repetition_penalty: 1.0,
                tokens_max: 5,
                ..v1::Sampling::default()
            }),
            ..v1::GenerateRequest::default()
        }
    }
}
