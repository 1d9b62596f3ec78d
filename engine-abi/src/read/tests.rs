//! Rule R2 in its corners: short, long, flagged, extended, null and misaligned structs.

use super::*;
use crate::raw::MseU128;

fn pin() -> MsePin {
    MsePin {
        h: MseHdr::of::<MsePin>(),
        op_id: 7,
        pin_id: MseU128 { lo: 1, hi: 2 },
        blocks: ptr::null(),
        blocks_len: 0,
        ttl_ms: 1000,
        priority: 50,
        _reserved: 0,
    }
}

#[repr(C)]
struct Longer {
    pin: MsePin,
    tail: u64,
}

fn read(pin: &MsePin) -> Result<MsePin, EngineError> {
    // SAFETY: the tests below only claim sizes that they back with memory.
    unsafe { read_struct(ptr::from_ref(pin)) }
}

fn code<T>(result: Result<T, EngineError>) -> Code {
    result.map(|_| ()).expect_err("refused").rc
}

#[test]
fn a_shorter_struct_reads_as_zero_beyond_its_end() {
    let mut short = pin();
    short.h.size = std::mem::offset_of!(MsePin, ttl_ms) as u32;
    let value = read(&short).unwrap();
    assert_eq!((value.op_id, value.ttl_ms, value.priority), (7, 0, 0));
    for size in [0, 4, 15, STRUCT_BYTES_MAX + 1, u32::MAX] {
        short.h.size = size;
        assert_eq!(code(read(&short)), Code::Invalid, "size {size}");
    }
}

#[test]
fn a_longer_struct_is_read_only_when_its_tail_is_zero() {
    let mut longer = Longer { pin: pin(), tail: 0 };
    longer.pin.h.size = size_of::<Longer>() as u32;
    let at = &raw const longer.pin;
    // SAFETY: the size is that of the whole struct behind the pointer.
    assert_eq!(unsafe { read_struct(at) }.unwrap().priority, 50);
    longer.tail = 1 << 63;
    let whole = (&raw const longer).cast::<MsePin>();
    // SAFETY: as above.
    assert_eq!(code(unsafe { read_struct(whole) }), Code::TooNew);
}

#[test]
fn only_critical_extensions_and_flags_are_refused() {
    let mut second = MseExt { size: 24, r#type: 9, flags: 0, _reserved: 0, next: ptr::null() };
    let first = MseExt { size: 24, r#type: 8, flags: 0, _reserved: 0, next: &raw const second };
    let mut value = pin();
    value.h.next = &raw const first;
    assert!(read(&value).is_ok());
    second.flags = EXT_CRITICAL;
    let first = MseExt { next: &raw const second, ..first };
    value.h.next = &raw const first;
    assert_eq!(code(read(&value)), Code::TooNew);
    let mut ring = MseExt { next: ptr::null(), ..first };
    ring.next = &raw const ring;
    value.h.next = &raw const ring;
    assert_eq!(code(read(&value)), Code::Invalid, "a ring ends");
    value.h.next = ptr::null();
    value.h.flags = 4;
    assert_eq!(code(read(&value)), Code::TooNew);
}

#[test]
fn pointers_and_lengths_are_judged_before_use() {
    // SAFETY: null and misaligned pointers are refused unread; the slices are real.
    unsafe {
        assert_eq!(code(read_struct::<MsePin>(ptr::null())), Code::Invalid);
        let odd = ptr::without_provenance::<MsePin>(0x1001);
        assert_eq!(code(read_struct(odd)), Code::Invalid);
        let tokens = [1_u32, 2, 3];
        assert_eq!(slice(tokens.as_ptr(), 3, 3, "tokens").unwrap(), &tokens);
        assert!(slice(ptr::null::<u32>(), 0, 3, "tokens").unwrap().is_empty());
        assert_eq!(code(slice(tokens.as_ptr(), 4, 3, "tokens")), Code::Invalid);
        assert_eq!(code(slice(tokens.as_ptr(), u64::MAX, 3, "tokens")), Code::Invalid);
        assert_eq!(code(slice(ptr::null::<u32>(), 1, 3, "tokens")), Code::Invalid);
        let bad = MseStr { ptr: [0xff_u8, 0xfe].as_ptr(), len: 2 };
        assert_eq!(code(string(bad, 10, "name")), Code::Invalid);
    }
}

#[test]
fn an_output_struct_is_filled_up_to_its_size_and_its_header_is_kept() {
    let mut out = pin();
    out.h.size = std::mem::offset_of!(MsePin, priority) as u32;
    let value = MsePin { op_id: 99, ttl_ms: 5, priority: 1, ..pin() };
    // SAFETY: the struct is larger than the size that it claims.
    unsafe { write_struct(&raw mut out, &value) }.unwrap();
    assert_eq!((out.op_id, out.ttl_ms, out.priority), (99, 5, 50), "no byte past the size");
    assert_eq!(out.h.size as usize, std::mem::offset_of!(MsePin, priority));
}

#[test]
fn an_error_is_cut_at_a_character_and_at_the_callers_size() {
    let error = EngineError::exhausted("ü".repeat(200), 30).fatal();
    let mut err = MseErr::empty();
    // SAFETY: a whole mse_err.
    unsafe { write_error(&raw mut err, &error) };
    let back = read_error(err.rc, &err);
    assert_eq!(back.message, "ü".repeat(118));
    assert_eq!((back.rc, back.retry_after_ms, back.fatal), (Code::Exhausted, 30, true));
    let mut small = MseErr { size: 23, ..MseErr::empty() };
    // SAFETY: larger than it claims.
    unsafe { write_error(&raw mut small, &error) };
    assert_eq!((small.msg_len, &small.msg[..4]), (2, "ü\0\0".as_bytes()));
    // SAFETY: null is allowed.
    unsafe { write_error(ptr::null_mut(), &error) };
    let lying = MseErr { msg_len: u32::MAX, ..MseErr::empty() };
    assert_eq!(read_error(-7, &lying).rc, Code::Internal);
}
