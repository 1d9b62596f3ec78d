//! What an engine does on its thread.

use mainstay_engine_abi::sdk::{Code, Import, KvEvent, LeaseChange, Output, Request, Stats};
use mainstay_engine_blocks::{BlockPool, PinError};

/// When the work wants its next step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wake {
    /// At once.
    Now,
    /// There is work, but no room for its outputs.
    Held,
    /// At that time, in the clock of [`Work::step`].
    At(u64),
    /// When there is a command.
    Idle,
}

/// Requests, cache and what else an engine has. It has no thread, lock or clock of its own.
pub trait Work {
    /// The cache.
    fn blocks(&mut self) -> &mut BlockPool;

    /// Queues a request.
    fn submit(&mut self, request: Request, now_us: u64);

    /// Ends a request with `Cancelled`; an unknown id is nothing.
    fn cancel(&mut self, id: u64, now_us: u64);

    /// Cancels all requests, so that nobody waits for ever.
    fn cancel_all(&mut self, now_us: u64);

    /// Does what is due. `clock` is monotonic; without `room_for_output` nothing is said.
    fn step(&mut self, clock: &dyn Fn() -> u64, room_for_output: bool) -> Wake;

    /// Outputs since the last call, in order.
    fn drain_outputs(&mut self) -> std::vec::Drain<'_, Output>;

    /// Figures of now.
    fn stats(&self) -> Stats;

    /// How long the work that is queued now will take, roughly.
    fn backlog_ms(&self, now_us: u64) -> u32;

    /// Why nothing can be computed any more. The engine then ends as if its thread had died.
    fn broken(&self) -> Option<&str> {
        None
    }

    /// Copies blocks out, first to last, and says how many: up to the first that is not registered.
    fn export(&self, blocks: &[u128], bytes: &mut [u8]) -> u32 {
        let _ = (blocks, bytes);
        0
    }

    /// Registers blocks that come in, first to last, as far as there is room, and says how many are held.
    ///
    /// # Errors
    /// Where the chain does not fit what is held already; nothing is done then.
    fn import(&mut self, import: &Import, now_us: u64) -> Result<u32, Code> {
        let _ = (import, now_us);
        Err(Code::Unimplemented)
    }

    /// Takes or renews a pin; answers with how many of its blocks are held.
    ///
    /// # Errors
    /// As [`BlockPool::pin`].
    fn pin(
        &mut self,
        pin_id: u128,
        hashes: &[u128],
        ttl_ms: u64,
        now_us: u64,
    ) -> Result<u32, PinError> {
        let now_ms = now_us / 1000;
        self.blocks().pin(pin_id, hashes, now_ms.saturating_add(ttl_ms), now_ms)
    }

    /// Ends a pin; `None` for an unknown one.
    fn unpin(&mut self, pin_id: u128) -> Option<u32> {
        self.blocks().unpin(pin_id)
    }

    /// Changes or ends a lease; one that is not known is nothing.
    fn lease(&mut self, change: &LeaseChange, now_us: u64) {
        self.blocks().change_lease(change, now_us / 1000);
    }

    /// Names everything that is registered; events that were not carried away yet are void with it.
    fn snapshot(&mut self, mut emit: impl FnMut(KvEvent)) -> u32 {
        let is_end = |event: &KvEvent| matches!(event, KvEvent::PinExpired { .. });
        let pins_ended: Vec<KvEvent> = self.blocks().drain_events().filter(is_end).collect();
        let count = self.blocks().snapshot(&mut emit);
        pins_ended.into_iter().for_each(emit);
        count
    }

    /// Cache events since the last call, in order.
    fn drain_events(&mut self) -> impl Iterator<Item = KvEvent> + '_ {
        self.blocks().drain_events()
    }
}
