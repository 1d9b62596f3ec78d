//! The data directory of a member: whose it is and which format it has, checked before anything opens it.
//!
//! The marker file is written first in a new folder and is replaced only by one that says more. It holds a random
//! instance number, by which the group tells this folder from any other that claims the same member: a voter
//! whose disk was lost has forgotten its votes and must not come back under its old id. A folder with other files
//! in it is refused, so that a mistyped path never fills somebody's home with a database.
//!
//! The format goes up with the cluster's version: from then on the log has entries that older programs can't read, and
//! those stop at the marker rather than at such an entry. It never goes down.

use std::fs;
use std::io::Write;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use mainstay_state::{VERSION_NEWEST, VERSION_OLDEST};

use crate::error::StoreError;

/// What a format has to be taken off the cluster's version that it stands for.
const FORMAT_BEHIND: u32 = 2;
/// The formats that this program reads: the layout of the folder, of keys and of records, and the versions of those.
const FORMAT_OLDEST: u32 = VERSION_OLDEST as u32 - FORMAT_BEHIND;
const FORMAT: u32 = VERSION_NEWEST as u32 - FORMAT_BEHIND;
const MARKER: &str = "MEMBER";
const DATABASE: &str = "log";
const SNAPSHOT: &str = "snapshot";
/// A marker is a few dozen bytes; more is not one.
const MARKER_BYTES_MAX: u64 = 256;

/// A folder that is this member's.
#[derive(Debug, Clone)]
pub(crate) struct Folder {
    path: PathBuf,
    member: u64,
    instance: u64,
}

/// What a marker says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Marker {
    pub(crate) format: u32,
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
        let found = Self::look(path)?;
        let format = found.map_or(FORMAT_OLDEST, |marker| marker.format);
        let instance = match found {
            Some(marker) if marker.member != member => {
                let (dir, found) = (path.to_owned(), marker.member);
                return Err(StoreError::OtherMember { dir, found, expected: member });
            }
            Some(Marker { instance, .. }) if instance != 0 => instance,
            known => {
                if known.is_none() {
                    refuse_foreign(path)?;
                }
                let instance = random_instance(path)?;
                write(path, &Marker { format, member, instance })
                    .map_err(|e| StoreError::io(path, &e))?;
                instance
            }
        };
        Ok(Self { path: path.to_owned(), member, instance })
    }

    /// Writes down that the cluster has reached `version`, so that no program that does not know it opens the folder.
    pub(crate) fn stamp(&self, version: u8) -> Result<(), StoreError> {
        let format = u32::from(version).saturating_sub(FORMAT_BEHIND);
        let known = Self::look(&self.path)?;
        if known.is_some_and(|marker| marker.format >= format) {
            return Ok(());
        }
        let says = Marker { format, member: self.member, instance: self.instance };
        write(&self.path, &says).map_err(|e| StoreError::io(&self.path, &e))
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
        Self { path: path.to_owned(), member: marker.member, instance: marker.instance }
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

fn refuse_foreign(path: &Path) -> Result<(), StoreError> {
    let half_written = temporary(path, MARKER);
    let entries = fs::read_dir(path).map_err(|e| StoreError::io(path, &e))?;
    for entry in entries {
        let entry = entry.map_err(|e| StoreError::io(path, &e))?;
        // A marker half written before a crash is ours.
        if entry.path() != half_written {
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

fn write(path: &Path, says: &Marker) -> std::io::Result<()> {
    let Marker { format, member, instance } = says;
    let text =
        format!("mainstay-control format {format} member {member} instance {instance:016x}\n");
    place(path, MARKER, text.as_bytes())
}

fn temporary(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}.tmp"))
}

/// Puts the file `name` into `dir`, whole or not at all, and durable on return.
pub(super) fn place(dir: &Path, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    let temporary = temporary(dir, name);
    let mut file = fs::File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(temporary, dir.join(name))?;
    fs::File::open(dir)?.sync_all()
}

fn parse(path: &Path, text: &str) -> Result<Marker, StoreError> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let ["mainstay-control", "format", format, rest @ ..] = words.as_slice() else {
        return Err(StoreError::corrupt(path, "its MEMBER file does not say what it is"));
    };
    let found: Option<u32> = format.parse().ok();
    let Some(format) = found.filter(|f| (FORMAT_OLDEST..=FORMAT).contains(f)) else {
        let found = (*format).to_owned();
        return Err(StoreError::Version { dir: path.to_owned(), found, expected: FORMAT });
    };
    let (id, instance) = match rest {
        ["member", id] => (id.parse().ok(), Some(0)),
        ["member", id, "instance", instance] => {
            (id.parse().ok(), u64::from_str_radix(instance, 16).ok())
        }
        _ => (None, None),
    };
    match (id, instance) {
        (Some(member), Some(instance)) => Ok(Marker { format, member, instance }),
        _ => Err(StoreError::corrupt(path, "its MEMBER file names no member")),
    }
}
