//! The router: which worker should serve a request, what each candidate would cost, and why.
//!
//! Cost is additive and in milliseconds, so that its terms can be measured, compared and shown. Between the
//! moment a request is sent and the moment its worker's load and blocks are heard of again, the router goes by
//! its own bookings and by the prefixes it has just sent, or a burst of equal prompts would all see the same idle
//! worker or all miss the one that is computing their prefix. Pure: time and random numbers come in as values.
//! Whatever the inputs hold (no workers, rates that are not numbers, loads of 2^64), the answer is a decision or
//! a [`RouteError`].
//!
//! Layout: [`Router`] decides and keeps bookings, predictions and warm conversations (`contexts`), `inputs` is what it
//! is told, `cost` is the formula, `fleet` works it out for all workers, `choice` picks, `decision` is what it
//! answers. [`Learner`] corrects the formula by how long requests took; [`RequestQueue`] is where they wait while every
//! worker has enough to do.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod bookings;
mod choice;
mod contexts;
mod cost;
mod decision;
mod fleet;
mod id_map;
mod inputs;
mod learned;
mod lifetimes;
mod predictions;
mod queue;
mod router;
mod worth;

pub use bookings::{BOOKINGS_MAX, BookingId};
pub use contexts::CONTEXTS_MAX;
pub use cost::{DECODE_US_PER_STEP_DEFAULT, PREFILL_US_PER_TOKEN_DEFAULT, Terms, Weights};
pub use decision::{CANDIDATES_MAX, CandidateCost, Decision, Note, RouteError};
pub use inputs::{Affinity, Fetch, Hints, Inputs, Policy, Rule, WorkerLoad, WorkerView};
pub use learned::{Draw, Features, LEARNED_WORKERS_MAX, Learner, Lesson};
pub use predictions::{PREDICTED_BLOCKS_MAX, PREDICTIONS_MAX, common_prefix};
pub use queue::{QueueOrder, QueueSettings, Refusal, RequestQueue, WAITING_MAX, Waiting};
pub use router::Router;
pub use worth::{Worth, worth};
