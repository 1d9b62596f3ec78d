//! Prompts that were prepared before, for those that go on where one of them did.
//!
//! A turn of a conversation repeats the pieces of the turn before, which are the same allocations, so how far two prompts
//! agree is told by comparing addresses. Up to there the tokens on the wire and the names of blocks are copied in one go,
//! and only what follows is tokenised and hashed. Pieces are held, so that no address can become another's. A prompt
//! takes the place of the one that it goes on from; memory is bounded by bytes (see [`Memory`]). What is found is a hint:
//! a prompt comes out the same without it.

use std::sync::{Arc, Weak};

use bytes::Bytes;
use mainstay_chat::memory::Memory;
use mainstay_chat::template::Text;
use mainstay_proto::tokens::unpack;
use mainstay_types::{BlockHashKey, NamespaceId, SequenceHash};

use super::tokenizer::{Encoded, Ends};
use super::{ModelError, Tokenizer};

/// What a prompt costs beside its pieces, tokens and blocks.
const PROMPT_BYTES: usize = 400;
/// What finding it by one more piece costs.
const ANCHOR_BYTES: usize = 64;
/// By so many pieces a prompt is found, those before its last: that one is the same for all conversations.
const ANCHORS: usize = 3;
/// So many pieces may follow the one by which an earlier prompt is found.
const LOOKED_AT_MAX: usize = 64;

/// What names the blocks of a prompt.
pub(crate) struct Naming<'k> {
    pub(crate) key: &'k BlockHashKey,
    pub(crate) namespace: NamespaceId,
    pub(crate) block_tokens: u32,
}

/// A prompt as a worker needs it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Prepared {
    /// How many tokens it has.
    pub(crate) tokens: usize,
    /// The tokens as a worker is told them.
    pub(crate) packed: Bytes,
    pub(crate) blocks: Arc<[SequenceHash]>,
    /// For each asked byte offset of the text, how many tokens lie wholly before it.
    pub(crate) tokens_before: Vec<usize>,
}

/// A prompt that was prepared.
struct Known {
    namespace: NamespaceId,
    block_tokens: u32,
    pieces: Vec<Arc<str>>,
    /// Where a special token begins the next piece, so that what precedes it is tokenised on its own.
    ends: Vec<Ends>,
    packed: Bytes,
    blocks: Arc<[SequenceHash]>,
    text_bytes: usize,
}

impl Known {
    fn bytes(&self) -> usize {
        let pieces = 16 * self.pieces.len() + self.text_bytes;
        PROMPT_BYTES + pieces + 16 * self.ends.len() + self.packed.len() + 16 * self.blocks.len()
    }

    fn anchors(&self) -> impl Iterator<Item = usize> {
        self.pieces.iter().rev().skip(1).take(ANCHORS).map(address)
    }

    /// The tokens behind the last full block of the first `end`.
    fn tail(&self, end: Ends) -> Vec<u32> {
        let many = end.tokens as usize % self.block_tokens.max(1) as usize;
        let packed = &self.packed[..end.packed as usize];
        // Only the last byte of each token says that none follows.
        let mut last = (0..packed.len()).rev().filter(|at| packed[*at] & 0x80 == 0);
        let start = last.nth(many).map_or(0, |before| before + 1);
        unpack(&packed[start..]).unwrap_or_default()
    }
}

fn address(piece: &Arc<str>) -> usize {
    Arc::as_ptr(piece).cast::<u8>().addr()
}

/// What lies under an address: a prompt under its own, which holds it, or the one that is found by a piece.
enum Entry {
    Whole(Arc<Known>),
    Anchor(Weak<Known>),
}

impl Entry {
    fn anchored(&self) -> Option<Arc<Known>> {
        match self {
            Self::Whole(_) => None,
            Self::Anchor(known) => known.upgrade(),
        }
    }

    fn is(&self, other: &Arc<Known>) -> bool {
        match self {
            Self::Whole(known) => Arc::ptr_eq(known, other),
            Self::Anchor(known) => std::ptr::eq(known.as_ptr(), Arc::as_ptr(other)),
        }
    }
}

/// The prompts that are known, and their anchors. Addresses are spread by the allocator; a multiplication is enough of a
/// hash.
pub(super) struct Prompts(Memory<usize, Entry, foldhash::fast::RandomState>);

/// An earlier prompt, and how many of its first pieces are the new one's.
type Found = (Arc<Known>, usize);

impl Prompts {
    /// Room for so many bytes.
    pub(super) fn new(bytes_max: usize) -> Self {
        Self(Memory::new(bytes_max))
    }

    fn find(&self, namespace: NamespaceId, pieces: &[Arc<str>]) -> Option<Found> {
        let agrees = |known: &Arc<Known>| {
            let both = known.pieces.iter().zip(pieces);
            both.take_while(|(a, b)| Arc::ptr_eq(a, b)).count()
        };
        // Long prompts take a while to compare, for which nobody else has to wait.
        let fits = |(at, known): &(usize, Arc<Known>)| agrees(known) > *at;
        let (_, known) = self.candidates(namespace, pieces).into_iter().find(fits)?;
        let agreeing = agrees(&known);
        Some((known, agreeing))
    }

    /// Prompts that have one of the last pieces where they are found by it, the last piece first.
    fn candidates(&self, namespace: NamespaceId, pieces: &[Arc<str>]) -> Vec<(usize, Arc<Known>)> {
        self.0.with(|prompts| {
            let mut found = Vec::new();
            for at in (0..pieces.len()).rev().take(LOOKED_AT_MAX) {
                let known = prompts.look(&address(&pieces[at])).filter_map(Entry::anchored);
                let ours = known.filter(|known| known.namespace == namespace);
                found.extend(ours.map(|known| (at, known)));
            }
            found
        })
    }

    /// Remembers a prompt, in the place of the one that it goes on from.
    fn keep(&self, known: Known, before: Option<&Arc<Known>>) {
        // One of a single piece could not be found.
        if known.anchors().next().is_none() {
            return;
        }
        let bytes = known.bytes();
        let known = Arc::new(known);
        let own = |known: &Arc<Known>| Arc::as_ptr(known).addr();
        self.0.with(|prompts| {
            if let Some(before) = before {
                for address in before.anchors().chain([own(before)]) {
                    prompts.remove_young(&address, |entry| entry.is(before));
                }
            }
            prompts.insert(own(&known), Entry::Whole(Arc::clone(&known)), bytes);
            for address in known.anchors() {
                prompts.insert(address, Entry::Anchor(Arc::downgrade(&known)), ANCHOR_BYTES);
            }
        });
    }
}

impl Tokenizer {
    /// Tokenises a rendered prompt and names its blocks. `offsets` are byte offsets, in rising order, to be told in
    /// tokens.
    pub(crate) fn prepare(
        &self,
        tenant: &str,
        text: Text,
        offsets: &[usize],
        naming: &Naming<'_>,
    ) -> Result<Prepared, ModelError> {
        if text.pieces().is_empty() || !self.cuts_pieces_apart() {
            let Encoded { tokens, packed, tokens_before } = self.encode(tenant, &text, offsets)?;
            let blocks =
                naming.key.hash_prompt(naming.namespace, naming.block_tokens, &tokens).into();
            let (tokens, packed) = (tokens.len(), packed.into());
            return Ok(Prepared { tokens, packed, blocks, tokens_before });
        }
        let found = self.prompts.find(naming.namespace, text.pieces());
        let found = found.filter(|(known, _)| known.block_tokens == naming.block_tokens);
        let common = found.as_ref().and_then(|(known, agreeing)| {
            Some((known, self.common(known, *agreeing, text.pieces())?))
        });
        let (prepared, ends) = self.continued(tenant, &text, offsets, naming, common)?;
        let known = Known {
            namespace: naming.namespace,
            block_tokens: naming.block_tokens,
            ends,
            packed: prepared.packed.clone(),
            blocks: Arc::clone(&prepared.blocks),
            text_bytes: text.bytes(),
            pieces: text.into_pieces(),
        };
        self.prompts.keep(known, found.as_ref().map(|(known, _)| known));
        Ok(prepared)
    }

    /// Which of an earlier prompt's ends is the last that is one of this prompt, too, whose first pieces agree.
    fn common(&self, known: &Known, agreeing: usize, pieces: &[Arc<str>]) -> Option<usize> {
        let ends = known.ends.partition_point(|end| end.pieces as usize <= agreeing);
        let last = ends.checked_sub(1)?;
        let next = pieces.get(known.ends[last].pieces as usize);
        // What follows the pieces that agree may go on with the last of them.
        let apart = next.is_none_or(|next| self.starts(next));
        if apart { Some(last) } else { last.checked_sub(1) }
    }

    /// A prompt that agrees with an earlier one up to one of its ends.
    fn continued(
        &self,
        tenant: &str,
        text: &Text,
        offsets: &[usize],
        naming: &Naming<'_>,
        common: Option<(&Arc<Known>, usize)>,
    ) -> Result<(Prepared, Vec<Ends>), ModelError> {
        let pieces = text.pieces();
        let shared = common.map_or(Ends::default(), |(known, last)| known.ends[last]);
        let (before, behind) =
            offsets.split_at(offsets.partition_point(|offset| *offset < shared.bytes as usize));
        let behind: Vec<usize> = behind.iter().map(|o| o - shared.bytes as usize).collect();
        let mut ends = Vec::new();
        let rest = &pieces[shared.pieces as usize..];
        let rest = self.encode_groups(tenant, rest, &behind, &mut ends)?;
        let tokens = shared.tokens as usize + rest.tokens.len();
        let behind = rest.tokens_before.iter().map(|tokens| shared.tokens as usize + tokens);
        let Some((known, last)) = common else {
            let (key, block_tokens) = (naming.key, naming.block_tokens);
            let blocks = key.hash_prompt(naming.namespace, block_tokens, &rest.tokens).into();
            let tokens_before = behind.collect();
            let packed = rest.packed.into();
            return Ok((Prepared { tokens, packed, blocks, tokens_before }, ends));
        };
        let earlier = &known.ends[..=last];
        let mut tokens_before = Vec::with_capacity(offsets.len());
        for offset in before {
            tokens_before.push(self.tokens_before(tenant, earlier, pieces, *offset)?);
        }
        tokens_before.extend(behind);
        let mut packed = Vec::with_capacity(shared.packed as usize + rest.packed.len());
        packed.extend_from_slice(&known.packed[..shared.packed as usize]);
        packed.extend_from_slice(&rest.packed);
        let full = shared.tokens as usize / naming.block_tokens.max(1) as usize;
        let full = known.blocks.get(..full).unwrap_or(&known.blocks);
        let mut new_tokens = known.tail(shared);
        new_tokens.extend_from_slice(&rest.tokens);
        let parent = full.last().map_or(naming.namespace.0, |block| block.0);
        let mut new_blocks = Vec::new();
        naming.key.chain(parent, naming.block_tokens, &new_tokens, &mut new_blocks);
        let blocks = full.iter().copied().chain(new_blocks).collect();
        let ends = earlier.iter().copied().chain(ends.iter().map(|end| shared.and(*end))).collect();
        Ok((Prepared { tokens, packed: packed.into(), blocks, tokens_before }, ends))
    }

    /// How many tokens lie before an offset within pieces whose ends are known.
    fn tokens_before(
        &self,
        tenant: &str,
        ends: &[Ends],
        pieces: &[Arc<str>],
        offset: usize,
    ) -> Result<usize, ModelError> {
        let at = ends.partition_point(|end| end.bytes as usize <= offset);
        let start = at.checked_sub(1).map_or(Ends::default(), |before| ends[before]);
        let inner = offset - start.bytes as usize;
        if inner == 0 {
            return Ok(start.tokens as usize);
        }
        let group = ends.get(at).map_or(pieces.len(), |end| end.pieces as usize);
        let group = pieces[start.pieces as usize..group].concat();
        let before = self.encode(tenant, &group, &[inner])?.tokens_before;
        Ok(start.tokens as usize + before.first().copied().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests;
