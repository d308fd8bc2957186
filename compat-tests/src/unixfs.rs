//! An importer of its own, of profile `unixfs-v1-2025`, for what the tests upload: CIDs that do not come from the code
//! under test. Files of up to 1,024 chunks and folders of one block are enough here; the vectors check it.

use ring::digest::{SHA256, digest};

/// Bytes of a chunk, and of a leaf.
pub const CHUNK_BYTES: usize = 1 << 20;
/// Children of a file's node.
const CHILDREN_MAX: usize = 1024;
/// Above this a folder becomes sharded, which is not made here.
const FOLDER_BLOCK_MAX: usize = 262_144;

/// A node with what its parent must know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Binary CID.
    cid: Vec<u8>,
    tsize: u64,
}

impl Node {
    pub fn cid(&self) -> String {
        text(&self.cid)
    }
}

/// A file.
pub fn file(bytes: &[u8]) -> Node {
    if bytes.len() <= CHUNK_BYTES {
        return raw(bytes);
    }
    let leaves: Vec<&[u8]> = bytes.chunks(CHUNK_BYTES).collect();
    assert!(leaves.len() <= CHILDREN_MAX, "larger than the tests need");
    let mut data = vec![0x08, 2];
    field(&mut data, 0x18, bytes.len() as u64);
    leaves.iter().for_each(|leaf| field(&mut data, 0x20, leaf.len() as u64));
    let links: Vec<(&str, Node)> = leaves.iter().map(|leaf| ("", raw(leaf))).collect();
    dag_pb(&links, &data)
}

/// A folder of one block; names are sorted here.
pub fn folder(mut entries: Vec<(&str, Node)>) -> Node {
    entries.sort_by(|a, b| a.0.as_bytes().cmp(b.0.as_bytes()));
    dag_pb(&entries, &[0x08, 1])
}

pub fn symlink(target: &str) -> Node {
    let mut data = vec![0x08, 4, 0x12];
    varint(&mut data, target.len() as u64);
    data.extend_from_slice(target.as_bytes());
    dag_pb(&[], &data)
}

/// CIDs of a file's leaves, in order.
pub fn leaves(bytes: &[u8]) -> Vec<String> {
    bytes.chunks(CHUNK_BYTES).map(|leaf| raw(leaf).cid()).collect()
}

/// A block of the codec raw.
pub fn raw(bytes: &[u8]) -> Node {
    Node { cid: cid(0x55, bytes), tsize: bytes.len() as u64 }
}

/// Is this the block of that CID, raw or dag-pb?
pub fn is_block(cid_text: &str, block: &[u8]) -> bool {
    [0x55, 0x70].iter().any(|codec| text(&cid(*codec, block)) == cid_text)
}

fn dag_pb(links: &[(&str, Node)], data: &[u8]) -> Node {
    let mut block = Vec::new();
    for (name, node) in links {
        let mut link = vec![0x0a];
        varint(&mut link, node.cid.len() as u64);
        link.extend_from_slice(&node.cid);
        link.push(0x12);
        varint(&mut link, name.len() as u64);
        link.extend_from_slice(name.as_bytes());
        field(&mut link, 0x18, node.tsize);
        block.push(0x12);
        varint(&mut block, link.len() as u64);
        block.extend_from_slice(&link);
    }
    block.push(0x0a);
    varint(&mut block, data.len() as u64);
    block.extend_from_slice(data);
    assert!(block.len() <= FOLDER_BLOCK_MAX, "larger than the tests need");
    Node { cid: cid(0x70, &block), tsize: block.len() as u64 + links.iter().map(|(_, node)| node.tsize).sum::<u64>() }
}

/// CIDs that a dag-pb block links to, and nothing else of it: the tests walk with it.
pub fn links_of(block: &[u8]) -> Vec<String> {
    fields(block)
        .filter(|(tag, _)| *tag == 0x12)
        .filter_map(|(_, link)| fields(link).find(|(tag, _)| *tag == 0x0a).map(|(_, cid)| text(cid)))
        .collect()
}

/// Length-delimited fields of a message; numbers are passed over.
fn fields(mut message: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    std::iter::from_fn(move || {
        loop {
            let (&tag, rest) = message.split_first()?;
            let (number, rest) = read_varint(rest)?;
            if tag & 7 == 0 {
                message = rest;
                continue;
            }
            let (bytes, rest) = rest.split_at_checked(number as usize)?;
            message = rest;
            return Some((tag, bytes));
        }
    })
}

fn read_varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut number = 0;
    for (index, byte) in bytes.iter().enumerate().take(9) {
        number |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Some((number, &bytes[index + 1..]));
        }
    }
    None
}

fn cid(codec: u8, block: &[u8]) -> Vec<u8> {
    let mut bytes = vec![1, codec, 0x12, 32];
    bytes.extend_from_slice(digest(&SHA256, block).as_ref());
    bytes
}

/// A binary CIDv1 as text: base32, lower case, without padding.
fn text(cid: &[u8]) -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    let mut out = String::from("b");
    let (mut buffer, mut bits) = (0_u32, 0);
    for byte in cid {
        buffer = buffer << 8 | u32::from(*byte);
        bits += 8;
        while bits >= 5 {
            bits -= 5;
            out.push(ALPHABET[(buffer >> bits & 31) as usize] as char);
        }
    }
    if bits > 0 {
        out.push(ALPHABET[(buffer << (5 - bits) & 31) as usize] as char);
    }
    out
}

fn field(out: &mut Vec<u8>, tag: u8, number: u64) {
    out.push(tag);
    varint(out, number);
}

fn varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CIDs of `conformance/unixfs-vectors.json`.
    #[test]
    fn cids_are_those_of_the_vectors() {
        assert_eq!(file(b"hello world").cid(), "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e");
        assert_eq!(file(&vec![0; 10 << 20]).cid(), "bafybeibfjdi66hrbmooad7adyrxlrjsn6cizfqmiyupkpye7nropwx4rya");
        assert_eq!(folder(vec![]).cid(), "bafybeiczsscdsbs7ffqz55asqdf3smv6klcw3gofszvwlyarci47bgf354");
        let names = folder(vec![("foo", file(b"content\n")), ("bar", symlink("foo"))]);
        assert_eq!(names.cid(), "bafybeib23kgjswzs27jo3beb5ds4yj2pmypjdf6mydsklgoqbvqrqehmhu");
        let below = folder(vec![("ę", folder(vec![("file-źł.txt", file(b"utf8\n"))]))]);
        assert_eq!(
            folder(vec![("ą", below), ("a b%20c.txt", file(b"x"))]).cid(),
            "bafybeig5ffhgwmflyaq7ebz26bpu3am5ocb6iohjkglwma6yijbsjmuu7i"
        );
    }

    #[test]
    fn links_are_read() {
        let mut block = Vec::new();
        let cid = raw(b"x").cid;
        block.extend_from_slice(&[0x12, cid.len() as u8 + 6, 0x0a, cid.len() as u8]);
        block.extend_from_slice(&cid);
        block.extend_from_slice(&[0x12, 0, 0x18, 5, 0x0a, 2, 8, 1]);
        assert_eq!(links_of(&block), [raw(b"x").cid()]);
    }
}
