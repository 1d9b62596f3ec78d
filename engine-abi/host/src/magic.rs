//! The magic of an engine: pure data, judged before any of its code is asked for more.

use mainstay_engine_abi::layout::PUBLISHED;
use mainstay_engine_abi::raw::{ABI_MAJOR, ABI_MINOR, MAGIC, MseMagic, MseStr};
use mainstay_engine_abi::read;
use mainstay_engine_abi::sdk::EntryPoint;
use serde::{Deserialize, Serialize};

use crate::error::LoadError;

/// Bytes of each of the identity's strings.
const IDENTITY_BYTES_MAX: u64 = 256;

/// Who made the engine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineIdentity {
    pub vendor: String,
    pub name: String,
    pub version: String,
}

/// Reads and judges the magic; `engine` names the engine in errors.
pub fn check(entry: &EntryPoint, engine: &str) -> Result<EngineIdentity, LoadError> {
    // SAFETY: `mse_magic_v1` takes nothing and returns static data, by the header.
    let pointer = unsafe { (entry.magic)() };
    let contract = |reason: String| LoadError::Contract { engine: engine.into(), reason };
    if pointer.is_null() || !pointer.is_aligned() {
        return Err(contract("its magic is null or misaligned".into()));
    }
    // SAFETY: every version of the magic begins with these 8 bytes and four numbers.
    let (magic, size, major, minor) = unsafe {
        (
            (&raw const (*pointer).magic).read(),
            (&raw const (*pointer).size).read(),
            (&raw const (*pointer).abi_major).read(),
            (&raw const (*pointer).abi_minor).read(),
        )
    };
    if magic != MAGIC {
        let found = String::from_utf8_lossy(&magic).into_owned();
        return Err(LoadError::OtherMagic { engine: engine.into(), found });
    }
    let other_version = || LoadError::OtherVersion {
        engine: engine.into(),
        engine_version: format!("{major}.{minor}"),
        host_version: format!("{ABI_MAJOR}.{ABI_MINOR}"),
    };
    if major != ABI_MAJOR {
        return Err(other_version());
    }
    if (size as usize) < size_of::<MseMagic>() {
        return Err(contract(format!("its magic has size {size}")));
    }
    // SAFETY: `size` covers the whole struct.
    let magic = unsafe { pointer.read() };
    if magic.min_host_minor > ABI_MINOR {
        return Err(other_version());
    }
    if (magic.pointer_bits, magic.little_endian) != (usize::BITS, 1) {
        return Err(contract("it is for another kind of machine".into()));
    }
    // A later minor's number can't be known here; R1 has its engine be one of this minor for this host.
    if let Some(layout) = PUBLISHED.get(minor as usize).filter(|layout| **layout != magic.layout) {
        return Err(LoadError::OtherLayout {
            engine: engine.into(),
            version: format!("{major}.{minor}"),
            engine_layout: magic.layout,
            layout: *layout,
        });
    }
    let owned = |text: MseStr, what: &str| {
        // SAFETY: the header has these strings live as long as the library, which is for ever.
        unsafe { read::string(text, IDENTITY_BYTES_MAX, what) }
            .map(str::to_owned)
            .map_err(|error| contract(error.message))
    };
    Ok(EngineIdentity {
        vendor: owned(magic.vendor, "its vendor")?,
        name: owned(magic.name, "its name")?,
        version: owned(magic.version, "its version")?,
    })
}
