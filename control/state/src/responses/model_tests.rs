//! The stored responses against a literal model: a list that is searched from end to end for every command and knows
//! no ages, expiries or sums kept up to date. In between, the state goes through its image and back, and commands
//! are sent twice, as gateways do.

use std::collections::BTreeSet;

use mainstay_types::Command;
use proptest::prelude::*;

use super::*;
use crate::Machine;
use crate::testing::{Log, responses, small_limits};

#[derive(Default)]
struct Model {
    all: Vec<Response>,
}

impl Model {
    fn at(&self, tenant: &TenantId, id: &ResponseId) -> Option<usize> {
        self.all.iter().position(|r| r.record.tenant == *tenant && r.record.id == *id)
    }

    fn used(&self, tenant: Option<&TenantId>) -> u64 {
        let of = |r: &&Response| tenant.is_none_or(|t| r.record.tenant == *t);
        self.all.iter().filter(of).map(|r| u64::from(r.record.payload.bytes()) + 256).sum()
    }

    /// Ids from the nearest on, if the chain reaches its root.
    fn chain(&self, record: &ResponseRecord, limits: &Limits) -> Option<Vec<ResponseId>> {
        let mut ids = Vec::new();
        let (mut next, mut created) = (record.previous.clone(), LogIndex(u64::MAX));
        while let Some(id) = next {
            let found = &self.all[self.at(&record.tenant, &id)?];
            let first = ids.is_empty();
            let bad = found.created_index >= created || id == record.id;
            if bad || (first && found.record.state != ResponseState::Ended) {
                return None;
            }
            (next, created) = (found.record.previous.clone(), found.created_index);
            ids.push(id);
        }
        (ids.len() < limits.response_chain_max as usize).then_some(ids)
    }

    /// Takes the oldest of a tenant out that is not in the chain; false if there is none.
    fn drop_oldest(&mut self, tenant: &TenantId, chain: &[ResponseId]) -> bool {
        let free = |r: &Response| r.record.tenant == *tenant && !chain.contains(&r.record.id);
        let candidates = self.all.iter().enumerate().filter(|(_, r)| free(r));
        let oldest = candidates.min_by_key(|(_, r)| (r.touched_index, Reverse(r.created_index)));
        let oldest = oldest.map(|(at, _)| at);
        oldest.map(|at| self.all.remove(at)).is_some()
    }

    /// What a command does; false if it is refused.
    fn put(
        &mut self,
        index: LogIndex,
        time: ClusterTime,
        limits: &Limits,
        record: &ResponseRecord,
    ) -> bool {
        let known = self.at(&record.tenant, &record.id).map(|at| self.all[at].clone());
        if known.as_ref().is_some_and(|known| known.record == *record) {
            return true;
        }
        let bytes = record.payload.bytes();
        let fine = (1..=limits.response_payload_bytes_max).contains(&bytes)
            && (1..=limits.ttl_ms_max).contains(&record.ttl_ms)
            && record.state != ResponseState::Cancelled;
        let ends = |known: &Response| {
            known.record.state == ResponseState::Running
                && record.state == ResponseState::Ended
                && (known.record.previous == record.previous || record.previous.is_none())
        };
        if !fine || known.as_ref().is_some_and(|known| !ends(known)) {
            return false;
        }
        let Some(chain) = self.chain(record, limits) else { return false };
        let before = self.all.clone();
        self.all.retain(|r| (&r.record.tenant, &r.record.id) != (&record.tenant, &record.id));
        // Who uses most is asked before the running one gives its place up.
        let by_use_before = Self { all: before.clone() };
        if !self.make_room(&by_use_before, record, &chain, limits) {
            self.all = before;
            return false;
        }
        let expires_ms = time.expiry(record.ttl_ms);
        for r in self.all.iter_mut().filter(|r| r.record.tenant == record.tenant) {
            if chain.contains(&r.record.id) {
                r.touched_index = index;
                r.expires_ms = r.expires_ms.max(expires_ms);
            }
        }
        let (created_ms, created_index) =
            known.map_or((time.now_ms, index), |known| (known.created_ms, known.created_index));
        let record = record.clone();
        let touched_index = index;
        self.all.push(Response { record, created_ms, expires_ms, created_index, touched_index });
        true
    }

    fn make_room(
        &mut self,
        before: &Self,
        record: &ResponseRecord,
        chain: &[ResponseId],
        limits: &Limits,
    ) -> bool {
        let wanted = u64::from(record.payload.bytes()) + 256;
        let tenants: BTreeSet<TenantId> =
            before.all.iter().map(|r| r.record.tenant.clone()).collect();
        let mut by_use: Vec<_> = tenants.into_iter().map(|t| (before.used(Some(&t)), t)).collect();
        by_use.sort();
        while self.used(Some(&record.tenant)) + wanted > limits.response_bytes_per_tenant_max {
            if !self.drop_oldest(&record.tenant, chain) {
                return false;
            }
        }
        for (_, tenant) in by_use.into_iter().rev() {
            let chain = if tenant == record.tenant { chain } else { &[] };
            while self.used(None) + wanted > limits.response_bytes_max {
                if !self.drop_oldest(&tenant, chain) {
                    break;
                }
            }
        }
        self.used(None) + wanted <= limits.response_bytes_max
    }

    fn end(&mut self, tenant: &TenantId, id: &ResponseId, cancelled: bool) -> bool {
        let Some(at) = self.at(tenant, id) else { return false };
        if !cancelled {
            self.all.remove(at);
            return true;
        }
        let state = &mut self.all[at].record.state;
        if *state == ResponseState::Ended {
            return false;
        }
        *state = ResponseState::Cancelled;
        true
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_machine_keeps_what_the_model_keeps(
        steps in proptest::collection::vec(
            (responses(), 0_u64..300, proptest::bool::weighted(0.2), proptest::bool::weighted(0.1)),
            1..80,
        ),
    ) {
        let limits = small_limits();
        let (mut log, mut model) = (Log::new(limits), Model::default());
        let mut deleted = false;
        for (command, passed_ms, again, image) in steps {
            log.now_ms += passed_ms;
            if image {
                let bytes = log.machine.encode();
                log.machine = Machine::decode(&bytes, limits).expect("its own image");
                prop_assert_eq!(log.machine.encode(), bytes);
            }
            for _ in 0..=usize::from(again) {
                let outcome = log.apply(command.clone());
                let (index, time) = (log.machine.applied(), log.machine.time());
                model.all.retain(|r| r.expires_ms > time.now_ms);
                let fine = match &command {
                    Command::PutResponse(record) => model.put(index, time, &limits, record),
                    Command::EndResponse { tenant, id, cancelled } => {
                        deleted |= !cancelled;
                        model.end(tenant, id, *cancelled)
                    }
                    _ => unreachable!("only commands about responses"),
                };
                prop_assert_eq!(fine, matches!(outcome, Outcome::Response { .. }), "{:?}", outcome);
                let key = |r: &Response| (r.record.tenant.clone(), r.record.id.clone());
                model.all.sort_by_key(key);
                let kept: Vec<Response> = log.machine.responses().cloned().collect();
                prop_assert_eq!(&kept, &model.all);
                prop_assert!(model.used(None) <= limits.response_bytes_max);
                for r in &kept {
                    let whole = r.record.previous.as_ref().is_none_or(|before| {
                        log.machine.response(&r.record.tenant, before).is_some()
                    });
                    prop_assert!(whole || deleted, "{:?} lost what it continues", r.record.id);
                }
            }
        }
    }
}
