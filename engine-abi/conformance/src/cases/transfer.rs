//! Blocks from one engine to another.

use mainstay_engine_abi::raw::{MseExport, MseHdr, MseImport, MseU128};
use mainstay_engine_abi::sdk::{Code, EngineError, OpDone, caps};

use super::boundary::refused;
use crate::session::{NAMESPACE_OF_ALL, Session};
use crate::{Context, Ended, Stop};

/// The header's limit of one transfer.
const BYTES_MAX: u64 = 1 << 26;

/// Blocks and their bytes, as they lie in memory until a transfer's op has ended.
struct Cargo {
    names: Vec<MseU128>,
    bytes: Vec<u8>,
}

impl Cargo {
    fn of(session: &Session, blocks: &[u128]) -> Self {
        let names = blocks.iter().map(|block| MseU128::from(*block)).collect();
        Self { names, bytes: vec![0; blocks.len() * session.info().block_bytes as usize] }
    }

    /// Stays where it is until the process ends: an engine that did not end an operation may still use it.
    fn leave(self, stop: Stop) -> Stop {
        std::mem::forget(self);
        stop
    }

    fn export(&mut self, op_id: u64) -> MseExport {
        MseExport {
            h: MseHdr::of::<MseExport>(),
            op_id,
            blocks: self.names.as_ptr(),
            blocks_len: self.names.len() as u64,
            bytes: self.bytes.as_mut_ptr(),
            bytes_len: self.bytes.len() as u64,
        }
    }

    /// An import behind `parent`, into the namespace of all.
    fn import(&self, op_id: u64, parent: u128, kv_layout: u64) -> MseImport {
        MseImport {
            h: MseHdr::of::<MseImport>(),
            op_id,
            namespace_id: NAMESPACE_OF_ALL.0.into(),
            parent: parent.into(),
            kv_layout,
            blocks: self.names.as_ptr(),
            blocks_len: self.names.len() as u64,
            bytes: self.bytes.as_ptr(),
            bytes_len: self.bytes.len() as u64,
            priority: 35,
            duration_ms: 0,
        }
    }
}

fn able(context: &Context) -> Result<Session, Stop> {
    let session = Session::new(context)?;
    session.driver.needs(caps::TRANSFER | caps::KV_EVENTS, "TRANSFER with KV_EVENTS")?;
    if session.info().kv_layout == 0 || session.info().block_bytes == 0 {
        return Err("an engine with TRANSFER has no kv_layout or no block_bytes".to_owned().into());
    }
    Ok(session)
}

fn export(session: &mut Session, blocks: &[u128]) -> Result<(OpDone, Vec<u8>), Stop> {
    let mut cargo = Cargo::of(session, blocks);
    let ended =
        session.operate("an export's end", |driver, op_id| driver.kv_export(&cargo.export(op_id)));
    match ended {
        Ok(op) => Ok((op, cargo.bytes)),
        Err(stop) => Err(cargo.leave(stop)),
    }
}

fn import(
    session: &mut Session,
    (parent, blocks): (u128, &[u128]),
    bytes: &[u8],
) -> Result<OpDone, Stop> {
    let mut cargo = Cargo::of(session, blocks);
    cargo.bytes.copy_from_slice(bytes);
    let layout = session.info().kv_layout;
    let ended = session.operate("an import's end", |driver, op_id| {
        driver.kv_import(&cargo.import(op_id, parent, layout))
    });
    let op = ended.map_err(|stop| cargo.leave(stop))?;
    session.settle()?;
    Ok(op)
}

/// A prompt that an engine has computed, with its blocks and their bytes.
type Made = (Vec<u32>, Vec<u128>, Vec<u8>);

fn made(session: &mut Session) -> Result<Made, Stop> {
    let prompt = session.prompt_of_blocks(4);
    let chain = session.blocks_of(&prompt)?;
    let (op, bytes) = export(session, &chain)?;
    if op.rc != 0 || op.done as usize != chain.len() {
        let (rc, done, all) = (op.rc, op.done, chain.len());
        return Err(format!("an export of {all} held blocks ended with {rc}, {done} done").into());
    }
    Ok((prompt, chain, bytes))
}

const ROOT: u128 = NAMESPACE_OF_ALL.0;

pub(super) fn moves(context: &Context) -> Ended {
    let mut from = able(context)?;
    let (prompt, chain, bytes) = made(&mut from)?;
    let due = from.tell(&prompt, 12)?;
    let mut to = able(context)?;
    let op = import(&mut to, (ROOT, &chain), &bytes)?;
    if op.rc != 0 || op.done as usize != chain.len() {
        return Err(format!("an import ended with {}, {} done", op.rc, op.done).into());
    }
    if let Some(lost) = chain.iter().find(|block| !to.cache.held.contains_key(*block)) {
        return Err(format!("block {lost:032x} came in and was not told as STORED").into());
    }
    let told = to.tell(&prompt, 12)?;
    let whole = chain.len() as u32 * to.info().block_tokens;
    if told.cached_tokens != whole {
        let cached = told.cached_tokens;
        return Err(format!("{cached} of {whole} tokens that came in were hit").into());
    }
    if told.tokens != due.tokens {
        return Err("the answer over blocks that came in is another one".to_owned().into());
    }
    let (_, again) = export(&mut to, &chain)?;
    if again != bytes {
        return Err("blocks that came in go out with other bytes".to_owned().into());
    }
    Ok(vec![("bytes".into(), bytes.len().to_string())])
}

pub(super) fn parts(context: &Context) -> Ended {
    let mut from = able(context)?;
    let (prompt, chain, bytes) = made(&mut from)?;
    let of = from.info().block_bytes as usize;
    let (op, _) = export(&mut from, &[&chain[..1], &[7]].concat())?;
    if (op.rc, op.done) != (0, 1) {
        return Err(format!("an export up to a hole ended with {}, {} done", op.rc, op.done).into());
    }
    if chain.len() < 2 {
        return Ok(Vec::new());
    }
    let mut to = able(context)?;
    import(&mut to, (ROOT, &chain[..1]), &bytes[..of])?;
    let op = import(&mut to, (chain[0], &chain[1..]), &bytes[of..])?;
    if op.rc != 0 || op.done as usize != chain.len() - 1 {
        return Err(format!("a second part ended with {}, {} done", op.rc, op.done).into());
    }
    // Once more, as a whole: what is held already counts.
    let op = import(&mut to, (ROOT, &chain), &bytes)?;
    if op.rc != 0 || op.done as usize != chain.len() {
        return Err(format!("what is held came in again: {}, {} done", op.rc, op.done).into());
    }
    let cached = to.tell(&prompt, 1)?.cached_tokens;
    if cached != chain.len() as u32 * to.info().block_tokens {
        return Err(format!("of a prefix in two parts {cached} tokens were hit").into());
    }
    Ok(Vec::new())
}

pub(super) fn full(context: &Context) -> Ended {
    let mut from = able(context)?;
    let (prompt, chain, bytes) = made(&mut from)?;
    let mut to = able(context)?;
    to.flood(1)?;
    let op = import(&mut to, (ROOT, &chain), &bytes)?;
    if op.rc != 0 || op.done as usize != chain.len() {
        let (rc, done) = (op.rc, op.done);
        return Err(format!("an import into a full cache ended with {rc}, {done} done").into());
    }
    super::cache::room(&to)?;
    let told = to.tell(&prompt, 4)?;
    if told.tokens != from.tell(&prompt, 4)?.tokens {
        return Err("the answer over blocks that came in is another one".to_owned().into());
    }
    Ok(Vec::new())
}

pub(super) fn bad(context: &Context) -> Ended {
    let mut session = able(context)?;
    let (_, chain, bytes) = made(&mut session)?;
    let layout = session.info().kv_layout;
    // Never freed: an engine that takes what it should refuse may use it for as long as it lives.
    let names = chain.iter().map(|b| MseU128::from(*b)).collect();
    let cargo = Box::leak(Box::new(Cargo { names, bytes }));
    let driver = &session.driver;
    let with = |change: &dyn Fn(&mut MseImport)| -> Result<(), EngineError> {
        let mut raw = cargo.import(1, ROOT, layout);
        change(&mut raw);
        driver.kv_import(&raw)
    };
    let foreign = with(&|raw| raw.kv_layout ^= 2);
    refused(foreign, "bytes of another layout", &[Code::Precondition])?;
    refused(with(&|raw| raw.bytes_len -= 1), "bytes that are too few", &[Code::Invalid])?;
    refused(with(&|raw| raw.blocks_len = 0), "an import of nothing", &[Code::Invalid])?;
    refused(with(&|raw| raw.priority = 101), "an import of priority 101", &[Code::Invalid])?;
    let huge = |raw: &mut MseImport| (raw.blocks_len, raw.bytes_len) = (1 << 40, BYTES_MAX);
    refused(with(&huge), "an import of too many blocks", &[Code::Invalid])?;
    let mut raw = cargo.export(1);
    raw.bytes = std::ptr::null_mut();
    refused(driver.kv_export(&raw), "an export to nowhere", &[Code::Invalid])?;
    let names: Vec<u128> = cargo.names.iter().map(|name| u128::from(*name)).collect();
    let bytes = cargo.bytes.clone();
    let orphans: Vec<u128> = names.iter().map(|name| name ^ 1).collect();
    let op = import(&mut session, (5, &orphans), &bytes)?;
    if op.rc != Code::Precondition.rc() || op.done != 0 {
        let (rc, done) = (op.rc, op.done);
        return Err(
            format!("an import behind an unknown block ended with {rc}, {done} done").into()
        );
    }
    let (op, _) = export(&mut session, &[1, 2])?;
    if (op.rc, op.done) != (0, 0) {
        return Err(format!("an export of unknown blocks ended with {}", op.rc).into());
    }
    Ok(Vec::new())
}
