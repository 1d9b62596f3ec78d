//! The cluster's authority: one key that signs the certificates of all nodes.
//!
//! It lives in a folder of its own, away from the nodes, and is needed only when a certificate is issued. Nothing
//! revokes a certificate before its end, so lifetimes are limited and renewal is cheap.

use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use time::OffsetDateTime;
use tokio_rustls::rustls::pki_types::ServerName;

use crate::IdentityError;
use crate::files::{self, CA, CA_KEY, CERT, KEY};
use crate::name::{self, Peer, Role};

/// How long a node's certificate lasts unless asked otherwise.
pub const DAYS_USUAL: u32 = 365;
/// How long a certificate may last.
pub const DAYS_MAX: u32 = 3_650;
/// How many host names and addresses one certificate may have.
pub const HOSTS_MAX: usize = 64;
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
        files::write_public(&dir.join(CERT), &self.certificate)
    }
}

fn library(error: impl std::fmt::Display) -> IdentityError {
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
        let pem = params.self_signed(&key).map_err(library)?.pem();
        let issuer = Issuer::new(params, key);
        Ok(Self { cluster: cluster.to_owned(), issuer, pem, end })
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
        Ok(Self { cluster, issuer, pem: String::from_utf8_lossy(&pem).into_owned(), end })
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
        let key = KeyPair::generate().map_err(library)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(library)?;
        Ok(Issued {
            authority: self.pem.clone(),
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        })
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
