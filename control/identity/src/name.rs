//! What a certificate says about its holder: cluster, role and node, as one SPIFFE name.
//!
//! `spiffe://CLUSTER/ROLE/NODE` is the only thing that rights hang on; host names in a certificate only say where
//! it may be served from. A certificate with no such name, or with two, names nobody.

use std::fmt;
use std::str::FromStr;

use tokio_rustls::rustls::pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;

use crate::IdentityError;

/// The longest name of a cluster or a node, in bytes.
pub const NAME_BYTES_MAX: usize = 128;
const SCHEME: &str = "spiffe://";

/// What a node is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// A member of the control plane.
    Control,
    /// A gateway.
    Gateway,
    /// A worker.
    Worker,
    /// A person or a program that looks after the cluster.
    Admin,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Control, Self::Gateway, Self::Worker, Self::Admin];

    /// Its word in certificates and flags.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Gateway => "gateway",
            Self::Worker => "worker",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Role {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let found = Self::ALL.into_iter().find(|role| role.name() == text);
        found.ok_or_else(|| IdentityError::Role(text.to_owned()))
    }
}

/// Who holds a certificate.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Peer {
    /// The cluster whose authority signed it.
    pub cluster: String,
    /// What it may do.
    pub role: Role,
    /// Its name, unique among its role.
    pub node: String,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}/{}/{}", self.cluster, self.role, self.node)
    }
}

impl Peer {
    /// Reads the one name in a certificate. The text of an error is for the end of a sentence.
    pub(crate) fn of(certificate: &CertificateDer<'_>) -> Result<Self, String> {
        let uri = spiffe_uri(certificate)?;
        let path = uri.strip_prefix(SCHEME).unwrap_or_default();
        let parts: Vec<&str> = path.split('/').collect();
        let [cluster, role, node] = parts[..] else {
            return Err(format!("{uri:?} is not {SCHEME}CLUSTER/ROLE/NODE"));
        };
        check_cluster(cluster).map_err(|e| e.to_string())?;
        check_node(node).map_err(|e| e.to_string())?;
        let role = role.parse().map_err(|e: IdentityError| e.to_string())?;
        Ok(Self { cluster: cluster.to_owned(), role, node: node.to_owned() })
    }
}

/// The name of the cluster in an authority's own certificate.
pub(crate) fn cluster_of(authority: &CertificateDer<'_>) -> Result<String, String> {
    let uri = spiffe_uri(authority)?;
    let cluster = uri.strip_prefix(SCHEME).unwrap_or_default();
    check_cluster(cluster).map_err(|e| e.to_string())?;
    Ok(cluster.to_owned())
}

/// The name an authority's own certificate has.
pub(crate) fn authority_uri(cluster: &str) -> String {
    format!("{SCHEME}{cluster}")
}

fn spiffe_uri(certificate: &CertificateDer<'_>) -> Result<String, String> {
    let (_, parsed) =
        x509_parser::parse_x509_certificate(certificate).map_err(|e| e.to_string())?;
    let names = parsed.subject_alternative_name().map_err(|e| e.to_string())?;
    let names = names.ok_or("it has no alternative names")?;
    let mut uris = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) if uri.starts_with(SCHEME) => Some((*uri).to_owned()),
        _ => None,
    });
    match (uris.next(), uris.next()) {
        (Some(uri), None) => Ok(uri),
        (None, _) => Err("it has no SPIFFE name".into()),
        (Some(_), Some(_)) => Err("it has more than one SPIFFE name".into()),
    }
}

/// When a certificate ends, in seconds since 1970.
pub(crate) fn end_of(certificate: &CertificateDer<'_>) -> Result<i64, String> {
    let (_, parsed) =
        x509_parser::parse_x509_certificate(certificate).map_err(|e| e.to_string())?;
    Ok(parsed.validity().not_after.timestamp())
}

pub(crate) fn check_cluster(name: &str) -> Result<(), IdentityError> {
    let rule = "lower-case letters, digits, '-', '_' and '.', 1 to 128 bytes";
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c);
    check("cluster's name", name, rule, fits)
}

pub(crate) fn check_node(name: &str) -> Result<(), IdentityError> {
    let rule = "letters, digits, '-', '_' and '.', 1 to 128 bytes";
    check("node's name", name, rule, |c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

fn check(
    what: &'static str,
    name: &str,
    rule: &'static str,
    fits: impl Fn(char) -> bool,
) -> Result<(), IdentityError> {
    let relative = name == "." || name == "..";
    if (1..=NAME_BYTES_MAX).contains(&name.len()) && name.chars().all(fits) && !relative {
        return Ok(());
    }
    Err(IdentityError::Name { what, name: name.chars().take(NAME_BYTES_MAX).collect(), rule })
}
