//! The replay laboratory: routing policies on the same agent sessions, over modelled engines, in virtual time.
//!
//! It exists so that a claim about routing can be rerun by anyone: the router and the block index are those that
//! serve, the engines are models, and the same trace, seed and settings give the same figures on any machine. Pure:
//! texts of traces come in, a report goes out; only the cost of decisions needs a clock, which the caller lends.
//! Traces are somebody else's files: sizes are bounded, and what is not of the form is an error that names the line.
//!
//! Layout: `trace` is what is played, `read` and `mix` make it, `live` is a session while it is played, `fleet` the
//! workers, `slow` those that are not like the others, `policy` and `dynamo` choose among them, `ideal` is the cache
//! that never forgets, `lab` the event loop, `report` and `series` the figures. `analyze` says of a trace what can be
//! said without playing it; `page` and `plot` draw both.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod analyze;
mod dynamo;
mod fleet;
mod ideal;
mod lab;
mod live;
mod mix;
mod page;
mod plot;
mod policy;
mod read;
mod report;
mod rng;
mod series;
mod slab;
mod slow;
mod trace;

pub use analyze::{
    Analysis, Compactions, Curve, Curves, Dist, Kept, Repeated, Subagents, Table, TurnPoint,
    analyze,
};
pub use lab::{Settings, Stopwatch, play};
pub use mainstay_route::{QueueOrder, QueueSettings};
pub use mix::Mix;
pub use policy::PolicyName;
pub use read::{ReadSettings, claude_code_session, rows};
pub use report::{Back, Class, Evictions, Pinned, Report, Spread, comparison_page};
pub use series::{Point, Series};
pub use slow::Slow;
pub use trace::{Trace, TraceBuilder, TraceError};
