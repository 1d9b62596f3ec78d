//! Random secrets: keys of tenants, the admin token, tokens by which nodes join.
//!
//! A secret has 192 random bits, so whoever keeps only its SHA-256 can recognise it and gives nothing away. One that
//! is shown to a member of the cluster also carries the fingerprint of the cluster's authority: its holder has no
//! certificate yet to know the cluster by, and must not show a secret to whoever answers.

use std::fmt::{self, Write};
use std::path::Path;
use std::str::FromStr;

use ring::rand::SecureRandom;

use crate::IdentityError;
use crate::files;

const SECRET_BYTES: usize = 24;
const FINGERPRINT_DIGITS: usize = 64;
/// The longest text that is looked at.
const TEXT_BYTES_MAX: usize = 256;
/// How a key of a tenant begins.
pub const KEY_PREFIX: &str = "msk_";
/// How the admin token begins.
pub const ADMIN_PREFIX: &str = "msa_";
/// How a token to join by begins.
pub const JOIN_PREFIX: &str = "msj_";

/// SHA-256, by which a secret or a certificate is recognised.
#[must_use]
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Compares in a time that does not depend on where two texts differ.
pub(crate) fn same(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    a.len() == b.len() && a.iter().zip(b).fold(0, |differs, (x, y)| differs | (x ^ y)) == 0
}

/// So many random bytes as hexadecimal digits.
fn random(bytes: &mut [u8]) -> Result<String, IdentityError> {
    let filled = ring::rand::SystemRandom::new().fill(bytes);
    filled.map_err(|_| IdentityError::Library("the system has no randomness".into()))?;
    Ok(hex(bytes))
}

/// Makes a secret that begins with `prefix`.
///
/// # Errors
/// If the system has no randomness.
pub fn new_secret(prefix: &str) -> Result<String, IdentityError> {
    Ok(format!("{prefix}{}", random(&mut [0; SECRET_BYTES])?))
}

/// Makes a public name for a secret: eight random digits.
///
/// # Errors
/// If the system has no randomness.
pub fn new_name() -> Result<String, IdentityError> {
    random(&mut [0; 4])
}

/// A secret, and the authority of the cluster that it is for.
#[derive(Clone, PartialEq, Eq)]
pub struct ClusterSecret {
    secret: String,
    authority: String,
}

impl fmt::Debug for ClusterSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterSecret").field("authority", &self.authority).finish_non_exhaustive()
    }
}

impl fmt::Display for ClusterSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.secret, self.authority)
    }
}

impl FromStr for ClusterSecret {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let text = text.trim();
        let digits = |t: &str| t.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        let parts = text.split_once('.').filter(|(secret, authority)| {
            let known = [ADMIN_PREFIX, JOIN_PREFIX].iter().any(|p| secret.starts_with(p));
            known && authority.len() == FINGERPRINT_DIGITS && digits(authority)
        });
        let (secret, authority) =
            parts.filter(|_| text.len() <= TEXT_BYTES_MAX).ok_or(IdentityError::Token)?;
        Ok(Self { secret: secret.to_owned(), authority: authority.to_owned() })
    }
}

impl ClusterSecret {
    /// Makes one for the cluster whose authority has that fingerprint.
    ///
    /// # Errors
    /// If the system has no randomness.
    pub fn create(prefix: &str, authority: &[u8; 32]) -> Result<Self, IdentityError> {
        Ok(Self { secret: new_secret(prefix)?, authority: hex(authority) })
    }

    /// Writes it into a file that only its owner may read.
    ///
    /// # Errors
    /// If the file can't be written.
    pub fn save(&self, path: &Path) -> Result<(), IdentityError> {
        files::write_private(path, &format!("{self}\n"))
    }

    /// What the cluster is shown.
    #[must_use]
    pub fn secret(&self) -> &str {
        &self.secret
    }

    /// What the cluster keeps.
    #[must_use]
    pub fn hash(&self) -> [u8; 32] {
        sha256(self.secret.as_bytes())
    }

    /// Fingerprint of the authority, in hexadecimal digits.
    #[must_use]
    pub fn authority(&self) -> &str {
        &self.authority
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_read_back_and_hides_itself() {
        let made = ClusterSecret::create(JOIN_PREFIX, &[7; 32]).expect("randomness");
        let read: ClusterSecret = format!(" {made}\n").parse().expect("its own text");
        assert_eq!(read, made);
        assert_eq!(read.authority(), hex(&[7; 32]));
        assert!(!format!("{made:?}").contains(made.secret()));
        let text = made.to_string();
        for bad in ["", "msj_", &text[..text.len() - 1], &text.replace("msj", "msx")] {
            assert!(bad.parse::<ClusterSecret>().is_err(), "{bad}");
        }
        assert_ne!(made, ClusterSecret::create(JOIN_PREFIX, &[7; 32]).expect("randomness"));
    }

    #[test]
    fn hashes_are_the_standards() {
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(hex(&sha256(b"abc")), abc);
        assert!(same("ab", "ab") && !same("ab", "ac") && !same("ab", "abc"));
    }
}
