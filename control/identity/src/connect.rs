//! The opening end: a channel whose connections are secured with whatever certificate is current when each opens.
//!
//! The other side must hold a certificate of our cluster for the host that was dialled and for the role that is
//! expected there. In TLS 1.3 a client is done before the server has judged its certificate, so the first bytes of
//! the server are awaited: that turns a refusal into an error with a reason instead of a connection that breaks.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use mainstay_proto::gather::Gathered;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{AlertDescription, CertificateError, ClientConfig, Error as TlsError};
use tonic::transport::{Channel, Endpoint};

use crate::listen::peer_of;
use crate::name::Peer;
use crate::{Identity, IdentityError, Role};

/// How long the server's first bytes are awaited. They come at once; one that says nothing is not thereby broken.
const FIRST_BYTES: Duration = Duration::from_millis(250);
const FIRST_BYTES_MAX: usize = 512;
const PORT_USUAL: u16 = 80;

impl Identity {
    /// Opens a lazy channel to a node that must have the role `expected`; times and keepalives are `endpoint`'s.
    #[must_use]
    pub fn channel(&self, endpoint: &Endpoint, expected: Role) -> Channel {
        let identity = self.clone();
        endpoint.connect_with_connector_lazy(tower::service_fn(move |uri: Uri| {
            let identity = identity.clone();
            async move {
                let opened = identity.dial(&uri, expected).await?;
                // Above the encryption, so that records are few as well.
                Ok::<_, IdentityError>(TokioIo::new(Gathered::new(opened)))
            }
        }))
    }

    pub(crate) async fn dial(&self, uri: &Uri, expected: Role) -> Result<Opened, IdentityError> {
        if self.remaining().is_zero() {
            return Err(IdentityError::Expired { path: self.certificate_path() });
        }
        let client = Arc::clone(&self.material().client);
        open(client, uri, expected, |chain| peer_of(chain, self)).await
    }
}

/// Opens a connection; `named` says whom the other side's certificates name.
pub(crate) async fn open(
    client: Arc<ClientConfig>,
    uri: &Uri,
    expected: Role,
    named: impl Fn(Option<&[CertificateDer<'static>]>) -> Result<Peer, String>,
) -> Result<Opened, IdentityError> {
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let port = uri.port_u16().unwrap_or(PORT_USUAL);
    let failed = |detail: String| IdentityError::Connection {
        address: uri.authority().map_or_else(String::new, ToString::to_string),
        detail,
    };
    let name = ServerName::try_from(host.to_owned()).map_err(|e| failed(e.to_string()))?;
    let stream = TcpStream::connect((host, port)).await.map_err(|e| failed(e.to_string()))?;
    stream.set_nodelay(true).map_err(|e| failed(e.to_string()))?;
    let connector = TlsConnector::from(client);
    let explained = |error: io::Error| failed(explain(&error));
    let mut tls = connector.connect(name, stream).await.map_err(explained)?;
    let peer = named(tls.get_ref().1.peer_certificates()).map_err(&failed)?;
    if peer.role != expected {
        return Err(failed(format!(
            "a {} answers there ({}), not a {expected}",
            peer.role, peer.node
        )));
    }
    let mut first = vec![0; FIRST_BYTES_MAX];
    match tokio::time::timeout(FIRST_BYTES, tls.read(&mut first)).await {
        Ok(Ok(bytes)) => first.truncate(bytes),
        Ok(Err(error)) => return Err(failed(explain(&error))),
        Err(_) => first.clear(),
    }
    Ok(Opened { first, taken: 0, tls })
}

/// What a failed handshake means for whoever runs this node.
fn explain(error: &io::Error) -> String {
    let Some(tls) = error.get_ref().and_then(|e| e.downcast_ref::<TlsError>()) else {
        return format!("the handshake broke off: {error}");
    };
    match tls {
        TlsError::AlertReceived(alert) => format!("it refused this node: {}", refusal(*alert)),
        TlsError::InvalidCertificate(reason) => match reason {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                "its certificate is of another authority than this node's ca.pem, or its token"
                    .into()
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "its certificate has expired; issue it another with `mainstay control cert`".into()
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "its certificate is not for that host; issue it with `mainstay control cert --host`"
                    .into()
            }
            other => format!("its certificate is not accepted: {other:?}"),
        },
        TlsError::InvalidMessage(_) => {
            "it speaks plain text; start it with --identity, or this node without".into()
        }
        other => other.to_string(),
    }
}

fn refusal(alert: AlertDescription) -> String {
    match alert {
        AlertDescription::CertificateExpired => {
            "its certificate has expired; issue another with `mainstay control cert`".into()
        }
        AlertDescription::UnknownCA | AlertDescription::DecryptError => {
            "its certificate is of another authority; issue one with that cluster's authority"
                .into()
        }
        AlertDescription::CertificateRequired => {
            "it shows no certificate; pass --identity DIR".into()
        }
        other => format!("{other:?}"),
    }
}

/// A connection whose first bytes were read ahead.
pub(crate) struct Opened {
    first: Vec<u8>,
    taken: usize,
    tls: TlsStream<TcpStream>,
}

impl AsyncRead for Opened {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let ahead = &this.first[this.taken..];
        if ahead.is_empty() {
            return Pin::new(&mut this.tls).poll_read(cx, buf);
        }
        let bytes = ahead.len().min(buf.remaining());
        buf.put_slice(&ahead[..bytes]);
        this.taken += bytes;
        if this.taken == this.first.len() {
            this.first = Vec::new();
            this.taken = 0;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Opened {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.tls.is_write_vectored()
    }
}
