//! Token ids in a row, as `repeated uint32` has them on the wire: base-128 numbers, lowest digits first.
//!
//! A prompt has tens of thousands of them and every turn of a conversation repeats those of the turn before, so the
//! field that carries a prompt is declared as `bytes`, which is the same on the wire: who sends keeps the bytes of
//! what was said before and copies them, and who receives reads them in one pass. Bytes that are no row of tokens
//! are refused.

use bytes::Bytes;

/// Digits of 7 bits that a token has at most.
const DIGITS_MAX: usize = 5;

/// Why bytes are no row of tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokensError {
    /// The last byte says that more would follow.
    #[error("the tokens end in the middle of one")]
    Cut,
    /// A number that is no token id.
    #[error("a token does not fit into 32 bits")]
    TooLarge,
}

/// Appends tokens to `out`.
pub fn pack_into(tokens: &[u32], out: &mut Vec<u8>) {
    let start = out.len();
    // The longest form of all of them, and room to write eight bytes where five are meant.
    out.resize(start + tokens.len() * DIGITS_MAX + 8, 0);
    let mut at = start;
    for &token in tokens {
        let (digits, length) = spread(token);
        out[at..at + 8].copy_from_slice(&digits.to_le_bytes());
        at += length;
    }
    out.truncate(at);
}

/// Tokens as the wire has them.
#[must_use]
pub fn pack(tokens: &[u32]) -> Bytes {
    let mut out = Vec::new();
    pack_into(tokens, &mut out);
    out.into()
}

/// The digits of a token, one in each byte, all but the last marked as followed; and how many there are. Without a
/// branch, since nobody can foresee the lengths of ids.
fn spread(token: u32) -> (u64, usize) {
    let wide = u64::from(token);
    let digits = (wide & 0x7f)
        | (wide & 0x3f80) << 1
        | (wide & 0x1f_c000) << 2
        | (wide & 0xfe0_0000) << 3
        | (wide & 0xf000_0000) << 4;
    let bits = 32 - (token | 1).leading_zeros() as usize;
    let length = bits.div_ceil(7);
    let followed = 0x8080_8080_8080_8080 & ((1 << (8 * (length - 1))) - 1);
    (digits | followed, length)
}

/// Reads tokens off the wire.
pub fn unpack(bytes: &[u8]) -> Result<Vec<u32>, TokensError> {
    let mut out = Vec::with_capacity(bytes.len() / 2);
    let mut rest = bytes;
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        let mut token = u64::from(first & 0x7f);
        let (mut last, mut digit) = (first, 1);
        while last & 0x80 != 0 {
            let Some((&next, after)) = rest.split_first() else { return Err(TokensError::Cut) };
            rest = after;
            if digit == DIGITS_MAX {
                return Err(TokensError::TooLarge);
            }
            token |= u64::from(next & 0x7f) << (7 * digit);
            (last, digit) = (next, digit + 1);
        }
        out.push(u32::try_from(token).map_err(|_| TokensError::TooLarge)?);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::{TokensError, pack, unpack};

    /// What the library of the wire makes of such a field: number 3, a run of bytes.
    #[derive(Clone, PartialEq, prost::Message)]
    struct Row {
        #[prost(uint32, repeated, tag = "3")]
        tokens: Vec<u32>,
    }

    fn edges() -> Vec<u32> {
        let around = |bit: u32| [(1_u32 << bit) - 1, 1 << bit, (1 << bit) + 1];
        (0..32).flat_map(around).chain([0, u32::MAX, u32::MAX - 1]).collect()
    }

    #[test]
    fn the_bytes_are_those_of_a_repeated_field() {
        let row = Row { tokens: edges() };
        let message = prost::Message::encode_to_vec(&row);
        // One byte of tag, two of length.
        assert_eq!(pack(&row.tokens), message[3..]);
        assert_eq!(unpack(&message[3..]), Ok(row.tokens));
        assert_eq!(unpack(&[]), Ok(vec![]));
    }

    #[test]
    fn what_is_no_row_of_tokens_is_refused() {
        assert_eq!(unpack(&[1, 0x80]), Err(TokensError::Cut));
        assert_eq!(unpack(&[0xff, 0xff, 0xff, 0xff, 0x1f]), Err(TokensError::TooLarge));
        assert_eq!(unpack(&[0x80, 0x80, 0x80, 0x80, 0x80, 0x00]), Err(TokensError::TooLarge));
    }
}
