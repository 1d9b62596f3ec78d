//! An engine that takes one bit of each import in wrongly: what the schedules must find, or they find nothing.

use std::sync::Arc;

use mainstay_engine_abi::sdk::{Info, LeaseChange, Pin, Request, Stats};

use crate::engine::{Answer, Engine, KvImport};

/// See the module.
pub(super) struct Bent(pub(super) Arc<dyn Engine>);

impl Engine for Bent {
    fn info(&self) -> Info {
        self.0.info()
    }

    fn caps(&self) -> u64 {
        self.0.caps()
    }

    fn name(&self) -> String {
        self.0.name()
    }

    fn stats(&self) -> Answer<'_, Stats> {
        self.0.stats()
    }

    fn submit(&self, request: Request) -> Answer<'_, ()> {
        self.0.submit(request)
    }

    fn cancel(&self, id: u64) {
        self.0.cancel(id);
    }

    fn pin(&self, pin: Pin) -> Answer<'_, ()> {
        self.0.pin(pin)
    }

    fn unpin(&self, op_id: u64, pin_id: u128) -> Answer<'_, ()> {
        self.0.unpin(op_id, pin_id)
    }

    fn kv_snapshot(&self, op_id: u64) -> Answer<'_, ()> {
        self.0.kv_snapshot(op_id)
    }

    fn lease(&self, change: LeaseChange) -> Answer<'_, ()> {
        self.0.lease(change)
    }

    fn kv_export(&self, blocks: Vec<u128>) -> Answer<'_, Vec<u8>> {
        self.0.kv_export(blocks)
    }

    fn kv_import(&self, mut import: KvImport) -> Answer<'_, u32> {
        if let Some(byte) = import.bytes.get_mut(1) {
            *byte ^= 0x40;
        }
        self.0.kv_import(import)
    }

    fn stop(&self) {
        self.0.stop();
    }
}
