//! A node's own half of joining: it makes its key, which never leaves it, and keeps what it is given once that fits.

use std::path::Path;

use rcgen::{CertificateParams, KeyPair};

use crate::authority::library;
use crate::files::{self, ADMIN_HASH, CA, CERT, KEY};
use crate::identity::Material;
use crate::name::Role;
use crate::secret::{hex, sha256};
use crate::{ClusterSecret, Identity, IdentityError};

/// A key that waits for its certificate.
pub struct Applicant {
    key: KeyPair,
    request: Vec<u8>,
}

impl Applicant {
    /// Makes a key and asks for a certificate of it.
    ///
    /// # Errors
    /// If the library that signs refuses.
    pub fn create() -> Result<Self, IdentityError> {
        let key = KeyPair::generate().map_err(library)?;
        let request = CertificateParams::default().serialize_request(&key).map_err(library)?;
        Ok(Self { request: request.der().to_vec(), key })
    }

    /// The request, in DER; only its key and the proof that it is held say anything.
    #[must_use]
    pub fn request(&self) -> &[u8] {
        &self.request
    }

    /// Writes the identity's folder, if what was given is of the token's authority, fits this key and is for that
    /// role and name; nothing is written otherwise.
    ///
    /// # Errors
    /// If it is not, or the folder can't be written.
    pub fn save(
        &self,
        dir: &Path,
        token: &ClusterSecret,
        (role, node): (Role, &str),
        given: &Given,
    ) -> Result<(), IdentityError> {
        let authorities = files::certificates(&dir.join(CA), given.authority.as_bytes())?;
        if hex(&sha256(&authorities[0])) != token.authority() {
            return Err(IdentityError::WrongAuthority { path: dir.join(CERT) });
        }
        let key = self.key.serialize_pem();
        let texts = [&given.authority, &given.certificate, &key, &given.admin_hash];
        let peer = Material::of(dir, texts.map(|text| text.as_bytes().to_vec()))?.peer;
        if (peer.role, peer.node.as_str()) != (role, node) {
            let detail = format!("{role} {node} was asked for, and {peer} was given");
            return Err(IdentityError::NoRole { path: dir.join(CERT), detail });
        }
        files::make_folder(dir)?;
        files::write_public(&dir.join(CA), &given.authority)?;
        files::write_private(&dir.join(KEY), &key)?;
        if !given.admin_hash.is_empty() {
            files::write_public(&dir.join(ADMIN_HASH), &given.admin_hash)?;
        }
        files::write_public(&dir.join(CERT), &given.certificate)
    }
}

/// What a node that joins is given, as PEM.
#[derive(Debug, Clone, Default)]
pub struct Given {
    /// Its certificate.
    pub certificate: String,
    /// The cluster's authority.
    pub authority: String,
    /// Members recognise the admin token by it; empty for others.
    pub admin_hash: String,
}

/// Whether the folder has an identity already, so that a node that joined before is not sent to join again.
#[must_use]
pub fn is_identity(dir: &Path) -> bool {
    Identity::load(dir).is_ok()
}
