//! Which role may call what: one check in front of all services of a listener.
//!
//! A rule answers with the roles that may call a method; what it does not know nobody may call, so that a method
//! added later is closed until somebody opens it. On a plain listener nothing is checked: there is nobody to tell
//! apart. On a secured one a request without a name is refused, whatever led to that.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::{Either, Ready, ready};
use tonic::Status;
use tower::{Layer, Service};

use crate::listen::Caller;
use crate::name::{Peer, Role};

/// The roles that may call the method at a path such as `/mainstay.v1.Control/Watch`.
pub type Rule = fn(&str) -> &'static [Role];

/// Who is calling, on a secured listener; `None` in plain text.
#[must_use]
pub fn caller<T>(request: &tonic::Request<T>) -> Option<Arc<Peer>> {
    match request.extensions().get::<Caller>() {
        Some(Caller::Node(peer)) => Some(Arc::clone(peer)),
        Some(Caller::Plain) | None => None,
    }
}

/// Puts a rule in front of a server's services.
#[derive(Debug, Clone, Copy)]
pub struct Guard {
    secured: bool,
    rule: Rule,
}

impl Guard {
    /// A guard that checks if the listener is secured.
    #[must_use]
    pub fn new(secured: bool, rule: Rule) -> Self {
        Self { secured, rule }
    }

    fn check(self, path: &str, caller: Option<&Caller>) -> Result<(), Status> {
        if !self.secured {
            return Ok(());
        }
        let Some(Caller::Node(peer)) = caller else {
            return Err(Status::unauthenticated("nobody knows who is calling"));
        };
        let allowed = (self.rule)(path);
        if allowed.contains(&peer.role) {
            return Ok(());
        }
        let method = path.rsplit('/').next().unwrap_or_default();
        let names: Vec<&str> = allowed.iter().map(|role| role.name()).collect();
        let who = if names.is_empty() { "nobody".to_owned() } else { names.join(" or ") };
        tracing::debug!(%peer, path, "a call was refused");
        Err(Status::permission_denied(format!(
            "{method} is for {who}, and the caller {} is a {}; issue it a certificate with another --role",
            peer.node, peer.role
        )))
    }
}

impl<S> Layer<S> for Guard {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded { guard: *self, inner }
    }
}

/// Services behind a [`Guard`].
#[derive(Debug, Clone)]
pub struct Guarded<S> {
    guard: Guard,
    inner: S,
}

impl<S, Q, A> Service<http::Request<Q>> for Guarded<S>
where
    S: Service<http::Request<Q>, Response = http::Response<A>, Error = Infallible>,
    A: Default,
{
    type Response = http::Response<A>;
    type Error = Infallible;
    type Future = Either<S::Future, Ready<Result<Self::Response, Infallible>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Q>) -> Self::Future {
        match self.guard.check(request.uri().path(), request.extensions().get::<Caller>()) {
            Ok(()) => Either::Left(self.inner.call(request)),
            Err(status) => Either::Right(ready(Ok(status.into_http()))),
        }
    }
}
