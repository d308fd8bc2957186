//! Test only: small DAGs made by hand or read from the CARs of the conformance suite.

use std::collections::HashMap;

use bytes::Bytes;

use super::dagpb::{self, PbLink, PbNode};
use super::hamt::{HASH_BITS, HASH_MURMUR3, murmur3_x64_64};
use super::unixfs::{self, Kind, UnixFs};
use crate::address::test_shared::shared_file;
use crate::address::{Cid, check_bytes, cid_v1, codec, read_cid, sha2_256, varint};

/// Blocks by CID.
#[derive(Default)]
pub(crate) struct TestDag {
    pub(crate) roots: Vec<Cid>,
    blocks: HashMap<Cid, Bytes>,
}

impl TestDag {
    /// All blocks of a CARv1 in the shared folder, hashes checked; `None` without that folder.
    pub(crate) fn from_car(path: &str) -> Option<TestDag> {
        let file = shared_file(path)?;
        let mut dag = TestDag::default();
        let (header_bytes, used) = varint::read(&file).unwrap();
        let mut at = used + header_bytes as usize;
        dag.roots = header_roots(&file[used..at]);
        while at < file.len() {
            let (frame_bytes, used) = varint::read(&file[at..]).unwrap();
            let frame = &file[at + used..at + used + frame_bytes as usize];
            let (cid, cid_bytes) = read_cid(frame).unwrap();
            check_bytes(cid.hash(), &frame[cid_bytes..]).unwrap();
            dag.insert(cid, frame[cid_bytes..].to_vec());
            at += used + frame_bytes as usize;
        }
        Some(dag)
    }

    pub(crate) fn block(&self, cid: &Cid) -> Bytes {
        self.get(cid).unwrap_or_else(|| panic!("{cid} is not in the DAG"))
    }

    pub(crate) fn get(&self, cid: &Cid) -> Option<Bytes> {
        self.blocks.get(cid).cloned()
    }

    pub(crate) fn blocks(&self) -> impl Iterator<Item = (&Cid, &Bytes)> {
        self.blocks.iter()
    }

    /// Puts a block under any CID, right or wrong.
    pub(crate) fn insert(&mut self, cid: Cid, block: Vec<u8>) {
        self.blocks.insert(cid, Bytes::from(block));
    }

    pub(crate) fn put(&mut self, codec: u64, block: Vec<u8>) -> Cid {
        let cid = cid_v1(codec, sha2_256(&block));
        self.insert(cid, block);
        cid
    }

    pub(crate) fn raw(&mut self, bytes: &[u8]) -> Cid {
        self.put(codec::RAW, bytes.to_vec())
    }

    pub(crate) fn pb(&mut self, message: &UnixFs, links: &[(&str, Cid)]) -> Cid {
        self.put(codec::DAG_PB, pb_block(message, links))
    }

    pub(crate) fn dir(&mut self, links: &[(&str, Cid)]) -> Cid {
        self.pb(&UnixFs::new(Kind::Directory), links)
    }

    pub(crate) fn symlink(&mut self, target: &str) -> Cid {
        self.pb(&UnixFs { data: Some(Bytes::copy_from_slice(target.as_bytes())), ..UnixFs::new(Kind::Symlink) }, &[])
    }

    /// A balanced file of raw leaves.
    pub(crate) fn file(&mut self, bytes: &[u8], leaf_bytes: usize, links_max: usize) -> Cid {
        let mut level: Vec<(Cid, u64)> = bytes.chunks(leaf_bytes).map(|leaf| (self.raw(leaf), leaf.len() as u64)).collect();
        while level.len() > 1 {
            level = level.chunks(links_max).map(|group| self.file_node(group)).collect();
        }
        level[0].0
    }

    fn file_node(&mut self, group: &[(Cid, u64)]) -> (Cid, u64) {
        let size = group.iter().map(|(_, len)| len).sum();
        let blocksizes = group.iter().map(|(_, len)| *len).collect();
        let links: Vec<_> = group.iter().map(|(cid, _)| ("", *cid)).collect();
        let cid = self.pb(&UnixFs { filesize: Some(size), blocksizes, ..UnixFs::new(Kind::File) }, &links);
        (cid, size)
    }

    /// A HAMT directory; sub-shards wherever two names share a slot.
    pub(crate) fn shards(&mut self, entries: &[(String, Cid)], fanout: u64) -> Cid {
        self.shard_at(entries, fanout, 0)
    }

    fn shard_at(&mut self, entries: &[(String, Cid)], fanout: u64, depth: u32) -> Cid {
        let width = fanout.trailing_zeros();
        let mut slots: Vec<Vec<(String, Cid)>> = vec![Vec::new(); fanout as usize];
        for entry in entries {
            let bits = murmur3_x64_64(entry.0.as_bytes()) >> (HASH_BITS - width * (depth + 1));
            slots[(bits & (fanout - 1)) as usize].push(entry.clone());
        }
        let mut items = Vec::new();
        for (slot, group) in slots.iter().enumerate() {
            match &group[..] {
                [] => {}
                [(name, cid)] => items.push((slot, name.as_str(), *cid)),
                several => items.push((slot, "", self.shard_at(several, fanout, depth + 1))),
            }
        }
        let block = shard_block(fanout, &items);
        self.put(codec::DAG_PB, block)
    }
}

/// A shard's block from (slot, name or nothing, CID).
pub(crate) fn shard_block(fanout: u64, items: &[(usize, &str, Cid)]) -> Vec<u8> {
    let digits = format!("{:X}", fanout - 1).len();
    let mut bitfield = vec![0u8; fanout as usize / 8];
    let mut names = Vec::new();
    for (slot, name, cid) in items {
        let byte = bitfield.len() - 1 - slot / 8;
        bitfield[byte] |= 1 << (slot % 8);
        names.push((format!("{slot:0digits$X}{name}"), *cid));
    }
    let used_from = bitfield.iter().position(|byte| *byte != 0).unwrap_or(bitfield.len());
    let message = UnixFs {
        data: Some(Bytes::copy_from_slice(&bitfield[used_from..])),
        hash_type: Some(HASH_MURMUR3),
        fanout: Some(fanout),
        ..UnixFs::new(Kind::HamtShard)
    };
    let links: Vec<_> = names.iter().map(|(name, cid)| (name.as_str(), *cid)).collect();
    pb_block(&message, &links)
}

pub(crate) fn pb_block(message: &UnixFs, links: &[(&str, Cid)]) -> Vec<u8> {
    let links = links.iter().map(|(name, cid)| PbLink { cid: *cid, name: Bytes::copy_from_slice(name.as_bytes()), tsize: 0 });
    dagpb::encode(&PbNode { data: Some(unixfs::encode(message).into()), links: links.collect() })
}

/// CIDs in a CAR header, found by their DAG-CBOR tag 42 (`d8 2a`, byte string, zero byte).
fn header_roots(header: &[u8]) -> Vec<Cid> {
    let tags = header.windows(2).enumerate().filter(|(_, two)| *two == [0xd8, 0x2a]);
    tags.map(|(at, _)| {
        let text = &header[at + 2..];
        let zero = text.iter().position(|byte| *byte == 0).unwrap();
        read_cid(&text[zero + 1..]).unwrap().0
    })
    .collect()
}
