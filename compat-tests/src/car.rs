//! CARs by a writer and reader of their own: what goes into the gateway and what comes out of it is not judged by the code
//! under test.

use ring::digest::{SHA256, SHA512, digest};

/// Codecs of the blocks that the tests make.
pub const RAW: u8 = 0x55;
pub const DAG_CBOR: u8 = 0x71;
pub const DAG_PB: u8 = 0x70;

/// A block with its CID (version 1, SHA2-256).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    pub cid: Vec<u8>,
    pub bytes: Vec<u8>,
}

impl Block {
    pub fn new(codec: u8, bytes: &[u8]) -> Block {
        let cid = [&[1, codec, 0x12, 32], digest(&SHA256, bytes).as_ref()].concat();
        Block { cid, bytes: bytes.to_vec() }
    }

    /// With another codec, of two bytes as a varint.
    pub fn with_long_codec(codec: [u8; 2], bytes: &[u8]) -> Block {
        let cid = [&[1, codec[0], codec[1], 0x12, 32], digest(&SHA256, bytes).as_ref()].concat();
        Block { cid, bytes: bytes.to_vec() }
    }

    /// The CID as text, in base32.
    pub fn text(&self) -> String {
        text_of(&self.cid)
    }

    /// Its link in DAG-CBOR.
    pub fn cbor_link(&self) -> Vec<u8> {
        let length = u8::try_from(self.cid.len() + 1).expect("a short CID");
        [&[0xd8, 42, 0x58, length, 0], &self.cid[..]].concat()
    }
}

/// Base58 of version 0; else base32, lower case, without padding, with the prefix of multibase.
pub fn text_of(cid: &[u8]) -> String {
    if cid.starts_with(&[0x12, 32]) {
        return digits(cid, b"123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz");
    }
    let mut text = String::from("b");
    let (mut bits, mut held) = (0_u32, 0);
    for byte in cid {
        held = held << 8 | u32::from(*byte);
        bits += 8;
        while bits >= 5 {
            bits -= 5;
            text.push(char::from(b"abcdefghijklmnopqrstuvwxyz234567"[(held >> bits & 31) as usize]));
        }
        held &= (1 << bits) - 1;
    }
    if bits > 0 {
        text.push(char::from(b"abcdefghijklmnopqrstuvwxyz234567"[(held << (5 - bits) & 31) as usize]));
    }
    text
}

/// Bytes as one number in the base of an alphabet; leading zero bytes stand as its first digit.
pub(crate) fn digits(bytes: &[u8], alphabet: &[u8]) -> String {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    let mut number = bytes.to_vec();
    let mut out = Vec::new();
    while number.iter().any(|byte| *byte != 0) {
        let mut rest = 0;
        for byte in &mut number {
            let value = rest * 256 + usize::from(*byte);
            *byte = (value / alphabet.len()) as u8;
            rest = value % alphabet.len();
        }
        out.push(char::from(alphabet[rest]));
    }
    out.extend(std::iter::repeat_n(char::from(alphabet[0]), zeros));
    out.iter().rev().collect()
}

pub(crate) fn varint(mut value: usize, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A CARv1.
pub fn write(roots: &[&Block], blocks: &[&Block]) -> Vec<u8> {
    assert!(roots.len() < 24, "more roots than the tests need");
    let mut header = vec![0xa2, 0x65];
    header.extend(b"roots");
    header.push(0x80 | roots.len() as u8);
    roots.iter().for_each(|root| header.extend(root.cbor_link()));
    header.push(0x67);
    header.extend(b"version\x01");
    let mut car = Vec::new();
    varint(header.len(), &mut car);
    car.extend(header);
    blocks.iter().for_each(|block| car.extend(frame(block)));
    car
}

/// One block as it stands in a CAR.
pub fn frame(block: &Block) -> Vec<u8> {
    let mut frame = Vec::new();
    varint(block.cid.len() + block.bytes.len(), &mut frame);
    frame.extend(&block.cid);
    frame.extend(&block.bytes);
    frame
}

/// The blocks of a CARv1; each is hashed. `Err` says what is wrong.
pub fn read(mut car: &[u8]) -> Result<Vec<Block>, String> {
    let header = number(&mut car)?;
    take(&mut car, header)?;
    let mut blocks = Vec::new();
    while !car.is_empty() {
        let length = number(&mut car)?;
        let frame = take(&mut car, length)?;
        let cid_bytes = checked_cid(frame).map_err(|error| format!("block {}: {error}", blocks.len()))?;
        blocks.push(Block { cid: frame[..cid_bytes].to_vec(), bytes: frame[cid_bytes..].to_vec() });
    }
    Ok(blocks)
}

/// The roots in the header of a CARv1: the links in it, whatever else it says.
pub fn roots(mut car: &[u8]) -> Result<Vec<String>, String> {
    let length = number(&mut car)?;
    let mut header = take(&mut car, length)?;
    let mut roots = Vec::new();
    while !header.is_empty() {
        // Tag 42, a byte string whose length is one byte or stands in the head, a zero byte.
        let head = match header {
            [0xd8, 42, 0x58, bytes, 0, ..] => Some((5, usize::from(*bytes))),
            [0xd8, 42, short @ 0x41..0x58, 0, ..] => Some((4, usize::from(short - 0x40))),
            _ => None,
        };
        match head {
            Some((head, bytes)) => {
                take(&mut header, head)?;
                roots.push(text_of(take(&mut header, bytes - 1)?));
            }
            None => header = &header[1..],
        }
    }
    Ok(roots)
}

/// The length of the CID that a frame begins with; what follows hashes to it.
fn checked_cid(frame: &[u8]) -> Result<usize, String> {
    let mut rest = frame;
    if !frame.starts_with(&[0x12, 32]) {
        if number(&mut rest)? != 1 {
            return Err("a CID that is neither of version 0 nor of version 1".to_owned());
        }
        number(&mut rest)?;
    }
    let (kind, length) = (number(&mut rest)?, number(&mut rest)?);
    let hash = take(&mut rest, length)?;
    let right = match kind {
        0x12 => digest(&SHA256, rest),
        0x13 => digest(&SHA512, rest),
        // Identity among them: those have no place in a CAR.
        _ => return Err(format!("a hash of kind {kind:#x}")),
    };
    if right.as_ref() != hash {
        return Err("it does not hash to its CID".to_owned());
    }
    Ok(frame.len() - rest.len())
}

fn take<'a>(from: &mut &'a [u8], count: usize) -> Result<&'a [u8], String> {
    let (taken, rest) = from.split_at_checked(count).ok_or("the CAR is cut")?;
    *from = rest;
    Ok(taken)
}

fn number(from: &mut &[u8]) -> Result<usize, String> {
    let (mut value, mut shift) = (0, 0);
    loop {
        let byte = take(from, 1)?[0];
        value |= usize::from(byte & 0x7f) << shift;
        shift += 7;
        if byte < 0x80 {
            return Ok(value);
        }
        if shift > 56 {
            return Err("a varint without end".to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let blocks = [Block::new(RAW, b"one"), Block::with_long_codec([0xa9, 0x02], b"{}"), Block::new(RAW, &[7; 5000])];
        let all: Vec<&Block> = blocks.iter().collect();
        let mut car = write(&all[..1], &all);
        assert_eq!(read(&car).as_deref(), Ok(&blocks[..]));
        *car.last_mut().expect("bytes") ^= 1;
        assert!(read(&car).is_err());
        assert!(read(&write(&[], &all)[..6000 - 1000]).is_err(), "a cut is seen");
        assert_eq!(Block::new(RAW, b"hello world").text(), crate::unixfs::raw(b"hello world").cid());
    }
}
