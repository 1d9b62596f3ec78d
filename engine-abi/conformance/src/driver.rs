//! An engine behind its raw C functions, driven rightly and wrongly.
//!
//! The worker's host refuses most wrong calls before they reach an engine; the kit has to make them. So it holds
//! the vtable itself. Where it calls rightly it checks as the host does: batches decoded strictly, sequence numbers
//! followed, every batch released.

use std::path::PathBuf;
use std::ptr::{self, NonNull};
use std::time::Duration;

use mainstay_engine_abi::raw::{
    HEALTH_DRAINING, HEALTH_FATAL, HEALTH_OK, HEALTH_STARTING, LANE_KV, LANE_OP, LANE_OUT,
    MseBatch, MseEngine, MseErr, MseExport, MseHdr, MseImport, MseInfo, MseLease, MsePin,
    MseRequest, MseStats, MseStr, MseVtable, OK,
};
use mainstay_engine_abi::read;
use mainstay_engine_abi::sdk::{
    Code, EngineError, EntryPoint, Info, KvEvent, LeaseChange, OpDone, Output, Pin, Request, caps,
};
use mainstay_engine_host::kit::{self, LogTarget};

use crate::Stop;

/// Where the engine is.
#[derive(Clone, Debug)]
pub enum Subject {
    /// A library.
    Library(PathBuf),
    /// Linked into this program, under a name.
    Linked(String, EntryPoint),
}

impl Subject {
    /// Its two functions.
    pub(crate) fn entry(&self) -> Result<EntryPoint, Stop> {
        match self {
            Self::Linked(_, entry) => Ok(*entry),
            Self::Library(path) => kit::load(path).map_err(|error| Stop::Fault(error.to_string())),
        }
    }

    /// How reports call it.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Library(path) => path.display().to_string(),
            Self::Linked(name, _) => name.clone(),
        }
    }
}

const STRING_BYTES_MAX: u64 = 1 << 16;
const POLL_ITEMS: u32 = 256;

/// What a lane gave.
pub(crate) enum Polled {
    Outputs(Vec<Output>),
    Events { reset: bool, events: Vec<KvEvent> },
    Ops(Vec<OpDone>),
    Nothing,
}

/// What `stats` says, as it came.
pub(crate) type Stats = MseStats;

#[derive(Clone, Copy, Default)]
struct Cursor {
    epoch: u64,
    next_seq: u64,
}

/// One engine.
pub(crate) struct Driver {
    pub(crate) vtable: MseVtable,
    engine: NonNull<MseEngine>,
    pub(crate) info: Info,
    pub(crate) caps: u64,
    lanes: [Cursor; 3],
}

// SAFETY: the header allows every slot from any thread, one at a time per lane for `wait` and `poll`; the driver is
// only shared by cases that keep to that.
unsafe impl Send for Driver {}
// SAFETY: as above; the lanes' cursors need `&mut`.
unsafe impl Sync for Driver {}

/// Lines of the engine go to standard error, where the runner finds the last one if it dies.
fn log() -> &'static LogTarget {
    static TARGET: std::sync::OnceLock<&'static LogTarget> = std::sync::OnceLock::new();
    TARGET.get_or_init(|| {
        LogTarget::leak(Box::new(|level, target, text| eprintln!("{level:?} {target}: {text}")))
    })
}

/// The vtable behind an entry point; the magic is judged first.
pub(crate) fn open(subject: &Subject) -> Result<MseVtable, Stop> {
    let entry = subject.entry()?;
    kit::identity(&entry, &subject.name()).map_err(|error| Stop::Fault(error.to_string()))?;
    let (host, mut err, mut vtable) = (log().host(), MseErr::empty(), ptr::null());
    // SAFETY: whole structs, borrowed for the call; the log target lives for ever.
    let rc = unsafe { (entry.open)(&raw const host, &raw mut vtable, &raw mut err) };
    checked("open", rc, &err)?;
    // SAFETY: the engine vouches for the vtable it returned, which lives as long as the library.
    let vtable = unsafe { read::read_struct(vtable) };
    vtable.map_err(|error| Stop::Fault(format!("its vtable: {error}")))
}

/// `create` as it is: the code, what was written to the out pointer, and the error.
pub(crate) fn create_raw(vtable: &MseVtable, config: &[u8]) -> (i32, *mut MseEngine, MseErr) {
    let Some(create) = vtable.create else {
        return (Code::Unimplemented.rc(), ptr::null_mut(), MseErr::empty());
    };
    let (host, mut err, mut engine) = (log().host(), MseErr::empty(), untouched());
    let config = MseStr { ptr: config.as_ptr(), len: config.len() as u64 };
    // SAFETY: whole structs, borrowed for the call.
    let rc = unsafe { create(&raw const host, config, &raw mut engine, &raw mut err) };
    (rc, engine, err)
}

/// What the out pointer of `create` holds before the call; a failing call has to leave it.
pub(crate) fn untouched() -> *mut MseEngine {
    ptr::without_provenance_mut(0x5afe_5afe_5afe_5af0)
}

fn checked(what: &str, rc: i32, err: &MseErr) -> Result<(), Stop> {
    if rc == OK {
        return Ok(());
    }
    Err(Stop::Fault(format!("{what} failed: {}", read::read_error(rc, err))))
}

fn missing(name: &str) -> String {
    format!("its {name} is null")
}

impl Driver {
    /// Creates an engine with the case's configuration.
    pub(crate) fn create(context: &crate::Context) -> Result<Self, Stop> {
        let vtable = open(&context.subject)?;
        Self::create_from(vtable, context.config_json.as_bytes())
    }

    pub(crate) fn create_from(vtable: MseVtable, config: &[u8]) -> Result<Self, Stop> {
        let (rc, engine, err) = create_raw(&vtable, config);
        if rc == Code::Exhausted.rc() {
            let error = read::read_error(rc, &err);
            return Err(Stop::NotOffered(format!("no room for one more engine: {error}")));
        }
        checked("create", rc, &err)?;
        let engine = NonNull::new(engine)
            .filter(|engine| engine.as_ptr() != untouched())
            .ok_or_else(|| "create gave no engine".to_owned())?;
        let mut driver =
            Self { vtable, engine, info: Info::default(), caps: 0, lanes: Default::default() };
        let (rc, raw, err) = driver.info_raw(size_of::<MseInfo>());
        checked("info", rc, &err)?;
        driver.caps = raw.caps;
        // SAFETY: the engine vouches for its strings, which live as long as it does.
        let text = |text, what| unsafe {
            read::string(text, STRING_BYTES_MAX, what).map(str::to_owned).map_err(|e| e.to_string())
        };
        driver.info = Info {
            block_tokens: raw.block_tokens,
            vocab: raw.vocab,
            context_tokens_max: raw.context_tokens_max,
            requests_max: raw.requests_max,
            blocks_total: raw.blocks_total,
            block_bytes: raw.block_bytes,
            model: text(raw.model, "its model's name")?,
            model_dir: text(raw.model_dir, "its model's folder")?,
            device: text(raw.device, "its device's name")?,
            kv_layout: raw.kv_layout,
        };
        Ok(driver)
    }

    /// Whether all of these capabilities are claimed; else the case is not offered.
    pub(crate) fn needs(&self, bits: u64, names: &str) -> Result<(), Stop> {
        if self.caps & bits == bits { Ok(()) } else { Err(Stop::NotOffered(format!("no {names}"))) }
    }

    /// `info` by a caller that knows `size` bytes of the struct; what lies beyond was filled with `0xa5` before.
    pub(crate) fn info_raw(&self, size: usize) -> (i32, MseInfo, MseErr) {
        // SAFETY: integers, and pointers that are not followed: all bytes are a value.
        let mut out: MseInfo = unsafe { std::mem::zeroed() };
        let start = (&raw mut out).cast::<u8>();
        // SAFETY: within the struct.
        unsafe { start.add(size).write_bytes(0xa5, size_of::<MseInfo>() - size) };
        out.h = MseHdr { size: size as u32, flags: 0, next: ptr::null() };
        let mut err = MseErr::empty();
        let Some(info) = self.vtable.info else { return (Code::Unimplemented.rc(), out, err) };
        // SAFETY: a live engine; the struct is at least as long as it says.
        let rc = unsafe { info(self.engine.as_ptr(), &raw mut out, &raw mut err) };
        (rc, out, err)
    }

    pub(crate) fn stats(&self) -> Result<Stats, Stop> {
        let stats = self.vtable.stats.ok_or_else(|| missing("stats"))?;
        // SAFETY: integers: all zero bytes are a value.
        let (mut out, mut err): (MseStats, _) = (unsafe { std::mem::zeroed() }, MseErr::empty());
        out.h = MseHdr::of::<MseStats>();
        // SAFETY: a live engine and whole structs.
        let rc = unsafe { stats(self.engine.as_ptr(), &raw mut out, &raw mut err) };
        checked("stats", rc, &err)?;
        if ![HEALTH_STARTING, HEALTH_OK, HEALTH_DRAINING, HEALTH_FATAL].contains(&out.health) {
            return Err(format!("stats says health {}", out.health).into());
        }
        Ok(out)
    }

    /// Submits what `change` makes of the request's C form.
    pub(crate) fn submit_raw(
        &self,
        request: &Request,
        change: impl FnOnce(&mut MseRequest),
    ) -> Result<(), EngineError> {
        let Some(submit) = self.vtable.submit else {
            return Err(EngineError::unimplemented(missing("submit")));
        };
        let mut err = MseErr::empty();
        let rc = kit::request(request, |raw| {
            let mut raw = *raw;
            change(&mut raw);
            // SAFETY: a live engine; what the request points at lives for the call.
            unsafe { submit(self.engine.as_ptr(), &raw const raw, &raw mut err) }
        });
        if rc == OK { Ok(()) } else { Err(read::read_error(rc, &err)) }
    }

    /// A request behind a struct that is longer than the header's, as a later caller has it, with `tail` there.
    pub(crate) fn submit_longer(&self, request: &Request, tail: u64) -> Result<(), EngineError> {
        #[repr(C)]
        struct Longer {
            request: MseRequest,
            tail: u64,
        }
        let Some(submit) = self.vtable.submit else {
            return Err(EngineError::unimplemented(missing("submit")));
        };
        let mut err = MseErr::empty();
        let rc = kit::request(request, |raw| {
            let mut longer = Longer { request: *raw, tail };
            longer.request.h.size = size_of::<Longer>() as u32;
            // SAFETY: a live engine; the struct is as long as it says.
            unsafe { submit(self.engine.as_ptr(), (&raw const longer).cast(), &raw mut err) }
        });
        if rc == OK { Ok(()) } else { Err(read::read_error(rc, &err)) }
    }

    pub(crate) fn cancel(&self, id: u64) -> i32 {
        // SAFETY: a live engine.
        self.vtable.cancel.map_or(OK, |cancel| unsafe { cancel(self.engine.as_ptr(), id) })
    }

    pub(crate) fn drain(&self, timeout: Duration) -> Result<(), EngineError> {
        let Some(drain) = self.vtable.drain else {
            return Err(EngineError::unimplemented(missing("drain")));
        };
        let mut err = MseErr::empty();
        // SAFETY: a live engine and a whole struct.
        let rc = unsafe { drain(self.engine.as_ptr(), timeout.as_micros() as u64, &raw mut err) };
        if rc == OK { Ok(()) } else { Err(read::read_error(rc, &err)) }
    }

    pub(crate) fn kv_snapshot(&self, op_id: u64) -> Result<(), EngineError> {
        let Some(snapshot) = self.vtable.kv_snapshot else {
            return Err(EngineError::unimplemented(missing("kv_snapshot")));
        };
        let mut err = MseErr::empty();
        // SAFETY: a live engine and a whole struct.
        let rc = unsafe { snapshot(self.engine.as_ptr(), op_id, &raw mut err) };
        if rc == OK { Ok(()) } else { Err(read::read_error(rc, &err)) }
    }

    /// Changes a lease, after `change` has had its hands on what goes over.
    pub(crate) fn lease(
        &self,
        lease: &LeaseChange,
        change: impl FnOnce(&mut MseLease),
    ) -> Result<(), EngineError> {
        let Some(call) = self.vtable.lease else {
            return Err(EngineError::unimplemented(missing("lease")));
        };
        let mut err = MseErr::empty();
        let rc = kit::lease(lease, |raw| {
            let mut raw = *raw;
            change(&mut raw);
            // SAFETY: a live engine; the lease's ranges live for the call.
            unsafe { call(self.engine.as_ptr(), &raw const raw, &raw mut err) }
        });
        if rc == OK { Ok(()) } else { Err(read::read_error(rc, &err)) }
    }

    pub(crate) fn pin(
        &self,
        pin: &Pin,
        change: impl FnOnce(&mut MsePin),
    ) -> Result<(), EngineError> {
        let Some(call) = self.vtable.pin else {
            return Err(EngineError::unimplemented(missing("pin")));
        };
        let mut err = MseErr::empty();
        let rc = kit::pin(pin, |raw| {
            let mut raw = *raw;
            change(&mut raw);
            // SAFETY: a live engine; the pin's blocks live for the call.
            unsafe { call(self.engine.as_ptr(), &raw const raw, &raw mut err) }
        });
        if rc == OK { Ok(()) } else { Err(read::read_error(rc, &err)) }
    }

    pub(crate) fn unpin(&self, op_id: u64, pin_id: u128) -> Result<(), EngineError> {
        let Some(unpin) = self.vtable.unpin else {
            return Err(EngineError::unimplemented(missing("unpin")));
        };
        let mut err = MseErr::empty();
        // SAFETY: a live engine and a whole struct.
        let rc = unsafe { unpin(self.engine.as_ptr(), op_id, pin_id.into(), &raw mut err) };
        if rc == OK { Ok(()) } else { Err(read::read_error(rc, &err)) }
    }

    /// `kv_export` as it is: what the struct points at must live until the op has ended.
    pub(crate) fn kv_export(&self, export: &MseExport) -> Result<(), EngineError> {
        let Some(call) = self.vtable.kv_export else {
            return Err(EngineError::unimplemented(missing("kv_export")));
        };
        let mut err = MseErr::empty();
        // SAFETY: a live engine; the cases keep the bytes until the op ends, or end the process.
        let rc = unsafe { call(self.engine.as_ptr(), export, &raw mut err) };
        if rc == OK { Ok(()) } else { Err(read::read_error(rc, &err)) }
    }

    /// `kv_import` as it is: as above.
    pub(crate) fn kv_import(&self, import: &MseImport) -> Result<(), EngineError> {
        let Some(call) = self.vtable.kv_import else {
            return Err(EngineError::unimplemented(missing("kv_import")));
        };
        let mut err = MseErr::empty();
        // SAFETY: as above.
        let rc = unsafe { call(self.engine.as_ptr(), import, &raw mut err) };
        if rc == OK { Ok(()) } else { Err(read::read_error(rc, &err)) }
    }

    /// `wait` as it is.
    pub(crate) fn wait(&self, lane: u32, timeout: Duration) -> i32 {
        self.vtable.wait.map_or(Code::Unimplemented.rc(), |wait| {
            // SAFETY: a live engine; the kit has one thread per lane.
            unsafe { wait(self.engine.as_ptr(), lane, timeout.as_micros() as u64) }
        })
    }

    /// What is in a lane now.
    pub(crate) fn poll(&mut self, lane: u32) -> Result<Polled, Stop> {
        let poll = self.vtable.poll.ok_or_else(|| missing("poll"))?;
        let release = self.vtable.batch_release.ok_or_else(|| missing("batch_release"))?;
        // SAFETY: integers, and pointers that are not followed: all zero bytes are a value.
        let (mut batch, mut err): (MseBatch, _) = (unsafe { std::mem::zeroed() }, MseErr::empty());
        batch.h = MseHdr::of::<MseBatch>();
        let engine = self.engine.as_ptr();
        // SAFETY: a live engine, the lane's only thread, and whole structs.
        let rc = unsafe { poll(engine, lane, POLL_ITEMS, &raw mut batch, &raw mut err) };
        if rc == Code::Unavailable.rc() {
            return Ok(Polled::Nothing);
        }
        checked("poll", rc, &err)?;
        let polled = if batch.len == 0 { Ok(Polled::Nothing) } else { self.decode(lane, &batch) };
        // SAFETY: the batch that was just polled, released once; nothing of it is looked at any more.
        unsafe { release(engine, &raw mut batch) };
        polled
    }

    fn decode(&mut self, lane: u32, batch: &MseBatch) -> Result<Polled, Stop> {
        if batch.lane != lane || batch.len > POLL_ITEMS {
            let (len, of) = (batch.len, batch.lane);
            return Err(format!("lane {lane} gave {len} items of lane {of}").into());
        }
        let cursor = &mut self.lanes[lane as usize];
        let follows = (batch.epoch, batch.first_seq) == (cursor.epoch, cursor.next_seq);
        let begins = lane == LANE_KV && batch.epoch > cursor.epoch && batch.first_seq == 0;
        if !follows && !begins {
            let (at, found) = ((cursor.epoch, cursor.next_seq), (batch.epoch, batch.first_seq));
            return Err(format!("lane {lane} went from {at:?} to {found:?} (R8)").into());
        }
        *cursor = Cursor { epoch: batch.epoch, next_seq: batch.first_seq + u64::from(batch.len) };
        // SAFETY: between poll and release.
        unsafe {
            match lane {
                LANE_OUT => Ok(Polled::Outputs(kit::outputs(batch)?)),
                LANE_OP => Ok(Polled::Ops(kit::ops(batch)?)),
                _ => {
                    let items = kit::kv(batch)?;
                    if begins && !items.reset {
                        return Err("a new epoch does not begin with a RESET (R8)"
                            .to_owned()
                            .into());
                    }
                    Ok(Polled::Events { reset: items.reset, events: items.events })
                }
            }
        }
    }

    /// Whether `pin` and its kin agree with the capabilities; the mandatory slots are there.
    pub(crate) fn check_slots(&self) -> Result<(), String> {
        let v = &self.vtable;
        let mandatory = [
            ("create", v.create.is_some()),
            ("destroy", v.destroy.is_some()),
            ("info", v.info.is_some()),
            ("stats", v.stats.is_some()),
            ("submit", v.submit.is_some()),
            ("cancel", v.cancel.is_some()),
            ("wait", v.wait.is_some()),
            ("poll", v.poll.is_some()),
            ("batch_release", v.batch_release.is_some()),
            ("drain", v.drain.is_some()),
        ];
        if let Some((name, _)) = mandatory.iter().find(|slot| !slot.1) {
            return Err(missing(name));
        }
        let optional = [
            ("kv_snapshot", v.kv_snapshot.is_some(), caps::KV_SNAPSHOT),
            ("pin", v.pin.is_some(), caps::PIN),
            ("unpin", v.unpin.is_some(), caps::PIN),
            ("kv_export", v.kv_export.is_some(), caps::TRANSFER),
            ("kv_import", v.kv_import.is_some(), caps::TRANSFER),
            ("lease", v.lease.is_some(), caps::LEASE),
        ];
        for (name, there, bit) in optional {
            if there != (self.caps & bit != 0) {
                let (is, claims) = if there { ("there", "not") } else { ("null", "yes") };
                return Err(format!("{name} is {is}, its capability says {claims}"));
            }
        }
        if self.caps & !caps::KNOWN != 0 {
            return Err(format!("unknown capabilities {:#x}", self.caps & !caps::KNOWN));
        }
        if self.caps & caps::NAMESPACE == 0 {
            return Err("a host takes no engine without NAMESPACE".into());
        }
        Ok(())
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if let Some(destroy) = self.vtable.destroy {
            // SAFETY: made by `create`; no other call runs, since this is the last owner.
            unsafe { destroy(self.engine.as_ptr()) };
        }
    }
}
