//! An event batch as it comes over the wire, as events: pure.
//!
//! vLLM, SGLang and TensorRT-LLM write `[time, [event…], rank?]`; an event is a map with a `type` (vLLM since 0.24,
//! the other two), or an array whose first item is its name and whose members stand in a fixed order (vLLM before).
//! Both are read, members that are missing, unknown or behind the known ones are passed over, and an event that
//! makes no sense costs itself and not its batch.

use mainstay_engine_proxy::event::{Event, Medium, Native, Salt, Stored};

use super::msgpack::{Cursor, Malformed, Next, Scalar};

/// Events in one batch, blocks in one event: a message has at most some megabytes, and these bound what becomes of it.
const EVENTS_MAX: usize = 1 << 16;
const BLOCKS_MAX: usize = 1 << 18;
const TOKENS_MAX: usize = 1 << 22;
/// A salt as the servers take it.
const TEXT_MAX: usize = 1024;

/// One message.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Batch {
    pub(crate) events: Vec<Event>,
    pub(crate) rank: Option<u64>,
    /// Events that could not be understood.
    pub(crate) unknown: u64,
}

/// Reads one message.
///
/// # Errors
/// The frame of the batch is not what it should be. Events that are not are counted in [`Batch::unknown`].
pub(crate) fn decode(bytes: &[u8]) -> Result<Batch, Malformed> {
    let mut cursor = Cursor::new(bytes);
    let items = cursor.list()?;
    if items < 2 {
        return Err(Malformed::Kind);
    }
    cursor.skip()?; // the time
    let events = cursor.list()?;
    if events > EVENTS_MAX {
        return Err(Malformed::Range);
    }
    let mut batch = Batch::default();
    for _ in 0..events {
        // Where an event begins is known, so its end is, too, whatever is in it.
        let mut own = cursor;
        cursor.skip()?;
        match event(&mut own) {
            Ok(event) => batch.events.push(event),
            Err(_) => batch.unknown += 1,
        }
    }
    if items > 2 {
        let mut own = cursor;
        cursor.skip()?;
        if let Ok(Scalar::Unsigned(rank)) = own.scalar() {
            batch.rank = Some(rank);
        }
    }
    Ok(batch)
}

fn event(cursor: &mut Cursor<'_>) -> Result<Event, Malformed> {
    match cursor.next()? {
        Next::Map(pairs) => named(cursor, pairs),
        Next::Array(items) => ordered(cursor, items),
        Next::Scalar(_) => Err(Malformed::Kind),
    }
}

/// What an event may have, whatever form it came in.
#[derive(Default)]
struct Members {
    blocks: Option<Vec<Native>>,
    stored: Stored,
}

fn finish(kind: &[u8], members: Members) -> Result<Event, Malformed> {
    let Members { blocks, mut stored } = members;
    match kind {
        b"BlockStored" => {
            stored.blocks = blocks.ok_or(Malformed::Kind)?;
            Ok(Event::Stored(stored))
        }
        b"BlockRemoved" => Ok(Event::Removed {
            blocks: blocks.ok_or(Malformed::Kind)?,
            medium: stored.medium,
            group: stored.group,
        }),
        b"AllBlocksCleared" => Ok(Event::Cleared),
        _ => Err(Malformed::Kind),
    }
}

fn named(cursor: &mut Cursor<'_>, pairs: usize) -> Result<Event, Malformed> {
    let mut kind: &[u8] = b"";
    let mut members = Members::default();
    for _ in 0..pairs {
        let Scalar::Text(key) = cursor.scalar()? else { return Err(Malformed::Kind) };
        if key == b"type" {
            let Scalar::Text(text) = cursor.scalar()? else { return Err(Malformed::Kind) };
            kind = text;
        } else {
            member(cursor, key, &mut members)?;
        }
    }
    finish(kind, members)
}

/// The members of vLLM's array form, in their order; what came later stands behind.
const STORED_ORDER: [&[u8]; 9] = [
    b"block_hashes",
    b"parent_block_hash",
    b"token_ids",
    b"block_size",
    b"lora_id",
    b"medium",
    b"lora_name",
    b"extra_keys",
    b"group_idx",
];
const REMOVED_ORDER: [&[u8]; 3] = [b"block_hashes", b"medium", b"group_idx"];

fn ordered(cursor: &mut Cursor<'_>, items: usize) -> Result<Event, Malformed> {
    let Scalar::Text(kind) = cursor.scalar()? else { return Err(Malformed::Kind) };
    let order: &[&[u8]] = match kind {
        b"BlockStored" => &STORED_ORDER,
        b"BlockRemoved" => &REMOVED_ORDER,
        _ => &[],
    };
    let mut members = Members::default();
    for key in order.iter().take(items.saturating_sub(1)) {
        member(cursor, key, &mut members)?;
    }
    finish(kind, members)
}

fn member(cursor: &mut Cursor<'_>, key: &[u8], into: &mut Members) -> Result<(), Malformed> {
    let stored = &mut into.stored;
    match key {
        b"block_hashes" => into.blocks = Some(natives(cursor)?),
        b"parent_block_hash" => {
            stored.parent = match cursor.scalar()? {
                Scalar::Null => None,
                other => Some(native(other)?),
            }
        }
        b"token_ids" => stored.tokens = tokens(cursor)?,
        b"block_size" => match cursor.scalar()? {
            Scalar::Unsigned(size) => {
                stored.block_tokens = u32::try_from(size).map_err(|_| Malformed::Range)?;
            }
            _ => return Err(Malformed::Kind),
        },
        b"lora_id" | b"lora_name" => {
            if cursor.scalar()? != Scalar::Null {
                stored.salt = Salt::Foreign;
            }
        }
        b"medium" => stored.medium = medium(cursor.scalar()?)?,
        b"extra_keys" => extra_keys(cursor, stored)?,
        b"cache_salt" => match cursor.scalar()? {
            Scalar::Null => set_salt(stored, Salt::None),
            Scalar::Text(text) => set_salt(stored, Salt::Text(utf8(text)?)),
            _ => return Err(Malformed::Kind),
        },
        b"group_idx" => {
            if let Scalar::Unsigned(index) = cursor.scalar()? {
                stored.group.index = Some(index);
            }
        }
        b"kv_cache_spec_kind" => {
            if let Scalar::Text(kind) = cursor.scalar()? {
                stored.group.is_partial = is_partial(kind);
            }
        }
        _ => cursor.skip()?,
    }
    Ok(())
}

/// Whether a cache of this kind keeps less than the whole prefix.
fn is_partial(kind: &[u8]) -> bool {
    let holds = |word: &[u8]| kind.windows(word.len()).any(|part| part == word);
    [&b"sliding"[..], b"chunk", b"mamba", b"cross"].into_iter().any(holds)
}

fn set_salt(stored: &mut Stored, salt: Salt) {
    if stored.salt != Salt::Foreign {
        stored.salt = salt;
    }
}

fn utf8(bytes: &[u8]) -> Result<String, Malformed> {
    if bytes.len() > TEXT_MAX {
        return Err(Malformed::Range);
    }
    String::from_utf8(bytes.to_vec()).map_err(|_| Malformed::Kind)
}

/// One list or null for each block; the salt stands alone in the first one's.
fn extra_keys(cursor: &mut Cursor<'_>, stored: &mut Stored) -> Result<(), Malformed> {
    let count = match cursor.next()? {
        Next::Scalar(Scalar::Null) => return Ok(()),
        Next::Array(count) => count,
        _ => return Err(Malformed::Kind),
    };
    for block in 0..count {
        let own = match cursor.next()? {
            Next::Scalar(Scalar::Null) | Next::Array(0) => {
                if block == 0 {
                    set_salt(stored, Salt::None);
                }
                continue;
            }
            Next::Array(own) => own,
            _ => return Err(Malformed::Kind),
        };
        let mut first = *cursor;
        for _ in 0..own {
            cursor.skip()?;
        }
        match first.scalar() {
            Ok(Scalar::Text(text)) if block == 0 && own == 1 => {
                set_salt(stored, Salt::Text(utf8(text)?));
            }
            _ if stored.foreign_from.is_none() => stored.foreign_from = Some(block),
            _ => {}
        }
    }
    Ok(())
}

fn natives(cursor: &mut Cursor<'_>) -> Result<Vec<Native>, Malformed> {
    let count = cursor.list()?;
    if count > BLOCKS_MAX {
        return Err(Malformed::Range);
    }
    (0..count).map(|_| native(cursor.scalar()?)).collect()
}

fn native(scalar: Scalar<'_>) -> Result<Native, Malformed> {
    match scalar {
        Scalar::Unsigned(number) => Ok(Native::Number(number)),
        Scalar::Signed(number) => Ok(Native::Number(number.cast_unsigned())),
        Scalar::Bytes(bytes) => Ok(Native::Digest(bytes.try_into().map_err(|_| Malformed::Range)?)),
        _ => Err(Malformed::Kind),
    }
}

fn tokens(cursor: &mut Cursor<'_>) -> Result<Vec<u32>, Malformed> {
    let count = cursor.list()?;
    if count > TOKENS_MAX {
        return Err(Malformed::Range);
    }
    let token = |cursor: &mut Cursor<'_>| match cursor.scalar()? {
        Scalar::Unsigned(token) => u32::try_from(token).map_err(|_| Malformed::Range),
        _ => Err(Malformed::Kind),
    };
    (0..count).map(|_| token(cursor)).collect()
}

fn medium(scalar: Scalar<'_>) -> Result<Option<Medium>, Malformed> {
    let Scalar::Text(name) = scalar else {
        return if scalar == Scalar::Null { Ok(None) } else { Err(Malformed::Kind) };
    };
    Ok(Some(match name {
        b"GPU" => Medium::Device,
        b"CPU" | b"CPU_PINNED" => Medium::Host,
        b"DISK" | b"STORAGE" => Medium::Disk,
        b"EXTERNAL" => Medium::Remote,
        _ => return Err(Malformed::Kind),
    }))
}

#[cfg(test)]
mod tests;
