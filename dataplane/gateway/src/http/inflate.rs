//! Compressed bodies. A small body may inflate to anything, so what comes out is bounded, not what goes in.

use std::io::Read;

use axum::http::{HeaderMap, header};
use bytes::Bytes;
use mainstay_chat::{ApiError, ErrorKind};
use ruzstd::decoding::StreamingDecoder;
use ruzstd::decoding::errors::FrameDecoderError;

use super::BODY_BYTES_MAX;
use crate::answer::compute;

/// The body that headers speak of, away from the threads that serve streams if it is compressed. The headers no longer
/// speak of an encoding then.
pub(super) async fn inflated(headers: &mut HeaderMap, body: Bytes) -> Result<Bytes, ApiError> {
    let Some(value) = headers.remove(header::CONTENT_ENCODING) else { return Ok(body) };
    compute(usize::MAX, move || inflate(value.to_str().unwrap_or("?"), body)).await
}

/// The body as it was before `encoding`, the value of `content-encoding`.
fn inflate(encoding: &str, body: Bytes) -> Result<Bytes, ApiError> {
    let name = encoding.trim().to_ascii_lowercase();
    match name.as_str() {
        "" | "identity" => Ok(body),
        "gzip" | "x-gzip" => bounded(flate2::read::MultiGzDecoder::new(body.as_ref()), &name),
        "zstd" => {
            let mut rest = body.as_ref();
            let decoder =
                StreamingDecoder::new_with_max_window_size(&mut rest, BODY_BYTES_MAX as u64)
                    .map_err(|error| match error {
                        FrameDecoderError::WindowSizeTooBig { .. } => too_large(),
                        _ => broken(&name),
                    })?;
            bounded(decoder, &name)
        }
        _ => {
            let shown: String = name.chars().take(64).collect();
            let message =
                format!("content-encoding `{shown}` is not understood; use gzip, zstd or none");
            Err(ApiError::new(ErrorKind::UnsupportedEncoding, message))
        }
    }
}

fn bounded(decoder: impl Read, name: &str) -> Result<Bytes, ApiError> {
    let mut inflated = Vec::new();
    let limit = BODY_BYTES_MAX as u64 + 1;
    decoder.take(limit).read_to_end(&mut inflated).map_err(|_| broken(name))?;
    if inflated.len() > BODY_BYTES_MAX {
        return Err(too_large());
    }
    Ok(Bytes::from(inflated))
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
