//! The identity's folder: files, times, role, hosts, permissions.

use std::path::Path;

use mainstay_identity::{Identity, IdentityError};
use x509_parser::extensions::GeneralName;
use x509_parser::pem::parse_x509_pem;

use super::checks::{
    CERTIFICATE_EARLY, CERTIFICATE_ENDS, CERTIFICATE_EXPIRED, CERTIFICATE_NAME, CERTIFICATE_ROLE,
    IDENTITY, KEY_READABLE,
};
use super::place::{host_of, others_read};
use super::{Finding, Setup};

/// What is left when it is time to think of the next one.
const DAYS_WANTED: u64 = 14;

pub(super) fn look(setup: &Setup) -> Vec<Finding> {
    let Some(dir) = &setup.identity else { return Vec::new() };
    let order = order(setup, dir);
    let mut found = vec![key(dir)];
    let read = match setup.certified_role() {
        Some(role) => Identity::load_as(dir, role),
        None => Identity::load(dir),
    };
    match read {
        Ok(identity) => {
            found.push(Finding::ok(&IDENTITY, format!("{} is {}", dir.display(), identity.peer())));
            found.push(ends(identity.remaining().as_secs() / 86_400, &order));
            found.extend(setup.is_dialled().then(|| hosts(setup, dir, &order)));
        }
        Err(error) => {
            let check = match &error {
                IdentityError::Expired { .. } => &CERTIFICATE_EXPIRED,
                IdentityError::NotYetValid { .. } => &CERTIFICATE_EARLY,
                IdentityError::OtherRole { .. } => &CERTIFICATE_ROLE,
                _ => &IDENTITY,
            };
            let next = match &error {
                IdentityError::NotYetValid { .. } => "timedatectl set-ntp true".to_owned(),
                _ => order,
            };
            found.push(Finding::failure(check, error.to_string(), next));
        }
    }
    found
}

/// The command that makes a right one.
fn order(setup: &Setup, dir: &Path) -> String {
    let host = setup.advertise.as_deref().and_then(host_of).unwrap_or("HOST");
    let host = if setup.is_dialled() { format!(" --host {host}") } else { String::new() };
    format!(
        "mainstay control cert --ca DIR --role {} --name NAME{host} --out {}",
        setup.role,
        dir.display()
    )
}

fn key(dir: &Path) -> Finding {
    let path = dir.join("key.pem");
    match others_read(&path) {
        Some(mode) => Finding::failure(
            &KEY_READABLE,
            format!("{} has mode {mode:03o}", path.display()),
            format!("chmod 600 {}", path.display()),
        ),
        None => Finding::ok(&KEY_READABLE, format!("{} is its owner's alone", path.display())),
    }
}

fn ends(days: u64, order: &str) -> Finding {
    if days < DAYS_WANTED {
        return Finding::warning(
            &CERTIFICATE_ENDS,
            format!("the certificate ends in {days} days"),
            order,
        );
    }
    Finding::ok(&CERTIFICATE_ENDS, format!("the certificate lasts for {days} days"))
}

/// Names and addresses that a certificate may be served from.
fn hosts_in(pem: &[u8]) -> Option<Vec<String>> {
    let (_, pem) = parse_x509_pem(pem).ok()?;
    let certificate = pem.parse_x509().ok()?;
    let names = certificate.subject_alternative_name().ok()??;
    let one = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(|b| std::net::IpAddr::from(b).to_string()),
            16 => <[u8; 16]>::try_from(*bytes).ok().map(|b| std::net::IpAddr::from(b).to_string()),
            _ => None,
        },
        _ => None,
    };
    Some(names.value.general_names.iter().filter_map(one).collect())
}

fn hosts(setup: &Setup, dir: &Path, order: &str) -> Finding {
    let listen = setup.listen.iter().find(|(flag, _)| *flag == "--listen");
    let dialled = match (&setup.advertise, listen) {
        (Some(address), _) => host_of(address).map(str::to_owned),
        (None, Some((_, at))) if !at.ip().is_unspecified() => Some(at.ip().to_string()),
        _ => None,
    };
    let Some(dialled) = dialled else {
        return Finding::skipped(&CERTIFICATE_NAME, "no address is told to others");
    };
    let pem = std::fs::read(dir.join("cert.pem")).unwrap_or_default();
    let Some(hosts) = hosts_in(&pem) else {
        return Finding::skipped(&CERTIFICATE_NAME, "the certificate names no hosts");
    };
    if hosts.iter().any(|host| host.eq_ignore_ascii_case(&dialled)) {
        return Finding::ok(&CERTIFICATE_NAME, format!("the certificate is for {dialled}"));
    }
    let what = format!("the certificate is for {}, and others dial {dialled}", hosts.join(", "));
    Finding::failure(&CERTIFICATE_NAME, what, order)
}
