//! The two encodings inside an IPNS record, read without copies: a protobuf message, and one DAG-CBOR map. Nothing is
//! allocated on a claim of the bytes, and nothing recurses.

/// Containers within containers that are passed over in a value nobody knows.
const NESTED_MAX: usize = 32;
/// Keys of the map. The specification has five; owners may add some of their own.
const MAP_KEYS_MAX: u64 = 256;

/// What is wrong with the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub &'static str);

/// Value of a protobuf field. Those of fixed length are not told: no field here has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Fixed,
}

/// The fields of a protobuf message, one after the other.
pub struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub fn new(bytes: &'a [u8]) -> Fields<'a> {
        Fields { rest: bytes }
    }

    /// Number and value of the next field; `None` at the end.
    pub fn next(&mut self) -> Result<Option<(u64, Value<'a>)>, Malformed> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let value = match key & 7 {
            0 => Value::Number(self.varint()?),
            1 => self.take(8).map(|_| Value::Fixed)?,
            2 => {
                let length = self.varint()?;
                Value::Bytes(self.take(length)?)
            }
            5 => self.take(4).map(|_| Value::Fixed)?,
            _ => return Err(Malformed("a field has an unknown wire type")),
        };
        match key >> 3 {
            0 => Err(Malformed("a field has the number 0")),
            number => Ok(Some((number, value))),
        }
    }

    /// At most ten groups of seven bits.
    fn varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0u64;
        for index in 0..10 {
            let (byte, rest) = self.rest.split_first().ok_or(Malformed("it ends inside a number"))?;
            self.rest = rest;
            // The tenth byte has room for one bit.
            if index == 9 && *byte > 1 {
                break;
            }
            value |= u64::from(byte & 0x7f) << (7 * index);
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Malformed("a number has more than 64 bits"))
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8], Malformed> {
        take(&mut self.rest, length)
    }
}

fn take<'a>(rest: &mut &'a [u8], length: u64) -> Result<&'a [u8], Malformed> {
    let length = usize::try_from(length).ok().filter(|length| *length <= rest.len());
    let (taken, left) = rest.split_at(length.ok_or(Malformed("a length points past the end"))?);
    *rest = left;
    Ok(taken)
}

/// Value in the map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CborValue<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    /// Anything else, passed over.
    Other,
}

/// The pairs of one CBOR map that fills the bytes. Keys are texts, and none comes twice.
pub struct CborMap<'a> {
    rest: &'a [u8],
    left: u64,
    seen: Vec<&'a str>,
}

impl<'a> CborMap<'a> {
    pub fn read(bytes: &'a [u8]) -> Result<CborMap<'a>, Malformed> {
        let mut rest = bytes;
        match head(&mut rest)? {
            (5, pairs) if pairs <= MAP_KEYS_MAX => Ok(CborMap { rest, left: pairs, seen: Vec::new() }),
            (5, _) => Err(Malformed("the data have too many keys")),
            _ => Err(Malformed("the data are no map")),
        }
    }

    /// The next pair; `None` at the end, with which the bytes must end, too.
    pub fn next(&mut self) -> Result<Option<(&'a str, CborValue<'a>)>, Malformed> {
        if self.left == 0 {
            return if self.rest.is_empty() { Ok(None) } else { Err(Malformed("bytes follow the data")) };
        }
        self.left -= 1;
        let (3, length) = head(&mut self.rest)? else { return Err(Malformed("a key is no text")) };
        let key = std::str::from_utf8(take(&mut self.rest, length)?).map_err(|_| Malformed("a key is no UTF-8"))?;
        if self.seen.contains(&key) {
            return Err(Malformed("a key comes twice"));
        }
        self.seen.push(key);
        let value = match head(&mut self.rest)? {
            (0, number) => CborValue::Number(number),
            (2, length) => CborValue::Bytes(take(&mut self.rest, length)?),
            (major, argument) => {
                pass_over(&mut self.rest, major, argument)?;
                CborValue::Other
            }
        };
        Ok(Some((key, value)))
    }
}

/// Major type and argument. DAG-CBOR has no indefinite lengths.
fn head(rest: &mut &[u8]) -> Result<(u8, u64), Malformed> {
    let first = take(rest, 1)?[0];
    let number = |bytes: &[u8]| bytes.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
    let argument = match first & 0x1f {
        small @ 0..=23 => u64::from(small),
        24 => number(take(rest, 1)?),
        25 => number(take(rest, 2)?),
        26 => number(take(rest, 4)?),
        27 => number(take(rest, 8)?),
        _ => return Err(Malformed("a CBOR length is reserved or indefinite")),
    };
    Ok((first >> 5, argument))
}

/// Passes over one value whose head was read. Every item takes a byte at least, so the bytes bound the work.
fn pass_over(rest: &mut &[u8], major: u8, argument: u64) -> Result<(), Malformed> {
    // Items left to pass over in each open container.
    let mut open: Vec<u64> = Vec::new();
    let (mut major, mut argument) = (major, argument);
    loop {
        let items = match major {
            2 | 3 => take(rest, argument).map(|_| 0)?,
            4 => argument,
            5 => argument.checked_mul(2).ok_or(Malformed("a length points past the end"))?,
            6 => 1,
            // Numbers, and simple values or floats, whose bits are the argument.
            _ => 0,
        };
        if items > 0 {
            if open.len() == NESTED_MAX {
                return Err(Malformed("a value is nested too deeply"));
            }
            open.push(items);
        }
        loop {
            match open.last_mut() {
                None => return Ok(()),
                Some(0) => drop(open.pop()),
                Some(left) => {
                    *left -= 1;
                    break;
                }
            }
        }
        (major, argument) = head(rest)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protobuf_fields() {
        let good = [0x08, 0x96, 0x01, 0x12, 0x02, b'h', b'i', 0x1d, 1, 2, 3, 4];
        let mut fields = Fields::new(&good);
        assert_eq!(fields.next(), Ok(Some((1, Value::Number(150)))));
        assert_eq!(fields.next(), Ok(Some((2, Value::Bytes(b"hi")))));
        assert_eq!(fields.next(), Ok(Some((3, Value::Fixed))));
        assert_eq!(fields.next(), Ok(None));
        let bad: [&[u8]; 7] = [
            &[0x08],
            &[0x12, 0x05, 1],
            &[0x00, 0x01],
            &[0x0b],
            &[0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
            &[0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02],
            &[0x1d, 1],
        ];
        for bytes in bad {
            assert!(Fields::new(bytes).next().is_err(), "{bytes:02x?}");
        }
    }

    fn pairs(bytes: &[u8]) -> Result<Vec<(&str, CborValue<'_>)>, Malformed> {
        let mut map = CborMap::read(bytes)?;
        let mut pairs = Vec::new();
        while let Some(pair) = map.next()? {
            pairs.push(pair);
        }
        Ok(pairs)
    }

    #[test]
    fn cbor_maps() {
        use CborValue::{Bytes, Number, Other};
        type Fields = &'static [(&'static str, CborValue<'static>)];
        let rows: [(&[u8], Fields); 4] = [
            (&[0xa0], &[]),
            (&[0xa2, 0x61, b'a', 0x18, 0x2a, 0x61, b'b', 0x42, 1, 2], &[("a", Number(42)), ("b", Bytes(&[1, 2]))]),
            // [[], {"x": 1}, 42(h'')] and a float, then a number.
            (
                &[0xa2, 0x61, b'a', 0x84, 0x80, 0xa1, 0x61, b'x', 1, 0xd8, 0x2a, 0x40, 0xfb, 0, 0, 0, 0, 0, 0, 0, 0, 0x61, b'b', 7],
                &[("a", Other), ("b", Number(7))],
            ),
            (&[0xa1, 0x61, b'a', 0x20], &[("a", Other)]),
        ];
        for (bytes, expect) in rows {
            assert_eq!(pairs(bytes).as_deref(), Ok(expect), "{bytes:02x?}");
        }
        let deep = [&[0xa1, 0x61, b'a'][..], &[0x81; 5000], &[0x00]].concat();
        let bad: [&[u8]; 11] = [
            &[],
            &[0x80],
            &[0xa1],
            &[0xa0, 0],
            &[0xbf, 0xff],
            &[0xa1, 0x01, 0x01],
            &[0xa2, 0x61, b'a', 1, 0x61, b'a', 1],
            &[0xa1, 0x61, 0xff, 1],
            &[0xbb, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
            &[0xa1, 0x61, b'a', 0x9b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0],
            &deep,
        ];
        for bytes in bad {
            assert!(pairs(bytes).is_err(), "{:02x?}", &bytes[..bytes.len().min(20)]);
        }
    }
}
