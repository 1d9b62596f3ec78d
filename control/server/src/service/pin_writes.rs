//! Writes of pins over one call: what a gateway sends is put through the log as it comes, and answered as it is done.
//!
//! One task serves a whole stream, so that answers which come together, because their pins went into one batch, go
//! out together. A refusal is an answer like any other; only the caller, a broken connection and this member's end
//! end a stream.

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use mainstay_proto::client::LEADER_METADATA;
use mainstay_proto::v1;
use mainstay_proto::v1::pin_write::Change;
use mainstay_trace::Parent;
use tokio::sync::{mpsc, watch};
use tonic::{Status, Streaming};

use super::Service;
use super::pins::Form;

/// Writes of one stream that are under way or answered and not sent; the next waits in the connection.
pub(super) const ANSWERS_MAX: usize = 512;

/// Room for one answer.
type Place = mpsc::OwnedPermit<Result<v1::PinWritten, Status>>;

pub(super) async fn serve(
    service: Service,
    mut writes: Streaming<v1::PinWrite>,
    answers: mpsc::Sender<Result<v1::PinWritten, Status>>,
    mut closes: watch::Receiver<bool>,
) {
    let mut under_way = FuturesUnordered::new();
    let (mut open, mut place) = (true, None);
    while open || !under_way.is_empty() {
        tokio::select! {
            // Never waits: a caller that reads no answers must not hold up what the log does for it, and with that
            // its share of what may be under way in this member.
            Some((place, answer)) = under_way.next() => send(place, answer),
            room = answers.clone().reserve_owned(), if open && place.is_none() => match room {
                Ok(room) => place = Some(room),
                Err(_) => return,
            },
            write = writes.message(), if place.is_some() => match write {
                Ok(Some(write)) => under_way.extend(place.take().map(|room| {
                    let service = &service;
                    async move { (room, written(service, write).await) }
                })),
                // What it sent is done and answered all the same.
                Ok(None) => (open, place) = (false, None),
                Err(_) => return,
            },
            () = closing(&mut closes) => {
                // The caller may have gone, or have answers enough to read.
                let _ = answers.try_send(Err(Status::unavailable("this member stops")));
                return;
            }
        }
    }
}

fn send(place: Place, answer: v1::PinWritten) {
    place.send(Ok(answer));
}

async fn closing(closes: &mut watch::Receiver<bool>) {
    // Whoever could say so is gone, too.
    let _ = closes.wait_for(|closing| *closing).await;
}

async fn written(service: &Service, write: v1::PinWrite) -> v1::PinWritten {
    let parent = Parent::from_text(&write.traceparent);
    let done = match write.change {
        Some(Change::Put(request)) => service.put_pin(request, Form::Short, &parent).await,
        Some(Change::Extend(request)) => service.prolong_pin(request, Form::Short, &parent).await,
        Some(Change::Release(request)) => {
            service.give_pin_back(request, Form::Short, &parent).await
        }
        None => Err(Status::invalid_argument("a write of a pin is put, extend or release")),
    };
    let call = write.call;
    match done {
        Ok(reply) => v1::PinWritten { call, reply: Some(reply), ..v1::PinWritten::default() },
        Err(status) => {
            let leader = status.metadata().get(LEADER_METADATA).and_then(|l| l.to_str().ok());
            v1::PinWritten {
                call,
                reply: None,
                code: status.code() as i32,
                message: status.message().to_owned(),
                leader: leader.unwrap_or_default().to_owned(),
            }
        }
    }
}
