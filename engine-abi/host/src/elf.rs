//! A look at a library's ELF header before the loader maps it.
//!
//! The loader maps segments without comparing them to the file's length, so a truncated library kills
//! the process with SIGBUS instead of failing. This check turns that, and any file that is no library
//! at all, into words. It proves nothing else: a library that passes may still be refused.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

const HEADER_BYTES: usize = 64;
const SEGMENT_BYTES: usize = 56;
const PT_LOAD: u32 = 1;
const ET_DYN: u16 = 3;

#[cfg(target_arch = "x86_64")]
const MACHINE: (u16, &str) = (62, "x86-64");
#[cfg(target_arch = "aarch64")]
const MACHINE: (u16, &str) = (183, "aarch64");

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).and_then(|b| b.try_into().ok()).map_or(0, u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
}

/// Says why the file can't be a whole shared library of this machine, or nothing.
pub(crate) fn check(path: &Path) -> Result<(), String> {
    let mut file = File::open(path).map_err(|error| error.to_string())?;
    let metadata = file.metadata().map_err(|error| error.to_string())?;
    if !metadata.is_file() {
        return Err("it is not a file".into());
    }
    let mut header = [0; HEADER_BYTES];
    if file.read_exact(&mut header).is_err() || !header.starts_with(b"\x7fELF") {
        return Err("it does not begin as an ELF file".into());
    }
    if (header[4], header[5]) != (2, 1) {
        return Err("it is not for a 64-bit little-endian machine".into());
    }
    if u16_at(&header, 16) != ET_DYN {
        return Err("it is an ELF file, but not a shared one".into());
    }
    if u16_at(&header, 18) != MACHINE.0 {
        return Err(format!("it is for another processor than {}", MACHINE.1));
    }
    check_length(&mut file, &header, metadata.len())
}

/// Whether segments and section headers lie within the file.
fn check_length(file: &mut File, header: &[u8], len: u64) -> Result<(), String> {
    let truncated = || format!("it is truncated at {len} bytes");
    let (sections_at, section_bytes) = (u64_at(header, 40), u64::from(u16_at(header, 58)));
    let sections_len = section_bytes * u64::from(u16_at(header, 60));
    if sections_at.checked_add(sections_len).is_none_or(|end| end > len) {
        return Err(truncated());
    }
    if usize::from(u16_at(header, 54)) != SEGMENT_BYTES {
        return Err("its segment table has another format".into());
    }
    file.seek(SeekFrom::Start(u64_at(header, 32))).map_err(|error| error.to_string())?;
    for _ in 0..u16_at(header, 56) {
        let mut segment = [0; SEGMENT_BYTES];
        file.read_exact(&mut segment).map_err(|_| truncated())?;
        let end = u64_at(&segment, 8).checked_add(u64_at(&segment, 32));
        if u32_at(&segment, 0) == PT_LOAD && end.is_none_or(|end| end > len) {
            return Err(truncated());
        }
    }
    Ok(())
}
