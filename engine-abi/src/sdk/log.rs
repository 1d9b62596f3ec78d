//! The host's log, as an engine's threads see it.
//!
//! It is the only call that goes from engine to host. The host promises that the function and its
//! context stay valid until the process exits, so a copy may outlive the `create` that brought it.

use std::ffi::c_void;

use crate::raw::{LogFn, MseStr};

/// How loud a line is; the numbers are the header's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Level {
    Error = 1,
    Warn = 2,
    Info = 3,
    Debug = 4,
    Trace = 5,
}

impl Level {
    /// The level of the header's number; what is out of range is the nearest.
    pub const fn from_number(number: u32) -> Self {
        match number {
            0 | 1 => Self::Error,
            2 => Self::Warn,
            3 => Self::Info,
            4 => Self::Debug,
            _ => Self::Trace,
        }
    }
}

/// A copyable handle to the host's log; silent when the host gave none.
#[derive(Clone, Copy)]
pub struct HostLog {
    ctx: *mut c_void,
    log: Option<LogFn>,
}

// SAFETY: the header tags `log` [any]: it is callable from any thread, with the ctx that came with
// it, and both stay valid until the process exits. The pointer itself is never dereferenced here.
unsafe impl Send for HostLog {}
// SAFETY: as above; shared use is concurrent calls of an [any] function.
unsafe impl Sync for HostLog {}

impl HostLog {
    /// A log that drops every line, for an engine's own tests.
    pub const fn silent() -> Self {
        Self { ctx: std::ptr::null_mut(), log: None }
    }

    /// # Safety
    /// `log` must be callable with `ctx` from any thread until the process exits.
    pub(crate) const unsafe fn from_raw(ctx: *mut c_void, log: Option<LogFn>) -> Self {
        Self { ctx, log }
    }

    /// Writes one line.
    pub fn write(&self, level: Level, target: &str, message: &str) {
        if let Some(log) = self.log {
            // SAFETY: `from_raw`'s caller vouched for the pair; the strings live over the call.
            unsafe { log(self.ctx, level as u32, MseStr::of(target), MseStr::of(message)) }
        }
    }

    pub fn error(&self, target: &str, message: &str) {
        self.write(Level::Error, target, message);
    }

    pub fn warn(&self, target: &str, message: &str) {
        self.write(Level::Warn, target, message);
    }

    pub fn info(&self, target: &str, message: &str) {
        self.write(Level::Info, target, message);
    }

    pub fn debug(&self, target: &str, message: &str) {
        self.write(Level::Debug, target, message);
    }
}

impl std::fmt::Debug for HostLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HostLog").field("silent", &self.log.is_none()).finish()
    }
}
