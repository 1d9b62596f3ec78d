//! One node's own certificate, key and authority, as they are in its folder now.
//!
//! The folder is looked at each minute and when asked to; a set that fits together takes effect for every
//! connection opened from then on, in both directions. A set that does not fit (it may be half written) changes
//! nothing and is said in the log. Open connections go on with what they began with.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use tokio_rustls::rustls::server::danger::ClientCertVerifier;
use tokio_rustls::rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{
    CertificateError, ClientConfig, Error as TlsError, RootCertStore, ServerConfig,
};

use crate::files::{self, CA, CA_KEY, CERT, KEY};
use crate::name::{self, Peer, Role};
use crate::secret::{hex, same, sha256};
use crate::{Authority, IdentityError, Issued};

/// How often the files are looked at.
pub const RELOAD_EVERY: Duration = Duration::from_secs(60);
/// From how near its end on a certificate is complained about.
const SOON: Duration = Duration::from_secs(7 * 86_400);
pub(crate) const ALPN_H2: &[u8] = b"h2";

/// Who this process is. Clones are the same identity.
#[derive(Clone)]
pub struct Identity {
    inner: Arc<Inner>,
}

struct Inner {
    dir: PathBuf,
    peer: Peer,
    current: RwLock<Arc<Material>>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("peer", &self.inner.peer).finish_non_exhaustive()
    }
}

/// The files as they were read, and what was made of them.
pub(crate) struct Material {
    files: [Vec<u8>; 4],
    pub(crate) peer: Peer,
    end: i64,
    fingerprint: [u8; 32],
    /// What the admin token hashes to, in hexadecimal digits; empty where there is none.
    admin_hash: String,
    pub(crate) server: Arc<ServerConfig>,
    /// Also takes clients without a certificate, and shows them the authority's.
    pub(crate) server_of_guests: Arc<ServerConfig>,
    pub(crate) client: Arc<ClientConfig>,
}

impl Identity {
    /// Reads `ca.pem`, `cert.pem` and `key.pem`.
    ///
    /// # Errors
    /// If a file is missing or malformed, or they do not fit together, or the certificate is not valid now.
    pub fn load(dir: &Path) -> Result<Self, IdentityError> {
        let material = Material::read(dir)?;
        files::warn_if_shared(&dir.join(KEY));
        Ok(Self::new(dir, material))
    }

    fn new(dir: &Path, material: Material) -> Self {
        let inner = Inner {
            dir: dir.to_owned(),
            peer: material.peer.clone(),
            current: RwLock::new(Arc::new(material)),
        };
        Self { inner: Arc::new(inner) }
    }

    /// An identity that lies on no disk: of a role in the same process as its authority.
    ///
    /// # Errors
    /// If the certificate does not hold.
    pub fn in_process(issued: &Issued) -> Result<Self, IdentityError> {
        let dir = Path::new("");
        Ok(Self::new(dir, Material::of(dir, issued.contents())?))
    }

    /// The authority, where its key lies in this node's folder: such a node signs for those that join.
    ///
    /// # Errors
    /// If the key is there and can't be used.
    pub fn authority(&self) -> Result<Option<Authority>, IdentityError> {
        let dir = &self.inner.dir;
        if dir.as_os_str().is_empty() || !dir.join(CA_KEY).exists() {
            return Ok(None);
        }
        Authority::load(dir).map(Some)
    }

    /// SHA-256 of the authority's certificate, the first one in `ca.pem`.
    #[must_use]
    pub fn fingerprint(&self) -> [u8; 32] {
        self.material().fingerprint
    }

    /// Whether that is the admin token's secret.
    pub(crate) fn is_admin(&self, secret: &str) -> bool {
        let known = &self.material().admin_hash;
        !known.is_empty() && same(&hex(&sha256(secret.as_bytes())), known)
    }

    /// [`Identity::load`] of a certificate for that role.
    ///
    /// # Errors
    /// As [`Identity::load`], or if the certificate is for another role.
    pub fn load_as(dir: &Path, needed: Role) -> Result<Self, IdentityError> {
        let identity = Self::load(dir)?;
        let own = identity.peer().role;
        if own == needed {
            return Ok(identity);
        }
        Err(IdentityError::OtherRole { path: dir.to_owned(), own, needed })
    }

    /// Whom its certificate names.
    #[must_use]
    pub fn peer(&self) -> &Peer {
        &self.inner.peer
    }

    /// Looks at the files now; whether they were other than before.
    ///
    /// # Errors
    /// As [`Identity::load`], or if they would make this process somebody else. The former set stays then.
    pub fn reload(&self) -> Result<bool, IdentityError> {
        let dir = &self.inner.dir;
        let read = Material::files(dir)?;
        if self.material().files == read {
            return Ok(false);
        }
        let fresh = Material::of(dir, read)?;
        if fresh.peer != self.inner.peer {
            return Err(IdentityError::Changed {
                path: dir.clone(),
                own: self.inner.peer.to_string(),
                found: fresh.peer.to_string(),
            });
        }
        *self.inner.current.write() = Arc::new(fresh);
        Ok(true)
    }

    /// [`Identity::reload`], with the outcome in the log.
    pub fn reload_and_log(&self) {
        match self.reload() {
            Ok(true) => tracing::info!(node = %self.peer(), "the certificate was replaced"),
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(%error, "the certificate on disk is not used; the former one stays");
            }
        }
        let left = self.remaining();
        if left < SOON {
            tracing::warn!(
                node = %self.peer(),
                hours = left.as_secs() / 3_600,
                "the certificate ends soon; issue another with `mainstay control cert` and the same --out"
            );
        }
    }

    /// Looks at the files each [`RELOAD_EVERY`], for ever.
    pub async fn keep_fresh(self) {
        let mut ticks = tokio::time::interval(RELOAD_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let this = self.clone();
            // A folder may lie on a slow disk.
            if tokio::task::spawn_blocking(move || this.reload_and_log()).await.is_err() {
                return;
            }
        }
    }

    /// How long the certificate goes on being valid.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        let left = self.material().end - time::OffsetDateTime::now_utc().unix_timestamp();
        Duration::from_secs(left.try_into().unwrap_or(0))
    }

    /// What a listener needs: TLS 1.3, a client certificate, HTTP/2. As of now; ask again for each connection.
    #[must_use]
    pub fn server_config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.material().server)
    }

    pub(crate) fn server_config_of_guests(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.material().server_of_guests)
    }

    pub(crate) fn material(&self) -> Arc<Material> {
        Arc::clone(&self.inner.current.read())
    }

    pub(crate) fn certificate_path(&self) -> PathBuf {
        self.inner.dir.join(CERT)
    }
}

impl Material {
    fn files(dir: &Path) -> Result<[Vec<u8>; 4], IdentityError> {
        let read = |name| files::read(dir.join(name), |path| IdentityError::Missing { path });
        let admin_hash = files::admin_hash(dir)?.unwrap_or_default();
        Ok([read(CA)?, read(CERT)?, read(KEY)?, admin_hash.into_bytes()])
    }

    fn read(dir: &Path) -> Result<Self, IdentityError> {
        Self::of(dir, Self::files(dir)?)
    }

    pub(crate) fn of(dir: &Path, files: [Vec<u8>; 4]) -> Result<Self, IdentityError> {
        let (cert_path, key_path) = (dir.join(CERT), dir.join(KEY));
        let authorities = files::certificates(&dir.join(CA), &files[0])?;
        let chain = files::certificates(&cert_path, &files[1])?;
        let key = PrivateKeyDer::from_pem_slice(&files[2]).map_err(|e| {
            IdentityError::Malformed { path: key_path.clone(), what: "key", detail: e.to_string() }
        })?;
        let unnamed = |detail| IdentityError::NoRole { path: cert_path.clone(), detail };
        let peer = Peer::of(&chain[0]).map_err(unnamed)?;
        let end = name::end_of(&chain[0]).map_err(unnamed)?;
        let mut roots = RootCertStore::empty();
        for authority in &authorities {
            roots.add(authority.clone()).map_err(library)?;
        }
        let roots = Arc::new(roots);
        let provider = Arc::new(ring::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
                .build()
                .map_err(library)?;
        check_own(verifier.as_ref(), &chain, &cert_path)?;
        let open =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
                .allow_unauthenticated()
                .build()
                .map_err(library)?;
        let fingerprint = sha256(&authorities[0]);
        let shown: Vec<_> = chain.iter().cloned().chain(authorities).collect();
        let fit = |error: TlsError| match error {
            TlsError::InconsistentKeys(_) => IdentityError::KeyMismatch { path: key_path.clone() },
            other => library(other),
        };
        let server =
            server_config(&provider, verifier, chain.clone(), key.clone_key()).map_err(fit)?;
        let server_of_guests =
            server_config(&provider, open, shown, key.clone_key()).map_err(fit)?;
        let client = client_config(&provider, roots, chain, key).map_err(fit)?;
        let admin_hash = String::from_utf8_lossy(&files[3]).into_owned();
        Ok(Self {
            files,
            peer,
            end,
            fingerprint,
            admin_hash,
            server: Arc::new(server),
            server_of_guests: Arc::new(server_of_guests),
            client: Arc::new(client),
        })
    }
}

pub(crate) fn library(error: impl std::fmt::Display) -> IdentityError {
    IdentityError::Library(error.to_string())
}

/// Sees one's own certificate as others will.
fn check_own(
    verifier: &dyn ClientCertVerifier,
    chain: &[CertificateDer<'static>],
    path: &Path,
) -> Result<(), IdentityError> {
    let Err(error) = verifier.verify_client_cert(&chain[0], &chain[1..], UnixTime::now()) else {
        return Ok(());
    };
    let path = path.to_owned();
    Err(match error {
        TlsError::InvalidCertificate(reason) => match reason {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                IdentityError::Expired { path }
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                IdentityError::NotYetValid { path }
            }
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                IdentityError::WrongAuthority { path }
            }
            other => {
                IdentityError::Malformed { path, what: "certificate", detail: format!("{other:?}") }
            }
        },
        other => library(other),
    })
}

// Neither side resumes sessions: a resumed one would not look at the certificate again, and connections live long.
fn server_config(
    provider: &Arc<CryptoProvider>,
    verifier: Arc<dyn ClientCertVerifier>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ServerConfig, TlsError> {
    let mut config = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn client_config(
    provider: &Arc<CryptoProvider>,
    roots: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ClientConfig, TlsError> {
    let mut config = ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)?;
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}
