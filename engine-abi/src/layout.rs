//! The offset table of the mirror and the layout number made from it.
//!
//! The number is FNV-1a over every struct's name, size, and each field's name, offset and size. Names count, so that two
//! fields of one size which change places change the number too. It is computed at compile time; the header repeats it as
//! `MSE_LAYOUT` for engines in C, and a test holds the two equal. A host knows the number of each minor up to its own, so
//! an engine whose mirror of the header is wrong is refused before anything of it runs.
//!
//! The const asserts below refuse a mirror with padding: each field starts where the last one ended,
//! which is what makes "all zero bytes" and "all fields zero" the same thing on both sides.

use crate::raw::{
    MseAges, MseBatch, MseErr, MseExport, MseExt, MseGuided, MseHdr, MseHost, MseImport, MseInfo,
    MseKv, MseLease, MseLogprob, MseMagic, MseOp, MseOut, MsePin, MseRange, MseRequest,
    MseSampling, MseStats, MseStr, MseU128, MseVtable,
};

/// One field of a struct, under its name in the header.
pub struct FieldLayout {
    pub name: &'static str,
    pub offset: usize,
    pub size: usize,
}

/// One struct, under its name in the header.
pub struct StructLayout {
    pub name: &'static str,
    pub size: usize,
    pub fields: &'static [FieldLayout],
}

const fn pointee_size<T>(_: *const T) -> usize {
    size_of::<T>()
}

macro_rules! field_size {
    ($type:ty, $field:ident) => {{
        let holder = std::mem::MaybeUninit::<$type>::uninit();
        let base = holder.as_ptr();
        // SAFETY: only the address of the field is taken, inside the holder; nothing is read.
        pointee_size(unsafe { &raw const (*base).$field })
    }};
}

macro_rules! layouts {
    ($($name:literal $type:ident { $($field:ident $(= $alias:literal)?),+ $(,)? })+) => {
        /// Every struct of the boundary.
        pub const STRUCTS: &[StructLayout] = &[$(
            StructLayout {
                name: $name,
                size: size_of::<$type>(),
                fields: &[$(FieldLayout {
                    name: layouts!(@name $field $($alias)?),
                    offset: std::mem::offset_of!($type, $field),
                    size: field_size!($type, $field),
                }),+],
            },
        )+];
    };
    (@name $field:ident $alias:literal) => { $alias };
    (@name $field:ident) => { stringify!($field) };
}

layouts! {
    "mse_ext" MseExt { size, r#type = "type", flags, _reserved, next }
    "mse_hdr" MseHdr { size, flags, next }
    "mse_str" MseStr { ptr, len }
    "mse_u128" MseU128 { lo, hi }
    "mse_err" MseErr { size, rc, retry_after_ms, flags, msg_len, msg }
    "mse_magic" MseMagic {
        magic, size, abi_major, abi_minor, min_host_minor, pointer_bits, little_endian, layout,
        vendor, name, version,
    }
    "mse_host" MseHost { h, abi_major, abi_minor, ctx, log }
    "mse_info" MseInfo {
        h, caps, block_tokens, vocab, context_tokens_max, requests_max, blocks_total, block_bytes,
        model, model_dir, device, kv_layout,
    }
    "mse_range" MseRange { start, end, priority, after, kind, lease, duration_ms }
    "mse_sampling" MseSampling {
        h, temperature, top_p, min_p, repetition_penalty, frequency_penalty, presence_penalty,
        top_k, tokens_max, tokens_min, logprobs, seed, flags, _reserved, stop_tokens,
        stop_tokens_len,
    }
    "mse_guided" MseGuided { h, kind, _reserved, spec }
    "mse_request" MseRequest {
        h, id, trace, namespace_id, tokens, tokens_len, sampled_before, priority, sampling, ranges,
        ranges_len, expected_output_tokens, _reserved, guided, leases, leases_len,
    }
    "mse_lease" MseLease { h, namespace_id, lease_id, how, _reserved, ranges, ranges_len }
    "mse_out" MseOut {
        id, token_off, token_len, logprob_off, logprob_len, flags, finish, rc, cached_tokens,
        msg_off, msg_len, queue_us, prefill_us,
    }
    "mse_logprob" MseLogprob { token, logprob, position, rank }
    "mse_kv" MseKv {
        r#type = "type", tier, cause, flags, block_off, block_len, parent, namespace_id,
    }
    "mse_op" MseOp { op_id, rc, done }
    "mse_batch" MseBatch {
        h, lane, len, epoch, first_seq, items, stride, _reserved, tokens, tokens_len, logprobs,
        logprobs_len, blocks, blocks_len, bytes, bytes_len, opaque,
    }
    "mse_pin" MsePin { h, op_id, pin_id, blocks, blocks_len, ttl_ms, priority, _reserved }
    "mse_export" MseExport { h, op_id, blocks, blocks_len, bytes, bytes_len }
    "mse_import" MseImport {
        h, op_id, namespace_id, parent, kv_layout, blocks, blocks_len, bytes, bytes_len, priority,
        duration_ms,
    }
    "mse_ages" MseAges { by_power, sum_ms }
    "mse_stats" MseStats {
        h, epoch, kv_seq, running, waiting, health, _reserved, blocks_used, blocks_cached,
        blocks_pinned, hit_tokens, query_tokens, prefill_tokens, decode_tokens, preemptions,
        evictions, waiting_prefill_tokens, ages, _reserved2, age_at_hit, age_at_eviction,
        draft_tokens, accepted_tokens,
    }
    "mse_vtable" MseVtable {
        h, create, destroy, info, stats, submit, cancel, wait, poll, batch_release, drain,
        kv_snapshot, pin, unpin, kv_export, kv_import, lease,
    }
}

const fn fnv1a(mut hash: u64, bytes: &[u8]) -> u64 {
    let mut i = 0;
    while i < bytes.len() {
        hash = (hash ^ bytes[i] as u64).wrapping_mul(0x0000_0100_0000_01b3);
        i += 1;
    }
    hash
}

const fn layout_number(structs: &[StructLayout]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325;
    let mut i = 0;
    while i < structs.len() {
        hash = fnv1a(hash, structs[i].name.as_bytes());
        hash = fnv1a(hash, &(structs[i].size as u32).to_le_bytes());
        let mut j = 0;
        while j < structs[i].fields.len() {
            let field = &structs[i].fields[j];
            hash = fnv1a(hash, field.name.as_bytes());
            hash = fnv1a(hash, &(field.offset as u32).to_le_bytes());
            hash = fnv1a(hash, &(field.size as u32).to_le_bytes());
            j += 1;
        }
        i += 1;
    }
    hash
}

/// The layout number, `MSE_LAYOUT` of the header.
pub const LAYOUT: u64 = layout_number(STRUCTS);

/// The layout numbers of the minors of this major, from 0 to the present one.
pub const PUBLISHED: &[u64] = &[LAYOUT];

const fn has_padding(layout: &StructLayout) -> bool {
    let mut end = 0;
    let mut i = 0;
    while i < layout.fields.len() {
        if layout.fields[i].offset != end {
            return true;
        }
        end += layout.fields[i].size;
        i += 1;
    }
    end != layout.size
}

const fn check_all(structs: &[StructLayout]) {
    let mut i = 0;
    while i < structs.len() {
        assert!(
            !has_padding(&structs[i]),
            "a struct of the boundary has padding or a missing field"
        );
        i += 1;
    }
}

const _: () = check_all(STRUCTS);
const _: () = assert!(size_of::<usize>() == 8 && cfg!(target_endian = "little"));
const _: () = assert!(size_of::<MseHdr>() == 16 && size_of::<MseErr>() == 256);
const _: () = assert!(size_of::<MseMagic>() == 88 && size_of::<MseHost>() == 40);
const _: () = assert!(size_of::<MseInfo>() == 112 && size_of::<MseRange>() == 16);
const _: () = assert!(size_of::<MseSampling>() == 88 && size_of::<MseRequest>() == 136);
const _: () = assert!(size_of::<MseGuided>() == 40 && size_of::<MseLease>() == 72);
const _: () = assert!(size_of::<MseOut>() == 64 && size_of::<MseLogprob>() == 16);
const _: () = assert!(size_of::<MseKv>() == 56 && size_of::<MseOp>() == 16);
const _: () = assert!(size_of::<MseBatch>() == 128 && size_of::<MsePin>() == 72);
const _: () = assert!(size_of::<MseStats>() == 2120 && size_of::<MseVtable>() == 144);
const _: () = assert!(size_of::<MseAges>() == 328);
const _: () = assert!(size_of::<MseExport>() == 56 && size_of::<MseImport>() == 104);
const _: () = assert!(std::mem::offset_of!(MseMagic, layout) == 32);
const _: () = assert!(std::mem::offset_of!(MseRequest, sampling) == 80);
const _: () = assert!(std::mem::offset_of!(MseBatch, items) == 40);
const _: () = assert!(std::mem::offset_of!(MseVtable, submit) == 48);

const _: () = assert!(PUBLISHED.len() == crate::raw::ABI_MINOR as usize + 1);
