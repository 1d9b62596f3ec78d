//! The cluster's authority: one key that signs the certificates of all nodes.
//!
//! It lives in a folder of its own, away from the nodes, and is needed only when a certificate is issued. Nothing
//! revokes a certificate before its end, so lifetimes are limited and renewal is cheap.

use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use time::OffsetDateTime;
use tokio_rustls::rustls::pki_types::ServerName;

use crate::IdentityError;
use crate::files::{self, ADMIN_HASH, ADMIN_TOKEN, CA, CA_KEY, CERT, KEY};
use crate::join::Given;
use crate::name::{self, Peer, Role};
use crate::secret::{ADMIN_PREFIX, ClusterSecret, hex, sha256};

/// How long a node's certificate lasts unless asked otherwise.
pub const DAYS_USUAL: u32 = 365;
/// How long a certificate may last.
pub const DAYS_MAX: u32 = 3_650;
/// How many host names and addresses one certificate may have.
pub const HOSTS_MAX: usize = 64;
/// A request has one key and its proof.
const REQUEST_BYTES_MAX: usize = 16 << 10;
const AUTHORITY_DAYS: u32 = DAYS_MAX + 1;
/// Clocks differ: a certificate is valid a little before it was made.
const BACKDATED: Duration = Duration::from_secs(300);
const DAY: Duration = Duration::from_secs(86_400);

/// Signs certificates.
pub struct Authority {
    cluster: String,
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    end: i64,
    fingerprint: [u8; 32],
    /// SHA-256 of the admin token, where there is one.
    admin_hash: Option<String>,
}

/// What a certificate should say.
#[derive(Debug, Clone)]
pub struct Order {
    /// What its holder is for.
    pub role: Role,
    /// Its holder's name; a worker's is the name it registers under.
    pub node: String,
    /// Host names and addresses under which its holder is reached.
    pub hosts: Vec<String>,
    /// From when it is valid.
    pub from: SystemTime,
    /// For how long.
    pub lifetime: Duration,
}

impl Order {
    /// A certificate for this machine's loopback, from a moment ago, for the usual time.
    #[must_use]
    pub fn new(role: Role, node: impl Into<String>) -> Self {
        Self {
            role,
            node: node.into(),
            hosts: vec!["localhost".into(), "127.0.0.1".into(), "::1".into()],
            from: SystemTime::now() - BACKDATED,
            lifetime: DAY * DAYS_USUAL + BACKDATED,
        }
    }

    /// Lasts so many days from now.
    ///
    /// # Errors
    /// If that is none, or more than [`DAYS_MAX`].
    pub fn days(mut self, days: u32) -> Result<Self, IdentityError> {
        if !(1..=DAYS_MAX).contains(&days) {
            let text = format!("a certificate lasts 1 to {DAYS_MAX} days, not {days}");
            return Err(IdentityError::Lifetime(text));
        }
        self.lifetime = DAY * days + BACKDATED;
        Ok(self)
    }
}

/// A certificate with its key, as PEM.
pub struct Issued {
    authority: String,
    certificate: String,
    key: String,
    /// What members recognise the admin token by.
    admin_hash: Option<String>,
    /// The authority's key, for a member that signs.
    signing_key: Option<String>,
}

impl std::fmt::Debug for Issued {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issued").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

impl Issued {
    /// Writes `ca.pem`, `cert.pem` and `key.pem`, replacing what was there.
    ///
    /// # Errors
    /// If the folder can't be made or written.
    pub fn save(&self, dir: &Path) -> Result<(), IdentityError> {
        files::make_folder(dir)?;
        files::write_public(&dir.join(CA), &self.authority)?;
        files::write_private(&dir.join(KEY), &self.key)?;
        if let Some(hash) = &self.admin_hash {
            files::write_public(&dir.join(ADMIN_HASH), hash)?;
        }
        match &self.signing_key {
            Some(key) => files::write_private(&dir.join(CA_KEY), key)?,
            // Never taken away: the folder may be the authority's own.
            None if dir.join(CA_KEY).exists() => {
                let key = dir.join(CA_KEY);
                tracing::warn!(path = %key.display(), "whoever runs here can still sign; remove this key if it shall not");
            }
            None => {}
        }
        files::write_public(&dir.join(CERT), &self.certificate)
    }

    /// Lets its holder sign certificates of nodes that join: a member with the authority's key can become anybody.
    #[must_use]
    pub fn signing(mut self, authority: &Authority) -> Self {
        self.signing_key = Some(authority.issuer.key().serialize_pem());
        self
    }

    /// The files' contents: authority, certificate, key, hash of the admin token.
    pub(crate) fn contents(&self) -> [Vec<u8>; 4] {
        let admin = self.admin_hash.clone().unwrap_or_default();
        [&self.authority, &self.certificate, &self.key, &admin].map(|t| t.as_bytes().to_vec())
    }
}

pub(crate) fn library(error: impl std::fmt::Display) -> IdentityError {
    IdentityError::Library(error.to_string())
}

impl Authority {
    /// Makes a new authority for a cluster of that name, with a key of its own.
    ///
    /// # Errors
    /// If the name won't do.
    pub fn create(cluster: &str) -> Result<Self, IdentityError> {
        name::check_cluster(cluster)?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, format!("authority of {cluster}"));
        let uri = Ia5String::try_from(name::authority_uri(cluster)).map_err(library)?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let now = SystemTime::now();
        params.not_before = OffsetDateTime::from(now - BACKDATED);
        params.not_after = OffsetDateTime::from(now + DAY * AUTHORITY_DAYS);
        let end = params.not_after.unix_timestamp();
        let key = KeyPair::generate().map_err(library)?;
        let certificate = params.self_signed(&key).map_err(library)?;
        let fingerprint = sha256(certificate.der());
        let (pem, issuer) = (certificate.pem(), Issuer::new(params, key));
        let cluster = cluster.to_owned();
        Ok(Self { cluster, issuer, pem, end, fingerprint, admin_hash: None })
    }

    /// Reads an authority's folder.
    ///
    /// # Errors
    /// If a file is missing or is not what it should be.
    pub fn load(dir: &Path) -> Result<Self, IdentityError> {
        let (path, key_path) = (dir.join(CA), dir.join(CA_KEY));
        let missing = |path| IdentityError::NoAuthority { path };
        let pem = files::read(path.clone(), missing)?;
        let key = files::read(key_path.clone(), missing)?;
        let malformed = |path: &Path, what, detail: String| IdentityError::Malformed {
            path: path.to_owned(),
            what,
            detail,
        };
        let certificates = files::certificates(&path, &pem)?;
        let certificate = &certificates[0];
        let bad = |detail| malformed(&path, "authority", detail);
        let cluster = name::cluster_of(certificate).map_err(bad)?;
        let end = name::end_of(certificate).map_err(bad)?;
        let key = String::from_utf8_lossy(&key);
        let key = KeyPair::from_pem(&key)
            .map_err(|e| malformed(&key_path, "key of an authority", e.to_string()))?;
        let (_, parsed) =
            x509_parser::parse_x509_certificate(certificate).map_err(|e| bad(e.to_string()))?;
        if parsed.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
            return Err(IdentityError::KeyMismatch { path: key_path });
        }
        let issuer = Issuer::from_ca_cert_der(certificate, key).map_err(|e| bad(e.to_string()))?;
        let pem = String::from_utf8_lossy(&pem).into_owned();
        let (fingerprint, admin_hash) = (sha256(certificate), files::admin_hash(dir)?);
        Ok(Self { cluster, issuer, pem, end, fingerprint, admin_hash })
    }

    /// Writes `ca.pem` and `ca-key.pem`.
    ///
    /// # Errors
    /// If there is an authority already, or the folder can't be written.
    pub fn save(&self, dir: &Path) -> Result<(), IdentityError> {
        for path in [dir.join(CA), dir.join(CA_KEY)] {
            if path.exists() {
                return Err(IdentityError::AuthorityExists { path });
            }
        }
        files::make_folder(dir)?;
        files::write_private(&dir.join(CA_KEY), &self.issuer.key().serialize_pem())?;
        files::write_public(&dir.join(CA), &self.pem)
    }

    /// Makes an admin token, of which members whose certificates are issued from now on know.
    ///
    /// # Errors
    /// If the system has no randomness.
    pub fn new_admin_token(&mut self) -> Result<ClusterSecret, IdentityError> {
        let token = ClusterSecret::create(ADMIN_PREFIX, &self.fingerprint)?;
        self.admin_hash = Some(hex(&token.hash()));
        Ok(token)
    }

    /// Makes an admin token and writes it into the authority's folder, in place of the former one.
    ///
    /// # Errors
    /// If the system has no randomness, or the folder can't be written.
    pub fn save_admin_token(&mut self, dir: &Path) -> Result<(), IdentityError> {
        let token = self.new_admin_token()?;
        files::make_folder(dir)?;
        token.save(&dir.join(ADMIN_TOKEN))?;
        files::write_public(&dir.join(ADMIN_HASH), &hex(&token.hash()))
    }

    /// SHA-256 of its certificate: what tokens know it by.
    #[must_use]
    pub fn fingerprint(&self) -> [u8; 32] {
        self.fingerprint
    }

    /// The cluster's name.
    #[must_use]
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// Signs a certificate for a fresh key.
    ///
    /// # Errors
    /// If a name won't do, or the certificate would outlive its authority.
    pub fn issue(&self, order: &Order) -> Result<Issued, IdentityError> {
        let key = KeyPair::generate().map_err(library)?;
        let certificate = self.params(order)?.signed_by(&key, &self.issuer).map_err(library)?;
        Ok(Issued {
            authority: self.pem.clone(),
            certificate: certificate.pem(),
            key: key.serialize_pem(),
            admin_hash: self.admin_hash.clone().filter(|_| order.role == Role::Control),
            signing_key: None,
        })
    }

    /// Signs a certificate for the key in a request, which says nothing else.
    ///
    /// # Errors
    /// As [`Authority::issue`], or if the request is none or does not prove that its sender holds the key.
    pub fn certify(&self, order: &Order, request: &Request) -> Result<Given, IdentityError> {
        let key = &request.0.public_key;
        let certificate = self.params(order)?.signed_by(key, &self.issuer).map_err(library)?;
        Ok(Given {
            certificate: certificate.pem(),
            authority: self.pem.clone(),
            admin_hash: match order.role {
                Role::Control => self.admin_hash.clone().unwrap_or_default(),
                _ => String::new(),
            },
        })
    }

    fn params(&self, order: &Order) -> Result<CertificateParams, IdentityError> {
        name::check_node(&order.node)?;
        let peer =
            Peer { cluster: self.cluster.clone(), role: order.role, node: order.node.clone() };
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, order.node.clone());
        params.subject_alt_names = hosts(&order.hosts)?;
        let uri = Ia5String::try_from(peer.to_string()).map_err(library)?;
        params.subject_alt_names.push(SanType::URI(uri));
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.not_before = OffsetDateTime::from(order.from);
        params.not_after = OffsetDateTime::from(order.from + order.lifetime);
        if params.not_after.unix_timestamp() > self.end {
            let left = (self.end - OffsetDateTime::now_utc().unix_timestamp()).max(0) / 86_400;
            let text = format!("the authority itself ends in {left} days");
            return Err(IdentityError::Lifetime(text));
        }
        Ok(params)
    }
}

/// A request for a certificate whose sender has proved that it holds the key.
pub struct Request(CertificateSigningRequestParams);

impl Request {
    /// Reads one in DER. Any bytes are safe to hand in.
    ///
    /// # Errors
    /// If it is none, is too long, or its proof is wrong.
    pub fn read(der: &[u8]) -> Result<Self, IdentityError> {
        if der.len() > REQUEST_BYTES_MAX {
            return Err(library("the request for a certificate is too long"));
        }
        CertificateSigningRequestParams::from_der(&der.into()).map(Self).map_err(library)
    }

    /// SHA-256 of the key.
    #[must_use]
    pub fn key_hash(&self) -> [u8; 32] {
        sha256(self.0.public_key.der_bytes())
    }
}

fn hosts(hosts: &[String]) -> Result<Vec<SanType>, IdentityError> {
    let refuse = |name: &str, rule| {
        let name = name.chars().take(256).collect();
        Err(IdentityError::Name { what: "host", name, rule })
    };
    if hosts.len() > HOSTS_MAX {
        return refuse("…", "at most 64 hosts fit one certificate");
    }
    let mut names = Vec::with_capacity(hosts.len());
    for host in hosts {
        if let Ok(address) = host.parse::<IpAddr>() {
            names.push(SanType::IpAddress(address));
            continue;
        }
        let plain = host.strip_prefix("*.").unwrap_or(host);
        match (ServerName::try_from(plain), Ia5String::try_from(host.as_str())) {
            (Ok(ServerName::DnsName(_)), Ok(name)) => names.push(SanType::DnsName(name)),
            _ => return refuse(host, "a DNS name or an address, without a port"),
        }
    }
    Ok(names)
}
