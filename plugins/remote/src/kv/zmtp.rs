//! The part of ZMTP 3.0 that a subscriber and an asker for replays need: handshake without security, messages of
//! several frames, commands passed over.
//!
//! Written here and not taken from the crate `zeromq`, which the tests use as the other end: that one has no
//! bound on a frame's length and does not say when a connection breaks, which is how a restarted server is found
//! at once.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

/// How long connecting and greeting may take.
const CONNECT: Duration = Duration::from_secs(5);
/// The longest frame, and the longest message: 10,000 blocks of 64 tokens are three megabytes.
const MESSAGE_BYTES_MAX: usize = 64 << 20;
const FRAMES_MAX: usize = 16;
/// A command: `READY` with its properties, `PING`.
const COMMAND_BYTES_MAX: usize = 64 << 10;
const READ_BYTES: usize = 64 << 10;

const MORE: u8 = 1;
const LONG: u8 = 2;
const COMMAND: u8 = 4;

/// What this end is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Subscriber,
    Dealer,
}

impl Role {
    const fn word(self) -> &'static str {
        match self {
            Self::Subscriber => "SUB",
            Self::Dealer => "DEALER",
        }
    }

    const fn other_end(self) -> [&'static str; 2] {
        match self {
            Self::Subscriber => ["PUB", "XPUB"],
            Self::Dealer => ["ROUTER", "REP"],
        }
    }
}

trait Both: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Both for T {}

/// A message's frames.
pub(crate) type Message = Vec<Vec<u8>>;

/// One connection, after its handshake.
pub(crate) struct Peer {
    stream: Box<dyn Both>,
    /// Bytes that came and were not read yet.
    buffer: Vec<u8>,
    /// How many of them are read.
    read: usize,
    frames: Message,
    frames_bytes: usize,
}

fn broken(reason: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.into())
}

/// What a frame is, of which all bytes are there.
struct Frame {
    flags: u8,
    body: Vec<u8>,
}

impl Peer {
    /// Connects to `tcp://HOST:PORT` or `ipc:///PATH`.
    pub(crate) async fn connect(endpoint: &str, role: Role) -> io::Result<Self> {
        let connect = async {
            let stream: Box<dyn Both> = if let Some(address) = endpoint.strip_prefix("tcp://") {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                Box::new(stream)
            } else {
                let path = endpoint.strip_prefix("ipc://").unwrap_or(endpoint);
                Box::new(UnixStream::connect(path).await?)
            };
            let (buffer, frames) = (Vec::new(), Vec::new());
            let mut peer = Self { stream, buffer, read: 0, frames, frames_bytes: 0 };
            peer.greet(role).await?;
            Ok(peer)
        };
        tokio::time::timeout(CONNECT, connect)
            .await
            .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "no greeting")))
    }

    async fn greet(&mut self, role: Role) -> io::Result<()> {
        let mut greeting = [0_u8; 64];
        (greeting[0], greeting[8], greeting[9]) = (0xff, 1, 0x7f);
        greeting[10] = 3;
        greeting[12..16].copy_from_slice(b"NULL");
        self.stream.write_all(&greeting).await?;
        while self.buffer.len() < greeting.len() {
            self.fill().await?;
        }
        let theirs = &self.buffer[..greeting.len()];
        if theirs[0] != 0xff || theirs[9] != 0x7f || theirs[10] < 3 {
            return Err(broken("the other end does not speak ZMTP 3"));
        }
        if &theirs[12..17] != b"NULL\0" {
            return Err(broken(
                "the other end wants a security mechanism; only NULL is spoken here",
            ));
        }
        self.read = greeting.len();
        let mut ready = vec![5];
        ready.extend(b"READY");
        property(&mut ready, "Socket-Type", role.word().as_bytes());
        if role == Role::Dealer {
            property(&mut ready, "Identity", b"");
        }
        self.write_frame(COMMAND, &ready).await?;
        let frame = loop {
            match self.parse()? {
                Some(frame) => break frame,
                None => self.fill().await?,
            }
        };
        let is_ready = frame.flags & COMMAND != 0 && frame.body.starts_with(b"\x05READY");
        let kind = is_ready.then(|| socket_type(&frame.body[6..])).flatten();
        match kind {
            Some(kind) if role.other_end().iter().any(|known| known.as_bytes() == kind) => Ok(()),
            Some(kind) => {
                let kind = String::from_utf8_lossy(kind).into_owned();
                let due = role.other_end()[0];
                Err(broken(format!("a {kind:?} socket answers where a {due} was expected")))
            }
            None => Err(broken("the other end does not get ready")),
        }
    }

    /// Asks for messages whose first frame begins with `topic`.
    pub(crate) async fn subscribe(&mut self, topic: &str) -> io::Result<()> {
        let body = [&[1], topic.as_bytes()].concat();
        self.write_frame(0, &body).await
    }

    pub(crate) async fn send(&mut self, frames: &[&[u8]]) -> io::Result<()> {
        for (at, frame) in frames.iter().enumerate() {
            let more = if at + 1 < frames.len() { MORE } else { 0 };
            self.write_frame(more, frame).await?;
        }
        Ok(())
    }

    async fn write_frame(&mut self, flags: u8, body: &[u8]) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(body.len() + 9);
        if let Ok(short) = u8::try_from(body.len()) {
            bytes.extend([flags, short]);
        } else {
            bytes.push(flags | LONG);
            bytes.extend((body.len() as u64).to_be_bytes());
        }
        bytes.extend(body);
        self.stream.write_all(&bytes).await
    }

    /// The next message. Dropping the future loses nothing.
    pub(crate) async fn receive(&mut self) -> io::Result<Message> {
        loop {
            while let Some(frame) = self.parse()? {
                if frame.flags & COMMAND != 0 {
                    if frame.body.starts_with(b"\x04PING") && frame.body.len() >= 7 {
                        let pong = [b"\x04PONG", &frame.body[7..]].concat();
                        self.write_frame(COMMAND, &pong).await?;
                    }
                    continue;
                }
                self.frames_bytes += frame.body.len();
                self.frames.push(frame.body);
                if self.frames.len() > FRAMES_MAX || self.frames_bytes > MESSAGE_BYTES_MAX {
                    return Err(broken("a message is too long"));
                }
                if frame.flags & MORE == 0 {
                    self.frames_bytes = 0;
                    return Ok(std::mem::take(&mut self.frames));
                }
            }
            self.fill().await?;
        }
    }

    /// Reads more bytes; an end of the stream is an error.
    async fn fill(&mut self) -> io::Result<()> {
        if self.read > 0 {
            self.buffer.drain(..self.read);
            self.read = 0;
        }
        self.buffer.reserve(READ_BYTES);
        // Bytes are in the buffer or still in the socket, never between.
        let count = self.stream.read_buf(&mut self.buffer).await?;
        if count == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection has ended"));
        }
        Ok(())
    }

    /// A frame, if all of it is there.
    fn parse(&mut self) -> io::Result<Option<Frame>> {
        let unread = &self.buffer[self.read..];
        let Some(flags) = unread.first().copied() else { return Ok(None) };
        if flags & !(MORE | LONG | COMMAND) != 0 {
            return Err(broken("a frame with unknown flags"));
        }
        let (head, len) = if flags & LONG == 0 {
            let Some(len) = unread.get(1) else { return Ok(None) };
            (2, usize::from(*len))
        } else {
            let Some(len) = unread.get(1..9) else { return Ok(None) };
            let len = u64::from_be_bytes(len.try_into().map_err(|_| broken("a length"))?);
            (9, usize::try_from(len).unwrap_or(usize::MAX))
        };
        let most = if flags & COMMAND == 0 { MESSAGE_BYTES_MAX } else { COMMAND_BYTES_MAX };
        if len > most {
            return Err(broken(format!("a frame of {len} bytes; at most {most} are taken")));
        }
        let Some(body) = unread.get(head..head + len) else { return Ok(None) };
        let body = body.to_vec();
        self.read += head + len;
        Ok(Some(Frame { flags, body }))
    }
}

fn property(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.push(name.len() as u8);
    out.extend(name.as_bytes());
    out.extend((value.len() as u32).to_be_bytes());
    out.extend(value);
}

/// The value of `Socket-Type` among the properties of a `READY`.
fn socket_type(mut rest: &[u8]) -> Option<&[u8]> {
    while let Some((len, tail)) = rest.split_first() {
        let (name, tail) = tail.split_at_checked(usize::from(*len))?;
        let (len, tail) = tail.split_at_checked(4)?;
        let len = u32::from_be_bytes(len.try_into().ok()?) as usize;
        let (value, tail) = tail.split_at_checked(len)?;
        if name.eq_ignore_ascii_case(b"Socket-Type") {
            return Some(value);
        }
        rest = tail;
    }
    None
}

#[cfg(test)]
mod tests;
