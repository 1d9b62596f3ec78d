//! Loading an engine's library into this process, for good.
//!
//! A library is opened with `RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE` and never closed (rule R7): its
//! threads, thread-locals and exit handlers may outlive the engine that was made from it.

use std::ffi::CString;
use std::path::Path;

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use mainstay_engine_abi::raw::{ABI_MAJOR, ABI_MINOR, MagicFn, OpenFn, SYMBOL_MAGIC, SYMBOL_OPEN};
use mainstay_engine_abi::sdk::EntryPoint;

use crate::elf;
use crate::error::LoadError;

/// glibc's and musl's value on Linux; libloading has no name for it.
const RTLD_NODELETE: i32 = 0x1000;
/// Majors after ours whose symbol is looked for, to say "other version" instead of "no engine".
const MAJORS_LOOKED_FOR: u32 = 16;

/// Loads the library at `path` and finds its two functions.
pub fn load(path: &Path) -> Result<EntryPoint, LoadError> {
    // An absolute path keeps the loader from searching its own directories for a bare name.
    let path = path.canonicalize().map_err(|error| LoadError::FileMissing {
        path: path.to_path_buf(),
        reason: error.to_string(),
    })?;
    elf::check(&path).map_err(|reason| LoadError::NotALibrary { path: path.clone(), reason })?;
    // SAFETY: initialisers of the library run here. The operator chose this file as an engine and
    // chose to have it in this process; the child process is the answer where it isn't trusted.
    let library = unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE) }
        .map_err(|error| {
            // The loader's own words are the source; the error itself only says "dlopen failed".
            let source = std::error::Error::source(&error).map(ToString::to_string);
            let reason = source.unwrap_or_else(|| error.to_string());
            LoadError::Refused { path: path.clone(), reason }
        })?;
    // Forgetting the handle before anything can fail keeps the library from ever being closed.
    let library = std::mem::ManuallyDrop::new(library);
    // SAFETY: the header gives these symbols these types; a library that exports the name with
    // another type is broken, which nothing on this side could detect.
    let (magic, open) = unsafe {
        (symbol::<MagicFn>(&library, SYMBOL_MAGIC), symbol::<OpenFn>(&library, SYMBOL_OPEN))
    };
    match (magic, open) {
        (Some(magic), Some(open)) => Ok(EntryPoint { magic, open }),
        (None, _) => Err(no_magic(&library, &path)),
        (_, None) => Err(LoadError::NotAnEngine { path, symbol: SYMBOL_OPEN.into() }),
    }
}

fn no_magic(library: &Library, path: &Path) -> LoadError {
    let other = (0..MAJORS_LOOKED_FOR).filter(|major| *major != ABI_MAJOR).find(|major| {
        // SAFETY: the symbol is only looked up, never called.
        unsafe { symbol::<MagicFn>(library, &format!("mse_magic_v{major}")) }.is_some()
    });
    match other {
        Some(major) => LoadError::OtherVersion {
            engine: path.display().to_string(),
            engine_version: format!("{major}.x"),
            host_version: format!("{ABI_MAJOR}.{ABI_MINOR}"),
        },
        None => LoadError::NotAnEngine { path: path.to_path_buf(), symbol: SYMBOL_MAGIC.into() },
    }
}

/// # Safety
/// `T` is the symbol's type.
unsafe fn symbol<T: Copy>(library: &Library, name: &str) -> Option<T> {
    let name = CString::new(name).ok()?;
    // SAFETY: the caller's promise. The library is never closed, so the copy stays valid.
    unsafe { library.get::<T>(name.as_c_str()) }.ok().map(|symbol| *symbol)
}
