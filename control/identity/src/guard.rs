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

use crate::Identity;
use crate::listen::Caller;
use crate::name::{Peer, Role};

/// The roles that may call the method at a path such as `/mainstay.v1.Control/Watch`.
pub type Rule = fn(&str) -> &'static [Role];

/// Who is calling, on a secured listener; `None` in plain text.
#[must_use]
pub fn caller<T>(request: &tonic::Request<T>) -> Option<Arc<Peer>> {
    match request.extensions().get::<Caller>() {
        Some(Caller::Node(peer)) => Some(Arc::clone(peer)),
        Some(Caller::Plain | Caller::Guest) | None => None,
    }
}

/// Who calls by the admin token, in messages and in place of a certificate's name.
const ADMIN_BY_TOKEN: &str = "admin-token";

/// Puts a rule in front of a server's services.
#[derive(Debug, Clone)]
pub struct Guard {
    secured: bool,
    rule: Rule,
    guests: Option<Guests>,
}

/// Callers without a certificate.
#[derive(Debug, Clone)]
struct Guests {
    /// Knows the admin token.
    identity: Identity,
    /// Whether the method at a path is for everybody.
    open: fn(&str) -> bool,
}

impl Guests {
    /// Who a guest is by what it shows: the admin by the admin token, nobody for what is open to everybody.
    fn judge<Q>(&self, request: &http::Request<Q>) -> Result<Option<Peer>, Status> {
        if (self.open)(request.uri().path()) {
            return Ok(None);
        }
        let shown = request.headers().get(http::header::AUTHORIZATION);
        let Some(shown) = shown else {
            return Err(Status::unauthenticated(
                "the caller shows neither a certificate nor an admin token; pass --identity DIR or \
                 --admin-token-file FILE",
            ));
        };
        let secret = shown.to_str().ok().and_then(|text| text.strip_prefix("Bearer "));
        if secret.is_some_and(|secret| self.identity.is_admin(secret.trim())) {
            let (cluster, role) = (self.identity.peer().cluster.clone(), Role::Admin);
            return Ok(Some(Peer { cluster, role, node: ADMIN_BY_TOKEN.to_owned() }));
        }
        Err(Status::unauthenticated(
            "the admin token is wrong; the right one is in the authority's folder, and members know it by \
             admin-token.hash in theirs",
        ))
    }
}

impl Guard {
    /// A guard that checks if the listener is secured.
    #[must_use]
    pub fn new(secured: bool, rule: Rule) -> Self {
        Self { secured, rule, guests: None }
    }

    /// Takes callers without a certificate, too: whoever shows the admin token that `identity` knows is an admin, and
    /// anybody may call what is `open`.
    #[must_use]
    pub fn with_guests(mut self, identity: Option<Identity>, open: fn(&str) -> bool) -> Self {
        self.guests = identity.map(|identity| Guests { identity, open });
        self
    }

    fn admit<Q>(&self, request: &mut http::Request<Q>) -> Result<(), Status> {
        let guest = matches!(request.extensions().get::<Caller>(), Some(Caller::Guest));
        if let Some(guests) = self.guests.as_ref().filter(|_| guest && self.secured) {
            let Some(peer) = guests.judge(request)? else { return Ok(()) };
            request.extensions_mut().insert(Caller::Node(Arc::new(peer)));
        }
        self.check(request.uri().path(), request.extensions().get::<Caller>())
    }

    fn check(&self, path: &str, caller: Option<&Caller>) -> Result<(), Status> {
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
        Guarded { guard: self.clone(), inner }
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

    fn call(&mut self, mut request: http::Request<Q>) -> Self::Future {
        match self.guard.admit(&mut request) {
            Ok(()) => Either::Left(self.inner.call(request)),
            Err(status) => Either::Right(ready(Ok(status.into_http()))),
        }
    }
}
