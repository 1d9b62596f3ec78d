//! The shims, driven through their C pointers as a host would: life of a request, refusals, panics.

use std::ptr;
use std::sync::Mutex;

use super::*;
use crate::raw::{ABI_MAJOR, ABI_MINOR, MseKv, MseOp, MseOut, OUT_FINAL, SAMPLING_SEED};
use crate::sdk::{Finish, Identity, KvEvent, OPS_MAX, Output, Pin, Request, Stats, entry_point};

/// Answers in `submit` itself; misbehaves for chosen token ids and ops.
struct Echo {
    lanes: Arc<Lanes>,
    seen: Mutex<Vec<Request>>,
}

impl Engine for Echo {
    const IDENTITY: Identity = Identity { vendor: "mainstay", name: "echo", version: "1" };
    const CAPS: u64 = caps::NAMESPACE | caps::KV_SNAPSHOT | caps::PIN;

    fn create(config: &str, lanes: Arc<Lanes>, log: HostLog) -> Result<Self, EngineError> {
        log.info("echo", config);
        match config {
            "panic" => panic!("no such {}", "luck"),
            "refuse" => Err(EngineError::exhausted("no memory", 9)),
            _ => Ok(Self { lanes, seen: Mutex::default() }),
        }
    }

    fn info(&self) -> Info {
        Info { vocab: 1000, context_tokens_max: 64, model: "echo".into(), ..Info::default() }
    }

    fn stats(&self) -> Stats {
        Stats { health: Health::Ok, epoch: 77, decode_tokens: 5, ..Stats::default() }
    }

    fn submit(&self, request: Request) -> Result<(), EngineError> {
        assert!(request.tokens[0] != 666, "told to panic");
        let Request { id, tokens, .. } = request.clone();
        self.seen.lock().unwrap().push(request);
        if tokens[0] == 13 {
            let finish = Some(Finish::Error { rc: -8, message: "unlucky".into() });
            self.lanes.output(Output { id, finish, ..Output::default() });
            return Ok(());
        }
        self.lanes.kv(KvEvent::Stored {
            namespace: 1,
            parent: 1,
            blocks: tokens.iter().map(|t| u128::from(*t)).collect(),
            tier: 0,
            snapshot: false,
        });
        self.lanes.output(Output { id, tokens, first: true, ..Output::default() });
        self.lanes.output(Output { id, finish: Some(Finish::Stop), ..Output::default() });
        Ok(())
    }

    fn cancel(&self, _id: u64) {}

    fn drain(&self, _timeout: Duration) -> Result<(), EngineError> {
        Ok(())
    }

    fn kv_snapshot(&self, op_id: u64) -> Result<(), EngineError> {
        self.lanes.begin_snapshot();
        self.lanes.op(op_id, 0, 0);
        Ok(())
    }

    fn pin(&self, pin: Pin) -> Result<(), EngineError> {
        assert_eq!(pin.blocks, [3_u128 << 64 | 4]);
        Ok(())
    }
}

/// An open engine, as a host holds it.
struct Held {
    vtable: &'static MseVtable,
    engine: *mut MseEngine,
}

fn host() -> MseHost {
    MseHost {
        h: MseHdr::of::<MseHost>(),
        abi_major: ABI_MAJOR,
        abi_minor: ABI_MINOR,
        ctx: ptr::null_mut(),
        log: None,
    }
}

fn open_vtable() -> &'static MseVtable {
    let mut vtable = ptr::null();
    // SAFETY: whole structs over the call; the vtable is static.
    unsafe {
        let rc = (entry_point::<Echo>().open)(&host(), &raw mut vtable, ptr::null_mut());
        assert_eq!(rc, OK);
        &*vtable
    }
}

fn create_with(config: &str) -> Result<Held, EngineError> {
    let vtable = open_vtable();
    let (mut engine, mut err) = (ptr::null_mut(), MseErr::empty());
    // SAFETY: whole structs over the call.
    let rc = unsafe {
        vtable.create.unwrap()(&host(), MseStr::of(config), &raw mut engine, &raw mut err)
    };
    if rc == OK {
        return Ok(Held { vtable, engine });
    }
    assert!(engine.is_null(), "outputs stay untouched on error");
    Err(crate::read::read_error(rc, &err))
}

impl Drop for Held {
    fn drop(&mut self) {
        // SAFETY: created by the vtable, destroyed once.
        unsafe { self.vtable.destroy.unwrap()(self.engine) }
    }
}

fn sampling() -> MseSampling {
    MseSampling {
        h: MseHdr::of::<MseSampling>(),
        temperature: 0.0,
        top_p: 1.0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        frequency_penalty: 0.0,
        presence_penalty: 0.0,
        top_k: 0,
        tokens_max: 8,
        tokens_min: 0,
        logprobs: 0,
        seed: 5,
        flags: SAMPLING_SEED,
        _reserved: 0,
        stop_tokens: ptr::null(),
        stop_tokens_len: 0,
    }
}

use crate::raw::{MseGuided, MseRange, MseSampling};
use crate::sdk::{Guided, GuidedKind};

fn request<'a>(id: u64, tokens: &'a [u32], sampling: &'a MseSampling) -> MseRequest {
    MseRequest {
        h: MseHdr::of::<MseRequest>(),
        id,
        trace: 1.into(),
        namespace_id: (7_u128 << 64).into(),
        tokens: tokens.as_ptr(),
        tokens_len: tokens.len() as u64,
        sampled_before: 0,
        priority: -1,
        sampling,
        ranges: ptr::null(),
        ranges_len: 0,
        expected_output_tokens: 0,
        _reserved: 0,
        guided: ptr::null(),
        leases: ptr::null(),
        leases_len: 0,
    }
}

fn guided(kind: u32, spec: &[u8]) -> MseGuided {
    let spec = MseStr { ptr: spec.as_ptr(), len: spec.len() as u64 };
    MseGuided { h: MseHdr::of::<MseGuided>(), kind, _reserved: 0, spec }
}

#[test]
fn a_form_is_read_whole_or_refused() {
    let (good, one) = (sampling(), [1_u32]);
    let base = request(1, &one, &good);
    let info = Info { vocab: 10, context_tokens_max: 10, ..Info::default() };
    let read = |form: &MseGuided| {
        let request = MseRequest { guided: form, ..base };
        // SAFETY: whole structs that outlive the call.
        unsafe { decode::request(&raw const request, &info) }.map(|request| request.guided)
    };
    let form = |kind, spec: &str| Some(Guided { kind, spec: spec.to_owned() });
    assert_eq!(read(&guided(1, b"{}")).unwrap(), form(GuidedKind::JsonSchema, "{}"));
    assert_eq!(read(&guided(2, b"a+")).unwrap(), form(GuidedKind::Regex, "a+"));
    assert_eq!(read(&guided(3, b"start: \"a\"")).unwrap(), form(GuidedKind::Lark, "start: \"a\""));

    let endless = MseStr { ptr: one.as_ptr().cast(), len: limits::GUIDED_BYTES_MAX + 1 };
    let endless = MseGuided { spec: endless, ..guided(1, b"{}") };
    for (form, code) in [
        (guided(1, b""), Code::Invalid),
        (guided(1, b"\xff"), Code::Invalid),
        (endless, Code::Invalid),
        (guided(0, b"{}"), Code::TooNew),
        (guided(4, b"{}"), Code::TooNew),
        (MseGuided { _reserved: 1, ..guided(1, b"{}") }, Code::TooNew),
    ] {
        assert_eq!(read(&form).unwrap_err().rc, code, "{form:?}");
    }
    let held = create_with("{}").unwrap();
    let form = guided(1, b"{}");
    let request = MseRequest { guided: &raw const form, ..base };
    let refused = held.submit(&request).unwrap_err();
    assert_eq!(refused.rc, Code::Unimplemented, "an engine that says it cannot gets none");
}

impl Held {
    fn submit(&self, request: &MseRequest) -> Result<(), EngineError> {
        let mut err = MseErr::empty();
        // SAFETY: a live engine and whole structs.
        match unsafe { self.vtable.submit.unwrap()(self.engine, request, &raw mut err) } {
            OK => Ok(()),
            rc => Err(crate::read::read_error(rc, &err)),
        }
    }

    fn wait(&self, lane: u32) -> i32 {
        // SAFETY: a live engine.
        unsafe { self.vtable.wait.unwrap()(self.engine, lane, 1000) }
    }

    /// Polls one lane and hands the batch to `see`.
    fn poll<T>(&self, lane: u32, see: impl FnOnce(&MseBatch) -> T) -> T {
        let mut taken = batch::empty(99);
        // SAFETY: a live engine; the views are used before the release only.
        unsafe {
            let rc =
                self.vtable.poll.unwrap()(self.engine, lane, 100, &raw mut taken, ptr::null_mut());
            assert_eq!(rc, OK);
            let seen = see(&taken);
            let release = self.vtable.batch_release.unwrap();
            release(self.engine, &raw mut taken);
            assert!(taken.opaque.is_null() && taken.items.is_null());
            release(self.engine, &raw mut taken);
            seen
        }
    }

    fn stats(&self) -> MseStats {
        // SAFETY: all zero is a valid mse_stats; a live engine.
        unsafe {
            let mut stats: MseStats = std::mem::zeroed();
            stats.h = MseHdr::of::<MseStats>();
            assert_eq!(
                self.vtable.stats.unwrap()(self.engine, &raw mut stats, ptr::null_mut()),
                OK
            );
            stats
        }
    }
}

#[test]
fn a_request_goes_in_and_its_tokens_events_and_end_come_out() {
    let held = create_with("{}").unwrap();
    let sampling = sampling();
    assert_eq!(held.wait(LANE_OUT), Code::NotFound.rc());
    held.submit(&request(42, &[1, 2, 3], &sampling)).unwrap();
    assert_eq!(held.wait(LANE_OUT), OK);
    held.poll(LANE_OUT, |batch| {
        assert_eq!((batch.len, batch.first_seq, batch.stride), (2, 0, 64));
        // SAFETY: the batch says so.
        let (outs, tokens) = unsafe {
            (
                std::slice::from_raw_parts(batch.items.cast::<MseOut>(), 2),
                std::slice::from_raw_parts(batch.tokens, batch.tokens_len as usize),
            )
        };
        assert_eq!((outs[0].id, outs[0].token_len, tokens), (42, 3, [1, 2, 3].as_slice()));
        assert_eq!((outs[0].flags, outs[1].flags), (crate::raw::OUT_FIRST, OUT_FINAL));
    });
    held.poll(LANE_OUT, |batch| assert_eq!(batch.len, 0));
    held.poll(LANE_KV, |batch| {
        // SAFETY: the batch holds one item.
        let item = unsafe { &*batch.items.cast::<MseKv>() };
        assert_eq!((batch.len, item.block_len, u128::from(item.parent)), (1, 3, 1));
    });
    let stats = held.stats();
    assert_eq!((stats.epoch, stats.kv_seq, stats.decode_tokens), (0, 1, 5), "seq is the lane's");
    assert_eq!(stats.health, HEALTH_OK);
}

#[test]
fn an_error_end_carries_its_code_and_words() {
    let held = create_with("{}").unwrap();
    held.submit(&request(1, &[13], &sampling())).unwrap();
    held.poll(LANE_OUT, |batch| {
        // SAFETY: the batch holds one item.
        let item = unsafe { &*batch.items.cast::<MseOut>() };
        assert_eq!((item.finish, item.rc, item.flags), (crate::raw::FINISH_ERROR, -8, OUT_FINAL));
        assert_eq!((item.msg_len, batch.bytes_len), (7, 7));
    });
}

#[test]
fn a_request_that_can_not_be_is_refused_before_the_engine_sees_it() {
    let held = create_with("{}").unwrap();
    let good = sampling();
    let long = [1_u32; 65];
    let nan = MseSampling { temperature: f32::NAN, ..good };
    let cold = MseSampling { temperature: -1.0, ..good };
    let wide = MseSampling { top_p: 1.5, ..good };
    let negative = MseSampling { top_k: -1, ..good };
    let nothing = MseSampling { tokens_max: 0, ..good };
    let upside_down = MseSampling { tokens_min: 9, ..good };
    let flagged = MseSampling { flags: 4, ..good };
    let stops = MseSampling { stop_tokens: ptr::null(), stop_tokens_len: 1, ..good };
    let endless = MseSampling { stop_tokens: long.as_ptr(), stop_tokens_len: u64::MAX, ..good };
    let range =
        MseRange { start: 4, end: 4, priority: 0, after: 0, kind: 0, lease: 0, duration_ms: 0 };
    let loud = MseRange { end: 5, priority: 101, ..range };
    let one = [1_u32];
    let base = request(1, &one, &good);
    let refused = [
        request(1, &[], &good),
        request(1, &long, &good),
        request(1, &[1000], &good),
        MseRequest { tokens: ptr::null(), ..base },
        MseRequest { tokens_len: u64::MAX, ..base },
        MseRequest { sampled_before: 2, ..base },
        MseRequest { sampling: ptr::null(), ..base },
        request(1, &one, &nan),
        request(1, &one, &cold),
        request(1, &one, &wide),
        request(1, &one, &negative),
        request(1, &one, &nothing),
        request(1, &one, &upside_down),
        request(1, &one, &stops),
        request(1, &one, &endless),
        MseRequest { ranges: &raw const range, ranges_len: 1, ..base },
        MseRequest { ranges: &raw const loud, ranges_len: 1, ..base },
        MseRequest { ranges: &raw const range, ranges_len: 1 << 40, ..base },
    ];
    for (n, request) in refused.iter().enumerate() {
        assert_eq!(held.submit(request).unwrap_err().rc, Code::Invalid, "case {n}");
    }
    for request in [MseRequest { _reserved: 1, ..base }, request(1, &one, &flagged)] {
        assert_eq!(held.submit(&request).unwrap_err().rc, Code::TooNew);
    }
    held.poll(LANE_OUT, |batch| assert_eq!(batch.len, 0));
    let submit = held.vtable.submit.unwrap();
    // SAFETY: null pointers are refused unread.
    unsafe {
        assert_eq!(submit(held.engine, ptr::null(), ptr::null_mut()), Code::Invalid.rc());
        assert_eq!(submit(ptr::null_mut(), &raw const base, ptr::null_mut()), Code::Invalid.rc());
        let (poll, info) = (held.vtable.poll.unwrap(), held.vtable.info.unwrap());
        let invalid = Code::Invalid.rc();
        assert_eq!(poll(held.engine, 0, 1, ptr::null_mut(), ptr::null_mut()), invalid);
        let mut taken = batch::empty(9);
        assert_eq!(poll(held.engine, 3, 1, &raw mut taken, ptr::null_mut()), invalid);
        assert_eq!(taken.lane, 9, "outputs stay untouched on error");
        assert_eq!(info(held.engine, ptr::null_mut(), ptr::null_mut()), invalid);
        assert_eq!(held.vtable.wait.unwrap()(held.engine, 3, 0), invalid);
        held.vtable.batch_release.unwrap()(held.engine, ptr::null_mut());
        held.vtable.destroy.unwrap()(ptr::null_mut());
    }
}

#[test]
fn a_panic_is_an_internal_error_and_the_end_of_the_engine() {
    let held = create_with("{}").unwrap();
    held.submit(&request(1, &[1], &sampling())).unwrap();
    let error = held.submit(&request(2, &[666], &sampling())).unwrap_err();
    assert_eq!((error.rc, error.fatal), (Code::Internal, true));
    assert!(error.message.contains("told to panic"), "{}", error.message);
    assert_eq!(held.stats().health, HEALTH_FATAL);
    let error = held.submit(&request(3, &[1], &sampling())).unwrap_err();
    assert_eq!((error.rc, error.fatal), (Code::Unavailable, true));
    held.poll(LANE_OUT, |batch| assert_eq!(batch.len, 2, "what was there can still be read"));
}

#[test]
fn create_tells_why_it_failed() {
    let error = create_with("panic").err().unwrap();
    assert!(error.message.contains("no such luck") && error.fatal);
    let error = create_with("refuse").err().unwrap();
    assert_eq!((error.rc, error.retry_after_ms), (Code::Exhausted, 9));
    let error = create_with(&" ".repeat(1 << 21)).err().unwrap();
    assert_eq!(error.rc, Code::Invalid);
}

#[test]
fn a_host_of_another_version_is_refused() {
    let mut vtable = ptr::null();
    let mut err = MseErr::empty();
    let other = MseHost { abi_major: 2, ..host() };
    // SAFETY: whole structs over the call.
    let rc =
        unsafe { (entry_point::<Echo>().open)(&raw const other, &raw mut vtable, &raw mut err) };
    assert_eq!(rc, Code::TooNew.rc());
    assert!(vtable.is_null());
    assert!(crate::read::read_error(rc, &err).message.contains("1.0, the host 2.0"));
}

#[test]
fn operations_are_counted_in_and_out() {
    let held = create_with("{}").unwrap();
    let (snapshot, unpin) = (held.vtable.kv_snapshot.unwrap(), held.vtable.unpin.unwrap());
    // SAFETY: a live engine; null errors are allowed.
    unsafe {
        for op in 0..OPS_MAX as u64 {
            let rc = unpin(held.engine, op, 1.into(), ptr::null_mut());
            assert_eq!(rc, Code::Unimplemented.rc(), "a refused operation is not counted");
        }
        for op in 0..OPS_MAX as u64 {
            assert_eq!(snapshot(held.engine, op, ptr::null_mut()), OK);
        }
        assert_eq!(snapshot(held.engine, 0, ptr::null_mut()), Code::Exhausted.rc());
    }
    held.poll(LANE_OP, |batch| {
        // SAFETY: the batch holds 100 items.
        let ops = unsafe { std::slice::from_raw_parts(batch.items.cast::<MseOp>(), 100) };
        assert_eq!((batch.len, ops[99].op_id), (100, 99));
    });
    // SAFETY: as above.
    unsafe { assert_eq!(snapshot(held.engine, 0, ptr::null_mut()), OK) };
    held.poll(LANE_KV, |batch| {
        assert_eq!((batch.len, batch.epoch, batch.first_seq), (1, OPS_MAX as u64 + 1, 0));
    });
}

#[test]
fn a_pin_is_judged_and_passed_on() {
    let held = create_with("{}").unwrap();
    let block = MseU128 { lo: 4, hi: 3 };
    let good = MsePin {
        h: MseHdr::of::<MsePin>(),
        op_id: 1,
        pin_id: 2.into(),
        blocks: &raw const block,
        blocks_len: 1,
        ttl_ms: 10,
        priority: 100,
        _reserved: 0,
    };
    let pin = |value: &MsePin| {
        // SAFETY: a live engine and whole structs.
        unsafe { held.vtable.pin.unwrap()(held.engine, value, ptr::null_mut()) }
    };
    assert_eq!(pin(&good), OK);
    for bad in [
        MsePin { ttl_ms: 0, ..good },
        MsePin { blocks_len: 0, ..good },
        MsePin { blocks_len: u64::MAX, ..good },
        MsePin { priority: 101, ..good },
    ] {
        assert_eq!(pin(&bad), Code::Invalid.rc());
    }
}

#[test]
fn optional_slots_are_null_without_their_capability() {
    struct Bare;
    impl Engine for Bare {
        const IDENTITY: Identity = Identity { vendor: "v", name: "n", version: "0" };
        const CAPS: u64 = caps::NAMESPACE;
        fn create(_: &str, _: Arc<Lanes>, _: HostLog) -> Result<Self, EngineError> {
            Ok(Self)
        }
        fn info(&self) -> Info {
            Info::default()
        }
        fn stats(&self) -> Stats {
            Stats::default()
        }
        fn submit(&self, _: Request) -> Result<(), EngineError> {
            Ok(())
        }
        fn cancel(&self, _: u64) {}
        fn drain(&self, _: Duration) -> Result<(), EngineError> {
            Ok(())
        }
    }
    let bare = vtable::<Bare>();
    assert!(bare.pin.is_none() && bare.unpin.is_none() && bare.kv_snapshot.is_none());
    assert!(open_vtable().pin.is_some() && open_vtable().kv_snapshot.is_some());
}

#[test]
fn a_full_output_lane_admits_no_request() {
    let held = create_with("{}").unwrap();
    let sampling = sampling();
    let mut accepted = 0;
    let error = loop {
        match held.submit(&request(accepted, &[1], &sampling)) {
            Ok(()) => accepted += 1,
            Err(error) => break error,
        }
    };
    assert_eq!((error.rc, error.retry_after_ms), (Code::Exhausted, OUT_FULL_RETRY_MS));
    assert_eq!(accepted as usize, crate::sdk::OUT_ITEMS_SOFT / 2);
    held.poll(LANE_OUT, |batch| assert_eq!(batch.len, 100));
    held.submit(&request(1, &[1], &sampling)).unwrap();
}
