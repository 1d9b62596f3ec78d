//! Blocks on their way out of an engine's cache and into it: the memory that is lent to it meanwhile.
//!
//! The engine reads or writes these bytes until it has said that the operation ended (rule R4), so nobody may free
//! them before: not a caller who went away, and not the end of the engine as long as `destroy` has not returned.
//! They lie in a table that belongs to the engine's instance.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use mainstay_engine_abi::limits::{TRANSFER_BLOCKS_MAX, TRANSFER_BYTES_MAX};
use mainstay_engine_abi::raw::{MseExport, MseHdr, MseImport, MseU128};
use mainstay_engine_abi::sdk::{Code, EngineError, Info, OpDone};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::error::HostError;

/// The operations that the host starts for itself have this bit; those of its users have not.
pub const HOST_OP: u64 = 1 << 63;
/// Transfers of one engine at once.
const TRANSFERS_MAX: usize = 16;
const RETRY_AFTER_MS: u32 = 5;

/// Blocks to be taken in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvImport {
    /// Where they lie.
    pub namespace: u128,
    /// The block before the first, or the namespace.
    pub parent: u128,
    /// `Info::kv_layout` of the engine that made the bytes.
    pub layout: u64,
    /// A chain, first to last.
    pub blocks: Vec<u128>,
    /// `Info::block_bytes` for each block.
    pub bytes: Vec<u8>,
    /// 0 to 100.
    pub priority: u8,
    /// 0 is no limit.
    pub duration_ms: u32,
}

/// A transfer that has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Whole {
    /// 0 or one of the header's codes.
    pub rc: i32,
    /// How many blocks, from the first on.
    pub done: u32,
    /// What was copied out; of an import nothing.
    pub bytes: Vec<u8>,
}

/// Whether an operation's id is a user's to choose.
pub(crate) fn users_own(op_id: u64) -> Result<(), HostError> {
    if op_id & HOST_OP == 0 {
        return Ok(());
    }
    let message = format!("the operation's id {op_id:#x} has the bit that is the host's own");
    Err(HostError::Refused(EngineError::invalid(message)))
}

fn refused(error: EngineError) -> HostError {
    HostError::Refused(error)
}

/// What no engine should be asked, whatever it checks itself.
pub(crate) fn check_export(blocks: usize, info: &Info) -> Result<(), HostError> {
    let bytes = info.block_bytes.checked_mul(blocks as u64);
    if blocks == 0
        || blocks as u64 > TRANSFER_BLOCKS_MAX
        || bytes.is_none_or(|bytes| bytes > TRANSFER_BYTES_MAX)
    {
        let of = info.block_bytes;
        let message = format!("a transfer of {blocks} blocks of {of} bytes");
        return Err(refused(EngineError::invalid(message)));
    }
    Ok(())
}

/// The same of blocks that come in: an engine reads as many bytes as it was told.
pub(crate) fn check_import(import: &KvImport, info: &Info) -> Result<(), HostError> {
    check_export(import.blocks.len(), info)?;
    if import.bytes.len() as u64 != info.block_bytes * import.blocks.len() as u64 {
        let (bytes, blocks) = (import.bytes.len(), import.blocks.len());
        return Err(refused(EngineError::invalid(format!("{bytes} bytes for {blocks} blocks"))));
    }
    if import.layout != info.kv_layout {
        let message = "the blocks are of a layout that this engine can't read";
        return Err(refused(EngineError::new(Code::Precondition, message)));
    }
    if import.priority > 100 {
        let message = format!("import priority {} exceeds 100", import.priority);
        return Err(refused(EngineError::invalid(message)));
    }
    Ok(())
}

/// Memory that an engine works on.
pub(crate) struct Lent {
    names: Vec<MseU128>,
    bytes: Vec<u8>,
    /// Bytes of one block.
    of: usize,
    import: Option<KvImport>,
}

impl Lent {
    /// Room for the bytes of `blocks`.
    pub(crate) fn of_export(blocks: Vec<u128>, bytes: usize) -> Result<Self, EngineError> {
        if blocks.is_empty() || blocks.len() as u64 > TRANSFER_BLOCKS_MAX {
            let len = blocks.len();
            return Err(EngineError::invalid(format!("a transfer of {len} blocks")));
        }
        if bytes as u64 > TRANSFER_BYTES_MAX {
            return Err(EngineError::invalid(format!("a transfer of {bytes} bytes")));
        }
        let of = bytes / blocks.len();
        let names = blocks.into_iter().map(MseU128::from).collect();
        Ok(Self { names, bytes: vec![0; bytes], of, import: None })
    }

    pub(crate) fn of_import(mut import: KvImport) -> Self {
        let names = std::mem::take(&mut import.blocks).into_iter().map(MseU128::from).collect();
        let bytes = std::mem::take(&mut import.bytes);
        Self { names, bytes, of: 0, import: Some(import) }
    }

    pub(crate) fn export(&mut self, op_id: u64) -> MseExport {
        MseExport {
            h: MseHdr::of::<MseExport>(),
            op_id,
            blocks: self.names.as_ptr(),
            blocks_len: self.names.len() as u64,
            bytes: self.bytes.as_mut_ptr(),
            bytes_len: self.bytes.len() as u64,
        }
    }

    pub(crate) fn import(&mut self, op_id: u64) -> MseImport {
        let of = self.import.as_ref();
        MseImport {
            h: MseHdr::of::<MseImport>(),
            op_id,
            namespace_id: of.map_or(0, |import| import.namespace).into(),
            parent: of.map_or(0, |import| import.parent).into(),
            kv_layout: of.map_or(0, |import| import.layout),
            blocks: self.names.as_ptr(),
            blocks_len: self.names.len() as u64,
            bytes: self.bytes.as_ptr(),
            bytes_len: self.bytes.len() as u64,
            priority: of.map_or(0, |import| u32::from(import.priority)),
            duration_ms: of.map_or(0, |import| import.duration_ms),
        }
    }

    fn end(mut self, op: &OpDone) -> Whole {
        // An engine that says more than it was asked did not do it.
        let done = op.done.min(self.names.len() as u32);
        self.bytes.truncate(if self.import.is_some() { 0 } else { done as usize * self.of });
        Whole { rc: op.rc, done, bytes: self.bytes }
    }
}

type Told = Box<dyn FnOnce(Whole) + Send>;

/// The transfers under way of one engine.
#[derive(Default)]
pub(crate) struct Transfers {
    table: Mutex<Table>,
    next: AtomicU64,
}

#[derive(Default)]
struct Table {
    /// What is lent, and who waits for its end. Once nobody can hear of an end any more the waiting are told so,
    /// but what is lent stays: the engine may still write it.
    open: HashMap<u64, (Lent, Option<Told>)>,
    closed: bool,
}

impl Transfers {
    /// Keeps what is lent and starts the transfer with what `lend` makes of it; `told` hears its end, unless `start`
    /// refuses.
    pub(crate) fn lend<T>(
        &self,
        mut lent: Lent,
        told: Told,
        lend: impl FnOnce(u64, &mut Lent) -> T,
        start: impl FnOnce(T) -> Result<(), EngineError>,
    ) -> Result<(), EngineError> {
        let op_id = HOST_OP | self.next.fetch_add(1, Ordering::Relaxed);
        let mut table = self.table.lock();
        if table.closed {
            return Err(EngineError::unavailable("the engine has ended"));
        }
        if table.open.len() >= TRANSFERS_MAX {
            let message = format!("{TRANSFERS_MAX} transfers are under way");
            return Err(EngineError::exhausted(message, RETRY_AFTER_MS));
        }
        let raw = lend(op_id, &mut lent);
        // It is there before the engine knows, since the op may end before the call does. Moving the struct moves no
        // byte that was lent: they are on the heap.
        table.open.insert(op_id, (lent, Some(told)));
        drop(table);
        let begun = start(raw);
        if let Err(error) = &begun {
            let mut table = self.table.lock();
            if !error.fatal {
                table.open.remove(&op_id);
            } else if let Some((_, told)) = table.open.get_mut(&op_id) {
                // An engine that failed in the middle may have kept what it was lent.
                *told = None;
            }
        }
        begun
    }

    /// Ends the host's own among the ended operations; gives back the others.
    pub(crate) fn end(&self, ops: Vec<OpDone>) -> Vec<OpDone> {
        let (own, others): (Vec<_>, Vec<_>) =
            ops.into_iter().partition(|op| op.op_id & HOST_OP != 0);
        for op in own {
            let ended = self.table.lock().open.remove(&op.op_id);
            match ended {
                Some((lent, told)) => {
                    if let Some(told) = told {
                        told(lent.end(&op));
                    }
                }
                None => tracing::warn!(op = op.op_id, "the engine ended a transfer twice"),
            }
        }
        others
    }

    /// No operation will be heard of any more: whoever waits is told so.
    pub(crate) fn close(&self) {
        let mut table = self.table.lock();
        table.closed = true;
        let waiting: Vec<Told> =
            table.open.values_mut().filter_map(|(_, told)| told.take()).collect();
        drop(table);
        for told in waiting {
            told(Whole { rc: Code::Unavailable.rc(), done: 0, bytes: Vec::new() });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    fn done(op_id: u64, done: u32) -> OpDone {
        OpDone { op_id, rc: 0, done }
    }

    #[test]
    fn bytes_are_cut_to_what_was_copied() {
        let transfers = Transfers::default();
        let (tell, told) = mpsc::channel();
        let lent = Lent::of_export(vec![1, 2, 3], 12).unwrap();
        let told_end = Box::new(move |whole| tell.send(whole).unwrap());
        transfers
            .lend(
                lent,
                told_end,
                |op_id, lent| lent.export(op_id),
                |raw| {
                    assert_eq!(raw.op_id & HOST_OP, HOST_OP);
                    assert_eq!((raw.blocks_len, raw.bytes_len), (3, 12));
                    Ok(())
                },
            )
            .unwrap();
        assert_eq!(transfers.end(vec![done(5, 1), done(HOST_OP, 2)]), [done(5, 1)]);
        assert_eq!(told.recv().unwrap(), Whole { rc: 0, done: 2, bytes: vec![0; 8] });
        assert!(transfers.end(vec![done(HOST_OP, 2)]).is_empty());
    }

    #[test]
    fn what_is_refused_or_too_much_is_not_lent() {
        let transfers = Transfers::default();
        let lend = |start: Result<(), EngineError>| {
            let lent = Lent::of_export(vec![1], 4).unwrap();
            transfers.lend(lent, Box::new(|_| {}), |_, _| (), |()| start)
        };
        assert!(lend(Err(EngineError::invalid("no"))).is_err());
        assert!(transfers.table.lock().open.is_empty());
        assert!(lend(Err(EngineError::internal("panicked").fatal())).is_err());
        assert_eq!(transfers.table.lock().open.len(), 1, "it may have been kept");
        for _ in 1..TRANSFERS_MAX {
            lend(Ok(())).unwrap();
        }
        assert!(lend(Ok(())).is_err());
        transfers.close();
        assert_eq!(transfers.table.lock().open.len(), TRANSFERS_MAX, "it may still be written");
        assert!(Lent::of_export(Vec::new(), 0).is_err());
        assert!(Lent::of_export(vec![1], 1 << 27).is_err());
    }
}
