//! Set-ups that are broken on purpose, each found by its check; and the page.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use mainstay_identity::{Authority, Order, Role};
use mainstay_proto::v1;

use super::cluster::{Answer, Asked, judge};
use super::*;

fn setup(role: &str, flags: &[&str]) -> Setup {
    let flags: Vec<std::ffi::OsString> = flags.iter().map(Into::into).collect();
    let read = crate::settings::preview(role, &flags, std::iter::empty());
    let (resolved, matches) = read.expect("flags that are right");
    Setup::of(role, &matches, resolved.layers.table.contains_key("keys"))
}

/// What a check came to; there must be such a finding, and a failure must say what to type.
fn found(all: &[Finding], id: &str) -> Finding {
    let worst = all.iter().filter(|finding| finding.check.id == id).max_by_key(|f| f.level);
    let worst = worst.unwrap_or_else(|| panic!("{id} was not looked at: {all:?}")).clone();
    if worst.level >= Level::Warning {
        assert!(worst.next.as_ref().is_some_and(|next| !next.is_empty()), "{worst:?}");
    }
    worst
}

fn fails(role: &str, flags: &[&str], id: &str, words: &str) {
    let finding = found(&look_at_setup(&setup(role, flags)), id);
    assert_eq!(finding.level, Level::Failure, "{finding:?}");
    let told = format!("{} {}", finding.what, finding.next.unwrap_or_default());
    assert!(told.contains(words), "{words:?} is not in {told:?}");
}

fn passes(role: &str, flags: &[&str], id: &str) {
    let finding = found(&look_at_setup(&setup(role, flags)), id);
    assert_eq!(finding.level, Level::Ok, "{finding:?}");
}

#[test]
fn ports_that_are_taken_or_not_here() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("loopback has free ports");
    let address = taken.local_addr().expect("it is bound").to_string();
    fails("control", &["--listen", &address], "port", "somebody listens");
    fails("gateway", &["--control=x:1", "--listen", &address], "port", "--listen");
    fails("worker", &["--control=x:1", "--metrics-listen", &address], "port", "--metrics-listen");
    // TEST-NET-1 is nobody's.
    fails(
        "control",
        &["--listen=192.0.2.7:7400", "--insecure"],
        "port",
        "no address of this machine",
    );
    drop(taken);
    passes("control", &["--listen", &address], "port");
}

#[test]
fn listeners_that_others_could_not_use_or_should_not() {
    fails("control", &["--listen=0.0.0.0:0"], "exposed", "--identity");
    fails(
        "worker",
        &["--control=x:1", "--listen=0.0.0.0:0", "--insecure"],
        "advertise",
        "--advertise HOST",
    );
    let bad = "--advertise=no-such-host.invalid:7400";
    fails("control", &[bad], "advertise", "does not resolve");
    fails("control", &["--advertise=here"], "advertise", "HOST:PORT");
    fails(
        "control",
        &["--listen=0.0.0.0:0", "--insecure", "--advertise=127.0.0.1:7"],
        "advertise",
        "loopback",
    );
    passes("control", &["--listen=127.0.0.1:0"], "exposed");
    passes("control", &["--listen=127.0.0.1:0"], "advertise");
}

#[test]
fn data_directories_that_cannot_be() {
    let dir = tempfile::tempdir().expect("a scratch folder");
    let file = dir.path().join("file");
    std::fs::write(&file, "").expect("room");
    let below = file.join("data").display().to_string();
    fails("control", &["--data-dir", &below], "data-dir", "is a file");
    fails("serve", &["--data-dir", "/proc/mainstay"], "data-dir", "can't be written");
    passes(
        "control",
        &["--data-dir", &dir.path().join("new/data").display().to_string()],
        "data-dir",
    );
}

/// An identity's folder, with a host in its certificate.
fn identity(dir: &Path, role: Role, host: &str) -> String {
    let authority = Authority::create("test").expect("an authority");
    let mut order = Order::new(role, "n1");
    order.hosts = vec![host.to_owned()];
    authority.issue(&order).expect("a certificate").save(dir).expect("room");
    format!("--identity={}", dir.display())
}

#[test]
fn identities_that_do_not_hold() {
    let dir = tempfile::tempdir().expect("a scratch folder");
    let flag = identity(dir.path(), Role::Control, "m1.example");
    let named = ["--advertise=m1.example:7400", &flag];
    passes("control", &named, "identity");
    passes("control", &named, "key-readable");
    passes("control", &named, "certificate-name");
    passes("control", &named, "certificate-ends");
    fails("control", &["--advertise=m2.example:7400", &flag], "certificate-name", "m1.example");
    fails("worker", &["--control=x:1", &flag], "certificate-role", "--role worker");
    let key = dir.path().join("key.pem");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).expect("it is ours");
    fails("control", &named, "key-readable", "chmod 600");
    // A key of somebody else.
    let other = tempfile::tempdir().expect("a scratch folder");
    identity(other.path(), Role::Control, "m1.example");
    std::fs::copy(other.path().join("key.pem"), &key).expect("room");
    fails("control", &named, "identity", "does not match");
    std::fs::remove_file(&key).expect("it is there");
    fails("control", &named, "identity", "is missing");
}

#[test]
fn certificates_out_of_their_time() {
    let dir = tempfile::tempdir().expect("a scratch folder");
    let dated = |from: i64, to: i64| {
        let mut authority = rcgen::CertificateParams::default();
        authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca_key = rcgen::KeyPair::generate().expect("a key");
        let ca = authority.self_signed(&ca_key).expect("an authority");
        let issuer = rcgen::Issuer::new(authority, ca_key);
        let mut params =
            rcgen::CertificateParams::new(vec!["m1.example".to_owned()]).expect("a name");
        let uri = "spiffe://test/control/n1".try_into().expect("ASCII");
        params.subject_alt_names.push(rcgen::SanType::URI(uri));
        let now = time::OffsetDateTime::now_utc();
        params.not_before = now + time::Duration::days(from);
        params.not_after = now + time::Duration::days(to);
        let key = rcgen::KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &issuer).expect("a certificate");
        for (name, text) in [
            ("ca.pem", ca.pem()),
            ("cert.pem", certificate.pem()),
            ("key.pem", key.serialize_pem()),
        ] {
            let path = dir.path().join(name);
            std::fs::write(&path, text).expect("room");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("ours");
        }
    };
    let flag = format!("--identity={}", dir.path().display());
    dated(-20, -10);
    fails("control", &[&flag], "certificate-expired", "mainstay control cert");
    dated(10, 20);
    fails("control", &[&flag], "certificate-early", "timedatectl");
    dated(-1, 5);
    let ends = found(&look_at_setup(&setup("control", &[&flag])), "certificate-ends");
    assert_eq!(ends.level, Level::Warning, "{ends:?}");
}

#[test]
fn models_and_engines_that_cannot_run() {
    let dir = tempfile::tempdir().expect("a scratch folder");
    let model = dir.path().display().to_string();
    fails("serve", &[&model], "model-files", "config.json");
    for name in ["config.json", "tokenizer.json"] {
        std::fs::write(dir.path().join(name), "{}").expect("room");
    }
    fails("serve", &[&model], "model-files", "no weights");
    passes("serve", &["--engine=sim", &model], "model-files");
    fails("serve", &["--kv-bytes=900000G"], "memory", "smaller model");
    fails("serve", &["--engine=/nonexistent/vendor.so"], "engine", "--engine native");
    let text = dir.path().join("text.so");
    std::fs::write(&text, "this is no library").expect("room");
    fails("serve", &["--engine", &text.display().to_string()], "engine", "no library");
    passes("serve", &["--engine=sim"], "engine");
}

#[test]
fn a_file_of_keys_that_others_read() {
    let dir = tempfile::tempdir().expect("a scratch folder");
    let path = dir.path().join("mainstay.toml");
    std::fs::write(&path, "[[keys]]\nkey = \"k\"\ntenant = \"a\"\n").expect("room");
    let flag = format!("--config={}", path.display());
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).expect("ours");
    let seen = found(&look_at_setup(&setup("serve", &[&flag])), "config-readable");
    assert!(seen.level == Level::Warning && seen.next.unwrap_or_default().contains("chmod 600"));
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("ours");
    passes("serve", &[&flag], "config-readable");
}

#[test]
fn a_file_that_is_wrong() {
    let dir = tempfile::tempdir().expect("a scratch folder");
    let path = dir.path().join("mainstay.toml");
    std::fs::write(&path, "[control]\nlsten = \"x\"\n").expect("room");
    let flags = [format!("--config={}", path.display()).into()];
    let error = crate::settings::preview("control", &flags, std::iter::empty()).err();
    let finding = bad_configuration(&error.expect("it is wrong"));
    assert!(finding.what.contains("did you mean listen?"), "{finding:?}");
    assert!(finding.level == Level::Failure && finding.check.id == "config");
}

fn member(id: u64, role: &str, reachable: bool) -> v1::Member {
    let version = u32::from(mainstay_state::VERSION_NEWEST);
    let (address, role) = (format!("m{id}:7400"), role.to_owned());
    v1::Member { id, address, role, reachable, version, ..v1::Member::default() }
}

fn told(leader: u64, members: Vec<v1::Member>, skew_s: Option<i64>) -> Asked {
    let cluster_version = u32::from(mainstay_state::VERSION_NEWEST);
    let worker = v1::WorkerStatus { state: "live".to_owned(), ..v1::WorkerStatus::default() };
    let status = v1::StatusReply {
        node: 1,
        leader,
        members,
        cluster_version,
        workers: vec![worker],
        ..v1::StatusReply::default()
    };
    let answer = Answer::Told { status: Box::new(status), skew_s };
    Asked { address: "m1:7400".to_owned(), answer }
}

fn three(reachable: [bool; 3]) -> Vec<v1::Member> {
    let roles = ["leader", "follower", "follower"];
    (1..)
        .zip(roles.into_iter().zip(reachable))
        .map(|(id, (role, there))| member(id, role, there))
        .collect()
}

#[test]
fn clusters_are_judged_by_what_their_members_say() {
    let level = |asked: &[Asked], id: &str| found(&judge(asked), id).level;
    let well = told(1, three([true; 3]), Some(0));
    for id in ["members", "quorum", "clock-skew", "versions", "lag", "workers", "drift"] {
        assert_eq!(level(std::slice::from_ref(&well), id), Level::Ok, "{id}");
    }
    let no_leader = told(0, three([true, false, false]), None);
    assert_eq!(level(&[no_leader], "quorum"), Level::Failure);
    let one_lost = told(1, three([true, true, false]), Some(0));
    assert_eq!(level(&[one_lost], "quorum"), Level::Warning);
    let alone = told(0, Vec::new(), None);
    assert_eq!(level(&[alone], "quorum"), Level::Failure);
    let skewed = [told(1, three([true; 3]), Some(-1)), told(1, three([true; 3]), Some(30))];
    assert_eq!(level(&skewed, "clock-skew"), Level::Failure);
    let wrong_here = [told(1, three([true; 3]), Some(40)), told(1, three([true; 3]), Some(41))];
    assert_eq!(level(&wrong_here, "clock-skew"), Level::Warning);
    let mut members = three([true; 3]);
    members[2].version = u32::from(mainstay_state::VERSION_NEWEST) + 2;
    assert_eq!(level(&[told(1, members, None)], "versions"), Level::Failure);
    let mut members = three([true; 3]);
    members[1].lag = 1 << 20;
    assert_eq!(level(&[told(1, members, None)], "lag"), Level::Warning);
    let dead = |answer: Answer| Asked { address: "x:1".to_owned(), answer };
    let dead =
        [dead(Answer::Silent("refused".into())), dead(Answer::Refused("h2 protocol error".into()))];
    assert_eq!(level(&dead, "members"), Level::Failure);
    assert_eq!(level(&dead, "members-speak"), Level::Failure);
    assert_eq!(level(&dead, "quorum"), Level::Skipped);
}

#[test]
fn ids_are_unique_and_the_page_is_current() {
    let mut ids: Vec<&str> = CHECKS.iter().map(|check| check.id).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), CHECKS.len());
    assert!(CHECKS.iter().all(|check| checks::GROUPS.contains(&check.group)));
    let here = std::env::var("CARGO_MANIFEST_DIR").expect("cargo runs the test");
    let path = Path::new(&here).join("../../docs/operate/doctor.md");
    let there = std::fs::read_to_string(path).unwrap_or_default();
    assert_eq!(there, page(), "run `mainstay reference doctor > docs/operate/doctor.md`");
}
