//! An importer of its own, of profile `unixfs-v1-2025`, for what the tests upload: CIDs that do not come from the code
//! under test. Files of up to 1,024 chunks and folders of one block are enough here; the vectors check it.

use std::collections::BTreeMap;

use ring::digest::{SHA256, digest};

use crate::car::{self, Block};
use crate::verify::murmur3;

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
        car::text_of(&self.cid)
    }

    /// Of a block that was made elsewhere; `below_bytes` are what its links lead to.
    pub fn of(block: &Block, below_bytes: u64) -> Node {
        Node { cid: block.cid.clone(), tsize: block.bytes.len() as u64 + below_bytes }
    }
}

/// A file.
pub fn file(bytes: &[u8]) -> Node {
    if bytes.len() <= CHUNK_BYTES {
        return raw(bytes);
    }
    let leaves: Vec<&[u8]> = bytes.chunks(CHUNK_BYTES).collect();
    assert!(leaves.len() <= CHILDREN_MAX, "larger than the tests need");
    let data = file_data(leaves.iter().map(|leaf| leaf.len()));
    let links: Vec<(&str, Node)> = leaves.iter().map(|leaf| ("", raw(leaf))).collect();
    dag_pb(&links, &data)
}

/// A folder of one block; names are sorted here.
pub fn folder(mut entries: Vec<(&str, Node)>) -> Node {
    entries.sort_by(|a, b| a.0.as_bytes().cmp(b.0.as_bytes()));
    dag_pb(&entries, &[0x08, 1])
}

/// A sharded folder of fanout 256, whatever its size: all its blocks, the root last.
pub fn shard(entries: &[(&str, Node)]) -> Vec<Block> {
    let mut blocks = Vec::new();
    shard_at(0, entries, &mut blocks);
    blocks
}

fn shard_at(depth: usize, entries: &[(&str, Node)], blocks: &mut Vec<Block>) -> Node {
    let mut slots: BTreeMap<u8, Vec<(&str, Node)>> = BTreeMap::new();
    for (name, node) in entries {
        let slot = murmur3(name.as_bytes()).to_be_bytes()[depth];
        slots.entry(slot).or_default().push((name, node.clone()));
    }
    let mut field_bits = [0_u8; 32];
    let mut links = Vec::new();
    for (slot, inside) in &slots {
        field_bits[31 - usize::from(*slot) / 8] |= 1 << (slot % 8);
        links.push(match &inside[..] {
            [(name, node)] => (format!("{slot:02X}{name}"), node.clone()),
            several => (format!("{slot:02X}"), shard_at(depth + 1, several, blocks)),
        });
    }
    let bits: Vec<u8> = field_bits.iter().copied().skip_while(|byte| *byte == 0).collect();
    let mut data = vec![0x08, 5, 0x12, bits.len() as u8];
    data.extend(bits);
    field(&mut data, 0x28, 0x22);
    field(&mut data, 0x30, 256);
    let links: Vec<(&str, Node)> = links.iter().map(|(name, node)| (name.as_str(), node.clone())).collect();
    let root = Block::new(car::DAG_PB, &block(&links, &data));
    let node = Node::of(&root, links.iter().map(|(_, node)| node.tsize).sum());
    blocks.push(root);
    node
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
    [0x55, 0x70].iter().any(|codec| car::text_of(&cid(*codec, block)) == cid_text)
}

fn dag_pb(links: &[(&str, Node)], data: &[u8]) -> Node {
    let block = block(links, data);
    assert!(block.len() <= FOLDER_BLOCK_MAX, "larger than the tests need");
    let below = links.iter().map(|(_, node)| node.tsize).sum::<u64>();
    Node { cid: cid(0x70, &block), tsize: block.len() as u64 + below }
}

/// A dag-pb block of any links and UnixFS data.
pub fn block(links: &[(&str, Node)], data: &[u8]) -> Vec<u8> {
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
    block
}

/// UnixFS data of a file whose leaves have these lengths.
pub fn file_data(leaves: impl Iterator<Item = usize> + Clone) -> Vec<u8> {
    let mut data = vec![0x08, 2];
    field(&mut data, 0x18, leaves.clone().sum::<usize>() as u64);
    leaves.for_each(|length| field(&mut data, 0x20, length as u64));
    data
}

/// CIDs that a dag-pb block links to, and nothing else of it: the tests walk with it.
pub fn links_of(block: &[u8]) -> Vec<String> {
    links(block).map(|(_, cid)| car::text_of(cid)).collect()
}

/// Names and CIDs that a dag-pb block links to, in order.
pub fn links(block: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    fields(block).filter_map(|field| match field {
        (2, Field::Bytes(link)) => Some((bytes_of(link, 2).unwrap_or_default(), bytes_of(link, 1)?)),
        _ => None,
    })
}

/// The first field of that number, if it is one of bytes.
pub(crate) fn bytes_of(message: &[u8], number: u64) -> Option<&[u8]> {
    fields(message).find_map(|field| match field {
        (found, Field::Bytes(bytes)) if found == number => Some(bytes),
        _ => None,
    })
}

pub(crate) enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// Fields of a message with their numbers; it ends at what is malformed.
pub(crate) fn fields(mut message: &[u8]) -> impl Iterator<Item = (u64, Field<'_>)> {
    std::iter::from_fn(move || {
        let (tag, rest) = read_varint(message)?;
        let (value, rest) = read_varint(rest)?;
        if tag & 7 == 0 {
            message = rest;
            return Some((tag >> 3, Field::Number(value)));
        }
        let (bytes, rest) = rest.split_at_checked(value as usize)?;
        message = rest;
        Some((tag >> 3, Field::Bytes(bytes)))
    })
}

pub(crate) fn read_varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
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
