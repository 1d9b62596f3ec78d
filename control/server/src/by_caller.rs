//! One service with two limits: who has shown nothing yet may send little.
//!
//! A message is decoded whole before anything looks at it, and an image of the state may be large; so whoever may
//! only show a join token gets a limit that a request to join fits in.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use mainstay_identity::Caller;
use mainstay_proto::client::MESSAGE_BYTES_MAX;
use mainstay_proto::v1::control_server::{Control, ControlServer};
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::codegen::{BoxFuture, Service};
use tonic::server::NamedService;

/// The largest message of a caller without a name.
const GUEST_BYTES_MAX: usize = 64 << 10;

/// The control service, with a limit by caller.
#[derive(Debug)]
pub(crate) struct ByCaller<S> {
    nodes: ControlServer<S>,
    guests: ControlServer<S>,
}

impl<S> Clone for ByCaller<S> {
    fn clone(&self) -> Self {
        Self { nodes: self.nodes.clone(), guests: self.guests.clone() }
    }
}

impl<S: Control> ByCaller<S> {
    pub(crate) fn new(service: S) -> Self {
        let service = Arc::new(service);
        let limited = |bytes| {
            ControlServer::from_arc(Arc::clone(&service))
                .max_decoding_message_size(bytes)
                .max_encoding_message_size(MESSAGE_BYTES_MAX)
        };
        Self { nodes: limited(MESSAGE_BYTES_MAX), guests: limited(GUEST_BYTES_MAX) }
    }
}

impl<S: Control> NamedService for ByCaller<S> {
    const NAME: &'static str = ControlServer::<S>::NAME;
}

impl<S: Control> Service<Request<Body>> for ByCaller<S> {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let guest = matches!(request.extensions().get::<Caller>(), Some(Caller::Guest));
        if guest { self.guests.call(request) } else { self.nodes.call(request) }
    }
}
