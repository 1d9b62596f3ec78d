//! The accepting end: connections with a known other side, or plain ones where no identity is set.
//!
//! Handshakes run beside each other, bounded in number and time, so that one slow or hostile client delays nobody
//! else. A failed one is said at debug and forgotten. Someone who speaks plain HTTP/2 to a secured port is told so
//! in HTTP/2's own words, because a broken connection would leave them guessing.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use mainstay_proto::gather::Gathered;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::Sleep;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use crate::Identity;
use crate::name::Peer;

/// How long a handshake may take.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Handshakes under way at one time; more wait in the listener's queue.
pub const HANDSHAKES_MAX: usize = 512;
/// When the system has no room for another connection, one ends soon.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// The first byte of HTTP/2 in plain text ("PRI * HTTP/2.0"); a TLS handshake begins otherwise.
const PLAIN_H2: u8 = b'P';
const PLAIN_ANSWER: &str = "this port speaks TLS only; start the caller with --identity DIR";
/// HTTP/2's INADEQUATE_SECURITY.
const INADEQUATE_SECURITY: u32 = 0xc;

/// Who is at the other end of a connection; among the extensions of every request.
#[derive(Debug, Clone)]
pub enum Caller {
    /// Plain text: nobody knows.
    Plain,
    /// Over TLS, without a certificate.
    Guest,
    /// The holder of that certificate.
    Node(Arc<Peer>),
}

/// An accepted connection.
#[derive(Debug)]
pub enum Connection {
    /// In plain text.
    Plain(TcpStream),
    /// Encrypted, with what is known of the other side.
    Tls(Box<TlsStream<TcpStream>>, Caller),
}

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        match self {
            Self::Plain(_) => Caller::Plain,
            Self::Tls(_, caller) => caller.clone(),
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream, _) => Pin::new(stream.as_mut()).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream, _) => Pin::new(stream.as_mut()).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream, _) => Pin::new(stream.as_mut()).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream, _) => Pin::new(stream.as_mut()).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tls(stream, _) => Pin::new(stream.as_mut()).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream, _) => stream.is_write_vectored(),
        }
    }
}

/// Connections as tonic takes them. The port is free once this is dropped, and handshakes under way have ended.
#[derive(Debug)]
pub struct Incoming {
    listener: TcpListener,
    identity: Option<Identity>,
    guests: bool,
    handshakes: JoinSet<Option<Connection>>,
    /// Until when no connection is accepted, because the system refused the last.
    pause: Option<Pin<Box<Sleep>>>,
}

impl Incoming {
    /// Lets callers without a certificate in, too; what they may call is the [`crate::Guard`]'s to say.
    #[must_use]
    pub fn with_guests(mut self) -> Self {
        self.guests = true;
        self
    }

    /// The next connection that is ready as it is; handshakes begin on the way.
    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Connection> {
        while self.handshakes.len() < HANDSHAKES_MAX {
            if let Some(pause) = &mut self.pause {
                std::task::ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            let (stream, from) = match std::task::ready!(self.listener.poll_accept(cx)) {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::debug!(%error, "a connection could not be accepted");
                    self.pause = Some(Box::pin(tokio::time::sleep(ACCEPT_PAUSE)));
                    continue;
                }
            };
            // Small messages must not wait for one another.
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%from, %error, "a connection ended as it began");
                continue;
            }
            match self.identity.clone() {
                None => return Poll::Ready(Connection::Plain(stream)),
                Some(identity) => {
                    drop(self.handshakes.spawn(shake(stream, from, identity, self.guests)));
                }
            }
        }
        Poll::Pending
    }
}

impl Stream for Incoming {
    type Item = io::Result<Gathered<Connection>>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Poll::Ready(connection) = self.poll_accept(cx) {
                return Poll::Ready(Some(Ok(Gathered::new(connection))));
            }
            // One that ended makes room for another, so the listener is asked again.
            match self.handshakes.poll_join_next(cx) {
                Poll::Ready(Some(Ok(Some(connection)))) => {
                    return Poll::Ready(Some(Ok(Gathered::new(connection))));
                }
                Poll::Ready(Some(_)) => {}
                Poll::Ready(None) | Poll::Pending => return Poll::Pending,
            }
        }
    }
}

/// Accepts from `listener`: TLS with both sides checked if there is an identity, plain text otherwise.
#[must_use]
pub fn incoming(listener: TcpListener, identity: Option<Identity>) -> Incoming {
    Incoming { listener, identity, guests: false, handshakes: JoinSet::new(), pause: None }
}

async fn shake(
    stream: TcpStream,
    from: SocketAddr,
    identity: Identity,
    guests: bool,
) -> Option<Connection> {
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, secure(stream, &identity, guests)).await {
        Ok(Ok(connection)) => return Some(connection),
        Ok(Err(error)) => tracing::debug!(%from, %error, "a handshake failed"),
        Err(_) => tracing::debug!(%from, "a handshake took too long"),
    }
    None
}

async fn secure(
    mut stream: TcpStream,
    identity: &Identity,
    guests: bool,
) -> io::Result<Connection> {
    let mut first = [0];
    if stream.peek(&mut first).await? == 1 && first[0] == PLAIN_H2 {
        tell_plain(&mut stream).await?;
        return Err(io::Error::other("it speaks plain text"));
    }
    let config = if guests { identity.server_config_of_guests() } else { identity.server_config() };
    let tls = TlsAcceptor::from(config).accept(stream).await?;
    let caller = match tls.get_ref().1.peer_certificates() {
        None if guests => Caller::Guest,
        chain => Caller::Node(Arc::new(peer_of(chain, identity).map_err(io::Error::other)?)),
    };
    Ok(Connection::Tls(Box::new(tls), caller))
}

/// The name in the other side's certificate, if it is of our cluster.
pub(crate) fn peer_of(
    chain: Option<&[tokio_rustls::rustls::pki_types::CertificateDer<'static>]>,
    identity: &Identity,
) -> Result<Peer, String> {
    let certificate = chain.and_then(<[_]>::first).ok_or("it has no certificate")?;
    let peer = Peer::of(certificate)?;
    let own = &identity.peer().cluster;
    if peer.cluster != *own {
        return Err(format!("it is of the cluster {:?}, not of {own:?}", peer.cluster));
    }
    Ok(peer)
}

/// Empty settings and a goodbye with the reason: what an HTTP/2 client understands.
async fn tell_plain(stream: &mut TcpStream) -> io::Result<()> {
    let text = PLAIN_ANSWER.as_bytes();
    let length = u8::try_from(8 + text.len()).expect("the answer is a short constant");
    let mut frames = vec![0, 0, 0, 4, 0, 0, 0, 0, 0];
    frames.extend_from_slice(&[0, 0, length, 7, 0, 0, 0, 0, 0]);
    frames.extend_from_slice(&0_u32.to_be_bytes());
    frames.extend_from_slice(&INADEQUATE_SECURITY.to_be_bytes());
    frames.extend_from_slice(text);
    stream.write_all(&frames).await?;
    stream.shutdown().await?;
    // What is unread when a socket closes makes the system throw away what was sent.
    let mut scratch = [0; 1024];
    while stream.read(&mut scratch).await? > 0 {}
    Ok(())
}
