//! The data directory of a member: whose it is and which format it has, checked before anything opens it.
//!
//! The marker file is written first in a new folder and is replaced only by one that says more. It holds a random
//! instance number, by which the group tells this folder from any other that claims the same member: a voter
//! whose disk was lost has forgotten its votes and must not come back under its old id. A folder with other files
//! in it is refused, so that a mistyped path never fills somebody's home with a database.

use std::fs;
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
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
    instance: u64,
}

/// What a marker says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Marker {
    pub(crate) member: u64,
    /// 0 in the markers of folders that are older than these numbers.
    pub(crate) instance: u64,
}

impl Folder {
    /// Takes `path` for `member`, creating it if need be.
    pub(crate) fn claim(path: &Path, member: u64) -> Result<Self, StoreError> {
        // It holds the cluster's hash key and prompts that are kept with pins: nobody else's business.
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
        made.map_err(|e| StoreError::io(path, &e))?;
        let temporary = path.join("MEMBER.tmp");
        let instance = match Self::look(path)? {
            Some(marker) if marker.member != member => {
                let (dir, found) = (path.to_owned(), marker.member);
                return Err(StoreError::OtherMember { dir, found, expected: member });
            }
            Some(Marker { instance, .. }) if instance != 0 => instance,
            known => {
                if known.is_none() {
                    refuse_foreign(path, &temporary)?;
                }
                let instance = random_instance(path)?;
                let marker = path.join(MARKER);
                write(path, &temporary, &marker, &Marker { member, instance })
                    .map_err(|e| StoreError::io(path, &e))?;
                instance
            }
        };
        Ok(Self { path: path.to_owned(), instance })
    }

    /// Reads the marker of `path` and changes nothing; `None` if there is none.
    pub(crate) fn look(path: &Path) -> Result<Option<Marker>, StoreError> {
        let marker = path.join(MARKER);
        match fs::metadata(&marker) {
            Ok(data) if data.len() > MARKER_BYTES_MAX => {
                Err(StoreError::corrupt(path, "its MEMBER file is too long"))
            }
            Ok(_) => {
                let text = fs::read(&marker).map_err(|e| StoreError::io(path, &e))?;
                parse(path, &String::from_utf8_lossy(&text)).map(Some)
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(StoreError::io(path, &e)),
        }
    }

    /// A folder whose marker was read; nothing is created.
    pub(crate) fn existing(path: &Path, marker: Marker) -> Self {
        Self { path: path.to_owned(), instance: marker.instance }
    }

    /// What tells this folder from every other.
    pub(crate) fn instance(&self) -> u64 {
        self.instance
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

/// Never 0, which stands for not known.
fn random_instance(path: &Path) -> Result<u64, StoreError> {
    let random = getrandom::u64().map_err(|e| StoreError::Io {
        dir: path.to_owned(),
        detail: format!("the system has no randomness: {e}"),
    })?;
    Ok(random.max(1))
}

fn write(path: &Path, temporary: &Path, marker: &Path, says: &Marker) -> std::io::Result<()> {
    let Marker { member, instance } = says;
    let text =
        format!("mainstay-control format {FORMAT} member {member} instance {instance:016x}\n");
    let mut file = fs::File::create(temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(temporary, marker)?;
    fs::File::open(path)?.sync_all()
}

fn parse(path: &Path, text: &str) -> Result<Marker, StoreError> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let ["mainstay-control", "format", format, rest @ ..] = words.as_slice() else {
        return Err(StoreError::corrupt(path, "its MEMBER file does not say what it is"));
    };
    if format.parse() != Ok(FORMAT) {
        let found = (*format).to_owned();
        return Err(StoreError::Version { dir: path.to_owned(), found, expected: FORMAT });
    }
    let (id, instance) = match rest {
        ["member", id] => (id.parse().ok(), Some(0)),
        ["member", id, "instance", instance] => {
            (id.parse().ok(), u64::from_str_radix(instance, 16).ok())
        }
        _ => (None, None),
    };
    match (id, instance) {
        (Some(member), Some(instance)) => Ok(Marker { member, instance }),
        _ => Err(StoreError::corrupt(path, "its MEMBER file names no member")),
    }
}
