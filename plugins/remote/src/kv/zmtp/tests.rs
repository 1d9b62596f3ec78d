//! Against another implementation, and against an end that means harm.

use tokio::net::TcpListener;
use zeromq::{PubSocket, RouterSocket, Socket, SocketRecv, SocketSend, ZmqMessage};

use super::*;

fn message(frames: &[&[u8]]) -> ZmqMessage {
    let mut message = ZmqMessage::from(frames[0].to_vec());
    for frame in &frames[1..] {
        message.push_back(frame.to_vec().into());
    }
    message
}

#[tokio::test]
async fn a_publisher_of_another_make_is_heard() {
    let mut publisher = PubSocket::new();
    let endpoint = publisher.bind("tcp://127.0.0.1:0").await.unwrap().to_string();
    let mut peer = Peer::connect(&endpoint, Role::Subscriber).await.unwrap();
    peer.subscribe("kv").await.unwrap();
    let long = vec![7_u8; 300_000];
    let heard = loop {
        // A subscription takes a moment to arrive, and nothing says when.
        publisher.send(message(&[b"other", b"1"])).await.unwrap();
        publisher.send(message(&[b"kv-events", b"12345678", &long])).await.unwrap();
        let next = tokio::time::timeout(Duration::from_millis(50), peer.receive());
        if let Ok(heard) = next.await {
            break heard.unwrap();
        }
    };
    assert_eq!(heard, [b"kv-events".to_vec(), b"12345678".to_vec(), long]);
    drop(publisher);
    while let Ok(rest) = peer.receive().await {
        assert_eq!(rest[0], b"kv-events");
    }
}

#[tokio::test]
async fn a_router_of_another_make_answers() {
    let mut router = RouterSocket::new();
    let endpoint = router.bind("tcp://127.0.0.1:0").await.unwrap().to_string();
    let mut peer = Peer::connect(&endpoint, Role::Dealer).await.unwrap();
    peer.send(&[b"", &9_u64.to_be_bytes()]).await.unwrap();
    let asked = router.recv().await.unwrap().into_vec();
    assert_eq!(
        (asked.len(), &asked[1][..], &asked[2][..]),
        (3, &b""[..], &9_u64.to_be_bytes()[..])
    );
    let identity = asked[0].clone();
    for n in 0..3_u8 {
        router.send(message(&[&identity, b"", &[n]])).await.unwrap();
        assert_eq!(peer.receive().await.unwrap(), [vec![], vec![n]]);
    }
}

#[tokio::test]
async fn the_wrong_kind_of_socket_is_named() {
    let mut publisher = PubSocket::new();
    let endpoint = publisher.bind("tcp://127.0.0.1:0").await.unwrap().to_string();
    let error = Peer::connect(&endpoint, Role::Dealer).await.err().unwrap().to_string();
    assert!(error.contains("ROUTER") || error.contains("ended"), "{error}");
}

/// An end that sends these bytes and waits.
async fn hostile(bytes: Vec<u8>) -> io::Result<Message> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
    });
    let result = async {
        let endpoint = format!("tcp://{address}");
        let mut peer = Peer::connect(&endpoint, Role::Subscriber).await?;
        peer.receive().await
    };
    let result = result.await;
    server.abort();
    result
}

fn greeting() -> Vec<u8> {
    let mut bytes = vec![0_u8; 64];
    (bytes[0], bytes[9], bytes[10]) = (0xff, 0x7f, 3);
    bytes[12..16].copy_from_slice(b"NULL");
    let mut ready = b"\x05READY".to_vec();
    property(&mut ready, "Socket-Type", b"PUB");
    bytes.extend([COMMAND, ready.len() as u8]);
    bytes.extend(ready);
    bytes
}

#[tokio::test]
async fn hostile_ends_are_left_with_a_reason() {
    let with = |tail: &[u8]| [greeting(), tail.to_vec()].concat();
    let mut huge = vec![LONG];
    huge.extend(u64::MAX.to_be_bytes());
    let endless = [MORE, 0].repeat(FRAMES_MAX + 1);
    let mut plain = greeting();
    plain[12..16].copy_from_slice(b"PLAI");
    for (bytes, word) in [
        (
            b"HTTP/1.1 400 Bad Request\r\n\r\nnot the protocol that was asked for here...."
                .to_vec(),
            "ZMTP",
        ),
        (plain, "mechanism"),
        (with(&huge), "at most"),
        (with(&endless), "too long"),
        (with(&[0x80, 0]), "flags"),
    ] {
        let error = hostile(bytes).await.unwrap_err().to_string();
        assert!(error.contains(word), "{word}: {error}");
    }
}
