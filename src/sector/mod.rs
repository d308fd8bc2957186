//! PLACEHOLDER (dropped at the merge): slow versions with the blueprint's names.

use std::{fmt, ops::Range};

use bytes::Bytes;
use sia_reed_solomon::ReedSolomon;

pub const SECTOR_BYTES: usize = 4 << 20;
pub const SEGMENT_BYTES: usize = 64;
pub const GRAIN_BYTES: usize = 4096;
pub const HEADER_BYTES: usize = 64;
pub const NODE_BYTES: usize = 32;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Root(pub [u8; 32]);
impl fmt::Display for Root {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&hex::encode(self.0))
    }
}
impl fmt::Debug for Root {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{self}")
    }
}

fn hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut state = blake2b_simd::Params::new().hash_length(32).to_state();
    for part in parts {
        state.update(part);
    }
    state.finalize().as_bytes().try_into().expect("32 bytes asked")
}
fn zero_roots() -> &'static [[u8; 32]; 17] {
    static Z: std::sync::OnceLock<[[u8; 32]; 17]> = std::sync::OnceLock::new();
    Z.get_or_init(|| {
        let mut z = [[0; 32]; 17];
        z[0] = hash(&[&[0], &[0; 64]]);
        for i in 0..16 {
            z[i + 1] = hash(&[&[1], &z[i], &z[i]]);
        }
        z
    })
}
fn fold(mut level: Vec<[u8; 32]>, from: usize, to: usize) -> [u8; 32] {
    for height in from..to {
        if level.len() % 2 == 1 {
            level.push(zero_roots()[height]);
        }
        level = level.chunks(2).map(|pair| hash(&[&[1], &pair[0], &pair[1]])).collect();
    }
    level.first().copied().unwrap_or(zero_roots()[to])
}
fn grain_node(data: &[u8]) -> [u8; 32] {
    let mut grain = [0; GRAIN_BYTES];
    grain[..data.len()].copy_from_slice(data);
    fold(grain.chunks(64).map(|s| hash(&[&[0], s])).collect(), 0, 6)
}

pub fn grain_nodes(data: &[u8], out: &mut [[u8; 32]]) {
    data.chunks(GRAIN_BYTES).zip(out).for_each(|(grain, node)| *node = grain_node(grain));
}

pub const GRAIN_HEIGHT: usize = 6;
pub fn zero_node(height: usize) -> [u8; 32] {
    zero_roots()[height]
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct SectorError(pub &'static str);

#[derive(Clone, Debug)]
pub struct GrainTree {
    nodes: Vec<[u8; 32]>,
    pub data_length: u32,
}
impl GrainTree {
    pub fn new(root: &Root, nodes: &[u8], data_length: u32) -> Result<GrainTree, SectorError> {
        let nodes: Vec<[u8; 32]> = nodes.chunks_exact(32).map(|n| n.try_into().expect("32")).collect();
        if fold(nodes.clone(), 6, 16) != root.0 {
            return Err(SectorError("nodes do not fold to the root"));
        }
        Ok(GrainTree { nodes, data_length })
    }
    pub fn check(&self, first_grain: usize, bytes: &[u8]) -> Result<(), SectorError> {
        for (i, grain) in bytes.chunks(GRAIN_BYTES).enumerate() {
            if self.nodes.get(first_grain + i) != Some(&grain_node(grain)) {
                return Err(SectorError("grain does not match its node"));
            }
        }
        Ok(())
    }
}

pub fn object_len(data_length: u32) -> u64 {
    data_offset(data_length) + u64::from(data_length)
}
pub fn data_offset(data_length: u32) -> u64 {
    (HEADER_BYTES + NODE_BYTES * (data_length as usize).div_ceil(GRAIN_BYTES)) as u64
}
pub struct ObjectHeader {
    pub data_length: u32,
}
pub fn parse_header(bytes: &[u8]) -> Result<ObjectHeader, SectorError> {
    if bytes.len() < HEADER_BYTES || &bytes[..8] != b"SKYSECT\n" {
        return Err(SectorError("no sector header"));
    }
    let data_length = u32::from_le_bytes(bytes[16..20].try_into().expect("4"));
    if data_length as usize > SECTOR_BYTES {
        return Err(SectorError("too long"));
    }
    Ok(ObjectHeader { data_length })
}

#[derive(Clone, Debug)]
pub struct SectorObject {
    pub root: Root,
    pub bytes: Bytes,
}
pub fn build_object(data: &[u8], k: u8, m: u8, epoch: u64) -> SectorObject {
    let length = data.iter().rposition(|b| *b != 0).map_or(0, |p| p + 1);
    let data = &data[..length];
    let nodes: Vec<[u8; 32]> = data.chunks(GRAIN_BYTES).map(grain_node).collect();
    let mut bytes = b"SKYSECT\n\x01\x00\x0c".to_vec();
    bytes.extend([k, m, 0, 0, 0]);
    bytes.extend((length as u32).to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend(epoch.to_le_bytes());
    bytes.extend([0; 32]);
    nodes.iter().for_each(|n| bytes.extend(n));
    bytes.extend(data);
    SectorObject { root: Root(fold(nodes, 6, 16)), bytes: bytes.into() }
}
pub fn slab_id(roots: &[Root]) -> [u8; 32] {
    let parts: Vec<&[u8]> = roots.iter().map(|r| &r.0[..]).collect();
    hash(&parts)
}

pub struct Code {
    k: usize,
    m: usize,
}
impl Code {
    pub fn new(k: u8, m: u8) -> Code {
        Code { k: k.into(), m: m.into() }
    }
    pub fn read_plan(&self, content: Range<u64>) -> Range<u32> {
        let stripe = (64 * self.k) as u64;
        (content.start / stripe * 64) as u32..(content.end.div_ceil(stripe) * 64) as u32
    }
    pub fn decode_range(&self, pieces: &[(usize, Bytes)], rows: Range<u32>, content: Range<u64>) -> Bytes {
        let mut shards: Vec<Option<Vec<u8>>> = vec![None; self.k + self.m];
        for (i, bytes) in pieces {
            shards[*i] = Some(bytes.to_vec());
        }
        if self.m > 0 {
            ReedSolomon::new(self.k, self.m).unwrap().reconstruct_data(&mut shards).unwrap();
        }
        let mut out = Vec::new();
        for row in 0..rows.len() / 64 {
            for shard in &shards[..self.k] {
                out.extend(&shard.as_ref().unwrap()[row * 64..][..64]);
            }
        }
        let skip = (content.start - u64::from(rows.start / 64) * 64 * self.k as u64) as usize;
        Bytes::from(out).slice(skip..skip + (content.end - content.start) as usize)
    }
}

pub struct SlabBuffers {
    pub k: u8,
    pub m: u8,
}
impl SlabBuffers {
    pub fn allocate(k: u8, m: u8) -> SlabBuffers {
        SlabBuffers { k, m }
    }
}
pub struct EncodedSlab {
    pub objects: Vec<SectorObject>,
}
pub struct SlabEncoder {
    k: usize,
    m: usize,
    epoch: u64,
    steps: std::sync::Mutex<Vec<Vec<u8>>>,
}
impl SlabEncoder {
    pub fn new(k: u8, m: u8, epoch: u64, _bufs: SlabBuffers) -> SlabEncoder {
        SlabEncoder { k: k.into(), m: m.into(), epoch, steps: vec![Vec::new(); 8].into() }
    }
    pub fn step_bytes(&self) -> usize {
        self.k << 19
    }
    pub fn steps(&self) -> usize {
        8
    }
    pub fn encode_step(&self, step: usize, data: &[u8]) {
        self.steps.lock().unwrap()[step] = data.to_vec();
    }
    pub fn finish(self, content_len: u64) -> EncodedSlab {
        let mut content = self.steps.lock().unwrap().concat();
        content.truncate(content_len as usize);
        let rows = content.len().div_ceil(64 * self.k);
        content.resize(rows * 64 * self.k, 0);
        let mut shards = vec![vec![0; rows * 64]; self.k + self.m];
        for (i, cell) in content.chunks(64).enumerate() {
            shards[i % self.k][i / self.k * 64..][..64].copy_from_slice(cell);
        }
        if self.m > 0 && rows > 0 {
            ReedSolomon::new(self.k, self.m).unwrap().encode(&mut shards).unwrap();
        }
        let objects = shards.iter().map(|s| build_object(s, self.k as u8, self.m as u8, self.epoch)).collect();
        EncodedSlab { objects }
    }
}
