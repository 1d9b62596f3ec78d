//! The cases: a promise of the header each, in the order in which a vendor meets them.

mod boundary;
mod cache;
mod flow;
mod leases;
mod lifecycle;
mod output;
mod pins;
mod pressure;
mod transfer;

use crate::{Context, Ended};

/// One promise, and how it is put to the test.
pub struct Case {
    /// `group.what`.
    pub name: &'static str,
    /// The header's rule, or the capability, that it is about.
    pub rule: &'static str,
    /// In one sentence.
    pub about: &'static str,
    pub(crate) run: fn(&Context) -> Ended,
}

impl core::fmt::Debug for Case {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Case").field("name", &self.name).finish_non_exhaustive()
    }
}

macro_rules! cases {
    ($($name:literal, $rule:literal, $about:literal, $run:path;)*) => {
        &[$(Case { name: $name, rule: $rule, about: $about, run: $run }),*]
    };
}

/// All cases.
#[must_use]
pub fn cases() -> &'static [Case] {
    cases! {
        "boundary.magic", "R1", "The magic is the same whenever it is read, and the version fits.", boundary::magic;
        "boundary.slots", "R1", "Slots and capabilities agree, and nothing mandatory is missing.", boundary::slots;
        "boundary.info", "R1", "What it says of itself is possible and does not change.", boundary::info;
        "boundary.short-info", "R2", "A caller that knows less gets no byte more than it asked for.", boundary::short_info;
        "boundary.long-request", "R2", "A later caller's longer struct is taken while its tail is zero, and refused else.", boundary::long_request;
        "boundary.extensions", "R2", "Unknown extensions are ignored, critical ones refused.", boundary::extensions;
        "boundary.reserved", "R2", "Reserved fields and unknown flags are refused.", boundary::reserved;
        "boundary.bad-config", "R3", "A configuration that is no JSON is refused, and the out pointer left alone.", boundary::bad_config;
        "boundary.bad-requests", "R3", "Requests that can't be served are refused in words.", boundary::bad_requests;
        "lifecycle.again", "R6", "Engines come and go; threads and files go with them.", lifecycle::again;
        "lifecycle.two", "R6", "Two engines at once do not disturb each other, or the second says why not.", lifecycle::two;
        "lifecycle.busy-destroy", "R6", "Destroying an engine in the middle of its work ends.", lifecycle::busy_destroy;
        "lifecycle.drain", "R9", "Draining admits nothing and gives every request its one end.", lifecycle::drain;
        "output.one-final", "R9", "Each request begins once, ends once, and has the tokens it asked for.", output::one_final;
        "output.duplicate", "R3", "A live id is refused, and free again after its end.", output::duplicate;
        "output.greedy", "-", "A greedy answer is the same the second time, when the prompt is cached.", output::greedy;
        "output.batched", "-", "A greedy answer is the same among others.", output::batched;
        "output.seeded", "-", "A seeded answer is the same again.", output::seeded;
        "output.stop", "-", "A stop token ends the request and is its last token.", output::stop;
        "output.migrated", "-", "A request that another engine began goes on as it would have.", output::migrated;
        "output.logprobs", "LOGPROBS", "Each token has its logprobs, the chosen one first.", output::logprobs;
        "output.guided", "GUIDED", "A form that is nonsense ends the request before any token.", output::guided;
        "flow.cancel", "R9", "Cancelling at any moment, twice, or in vain, gives one end.", flow::cancel;
        "flow.slow-reader", "R8", "Outputs wait for a slow reader, and none is lost.", flow::slow_reader;
        "flow.slow-events", "R8", "Events that nobody reads come to an epoch's RESET and never to a hole.", flow::slow_events;
        "flow.wait", "R6", "Waiting ends by itself when nothing comes, and at once when something does.", flow::wait;
        "flow.threads", "R6", "Calls from many threads at once keep every promise.", flow::threads;
        "flow.short-calls", "R6", "Calls that may come from any thread do not block.", flow::short_calls;
        "flow.stats", "-", "Its counters only grow, and are possible.", flow::stats;
        "cache.events", "KV_EVENTS", "Events tell a cache that is possible, and no larger than it is.", cache::events;
        "cache.hit", "KV_EVENTS", "A prompt that was just computed is hit by its whole blocks, and by no more.", cache::hit;
        "cache.truth", "KV_EVENTS", "What is hit is what the events say is held.", cache::truth;
        "cache.names", "CANONICAL_HASH", "Blocks have Mainstay's own names.", cache::names;
        "cache.namespaces", "NAMESPACE", "Namespaces share no block and no hit.", cache::namespaces;
        "cache.snapshot", "KV_SNAPSHOT", "A snapshot says what the events said.", cache::snapshot;
        "pressure.evict", "KV_EVENTS", "A cache that is full says what leaves it.", pressure::evict;
        "pressure.priority", "PRIORITY", "A request of higher priority overtakes those that wait.", pressure::priority;
        "pressure.retention", "RETENTION", "Blocks of a low priority leave before those of a high one.", pressure::retention;
        "pressure.ages", "-", "The ages of blocks that were hit and that went are possible, and add up.", pressure::ages;
        "pins.hold", "PIN", "Pinned blocks outlast a flood.", pins::hold;
        "pins.expire", "PIN", "A pin ends by its time, is told, and its blocks may leave.", pins::expire;
        "pins.unpin", "PIN", "A pin that is ended holds nothing.", pins::unpin;
        "pins.ops", "R8", "Each operation has its one end.", pins::ops;
        "transfer.move", "TRANSFER", "Blocks that one engine computed are hit in another, and give the same answer.", transfer::moves;
        "transfer.parts", "TRANSFER", "Exports end at the first block that is not held, imports go on behind what is.", transfer::parts;
        "transfer.full", "TRANSFER", "Imports into a full cache take the room of what may leave, and no more.", transfer::full;
        "transfer.bad", "TRANSFER", "Transfers that make no sense are refused, or end with an error.", transfer::bad;
        "leases.keep", "LEASE", "A lease keeps its blocks through a flood, and once it has ended they go first.", leases::keep;
        "leases.amend", "LEASE", "A lease that is amended by kind is worth what the amendment says.", leases::amend;
        "leases.bad", "LEASE", "Changes of leases that make no sense are refused; one of a lease that is not known is nothing.", leases::bad;
        "pins.bad", "PIN", "Pins that make no sense are refused, or end with an error.", pins::bad;
    }
}
