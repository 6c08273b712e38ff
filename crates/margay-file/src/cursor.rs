//! A place in bytes that nobody vouches for.

use std::fmt;

use crate::FileError;

/// Reads little-endian fields one after the other. Every method names the field it reads, so that an error can.
pub(crate) struct Cursor<'a> {
    format: &'static str,
    bytes: &'a [u8],
    at: usize,
}

macro_rules! plain {
    ($($name:ident -> $plain:ty),*) => {$(
        pub(crate) fn $name(&mut self, field: fmt::Arguments<'_>) -> Result<$plain, FileError> {
            const SIZE: usize = size_of::<$plain>();
            let bytes = self.take(SIZE as u64, field)?;
            Ok(<$plain>::from_le_bytes(bytes.try_into().expect("invariant: take gives as many bytes as asked")))
        }
    )*};
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(format: &'static str, bytes: &'a [u8]) -> Self {
        Cursor { format, bytes, at: 0 }
    }

    /// Bytes from the start to here.
    pub(crate) fn at(&self) -> usize {
        self.at
    }

    /// Bytes from here to the end.
    pub(crate) fn remaining(&self) -> u64 {
        (self.bytes.len() - self.at) as u64
    }

    /// The next `count` bytes.
    pub(crate) fn take(&mut self, count: u64, field: fmt::Arguments<'_>) -> Result<&'a [u8], FileError> {
        if count > self.remaining() {
            let why = format!("needs {count} bytes, the file has {} left (is it cut off?)", self.remaining());
            return Err(self.malformed(self.at, field, why));
        }
        // `count` is at most the length of a slice, hence fits usize.
        let end = self.at + count as usize;
        let bytes = &self.bytes[self.at..end];
        self.at = end;
        Ok(bytes)
    }

    plain!(u8 -> u8, i8 -> i8, u16 -> u16, i16 -> i16, u32 -> u32, i32 -> i32, u64 -> u64, i64 -> i64,
        f32 -> f32, f64 -> f64);

    /// An error about a field that starts at `offset`.
    pub(crate) fn malformed(
        &self,
        offset: usize,
        field: impl fmt::Display,
        why: impl fmt::Display,
    ) -> FileError {
        let (field, why) = (field.to_string(), why.to_string());
        FileError::Malformed { format: self.format, field, offset: offset as u64, why }
    }
}
