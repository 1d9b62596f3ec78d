//! The way into an engine: its magic and its `open`, exported from a `.so` or linked in.
//!
//! Both ways go through the same two C functions, so an engine that is linked in is opened, checked
//! and driven exactly as a vendor's library is.

use super::{Engine, EngineError, shim};
use crate::layout::LAYOUT;
use crate::raw::{
    ABI_MAJOR, ABI_MINOR, MAGIC, MagicFn, MseErr, MseHost, MseMagic, MseStr, MseVtable, OK, OpenFn,
};
use crate::read::{read_struct, write_error};

/// The two C functions of an engine.
#[derive(Clone, Copy, Debug)]
pub struct EntryPoint {
    pub magic: MagicFn,
    pub open: OpenFn,
}

/// The entry point of an engine that is linked into this program.
pub fn entry_point<E: Engine>() -> EntryPoint {
    EntryPoint { magic: magic::<E>, open: open::<E> }
}

/// Gives statics to a generic engine: a `const` of a generic type may be borrowed for ever.
struct Statics<E>(std::marker::PhantomData<E>);

impl<E: Engine> Statics<E> {
    const MAGIC: &'static MseMagic = &MseMagic {
        magic: MAGIC,
        size: size_of::<MseMagic>() as u32,
        abi_major: ABI_MAJOR,
        abi_minor: ABI_MINOR,
        // A minor that engines of this SDK could not do without would stand here and in `check`.
        min_host_minor: 0,
        pointer_bits: usize::BITS,
        little_endian: cfg!(target_endian = "little") as u32,
        layout: LAYOUT,
        vendor: MseStr::of(E::IDENTITY.vendor),
        name: MseStr::of(E::IDENTITY.name),
        version: MseStr::of(E::IDENTITY.version),
    };
    const VTABLE: &'static MseVtable = &shim::vtable::<E>();
}

/// `mse_magic_v1` of `E`: pure data.
pub extern "C" fn magic<E: Engine>() -> *const MseMagic {
    Statics::<E>::MAGIC
}

/// `mse_open_v1` of `E`.
///
/// # Safety
/// The pointers are the host's and keep the header's rules; null is refused.
pub unsafe extern "C" fn open<E: Engine>(
    host: *const MseHost,
    out: *mut *const MseVtable,
    err: *mut MseErr,
) -> i32 {
    // SAFETY: the caller's promise. Nothing in here panics: no engine code runs.
    match unsafe { check(host, out) } {
        Ok(()) => {
            // SAFETY: `check` has refused null and misaligned.
            unsafe { out.write(Statics::<E>::VTABLE) };
            OK
        }
        Err(error) => {
            // SAFETY: null or whole by the caller's promise.
            unsafe { write_error(err, &error) };
            error.rc.rc()
        }
    }
}

unsafe fn check(host: *const MseHost, out: *mut *const MseVtable) -> Result<(), EngineError> {
    if out.is_null() || !out.is_aligned() {
        return Err(EngineError::invalid("out is null or misaligned"));
    }
    // SAFETY: the caller's promise.
    let host = unsafe { read_struct(host)? };
    if host.abi_major != ABI_MAJOR {
        return Err(EngineError::new(
            super::Code::TooNew,
            format!(
                "the engine speaks ABI {ABI_MAJOR}.{ABI_MINOR}, the host {}.{}",
                host.abi_major, host.abi_minor
            ),
        ));
    }
    Ok(())
}

/// Exports an engine from a `cdylib`: exactly the symbols `mse_magic_v1` and `mse_open_v1`.
///
/// A crate that is only a `cdylib` calls it as it is. A crate that is an `rlib` too (to be linked into
/// a program through [`entry_point`]) must put it behind a feature of its own, which only the build of
/// the `.so` turns on; two engines in one program would otherwise define the same symbols twice and
/// fail to link:
///
/// ```text
/// # Cargo.toml
/// [lib]
/// crate-type = ["rlib", "cdylib"]
/// [features]
/// export = []   # cargo build -p THE-CRATE --features export makes the engine's .so
///
/// // lib.rs
/// #[cfg(feature = "export")]
/// mainstay_engine_abi::export_engine!(MyEngine);
/// ```
#[macro_export]
macro_rules! export_engine {
    ($engine:ty) => {
        /// The engine's magic; see `mainstay_engine.h`.
        // SAFETY: this name is the ABI's, and the macro is called once in a library.
        #[unsafe(no_mangle)]
        pub extern "C" fn mse_magic_v1() -> *const $crate::raw::MseMagic {
            $crate::sdk::magic::<$engine>()
        }

        /// Opens the engine; see `mainstay_engine.h`.
        ///
        /// # Safety
        /// The pointers are the host's and keep the header's rules.
        // SAFETY: this name is the ABI's, and the macro is called once in a library.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn mse_open_v1(
            host: *const $crate::raw::MseHost,
            out: *mut *const $crate::raw::MseVtable,
            err: *mut $crate::raw::MseErr,
        ) -> i32 {
            // SAFETY: the host's promise, passed on.
            unsafe { $crate::sdk::open::<$engine>(host, out, err) }
        }
    };
}
