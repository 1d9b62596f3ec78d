//! The data directory of a member: whose it is and which format it has, checked before anything opens it.
//!
//! The marker file is written first in a new folder and never changes. A folder with other files in it is
//! refused, so that a mistyped path never fills somebody's home with a database.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::error::StoreError;

/// The format this program writes: the layout of the folder, of keys and of records.
pub(crate) const FORMAT: u32 = 1;
const MARKER: &str = "MEMBER";
const DATABASE: &str = "log";
const SNAPSHOT: &str = "snapshot";
/// A marker is a few dozen bytes; more is not one.
const MARKER_BYTES_MAX: u64 = 256;

/// A folder that is this member's.
#[derive(Debug, Clone)]
pub(crate) struct Folder {
    path: PathBuf,
}

impl Folder {
    /// Takes `path` for `member`, creating it if need be.
    pub(crate) fn claim(path: &Path, member: u64) -> Result<Self, StoreError> {
        fs::create_dir_all(path).map_err(|e| StoreError::io(path, &e))?;
        let marker = path.join(MARKER);
        match fs::metadata(&marker) {
            Ok(data) if data.len() > MARKER_BYTES_MAX => {
                return Err(StoreError::corrupt(path, "its MEMBER file is too long"));
            }
            Ok(_) => {
                let text = fs::read_to_string(&marker).map_err(|e| StoreError::io(path, &e))?;
                check(path, &text, member)?;
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let temporary = path.join("MEMBER.tmp");
                refuse_foreign(path, &temporary)?;
                write(path, &temporary, &marker, member).map_err(|e| StoreError::io(path, &e))?;
            }
            Err(e) => return Err(StoreError::io(path, &e)),
        }
        Ok(Self { path: path.to_owned() })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.path.join(DATABASE)
    }

    pub(crate) fn snapshot(&self) -> PathBuf {
        self.path.join(SNAPSHOT)
    }
}

fn refuse_foreign(path: &Path, temporary: &Path) -> Result<(), StoreError> {
    let entries = fs::read_dir(path).map_err(|e| StoreError::io(path, &e))?;
    for entry in entries {
        let entry = entry.map_err(|e| StoreError::io(path, &e))?;
        // A marker half written before a crash is ours.
        if entry.path() != temporary {
            return Err(StoreError::Foreign { dir: path.to_owned() });
        }
    }
    Ok(())
}

fn write(path: &Path, temporary: &Path, marker: &Path, member: u64) -> std::io::Result<()> {
    let mut file = fs::File::create(temporary)?;
    file.write_all(format!("mainstay-control format {FORMAT} member {member}\n").as_bytes())?;
    file.sync_all()?;
    fs::rename(temporary, marker)?;
    fs::File::open(path)?.sync_all()
}

fn check(path: &Path, text: &str, member: u64) -> Result<(), StoreError> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let ["mainstay-control", "format", format, rest @ ..] = words.as_slice() else {
        return Err(StoreError::corrupt(path, "its MEMBER file does not say what it is"));
    };
    if format.parse() != Ok(FORMAT) {
        let found = (*format).to_owned();
        return Err(StoreError::Version { dir: path.to_owned(), found, expected: FORMAT });
    }
    let found = match rest {
        ["member", id] => id.parse().ok(),
        _ => None,
    };
    match found {
        Some(found) if found == member => Ok(()),
        Some(found) => {
            Err(StoreError::OtherMember { dir: path.to_owned(), found, expected: member })
        }
        None => Err(StoreError::corrupt(path, "its MEMBER file names no member")),
    }
}
