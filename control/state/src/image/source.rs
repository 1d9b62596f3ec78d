//! Where the reader reads from: bytes that may be anything.
//!
//! Every read checks what is left; a count is believed only if that many elements of the smallest size could
//! still follow, so that no length in an image can reserve more memory than the image itself is long.

use super::ImageError;

pub(super) struct Source<'a> {
    rest: &'a [u8],
}

impl<'a> Source<'a> {
    pub(super) fn new(rest: &'a [u8]) -> Self {
        Self { rest }
    }

    fn take(&mut self, bytes: usize) -> Result<&'a [u8], ImageError> {
        let (head, tail) = self.rest.split_at_checked(bytes).ok_or(ImageError::Truncated)?;
        self.rest = tail;
        Ok(head)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], ImageError> {
        let (head, tail) = self.rest.split_first_chunk::<N>().ok_or(ImageError::Truncated)?;
        self.rest = tail;
        Ok(*head)
    }

    pub(super) fn u8(&mut self) -> Result<u8, ImageError> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(super) fn u32(&mut self) -> Result<u32, ImageError> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, ImageError> {
        self.array().map(u64::from_le_bytes)
    }

    pub(super) fn u128(&mut self) -> Result<u128, ImageError> {
        self.array().map(u128::from_le_bytes)
    }

    pub(super) fn flag(&mut self, what: &'static str) -> Result<bool, ImageError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(ImageError::Invalid(what)),
        }
    }

    /// A count of `what`, of which each takes `bytes_min` at least.
    pub(super) fn count(
        &mut self,
        what: &'static str,
        limit: u64,
        bytes_min: usize,
    ) -> Result<usize, ImageError> {
        let count = self.u64()?;
        if count > limit {
            return Err(ImageError::TooMany { what, count, limit });
        }
        let fits = (self.rest.len() / bytes_min.max(1)) as u64;
        if count > fits {
            return Err(ImageError::Truncated);
        }
        usize::try_from(count).map_err(|_| ImageError::Truncated)
    }

    pub(super) fn text(
        &mut self,
        what: &'static str,
        bytes_max: usize,
    ) -> Result<&'a str, ImageError> {
        core::str::from_utf8(self.bytes(what, bytes_max)?).map_err(|_| ImageError::Invalid(what))
    }

    pub(super) fn bytes(
        &mut self,
        what: &'static str,
        bytes_max: usize,
    ) -> Result<&'a [u8], ImageError> {
        let bytes = self.count(what, bytes_max as u64, 1)?;
        self.take(bytes)
    }

    /// Nothing may follow.
    pub(super) fn end(&self) -> Result<(), ImageError> {
        if self.rest.is_empty() { Ok(()) } else { Err(ImageError::Invalid("tail")) }
    }
}
