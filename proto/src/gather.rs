//! Small writes of a connection, gathered: what its task writes in this turn and the next leaves as one packet.
//!
//! A call is a few frames (headers, a message, an end) that come from tasks of their own, and HTTP/2 flushes after
//! each: that is a system call here, and a wake and another one at the other end. So a flush of a few bytes lets the
//! tasks that are ready run once before it is obeyed. There is no timer: on an idle machine that is at once. What is
//! large goes out directly, behind what is held, without a copy. Whoever drops this before a flush or a shutdown is
//! done loses what is held, as with any buffer.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

/// How much is held at most; a write that would make it more is not copied.
pub const HELD_BYTES_MAX: usize = 16 << 10;
/// How often a flush is put off until the other ready tasks have run.
const TURNS_MAX: u8 = 1;
/// How many parts of one write follow what is held; the rest comes with the next.
const PARTS_MAX: usize = 8;

/// A connection whose small writes are gathered.
#[derive(Debug)]
pub struct Gathered<S> {
    inner: S,
    held: Vec<u8>,
    /// How many of these the connection took already.
    taken: usize,
    /// How often the next flush is put off.
    turns: u8,
}

impl<S> Gathered<S> {
    /// Wraps a connection to which nobody else writes.
    pub const fn new(inner: S) -> Self {
        Self { inner, held: Vec::new(), taken: 0, turns: 0 }
    }

    /// The connection itself.
    pub const fn get_ref(&self) -> &S {
        &self.inner
    }

    const fn held_bytes(&self) -> usize {
        self.held.len() - self.taken
    }

    /// Holds what fits; false if it does not.
    fn hold(&mut self, parts: &[IoSlice<'_>], bytes: usize) -> bool {
        if self.held_bytes() + bytes > HELD_BYTES_MAX {
            return false;
        }
        if self.held_bytes() == 0 {
            self.turns = TURNS_MAX;
        }
        // Room for what comes, so that memory stays bounded however little the connection takes at a time.
        self.held.drain(..self.taken);
        self.taken = 0;
        parts.iter().for_each(|part| self.held.extend_from_slice(part));
        true
    }

    /// Notes that the connection took `bytes` of what is held.
    fn took(&mut self, bytes: usize) {
        self.taken += bytes;
        if self.taken >= self.held.len() {
            self.held.clear();
            self.taken = 0;
        }
    }
}

impl<S: AsyncWrite + Unpin> Gathered<S> {
    /// Writes all that is held.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.held_bytes() > 0 {
            let rest = &self.held[self.taken..];
            let bytes = ready!(Pin::new(&mut self.inner).poll_write(cx, rest))?;
            self.took(progress(bytes)?);
        }
        Poll::Ready(Ok(()))
    }

    /// Writes more than can be held, behind what is held; answers with how much of it was taken.
    fn poll_pass(
        &mut self,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        while self.held_bytes() > 0 && self.inner.is_write_vectored() {
            let held = self.held_bytes();
            let mut all = [IoSlice::new(&[]); PARTS_MAX + 1];
            all[0] = IoSlice::new(&self.held[self.taken..]);
            let following = parts.len().min(PARTS_MAX);
            all[1..=following].copy_from_slice(&parts[..following]);
            let all = &all[..=following];
            let bytes = progress(ready!(Pin::new(&mut self.inner).poll_write_vectored(cx, all))?)?;
            self.took(bytes.min(held));
            if bytes > held {
                return Poll::Ready(Ok(bytes - held));
            }
        }
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.inner).poll_write_vectored(cx, parts)
    }
}

/// A connection that takes nothing would be asked for ever.
fn progress(bytes: usize) -> io::Result<usize> {
    if bytes == 0 { Err(io::ErrorKind::WriteZero.into()) } else { Ok(bytes) }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gathered<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let bytes = bufs.iter().map(|part| part.len()).fold(0, usize::saturating_add);
        if bytes == 0 || this.hold(bufs, bytes) {
            return Poll::Ready(Ok(bytes));
        }
        this.poll_pass(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.held_bytes() > 0 && this.turns > 0 {
            this.turns -= 1;
            // A task that wakes itself comes after all that are ready.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        ready!(this.poll_drain(cx))?;
        Pin::new(&mut this.inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_drain(cx))?;
        Pin::new(&mut this.inner).poll_shutdown(cx)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gathered<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_read(cx, buf)
    }
}

impl<S: Connected> Connected for Gathered<S> {
    type ConnectInfo = S::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.inner.connect_info()
    }
}

#[cfg(test)]
mod tests;
