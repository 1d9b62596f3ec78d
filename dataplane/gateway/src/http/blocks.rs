//! `GET /v1/blocks`: who holds a session's prefix, or one block, in which tiers and under which pins.
//!
//! Only the caller's own are found: a session is looked up under its tenant, and a hash in its tenant's namespaces, so that
//! a name that was guessed or overheard tells nothing of anybody else. What a pool thinks of a block, its class and its
//! leases, is not in the index; `class` says what is: pinned, held once or held by several.

use std::collections::HashMap;

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use mainstay_chat::{ApiError, ErrorKind};
use mainstay_index::{BlockKey, BlockName, HeldStretch, RunSnapshot, TierOverlap};
use mainstay_types::{NamespaceId, SequenceHash, TenantId, Tier, WorkerId};
use serde_json::{Value, json};

use super::App;
use super::admin::AdminError;
use super::console::{INDEX_WALKED_MAX, own_namespaces, with_runs};
use super::params::Params;
use super::sessions::key_of;

/// Pins in one answer at most.
const PINS_SHOWN_MAX: usize = 64;

#[derive(serde::Deserialize)]
pub(super) struct Query {
    session: Option<String>,
    hash: Option<String>,
}

pub(super) async fn find(
    State(app): State<App>,
    headers: HeaderMap,
    Params(query): Params<Query>,
) -> Result<Json<Value>, AdminError> {
    let admitted = app.admit(&headers)?;
    let tenant = admitted.tenant.clone();
    match (query.session, query.hash) {
        (Some(session), None) => Ok(Json(of_session(&app, &tenant, &session)?)),
        (None, Some(hash)) => {
            let hash = parse_hash(&hash)?;
            let walk = move || of_hash(&app, &tenant, hash);
            let found = tokio::task::spawn_blocking(walk).await;
            let found = found.map_err(|e| ApiError::new(ErrorKind::Internal, e.to_string()))?;
            Ok(Json(found?))
        }
        _ => Err(ApiError::invalid("session", "give a session, or a hash of a block").into()),
    }
}

fn parse_hash(text: &str) -> Result<SequenceHash, ApiError> {
    let digits = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let hash = digits.then(|| u128::from_str_radix(text, 16).ok()).flatten();
    hash.map(SequenceHash).ok_or_else(|| {
        ApiError::invalid("hash", "expected 32 hexadecimal digits, as a pin's last_block has them")
    })
}

/// The prefix of a session's last turn.
fn of_session(app: &App, tenant: &TenantId, session: &str) -> Result<Value, ApiError> {
    let key = key_of(app, tenant, session)?;
    let prefix = app.retainer.known_prefix(tenant, &key).ok_or_else(|| {
        let message = "what this session's prompt was is not known here (it has had no turn, has ended, or was forgotten for want of room)";
        ApiError::new(ErrorKind::NotFound, message).with_code("prefix_unknown")
    })?;
    let mut held = Vec::new();
    app.replica.index_reader().tiers_into(&prefix.blocks, &mut held);
    held.retain(|overlap| overlap.blocks[3] > 0);
    held.sort_unstable_by_key(|overlap| (std::cmp::Reverse(overlap.blocks[3]), overlap.worker));
    let reach = held.first().map_or(0, |overlap| overlap.blocks[3]) as usize;
    let pins = pins_of(app, tenant, &prefix.blocks);
    let last = prefix.blocks.last().map(|hash| format!("{:032x}", hash.0));
    Ok(json!({
        "object": "blocks.found",
        "session": *key,
        "hash": last,
        "blocks": prefix.blocks.len(),
        "depth": prefix.blocks.len(),
        "block_tokens": prefix.block_tokens,
        "reach": reach,
        "class": class(!pins.is_empty(), held.len()),
        "holders": held.iter().map(|overlap| holder(app, overlap.worker, stretches(overlap))).collect::<Vec<_>>(),
        "pins": pins,
    }))
}

/// How many blocks of a prefix end in each tier: depths are told of a tier and all that are nearer.
fn stretches(overlap: &TierOverlap) -> [u64; 4] {
    let mut nearer = 0;
    overlap.blocks.map(|depth| {
        let own = depth.saturating_sub(nearer);
        nearer = nearer.max(depth);
        u64::from(own)
    })
}

fn holder(app: &App, worker: WorkerId, tiers: [u64; 4]) -> Value {
    let name = app.replica.read(|m| m.worker(worker).map(|w| w.name.clone()));
    let held = Tier::ALL.into_iter().zip(tiers).filter(|(_, blocks)| *blocks > 0);
    json!({
        "worker": name, "worker_id": worker.0,
        "blocks": tiers.iter().sum::<u64>(),
        "tiers": held.map(|(tier, blocks)| json!({"tier": tier.name(), "blocks": blocks})).collect::<Vec<_>>(),
    })
}

fn class(pinned: bool, holders: usize) -> &'static str {
    match (pinned, holders) {
        (_, 0) => "nowhere",
        (true, _) => "pinned",
        (false, 1) => "sole",
        (false, _) => "shared",
    }
}

/// The tenant's live pins that name leading blocks of a prefix, and how many.
fn pins_of(app: &App, tenant: &TenantId, blocks: &[SequenceHash]) -> Vec<Value> {
    let covers = |pin: &[SequenceHash]| pin.iter().zip(blocks).take_while(|(a, b)| a == b).count();
    live_pins(app, tenant, |pin| Some(covers(pin)).filter(|covered| *covered > 0))
}

fn live_pins(
    app: &App,
    tenant: &TenantId,
    covered: impl Fn(&[SequenceHash]) -> Option<usize>,
) -> Vec<Value> {
    app.replica.read(|machine| {
        let own = machine.pins().filter(|pin| pin.is_live() && pin.request.tenant == *tenant);
        let told = own.filter_map(|pin| {
            let covered = covered(&pin.request.blocks)?;
            Some(json!({
                "id": pin.request.id.to_string(), "state": pin.state.name(), "blocks": covered,
                "priority": pin.request.priority,
            }))
        });
        told.take(PINS_SHOWN_MAX).collect()
    })
}

/// One block, wherever it stands in the caller's chains.
fn of_hash(app: &App, tenant: &TenantId, hash: SequenceHash) -> Result<Value, ApiError> {
    let own = own_namespaces(app, tenant);
    let key = BlockKey(hash.key());
    let (depth, tiers) = with_runs(app, |runs| {
        let chains = Chains::of(runs, |namespace| own.contains(&namespace));
        (chains.depth(key), chains.holders(key))
    })
    .ok_or_else(|| {
        let text = format!(
            "the index has more than {INDEX_WALKED_MAX} entries, too many to look a hash up; ask for the session instead"
        );
        ApiError::new(ErrorKind::Unavailable, text)
    })?;
    let pins =
        live_pins(app, tenant, |pin| pin.iter().position(|block| *block == hash).map(|at| at + 1));
    Ok(json!({
        "object": "blocks.found",
        "session": null,
        "hash": format!("{:032x}", hash.0),
        "blocks": 1,
        "depth": depth,
        "block_tokens": null,
        "reach": usize::from(!tiers.is_empty()),
        "class": class(!pins.is_empty(), tiers.len()),
        "holders": tiers.into_iter().map(|(worker, tiers)| holder(app, worker, tiers)).collect::<Vec<_>>(),
        "pins": pins,
    }))
}

/// The caller's runs, by their blocks.
struct Chains<'a> {
    runs: &'a [RunSnapshot],
    places: HashMap<u64, (usize, usize)>,
}

impl<'a> Chains<'a> {
    fn of(runs: &'a [RunSnapshot], is_own: impl Fn(NamespaceId) -> bool) -> Self {
        let own = runs.iter().enumerate().filter(|(_, run)| is_own(run.namespace));
        let places = own.flat_map(|(n, run)| {
            run.keys.iter().enumerate().map(move |(at, key)| (key.0, (n, at)))
        });
        Self { runs, places: places.collect() }
    }

    /// How many blocks a chain has up to this one, as far as the index knows those before it: a run's parent is a block
    /// of another run, or the namespace itself.
    fn depth(&self, key: BlockKey) -> Option<u64> {
        let (mut n, mut at) = *self.places.get(&key.0)?;
        let mut depth = 0;
        // No chain has more runs than there are.
        for _ in 0..=self.runs.len() {
            depth += at as u64 + 1;
            let run = &self.runs[n];
            if run.parent == run.namespace.0 as u64 {
                return Some(depth);
            }
            (n, at) = *self.places.get(&run.parent)?;
        }
        None
    }

    /// Who holds it, and in which tiers.
    fn holders(&self, key: BlockKey) -> Vec<(WorkerId, [u64; 4])> {
        let Some((n, at)) = self.places.get(&key.0) else { return Vec::new() };
        let holds = |(worker, stretches): &(WorkerId, Vec<HeldStretch>)| {
            let mut held = stretches.iter();
            let stretch = held.find(|s| (s.from as usize..s.to as usize).contains(at))?;
            let mut tiers = [0; 4];
            stretch.tiers.iter().for_each(|tier| tiers[tier.number() as usize] = 1);
            Some((*worker, tiers))
        };
        self.runs[*n].holders.iter().filter_map(holds).collect()
    }
}

#[cfg(test)]
mod tests {
    use mainstay_index::TierSet;

    use super::*;

    fn run(parent: u64, first: u64) -> RunSnapshot {
        let stretch = HeldStretch { from: 1, to: 4, tiers: TierSet::only(Tier::Host) };
        RunSnapshot {
            namespace: NamespaceId(7 << 64 | 1),
            parent,
            keys: (first..first + 4).map(BlockKey).collect(),
            holders: vec![(WorkerId(3), vec![stretch])],
        }
    }

    #[test]
    fn a_block_is_found_with_its_depth_and_holders() {
        let runs = [run(13, 20), run(1, 10), run(99, 30)];
        let chains = Chains::of(&runs, |_| true);
        let depth = |key| chains.depth(BlockKey(key));
        assert_eq!(depth(12), Some(3));
        assert_eq!(depth(21), Some(6), "behind the fourth of the other");
        assert_eq!((depth(30), depth(77)), (None, None), "what is before it is not known");
        let holders = |key| chains.holders(BlockKey(key));
        assert_eq!(holders(21), [(WorkerId(3), [0, 1, 0, 0])]);
        assert_eq!((holders(20), holders(77)), (vec![], vec![]));
        let nobodys = Chains::of(&runs, |_| false);
        assert_eq!((nobodys.depth(BlockKey(12)), nobodys.holders(BlockKey(12))), (None, vec![]));
        // Damage that makes a circle ends all the same.
        let circle = [run(23, 20)];
        assert_eq!(Chains::of(&circle, |_| true).depth(BlockKey(20)), None);
    }

    #[test]
    fn depths_of_tiers_become_stretches() {
        let overlap = TierOverlap { worker: WorkerId(1), blocks: [4, 9, 9, 12] };
        assert_eq!(stretches(&overlap), [4, 5, 0, 3]);
        assert_eq!((class(true, 2), class(true, 0)), ("pinned", "nowhere"));
        assert_eq!((class(false, 1), class(false, 3)), ("sole", "shared"));
    }

    #[test]
    fn a_hash_that_is_none_says_what_is_one() {
        assert_eq!(parse_hash(&format!("{:032x}", 77)).map(|h| h.0), Ok(77));
        for wrong in
            ["", "7", "+0000000000000000000000000000077", "0x0000000000000000000000000000004d"]
        {
            let error = parse_hash(wrong).expect_err(wrong);
            assert!(error.message.contains("32 hexadecimal digits"), "{error:?}");
        }
    }
}
