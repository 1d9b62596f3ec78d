//! The frames between the host and an engine's child process.
//!
//! A frame is its length (u32, little endian), a version byte, and a postcard body. Both sides come
//! from one release, so the version is only there to say so in words when they don't. A length above
//! [`FRAME_BYTES_MAX`] ends the connection; memory is taken as bytes arrive, not as they are promised.

use std::io::{self, Read};
use std::path::PathBuf;

use mainstay_engine_abi::sdk::{
    EngineError, Info, LeaseChange, Level, OpDone, Output, Pin, Request, Stats,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::KvBatch;
use crate::error::{ExitReason, LoadError};
use crate::magic::EngineIdentity;
use crate::transfer::{KvImport, Whole};

pub(crate) const VERSION: u8 = 5;
/// Bytes of one frame's body. The largest batch that decoding lets through is about 150 MiB.
pub(crate) const FRAME_BYTES_MAX: usize = 256 << 20;
/// Batches that a child may send on each lane before the host has passed one on.
pub(crate) const WINDOW: u32 = 16;

/// The lanes, in the order of the header's numbers.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum Lane {
    Out,
    Kv,
    Op,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToChild {
    /// The first frame: what to load, or the linked engine.
    Open {
        library: Option<PathBuf>,
        config_json: String,
    },
    Call {
        call: u64,
        body: Call,
    },
    Cancel {
        id: u64,
    },
    /// The host has passed a batch of this lane on.
    Credit {
        lane: Lane,
    },
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Call {
    Submit(Box<Request>),
    Pin(Pin),
    Unpin { op_id: u64, pin_id: u128 },
    KvSnapshot { op_id: u64 },
    Stats,
    Drain { timeout_us: u64 },
    Export { blocks: Vec<u128> },
    Import(KvImport),
    Lease(LeaseChange),
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    Done,
    Stats(Box<Stats>),
    Whole(Whole),
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Opened {
    pub(crate) identity: EngineIdentity,
    pub(crate) info: Info,
    pub(crate) caps: u64,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum FromChild {
    /// The answer to `Open`.
    Opened(Result<Opened, LoadError>),
    Answer {
        call: u64,
        answer: Result<Answer, EngineError>,
    },
    Outputs(Vec<Output>),
    Kv(KvBatch),
    Ops(Vec<OpDone>),
    Log {
        level: Level,
        target: String,
        message: String,
    },
    /// The engine is at its end; nothing follows on lane OUT.
    Ended(ExitReason),
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

/// A whole frame, ready to be written.
pub(crate) fn encode(frame: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0, 0, 0, 0, VERSION];
    bytes = postcard::to_extend(frame, bytes).map_err(|error| invalid(error.to_string()))?;
    let len = bytes.len() - 4;
    if len > FRAME_BYTES_MAX {
        return Err(invalid(format!("a frame of {len} bytes exceeds {FRAME_BYTES_MAX}")));
    }
    bytes[..4].copy_from_slice(&(len as u32).to_le_bytes());
    Ok(bytes)
}

/// The next frame; nothing when the other side has closed between two frames.
pub(crate) fn read<T: DeserializeOwned>(from: &mut impl Read) -> io::Result<Option<T>> {
    let mut len = [0; 4];
    if !fill(from, &mut len)? {
        return Ok(None);
    }
    let len = u32::from_le_bytes(len) as usize;
    if len == 0 || len > FRAME_BYTES_MAX {
        return Err(invalid(format!("a frame claims {len} bytes")));
    }
    let mut body = Vec::with_capacity(len.min(1 << 16));
    from.take(len as u64).read_to_end(&mut body)?;
    if body.len() < len {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    if body[0] != VERSION {
        return Err(invalid(format!("frame version {}, not {VERSION}", body[0])));
    }
    let (frame, rest) =
        postcard::take_from_bytes(&body[1..]).map_err(|error| invalid(error.to_string()))?;
    if !rest.is_empty() {
        return Err(invalid(format!("a frame has {} bytes too many", rest.len())));
    }
    Ok(Some(frame))
}

/// Fills `buffer`; false when the stream ends before its first byte.
fn fill(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    let mut filled = 0;
    while filled < buffer.len() {
        match from.read(&mut buffer[filled..]) {
            Ok(0) if filled == 0 => return Ok(false),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mainstay_engine_abi::sdk::{Finish, KvEvent};

    #[test]
    fn a_frame_comes_back_as_it_went() {
        let finish = Some(Finish::Error { rc: -14, message: "so".into() });
        let outputs =
            vec![Output { id: u64::MAX, tokens: vec![1, 2], finish, ..Output::default() }];
        let mut pipe = encode(&FromChild::Outputs(outputs.clone())).unwrap();
        let events = vec![KvEvent::PinExpired { pin_id: u128::MAX }];
        let batch = KvBatch { epoch: 1, first_seq: 2, reset: true, gap: false, events };
        pipe.extend(encode(&FromChild::Kv(batch.clone())).unwrap());
        let mut from = pipe.as_slice();
        assert!(matches!(read(&mut from).unwrap(), Some(FromChild::Outputs(o)) if o == outputs));
        assert!(matches!(read(&mut from).unwrap(), Some(FromChild::Kv(b)) if b == batch));
        assert!(read::<FromChild>(&mut from).unwrap().is_none());
    }

    #[test]
    fn a_frame_that_can_not_be_is_an_error_and_costs_no_memory() {
        let good = encode(&ToChild::Cancel { id: 5 }).unwrap();
        for cut in 1..good.len() {
            assert!(read::<ToChild>(&mut &good[..cut]).is_err(), "cut at {cut}");
        }
        let mut other_version = good.clone();
        other_version[4] = 9;
        let error = read::<ToChild>(&mut other_version.as_slice()).unwrap_err();
        assert!(error.to_string().contains("frame version 9"));
        let mut longer = good.clone();
        longer[0] += 1;
        longer.push(0);
        assert!(read::<ToChild>(&mut longer.as_slice()).is_err());
        for len in [0_u32, FRAME_BYTES_MAX as u32 + 1, u32::MAX] {
            assert!(read::<ToChild>(&mut len.to_le_bytes().as_slice()).is_err());
        }
        assert!(read::<ToChild>(&mut [4, 0, 0, 0, VERSION, 0xff, 0xff, 0xff].as_slice()).is_err());
    }
}
