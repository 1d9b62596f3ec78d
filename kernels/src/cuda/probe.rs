//! Whether this machine has a GPU that will do, without ever calling what may not be there.
//!
//! cudarc panics where the library or a function of it is missing. So the driver is opened and every function that we
//! use is looked up here first; nothing else in this crate calls the driver before [`probe`] has found all of it.

use cudarc::driver::sys::CUdevice_attribute as Attribute;
use cudarc::driver::{result, sys};

/// The oldest driver whose compiler reads our PTX (8.4), as `cuDriverGetVersion` tells it.
const DRIVER_VERSION_MIN: i32 = 12_040;
/// The kernels need bf16 products and asynchronous copies.
const CAPABILITY_MIN: (i32, i32) = (8, 0);

/// Every function of the driver that this crate calls, under the names that its library has for them.
pub const SYMBOLS: [&str; 27] = [
    "cuCtxSetCurrent",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDriverGetVersion",
    "cuFuncSetAttribute",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuInit",
    "cuLaunchKernel",
    "cuMemAlloc_v2",
    "cuMemFreeHost",
    "cuMemFree_v2",
    "cuMemGetInfo_v2",
    "cuMemHostAlloc",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemsetD8Async",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamSynchronize",
];

/// Why no GPU can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// There is no driver library.
    #[error(
        "no NVIDIA driver (libcuda.so) on this machine; install it, or in a container ask for its GPUs (--gpus all)"
    )]
    NoDriver,
    /// The library lacks what we call.
    #[error("the NVIDIA driver has no {0}; install driver 550 or later")]
    NoSymbol(&'static str),
    /// The driver is older than our kernels' text.
    #[error("the NVIDIA driver speaks CUDA {}.{}; kernels need 12.4: install driver 550 or later", .0 / 1000, .0 % 1000 / 10)]
    OldDriver(i32),
    /// The driver is there and does not work, or has no device.
    #[error("the NVIDIA driver does not answer: {0}; `nvidia-smi` may say more")]
    Broken(String),
    /// There is no such device.
    #[error("there is no GPU {wanted}, only {count}")]
    NoDevice {
        /// The ordinal that was asked for.
        wanted: usize,
        /// How many there are.
        count: usize,
    },
    /// The device lacks instructions.
    #[error("{name} has compute capability {major}.{minor}; kernels need 8.0 (Ampere) or later")]
    OldDevice {
        /// The device's name.
        name: String,
        /// Its capability.
        major: i32,
        /// The part behind the point.
        minor: i32,
    },
}

/// A GPU that will do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its number.
    pub ordinal: usize,
    /// Its name.
    pub name: String,
    /// Compute capability.
    pub capability: (i32, i32),
    /// Processors that blocks of threads run on.
    pub multiprocessors: u32,
    /// What the driver speaks, as 1000 times the major version and ten times the minor.
    pub driver_version: i32,
}

/// Looks for GPU `ordinal`.
///
/// # Errors
/// What is missing, and what to do about it.
pub fn probe(ordinal: usize) -> Result<Found, Unavailable> {
    library()?;
    let broken = |e: result::DriverError| Unavailable::Broken(super::driver::name_of(e));
    result::init().map_err(broken)?;
    let mut driver_version = 0;
    // SAFETY: the function is there, and writes one number.
    unsafe { sys::cuDriverGetVersion(&raw mut driver_version) }.result().map_err(broken)?;
    if driver_version < DRIVER_VERSION_MIN {
        return Err(Unavailable::OldDriver(driver_version));
    }
    let count = usize::try_from(result::device::get_count().map_err(broken)?).unwrap_or(0);
    let Some(wanted) = i32::try_from(ordinal).ok().filter(|_| ordinal < count) else {
        return Err(Unavailable::NoDevice { wanted: ordinal, count });
    };
    let device = result::device::get(wanted).map_err(broken)?;
    let name = result::device::get_name(device).map_err(broken)?;
    // SAFETY: the device is one that the driver gave.
    let attribute = |of| unsafe { result::device::get_attribute(device, of) }.map_err(broken);
    let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    if (major, minor) < CAPABILITY_MIN {
        return Err(Unavailable::OldDevice { name, major, minor });
    }
    let multiprocessors = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
    let multiprocessors = u32::try_from(multiprocessors).unwrap_or(1).max(1);
    Ok(Found { ordinal, name, capability: (major, minor), multiprocessors, driver_version })
}

/// Whether the driver's library is there, and all of it.
fn library() -> Result<(), Unavailable> {
    // SAFETY: loading the driver runs its initialisers, as any program that uses a GPU does.
    if !unsafe { sys::is_culib_present() } {
        return Err(Unavailable::NoDriver);
    }
    // SAFETY: it is present, so this does not panic.
    let library = unsafe { sys::culib() };
    let missing = SYMBOLS.into_iter().find(|name| {
        // SAFETY: the address is looked at and not called.
        unsafe { library.get::<*const ()>(name.as_bytes()) }.is_err()
    });
    missing.map_or(Ok(()), |name| Err(Unavailable::NoSymbol(name)))
}
