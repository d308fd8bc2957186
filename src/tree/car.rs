//! CARv1 and CARv2 (<https://ipld.io/specs/transport/car/>): headers and frames, written and read. Pure: packs, imports and
//! exports bring the bytes.
//!
//! Reading is bounded: every length is checked against a limit before anything of it is kept, varints are at most nine
//! bytes, a frame without a CID is refused. Blocks are *not* checked against their CIDs here.
//!
//! A CARv1 is a header (varint length, then DAG-CBOR `{roots, version: 1}`) and frames: varint length, CID, block. A CARv2
//! wraps one: an 11-byte pragma, a 40-byte header that says where the CARv1 payload and an optional index lie, those two.

use bytes::{Buf, Bytes, BytesMut};
use thiserror::Error;

use crate::address::Cid;

/// Largest CARv1 header that is read: some 25,000 roots. A real one has one root.
pub const HEADER_BYTES_MAX: usize = 1 << 20;

/// Largest block that is read: the 2 MiB that the network's programs agree on.
pub const BLOCK_BYTES_MAX: usize = 2 << 20;

/// Longest CID: version, codec, hash code and digest length as varints, and a digest of 128 bytes.
const CID_BYTES_MAX: usize = 9 + 9 + 9 + 2 + 128;

/// Bytes of pragma and header of a CARv2.
pub const V2_PREFIX_BYTES: usize = 11 + 40;

/// The pragma: a CARv1 header that says version 2 and has no roots.
const V2_PRAGMA: [u8; 11] = *b"\x0a\xa1gversion\x02";

/// Longest varint of the multiformats: 63 bits.
const VARINT_BYTES_MAX: usize = 9;

/// Why bytes are not a CAR that we read. None of these passes with a retry.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CarError {
    #[error("the CAR ends in the middle of a header or block")]
    Truncated,
    #[error("a varint of the CAR is longer than {VARINT_BYTES_MAX} bytes or not in its shortest form")]
    BadVarint,
    #[error("the CAR's header: {0}")]
    BadHeader(&'static str),
    #[error("CAR version {0}; 1 and 2 are known")]
    Version(u64),
    #[error("the CAR has a frame of length zero")]
    EmptyFrame,
    #[error("the CAR has a frame of {bytes} bytes; blocks are read up to {BLOCK_BYTES_MAX} bytes")]
    FrameTooLarge { bytes: u64 },
    #[error("the CAR has a frame without a readable CID")]
    BadCid,
}

/// Parts of a CAR found in the bytes so far, or how many bytes it takes at least.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed<T> {
    /// The value and how many bytes it took.
    Done { value: T, used_bytes: usize },
    /// Not before the bytes are at least this many.
    More { needed_bytes: usize },
}

// ---------- varints

/// Appends an unsigned varint (multiformats): seven bits a byte, least significant first.
pub(in crate::tree) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Bytes of a varint.
pub(in crate::tree) fn varint_len(value: u64) -> usize {
    (64 - (value | 1).leading_zeros()).div_ceil(7) as usize
}

/// Reads a varint in its shortest form, of at most nine bytes.
pub(in crate::tree) fn parse_varint(bytes: &[u8]) -> Result<Parsed<u64>, CarError> {
    let mut value = 0;
    for (index, &byte) in bytes.iter().take(VARINT_BYTES_MAX).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte < 0x80 {
            let is_shortest = byte != 0 || index == 0;
            return if is_shortest { Ok(Parsed::Done { value, used_bytes: index + 1 }) } else { Err(CarError::BadVarint) };
        }
    }
    if bytes.len() >= VARINT_BYTES_MAX { Err(CarError::BadVarint) } else { Ok(Parsed::More { needed_bytes: bytes.len() + 1 }) }
}

/// Cuts `varint length || body` off the front. `limit` sees the length before the body is waited for.
fn parse_section(bytes: &[u8], limit: impl FnOnce(u64) -> Result<usize, CarError>) -> Result<Parsed<&[u8]>, CarError> {
    let (length, at) = match parse_varint(bytes)? {
        Parsed::Done { value, used_bytes } => (limit(value)?, used_bytes),
        Parsed::More { needed_bytes } => return Ok(Parsed::More { needed_bytes }),
    };
    Ok(match bytes.get(at..at + length) {
        Some(value) => Parsed::Done { value, used_bytes: at + length },
        None => Parsed::More { needed_bytes: at + length },
    })
}

// ---------- headers

/// The header of a CARv1, or the pragma of a CARv2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Head {
    V1 { roots: Vec<Cid> },
    V2,
}

/// The header of a CARv1.
pub fn encode_v1_header(roots: &[Cid]) -> Vec<u8> {
    let mut body = b"\xa2eroots".to_vec();
    put_cbor_head(&mut body, CBOR_ARRAY, roots.len() as u64);
    for root in roots {
        let cid = root.to_bytes();
        body.extend_from_slice(&CBOR_LINK_TAG);
        put_cbor_head(&mut body, CBOR_BYTES, 1 + cid.len() as u64);
        body.push(0);
        body.extend_from_slice(&cid);
    }
    body.extend_from_slice(b"gversion\x01");
    let mut out = Vec::with_capacity(body.len() + 3);
    put_varint(&mut out, body.len() as u64);
    out.extend_from_slice(&body);
    out
}

/// Reads what a CAR begins with.
pub fn parse_head(bytes: &[u8]) -> Result<Parsed<Head>, CarError> {
    let limit = |length| match usize::try_from(length) {
        Ok(0) => Err(CarError::BadHeader("it is empty")),
        Ok(length) if length <= HEADER_BYTES_MAX => Ok(length),
        _ => Err(CarError::BadHeader("it is longer than 1 MiB")),
    };
    Ok(match parse_section(bytes, limit)? {
        Parsed::Done { value, used_bytes } => Parsed::Done { value: parse_header_map(value)?, used_bytes },
        Parsed::More { needed_bytes } => Parsed::More { needed_bytes },
    })
}

/// Where a CARv2's parts lie, from its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct V2Header {
    /// 128 bits of which only the first (a complete index) has a meaning; kept as written.
    pub characteristics: [u8; 16],
    pub data_offset: u64,
    pub data_bytes: u64,
    /// 0 if there is no index.
    pub index_offset: u64,
}

impl V2Header {
    /// Pragma and header.
    pub fn encode(&self) -> [u8; V2_PREFIX_BYTES] {
        let mut out = [0; V2_PREFIX_BYTES];
        out[..11].copy_from_slice(&V2_PRAGMA);
        out[11..27].copy_from_slice(&self.characteristics);
        out[27..35].copy_from_slice(&self.data_offset.to_le_bytes());
        out[35..43].copy_from_slice(&self.data_bytes.to_le_bytes());
        out[43..].copy_from_slice(&self.index_offset.to_le_bytes());
        out
    }

    /// Reads pragma and header from the first [`V2_PREFIX_BYTES`] bytes.
    pub fn parse(bytes: &[u8]) -> Result<V2Header, CarError> {
        let bytes: &[u8; V2_PREFIX_BYTES] = bytes.first_chunk().ok_or(CarError::Truncated)?;
        if bytes[..11] != V2_PRAGMA {
            return Err(CarError::BadHeader("it does not begin with the pragma of a CARv2"));
        }
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let header = V2Header {
            characteristics: bytes[11..27].try_into().expect("sixteen bytes"),
            data_offset: word(27),
            data_bytes: word(35),
            index_offset: word(43),
        };
        let end = header.data_offset.checked_add(header.data_bytes).ok_or(CarError::BadHeader("its offsets overflow"))?;
        if header.data_offset < V2_PREFIX_BYTES as u64 || header.data_bytes == 0 {
            return Err(CarError::BadHeader("its payload lies inside the header or is empty"));
        }
        if header.index_offset != 0 && header.index_offset < end {
            return Err(CarError::BadHeader("its index lies inside the payload"));
        }
        Ok(header)
    }
}

const CBOR_UINT: u8 = 0;
const CBOR_BYTES: u8 = 2;
const CBOR_TEXT: u8 = 3;
const CBOR_ARRAY: u8 = 4;
const CBOR_MAP: u8 = 5;
/// Tag 42, IPLD's link.
const CBOR_LINK_TAG: [u8; 2] = [0xd8, 0x2a];

fn put_cbor_head(out: &mut Vec<u8>, major: u8, value: u64) {
    let major = major << 5;
    match value {
        0..24 => out.push(major | value as u8),
        24..0x100 => out.extend_from_slice(&[major | 24, value as u8]),
        0x100..0x1_0000 => {
            out.push(major | 25);
            out.extend_from_slice(&(value as u16).to_be_bytes());
        }
        0x1_0000..0x1_0000_0000 => {
            out.push(major | 26);
            out.extend_from_slice(&(value as u32).to_be_bytes());
        }
        _ => {
            out.push(major | 27);
            out.extend_from_slice(&value.to_be_bytes());
        }
    }
}

/// A cursor over DAG-CBOR that knows just what a CAR header holds. Nothing is allocated by a length that is only claimed.
struct Cbor<'a>(&'a [u8]);

impl<'a> Cbor<'a> {
    fn take(&mut self, len: u64) -> Result<&'a [u8], CarError> {
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let (part, rest) = self.0.split_at_checked(len).ok_or(CarError::BadHeader("its CBOR is cut short"))?;
        self.0 = rest;
        Ok(part)
    }

    /// The value of a head of this major type.
    fn head(&mut self, major: u8) -> Result<u64, CarError> {
        let first = self.take(1)?[0];
        if first >> 5 != major {
            return Err(CarError::BadHeader("a value is not of the kind it must be"));
        }
        let (value, least) = match first & 31 {
            small @ 0..24 => return Ok(u64::from(small)),
            24 => (self.number(1)?, 24),
            25 => (self.number(2)?, 0x100),
            26 => (self.number(4)?, 0x1_0000),
            27 => (self.number(8)?, 0x1_0000_0000),
            _ => return Err(CarError::BadHeader("its CBOR has an indefinite length")),
        };
        if value < least {
            return Err(CarError::BadHeader("a number is not in its shortest form"));
        }
        Ok(value)
    }

    fn number(&mut self, bytes: u64) -> Result<u64, CarError> {
        Ok(self.take(bytes)?.iter().fold(0, |value, &byte| (value << 8) | u64::from(byte)))
    }

    fn link(&mut self) -> Result<Cid, CarError> {
        if self.take(2)? != CBOR_LINK_TAG {
            return Err(CarError::BadHeader("a root is not a link"));
        }
        let length = self.head(CBOR_BYTES)?;
        match self.take(length)?.split_first() {
            Some((0, cid)) => whole_cid(cid).ok_or(CarError::BadCid),
            _ => Err(CarError::BadCid),
        }
    }
}

fn parse_header_map(bytes: &[u8]) -> Result<Head, CarError> {
    let mut cbor = Cbor(bytes);
    let (mut version, mut roots) = (None, None);
    for _ in 0..cbor.head(CBOR_MAP)? {
        let key_bytes = cbor.head(CBOR_TEXT)?;
        match cbor.take(key_bytes)? {
            b"version" if version.is_none() => version = Some(cbor.head(CBOR_UINT)?),
            b"roots" if roots.is_none() => {
                let count = cbor.head(CBOR_ARRAY)?;
                roots = Some((0..count).map(|_| cbor.link()).collect::<Result<Vec<_>, _>>()?);
            }
            _ => return Err(CarError::BadHeader("a key that is unknown or stands twice")),
        }
    }
    match (version, roots) {
        _ if !cbor.0.is_empty() => Err(CarError::BadHeader("bytes follow its map")),
        (None, _) => Err(CarError::BadHeader("it has no version")),
        (Some(1), Some(roots)) => Ok(Head::V1 { roots }),
        (Some(1), None) => Err(CarError::BadHeader("it has no roots")),
        (Some(2), None) => Ok(Head::V2),
        (Some(2), Some(_)) => Err(CarError::BadHeader("version 2 with roots")),
        (Some(other), _) => Err(CarError::Version(other)),
    }
}

// ---------- frames

/// What stands before a block of `block_bytes` bytes: the frame's length and the CID.
pub fn encode_frame_start(cid: &Cid, block_bytes: usize) -> Vec<u8> {
    let cid = cid.to_bytes();
    let mut out = Vec::with_capacity(cid.len() + 4);
    put_varint(&mut out, (cid.len() + block_bytes) as u64);
    out.extend_from_slice(&cid);
    out
}

/// Bytes of a whole frame.
pub fn frame_bytes(cid_bytes: usize, block_bytes: usize) -> u64 {
    let body = cid_bytes as u64 + block_bytes as u64;
    varint_len(body) as u64 + body
}

/// A frame of a CAR: its CID, and where its block lies in the bytes that were parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub cid: Cid,
    /// The block ends where the frame ends. A block of no bytes is a block (an empty file).
    pub block_start: usize,
}

/// Reads the frame at the front.
pub fn parse_frame(bytes: &[u8]) -> Result<Parsed<Frame>, CarError> {
    let limit = |length| match usize::try_from(length) {
        Ok(0) => Err(CarError::EmptyFrame),
        Ok(length) if length <= BLOCK_BYTES_MAX + CID_BYTES_MAX => Ok(length),
        _ => Err(CarError::FrameTooLarge { bytes: length }),
    };
    let (body, used_bytes) = match parse_section(bytes, limit)? {
        Parsed::Done { value, used_bytes } => (value, used_bytes),
        Parsed::More { needed_bytes } => return Ok(Parsed::More { needed_bytes }),
    };
    let mut rest = body;
    let cid = Cid::read_bytes(&mut rest).map_err(|_| CarError::BadCid)?;
    if rest.len() > BLOCK_BYTES_MAX {
        return Err(CarError::FrameTooLarge { bytes: body.len() as u64 });
    }
    Ok(Parsed::Done { value: Frame { cid, block_start: used_bytes - rest.len() }, used_bytes })
}

fn whole_cid(mut bytes: &[u8]) -> Option<Cid> {
    let cid = Cid::read_bytes(&mut bytes).ok()?;
    bytes.is_empty().then_some(cid)
}

// ---------- a stream of pieces

/// What a [`CarDecoder`] finds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CarItem {
    /// Comes once, first.
    Roots(Vec<Cid>),
    /// A block, not checked against its CID. Its bytes share the decoder's buffer: copy what is kept for long.
    Block {
        cid: Cid,
        bytes: Bytes,
        /** Where its bytes begin in the CAR. */
        offset: u64,
    },
}

/// Reads a CARv1 or CARv2 from pieces of any size: [`push`](CarDecoder::push) a piece, call [`next`](CarDecoder::next_item)
/// until it gives `None`, and so on; [`finish`](CarDecoder::finish) tells a CAR that was cut. It keeps at most one unfinished
/// frame and the pieces pushed since the last `None`. The index of a CARv2 is skipped.
#[derive(Default)]
pub struct CarDecoder {
    waiting: BytesMut,
    /// Bytes before `waiting`.
    position: u64,
    state: State,
}

#[derive(Clone, Copy, Default)]
enum State {
    #[default]
    Head,
    /// After the pragma of a CARv2, until its payload begins.
    V2Header,
    /// The CARv1 header inside a CARv2.
    InnerHead {
        end: u64,
    },
    Frames {
        end: Option<u64>,
    },
    /// Behind the payload of a CARv2.
    Tail,
}

impl CarDecoder {
    /// Nothing read yet.
    pub fn new() -> CarDecoder {
        CarDecoder::default()
    }

    /// The next bytes of the CAR.
    pub fn push(&mut self, bytes: &[u8]) {
        if !matches!(self.state, State::Tail) {
            self.waiting.extend_from_slice(bytes);
        }
    }

    /// The next thing in the bytes pushed so far; `None`: push more. After an error the decoder is of no more use.
    pub fn next_item(&mut self) -> Result<Option<CarItem>, CarError> {
        loop {
            match self.state {
                State::Head => {
                    let Some((head, used_bytes)) = done(parse_head(&self.waiting)?) else { return Ok(None) };
                    if let Head::V1 { roots } = head {
                        self.skip(used_bytes);
                        self.state = State::Frames { end: None };
                        return Ok(Some(CarItem::Roots(roots)));
                    }
                    self.state = State::V2Header;
                }
                State::V2Header => {
                    if self.waiting.len() < V2_PREFIX_BYTES || !self.skip_to_payload()? {
                        return Ok(None);
                    }
                }
                State::InnerHead { end } => {
                    let (view, is_whole) = self.view(Some(end));
                    match parse_head(view)? {
                        Parsed::Done { value: Head::V1 { roots }, used_bytes } => {
                            self.skip(used_bytes);
                            self.state = State::Frames { end: Some(end) };
                            return Ok(Some(CarItem::Roots(roots)));
                        }
                        Parsed::Done { value: Head::V2, .. } => {
                            return Err(CarError::BadHeader("a CARv2 inside a CARv2"));
                        }
                        Parsed::More { .. } if is_whole => return Err(CarError::Truncated),
                        Parsed::More { .. } => return Ok(None),
                    }
                }
                State::Frames { end } => {
                    let (view, is_whole) = self.view(end);
                    if is_whole && view.is_empty() {
                        self.state = State::Tail;
                        continue;
                    }
                    return match parse_frame(view)? {
                        Parsed::Done { value, used_bytes } => Ok(Some(self.block(value, used_bytes))),
                        Parsed::More { .. } if is_whole => Err(CarError::Truncated),
                        Parsed::More { .. } => Ok(None),
                    };
                }
                State::Tail => {
                    self.waiting.clear();
                    return Ok(None);
                }
            }
        }
    }

    /// Whether the CAR was whole. To be called when there are no more bytes and `next_item` has given `None`.
    pub fn finish(self) -> Result<(), CarError> {
        match self.state {
            State::Tail => Ok(()),
            State::Frames { end: None } if self.waiting.is_empty() => Ok(()),
            _ => Err(CarError::Truncated),
        }
    }

    /// The bytes that belong to the payload, and whether its end is among them.
    fn view(&self, end: Option<u64>) -> (&[u8], bool) {
        let left = end.map_or(u64::MAX, |end| end - self.position);
        match usize::try_from(left) {
            Ok(left) if left <= self.waiting.len() => (&self.waiting[..left], true),
            _ => (&self.waiting, false),
        }
    }

    /// Reads the CARv2 header once and drops the padding behind it; true when the payload begins.
    fn skip_to_payload(&mut self) -> Result<bool, CarError> {
        // The header stays in `waiting` until the padding has come as well, if that is short; a long padding is refused,
        // for it has no use but to make us read.
        const PADDING_BYTES_MAX: u64 = 1 << 20;
        let header = V2Header::parse(&self.waiting)?;
        if header.data_offset > V2_PREFIX_BYTES as u64 + PADDING_BYTES_MAX {
            return Err(CarError::BadHeader("more than 1 MiB of padding before its payload"));
        }
        if (self.waiting.len() as u64) < header.data_offset {
            return Ok(false);
        }
        self.skip(header.data_offset as usize);
        self.state = State::InnerHead { end: header.data_offset + header.data_bytes };
        Ok(true)
    }

    fn skip(&mut self, bytes: usize) {
        self.waiting.advance(bytes);
        self.position += bytes as u64;
    }

    fn block(&mut self, frame: Frame, used_bytes: usize) -> CarItem {
        let offset = self.position + frame.block_start as u64;
        self.position += used_bytes as u64;
        let bytes = self.waiting.split_to(used_bytes).freeze().slice(frame.block_start..);
        CarItem::Block { cid: frame.cid, bytes, offset }
    }
}

fn done<T>(parsed: Parsed<T>) -> Option<(T, usize)> {
    match parsed {
        Parsed::Done { value, used_bytes } => Some((value, used_bytes)),
        Parsed::More { .. } => None,
    }
}

/// Foreign bytes as a CAR, at one stroke and in pieces: both find the same. Nothing here may panic.
pub fn fuzz(bytes: &[u8]) {
    let read = |piece_bytes: usize| {
        let (mut decoder, mut items) = (CarDecoder::new(), Vec::new());
        for piece in bytes.chunks(piece_bytes) {
            decoder.push(piece);
            loop {
                match decoder.next_item() {
                    Ok(Some(item)) => items.push(item),
                    Ok(None) => break,
                    Err(_) => return (items, false),
                }
            }
        }
        (items, decoder.finish().is_ok())
    };
    let whole = read(bytes.len().max(1));
    for piece_bytes in [1, 7, 64] {
        assert_eq!(read(piece_bytes), whole, "in pieces of {piece_bytes}");
    }
    if let Ok(header) = V2Header::parse(bytes) {
        assert_eq!(header.encode()[..], bytes[..V2_PREFIX_BYTES]);
    }
    let _ = parse_frame(bytes);
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};
    use std::{env, fs};

    use ring::digest::{SHA256, digest};

    use super::*;
    use crate::address::{cid_v0, cid_v1, codec, hash};

    fn cid_of(block: &[u8]) -> Cid {
        cid_v1(codec::RAW, digest(&SHA256, block).as_ref().try_into().unwrap())
    }

    fn frame(block: &[u8]) -> Vec<u8> {
        [encode_frame_start(&cid_of(block), block.len()), block.to_vec()].concat()
    }

    fn v1(blocks: &[&[u8]]) -> Vec<u8> {
        let frames = blocks.iter().flat_map(|block| frame(block));
        encode_v1_header(&[cid_of(blocks[0])]).into_iter().chain(frames).collect()
    }

    fn v2(payload: &[u8], padding: usize, index: &[u8]) -> Vec<u8> {
        let data_offset = (V2_PREFIX_BYTES + padding) as u64;
        let data_bytes = payload.len() as u64;
        let header = V2Header { characteristics: [0; 16], data_offset, data_bytes, index_offset: data_offset + data_bytes };
        [&header.encode()[..], &vec![0; padding], payload, index].concat()
    }

    /// Roots and blocks of a CAR.
    type Read = (Vec<Cid>, Vec<(Cid, Bytes)>);

    /// Everything in a CAR given in pieces of this length.
    fn decode(car: &[u8], piece: usize) -> Result<Read, CarError> {
        let mut decoder = CarDecoder::new();
        let (mut roots, mut blocks) = (None, Vec::new());
        for part in car.chunks(piece) {
            decoder.push(part);
            while let Some(item) = decoder.next_item()? {
                match item {
                    CarItem::Roots(found) => assert!(roots.replace(found).is_none()),
                    CarItem::Block { cid, bytes, offset } => {
                        assert_eq!(bytes, car[offset as usize..][..bytes.len()]);
                        blocks.push((cid, bytes));
                    }
                }
            }
        }
        decoder.finish()?;
        Ok((roots.expect("a whole CAR has had its header"), blocks))
    }

    #[test]
    fn varints() {
        for value in [0, 1, 127, 128, 255, 300, 16_383, 16_384, u64::from(u32::MAX), (1 << 63) - 1] {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            assert_eq!(out.len(), varint_len(value));
            assert_eq!(parse_varint(&out), Ok(Parsed::Done { value, used_bytes: out.len() }));
            for cut in 0..out.len() {
                assert_eq!(parse_varint(&out[..cut]), Ok(Parsed::More { needed_bytes: cut + 1 }));
            }
        }
        assert_eq!(varint_len(u64::MAX), 10);
        for wrong in [&b"\x80\x00"[..], b"\xff\x80\x00", &[0xff; 9], &[0x80; 9], &[0xff; 200]] {
            assert_eq!(parse_varint(wrong), Err(CarError::BadVarint), "{wrong:x?}");
        }
    }

    #[test]
    fn written_cars_read_back_in_pieces_of_any_size() {
        let blocks = [&b"hello"[..], b"", &[7; 70_000], b"x"];
        let payload = v1(&blocks);
        for car in [payload.clone(), v2(&payload, 0, b"index"), v2(&payload, 1000, b""), v2(&payload, 3, &[9; 5000])] {
            for piece in [1, 2, 7, 50, 51, 52, 1000, car.len()] {
                let (roots, found) = decode(&car, piece).unwrap();
                assert_eq!(roots, [cid_of(b"hello")]);
                let expect: Vec<_> = blocks.iter().map(|block| (cid_of(block), Bytes::copy_from_slice(block))).collect();
                assert_eq!(found, expect, "pieces of {piece}");
            }
        }
    }

    #[test]
    fn a_cut_car_is_told() {
        let payload = v1(&[b"hello", b"world"]);
        let borders = [payload.len() - frame(b"world").len(), payload.len() - 2 * frame(b"world").len()];
        for cut in (0..payload.len()).filter(|cut| !borders.contains(cut)) {
            assert_eq!(decode(&payload[..cut], 10), Err(CarError::Truncated), "cut at {cut}");
        }
        let car = v2(&payload, 0, b"");
        for cut in 0..car.len() {
            assert_eq!(decode(&car[..cut], 10), Err(CarError::Truncated), "cut at {cut}");
        }
        // The payload's length in the CARv2 header ends in the middle of a frame.
        let mut short = car.clone();
        short[35..43].copy_from_slice(&(payload.len() as u64 - 1).to_le_bytes());
        assert_eq!(decode(&short, 10), Err(CarError::Truncated));
    }

    #[test]
    fn headers_of_known_bytes() {
        let root = cid_v0([0; 32]);
        let expect = format!("38a265726f6f747381d82a582300{}{}6776657273696f6e01", "1220", "00".repeat(32));
        assert_eq!(hex::encode(encode_v1_header(&[root])), expect);
        assert_eq!(hex::encode(encode_v1_header(&[])), "11a265726f6f7473806776657273696f6e01");
        for count in [0, 1, 23, 24, 300] {
            let roots = vec![root; count];
            let header = encode_v1_header(&roots);
            let expect = Parsed::Done { value: Head::V1 { roots }, used_bytes: header.len() };
            assert_eq!(parse_head(&header), Ok(expect));
        }
    }

    #[test]
    fn wrong_heads() {
        let check = |body: &[u8], expect: CarError| {
            let mut head = Vec::new();
            put_varint(&mut head, body.len() as u64);
            head.extend_from_slice(body);
            assert_eq!(parse_head(&head), Err(expect), "{body:x?}");
        };
        let bad = |text| CarError::BadHeader(text);
        check(b"", bad("it is empty"));
        check(b"\xa0", bad("it has no version"));
        check(b"\xa1gversion\x01", bad("it has no roots"));
        check(b"\xa1gversion\x03", CarError::Version(3));
        check(b"\xa1gversion\x18\x01", bad("a number is not in its shortest form"));
        check(b"\xa1gversion\x20", bad("a value is not of the kind it must be"));
        check(b"\xa1gversion\x02\x00", bad("bytes follow its map"));
        check(b"\xa2gversion\x01gversion\x01", bad("a key that is unknown or stands twice"));
        check(b"\xa2eroots\x80gversion\x02", bad("version 2 with roots"));
        check(b"\xa2eroots\x81\x41\x00gversion\x01", bad("a root is not a link"));
        check(b"\xa2eroots\x81\xd8\x2a\x41\x00gversion\x01", CarError::BadCid);
        check(b"\xa2eroots\x9f\xffgversion\x01", bad("its CBOR has an indefinite length"));
        // Lengths that are only claimed: 2^64 - 1 roots, map entries, key bytes.
        check(b"\xa2eroots\x9b\xff\xff\xff\xff\xff\xff\xff\xffgversion\x01", bad("a root is not a link"));
        check(b"\xbb\xff\xff\xff\xff\xff\xff\xff\xff", bad("its CBOR is cut short"));
        check(b"\xa1\x7b\xff\xff\xff\xff\xff\xff\xff\xff", bad("its CBOR is cut short"));
        check(b"{\"roots\":[]}", bad("a value is not of the kind it must be"));
        // Too long is told before it has come.
        let mut huge = Vec::new();
        put_varint(&mut huge, HEADER_BYTES_MAX as u64 + 1);
        assert_eq!(parse_head(&huge), Err(bad("it is longer than 1 MiB")));
    }

    #[test]
    fn wrong_frames() {
        let start = encode_v1_header(&[cid_of(b"")]);
        let check = |frame: &[u8], expect: CarError| {
            assert_eq!(decode(&[&start, frame].concat(), 1 << 20), Err(expect), "{frame:x?}");
        };
        check(&[0], CarError::EmptyFrame);
        check(&[0xff; 9], CarError::BadVarint);
        check(&[5, 1, 0x55, 0x12, 0x20, 0], CarError::BadCid);
        check(&[1, 1], CarError::BadCid);
        check(&[4, 0, 0x55, 0, 0], CarError::BadCid);
        // A digest of 129 bytes is longer than any that we take.
        check(&[&[0x86, 0x01, 1, 0x55, 0, 0x81, 0x01][..], &[0; 129]].concat(), CarError::BadCid);
        for bytes in [(BLOCK_BYTES_MAX + CID_BYTES_MAX + 1) as u64, 1 << 40, (1 << 63) - 1] {
            let mut frame = Vec::new();
            put_varint(&mut frame, bytes);
            check(&frame, CarError::FrameTooLarge { bytes });
        }
        let large = vec![0; BLOCK_BYTES_MAX + 1];
        check(&frame(&large), CarError::FrameTooLarge { bytes: large.len() as u64 + 36 });
        assert_eq!(decode(&v1(&[&large[1..]]), 1 << 20).unwrap().1.len(), 1);
        assert!(decode(&[&start[..], &[4, 1, 0x55, 0, 0]].concat(), 9).is_ok(), "an identity CID of no bytes");
    }

    #[test]
    fn wrong_v2_headers() {
        let car = v2(&v1(&[b"hello"]), 0, b"");
        let check = |at: usize, value: u64, expect: &'static str| {
            let mut wrong = car.clone();
            wrong[at..at + 8].copy_from_slice(&value.to_le_bytes());
            assert_eq!(decode(&wrong, 20), Err(CarError::BadHeader(expect)));
        };
        check(27, 50, "its payload lies inside the header or is empty");
        check(27, u64::MAX, "its offsets overflow");
        check(27, 1 << 40, "its index lies inside the payload");
        check(35, 0, "its payload lies inside the header or is empty");
        check(43, 52, "its index lies inside the payload");
        let far = V2Header { characteristics: [0; 16], data_offset: 1 << 40, data_bytes: 1, index_offset: 0 };
        assert_eq!(decode(&far.encode(), 20), Err(CarError::BadHeader("more than 1 MiB of padding before its payload")));
        let nested = v2(&car, 0, b"");
        assert_eq!(decode(&nested, 20), Err(CarError::BadHeader("a CARv2 inside a CARv2")));
        assert!(V2Header::parse(&car[..50]).is_err());
    }

    proptest::proptest! {
        /// Any bytes give an error or an end, never a panic, and never more than the bytes there are.
        #[test]
        fn any_bytes(mut noise: Vec<u8>, piece in 1usize..300, at: proptest::sample::Index, cut: proptest::sample::Index) {
            let _ = decode(&noise, piece);
            let mut car = v2(&v1(&[b"hello", &[1; 200], b""]), 2, b"");
            let at = at.index(car.len());
            car.truncate(at.max(cut.index(car.len())));
            noise.truncate(8);
            car.splice(at..at, noise);
            let _ = decode(&car, piece);
        }
    }

    /// CARs that other programs wrote.
    #[test]
    fn the_conformance_fixtures() {
        let Some(shared) = env::var_os("SKYGATE_SHARED").map(PathBuf::from) else {
            println!("SKIPPED: SKYGATE_SHARED does not name the folder with the fixtures");
            return;
        };
        let (mut cars, mut checked) = (0, 0);
        for folder in fs::read_dir(shared.join("conformance/fixtures")).unwrap().map(|entry| entry.unwrap().path()) {
            for path in list(&folder).into_iter().filter(|path| path.extension().is_some_and(|ext| ext == "car")) {
                let car = fs::read(&path).unwrap();
                let (_, blocks) = decode(&car, 1000).unwrap_or_else(|error| panic!("{path:?}: {error}"));
                cars += 1;
                for (cid, bytes) in blocks.iter().filter(|(cid, _)| cid.hash().code() == hash::SHA2_256) {
                    assert_eq!(digest(&SHA256, bytes).as_ref(), cid.hash().digest(), "{path:?} {cid}");
                    checked += 1;
                }
            }
        }
        assert!(cars >= 20 && checked > cars, "{cars} CARs, {checked} blocks");
    }

    fn list(folder: &Path) -> Vec<PathBuf> {
        fs::read_dir(folder).map(|entries| entries.map(|entry| entry.unwrap().path()).collect()).unwrap_or_default()
    }

    #[test]
    fn fuzz_corpus() {
        let cid = crate::address::cid_v1(crate::address::codec::RAW, [7; 32]);
        let v1 = [encode_v1_header(&[cid, cid]), encode_frame_start(&cid, 20), vec![1; 20], encode_frame_start(&cid, 0)].concat();
        let header = V2Header {
            characteristics: [0; 16],
            data_offset: V2_PREFIX_BYTES as u64 + 5,
            data_bytes: v1.len() as u64,
            index_offset: V2_PREFIX_BYTES as u64 + 5 + v1.len() as u64,
        };
        let v2 = [&header.encode()[..], &[0; 5], &v1, b"some index"].concat();
        crate::address::test_shared::fuzz_around(fuzz, &[v1, v2, encode_v1_header(&[])], 700);
    }
}
