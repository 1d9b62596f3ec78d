//! The streams of this member: frames of workers come in, the index follows, and whoever watches gets them too.
//!
//! Frames do not pass through the log. They are applied under one lock together with the ring that watchers read,
//! so that an image of the index and a place in the ring always fit together. The log tells which epochs live and,
//! by cuts, what each stream must have been.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use mainstay_index::IndexReader;
use mainstay_proto::convert::{ConvertError, frame_view, snapshot_view};
use mainstay_proto::v1;
use mainstay_proto::v1::stream_item::Item;
use mainstay_state::{CutCheck, Limits, Machine, Position, Streams, Taken};
use mainstay_types::{CutSource, Epoch, EventSequence, WorkerId};
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::watch;

/// The most items the ring keeps.
const ITEMS_MAX: usize = 65_536;
/// The most bytes the ring keeps.
const BYTES_MAX: usize = 64 << 20;

/// A frame or a part of a snapshot, as it came.
#[derive(Debug, Clone)]
pub enum StreamItem {
    /// A frame.
    Frame(Arc<v1::EventFrame>),
    /// A part of a snapshot.
    Snapshot(Arc<v1::StreamSnapshot>),
}

impl StreamItem {
    /// Its wire form.
    #[must_use]
    pub fn to_wire(&self) -> v1::StreamItem {
        let item = match self {
            Self::Frame(frame) => Item::Frame(v1::EventFrame::clone(frame)),
            Self::Snapshot(part) => Item::Snapshot(v1::StreamSnapshot::clone(part)),
        };
        v1::StreamItem { item: Some(item) }
    }

    /// Its encoded size.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self {
            Self::Frame(frame) => frame.encoded_len(),
            Self::Snapshot(part) => part.encoded_len(),
        }
    }

    /// What it takes in memory, once it is [`owned`].
    fn held_bytes(&self) -> usize {
        let events = match self {
            Self::Frame(frame) => frame.events.capacity(),
            Self::Snapshot(part) => part.events.capacity(),
        };
        self.bytes() + size_of::<v1::EventFrame>() + events * size_of::<v1::BlockEvent>()
    }
}

/// The message in memory of its own. What a call brings are slices of that call's buffers, each of which is held as long
/// as any of its slices is: a ring of frames of a hundred bytes would keep eight kilobytes for each.
fn owned<M: Message + Default>(message: M) -> M {
    let own = bytes::Bytes::from(message.encode_to_vec());
    // What was just encoded is read again.
    M::decode(own).unwrap_or(message)
}

/// What [`StreamHub::read`] answers.
#[derive(Debug)]
pub enum ItemsRead {
    /// The items from the asked number on, as many as were asked for, and the number after them.
    Items(Vec<StreamItem>, u64),
    /// Nothing at or after that number yet.
    UpToDate,
    /// That number has left the ring.
    Lagged,
}

/// The whole index for a watcher, and where it goes on.
#[derive(Debug)]
pub struct IndexImage {
    /// The index, for `IndexLoader`.
    pub parts: Vec<Vec<u8>>,
    /// Where each stream stands.
    pub positions: Vec<Position>,
    /// The first item that is not in it.
    pub next_item: u64,
}

/// The streams of a member.
pub struct StreamHub {
    inner: Mutex<Inner>,
    reader: IndexReader,
    news: watch::Sender<u64>,
}

struct Inner {
    streams: Streams,
    ring: Ring,
}

#[derive(Default)]
struct Ring {
    items: VecDeque<(StreamItem, usize)>,
    bytes: usize,
    /// The number of the item that comes next.
    next: u64,
}

impl Ring {
    fn push(&mut self, item: StreamItem) {
        let bytes = item.held_bytes();
        self.bytes += bytes;
        self.items.push_back((item, bytes));
        self.next += 1;
        while self.items.len() > ITEMS_MAX || self.bytes > BYTES_MAX {
            let Some((_, bytes)) = self.items.pop_front() else { break };
            self.bytes -= bytes;
        }
    }

    fn first(&self) -> u64 {
        self.next - self.items.len() as u64
    }
}

impl StreamHub {
    pub(crate) fn new(limits: &Limits) -> Self {
        let streams = Streams::new(limits);
        let reader = streams.reader();
        let inner = Inner { streams, ring: Ring::default() };
        Self { inner: Mutex::new(inner), reader, news: watch::Sender::new(0) }
    }

    /// Workers came or went.
    pub(crate) fn follow(&self, machine: &Machine) {
        self.inner.lock().streams.follow(machine);
    }

    /// A cut was applied: what it says of each stream is compared with what this member had there.
    pub(crate) fn check_cut(&self, sources: &[CutSource]) {
        let mut inner = self.inner.lock();
        let mut behind = 0_u32;
        for source in sources {
            match inner.streams.check_cut(source) {
                CutCheck::Differs => {
                    tracing::warn!(
                        worker = %source.worker,
                        sequence = source.mark.sequence.0,
                        "the index differs from the cut here; its worker is asked for all of it"
                    );
                }
                CutCheck::Behind => behind += 1,
                CutCheck::Equal | CutCheck::Passed | CutCheck::Elsewhere => {}
            }
        }
        metrics::gauge!("mainstay_control_index_streams_behind").set(f64::from(behind));
        inner.report_drift();
    }

    /// Takes frames in, in order, as far as they go; answers what became of the last that was looked at.
    ///
    /// # Errors
    /// If one means nothing; those before it are in.
    pub fn take_frames(&self, frames: Vec<v1::EventFrame>) -> Result<Option<Taken>, ConvertError> {
        // Before the lock, which readers share.
        let frames: Vec<v1::EventFrame> = frames.into_iter().map(owned).collect();
        let mut taken = None;
        let mut inner = self.inner.lock();
        let before = inner.ring.next;
        let mut malformed = None;
        for frame in frames {
            match inner.take_frame(frame) {
                Ok(outcome) => {
                    taken = Some(outcome);
                    if !matches!(outcome, Taken::Applied { .. } | Taken::Known { .. }) {
                        break;
                    }
                }
                Err(error) => {
                    malformed = Some(error);
                    break;
                }
            }
        }
        let next = inner.ring.next;
        inner.report_drift();
        drop(inner);
        if next != before {
            self.news.send_replace(next);
        }
        malformed.map_or(Ok(taken), Err)
    }

    /// Takes a part of a snapshot in.
    ///
    /// # Errors
    /// If it means nothing.
    pub fn take_snapshot(&self, part: v1::StreamSnapshot) -> Result<Taken, ConvertError> {
        let part = owned(part);
        let mut inner = self.inner.lock();
        let taken = {
            let (worker, epoch, mark, events) = snapshot_view(&part)?;
            let place = (part.part, part.last);
            inner.streams.take_snapshot(worker, epoch, mark, place, &events)
        };
        inner.report_drift();
        if matches!(taken, Taken::Applied { .. }) {
            metrics::counter!("mainstay_control_index_snapshot_parts_total").increment(1);
            inner.ring.push(StreamItem::Snapshot(Arc::new(part)));
            let next = inner.ring.next;
            drop(inner);
            self.news.send_replace(next);
        }
        Ok(taken)
    }

    /// Where a living stream stands.
    #[must_use]
    pub fn position(&self, worker: WorkerId, epoch: Epoch) -> Option<EventSequence> {
        self.inner.lock().streams.position(worker, epoch)
    }

    /// Looks at the streams. The closure holds a lock: it must not wait for anything.
    pub fn look<T>(&self, look: impl FnOnce(&Streams) -> T) -> T {
        look(&self.inner.lock().streams)
    }

    /// A reader of the index.
    #[must_use]
    pub fn reader(&self) -> &IndexReader {
        &self.reader
    }

    /// At most `max` items from number `from` on.
    #[must_use]
    pub fn read(&self, from: u64, max: usize) -> ItemsRead {
        let inner = self.inner.lock();
        let ring = &inner.ring;
        if from >= ring.next {
            return ItemsRead::UpToDate;
        }
        let Some(skip) = from.checked_sub(ring.first()) else { return ItemsRead::Lagged };
        let skip = usize::try_from(skip).unwrap_or(usize::MAX);
        let items: Vec<_> =
            ring.items.iter().skip(skip).take(max).map(|(i, _)| i.clone()).collect();
        let next = from + items.len() as u64;
        ItemsRead::Items(items, next)
    }

    /// Wakes whenever there are new items.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    /// The whole index in parts of about `bytes`.
    #[must_use]
    pub fn image(&self, bytes: usize) -> IndexImage {
        let inner = self.inner.lock();
        IndexImage {
            parts: inner.streams.encode_parts(bytes),
            positions: inner.streams.positions(),
            next_item: inner.ring.next,
        }
    }

    /// Where a watcher that has frames up to `positions` may go on in the ring; `None` if it lacks some that the
    /// ring has lost.
    #[must_use]
    pub fn resume(&self, positions: &[Position]) -> Option<u64> {
        let inner = self.inner.lock();
        let had: BTreeMap<(WorkerId, Epoch), EventSequence> =
            positions.iter().map(|p| ((p.worker, p.epoch), p.next)).collect();
        let mut oldest = BTreeMap::new();
        for (item, _) in &inner.ring.items {
            if let StreamItem::Frame(frame) = item {
                let stream = (WorkerId(frame.worker), Epoch(frame.epoch));
                oldest.entry(stream).or_insert(EventSequence(frame.sequence));
            }
        }
        let fits = inner.streams.positions().into_iter().all(|now| {
            let stream = (now.worker, now.epoch);
            let next = had.get(&stream).copied().unwrap_or(EventSequence(1));
            let in_ring = oldest.get(&stream).is_some_and(|first| *first <= next);
            next.0 > 0 && (next == now.next || in_ring)
        });
        fits.then(|| inner.ring.first())
    }
}

impl Inner {
    fn take_frame(&mut self, frame: v1::EventFrame) -> Result<Taken, ConvertError> {
        let taken = {
            let (worker, epoch, mark, events) = frame_view(&frame)?;
            self.streams.take_frame(worker, epoch, mark, &events)
        };
        if matches!(taken, Taken::Applied { .. }) {
            metrics::counter!("mainstay_control_frames_applied_total").increment(1);
            self.ring.push(StreamItem::Frame(Arc::new(frame)));
        }
        Ok(taken)
    }

    #[expect(clippy::cast_precision_loss, reason = "gauges are floats")]
    fn report_drift(&self) {
        metrics::gauge!("mainstay_control_index_drift").set(self.streams.drift() as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame() -> v1::EventFrame {
        let removed = v1::Removed { blocks: vec![7; 64].into(), ..Default::default() };
        let event = v1::BlockEvent { event: Some(v1::block_event::Event::Removed(removed)) };
        v1::EventFrame {
            worker: 1,
            epoch: 1,
            sequence: 1,
            events: vec![event],
            ..Default::default()
        }
    }

    #[test]
    fn what_is_kept_keeps_no_buffer_of_the_call_that_brought_it() {
        let mut buffer = bytes::BytesMut::with_capacity(8 << 10);
        frame().encode(&mut buffer).expect("there is room");
        let came = buffer.freeze();
        let read = v1::EventFrame::decode(came.clone()).expect("a frame");
        assert!(!came.is_unique(), "reading copies: nothing is to be done about it any more");
        let kept = owned(read);
        assert!(came.is_unique());
        assert_eq!(kept, frame());
    }

    #[test]
    fn the_ring_is_bounded_by_what_it_holds() {
        let mut ring = Ring::default();
        let large = v1::EventFrame { events: vec![v1::BlockEvent::default(); 100_000], ..frame() };
        let of_one = StreamItem::Frame(Arc::new(large.clone())).held_bytes();
        for _ in 0..3 * BYTES_MAX / of_one {
            ring.push(StreamItem::Frame(Arc::new(large.clone())));
        }
        assert!(ring.bytes <= BYTES_MAX, "{}", ring.bytes);
        assert_eq!(ring.items.len(), BYTES_MAX / of_one);
        assert_eq!(ring.first() + ring.items.len() as u64, ring.next);
    }
}
