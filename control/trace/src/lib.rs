//! Traces: where a request's time went, over all processes that it visits, told to an OpenTelemetry collector.
//!
//! A [`Span`] is a stretch of work that whoever looks at a slow request wants to see; a [`Parent`] says whom it belongs
//! to, also over the wire. While nothing is exported both are next to nothing, and a client's trace still goes through.
//! Spans say counts, times and names of workers and models; never text, tokens, hashes, keys or tenants. This is the only
//! crate that knows OpenTelemetry.
#![forbid(unsafe_code)]

mod export;
mod parent;
mod sampling;
mod span;

pub use export::{TraceError, end_export, export_to};
pub use parent::Parent;
pub use sampling::Sampling;
pub use span::{Kind, Span};
