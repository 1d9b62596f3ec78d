//! Profiles: their forms, what may be asked, and one of this process.

use std::io::Read as _;
use std::sync::atomic::{AtomicBool, Ordering};

use flate2::read::GzDecoder;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::form::ProfileForm;
use super::stacks::{Frame, Stack};
use super::*;

fn frame(name: &str, line: u32) -> Frame {
    Frame { name: name.to_owned(), file: "a.rs".to_owned(), line }
}

fn profile() -> Profile {
    let stack = |frames, count| Stack { thread: "t;1".to_owned(), frames, count };
    Profile {
        started: SystemTime::UNIX_EPOCH + Duration::from_secs(5),
        duration: Duration::from_secs(2),
        period: Duration::from_millis(10),
        stacks: vec![
            stack(vec![frame("leaf", 3), frame("root", 1)], 7),
            stack(vec![frame("other", 9), frame("root", 1)], 2),
        ],
    }
}

#[test]
fn a_profile_in_pprofs_form_names_each_thing_once() {
    let form = ProfileForm::decode(&form::encode(&profile())[..]).unwrap();
    let text = |place: i64| form.string_table[usize::try_from(place).unwrap()].as_str();
    assert_eq!(form.string_table[0], "");
    let kinds: Vec<_> = form.sample_type.iter().map(|v| (text(v.kind), text(v.unit))).collect();
    assert_eq!(kinds, [("samples", "count"), ("cpu", "nanoseconds")]);
    assert_eq!((form.period, form.duration_nanos), (10_000_000, 2_000_000_000));
    assert_eq!(form.time_nanos, 5_000_000_000);
    assert_eq!((form.function.len(), form.location.len(), form.sample.len()), (3, 3, 2));
    let sample = &form.sample[0];
    assert_eq!(sample.value, [7, 70_000_000]);
    assert_eq!((text(sample.label[0].key), text(sample.label[0].text)), ("thread", "t;1"));
    let name = |location: u64| {
        let line = form.location.iter().find(|l| l.id == location).unwrap().line[0];
        let function = form.function.iter().find(|f| f.id == line.function_id).unwrap();
        (text(function.name), text(function.filename), line.line)
    };
    let names: Vec<_> = sample.location_id.iter().map(|l| name(*l)).collect();
    assert_eq!(names, [("leaf", "a.rs", 3), ("root", "a.rs", 1)]);
}

#[test]
fn folded_stacks_begin_outside() {
    assert_eq!(profile().folded(), "t:1;root;leaf 7\nt:1;root;other 2\n");
}

#[test]
fn what_may_be_asked() {
    let usual = Wish { seconds: 30, frequency: 99, format: Format::Pprof };
    assert_eq!(Wish::read(""), Ok(usual));
    let wish = Wish { seconds: 1, frequency: 999, format: Format::Folded };
    assert_eq!(Wish::read("seconds=1&frequency=999&format=folded"), Ok(wish));
    for (query, told) in [
        ("seconds=0", "seconds is a number from 1 to 120"),
        ("seconds=121", "from 1 to 120"),
        ("seconds=-1", "from 1 to 120"),
        ("seconds", "from 1 to 120"),
        ("frequency=1000", "from 1 to 999"),
        ("frequency=nan", "from 1 to 999"),
        ("format=svg", "pprof or folded"),
        ("second=3", "seconds, frequency and format"),
    ] {
        let error = Wish::read(query).unwrap_err();
        assert!(error.contains(told), "{query}: {error}");
    }
}

/// Keeps a core busy until told to stop.
#[inline(never)]
fn busy_for_the_profile(stop: &AtomicBool) -> u64 {
    let mut sum = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        sum = std::hint::black_box(sum.wrapping_mul(3).wrapping_add(1));
    }
    sum
}

async fn get(address: SocketAddr, path: &str) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    bytes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_keeps_this_process_busy_is_seen_and_one_profile_is_taken_at_a_time() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve(listener));
    let stop = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&stop);
    let busy = std::thread::Builder::new()
        .name("busy-one".to_owned())
        .spawn(move || busy_for_the_profile(&seen))
        .unwrap();

    let first = tokio::spawn(get(address, "/debug/pprof/profile?seconds=2&format=folded"));
    tokio::time::sleep(Duration::from_millis(500)).await;
    let second = String::from_utf8(get(address, "/debug/pprof/profile?seconds=1").await).unwrap();
    assert!(second.starts_with("HTTP/1.1 409"), "{second}");
    let folded = String::from_utf8(first.await.unwrap()).unwrap();
    assert!(folded.starts_with("HTTP/1.1 200"), "{folded}");
    let line = folded.lines().find(|line| line.contains("busy_for_the_profile")).expect("samples");
    assert!(line.starts_with("busy-one;"), "{line}");

    // The place is free again, and the other form says the same.
    let reply = get(address, "/debug/pprof/profile?seconds=1&frequency=200").await;
    let head = reply.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
    assert!(reply.starts_with(b"HTTP/1.1 200"));
    let form = ProfileForm::decode(&reply[head..]).unwrap();
    assert!(form.string_table.iter().any(|text| text.contains("busy_for_the_profile")));
    stop.store(true, Ordering::Relaxed);
    busy.join().unwrap();

    let lost = String::from_utf8(get(address, "/").await).unwrap();
    assert!(lost.starts_with("HTTP/1.1 404") && lost.contains("/debug/pprof/profile"), "{lost}");
}

/// Keeps memory until it is dropped.
#[inline(never)]
fn kept_for_the_profile() -> Vec<Vec<u8>> {
    (0..64).map(|n| std::hint::black_box(vec![n; 1 << 20])).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_keeps_memory_is_seen_and_nothing_is_sampled_afterwards() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve(listener));
    for wrong in ["seconds=0", "seconds=3601", "minutes=1", "seconds"] {
        let refused = get(address, &format!("/debug/pprof/heap?{wrong}")).await;
        assert!(refused.starts_with(b"HTTP/1.1 400"), "{wrong}");
    }
    for round in 0..2 {
        let asked = tokio::spawn(get(address, "/debug/pprof/heap?seconds=2"));
        tokio::time::sleep(Duration::from_secs(1)).await;
        let kept = (round == 0).then(kept_for_the_profile);
        let reply = asked.await.unwrap();
        drop(kept);
        assert!(reply.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&reply));
        let head = reply.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
        let mut bytes = Vec::new();
        GzDecoder::new(&reply[head..]).read_to_end(&mut bytes).unwrap();
        let form = ProfileForm::decode(&bytes[..]).unwrap();
        let seen = form.string_table.iter().any(|text| text.contains("kept_for_the_profile"));
        assert_eq!(seen, round == 0);
    }
}
