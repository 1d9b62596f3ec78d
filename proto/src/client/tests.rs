//! What a client does when a member goes away.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use tonic::Code;

use super::ControlPlane;
use crate::v1;

/// SETTINGS without a setting.
const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
/// GOAWAY: no stream was worked on, and nothing is wrong.
const GOAWAY: [u8; 17] = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

const HEADERS: u8 = 1;

/// Reads a frame; answers with its kind.
fn frame(stream: &mut TcpStream) -> Option<u8> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).ok()?;
    let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
    stream.read_exact(&mut payload).ok()?;
    Some(head[3])
}

/// A member that ends at the moment in which a call comes in, as often as it is asked.
fn leaving_member() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            stream.write_all(&SETTINGS).unwrap();
            let mut preface = [0; 24];
            let _ = stream.read_exact(&mut preface);
            while let Some(kind) = frame(&mut stream)
                && kind != HEADERS
            {}
            let _ = stream.write_all(&GOAWAY);
        }
    });
    address
}

#[tokio::test]
async fn a_member_that_ends_while_a_call_is_on_its_way_is_left_for_another() {
    let plane = ControlPlane::new(&[leaving_member()]).unwrap();
    let mut attempts = 0;
    let answer = plane.call(Duration::from_secs(1), |mut client| {
        attempts += 1;
        async move { client.status(v1::StatusRequest::default()).await }
    });
    let status = answer.await.unwrap_err();
    assert!(attempts > 1, "{status:?} ended it");
}

#[test]
fn an_error_of_the_members_own_is_final() {
    assert!(!super::is_transient(&tonic::Status::internal("a bug")));
    assert!(!super::is_transient(&tonic::Status::invalid_argument("no")));
    assert!(super::is_transient(&tonic::Status::new(Code::Unavailable, "no leader")));
}
