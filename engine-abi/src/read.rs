//! Checked reading and writing of memory that the other side of the boundary owns.
//!
//! Both sides use it: the shims for what a host passes in, the host for what an engine hands out. It
//! keeps the header's rule R2 (sizes, tails, extension nodes) and turns null or misaligned pointers
//! and absurd lengths into errors. What it can't check is that a non-null pointer is mapped; that is
//! the other side's promise, and a child process is the answer where that promise is not trusted.

use std::mem::MaybeUninit;
use std::ptr;

use crate::limits::{EXT_NODES_MAX, STRUCT_BYTES_MAX};
use crate::raw::{
    EXT_CRITICAL, MseBatch, MseErr, MseExport, MseExt, MseGuided, MseHdr, MseHost, MseImport,
    MseInfo, MseLease, MsePin, MseRequest, MseSampling, MseStats, MseStr, MseVtable,
};
use crate::sdk::{Code, EngineError};

/// A struct of the header that starts with `mse_hdr`.
///
/// # Safety
/// `#[repr(C)]`, first field `h: MseHdr`, no padding, and all zero bytes are a valid value.
pub unsafe trait Headed: Copy {
    const NAME: &'static str;
}

macro_rules! headed {
    ($($type:ty = $name:literal),+ $(,)?) => {$(
        // SAFETY: `crate::layout` proves the lack of padding and the header at offset 0; integers,
        // raw pointers and optional function pointers are all valid when zero.
        unsafe impl Headed for $type {
            const NAME: &'static str = $name;
        }
    )+};
}

headed! {
    MseHost = "mse_host",
    MseInfo = "mse_info",
    MseSampling = "mse_sampling",
    MseGuided = "mse_guided",
    MseRequest = "mse_request",
    MseLease = "mse_lease",
    MseBatch = "mse_batch",
    MsePin = "mse_pin",
    MseExport = "mse_export",
    MseImport = "mse_import",
    MseStats = "mse_stats",
    MseVtable = "mse_vtable",
}

fn too_new(message: String) -> EngineError {
    EngineError::new(Code::TooNew, message)
}

fn check_pointer<T>(pointer: *const T, what: &str) -> Result<(), EngineError> {
    if pointer.is_null() {
        return Err(EngineError::invalid(format!("{what} is null")));
    }
    if !pointer.is_aligned() {
        return Err(EngineError::invalid(format!("{what} is misaligned")));
    }
    Ok(())
}

/// Checks an extension chain: no node is known to this version, so a critical one is refused.
unsafe fn check_extensions(mut node: *const MseExt, name: &str) -> Result<(), EngineError> {
    for _ in 0..EXT_NODES_MAX {
        if node.is_null() {
            return Ok(());
        }
        check_pointer(node, "an extension node")?;
        // SAFETY: non-null and aligned; the writer promises that a node is readable (R2).
        let ext = unsafe { node.read() };
        if ext.size < size_of::<MseExt>() as u32 || ext.size > STRUCT_BYTES_MAX {
            let size = ext.size;
            return Err(EngineError::invalid(format!("an extension of {name} has size {size}")));
        }
        if ext.flags & EXT_CRITICAL != 0 {
            let number = ext.r#type;
            return Err(too_new(format!("{name} has the unknown critical extension {number}")));
        }
        node = ext.next;
    }
    Err(EngineError::invalid(format!("{name} has more than {EXT_NODES_MAX} extensions")))
}

unsafe fn check_header<T: Headed>(pointer: *const T) -> Result<MseHdr, EngineError> {
    check_pointer(pointer, T::NAME)?;
    // SAFETY: every headed struct has at least `size` readable bytes and `size` is its first field;
    // the read of the whole header follows the check that it is there.
    let size = unsafe { pointer.cast::<u32>().read() };
    if size < size_of::<MseHdr>() as u32 || size > STRUCT_BYTES_MAX {
        return Err(EngineError::invalid(format!("{} has size {size}", T::NAME)));
    }
    // SAFETY: `size` covers the header.
    let header = unsafe { pointer.cast::<MseHdr>().read() };
    if header.flags != 0 {
        return Err(too_new(format!("{} has unknown flags {:#x}", T::NAME, header.flags)));
    }
    // SAFETY: the chain belongs to a header whose writer keeps R2.
    unsafe { check_extensions(header.next, T::NAME)? };
    Ok(header)
}

/// Copies a struct out of the other side's memory under rule R2.
///
/// # Errors
/// `Invalid` for pointers and sizes that can't be, `TooNew` for a tail or an extension that matters.
///
/// # Safety
/// A non-null `pointer` must have as many readable bytes as its `size` says, unchanged meanwhile.
pub unsafe fn read_struct<T: Headed>(pointer: *const T) -> Result<T, EngineError> {
    // SAFETY: the caller's promise.
    let header = unsafe { check_header(pointer)? };
    let size = header.size as usize;
    let known = size.min(size_of::<T>());
    let mut value = MaybeUninit::<T>::zeroed();
    // SAFETY: `known` bytes are readable (caller) and fit into the value.
    unsafe { ptr::copy_nonoverlapping(pointer.cast::<u8>(), value.as_mut_ptr().cast(), known) };
    for offset in known..size {
        // SAFETY: below `size`, which the caller vouches for.
        if unsafe { pointer.cast::<u8>().add(offset).read() } != 0 {
            return Err(too_new(format!("{} sets what this side does not know", T::NAME)));
        }
    }
    // SAFETY: zero or copied bytes, of which `Headed` says that every pattern is a value.
    Ok(unsafe { value.assume_init() })
}

/// Fills a struct that the other side provides: never more than its `size`, never its header.
///
/// # Errors
/// As [`read_struct`]; then nothing is written.
///
/// # Safety
/// A non-null `out` must have as many writable bytes as its `size` says, and no one else's.
pub unsafe fn write_struct<T: Headed>(out: *mut T, value: &T) -> Result<(), EngineError> {
    // SAFETY: the caller's promise.
    let header = unsafe { check_header(out.cast_const())? };
    let skip = size_of::<MseHdr>();
    let known = (header.size as usize).min(size_of::<T>());
    let from = ptr::from_ref(value).cast::<u8>();
    // SAFETY: `skip <= known`, checked with the header; both sides hold `known` bytes.
    unsafe { ptr::copy_nonoverlapping(from.add(skip), out.cast::<u8>().add(skip), known - skip) };
    Ok(())
}

/// The caller's array as a slice; empty for length 0 whatever the pointer.
///
/// # Errors
/// `Invalid` for a null or misaligned pointer, or a length above `len_max`.
///
/// # Safety
/// A non-null `pointer` must have `len` readable entries that stay unchanged over `'a`.
pub unsafe fn slice<'a, T: Copy>(
    pointer: *const T,
    len: u64,
    len_max: u64,
    what: &str,
) -> Result<&'a [T], EngineError> {
    if len == 0 {
        return Ok(&[]);
    }
    if len > len_max {
        return Err(EngineError::invalid(format!("{what} has length {len}, more than {len_max}")));
    }
    check_pointer(pointer, what)?;
    // SAFETY: non-null, aligned, `len` entries by the caller's promise; `len` is far below isize::MAX.
    Ok(unsafe { std::slice::from_raw_parts(pointer, len as usize) })
}

/// The caller's string.
///
/// # Errors
/// `Invalid` as for [`slice`], and when it is not UTF-8.
///
/// # Safety
/// As for [`slice`].
pub unsafe fn string<'a>(text: MseStr, len_max: u64, what: &str) -> Result<&'a str, EngineError> {
    // SAFETY: the caller's promise.
    let bytes = unsafe { slice(text.ptr, text.len, len_max, what)? };
    std::str::from_utf8(bytes).map_err(|_| EngineError::invalid(format!("{what} is not UTF-8")))
}

/// Writes an error into the caller's `mse_err`, as much as its `size` allows; null is allowed.
///
/// # Safety
/// A non-null `err` must have as many writable bytes as its `size` says.
pub unsafe fn write_error(err: *mut MseErr, error: &EngineError) {
    let fixed = std::mem::offset_of!(MseErr, msg);
    if err.is_null() || !err.is_aligned() {
        return;
    }
    // SAFETY: `size` is the first field and readable by the caller's promise.
    let size = unsafe { err.cast::<u32>().read() };
    if (size as usize) < fixed || size > STRUCT_BYTES_MAX {
        return;
    }
    let mut cut = error.message.len().min(size as usize - fixed);
    while !error.message.is_char_boundary(cut) {
        cut -= 1;
    }
    // SAFETY: the fixed fields and `cut` bytes after them lie within `size`.
    unsafe {
        (&raw mut (*err).rc).write(error.rc.rc());
        (&raw mut (*err).retry_after_ms).write(error.retry_after_ms);
        (&raw mut (*err).flags).write(if error.fatal { crate::raw::ERR_FATAL } else { 0 });
        (&raw mut (*err).msg_len).write(cut as u32);
        let to = err.cast::<u8>().add(fixed);
        ptr::copy_nonoverlapping(error.message.as_ptr(), to, cut);
    }
}

/// The error that the other side wrote into `err` beside the code `rc`.
pub fn read_error(rc: i32, err: &MseErr) -> EngineError {
    let len = (err.msg_len as usize).min(err.msg.len());
    let text = String::from_utf8_lossy(&err.msg[..len]);
    let message = if text.is_empty() { "no reason was given".into() } else { text.into_owned() };
    EngineError {
        rc: Code::from_rc(rc),
        message,
        retry_after_ms: err.retry_after_ms,
        fatal: err.flags & crate::raw::ERR_FATAL != 0,
    }
}

#[cfg(test)]
mod tests;
