//! Calls whose request is one message, sent as whole: its last frame says that it is the last.
//!
//! The library asks a request's stream whether there is more only after the message is on its way, and then sends an
//! empty frame to say no: a packet, a system call and a wake at either end. Here it is asked at once. A stream that does
//! not know yet is sent as it comes.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;
use tonic::transport::Channel;
use tower::Service;

/// A channel for calls with one message to the other side.
#[derive(Debug, Clone)]
pub struct Whole(Channel);

impl Whole {
    /// Sends over `channel`.
    #[must_use]
    pub const fn new(channel: Channel) -> Self {
        Self(channel)
    }
}

impl Service<Request<Body>> for Whole {
    type Response = Response<Body>;
    type Error = <Channel as Service<Request<Body>>>::Error;
    type Future = <Channel as Service<Request<Body>>>::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        self.0.call(request.map(|body| Body::new(Ahead::new(body))))
    }
}

type Step = Option<Result<Frame<Bytes>, Status>>;

/// A body that is asked for what follows a frame before that is given out.
struct Ahead<B> {
    inner: B,
    /// What followed the last frame.
    next: Option<Step>,
}

impl<B> Ahead<B> {
    const fn new(inner: B) -> Self {
        Self { inner, next: None }
    }
}

impl<B> http_body::Body for Ahead<B>
where
    B: http_body::Body<Data = Bytes, Error = Status> + Unpin,
{
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Step> {
        let this = &mut *self;
        let step = match this.next.take() {
            Some(step) => step,
            None => ready!(Pin::new(&mut this.inner).poll_frame(cx)),
        };
        if matches!(&step, Some(Ok(frame)) if frame.is_data())
            && let Poll::Ready(next) = Pin::new(&mut this.inner).poll_frame(cx)
        {
            this.next = Some(next);
        }
        if step.is_none() {
            // The end stays the end.
            this.next = Some(None);
        }
        Poll::Ready(step)
    }

    fn is_end_stream(&self) -> bool {
        match &self.next {
            Some(next) => next.is_none(),
            None => self.inner.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        // What was taken ahead is missing in what the stream would say.
        if self.next.is_some() { SizeHint::default() } else { self.inner.size_hint() }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::task::Waker;

    use http_body::Body as _;

    use super::*;

    /// Says what it is told to, and that it ends only once it was asked.
    struct Steps(VecDeque<Poll<Step>>);

    impl http_body::Body for Steps {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Step> {
            self.0.pop_front().expect("asked after the end")
        }
    }

    fn data(text: &'static str) -> Poll<Step> {
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(text.as_bytes())))))
    }

    /// The frames' texts with whether the stream is known to end behind them; an error ends it.
    fn read(steps: impl IntoIterator<Item = Poll<Step>>) -> Vec<(String, bool)> {
        let mut body = Ahead::new(Steps(steps.into_iter().collect()));
        let mut all = Vec::new();
        loop {
            let text = match Pin::new(&mut body).poll_frame(&mut Context::from_waker(Waker::noop()))
            {
                Poll::Pending => "-".to_owned(),
                Poll::Ready(None) => return all,
                Poll::Ready(Some(Err(status))) => status.message().to_owned(),
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => String::from_utf8(data.to_vec()).unwrap(),
                    Err(_) => "trailers".to_owned(),
                },
            };
            let ends = body.is_end_stream();
            all.push((text, ends));
            if ends {
                return all;
            }
        }
    }

    fn told(all: &[(&str, bool)]) -> Vec<(String, bool)> {
        all.iter().map(|(text, ends)| ((*text).to_owned(), *ends)).collect()
    }

    #[test]
    fn the_last_message_is_known_to_be_the_last() {
        let end = || Poll::Ready(None);
        assert_eq!(read([data("one"), end()]), told(&[("one", true)]));
        let two = [data("one"), data("two"), end()];
        assert_eq!(read(two), told(&[("one", false), ("two", true)]));
    }

    #[test]
    fn what_is_not_known_yet_is_not_waited_for() {
        let late = [data("one"), Poll::Pending, Poll::Pending, data("two"), Poll::Ready(None)];
        assert_eq!(read(late), told(&[("one", false), ("-", false), ("two", true)]));
        let open = [data("one"), Poll::Pending, Poll::Ready(None)];
        assert_eq!(read(open), told(&[("one", false)]));
    }

    #[test]
    fn errors_and_trailers_stay_in_their_place() {
        let broken =
            [data("one"), Poll::Ready(Some(Err(Status::internal("broken")))), Poll::Ready(None)];
        assert_eq!(read(broken), told(&[("one", false), ("broken", false)]));
        let trailers = Poll::Ready(Some(Ok(Frame::trailers(http::HeaderMap::new()))));
        let all = [data("one"), trailers, Poll::Ready(None)];
        assert_eq!(read(all), told(&[("one", false), ("trailers", false)]));
    }

    #[test]
    fn what_the_library_makes_of_one_message_ends_with_it() {
        let message = futures_of_one(crate::v1::DescribeRequest { with_files: true });
        let codec = tonic_prost::ProstEncoder::new(tonic::codec::BufferSettings::default());
        let body = tonic::codec::EncodeBody::new_client(codec, message, None, None);
        let mut body = Ahead::new(Body::new(body));
        assert!(!body.is_end_stream());
        let frame = Pin::new(&mut body).poll_frame(&mut Context::from_waker(Waker::noop()));
        assert!(matches!(frame, Poll::Ready(Some(Ok(frame))) if frame.is_data()));
        assert!(body.is_end_stream());
    }

    fn futures_of_one<T>(
        message: T,
    ) -> impl tokio_stream::Stream<Item = Result<T, Status>> + Unpin {
        tokio_stream::once(Ok(message))
    }
}
