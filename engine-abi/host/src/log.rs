//! Where an engine's log lines go: to `tracing` here, or up the pipe from a child.
//!
//! The engine keeps the function and its context until the process exits (rule R4), so targets are
//! leaked, once each. A line is cut and repaired rather than trusted.

use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};

use mainstay_engine_abi::raw::{ABI_MAJOR, ABI_MINOR, MseHdr, MseHost, MseStr};
use mainstay_engine_abi::sdk::Level;

/// Bytes of one log line.
pub(crate) const LINE_BYTES_MAX: usize = 8192;

/// Takes one line: level, target, message.
pub type Sink = dyn Fn(Level, &str, &str) + Send + Sync;

/// A place for lines, alive until the process exits.
pub struct LogTarget {
    sink: Box<Sink>,
}

impl LogTarget {
    /// Makes a target for ever. Call it once per process and kind, not once per engine.
    pub fn leak(sink: Box<Sink>) -> &'static Self {
        Box::leak(Box::new(Self { sink }))
    }

    /// The host struct that hands this target to an engine.
    pub fn host(&'static self) -> MseHost {
        MseHost {
            h: MseHdr::of::<MseHost>(),
            abi_major: ABI_MAJOR,
            abi_minor: ABI_MINOR,
            ctx: std::ptr::from_ref(self).cast_mut().cast(),
            log: Some(log),
        }
    }
}

/// The target that feeds `tracing`.
pub(crate) fn to_tracing() -> &'static LogTarget {
    static TARGET: std::sync::OnceLock<&'static LogTarget> = std::sync::OnceLock::new();
    TARGET.get_or_init(|| LogTarget::leak(Box::new(trace)))
}

/// Writes a line of an engine to `tracing`.
pub(crate) fn trace(level: Level, engine_target: &str, message: &str) {
    match level {
        Level::Error => tracing::error!(target: "engine", engine_target, "{message}"),
        Level::Warn => tracing::warn!(target: "engine", engine_target, "{message}"),
        Level::Info => tracing::info!(target: "engine", engine_target, "{message}"),
        Level::Debug => tracing::debug!(target: "engine", engine_target, "{message}"),
        Level::Trace => tracing::trace!(target: "engine", engine_target, "{message}"),
    }
}

/// # Safety
/// `text` is null, or readable over its length for the call.
unsafe fn text(text: MseStr) -> String {
    if text.ptr.is_null() {
        return String::new();
    }
    let len = usize::try_from(text.len).unwrap_or(usize::MAX).min(LINE_BYTES_MAX);
    // SAFETY: a part of what the caller vouches for.
    String::from_utf8_lossy(unsafe { std::slice::from_raw_parts(text.ptr, len) }).into_owned()
}

unsafe extern "C" fn log(ctx: *mut c_void, level: u32, target: MseStr, message: MseStr) {
    if ctx.is_null() {
        return;
    }
    let body = || {
        // SAFETY: `ctx` is the leaked target that `host` put there; the strings are the engine's,
        // borrowed for the call.
        unsafe {
            let at = &*ctx.cast::<LogTarget>().cast_const();
            (at.sink)(Level::from_number(level), &text(target), &text(message));
        }
    };
    // A subscriber that panics must not unwind into the engine (R5); its line is lost.
    if let Err(payload) = catch_unwind(AssertUnwindSafe(body)) {
        std::mem::forget(payload);
    }
}
