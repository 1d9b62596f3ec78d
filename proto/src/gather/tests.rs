//! What reaches a connection, write by write: in-memory ones that count, take little, refuse or fail.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Wake, Waker};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

/// What a connection answers to its next write.
enum Next {
    Take(usize),
    Block,
    Fail,
}

#[derive(Default)]
struct Counted {
    /// Each write that was taken.
    writes: Vec<Vec<u8>>,
    /// Answers to come; all is taken once there is none.
    next: VecDeque<Next>,
    vectored: bool,
    flushes: usize,
    ended: bool,
}

impl Counted {
    fn vectored() -> Self {
        Self { vectored: true, ..Self::default() }
    }

    fn all(&self) -> Vec<u8> {
        self.writes.concat()
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        assert!(!self.ended, "a write after the end");
        let parts = if self.vectored { bufs } else { &bufs[..1] };
        let mut bytes: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
        match self.next.pop_front() {
            None => {}
            Some(Next::Take(most)) => bytes.truncate(most),
            Some(Next::Block) => return Poll::Pending,
            Some(Next::Fail) => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
        let taken = bytes.len();
        self.writes.push(bytes);
        Poll::Ready(Ok(taken))
    }

    fn is_write_vectored(&self) -> bool {
        self.vectored
    }

    fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.flushes += 1;
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.ended = true;
        Poll::Ready(Ok(()))
    }
}

#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A connection asked step by step, as a task would.
struct Task {
    io: Gathered<Counted>,
    wakes: Arc<Wakes>,
}

impl Task {
    fn new(inner: Counted) -> Self {
        Self { io: Gathered::new(inner), wakes: Arc::default() }
    }

    fn step<T>(
        &mut self,
        ask: impl FnOnce(Pin<&mut Gathered<Counted>>, &mut Context<'_>) -> T,
    ) -> T {
        let waker = Waker::from(Arc::clone(&self.wakes));
        ask(Pin::new(&mut self.io), &mut Context::from_waker(&waker))
    }

    fn write(&mut self, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.step(|io, cx| io.poll_write(cx, bytes))
    }

    fn write_taken(&mut self, bytes: &[u8]) -> usize {
        match self.write(bytes) {
            Poll::Ready(Ok(taken)) => taken,
            other => panic!("{other:?}"),
        }
    }

    fn flush(&mut self) -> Poll<io::Result<()>> {
        self.step(|io, cx| io.poll_flush(cx))
    }

    fn wakes(&self) -> usize {
        self.wakes.0.load(Ordering::Relaxed)
    }
}

#[test]
fn what_is_written_before_the_flush_comes_again_is_one_write() {
    let mut task = Task::new(Counted::vectored());
    assert_eq!(task.write_taken(b"headers "), 8);
    assert!(task.flush().is_pending());
    assert_eq!((task.wakes(), task.io.inner.writes.len()), (1, 0), "it comes again by itself");
    assert_eq!(task.write_taken(b"message "), 8);
    assert_eq!(task.write_taken(b"end"), 3);
    assert!(task.flush().is_ready());
    assert_eq!(task.io.inner.writes, [b"headers message end"]);
    assert_eq!((task.wakes(), task.io.inner.flushes), (1, 1));
}

#[test]
fn a_flush_is_put_off_a_bounded_number_of_times_and_not_at_all_without_need() {
    let mut task = Task::new(Counted::default());
    assert!(task.flush().is_ready(), "there is nothing to wait for");
    // More that comes meanwhile puts it off no further.
    task.write_taken(b"0");
    for _ in 0..TURNS_MAX {
        assert!(task.flush().is_pending());
        task.write_taken(b"x");
    }
    assert!(task.flush().is_ready());
    assert_eq!(task.io.inner.writes.len(), 1);
    task.write_taken(b"next");
    assert!(task.flush().is_pending(), "what comes later is gathered anew");
    assert_eq!(task.wakes(), usize::from(TURNS_MAX) + 1);
}

#[test]
fn large_writes_follow_what_is_held_without_being_held() {
    let large = vec![7; HELD_BYTES_MAX];
    let mut task = Task::new(Counted::vectored());
    task.write_taken(b"head");
    assert_eq!(task.write_taken(&large), large.len());
    assert_eq!(task.io.inner.writes, [[b"head".as_slice(), &large].concat()]);
    assert!(task.flush().is_ready(), "nothing is held any more");
    // Where one write cannot have both, there are two.
    let mut task = Task::new(Counted::default());
    task.write_taken(b"head");
    assert_eq!(task.write_taken(&large), large.len());
    assert_eq!(task.io.inner.writes, [b"head".to_vec(), large]);
}

#[test]
fn parts_of_a_write_are_taken_in_order_and_no_more_of_them_than_there_are() {
    let part = vec![1; HELD_BYTES_MAX / 4];
    let parts = [IoSlice::new(&part); PARTS_MAX + 4];
    let mut task = Task::new(Counted::vectored());
    task.write_taken(b"head");
    let taken = task.step(|io, cx| io.poll_write_vectored(cx, &parts));
    let expected = PARTS_MAX * part.len();
    assert!(matches!(taken, Poll::Ready(Ok(bytes)) if bytes == expected), "{taken:?}");
    let small = [IoSlice::new(b"a"), IoSlice::new(b""), IoSlice::new(b"bc")];
    let taken = task.step(|io, cx| io.poll_write_vectored(cx, &small));
    assert!(matches!(taken, Poll::Ready(Ok(3))), "{taken:?}");
    assert!(matches!(task.write(b""), Poll::Ready(Ok(0))));
    assert!(task.flush().is_pending() && task.flush().is_ready());
    assert_eq!(task.io.inner.writes.last().map(Vec::as_slice), Some(b"abc".as_slice()));
}

#[test]
fn a_connection_that_takes_little_gets_everything_once_and_in_order() {
    for vectored in [false, true] {
        for step in 1..9 {
            let next = (0..400).map(|n| if n % 3 == 2 { Next::Block } else { Next::Take(step) });
            let inner = Counted { next: next.collect(), vectored, ..Counted::default() };
            let mut task = Task::new(inner);
            let mut sent = Vec::new();
            for n in 0..60_u8 {
                // Now and then one that is too large to hold.
                let most = if n % 20 == 19 { HELD_BYTES_MAX + 1 } else { 1 + usize::from(n) };
                let bytes: Vec<u8> = (0..most).map(|at| n.wrapping_add(at as u8)).collect();
                let mut rest = bytes.as_slice();
                while !rest.is_empty() {
                    if let Poll::Ready(taken) = task.write(rest) {
                        rest = &rest[taken.unwrap()..];
                    }
                    assert!(task.io.held.len() <= HELD_BYTES_MAX);
                }
                sent.extend(bytes);
                let _ = task.flush();
            }
            while task.flush().is_pending() {}
            assert_eq!(task.io.inner.all(), sent, "{vectored} {step}");
        }
    }
}

#[test]
fn an_end_brings_out_what_is_held_before_it() {
    let mut task = Task::new(Counted::default());
    task.io.inner.next = [Next::Take(2), Next::Block].into();
    task.write_taken(b"goodbye");
    assert!(task.step(|io, cx| io.poll_shutdown(cx)).is_pending());
    assert!(!task.io.inner.ended);
    assert!(task.step(|io, cx| io.poll_shutdown(cx)).is_ready());
    assert!(task.io.inner.ended);
    assert_eq!(task.io.inner.all(), b"goodbye");
}

#[test]
fn errors_come_out_wherever_the_write_happens() {
    let failing = || Counted { next: [Next::Fail, Next::Take(0)].into(), ..Counted::vectored() };
    let failed = |result: Poll<io::Result<()>>| match result {
        Poll::Ready(Err(error)) => error.kind(),
        other => panic!("{other:?}"),
    };
    let mut task = Task::new(failing());
    task.write_taken(b"x");
    assert!(task.flush().is_pending());
    assert_eq!(failed(task.flush()), io::ErrorKind::BrokenPipe);
    assert_eq!(failed(task.flush()), io::ErrorKind::WriteZero, "it takes nothing");
    let mut task = Task::new(failing());
    task.write_taken(b"x");
    assert_eq!(failed(task.step(|io, cx| io.poll_shutdown(cx))), io::ErrorKind::BrokenPipe);
    let mut task = Task::new(failing());
    task.write_taken(b"x");
    for kind in [io::ErrorKind::BrokenPipe, io::ErrorKind::WriteZero] {
        let large = task.write(&vec![0; HELD_BYTES_MAX]);
        assert_eq!(failed(large.map(|taken| taken.map(drop))), kind);
    }
}

#[tokio::test]
async fn tasks_that_are_ready_write_before_the_flush_goes_out() {
    let (here, mut there) = tokio::io::duplex(64 << 10);
    let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel::<&'static [u8]>();
    let mut io = Gathered::new(here);
    // A connection's task: it writes what others have for it, and flushes when there is no more.
    let connection = tokio::spawn(async move {
        let mut open = true;
        poll_fn(|cx| {
            while open && let Poll::Ready(next) = receiver.poll_recv(cx) {
                let Some(bytes) = next else {
                    open = false;
                    break;
                };
                assert!(Pin::new(&mut io).poll_write(cx, bytes).is_ready());
            }
            let flushed = Pin::new(&mut io).poll_flush(cx);
            if open { Poll::Pending } else { flushed }
        })
        .await
        .unwrap();
        io.shutdown().await.unwrap();
    });
    let first = sender.clone();
    tokio::spawn(async move { first.send(b"headers ").unwrap() });
    tokio::spawn(async move { sender.send(b"message").unwrap() });
    let mut all = vec![0; 64];
    // One read takes what is there: both, although the connection's task ran in between.
    let bytes = there.read(&mut all).await.unwrap();
    assert_eq!(&all[..bytes], b"headers message");
    connection.await.unwrap();
    assert_eq!(there.read(&mut all).await.unwrap(), 0);
}
