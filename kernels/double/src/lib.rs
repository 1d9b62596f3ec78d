//! A double of the CUDA driver for tests: a `libcuda.so` whose device computes on the CPU, by the kernels' own sources.
//!
//! Nothing here is a GPU, and nothing is as fast: the device's name is `emulated device`. See `emulate.h` for what it
//! shows and what it can't.

use std::ffi::CString;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use libloading::Library;

/// What may be wrong with the emulated machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// A driver without a device.
    NoDevice,
    /// A driver that is too old.
    OldDriver,
    /// A device that is too old.
    OldDevice,
    /// No memory is left.
    NoMemory,
    /// Every kernel fails.
    LaunchFails,
}

impl Fault {
    const fn name(self) -> &'static str {
        match self {
            Self::None => "",
            Self::NoDevice => "no_device",
            Self::OldDriver => "old_driver",
            Self::OldDevice => "old_device",
            Self::NoMemory => "no_memory",
            Self::LaunchFails => "launch_fails",
        }
    }
}

/// The library's path.
#[must_use]
pub fn path() -> &'static str {
    env!("MAINSTAY_CUDA_DOUBLE")
}

fn library() -> &'static Library {
    static LIBRARY: OnceLock<Library> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        // SAFETY: its initialisers do nothing but set up tables.
        let library = unsafe { Library::new(path()) };
        library.expect("the double was built beside this crate; on x86-64 only")
    })
}

/// Makes it this process's CUDA driver, unless there is one already.
pub fn load() {
    library();
}

/// Makes it the driver, without a fault, for one test at a time: a fault is the whole process's.
pub fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    set_fault(Fault::None);
    turn
}

/// From now on the emulated machine has this fault, and no other.
pub fn set_fault(fault: Fault) {
    let name = CString::new(fault.name()).expect("names have no zero bytes");
    // SAFETY: the function has this type and copies the name.
    let set = unsafe {
        library().get::<unsafe extern "C" fn(*const std::ffi::c_char)>(b"mainstay_double_mode")
    };
    let set = set.expect("the double has its switch");
    // SAFETY: as above.
    unsafe { set(name.as_ptr()) };
}
