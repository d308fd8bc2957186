//! The few rules of protobuf that dag-pb and UnixFS need: fields are read one by one, nothing is allocated on a claim.

use std::ops::Range;

use super::TreeError;

/// A 64-bit number in groups of seven bits.
const VARINT_BYTES_MAX: usize = 10;

/// Value of one field. Byte strings are given as the range where they lie in the message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    Varint(u64),
    Fixed64,
    Bytes(Range<usize>),
    Fixed32(u32),
}

/// Reads the fields of one message, which lies at `range` of `bytes`.
pub(super) struct Fields<'a> {
    format: &'static str,
    bytes: &'a [u8],
    at: usize,
    end: usize,
}

impl<'a> Fields<'a> {
    pub(super) fn new(format: &'static str, bytes: &'a [u8], range: Range<usize>) -> Fields<'a> {
        debug_assert!(range.start <= range.end && range.end <= bytes.len());
        Fields { format, bytes, at: range.start, end: range.end }
    }

    /// The next field's number and value; `None` at the end of the message.
    pub(super) fn next(&mut self) -> Result<Option<(u64, Value)>, TreeError> {
        if self.at == self.end {
            return Ok(None);
        }
        let key = self.varint()?;
        let (number, wire_type) = (key >> 3, key & 7);
        if number == 0 || number > 0x1fff_ffff {
            return Err(self.error("a field number is out of range"));
        }
        let value = match wire_type {
            0 => Value::Varint(self.varint()?),
            1 => {
                self.take(8)?;
                Value::Fixed64
            }
            2 => {
                let length = self.varint()?;
                Value::Bytes(self.take(length)?)
            }
            5 => {
                let range = self.take(4)?;
                let four = self.bytes[range].try_into().expect("four bytes were taken");
                Value::Fixed32(u32::from_le_bytes(four))
            }
            _ => return Err(self.error("a field has an unknown wire type")),
        };
        Ok(Some((number, value)))
    }

    /// Is the end of the message reached?
    pub(super) fn is_done(&self) -> bool {
        self.at == self.end
    }

    pub(super) fn varint(&mut self) -> Result<u64, TreeError> {
        let mut value = 0u64;
        for index in 0..VARINT_BYTES_MAX {
            if self.at == self.end {
                return Err(self.error("it ends inside a number"));
            }
            let byte = self.bytes[self.at];
            self.at += 1;
            // The tenth byte has room for one bit.
            if index == VARINT_BYTES_MAX - 1 && byte > 1 {
                return Err(self.error("a number has more than 64 bits"));
            }
            value |= u64::from(byte & 0x7f) << (7 * index);
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.error("a number has more than 64 bits"))
    }

    /// Takes `length` bytes. A "negative" length is one above 2^63, and fails like every other that is too long.
    fn take(&mut self, length: u64) -> Result<Range<usize>, TreeError> {
        let left = self.end - self.at;
        let length = usize::try_from(length).ok().filter(|length| *length <= left);
        let length = length.ok_or_else(|| self.error("a length points past the end"))?;
        let start = self.at;
        self.at += length;
        Ok(start..self.at)
    }

    fn error(&self, why: &'static str) -> TreeError {
        TreeError::malformed(self.format, why)
    }
}

pub(super) fn put_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        // The cast keeps the low seven bits on purpose.
        out.push((value as u8) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub(super) fn put_number(field: u8, value: u64, out: &mut Vec<u8>) {
    out.push(field << 3);
    put_varint(value, out);
}

pub(super) fn put_bytes(field: u8, bytes: &[u8], out: &mut Vec<u8>) {
    out.push(field << 3 | 2);
    put_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

pub(super) fn put_fixed32(field: u8, value: u32, out: &mut Vec<u8>) {
    out.push(field << 3 | 5);
    out.extend_from_slice(&value.to_le_bytes());
}
