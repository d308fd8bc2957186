//! Unsigned varints of multiformats: at most nine bytes, and only the shortest form.

/// Nine bytes of seven bits: the largest value is 2^63 - 1 (multiformats, unsigned-varint).
const VARINT_BYTES_MAX: usize = 9;

/// Why bytes are not a varint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum VarintError {
    /// The bytes end inside the number.
    #[error("it ends inside a varint")]
    Short,
    /// More than nine bytes.
    #[error("a varint has more than nine bytes")]
    Long,
    /// A needless zero byte at the end.
    #[error("a varint is not in its shortest form")]
    NotShortest,
}

/// Reads one varint from the start of `bytes`; answers with the value and the number of bytes it took.
pub fn read(bytes: &[u8]) -> Result<(u64, usize), VarintError> {
    let mut value = 0u64;
    for (index, byte) in bytes.iter().take(VARINT_BYTES_MAX).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            if *byte == 0 && index > 0 {
                return Err(VarintError::NotShortest);
            }
            return Ok((value, index + 1));
        }
    }
    if bytes.len() < VARINT_BYTES_MAX { Err(VarintError::Short) } else { Err(VarintError::Long) }
}

/// Appends `value`; the ten-byte form of values from 2^63 is never written by anyone here, for lengths and codes are smaller.
pub fn write(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        // The cast keeps the low seven bits on purpose.
        out.push((value as u8 & 0x7f) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    type Row = (&'static [u8], Result<(u64, usize), VarintError>);

    #[test]
    fn table() {
        let rows: [Row; 9] = [
            (&[0], Ok((0, 1))),
            (&[0x7f, 0xff], Ok((127, 1))),
            (&[0x80, 0x01], Ok((128, 2))),
            (&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f], Ok((u64::MAX >> 1, 9))),
            (&[], Err(VarintError::Short)),
            (&[0x80], Err(VarintError::Short)),
            (&[0x80, 0x00], Err(VarintError::NotShortest)),
            (&[0xff; 9], Err(VarintError::Long)),
            (&[0xff; 20], Err(VarintError::Long)),
        ];
        for (bytes, expect) in rows {
            assert_eq!(read(bytes), expect, "{bytes:02x?}");
        }
    }

    #[test]
    fn round_trip() {
        for value in [0, 1, 127, 128, 300, 0x30534b, u64::from(u32::MAX), u64::MAX >> 1] {
            let mut bytes = Vec::new();
            write(value, &mut bytes);
            assert_eq!(read(&bytes), Ok((value, bytes.len())));
        }
    }
}
