//! Compressed bodies. A small body may inflate to anything, so what comes out is bounded, not what goes in; and both
//! formats are chains of parts that may be empty, so their number is bounded, too.

use std::io::Read;

use axum::http::{HeaderMap, header};
use bytes::Bytes;
use mainstay_chat::{ApiError, ErrorKind};
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{FrameDecoder, StreamingDecoder};

use super::BODY_BYTES_MAX;
use crate::answer::compute_held;

/// Members of gzip or frames of zstd in one body. Encoders that work in parallel make one for some 64 KiB.
const PARTS_MAX: usize = 1_024;

/// The body that headers speak of, away from the threads that serve streams if it is compressed. The headers no longer
/// speak of an encoding then. `held` is the request's place, which the work keeps; it comes back.
pub(super) async fn inflated<H: Send + 'static>(
    headers: &mut HeaderMap,
    body: Bytes,
    held: H,
) -> Result<(Bytes, H), ApiError> {
    let Some(value) = headers.remove(header::CONTENT_ENCODING) else { return Ok((body, held)) };
    compute_held(held, usize::MAX, move || inflate(value.to_str().unwrap_or("?"), body)).await
}

/// The body as it was before `encoding`, the value of `content-encoding`.
fn inflate(encoding: &str, body: Bytes) -> Result<Bytes, ApiError> {
    let name = encoding.trim().to_ascii_lowercase();
    match name.as_str() {
        "" | "identity" => Ok(body),
        "gzip" | "x-gzip" => all_parts(&body, &name, gzip_member),
        "zstd" => {
            // One decoder for all frames: each could ask for a window of the largest size.
            let mut decoder = FrameDecoder::new();
            decoder.set_max_window_size(BODY_BYTES_MAX as u64);
            all_parts(&body, &name, |rest, inflated| zstd_frame(&mut decoder, rest, inflated))
        }
        _ => {
            let shown: String = name.chars().take(64).collect();
            let message =
                format!("content-encoding `{shown}` is not understood; use gzip, zstd or none");
            Err(ApiError::new(ErrorKind::UnsupportedEncoding, message))
        }
    }
}

/// Why a part does not inflate.
enum Fault {
    Broken,
    TooLarge,
}

impl From<std::io::Error> for Fault {
    fn from(_: std::io::Error) -> Self {
        Self::Broken
    }
}

/// All parts of a body, one after the other; `one` takes a part off the front and adds what it holds.
fn all_parts(
    body: &[u8],
    name: &str,
    mut one: impl FnMut(&mut &[u8], &mut Vec<u8>) -> Result<(), Fault>,
) -> Result<Bytes, ApiError> {
    let (mut rest, mut inflated) = (body, Vec::new());
    for _ in 0..PARTS_MAX {
        one(&mut rest, &mut inflated).map_err(|fault| match fault {
            Fault::Broken => broken(name),
            Fault::TooLarge => too_large(),
        })?;
        if rest.is_empty() {
            return Ok(Bytes::from(inflated));
        }
    }
    let message = format!("the body has more than {PARTS_MAX} parts of {name}; send it as one");
    Err(ApiError::new(ErrorKind::InvalidRequest, message).with_code("invalid_encoding"))
}

fn gzip_member(rest: &mut &[u8], inflated: &mut Vec<u8>) -> Result<(), Fault> {
    bounded(flate2::bufread::GzDecoder::new(rest), inflated)
}

fn zstd_frame(
    decoder: &mut FrameDecoder,
    rest: &mut &[u8],
    inflated: &mut Vec<u8>,
) -> Result<(), Fault> {
    match StreamingDecoder::new_with_decoder(&mut *rest, decoder) {
        Ok(frame) => bounded(frame, inflated),
        // Some encoders note the sizes of their frames in one that decoders are to pass over.
        Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
            length,
            ..
        })) => {
            let length = usize::try_from(length).map_err(|_| Fault::Broken)?;
            *rest = rest.get(length..).ok_or(Fault::Broken)?;
            Ok(())
        }
        Err(FrameDecoderError::WindowSizeTooBig { .. }) => Err(Fault::TooLarge),
        Err(_) => Err(Fault::Broken),
    }
}

/// Adds what a decoder gives, up to the limit of a whole body.
fn bounded(decoder: impl Read, inflated: &mut Vec<u8>) -> Result<(), Fault> {
    let left = BODY_BYTES_MAX.saturating_sub(inflated.len()) as u64;
    // One more than there is room for tells a body that is too large from one that just fits.
    decoder.take(left + 1).read_to_end(inflated)?;
    if inflated.len() > BODY_BYTES_MAX { Err(Fault::TooLarge) } else { Ok(()) }
}

fn too_large() -> ApiError {
    let message = format!("the body is larger than {BODY_BYTES_MAX} bytes once inflated");
    ApiError::new(ErrorKind::TooLarge, message)
}

fn broken(name: &str) -> ApiError {
    let message = format!("the body is not valid {name}; send it again, or without compression");
    ApiError::new(ErrorKind::InvalidRequest, message).with_code("invalid_encoding")
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn gzip(body: &[u8]) -> Bytes {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(body).expect("into memory");
        Bytes::from(encoder.finish().expect("into memory"))
    }

    fn zstd(body: &[u8]) -> Bytes {
        let level = ruzstd::encoding::CompressionLevel::Fastest;
        Bytes::from(ruzstd::encoding::compress_to_vec(body, level))
    }

    #[test]
    fn what_was_compressed_comes_back() {
        let body = br#"{"model": "demo", "input": "hello hello hello hello"}"#;
        for (encoding, packed) in [
            ("", Bytes::from_static(body)),
            ("identity", Bytes::from_static(body)),
            (" GZip ", gzip(body)),
            ("zstd", zstd(body)),
        ] {
            assert_eq!(inflate(encoding, packed).expect("sound").as_ref(), body, "{encoding:?}");
        }
    }

    #[test]
    fn all_parts_of_a_body_count() {
        let (one, two, none) = (br#"{"model": "demo", "#, br#""input": "hello"}"#, b"");
        let whole = [&one[..], &two[..]].concat();
        // A skippable frame of three bytes.
        let skipped = [0x50, 0x2A, 0x4D, 0x18, 3, 0, 0, 0, b'x', b'y', b'z'];
        let zstd_parts = [&skipped[..], &zstd(one), &zstd(none), &skipped, &zstd(two), &skipped];
        let gzip_parts = [gzip(none), gzip(one), gzip(none), gzip(two)];
        for (encoding, packed) in [("zstd", zstd_parts.concat()), ("gzip", gzip_parts.concat())] {
            let inflated = inflate(encoding, Bytes::from(packed)).expect("sound");
            assert_eq!(inflated.as_ref(), whole, "{encoding}");
        }
        let cut = [&zstd(one)[..], &skipped[..10]].concat();
        assert!(inflate("zstd", Bytes::from(cut)).is_err(), "a frame to skip that is cut off");
        for (encoding, sound) in [("zstd", zstd(one)), ("gzip", gzip(one))] {
            let garbage = [&sound[..], b"and more"].concat();
            assert!(inflate(encoding, Bytes::from(garbage)).is_err(), "{encoding}");
        }
    }

    #[test]
    fn empty_parts_are_counted() {
        for (encoding, empty, one) in
            [("gzip", gzip(b""), gzip(b"{}")), ("zstd", zstd(b""), zstd(b"{}"))]
        {
            let many = |parts: usize| Bytes::from([&empty.repeat(parts - 1)[..], &one].concat());
            assert_eq!(inflate(encoding, many(PARTS_MAX)).expect("sound").as_ref(), b"{}");
            let error = inflate(encoding, many(PARTS_MAX + 1)).expect_err("too many");
            assert_eq!(error.code.as_deref(), Some("invalid_encoding"), "{encoding}");
        }
    }

    #[test]
    fn parts_share_the_limit() {
        let half = vec![b' '; BODY_BYTES_MAX / 2];
        for (encoding, half, one) in
            [("gzip", gzip(&half), gzip(b" ")), ("zstd", zstd(&half), zstd(b" "))]
        {
            let just = Bytes::from([&half[..], &half].concat());
            assert_eq!(inflate(encoding, just).expect("fits").len(), BODY_BYTES_MAX);
            let more = Bytes::from([&half[..], &half, &one].concat());
            let error = inflate(encoding, more).expect_err("too large");
            assert_eq!(error.kind, ErrorKind::TooLarge, "{encoding}");
        }
    }

    #[test]
    fn a_bomb_is_refused() {
        let zeros = vec![b' '; BODY_BYTES_MAX + 1];
        for (encoding, packed) in [("gzip", gzip(&zeros)), ("zstd", zstd(&zeros))] {
            assert!(packed.len() < 1 << 20, "{encoding}: {} bytes", packed.len());
            let error = inflate(encoding, packed).expect_err("too large");
            assert_eq!(error.kind, ErrorKind::TooLarge, "{encoding}");
        }
        let just = vec![b' '; BODY_BYTES_MAX];
        assert_eq!(inflate("gzip", gzip(&just)).expect("fits").len(), BODY_BYTES_MAX);
    }

    #[test]
    fn broken_and_unknown_encodings_are_told() {
        for encoding in ["gzip", "zstd"] {
            let good = if encoding == "gzip" { gzip(b"{\"a\": 1}") } else { zstd(b"{\"a\": 1}") };
            for cut in 0..good.len() {
                let short = inflate(encoding, good.slice(..cut));
                assert!(short.is_err() || cut + 4 >= good.len(), "{encoding} cut to {cut}");
                let mut flipped = good.to_vec();
                flipped[cut] ^= 0x55;
                // Whatever comes of it, it comes.
                let _ = inflate(encoding, Bytes::from(flipped));
            }
            let error = inflate(encoding, Bytes::from_static(b"{}")).expect_err("plain text");
            assert_eq!(error.code.as_deref(), Some("invalid_encoding"));
        }
        let error = inflate("br", Bytes::new()).expect_err("unknown");
        assert_eq!(error.kind, ErrorKind::UnsupportedEncoding);
        assert_eq!(error.status(mainstay_chat::Endpoint::Chat), 415);
    }
}
