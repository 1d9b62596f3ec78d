//! The engine's tests in one program, since each program costs a link: goldens, serving, and the
//! engine's door.
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests are tests; the lint's own exception ends at `#[test]`"
)]

mod common;
mod cuda;
mod drafts;
mod engine;
mod golden;
mod guided;
mod serving;
