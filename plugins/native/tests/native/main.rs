//! The engine's tests in one program, since each program costs a link: goldens, serving, and the
//! engine's door.

mod common;
mod engine;
mod golden;
mod serving;
