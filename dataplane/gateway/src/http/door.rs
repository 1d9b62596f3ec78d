//! The gateway's listener, which closes without losing anybody.
//!
//! The system resets connections that wait to be accepted when a listener closes, and a request that a client sends over
//! an idle connection is lost if the server closes that at the same time. So a gateway that ends first takes in who waits
//! and closes the listener, so that new clients are refused and go elsewhere; then it tells those who are in to leave with
//! their next answer, and only then closes what is idle.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use axum::serve::Listener;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// How long clients that are in may take to ask once more and be told to leave.
pub(super) const LEAVE: Duration = Duration::from_secs(1);
/// Between two attempts to accept when the process has no room for another connection.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// Connections that are taken in at the end; no listener here has a longer queue.
const WAITING_MAX: usize = 4096;

/// A listener until the gateway ends.
pub(super) struct Door {
    listener: Option<TcpListener>,
    address: SocketAddr,
    /// Who waited when it closed.
    last: VecDeque<(TcpStream, SocketAddr)>,
    stopped: watch::Receiver<bool>,
}

impl Door {
    pub(super) fn new(listener: TcpListener, stopped: watch::Receiver<bool>) -> io::Result<Self> {
        let address = listener.local_addr()?;
        Ok(Self { listener: Some(listener), address, last: VecDeque::new(), stopped })
    }

    /// Takes in who waits, and closes. Asked of the system itself: the runtime may not have heard of everybody yet.
    fn close(&mut self) {
        let Some(listener) = self.listener.take().and_then(|l| l.into_std().ok()) else { return };
        while self.last.len() < WAITING_MAX
            && let Ok((stream, from)) = listener.accept()
        {
            let stream = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream));
            self.last.extend(stream.ok().map(|stream| (stream, from)));
        }
    }
}

impl Listener for Door {
    type Io = TcpStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (TcpStream, SocketAddr) {
        loop {
            if let Some(waiting) = self.last.pop_front() {
                return waiting;
            }
            let Some(listener) = &self.listener else { return std::future::pending().await };
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok(accepted) => return accepted,
                    Err(error) => {
                        // Either the client has gone already, or there are no descriptors left for a moment.
                        tracing::debug!(%error, "a connection could not be accepted");
                        if !is_the_clients(&error) {
                            tokio::time::sleep(ACCEPT_PAUSE).await;
                        }
                    }
                },
                () = ends(&mut self.stopped) => self.close(),
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

fn is_the_clients(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionRefused | ConnectionAborted | ConnectionReset)
}

/// Returns once the gateway ends.
pub(super) async fn ends(stopped: &mut watch::Receiver<bool>) {
    // Whoever could say so is gone, too.
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

/// Tells the client to send nothing more over this connection, once the gateway ends.
pub(super) async fn leave(
    State(stopped): State<watch::Receiver<bool>>,
    mut response: Response,
) -> Response {
    if *stopped.borrow() {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn who_waits_is_let_in_and_who_comes_later_is_refused() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = watch::channel(false);
        let mut door = Door::new(listener, stopped).unwrap();
        let mut waiting = Vec::new();
        for _ in 0..20 {
            waiting.push(TcpStream::connect(address).await.unwrap());
        }
        stop.send_replace(true);
        // Some before it notices, the others as it closes.
        for client in &mut waiting {
            let (mut served, from) = door.accept().await;
            assert_eq!(from, client.local_addr().unwrap());
            served.write_all(b"x").await.unwrap();
            assert_eq!(client.read_u8().await.unwrap(), b'x');
        }
        let none = tokio::time::timeout(Duration::from_millis(50), door.accept()).await;
        assert!(none.is_err());
        let late = TcpStream::connect(address).await;
        assert_eq!(late.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }
}
