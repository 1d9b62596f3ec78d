//! What each state of a link does to bytes, between two ends that this test owns.

use super::*;

struct Ends {
    net: Net,
    near: TcpStream,
    far: TcpStream,
}

async fn ends() -> Ends {
    let net = Net::new(2);
    let target = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = net.proxy(1, target.local_addr().unwrap()).await.unwrap();
    let near = TcpStream::connect(address).await.unwrap();
    let (far, _) = target.accept().await.unwrap();
    Ends { net, near, far }
}

async fn arrives(end: &mut TcpStream, wanted: &[u8], within_ms: u64) -> bool {
    let mut bytes = vec![0; wanted.len()];
    let read = end.read_exact(&mut bytes);
    let read = tokio::time::timeout(Duration::from_millis(within_ms), read).await;
    read.is_ok_and(|r| r.is_ok()) && bytes == wanted
}

#[tokio::test]
async fn a_whole_link_carries_both_ways() {
    let mut ends = ends().await;
    ends.near.write_all(b"there").await.unwrap();
    assert!(arrives(&mut ends.far, b"there", 2_000).await);
    ends.far.write_all(b"back").await.unwrap();
    assert!(arrives(&mut ends.near, b"back", 2_000).await);
    drop(ends.far);
    assert!(matches!(ends.near.read(&mut [0; 9]).await, Ok(0) | Err(_)));
}

#[tokio::test]
async fn a_slow_link_delays_and_a_narrow_one_spreads() {
    let mut ends = ends().await;
    ends.net.change(CLIENT, 1, |link| link.delay = Duration::from_millis(150));
    let sent = Instant::now();
    ends.near.write_all(b"late").await.unwrap();
    assert!(arrives(&mut ends.far, b"late", 5_000).await);
    assert!(sent.elapsed() >= Duration::from_millis(150), "{:?}", sent.elapsed());
    ends.net.heal();
    ends.net.change(CLIENT, 1, |link| link.bytes_per_second = Some(10_000));
    let sent = Instant::now();
    ends.near.write_all(&[7; 3_000]).await.unwrap();
    assert!(arrives(&mut ends.far, &[7; 3_000], 5_000).await);
    assert!(sent.elapsed() >= Duration::from_millis(300), "{:?}", sent.elapsed());
}

#[tokio::test]
async fn held_bytes_come_late_and_swallowed_ones_never() {
    let mut ends = ends().await;
    ends.net.change(CLIENT, 1, |link| link.pass = Pass::Hold);
    ends.near.write_all(b"held").await.unwrap();
    assert!(!arrives(&mut ends.far, b"held", 100).await);
    // The other way is another link.
    ends.far.write_all(b"back").await.unwrap();
    assert!(arrives(&mut ends.near, b"back", 2_000).await);
    ends.net.heal();
    assert!(arrives(&mut ends.far, b"held", 2_000).await);
    ends.net.change(CLIENT, 1, |link| link.pass = Pass::Swallow);
    ends.near.write_all(b"gone").await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    ends.net.heal();
    // A connection with a hole in it breaks.
    assert!(matches!(ends.far.read(&mut [0; 9]).await, Ok(0) | Err(_)));
}

#[tokio::test]
async fn a_reset_breaks_connections_and_allows_new_ones() {
    let net = Net::new(1);
    let target = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = net.proxy(1, target.local_addr().unwrap()).await.unwrap();
    let mut near = TcpStream::connect(address).await.unwrap();
    let (_far, _) = target.accept().await.unwrap();
    net.change(CLIENT, 1, |link| link.resets += 1);
    assert!(matches!(near.read(&mut [0; 9]).await, Ok(0) | Err(_)));
    let mut near = TcpStream::connect(address).await.unwrap();
    let (mut far, _) = target.accept().await.unwrap();
    near.write_all(b"anew").await.unwrap();
    assert!(arrives(&mut far, b"anew", 2_000).await);
}

#[tokio::test]
async fn a_caller_is_known_by_its_process() {
    let net = Net::new(2);
    net.set_pid(2, std::process::id());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (_far, from) = listener.accept().await.unwrap();
    assert_eq!(near.local_addr().unwrap(), from);
    let far = listener.local_addr().unwrap();
    assert_eq!(net.owner_of(from, far), Some(2));
    net.set_pid(2, u32::MAX);
    assert_eq!(net.owner_of(from, far), None);
}
