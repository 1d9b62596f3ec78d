//! Bodies that were read before, found by how they begin.
//!
//! A harness sends its whole history with every turn. What its items were read into is shared by all turns, and only
//! what is new in a body is read. A body that goes on where a known one ended takes its place; one that leaves it
//! earlier is remembered beside it. The ones that were used last stay, as many as there is room for. What is found is
//! a hint: a request is the same as it is without, and so is every complaint.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::{fmt, mem};

use super::prefix::{names, names_within, seed, shared_bytes};
use super::split::{Places, Shape, Split};
use super::turns::{Mark, Notes, Offered, Turns};
use super::{Media, ParseOptions};
use crate::error::ApiError;
use crate::ir::{Block, weight};
use crate::request::{Endpoint, Request};

/// A body may take this share of all room, so that none pushes out all others.
const SHARE: usize = 8;
/// A tenant may take this share of all room, or more as long as nobody else needs it.
const TENANT_SHARE: usize = 4;
/// Items that a body may have had at its end which the next one has no more: clients move breakpoints, and cut off
/// what was for one turn only. One that leaves more of them behind is another conversation.
const LOST_ITEMS_MAX: usize = 4;
/// A text that is kept for the next body may take this share of all room; larger ones are freed.
const SPARE_SHARE: usize = 32;
/// A text that goes on gets so large a share of itself as room for what comes next.
const ROOM_SHARE: usize = 8;
/// What a body takes beside its text and turns: its places in maps.
const BODY_BYTES: usize = 512;
/// What a name takes in a map.
const NAME_BYTES: usize = 40;

/// Whose body it is and how it was read: what is the same for all who may share what was made of it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Reading {
    tenant: Arc<str>,
    endpoint: Endpoint,
    media: Media,
    strip_billing_header: bool,
    /// A checksum under the key that opens what was sealed.
    sealer: Option<[u8; 16]>,
}

impl Reading {
    fn of(tenant: &Arc<str>, endpoint: Endpoint, options: &ParseOptions) -> Reading {
        let sealer = options.sealer.as_ref();
        Reading {
            tenant: Arc::clone(tenant),
            // The same body: one wants an answer, the other its length.
            endpoint: match endpoint {
                Endpoint::CountTokens => Endpoint::Messages,
                other => other,
            },
            media: options.media,
            strip_billing_header: options.strip_billing_header,
            sealer: sealer.map(|sealer| sealer.mark(b"whose key it is")),
        }
    }

    fn seed(&self) -> u64 {
        seed(self.tenant.as_bytes()) ^ self.endpoint as u64
    }
}

/// A body and what was made of it.
#[derive(Debug)]
pub(super) struct KnownBody {
    reading: Reading,
    text: String,
    places: Places,
    turns: Turns,
    prompt: Option<Arc<Vec<Block>>>,
    offered: Option<Arc<Offered>>,
    /// By which it is found: those of its starts within the history.
    names: Vec<u64>,
}

impl KnownBody {
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    pub(super) fn places(&self) -> &Places {
        &self.places
    }

    pub(super) fn turns(&self) -> &Turns {
        &self.turns
    }

    pub(super) fn marks(&self) -> &[Mark] {
        &self.turns.marks
    }

    /// What `system` was read into.
    pub(super) fn prompt(&self) -> Option<&[Block]> {
        self.prompt.as_deref().map(Vec::as_slice)
    }

    /// What `tools` were read into.
    pub(super) fn offered(&self) -> Option<&Arc<Offered>> {
        self.offered.as_ref()
    }

    fn bytes(&self) -> usize {
        let prompt = self.prompt().map_or(0, weight);
        let offered = self.offered.as_ref().map_or(0, |offered| offered.bytes);
        let names = NAME_BYTES * self.names.capacity();
        BODY_BYTES + self.text.capacity() + prompt + offered + self.turns.bytes() + names
    }

    /// With what it takes, which is reckoned here, where nobody waits for it.
    fn weighed(self) -> Weighed {
        Weighed { bytes: self.bytes(), body: Arc::new(self) }
    }
}

/// A body and what it takes.
struct Weighed {
    body: Arc<KnownBody>,
    bytes: usize,
}

#[derive(Debug)]
struct Kept {
    body: Arc<KnownBody>,
    bytes: usize,
    /// When it was used, among all uses.
    used: u64,
}

/// What a tenant has of the room.
#[derive(Debug, Default)]
struct Part {
    /// Ids, the one that was not used for longest first.
    by_use: BTreeMap<u64, u64>,
    bytes: usize,
}

#[derive(Debug, Default)]
struct Bodies {
    kept: HashMap<u64, Kept>,
    /// The ids of bodies by the names of their starts; of two that share a start, the one that came later.
    by_name: HashMap<u64, u64>,
    /// Ids, the one that was not used for longest first.
    by_use: BTreeMap<u64, u64>,
    /// Only of tenants that have bodies here.
    parts: HashMap<Arc<str>, Part>,
    /// Who has how much, the least first.
    by_bytes: BTreeSet<(usize, Arc<str>)>,
    bytes: usize,
    /// Counts ids and uses.
    count: u64,
    /// The text of one that left, for the next that comes: a fresh one of this length comes in pages that the system
    /// has to clear.
    spare: String,
}

impl Bodies {
    fn number(&mut self) -> u64 {
        self.count += 1;
        self.count
    }

    /// The body that shares the longest start, as far as names tell.
    fn find(&mut self, names: &[u64], reading: &Reading) -> Option<(u64, Arc<KnownBody>)> {
        let now = self.number();
        for name in names.iter().rev() {
            let Some(id) = self.by_name.get(name).copied() else { continue };
            let Some(kept) = self.kept.get_mut(&id) else { continue };
            if kept.body.reading == *reading {
                let part = self.parts.get_mut(&reading.tenant).map(|part| &mut part.by_use);
                for by_use in part.into_iter().chain([&mut self.by_use]) {
                    by_use.remove(&kept.used);
                    by_use.insert(now, id);
                }
                kept.used = now;
                return Some((id, Arc::clone(&kept.body)));
            }
        }
        None
    }

    /// Takes a body out; the names by which it is found stay until they are [unnamed](Bodies::unname).
    fn take(&mut self, id: u64) -> Option<Arc<KnownBody>> {
        let Kept { body, bytes, used } = self.kept.remove(&id)?;
        self.bytes -= bytes;
        self.by_use.remove(&used);
        self.change_part(&body.reading.tenant, |part| {
            part.bytes -= bytes;
            part.by_use.remove(&used);
        });
        Some(body)
    }

    fn change_part(&mut self, tenant: &Arc<str>, change: impl FnOnce(&mut Part)) {
        let part = self.parts.entry(Arc::clone(tenant)).or_default();
        self.by_bytes.remove(&(part.bytes, Arc::clone(tenant)));
        change(part);
        if part.by_use.is_empty() {
            self.parts.remove(tenant);
        } else {
            self.by_bytes.insert((part.bytes, Arc::clone(tenant)));
        }
    }

    /// Which body leaves when so many more bytes of a tenant come: its own oldest if it is over its share with them, that
    /// of whoever has most if that is more than a share, or the oldest of all.
    fn next_to_leave(&self, tenant: &Arc<str>, bytes: usize, bytes_max: usize) -> Option<u64> {
        let share = bytes_max / TENANT_SHARE;
        let own = self.parts.get(tenant).filter(|part| part.bytes + bytes > share);
        let largest = || {
            let (bytes, tenant) = self.by_bytes.last()?;
            self.parts.get(tenant).filter(|_| *bytes > share)
        };
        let by_use = own.or_else(largest).map_or(&self.by_use, |part| &part.by_use);
        by_use.first_key_value().map(|(_, id)| *id)
    }

    /// Takes a body out if it is still the one of that id.
    fn take_this(&mut self, id: u64, body: &Arc<KnownBody>) -> bool {
        let same = self.kept.get(&id).is_some_and(|kept| Arc::ptr_eq(&kept.body, body));
        same && self.take(id).is_some()
    }

    /// Room for a text of that length, without much that is left over.
    fn room_for(&mut self, length: usize) -> String {
        let fits = (length..=2 * length).contains(&self.spare.capacity());
        let mut room = if fits { mem::take(&mut self.spare) } else { String::new() };
        room.clear();
        room
    }

    fn unname(&mut self, id: u64, names: &[u64]) {
        for name in names {
            if self.by_name.get(name) == Some(&id) {
                self.by_name.remove(name);
            }
        }
    }

    /// Puts a body in, perhaps in the place of one that was taken out, and gives back what had to leave: who drops that
    /// need not keep others waiting.
    fn put(
        &mut self,
        Weighed { body, bytes }: Weighed,
        before: Option<(u64, Vec<u64>)>,
        bytes_max: usize,
    ) -> Vec<Arc<KnownBody>> {
        let now = self.number();
        let (id, names) = before.unwrap_or((now, Vec::new()));
        let same = names.iter().zip(&body.names).take_while(|(old, new)| old == new).count();
        self.unname(id, names.get(same..).unwrap_or_default());
        if bytes > bytes_max / SHARE {
            self.unname(id, &names);
            return vec![body];
        }
        let mut left = Vec::new();
        while self.bytes + bytes > bytes_max {
            let tenant = &body.reading.tenant;
            let Some(oldest) = self.next_to_leave(tenant, bytes, bytes_max) else { break };
            if let Some(body) = self.take(oldest) {
                self.unname(oldest, &body.names);
                left.push(body);
            }
        }
        self.by_name.extend(body.names.iter().skip(same).map(|name| (*name, id)));
        self.by_use.insert(now, id);
        self.change_part(&body.reading.tenant, |part| {
            part.bytes += bytes;
            part.by_use.insert(now, id);
        });
        self.bytes += bytes;
        self.kept.insert(id, Kept { body, bytes, used: now });
        left
    }
}

/// The bodies of all tenants.
pub struct KnownBodies {
    bodies: Mutex<Bodies>,
    body_bytes_min: usize,
    bytes_max: usize,
    key: u64,
}

impl KnownBodies {
    /// Room for `bytes_max` of bodies and what was made of them. Bodies shorter than `body_bytes_min` are read each time.
    /// `key` is a random number that clients do not know, so that none can make its bodies be found for another's.
    pub fn new(body_bytes_min: usize, bytes_max: usize, key: u64) -> KnownBodies {
        KnownBodies { bodies: Mutex::default(), body_bytes_min, bytes_max, key }
    }

    /// How much of the room is taken.
    pub fn bytes(&self) -> usize {
        self.with(|bodies| bodies.bytes + bodies.spare.capacity())
    }

    /// The room beside the spare text.
    fn bodies_bytes_max(&self) -> usize {
        self.bytes_max - self.bytes_max / SPARE_SHARE
    }

    fn with<T>(&self, work: impl FnOnce(&mut Bodies) -> T) -> T {
        work(&mut self.bodies.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl fmt::Debug for KnownBodies {
    /// Says nothing of what clients wrote.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KnownBodies({} bytes)", self.bytes())
    }
}

/// A tenant's part of what is known.
#[derive(Clone, Debug)]
pub struct BodyMemory {
    /// What is known.
    pub known: Arc<KnownBodies>,
    /// Whose bodies are found.
    pub tenant: Arc<str>,
}

/// How a protocol makes a request of a body.
pub(super) type Build =
    fn(&mut Split<'_>, Endpoint, ParseOptions, &mut Notes) -> Result<Request, ApiError>;

/// Reads a body, only what is new of it where it begins like one that is known.
pub(super) fn read(
    bytes: &[u8],
    endpoint: Endpoint,
    options: ParseOptions,
    build: Build,
) -> Result<Request, ApiError> {
    let shape = Shape::of(endpoint);
    if let Some(memory) = options.bodies.clone()
        && memory.is_for(bytes)
        && let Some(request) = New::read(&memory, bytes, endpoint, &options, build)
    {
        return Ok(request);
    }
    let mut split = Split::whole(bytes, shape)?;
    build(&mut split, endpoint, options, &mut Notes::default())
}

/// How many bytes a body shares from its start with one that was read before: they cost little to read again.
pub fn known_bytes(endpoint: Endpoint, bytes: &[u8], options: &ParseOptions) -> usize {
    let memory = options.bodies.as_ref().filter(|memory| memory.is_for(bytes));
    memory.map_or(0, |memory| New::find(memory, bytes, endpoint, options).shared)
}

impl BodyMemory {
    fn is_for(&self, bytes: &[u8]) -> bool {
        (self.known.body_bytes_min..=self.known.bytes_max / SHARE).contains(&bytes.len())
    }
}

/// A body that came, and the known one that it begins like.
struct New<'b> {
    bytes: &'b [u8],
    names: Vec<u64>,
    reading: Reading,
    found: Option<(u64, Arc<KnownBody>)>,
    shared: usize,
}

/// What a body was read into.
struct Made {
    request: Request,
    notes: Notes,
    places: Places,
    /// Items that are the known body's.
    shared: usize,
}

impl<'b> New<'b> {
    fn find(
        memory: &BodyMemory,
        bytes: &'b [u8],
        endpoint: Endpoint,
        options: &ParseOptions,
    ) -> New<'b> {
        let reading = Reading::of(&memory.tenant, endpoint, options);
        let names = names(bytes, reading.seed(), memory.known.key);
        let found = memory.known.with(|bodies| bodies.find(&names, &reading));
        let shared =
            found.as_ref().map_or(0, |(_, known)| shared_bytes(bytes, known.text.as_bytes()));
        New { bytes, names, reading, found, shared }
    }

    /// Reads a body and remembers it; `None` if there is anything wrong or special with it.
    fn read(
        memory: &BodyMemory,
        bytes: &'b [u8],
        endpoint: Endpoint,
        options: &ParseOptions,
        build: Build,
    ) -> Option<Request> {
        let mut new = New::find(memory, bytes, endpoint, options);
        let made = match new.made(endpoint, options, build)? {
            Ok(made) => made,
            Err(Unfit) => {
                (new.found, new.shared) = (None, 0);
                new.made(endpoint, options, build)?.ok()?
            }
        };
        let Made { request, notes, places, shared } = made;
        new.keep(&memory.known, notes, places, shared);
        Some(request)
    }

    fn made(
        &self,
        endpoint: Endpoint,
        options: &ParseOptions,
        build: Build,
    ) -> Option<Result<Made, Unfit>> {
        let known = self.found.as_ref().map(|(_, known)| &**known);
        let mut split = Split::beside(self.bytes, Shape::of(endpoint), known, self.shared)?;
        let mut notes = Notes::default();
        if split.system.is_some() {
            notes.prompt = known.and_then(|known| known.prompt.clone());
        }
        notes.offered = split.offered.cloned();
        let shared = split.items.as_ref().map_or(0, |items| items.shared);
        match build(&mut split, endpoint, options.clone(), &mut notes) {
            Ok(request) => Some(Ok(Made { request, notes, places: split.places, shared })),
            Err(_) if notes.unfit => Some(Err(Unfit)),
            Err(_) => None,
        }
    }

    fn keep(self, known: &KnownBodies, notes: Notes, places: Places, shared: usize) {
        let New { bytes, mut names, reading, found, shared: shared_bytes } = self;
        let Notes { mut turns, prompt, offered, .. } = notes;
        let Some(last) = turns.seal() else { return };
        names.truncate(names_within(last.end));
        if names.is_empty() {
            return; // It could not be found.
        }
        let (mut text, mut before) = (None, None);
        if let Some((id, body)) = found {
            let (new, old) = (turns.marks.len(), body.turns.marks.len());
            if shared == new && new <= old {
                return; // It has all of this one.
            }
            // Of a short one a few items are all there is.
            let most = 2 * shared >= old && shared + LOST_ITEMS_MAX >= old;
            let goes_on = shared == old || most && new > old;
            // Unless somebody else was quicker to put another in its place.
            if goes_on && known.with(|bodies| bodies.take_this(id, &body)) {
                before = Some((id, body.names.clone()));
                // Its text is used again, unless somebody else reads beside it.
                text = Arc::into_inner(body).map(|body| body.text);
            }
        }
        let mut text = match text.filter(|text: &String| text.capacity() <= 2 * bytes.len()) {
            Some(mut text) => {
                text.truncate(text.floor_char_boundary(shared_bytes));
                text
            }
            None => known.with(|bodies| bodies.room_for(bytes.len())),
        };
        let Ok(rest) = str::from_utf8(bytes.get(text.len()..).unwrap_or_default()) else {
            // All of it was read, so that it is text; if it were not, nothing may be found by its names.
            return known
                .with(|bodies| before.iter().for_each(|(id, names)| bodies.unname(*id, names)));
        };
        if text.capacity() < bytes.len() {
            // Room for a few turns, rather than for as much again.
            text.reserve_exact(rest.len() + text.len() / ROOM_SHARE);
        }
        text.push_str(rest);
        let body = KnownBody { reading, text, places, turns, prompt, offered, names };
        let body = body.weighed();
        let left = known.with(|bodies| bodies.put(body, before, known.bodies_bytes_max()));
        let texts = left.into_iter().filter_map(Arc::into_inner).map(|body| body.text);
        let fits = |text: &String| text.capacity() <= known.bytes_max / SPARE_SHARE;
        if let Some(text) = texts.filter(fits).last() {
            // The one before it is freed when the others may go on.
            drop(known.with(|bodies| mem::replace(&mut bodies.spare, text)));
        }
    }
}

/// The known body does not go with what is new.
struct Unfit;

#[cfg(test)]
mod tests;
