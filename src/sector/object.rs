//! The object a host stores for a sector: header, nodes, data (`docs/formats.md` 2).

use bytes::Bytes;

use super::kernel::{grain_nodes, length_without_zeros};
use super::memory::AlignedBuf;
use super::tree::fold_grains;
use super::{GRAIN_BYTES, GrainTree, HEADER_BYTES, NODE_BYTES, Root, SECTOR_BYTES, WrongData};

const MAGIC: &[u8; 8] = b"SKYSECT\n";
const VERSION: u16 = 1;
/// log2 of the grain in bytes; version 1 knows only this one.
const GRAIN_LOG2: u8 = GRAIN_BYTES.ilog2() as u8;

/// A sector as a host keeps it. The bytes begin at an address that is a multiple of 4,096, so that a folder host can
/// write all but the last, partial 4 KiB past the page cache without a copy (the tail it copies and pads with zeros).
#[derive(Clone, Debug)]
pub struct SectorObject {
    /// The sector's root, and its name.
    pub root: Root,
    /// The whole object.
    pub bytes: Bytes,
}

impl SectorObject {
    /// The data in the object: the sector without its trailing zeros.
    pub fn data(&self) -> Bytes {
        let header = parse_header(&self.bytes).expect("an object of our own making has a good header");
        self.bytes.slice(data_offset(header.data_length)..)
    }
}

/// What an object's header says. Only the length matters, and that is proved by folding the nodes; the rest are hints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ObjectHeader {
    /// D: bytes of data, at most a sector.
    pub data_length: u32,
    /// Data pieces of the slab; 0 for a base sector, or if unknown.
    pub k: u8,
    /// Parity pieces of the slab.
    pub m: u8,
    /// Version of the host table at writing.
    pub epoch: u64,
}

impl ObjectHeader {
    /// Length of the whole object, in bytes.
    pub fn object_len(&self) -> usize {
        object_len(self.data_length)
    }

    pub(super) fn write(&self, out: &mut [u8]) {
        let out = &mut out[..HEADER_BYTES];
        out.fill(0);
        out[..8].copy_from_slice(MAGIC);
        out[8..10].copy_from_slice(&VERSION.to_le_bytes());
        out[10] = GRAIN_LOG2;
        out[11] = self.k;
        out[12] = self.m;
        out[16..20].copy_from_slice(&self.data_length.to_le_bytes());
        out[24..32].copy_from_slice(&self.epoch.to_le_bytes());
    }
}

/// Why bytes are not the sector object they should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ObjectError {
    /// Fewer bytes than a header, or than header and nodes.
    #[error("{have} bytes of a sector object where {need} are needed")]
    TooShort { have: usize, need: usize },
    #[error("not a sector object")]
    Magic,
    /// Written by a newer program, or not by one at all.
    #[error("sector object of version {version}, this program knows version {VERSION}")]
    Version { version: u16 },
    #[error("sector object with a grain of 2^{log2} bytes, this program knows 2^{GRAIN_LOG2}")]
    Grain { log2: u8 },
    /// The header claims more data than a sector holds.
    #[error("sector object that claims {data_length} bytes of data")]
    DataLength { data_length: u32 },
    /// The object is longer or shorter than its header says.
    #[error("sector object of {have} bytes whose header asks for {need}")]
    Length { have: usize, need: usize },
    /// Header well formed, but nodes or data are not those of the root.
    #[error(transparent)]
    Wrong(#[from] WrongData),
}

/// Number of nodes stored with `data_length` bytes of data.
pub const fn node_count(data_length: u32) -> usize {
    (data_length as usize).div_ceil(GRAIN_BYTES)
}

/// Offset of the data in an object, in bytes.
pub const fn data_offset(data_length: u32) -> usize {
    HEADER_BYTES + NODE_BYTES * node_count(data_length)
}

/// Length of an object, in bytes.
pub const fn object_len(data_length: u32) -> usize {
    data_offset(data_length) + data_length as usize
}

/// Reads the header from an object's first bytes. Never panics; takes nothing for true but the shape.
pub fn parse_header(object: &[u8]) -> Result<ObjectHeader, ObjectError> {
    let header: &[u8; HEADER_BYTES] =
        object.first_chunk().ok_or(ObjectError::TooShort { have: object.len(), need: HEADER_BYTES })?;
    if !header.starts_with(MAGIC) {
        return Err(ObjectError::Magic);
    }
    let version = u16::from_le_bytes([header[8], header[9]]);
    if version != VERSION {
        return Err(ObjectError::Version { version });
    }
    if header[10] != GRAIN_LOG2 {
        return Err(ObjectError::Grain { log2: header[10] });
    }
    let data_length = u32::from_le_bytes([header[16], header[17], header[18], header[19]]);
    if data_length as usize > SECTOR_BYTES {
        return Err(ObjectError::DataLength { data_length });
    }
    let epoch = header[24..32].try_into().expect("eight bytes");
    Ok(ObjectHeader { data_length, k: header[11], m: header[12], epoch: u64::from_le_bytes(epoch) })
}

/// The object of the sector that starts with `data`; trailing zeros are cut. `k` and `m` are 0 for a base sector.
///
/// # Panics
/// If `data` is longer than a sector.
pub fn build_object(data: &[u8], k: u8, m: u8, epoch: u64) -> SectorObject {
    assert!(data.len() <= SECTOR_BYTES, "a sector has 4 MiB");
    let data = &data[..length_without_zeros(data)];
    let data_length = u32::try_from(data.len()).expect("a sector has 4 MiB");
    let mut nodes = vec![[0; NODE_BYTES]; node_count(data_length)];
    grain_nodes(data, &mut nodes);

    let mut object = AlignedBuf::zeroed(object_len(data_length));
    ObjectHeader { data_length, k, m, epoch }.write(&mut object);
    object[HEADER_BYTES..data_offset(data_length)].copy_from_slice(nodes.as_flattened());
    object[data_offset(data_length)..].copy_from_slice(data);
    SectorObject { root: fold_grains(nodes), bytes: object.into() }
}

/// A whole object, every byte of it checked against its root.
#[derive(Clone, Debug)]
pub struct CheckedObject {
    pub header: ObjectHeader,
    pub tree: GrainTree,
    /// The sector without its trailing zeros; a slice of the object.
    pub data: Bytes,
}

/// Checks a whole object against the root in its name.
pub fn open_object(root: &Root, object: &Bytes) -> Result<CheckedObject, ObjectError> {
    let header = parse_header(object)?;
    if object.len() != header.object_len() {
        return Err(ObjectError::Length { have: object.len(), need: header.object_len() });
    }
    let tree = GrainTree::from_prefix(root, object)?;
    let data = object.slice(data_offset(header.data_length)..);
    tree.check(0, &data)?;
    Ok(CheckedObject { header, tree, data })
}

impl GrainTree {
    /// Checks the nodes at the front of an object; the data may be absent or cut. A prefix of
    /// [`data_offset`]`(D)` bytes is enough, and [`ObjectError::TooShort`] says how many are.
    pub fn from_prefix(root: &Root, prefix: &[u8]) -> Result<Self, ObjectError> {
        let header = parse_header(prefix)?;
        let need = data_offset(header.data_length);
        let nodes = prefix.get(HEADER_BYTES..need).ok_or(ObjectError::TooShort { have: prefix.len(), need })?;
        Ok(Self::new(root, nodes, header.data_length)?)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sector::sector_root;
    use crate::sector::testing::random_bytes;

    #[test]
    fn bytes_of_the_format() {
        let mut data = random_bytes(3, 5000);
        data[4999] = 1;
        data.resize(9000, 0);
        let object = build_object(&data, 6, 3, 0x0102_0304_0506_0708);
        assert_eq!(object.root, sector_root(&data));
        let bytes = &object.bytes;
        assert_eq!(bytes.as_ptr() as usize % 4096, 0);
        assert_eq!(bytes.len(), 64 + 2 * 32 + 5000);
        assert_eq!(bytes[..16], *b"SKYSECT\n\x01\x00\x0c\x06\x03\x00\x00\x00");
        assert_eq!(bytes[16..24], [0x88, 0x13, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[24..32], [8, 7, 6, 5, 4, 3, 2, 1]);
        assert_eq!(bytes[32..64], [0; 32]);
        assert_eq!(bytes[128..], data[..5000]);
        assert_eq!(object.data(), data[..5000]);
        let checked = open_object(&object.root, bytes).unwrap();
        assert_eq!((checked.header.data_length, checked.header.epoch), (5000, 0x0102_0304_0506_0708));
        assert_eq!(checked.data, data[..5000]);
    }

    #[test]
    fn empty_and_full() {
        for data in [vec![], vec![0; 70_000], vec![1; SECTOR_BYTES], vec![1; 4096]] {
            let object = build_object(&data, 0, 0, 1);
            let checked = open_object(&object.root, &object.bytes).unwrap();
            assert_eq!(checked.data, data[..length_without_zeros(&data)]);
        }
    }

    #[test]
    fn refusals() {
        let object = build_object(&[1; 10_000], 0, 0, 1);
        let good = object.bytes.to_vec();
        let change = |at: usize, to: &[u8]| {
            let mut bytes = good.clone();
            bytes[at..at + to.len()].copy_from_slice(to);
            bytes
        };
        let big = SECTOR_BYTES as u32 + 1;
        for (bytes, expect) in [
            (vec![], ObjectError::TooShort { have: 0, need: 64 }),
            (good[..63].to_vec(), ObjectError::TooShort { have: 63, need: 64 }),
            (good[..100].to_vec(), ObjectError::Length { have: 100, need: 10_160 }),
            ([&good[..], &[0]].concat(), ObjectError::Length { have: 10_161, need: 10_160 }),
            (change(0, b"s"), ObjectError::Magic),
            (change(8, &[2]), ObjectError::Version { version: 2 }),
            (change(8, &[0]), ObjectError::Version { version: 0 }),
            (change(10, &[15]), ObjectError::Grain { log2: 15 }),
            (change(16, &big.to_le_bytes()), ObjectError::DataLength { data_length: big }),
            (change(16, &u32::MAX.to_le_bytes()), ObjectError::DataLength { data_length: u32::MAX }),
            (change(64, &[9]), WrongData::Nodes.into()),
            (change(64 + 96 + 5000, &[9]), WrongData::Grain { grain: 1 }.into()),
        ] {
            assert_eq!(open_object(&object.root, &bytes.into()).unwrap_err(), expect);
        }
        let error = GrainTree::from_prefix(&object.root, &good[..159]).unwrap_err();
        assert_eq!(error, ObjectError::TooShort { have: 159, need: 160 });
        assert_eq!(GrainTree::from_prefix(&object.root, &good[..160]).unwrap().data_length(), 10_000);
    }

    proptest! {
        /// Foreign bytes never panic, with and without a good beginning.
        #[test]
        fn random_objects(mut bytes in prop::collection::vec(any::<u8>(), 0..400), good in any::<bool>(), length in 0u32..500) {
            if good && bytes.len() >= HEADER_BYTES {
                ObjectHeader { data_length: length, k: bytes[11], m: bytes[12], epoch: 0 }.write(&mut bytes);
            }
            let root = Root([7; 32]);
            let _ = parse_header(&bytes);
            prop_assert!(GrainTree::from_prefix(&root, &bytes).is_err());
            prop_assert!(open_object(&root, &bytes.into()).is_err());
        }

        #[test]
        fn round_trip(seed in any::<u64>(), length in 0usize..30_000, zeros in 0usize..10_000, k in any::<u8>(), m in any::<u8>(), epoch in any::<u64>()) {
            let mut data = random_bytes(seed, length);
            data.resize(length + zeros, 0);
            let object = build_object(&data, k, m, epoch);
            prop_assert_eq!(object.root, sector_root(&data));
            let checked = open_object(&object.root, &object.bytes).unwrap();
            prop_assert_eq!((checked.header.k, checked.header.m, checked.header.epoch), (k, m, epoch));
            prop_assert_eq!(&checked.data[..], &data[..length_without_zeros(&data)]);
        }
    }
}
