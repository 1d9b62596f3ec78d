//! Clients that pin: tens of tasks that create, extend, release, read and list, and write down all of it.
//!
//! Each has a client of the control plane of its own and draws from a seed of its own. They know of each other's
//! pins through a shared list of recent ones, so that one reads what another was promised.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Result;
use mainstay_proto::client::ControlPlane;
use mainstay_proto::convert::u128_to_wire;
use mainstay_proto::v1;
use mainstay_proto::v1::pin_write::Change;
use tokio::sync::watch;
use tonic::{Code, Status};

use crate::history::{Answer, Asked, Op, Recorder, Refusal, Spec, Standing, View};
use crate::rng::Rng;

/// How long one operation may try: long enough for a failover, or for some so short that its outcome stays unknown.
const PATIENCE: Duration = Duration::from_secs(4);
const IMPATIENT_MS: std::ops::Range<u64> = 20..600;
const IMPATIENT_PERCENT: u64 = 25;
/// Pins that clients still think of.
const RECENT_MAX: usize = 400;
const TENANTS: [&str; 5] = ["acme", "birch", "cedar", "dune", "elm"];
const NAMESPACES: u64 = 3;
/// What one list answers at most.
const LIST_MAX: usize = 1_000;
/// Pins of one session: fewer than a session may have at once.
const SESSION_PINS_MAX: u64 = 4;

/// How much is asked.
#[derive(Debug, Clone)]
pub struct Load {
    pub clients: u32,
    pub ttl_ms: std::ops::Range<u64>,
    /// Between two operations of one client.
    pub pause_ms: std::ops::Range<u64>,
}

struct Shared {
    recorder: Arc<Recorder>,
    recent: Mutex<VecDeque<Arc<Spec>>>,
}

/// A session whose conversation grows.
struct Session {
    spec: Spec,
    pins: u64,
}

struct Client {
    number: u32,
    plane: ControlPlane,
    rng: Rng,
    shared: Arc<Shared>,
    session: Option<Session>,
    load: Load,
}

/// Runs all clients until `stop` says so, then lets each read what it still knows.
pub async fn run(
    addresses: &[String],
    load: &Load,
    rng: &mut Rng,
    recorder: Arc<Recorder>,
    stop: watch::Receiver<bool>,
) -> Result<()> {
    let shared = Arc::new(Shared { recorder, recent: Mutex::default() });
    let mut tasks = Vec::new();
    for number in 0..load.clients {
        let client = Client {
            number,
            plane: ControlPlane::new(addresses)?,
            rng: rng.fork(),
            shared: Arc::clone(&shared),
            session: None,
            load: load.clone(),
        };
        tasks.push(tokio::spawn(client.run(stop.clone())));
    }
    for task in tasks {
        task.await?;
    }
    Ok(())
}

impl Client {
    async fn run(mut self, stop: watch::Receiver<bool>) {
        while !*stop.borrow() {
            let asked = self.draw();
            self.perform(asked).await;
            tokio::time::sleep(self.rng.millis(self.load.pause_ms.clone())).await;
        }
        // Everything is whole again: the last sights of the last promises.
        for tenant in TENANTS {
            self.perform(Asked::List { tenant: tenant.to_owned() }).await;
        }
    }

    fn draw(&mut self) -> Asked {
        let dice = self.rng.pick(0..100);
        let recent = self.recent();
        match (dice, recent) {
            (0..20, _) | (_, None) => Asked::Create(self.invent()),
            (20..27, Some(recent)) => Asked::Create(recent),
            (27..42, Some(recent)) => {
                let ttl_ms = self.rng.pick(self.load.ttl_ms.clone());
                Asked::Extend { id: recent.id, ttl_ms }
            }
            (42..48, Some(recent)) => Asked::Release { id: recent.id },
            (48..85, Some(recent)) => Asked::Read { id: recent.id },
            _ => Asked::List { tenant: (*self.rng.one_of(&TENANTS)).to_owned() },
        }
    }

    /// A pin of the recent ones, the later the likelier.
    fn recent(&mut self) -> Option<Arc<Spec>> {
        let recent = self.shared.recent.lock().expect("no holder panics");
        let count = recent.len() as u64;
        if count == 0 {
            return None;
        }
        let back = self.rng.pick(0..count).min(self.rng.pick(0..count));
        recent.get(usize::try_from(count - 1 - back).ok()?).cloned()
    }

    /// A pin that nobody has asked for: of a session that goes on, of a new one, or of none.
    fn invent(&mut self) -> Arc<Spec> {
        let goes_on = self.session.as_ref().is_some_and(|s| s.pins < SESSION_PINS_MAX);
        let mut spec = match self.session.take() {
            Some(mut session) if goes_on && self.rng.percent(60) => {
                let more = self.rng.pick(1..4);
                session.spec.blocks.extend((0..more).map(|_| self.rng.next_u128()));
                session.spec.priority += u32::from(self.rng.percent(20));
                session.pins += 1;
                let spec = session.spec.clone();
                self.session = Some(session);
                spec
            }
            _ => self.begin(),
        };
        spec.id = self.rng.next_u128();
        spec.ttl_ms = self.rng.pick(self.load.ttl_ms.clone());
        let spec = Arc::new(spec);
        let mut recent = self.shared.recent.lock().expect("no holder panics");
        recent.push_back(Arc::clone(&spec));
        if recent.len() > RECENT_MAX {
            recent.pop_front();
        }
        drop(recent);
        spec
    }

    fn begin(&mut self) -> Spec {
        let owned = self.rng.percent(60);
        let owner =
            if owned { format!("s{}-{:x}", self.number, self.rng.draw()) } else { String::new() };
        let blocks = self.rng.pick(1..20);
        let spec = Spec {
            id: 0,
            tenant: (*self.rng.one_of(&TENANTS)).to_owned(),
            namespace: u128::from(self.rng.pick(1..NAMESPACES + 1)),
            owner,
            blocks: (0..blocks).map(|_| self.rng.next_u128()).collect(),
            priority: u32::try_from(self.rng.pick(0..90)).expect("less than 90"),
            copies_min: u32::try_from(self.rng.pick(1..3)).expect("1 or 2"),
            ttl_ms: 1,
        };
        self.session = owned.then(|| Session { spec: spec.clone(), pins: 1 });
        spec
    }

    async fn perform(&mut self, asked: Asked) {
        let mut attempts = 0;
        let invoked_us = self.shared.recorder.now_us();
        let impatient = self.rng.percent(IMPATIENT_PERCENT);
        let patience = if impatient { self.rng.millis(IMPATIENT_MS) } else { PATIENCE };
        let answer = ask(&self.plane, &asked, &mut attempts, patience).await;
        let returned_us = self.shared.recorder.now_us();
        let op = Op { client: self.number, asked, invoked_us, returned_us, attempts, answer };
        self.shared.recorder.push(op);
    }
}

/// A pin's request on the wire.
pub fn on_wire(spec: &Spec) -> v1::PutPin {
    let blocks: Vec<u8> = spec.blocks.iter().flat_map(|block| block.to_le_bytes()).collect();
    v1::PutPin {
        id: u128_to_wire(spec.id),
        tenant: spec.tenant.clone(),
        namespace: u128_to_wire(spec.namespace),
        owner: spec.owner.clone(),
        blocks: blocks.into(),
        prefix_tokens: u32::try_from(spec.blocks.len() * 16).unwrap_or(u32::MAX),
        ttl_ms: spec.ttl_ms,
        priority: spec.priority,
        copies_min: spec.copies_min,
        tokens: None,
        ..v1::PutPin::default()
    }
}

async fn ask(
    plane: &ControlPlane,
    asked: &Asked,
    attempts: &mut u32,
    patience: Duration,
) -> Answer {
    let reply = match asked {
        // As gateways do it, and below as others do.
        Asked::Create(spec) if spec.id.is_multiple_of(2) => {
            plane.write_pin_counting(patience, Change::Put(on_wire(spec)), attempts).await
        }
        Asked::Extend { id, ttl_ms } if id.is_multiple_of(2) => {
            let request = v1::ExtendPin { id: u128_to_wire(*id), ttl_ms: *ttl_ms };
            plane.write_pin_counting(patience, Change::Extend(request), attempts).await
        }
        Asked::Release { id } if id.is_multiple_of(2) => {
            let request = v1::ReleasePin { id: u128_to_wire(*id) };
            plane.write_pin_counting(patience, Change::Release(request), attempts).await
        }
        Asked::Create(spec) => {
            let request = on_wire(spec);
            let call = plane.call(patience, |mut c| {
                *attempts += 1;
                let request = request.clone();
                async move { c.create_pin(request).await }
            });
            call.await
        }
        Asked::Extend { id, ttl_ms } => {
            let request = v1::ExtendPin { id: u128_to_wire(*id), ttl_ms: *ttl_ms };
            let call = plane.call(patience, |mut c| {
                *attempts += 1;
                let request = request.clone();
                async move { c.extend_pin(request).await }
            });
            call.await
        }
        Asked::Release { id } => {
            let request = v1::ReleasePin { id: u128_to_wire(*id) };
            let call = plane.call(patience, |mut c| {
                *attempts += 1;
                let request = request.clone();
                async move { c.release_pin(request).await }
            });
            call.await
        }
        Asked::Read { id } => {
            let request = v1::GetPinRequest { id: u128_to_wire(*id), local: false };
            let call = plane.call(patience, |mut c| {
                *attempts += 1;
                let request = request.clone();
                async move { c.get_pin(request).await }
            });
            call.await
        }
        Asked::List { tenant } => return list(plane, tenant, attempts, patience).await,
    };
    match reply {
        Ok(v1::PinReply { pin: Some(pin), log_index, .. }) => {
            Answer::Pin { view: view(&pin), log_index }
        }
        Ok(_) => Answer::Refused(Refusal::Other("an answer without a pin".into())),
        Err(status) => refusal(asked, &status),
    }
}

async fn list(
    plane: &ControlPlane,
    tenant: &str,
    attempts: &mut u32,
    patience: Duration,
) -> Answer {
    let request = v1::ListPinsRequest { tenant: tenant.to_owned(), ..Default::default() };
    let call = plane.call(patience, |mut c| {
        *attempts += 1;
        let request = request.clone();
        async move { c.list_pins(request).await }
    });
    match call.await {
        Ok(reply) => {
            let pins: Vec<(u128, View)> =
                reply.pins.iter().filter_map(|pin| Some((id_of(pin)?, view(pin)))).collect();
            let whole = pins.len() < LIST_MAX;
            Answer::Pins { pins, log_index: reply.log_index, whole }
        }
        Err(status) => refusal(&Asked::List { tenant: tenant.to_owned() }, &status),
    }
}

fn refusal(asked: &Asked, status: &Status) -> Answer {
    match (asked, status.code()) {
        // The plane gave up trying.
        (_, Code::Unavailable | Code::Cancelled | Code::Unknown | Code::DeadlineExceeded) => {
            Answer::Unknown
        }
        // It was made, and has ended before the answer was put together.
        (Asked::Create(_), Code::NotFound) => Answer::Unknown,
        (_, Code::NotFound) => Answer::Refused(Refusal::NotFound),
        (Asked::Extend { .. }, Code::FailedPrecondition) => Answer::Refused(Refusal::Ended),
        (_, code) => Answer::Refused(Refusal::Other(format!("{code:?}: {}", status.message()))),
    }
}

fn id_of(pin: &v1::Pin) -> Option<u128> {
    let id: &[u8] = &pin.request.as_ref()?.id;
    id.try_into().ok().map(u128::from_le_bytes)
}

fn view(pin: &v1::Pin) -> View {
    let by = pin.reason.strip_prefix("superseded by p-");
    let by = by.and_then(|rest| u128::from_str_radix(rest.get(..32)?, 16).ok());
    let standing = match (pin.state.as_str(), by) {
        ("expired", _) => Standing::Expired,
        ("released", Some(_)) => Standing::Superseded,
        ("released", None) => Standing::Released,
        ("denied", _) => Standing::Denied,
        _ => Standing::Live,
    };
    View { standing, by, created_index: pin.created_index }
}
