//! Where a role would listen and keep its data.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::path::{Path, PathBuf};

use mainstay_identity::check_listener;

use super::checks::{ADVERTISE, CONFIG_READABLE, DATA_DIR, DISK, EXPOSED, PORT};
use super::{Finding, Setup};

/// With less room a member's log ends soon.
const FREE_BYTES_NEEDED: u64 = 1 << 30;
/// Below this much, or this share, it is time to look.
const FREE_BYTES_WANTED: u64 = 5 << 30;
const FREE_SHARE_WANTED: u64 = 10;

pub(super) fn look(setup: &Setup) -> Vec<Finding> {
    let mut found: Vec<Finding> = setup.listen.iter().map(|(flag, at)| port(flag, *at)).collect();
    if setup.is_dialled() {
        found.push(exposed(setup));
        found.push(advertise(setup));
    }
    if let Some(dir) = &setup.data_dir {
        found.push(data_dir(dir));
        found.push(disk(dir));
    }
    found.extend(config(setup));
    found
}

fn port(flag: &str, address: SocketAddr) -> Finding {
    if address.port() == 0 {
        return Finding::ok(&PORT, format!("{flag} {address} takes a free port"));
    }
    let other = format!("{flag} {}:PORT with another one; ss -ltnp shows who has it", address.ip());
    match TcpListener::bind(address).map_err(|error| (error.kind(), error)) {
        Ok(_) => Finding::ok(&PORT, format!("{flag} {address} is free")),
        Err((ErrorKind::AddrInUse, _)) => Finding::failure(
            &PORT,
            format!("somebody listens on {address} ({flag}) already"),
            other,
        ),
        Err((ErrorKind::AddrNotAvailable, _)) => Finding::failure(
            &PORT,
            format!("{} ({flag}) is no address of this machine", address.ip()),
            format!(
                "{flag} 0.0.0.0:{} for all of its addresses; ip addr lists them",
                address.port()
            ),
        ),
        Err((_, error)) => Finding::failure(
            &PORT,
            format!("{flag} {address}: {error}"),
            format!("{flag} with a port above 1023"),
        ),
    }
}

fn exposed(setup: &Setup) -> Finding {
    let Some((flag, address)) = setup.listen.iter().find(|(flag, _)| *flag == "--listen") else {
        return Finding::skipped(&EXPOSED, "no listening address");
    };
    if setup.identity.is_some() {
        return Finding::ok(&EXPOSED, format!("{flag} {address} speaks TLS"));
    }
    // The role's own rule, so that the two never differ.
    match check_listener(*address, None, setup.insecure) {
        Ok(()) if setup.insecure && !address.ip().is_loopback() => Finding::warning(
            &EXPOSED,
            format!("{flag} {address} speaks plain text to other machines, as --insecure asks for"),
            "mainstay control cert, then --identity DIR",
        ),
        Ok(()) => Finding::ok(&EXPOSED, format!("{flag} {address} stays on this machine")),
        Err(error) => Finding::failure(
            &EXPOSED,
            error.to_string(),
            format!(
                "mainstay control cert --ca DIR --role {} --name NAME --out DIR, then --identity DIR",
                setup.role
            ),
        ),
    }
}

/// The host of `HOST:PORT`.
pub(super) fn host_of(address: &str) -> Option<&str> {
    let (host, port) = address.rsplit_once(':')?;
    port.parse::<u16>().ok()?;
    Some(host.trim_matches(['[', ']'])).filter(|host| !host.is_empty())
}

fn advertise(setup: &Setup) -> Finding {
    let listen = setup.listen.iter().find(|(flag, _)| *flag == "--listen").map(|(_, at)| *at);
    let Some(told) = &setup.advertise else {
        return match listen {
            Some(at) if at.ip().is_unspecified() => Finding::failure(
                &ADVERTISE,
                format!("it listens on all addresses ({at}) and tells others none"),
                format!("--advertise HOST:{}", at.port()),
            ),
            _ => Finding::ok(&ADVERTISE, "others are told the listening address"),
        };
    };
    let Some(host) = host_of(told) else {
        return Finding::failure(
            &ADVERTISE,
            format!("{told:?} is not HOST:PORT"),
            "--advertise HOST:PORT",
        );
    };
    let resolved = told.to_socket_addrs().map(|mut all| all.next());
    match resolved {
        Ok(Some(at)) if at.ip().is_loopback() && listen.is_some_and(|l| !l.ip().is_loopback()) => {
            Finding::failure(
                &ADVERTISE,
                format!("{host} is this machine's loopback, which no other machine reaches"),
                "--advertise with a name or address of this machine's network",
            )
        }
        Ok(Some(at)) => {
            Finding::ok(&ADVERTISE, format!("others are told {told}, which is {}", at.ip()))
        }
        Ok(None) | Err(_) => Finding::failure(
            &ADVERTISE,
            format!("{host} does not resolve here, and may not elsewhere"),
            "--advertise with a name that resolves, or an address",
        ),
    }
}

/// The nearest folder above that is there.
fn there(dir: &Path) -> PathBuf {
    let dir = if dir.is_absolute() { dir.to_owned() } else { Path::new(".").join(dir) };
    dir.ancestors().find(|path| path.exists()).unwrap_or(Path::new(".")).to_owned()
}

fn data_dir(dir: &Path) -> Finding {
    let near = there(dir);
    if !near.is_dir() {
        return Finding::failure(
            &DATA_DIR,
            format!("{} is a file, and {} would lie in it", near.display(), dir.display()),
            "--data-dir DIR with a folder",
        );
    }
    match tempfile::tempfile_in(&near) {
        Ok(_) => Finding::ok(&DATA_DIR, format!("{} can be written", dir.display())),
        Err(error) => Finding::failure(
            &DATA_DIR,
            format!("{} can't be written: {error}", near.display()),
            format!("install -d -o $(id -un) {}, or another --data-dir", dir.display()),
        ),
    }
}

fn disk(dir: &Path) -> Finding {
    let near = there(dir);
    match rustix::fs::statvfs(&near) {
        Ok(stat) => {
            let free = stat.f_bavail.saturating_mul(stat.f_frsize);
            judge_disk(&near, free, stat.f_blocks.saturating_mul(stat.f_frsize))
        }
        Err(error) => Finding::skipped(&DISK, format!("{}: {error}", near.display())),
    }
}

fn judge_disk(dir: &Path, free: u64, total: u64) -> Finding {
    let share = free.saturating_mul(100).checked_div(total).unwrap_or(0);
    let what = format!("{} MiB ({share} %) are free where {} lies", free >> 20, dir.display());
    let cure = "make room, or --data-dir on another disk";
    if free < FREE_BYTES_NEEDED {
        return Finding::failure(&DISK, what, cure);
    }
    if free < FREE_BYTES_WANTED || share < FREE_SHARE_WANTED {
        return Finding::warning(&DISK, what, cure);
    }
    Finding::ok(&DISK, what)
}

/// Whether somebody beside its owner may read a file.
pub(super) fn others_read(path: &Path) -> Option<u32> {
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(path).ok()?.permissions().mode() & 0o777;
    (mode & 0o077 != 0).then_some(mode)
}

fn config(setup: &Setup) -> Option<Finding> {
    let path = setup.config.as_ref().filter(|_| setup.holds_keys)?;
    Some(match others_read(path) {
        Some(mode) => Finding::warning(
            &CONFIG_READABLE,
            format!("{} holds API keys and has mode {mode:03o}", path.display()),
            format!("chmod 600 {}", path.display()),
        ),
        None => Finding::ok(&CONFIG_READABLE, format!("{} is its owner's alone", path.display())),
    })
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn a_disk_is_judged_by_what_is_left() {
        let level =
            |free: u64, total: u64| judge_disk(Path::new("/"), free << 20, total << 20).level;
        assert_eq!(level(900, 100_000), Level::Failure);
        assert_eq!(level(4_000, 20_000), Level::Warning);
        assert_eq!(level(60_000, 1_000_000), Level::Warning);
        assert_eq!(level(60_000, 500_000), Level::Ok);
        assert_eq!(level(0, 0), Level::Failure);
    }

    #[test]
    fn hosts_are_read_from_addresses() {
        assert_eq!(host_of("a.b:7400"), Some("a.b"));
        assert_eq!(host_of("[::1]:7400"), Some("::1"));
        for bad in ["a.b", ":7400", "a:b", "a:99999", ""] {
            assert_eq!(host_of(bad), None, "{bad}");
        }
    }
}
