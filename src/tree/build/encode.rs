//! dag-pb and UnixFS as they are written: only the shapes that a build makes, in the one canonical order.
//!
//! dag-pb: links (field 2: `Hash` 1, `Name` 2, `Tsize` 3), then data (field 1). UnixFS: `Type` 1, `Data` 2, `filesize` 3,
//! `blocksizes` 4, `hashType` 5, `fanout` 6. Every field number is below 16, so every tag is one byte.

use crate::tree::car::{put_varint, varint_len};

// UnixFS `Type` field with its value.
const TYPE_FOLDER: [u8; 2] = [0x08, 1];
const TYPE_FILE: [u8; 2] = [0x08, 2];
const TYPE_SYMLINK: [u8; 2] = [0x08, 4];
const TYPE_SHARD: [u8; 2] = [0x08, 5];
// UnixFS field tags.
const UNIXFS_DATA: u8 = 0x12;
const UNIXFS_FILESIZE: u8 = 0x18;
const UNIXFS_BLOCKSIZE: u8 = 0x20;
// `hashType` murmur3-x64-64 (0x22) and `fanout` 256.
const SHARD_TAIL: [u8; 5] = [0x28, 0x22, 0x30, 0x80, 0x02];
// dag-pb field tags.
const PB_DATA: u8 = 0x0a;
const PB_LINK: u8 = 0x12;
const LINK_HASH: u8 = 0x0a;
const LINK_NAME: u8 = 0x12;
const LINK_TSIZE: u8 = 0x18;

/// A plain folder's dag-pb data field, and so also the whole block of an empty folder.
pub(super) const FOLDER_DATA: [u8; 4] = [PB_DATA, 2, TYPE_FOLDER[0], TYPE_FOLDER[1]];

/// A dag-pb link about to be written. A name of no bytes is still written, as all writers of dag-pb do.
#[derive(Clone, Copy)]
pub(super) struct Link<'a> {
    pub cid: &'a [u8],
    pub name: NameParts<'a>,
    pub tsize: u64,
}

/// A link's name: HAMT names have a prefix before the entry's name.
pub(super) type NameParts<'a> = [&'a [u8]; 2];

impl Link<'_> {
    fn body_bytes(&self) -> usize {
        let name_bytes = self.name[0].len() + self.name[1].len();
        let field = |len: usize| 1 + varint_len(len as u64) + len;
        field(self.cid.len()) + field(name_bytes) + 1 + varint_len(self.tsize)
    }

    /// Bytes of the link in a block.
    pub(super) fn encoded_bytes(&self) -> usize {
        let body = self.body_bytes();
        1 + varint_len(body as u64) + body
    }

    pub(super) fn put(&self, out: &mut Vec<u8>) {
        out.push(PB_LINK);
        put_varint(out, self.body_bytes() as u64);
        out.push(LINK_HASH);
        put_varint(out, self.cid.len() as u64);
        out.extend_from_slice(self.cid);
        out.push(LINK_NAME);
        put_varint(out, (self.name[0].len() + self.name[1].len()) as u64);
        out.extend_from_slice(self.name[0]);
        out.extend_from_slice(self.name[1]);
        out.push(LINK_TSIZE);
        put_varint(out, self.tsize);
    }
}

/// Appends dag-pb's data field.
fn put_data(out: &mut Vec<u8>, unixfs: &[u8]) {
    out.push(PB_DATA);
    put_varint(out, unixfs.len() as u64);
    out.extend_from_slice(unixfs);
}

/// Appends the data field of a file node: the file's size and the content bytes below each link.
pub(super) fn put_file_data(out: &mut Vec<u8>, sizes: impl Iterator<Item = u64> + Clone) {
    let mut unixfs = TYPE_FILE.to_vec();
    unixfs.push(UNIXFS_FILESIZE);
    put_varint(&mut unixfs, sizes.clone().sum());
    for size in sizes {
        unixfs.push(UNIXFS_BLOCKSIZE);
        put_varint(&mut unixfs, size);
    }
    put_data(out, &unixfs);
}

/// Appends the data field of a HAMT shard with this bitfield (256 bits, big-endian: the last bit of the last byte is slot 0).
/// Leading zero bytes are left out, as boxo's bitfield does.
pub(super) fn put_shard_data(out: &mut Vec<u8>, bitfield: &[u8; 32]) {
    let first = bitfield.iter().position(|&byte| byte != 0).unwrap_or(bitfield.len());
    let bits = &bitfield[first..];
    let mut unixfs = TYPE_SHARD.to_vec();
    unixfs.push(UNIXFS_DATA);
    put_varint(&mut unixfs, bits.len() as u64);
    unixfs.extend_from_slice(bits);
    unixfs.extend_from_slice(&SHARD_TAIL);
    put_data(out, &unixfs);
}

/// The block of a symlink.
pub(super) fn symlink_block(target: &[u8]) -> Vec<u8> {
    let mut unixfs = TYPE_SYMLINK.to_vec();
    unixfs.push(UNIXFS_DATA);
    put_varint(&mut unixfs, target.len() as u64);
    unixfs.extend_from_slice(target);
    let mut block = Vec::with_capacity(unixfs.len() + 4);
    put_data(&mut block, &unixfs);
    block
}

/// What stands before and after the file bytes of a wrapped leaf. A leaf without bytes has no `Data` field.
pub(super) fn wrapping(data_len: usize) -> (Vec<u8>, Vec<u8>) {
    let mut data_field = Vec::with_capacity(6);
    if data_len > 0 {
        data_field.push(UNIXFS_DATA);
        put_varint(&mut data_field, data_len as u64);
    }
    let mut suffix = vec![UNIXFS_FILESIZE];
    put_varint(&mut suffix, data_len as u64);
    let mut prefix = vec![PB_DATA];
    put_varint(&mut prefix, (TYPE_FILE.len() + data_field.len() + data_len + suffix.len()) as u64);
    prefix.extend_from_slice(&TYPE_FILE);
    prefix.extend_from_slice(&data_field);
    (prefix, suffix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrapping_of_known_leaves() {
        let check = |len: usize, prefix: &str, suffix: &str| {
            let (p, s) = wrapping(len);
            assert_eq!((hex::encode(p).as_str(), hex::encode(s).as_str()), (prefix, suffix), "{len}");
        };
        check(0, "0a040802", "1800");
        check(11, "0a110802120b", "180b");
        check(262_144, "0a8a8010080212808010", "18808010");
    }

    #[test]
    fn a_link_has_the_bytes_it_says() {
        for (cid, name, tsize) in [(34, 0, 0u64), (36, 5, 127), (36, 100, 128), (34, 255, u64::MAX), (200, 90, 1 << 40)] {
            let (cid, name) = (vec![7; cid], vec![b'n'; name]);
            let link = Link { cid: &cid, name: [b"0A", &name], tsize };
            let mut out = Vec::new();
            link.put(&mut out);
            assert_eq!(out.len(), link.encoded_bytes());
        }
    }

    #[test]
    fn shard_data_drops_leading_zero_bytes() {
        let mut bits = [0u8; 32];
        bits[31] = 1;
        let mut out = Vec::new();
        put_shard_data(&mut out, &bits);
        assert_eq!(hex::encode(out), "0a0a08051201012822308002");
    }
}
