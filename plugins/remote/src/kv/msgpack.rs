//! Reads MessagePack where it lies: a cursor that cannot be led beyond the bytes it has, or deep.
//!
//! A message is mostly two arrays of integers, which are read straight into vectors. Lengths are believed only
//! as far as bytes follow, so a lie about them costs nothing.

use rmp::Marker;

/// How deep values may lie in each other.
const DEPTH_MAX: u32 = 16;

/// What is wrong with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("it ends in the middle of a value")]
    Short,
    #[error("a value is not of the kind that belongs there")]
    Kind,
    #[error("values lie too deep in each other")]
    Deep,
    #[error("a number is out of range")]
    Range,
}

/// A value that is not a list or a map.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Scalar<'a> {
    Null,
    Bool(bool),
    /// Not negative.
    Unsigned(u64),
    /// Negative.
    Signed(i64),
    Float(f64),
    Text(&'a [u8]),
    Bytes(&'a [u8]),
}

/// The next value: itself, or how many others follow.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Next<'a> {
    Scalar(Scalar<'a>),
    Array(usize),
    /// So many pairs.
    Map(usize),
}

/// The unread rest of a message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(Malformed::Short)?;
        self.rest = rest;
        Ok(taken)
    }

    fn fixed<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let bytes = self.take(N)?;
        bytes.try_into().map_err(|_| Malformed::Short)
    }

    fn length(&mut self, bytes: u32) -> Result<usize, Malformed> {
        Ok(match bytes {
            1 => usize::from(self.fixed::<1>()?[0]),
            2 => usize::from(u16::from_be_bytes(self.fixed()?)),
            _ => u32::from_be_bytes(self.fixed()?) as usize,
        })
    }

    /// How many values follow at most: each has a byte at least.
    const fn believable(&self, count: usize) -> Result<usize, Malformed> {
        if count <= self.rest.len() { Ok(count) } else { Err(Malformed::Short) }
    }

    /// Reads one value, or the head of a list or map.
    pub(crate) fn next(&mut self) -> Result<Next<'a>, Malformed> {
        let marker = Marker::from_u8(self.fixed::<1>()?[0]);
        let scalar = match marker {
            Marker::FixArray(count) => return Ok(Next::Array(self.believable(count.into())?)),
            Marker::Array16 => return self.array(2),
            Marker::Array32 => return self.array(4),
            Marker::FixMap(count) => return Ok(Next::Map(self.believable(count.into())?)),
            Marker::Map16 => return self.map(2),
            Marker::Map32 => return self.map(4),
            Marker::Null => Scalar::Null,
            Marker::True => Scalar::Bool(true),
            Marker::False => Scalar::Bool(false),
            Marker::F32 => Scalar::Float(f64::from(f32::from_be_bytes(self.fixed()?))),
            Marker::F64 => Scalar::Float(f64::from_be_bytes(self.fixed()?)),
            Marker::FixStr(len) => Scalar::Text(self.take(len.into())?),
            Marker::Str8 => self.text(1)?,
            Marker::Str16 => self.text(2)?,
            Marker::Str32 => self.text(4)?,
            Marker::Bin8 => self.bytes(1)?,
            Marker::Bin16 => self.bytes(2)?,
            Marker::Bin32 => self.bytes(4)?,
            number => self.number(number)?,
        };
        Ok(Next::Scalar(scalar))
    }

    fn array(&mut self, width: u32) -> Result<Next<'a>, Malformed> {
        let count = self.length(width)?;
        Ok(Next::Array(self.believable(count)?))
    }

    fn map(&mut self, width: u32) -> Result<Next<'a>, Malformed> {
        let count = self.length(width)?;
        Ok(Next::Map(self.believable(count)?))
    }

    fn text(&mut self, width: u32) -> Result<Scalar<'a>, Malformed> {
        let len = self.length(width)?;
        Ok(Scalar::Text(self.take(len)?))
    }

    fn bytes(&mut self, width: u32) -> Result<Scalar<'a>, Malformed> {
        let len = self.length(width)?;
        Ok(Scalar::Bytes(self.take(len)?))
    }

    fn number(&mut self, marker: Marker) -> Result<Scalar<'a>, Malformed> {
        let signed = match marker {
            Marker::FixPos(value) => return Ok(Scalar::Unsigned(value.into())),
            Marker::U8 => return Ok(Scalar::Unsigned(self.fixed::<1>()?[0].into())),
            Marker::U16 => return Ok(Scalar::Unsigned(u16::from_be_bytes(self.fixed()?).into())),
            Marker::U32 => return Ok(Scalar::Unsigned(u32::from_be_bytes(self.fixed()?).into())),
            Marker::U64 => return Ok(Scalar::Unsigned(u64::from_be_bytes(self.fixed()?))),
            Marker::FixNeg(value) => i64::from(value),
            Marker::I8 => i64::from(i8::from_be_bytes(self.fixed()?)),
            Marker::I16 => i64::from(i16::from_be_bytes(self.fixed()?)),
            Marker::I32 => i64::from(i32::from_be_bytes(self.fixed()?)),
            Marker::I64 => i64::from_be_bytes(self.fixed()?),
            // Extensions mean nothing in these messages.
            _ => return Err(Malformed::Kind),
        };
        Ok(u64::try_from(signed).map_or(Scalar::Signed(signed), Scalar::Unsigned))
    }

    /// Reads a list's head.
    pub(crate) fn list(&mut self) -> Result<usize, Malformed> {
        match self.next()? {
            Next::Array(count) => Ok(count),
            _ => Err(Malformed::Kind),
        }
    }

    /// Reads a value that is no list or map.
    pub(crate) fn scalar(&mut self) -> Result<Scalar<'a>, Malformed> {
        match self.next()? {
            Next::Scalar(scalar) => Ok(scalar),
            _ => Err(Malformed::Kind),
        }
    }

    /// Passes over one value, whatever it is.
    pub(crate) fn skip(&mut self) -> Result<(), Malformed> {
        self.skip_at(0)
    }

    fn skip_at(&mut self, depth: u32) -> Result<(), Malformed> {
        if depth > DEPTH_MAX {
            return Err(Malformed::Deep);
        }
        let values = match self.next()? {
            Next::Scalar(_) => 0,
            Next::Array(count) => count,
            Next::Map(count) => count * 2,
        };
        for _ in 0..values {
            self.skip_at(depth + 1)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_every_width_come_back() {
        for value in [0_i64, 1, -1, 127, -32, -33, 255, 256, 70_000, -70_000, i64::MIN, i64::MAX] {
            let mut bytes = Vec::new();
            rmp::encode::write_sint(&mut bytes, value).unwrap();
            let expected = u64::try_from(value).map_or(Scalar::Signed(value), Scalar::Unsigned);
            assert_eq!(Cursor::new(&bytes).scalar(), Ok(expected), "{value}");
        }
        let mut bytes = Vec::new();
        rmp::encode::write_u64(&mut bytes, u64::MAX).unwrap();
        assert_eq!(Cursor::new(&bytes).scalar(), Ok(Scalar::Unsigned(u64::MAX)));
    }

    #[test]
    fn lies_about_lengths_are_found_before_anything_is_made() {
        let huge_array = [0xdd, 0xff, 0xff, 0xff, 0xff, 1];
        assert_eq!(Cursor::new(&huge_array).next(), Err(Malformed::Short));
        let huge_map = [0xdf, 0xff, 0xff, 0xff, 0xff, 1];
        assert_eq!(Cursor::new(&huge_map).next(), Err(Malformed::Short));
        assert_eq!(Cursor::new(&[0xc6, 0xff, 0xff, 0xff, 0xff]).next(), Err(Malformed::Short));
        assert_eq!(Cursor::new(&[0xc1]).next(), Err(Malformed::Kind));
        let deep = [0x91; 1000];
        assert_eq!(Cursor::new(&deep).skip(), Err(Malformed::Deep));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_lead_it_astray(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..400)) {
            let mut cursor = Cursor::new(&bytes);
            while !cursor.rest.is_empty() {
                if cursor.skip().is_err() {
                    break;
                }
            }
        }
    }
}
