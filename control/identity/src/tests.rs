//! Authorities, certificates, and both ends of connections, with files as nodes have them.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use futures::StreamExt;
use http::Uri;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tonic::transport::server::Connected;

use super::*;

fn issue(authority: &Authority, order: &Order) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    authority.issue(order).unwrap().save(dir.path()).unwrap();
    dir
}

fn identity(authority: &Authority, role: Role, node: &str) -> Identity {
    Identity::load(issue(authority, &Order::new(role, node)).path()).unwrap()
}

fn brief(role: Role, node: &str, lifetime: Duration) -> Order {
    Order { lifetime, from: SystemTime::now() - Duration::from_secs(60), ..Order::new(role, node) }
}

/// A listener that greets whoever gets in, and says who that was.
async fn greeter(identity: Identity) -> Uri {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut accepted = incoming(listener, Some(identity));
    tokio::spawn(async move {
        while let Some(Ok(mut connection)) = accepted.next().await {
            let Caller::Node(peer) = connection.connect_info() else { panic!("nobody") };
            connection.write_all(peer.to_string().as_bytes()).await.unwrap();
            connection.shutdown().await.unwrap();
        }
    });
    format!("http://{address}").parse().unwrap()
}

/// What the greeter said, or why there is no connection.
async fn greeted(by: &Identity, to: &Uri, expected: Role) -> Result<String, String> {
    let mut opened = by.dial(to, expected).await.map_err(|e| e.to_string())?;
    let mut text = String::new();
    opened.read_to_string(&mut text).await.map_err(|e| e.to_string())?;
    Ok(text)
}

fn load_error(dir: &Path) -> String {
    Identity::load(dir).unwrap_err().to_string()
}

#[test]
fn an_authority_is_stored_for_its_owner_only_and_never_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    Authority::create("home").unwrap().save(dir.path()).unwrap();
    let mode =
        |name| std::fs::metadata(dir.path().join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("ca.pem"), mode("ca-key.pem")), (0o644, 0o600));
    let again = Authority::create("home").unwrap().save(dir.path()).unwrap_err();
    assert!(matches!(again, IdentityError::AuthorityExists { .. }), "{again}");

    let authority = Authority::load(dir.path()).unwrap();
    assert_eq!(authority.cluster(), "home");
    let node = issue(&authority, &Order::new(Role::Worker, "w1").days(3).unwrap());
    let key = std::fs::metadata(node.path().join("key.pem")).unwrap();
    assert_eq!(key.permissions().mode() & 0o777, 0o600);
    let loaded = Identity::load_as(node.path(), Role::Worker).unwrap();
    assert_eq!(loaded.peer().to_string(), "spiffe://home/worker/w1");
    let days = loaded.remaining().as_secs_f64() / 86_400.0;
    assert!((2.9..3.1).contains(&days), "{days}");
    let other = Identity::load_as(node.path(), Role::Control).unwrap_err().to_string();
    assert!(other.contains("--role control"), "{other}");

    Authority::create("home").unwrap().save(&dir.path().join("other")).unwrap();
    std::fs::copy(dir.path().join("other/ca-key.pem"), dir.path().join("ca-key.pem")).unwrap();
    let mixed = Authority::load(dir.path()).err().unwrap();
    assert!(matches!(mixed, IdentityError::KeyMismatch { .. }), "{mixed}");
    let none = Authority::load(&dir.path().join("none")).err().unwrap().to_string();
    assert!(none.contains("mainstay control init --out"), "{none}");
}

#[test]
fn names_and_lifetimes_that_wont_do_are_refused() {
    for cluster in ["", "Upper", "a/b", "..", "a b", &"x".repeat(129)] {
        assert!(matches!(Authority::create(cluster), Err(IdentityError::Name { .. })), "{cluster}");
    }
    let authority = Authority::create("home").unwrap();
    for node in ["", "a/b", "a b", "ä", "..", "a\0b"] {
        let refused = authority.issue(&Order::new(Role::Worker, node));
        assert!(matches!(refused, Err(IdentityError::Name { .. })), "{node:?}");
    }
    for host in ["", "a b", "host:1", "http://x", "ä.de"] {
        let order = Order { hosts: vec![host.into()], ..Order::new(Role::Worker, "w") };
        assert!(authority.issue(&order).is_err(), "{host:?}");
    }
    let order = || Order::new(Role::Worker, "w");
    assert!(order().days(0).is_err() && order().days(DAYS_MAX + 1).is_err());
    let text = authority.issue(&order().days(DAYS_MAX).unwrap()).map(drop);
    assert!(text.is_ok(), "as long as the authority itself");
    let late = Order { from: SystemTime::now() + Duration::from_secs(86_400 * 30), ..order() };
    let late = Order { lifetime: Duration::from_secs(86_400 * 3_640), ..late };
    let text = authority.issue(&late).unwrap_err().to_string();
    assert!(text.contains("the authority itself ends in"), "{text}");
}

#[test]
fn files_that_do_not_fit_say_which_and_what_to_type() {
    let (ours, theirs) = (Authority::create("home").unwrap(), Authority::create("home").unwrap());
    let empty = tempfile::tempdir().unwrap();
    assert!(load_error(empty.path()).contains("mainstay control cert --ca DIR"));

    let dir = issue(&ours, &Order::new(Role::Gateway, "g1"));
    let other = issue(&theirs, &Order::new(Role::Gateway, "g1"));
    let swap = |name: &str| {
        std::fs::copy(other.path().join(name), dir.path().join(name)).unwrap();
        let text = load_error(dir.path());
        ours.issue(&Order::new(Role::Gateway, "g1")).unwrap().save(dir.path()).unwrap();
        text
    };
    assert!(swap("ca.pem").contains("was not signed by the authority"));
    assert!(swap("key.pem").contains("does not match the certificate"));
    assert!(swap("cert.pem").contains("was not signed by the authority"));
    for name in ["ca.pem", "cert.pem", "key.pem"] {
        for junk in ["", "junk", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            std::fs::write(dir.path().join(name), junk).unwrap();
            let text = load_error(dir.path());
            assert!(text.len() > 10, "{name} {junk:?}: {text}");
            ours.issue(&Order::new(Role::Gateway, "g1")).unwrap().save(dir.path()).unwrap();
        }
    }
    let expired = issue(&ours, &brief(Role::Gateway, "g1", Duration::from_secs(30)));
    assert!(load_error(expired.path()).contains("has expired; issue another"));
    let future = SystemTime::now() + Duration::from_secs(3600);
    let early = issue(&ours, &Order { from: future, ..Order::new(Role::Gateway, "g1") });
    assert!(load_error(early.path()).contains("clock"));
}

#[tokio::test]
async fn both_sides_learn_who_the_other_is() {
    let authority = Authority::create("home").unwrap();
    let to = greeter(identity(&authority, Role::Control, "m1")).await;
    let worker = identity(&authority, Role::Worker, "w1");
    let seen = greeted(&worker, &to, Role::Control).await.unwrap();
    assert_eq!(seen, "spiffe://home/worker/w1");
    let wrong = greeted(&worker, &to, Role::Worker).await.unwrap_err();
    assert!(wrong.contains("a control answers there (m1), not a worker"), "{wrong}");
}

#[tokio::test]
async fn strangers_are_refused_with_a_reason_and_the_listener_goes_on() {
    let authority = Authority::create("home").unwrap();
    let to = greeter(identity(&authority, Role::Control, "m1")).await;
    let stranger = identity(&Authority::create("home").unwrap(), Role::Control, "m2");
    let text = greeted(&stranger, &to, Role::Control).await.unwrap_err();
    assert!(text.contains("another authority"), "{text}");

    // One that trusts us, and whom we don't: the refusal comes after its own handshake is done.
    let dir = issue(&Authority::create("home").unwrap(), &Order::new(Role::Control, "m2"));
    let mut trusted = std::fs::read(dir.path().join("ca.pem")).unwrap();
    let ours = issue(&authority, &Order::new(Role::Control, "m3"));
    trusted.extend(std::fs::read(ours.path().join("ca.pem")).unwrap());
    std::fs::write(dir.path().join("ca.pem"), trusted).unwrap();
    let half = Identity::load(dir.path()).unwrap();
    let text = greeted(&half, &to, Role::Control).await.unwrap_err();
    assert!(text.contains("refused this node"), "{text}");

    let elsewhere = Order { hosts: vec!["example.org".into()], ..Order::new(Role::Control, "m4") };
    let moved = greeter(Identity::load(issue(&authority, &elsewhere).path()).unwrap()).await;
    let friend = identity(&authority, Role::Worker, "w1");
    let text = greeted(&friend, &moved, Role::Control).await.unwrap_err();
    assert!(text.contains("--host"), "{text}");

    // Silence, noise, and plain HTTP/2.
    let address = to.authority().unwrap().as_str();
    let silent = TcpStream::connect(address).await.unwrap();
    let mut noisy = TcpStream::connect(address).await.unwrap();
    noisy.write_all(&[0xff; 4096]).await.unwrap();
    let mut plain = TcpStream::connect(address).await.unwrap();
    plain.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    plain.read_to_end(&mut answer).await.unwrap();
    assert!(String::from_utf8_lossy(&answer).contains("--identity DIR"), "{answer:?}");
    assert!(greeted(&friend, &to, Role::Control).await.is_ok());
    drop(silent);
}

#[tokio::test]
async fn a_certificate_that_ends_is_refused_and_a_new_one_needs_no_restart() {
    let authority = Authority::create("home").unwrap();
    let to = greeter(identity(&authority, Role::Control, "m1")).await;
    let dir = issue(&authority, &brief(Role::Worker, "w1", Duration::from_secs(66)));
    let worker = Identity::load(dir.path()).unwrap();
    assert!(greeted(&worker, &to, Role::Control).await.is_ok());
    tokio::time::sleep(worker.remaining() + Duration::from_millis(1_100)).await;
    let text = greeted(&worker, &to, Role::Control).await.unwrap_err();
    assert!(text.contains("has expired; issue another"), "{text}");

    authority.issue(&Order::new(Role::Worker, "w1")).unwrap().save(dir.path()).unwrap();
    assert!(worker.reload().unwrap());
    assert!(!worker.reload().unwrap(), "nothing is new");
    assert!(greeted(&worker, &to, Role::Control).await.is_ok());
}

#[tokio::test]
async fn a_listener_takes_new_files_and_keeps_the_old_when_they_are_bad() {
    let authority = Authority::create("home").unwrap();
    let dir = issue(&authority, &Order::new(Role::Control, "m1"));
    let own = Identity::load(dir.path()).unwrap();
    let to = greeter(own.clone()).await;
    let next = Authority::create("home").unwrap();
    let client = identity(&next, Role::Worker, "w1");
    assert!(greeted(&client, &to, Role::Control).await.is_err());

    std::fs::write(dir.path().join("cert.pem"), "half").unwrap();
    assert!(own.reload().is_err());
    let old = identity(&authority, Role::Worker, "w1");
    assert!(greeted(&old, &to, Role::Control).await.is_ok(), "the former set stays");
    authority.issue(&Order::new(Role::Control, "m2")).unwrap().save(dir.path()).unwrap();
    assert!(matches!(own.reload(), Err(IdentityError::Changed { .. })));

    next.issue(&Order::new(Role::Control, "m1")).unwrap().save(dir.path()).unwrap();
    assert!(own.reload().unwrap());
    assert!(greeted(&client, &to, Role::Control).await.is_ok(), "the next authority counts now");
    assert!(greeted(&old, &to, Role::Control).await.is_err(), "the former one no more");
}

#[test]
fn a_plain_listener_stays_on_loopback_unless_somebody_insists() {
    let (near, far) = ("127.0.0.1:1".parse().unwrap(), "0.0.0.0:1".parse().unwrap());
    let authority = Authority::create("home").unwrap();
    let own = identity(&authority, Role::Control, "m1");
    assert!(check_listener(near, None, false).is_ok());
    assert!(check_listener(far, Some(&own), false).is_ok());
    assert!(check_listener(far, None, true).is_ok());
    let text = check_listener(far, None, false).unwrap_err().to_string();
    assert!(text.contains("--identity DIR") && text.contains("--insecure"), "{text}");
}
