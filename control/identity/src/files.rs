//! PEM files: read with a limit, written whole or not at all, keys for their owner only.
//!
//! A running process may read a folder while new files are written into it. Each file is replaced by renaming, so
//! that none is ever half; a set that does not fit together is refused by who reads it, and read again later.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;

use crate::IdentityError;

/// The authority's certificate; in a node's folder, those that it trusts.
pub(crate) const CA: &str = "ca.pem";
/// The authority's key.
pub(crate) const CA_KEY: &str = "ca-key.pem";
/// A node's certificate.
pub(crate) const CERT: &str = "cert.pem";
/// A node's key.
pub(crate) const KEY: &str = "key.pem";
/// SHA-256 of the admin token, in the folders of the authority and of members.
pub(crate) const ADMIN_HASH: &str = "admin-token.hash";
/// The admin token itself, in the authority's folder.
pub(crate) const ADMIN_TOKEN: &str = "admin-token";
/// The largest file that is read.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Certificates in one file at most: a chain, or authorities that follow each other.
const CERTIFICATES_MAX: usize = 16;
const PRIVATE: u32 = 0o600;
const PUBLIC: u32 = 0o644;

pub(crate) fn failed(path: &Path, error: &std::io::Error) -> IdentityError {
    IdentityError::File { path: path.to_owned(), detail: error.to_string() }
}

/// Reads a file of at most [`FILE_BYTES_MAX`]; `missing` says what its absence means.
pub(crate) fn read(
    path: PathBuf,
    missing: impl FnOnce(PathBuf) -> IdentityError,
) -> Result<Vec<u8>, IdentityError> {
    let file = match fs::File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Err(missing(path)),
        Err(error) => return Err(failed(&path, &error)),
    };
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(|e| failed(&path, &e))?;
    Ok(bytes)
}

/// The certificates in a PEM file; at least one.
pub(crate) fn certificates(
    path: &Path,
    pem: &[u8],
) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let malformed = |detail: String| IdentityError::Malformed {
        path: path.to_owned(),
        what: "certificate",
        detail,
    };
    let found: Result<Vec<_>, _> =
        CertificateDer::pem_slice_iter(pem).take(CERTIFICATES_MAX).collect();
    let found = found.map_err(|e| malformed(e.to_string()))?;
    if found.is_empty() {
        return Err(malformed("no PEM block".into()));
    }
    Ok(found)
}

/// The hash of the admin token in a folder, if there is one.
pub(crate) fn admin_hash(dir: &Path) -> Result<Option<String>, IdentityError> {
    let path = dir.join(ADMIN_HASH);
    match read(path, |path| IdentityError::Missing { path }) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).trim().to_owned())),
        Err(IdentityError::Missing { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes what everybody may read.
pub(crate) fn write_public(path: &Path, text: &str) -> Result<(), IdentityError> {
    write(path, text, PUBLIC)
}

/// Writes what only the owner may read.
pub(crate) fn write_private(path: &Path, text: &str) -> Result<(), IdentityError> {
    write(path, text, PRIVATE)
}

fn write(path: &Path, text: &str, mode: u32) -> Result<(), IdentityError> {
    let fresh = path.with_extension("new");
    let written = || -> std::io::Result<()> {
        // What an interrupted attempt left may have other permissions.
        if let Err(error) = fs::remove_file(&fresh)
            && error.kind() != ErrorKind::NotFound
        {
            return Err(error);
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&fresh)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&fresh, path)
    };
    written().map_err(|e| failed(path, &e))
}

/// Makes a folder that only its owner may enter; one that exists stays as it is.
pub(crate) fn make_folder(path: &Path) -> Result<(), IdentityError> {
    use std::os::unix::fs::DirBuilderExt;
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|e| failed(path, &e))
}

/// Says so when others than its owner may read a key. It is not refused: mounted secrets often are that way.
pub(crate) fn warn_if_shared(path: &Path) {
    let Ok(meta) = fs::metadata(path) else { return };
    if meta.permissions().mode() & 0o077 != 0 {
        tracing::warn!(path = %path.display(), "others may read this key; chmod 600 would end that");
    }
}
