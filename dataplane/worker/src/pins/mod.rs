//! Pins on this worker: the cluster decides which live, the engine protects their blocks, and what is held is
//! reported back.
//!
//! Layout: [`ledger`] is the pure bookkeeping between the three, [`drive`] asks the engine for what the ledger
//! wants, [`watch`] follows the cluster's pins, [`recompute`] computes those that the keeper orders.

pub(crate) mod drive;
pub(crate) mod ledger;
pub(crate) mod recompute;
pub(crate) mod watch;
