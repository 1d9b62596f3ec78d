//! From a request's arrival to its worker: at once where there is room, else through the router's queue.
//!
//! Whoever is turned away comes again when it was told to, and counts as having come the first time. Only the router's
//! own policies have its queue: the others send at once, as they do where they come from.

use std::sync::Arc;

use mainstay_engine_abi::sdk::RetentionRange;
use mainstay_route::{RequestQueue, Waiting, worth};
use mainstay_sim_model::{Claim, Fetch, Request};
use mainstay_types::TenantId;

use super::strangers::NOBODY;
use super::{Event, Lab, Settings, Stopwatch};
use crate::fleet::LOAD_INTERVAL_US;
use crate::live::NAMESPACE;
use crate::policy::{Chosen, PolicyName, Question};

/// The queue of a run, if it has one.
pub(super) fn of(settings: &Settings, policy: PolicyName) -> Option<RequestQueue> {
    let waits = settings.queue.threshold.is_some() && policy.is_routers();
    waits.then(|| RequestQueue::new(settings.queue))
}

impl Lab<'_> {
    /// A request that came, or comes again.
    pub(super) fn enter(&mut self, id: u32, now_us: u64, stopwatch: &mut Option<Stopwatch<'_>>) {
        let waits = match &self.line {
            None => false,
            // Nobody overtakes those who wait.
            Some(line) => !line.is_empty() || !self.has_room(now_us),
        };
        if !waits {
            return self.place(id, now_us, stopwatch);
        }
        let Some(waiting) = self.waiting(id, now_us) else { return };
        let Some(line) = &mut self.line else { return };
        match line.offer(now_us / 1_000, waiting.clone()) {
            Ok(()) => {
                if let Some(asked) = self.asked.get(id) {
                    asked.waited = Some(Box::new(waiting));
                }
                self.wake(now_us);
            }
            Err(refusal) => {
                self.sums.turned_away += 1;
                let again_us = now_us + refusal.retry_after_ms() * 1_000;
                self.at(again_us, Event::Again(id));
            }
        }
    }

    /// Sends those whose turn it is while there is room.
    pub(super) fn pump(&mut self, now_us: u64, stopwatch: &mut Option<Stopwatch<'_>>) {
        self.pumping = false;
        while self.line.as_ref().is_some_and(|line| !line.is_empty()) && self.has_room(now_us) {
            let next = self.line.as_mut().and_then(|line| line.next(now_us / 1_000));
            let Some(next) = next else { return };
            let id = next.id as u32;
            if let Some(asked) = self.asked.get(id) {
                self.sums.waits_us.push(now_us - asked.arrived_us);
            }
            self.place(id, now_us, stopwatch);
        }
        if self.line.as_ref().is_some_and(|line| !line.is_empty()) {
            self.wake(now_us);
        }
    }

    /// Looks again when loads are heard next: nothing is known of room before.
    fn wake(&mut self, now_us: u64) {
        if !self.pumping {
            self.pumping = true;
            let next_us = (now_us / LOAD_INTERVAL_US + 1) * LOAD_INTERVAL_US;
            self.at(next_us, Event::Pump);
        }
    }

    fn has_room(&mut self, now_us: u64) -> bool {
        let room_tokens = self.settings.queue.room_tokens().unwrap_or(f64::INFINITY);
        let views = self.fleet.views(now_us);
        self.chooser.has_room(now_us / 1_000, views, room_tokens)
    }

    /// What the queue is told of a request.
    fn waiting(&mut self, id: u32, now_us: u64) -> Option<Waiting> {
        let hints = self.settings.hints;
        let tier = self.settings.urgent_tier;
        let asked = self.asked.get(id)?;
        self.fleet.catch_up(now_us);
        let prompt = &asked.chain[..asked.prompt_blocks as usize];
        self.fleet.overlaps(prompt, &mut self.overlaps);
        let most = self.overlaps.near.iter().map(|overlap| overlap.blocks).max().unwrap_or(0);
        let cached = most.saturating_mul(self.trace.block_tokens);
        let told = if self.settings.tell_output { asked.output_tokens } else { 0 };
        Some(Waiting {
            id: u64::from(id),
            tenant: TenantId::new("all")?,
            weight: 1.0,
            program: asked.session + 1,
            priority: if hints { asked.priority } else { 0 },
            tier: if hints && asked.priority > 0 { tier } else { 0 },
            uncached_tokens: asked.prompt_tokens.saturating_sub(cached).max(1),
            output_tokens: told,
        })
    }

    /// Has a worker chosen, and sends the request there.
    fn place(&mut self, id: u32, now_us: u64, stopwatch: &mut Option<Stopwatch<'_>>) {
        let random = self.rng.draw();
        let (leases, ranges) = self.wishes(id);
        let Some(asked) = self.asked.get(id) else { return };
        let chain = Arc::clone(&asked.chain);
        let priority = if self.settings.hints { asked.priority } else { 0 };
        let question = Question {
            now_ms: now_us / 1_000,
            session: asked.session,
            chain: &chain,
            prompt_blocks: asked.prompt_blocks,
            prompt_tokens: asked.prompt_tokens,
            block_tokens: self.trace.block_tokens,
            priority,
            output_tokens: if self.settings.tell_output { asked.output_tokens } else { 0 },
            fetch_us_per_token: self.fetch_us_per_token,
            random,
        };
        let mut request = Request {
            id: u64::from(id),
            namespace: NAMESPACE,
            chain: Arc::clone(&chain),
            chain_blocks: asked.chain_blocks,
            prompt_tokens: asked.prompt_tokens,
            output_tokens: asked.output_tokens,
            priority,
            claim: claim(priority),
            ranges,
            leases,
            fetch: None,
        };
        self.fleet.catch_up(now_us);
        self.fleet.views(now_us);
        let before_ns = stopwatch.as_mut().map(|clock| clock());
        self.fleet.overlaps(question.prompt(), &mut self.overlaps);
        let views = self.fleet.views(now_us);
        let Some(chosen) = self.chooser.choose(&question, &self.overlaps, views) else { return };
        if let (Some(clock), Some(before_ns)) = (stopwatch, before_ns) {
            self.sums.decision_ns.push(clock().saturating_sub(before_ns));
        }
        self.taken(id, &chosen);
        if let Some((from, blocks, own)) = chosen.fetch {
            let tokens = (blocks - own) * self.trace.block_tokens;
            let from_us = self.fleet.lend(from, tokens, now_us);
            request.fetch = Some(Fetch { blocks, from_us });
        }
        self.send(chosen.worker, request, now_us);
    }

    /// What is wished for a request's blocks, where sessions take leases.
    fn wishes(&mut self, id: u32) -> (Vec<u128>, Vec<RetentionRange>) {
        match (&self.keeper, self.asked.get(id)) {
            (Some(keeper), Some(asked)) if asked.slot != NOBODY => {
                let agent = (asked.slot, asked.agent);
                keeper.wishes(agent, asked.role, asked.head_tokens, asked.prompt_tokens)
            }
            _ => Default::default(),
        }
    }

    /// A worker was chosen for a request.
    fn taken(&mut self, id: u32, chosen: &Chosen) {
        let Some(asked) = self.asked.get(id) else { return };
        asked.ticket = Some(chosen.ticket);
        asked.served = chosen.worker;
        if let Some(keeper) = &mut self.keeper {
            keeper.served((asked.slot, asked.agent), chosen.worker, asked.prompt_blocks);
        }
    }
}

/// What engines are asked to keep a request's blocks for.
fn claim(priority: i32) -> Option<Claim> {
    let worth = worth(priority)?;
    Some(Claim { priority: worth.priority, duration_ms: Some(u64::from(worth.duration_ms)) })
}
