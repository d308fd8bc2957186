//! Test only: the attacks of `users-and-threats.md` 6 on trees, each with the block reads and the bytes of memory that it may
//! cost. Reads are counted where a walk asks for a block; bytes at the allocator, given back or not.

use bytes::Bytes;

use super::SiteError;
use super::car_walk::{CarStep, CarWalk, Dups, Scope};
use super::unixfs::{DirListing, LISTING_SHARDS_MAX, ListStep, Step, WALK_BLOCKS_MAX, Walk};
use crate::address::{Cid, Multihash, SitePath, TrailingSlash, cid_v1, codec, hash};
use crate::counting::allocated;
use crate::tree::car::{CarDecoder, encode_v1_header};
use crate::tree::hamt::{HASH_BITS, HASH_MURMUR3, murmur3_x64_64};
use crate::tree::test_dag::{TestDag, pb_block, shard_block};
use crate::tree::unixfs::{Kind, UnixFs};
use crate::tree::{TreeError, TreeNode, ipld, parse_node};

const KIB: u64 = 1 << 10;

/// What an attack cost.
struct Cost<T> {
    result: T,
    reads: usize,
    bytes: u64,
}

fn count<T>(work: impl FnOnce(&mut usize) -> T) -> Cost<T> {
    let mut reads = 0;
    let (result, bytes) = allocated(|| work(&mut reads));
    Cost { result, reads, bytes }
}

/// Walks a path; every block is read out of `dag`.
fn walk(dag: &TestDag, root: Cid, path: &str) -> Cost<Result<(), SiteError>> {
    let path = match path.is_empty() {
        true => SitePath::root(TrailingSlash::No),
        false => SitePath::from_decoded(path).unwrap(),
    };
    count(|reads| {
        let mut walk = Walk::new(root, path);
        while let Step::Need(cid) = walk.step() {
            *reads += 1;
            walk.give(dag.block(&cid))?;
        }
        Ok(())
    })
}

/// Goes through a directory's listing.
fn list(dag: &TestDag, root: Cid) -> Cost<Result<usize, SiteError>> {
    count(|reads| {
        *reads += 1;
        let mut listing = match parse_node(&root, &dag.block(&root))? {
            TreeNode::Shard(shard) => DirListing::sharded(shard),
            TreeNode::Dir(dir) => DirListing::plain(dir),
            other => panic!("no directory: {other:?}"),
        };
        let mut entries = 0;
        loop {
            match listing.step()? {
                ListStep::Entry(_) => entries += 1,
                ListStep::End => return Ok(entries),
                ListStep::Need(cid) => {
                    *reads += 1;
                    listing.give(dag.block(&cid))?;
                }
            }
        }
    })
}

/// Writes a CAR of everything below `root`, at most `leaves_max` leaves of it.
fn car(dag: &TestDag, root: Cid, dups: Dups, leaves_max: usize) -> Cost<Result<usize, SiteError>> {
    count(|reads| {
        let mut walk = CarWalk::new(&[], root, Scope::All, dups);
        let mut leaves = 0;
        loop {
            match walk.step()? {
                CarStep::Leaf(_) => leaves += 1,
                CarStep::End => return Ok(leaves),
                CarStep::Need(cid) => {
                    *reads += 1;
                    walk.give(&dag.block(&cid))?;
                }
            }
            if leaves == leaves_max {
                return Ok(leaves);
            }
        }
    })
}

fn shard_with(fanout: Option<u64>, hash_type: Option<u64>, bitfield: &[u8]) -> Vec<u8> {
    let data = Some(Bytes::copy_from_slice(bitfield));
    pb_block(&UnixFs { data, hash_type, fanout, ..UnixFs::new(Kind::HamtShard) }, &[])
}

/// CVE-2023-23625, -23626, -23631.
#[test]
fn a_fanout_or_bitfield_that_lies_costs_no_more_than_its_block() {
    let fanouts = [None, Some(0), Some(1), Some(3), Some(7), Some(2048), Some(1 << 31), Some(1 << 63), Some(u64::MAX)];
    let mut blocks: Vec<Vec<u8>> = fanouts.into_iter().map(|fanout| shard_with(fanout, Some(HASH_MURMUR3), &[1])).collect();
    blocks.extend([1, 33, 128, 1 << 20].map(|bytes| shard_with(Some(256), Some(HASH_MURMUR3), &vec![0xff; bytes])));
    blocks.push(shard_with(Some(256), Some(u64::MAX), &[1]));
    blocks.push(shard_with(Some(256), None, &[1]));
    for block in blocks {
        let mut dag = TestDag::default();
        let length = block.len() as u64;
        let root = dag.put(codec::DAG_PB, block);
        let cost = walk(&dag, root, "name");
        assert!(cost.result.is_err());
        assert_eq!(cost.reads, 1);
        assert!(cost.bytes < 16 * KIB + length, "{} bytes for a block of {length}", cost.bytes);
    }
}

/// A slot for each level of the name's hash.
fn slot_of(name: &str, level: u32) -> usize {
    ((murmur3_x64_64(name.as_bytes()) >> (HASH_BITS - 8 * (level + 1))) & 255) as usize
}

#[test]
fn a_hamt_that_leads_into_itself_ends_when_the_hash_does() {
    let mut dag = TestDag::default();
    // A hash cannot be made to come true, so the cycle stands under a CID that is not its block's.
    let cycle = cid_v1(codec::DAG_PB, [9; 32]);
    let everywhere: Vec<_> = (0..256).map(|slot| (slot, "", cycle)).collect();
    dag.insert(cycle, shard_block(256, &everywhere));
    let cost = walk(&dag, cycle, "name");
    assert!(cost.result.is_err());
    assert!(cost.reads <= 9, "{} reads", cost.reads);
    assert!(cost.bytes < 512 * KIB * cost.reads as u64, "{} bytes", cost.bytes);
    // Listed, 256 shards a level make 256^8: the limit of shards ends it, or the check of depth.
    let two = [(slot_of("name", 0), "", cycle), (255, "", cycle)];
    dag.insert(cycle, shard_block(256, &two[..if two[0].0 == 255 { 1 } else { 2 }]));
    let cost = list(&dag, cycle);
    assert!(cost.result.is_err());
    assert!(cost.reads <= LISTING_SHARDS_MAX + 1, "{} reads", cost.reads);
    assert!(cost.bytes / cost.reads as u64 <= 8 * KIB, "{} bytes in {} reads", cost.bytes, cost.reads);
}

#[test]
fn a_deep_path_and_a_deep_tree_end() {
    let mut dag = TestDag::default();
    let mut root = dag.dir(&[]);
    let mut roots = vec![root];
    for _ in 0..2 * WALK_BLOCKS_MAX {
        root = dag.dir(&[("d", root)]);
        roots.push(root);
    }
    let path = vec!["d"; 2 * WALK_BLOCKS_MAX - 1].join("/");
    if SitePath::from_decoded(&path).is_ok() {
        let cost = walk(&dag, root, &path);
        assert!(matches!(cost.result, Err(SiteError::TooManyBlocks { .. })));
        assert!(cost.reads <= WALK_BLOCKS_MAX + 1 && cost.bytes < 8 * KIB * cost.reads as u64, "{} {}", cost.reads, cost.bytes);
    }
    // Going through all of it keeps nothing of what is above but its place: a level costs the same at any depth.
    let short = car(&dag, roots[WALK_BLOCKS_MAX], Dups::LeftOut, usize::MAX);
    let long = car(&dag, root, Dups::LeftOut, usize::MAX);
    assert_eq!((short.reads, long.reads), (WALK_BLOCKS_MAX + 1, 2 * WALK_BLOCKS_MAX + 1));
    assert!(long.bytes < 3 * short.bytes, "{} after {}", long.bytes, short.bytes);
}

/// A DAG of a hundred blocks that stands for 2^99: each names the next one twice.
#[test]
fn repeated_blocks_are_gone_through_once_or_up_to_a_limit() {
    let mut dag = TestDag::default();
    let mut root = dag.raw(b"the only leaf");
    for _ in 0..99 {
        root = dag.dir(&[("a", root), ("b", root)]);
    }
    let cost = car(&dag, root, Dups::LeftOut, usize::MAX);
    assert_eq!((cost.result, cost.reads), (Ok(1), 99));
    assert!(cost.bytes < 256 * KIB, "{} bytes", cost.bytes);
    // With duplicates it goes on for as long as the client takes it, in memory that does not grow.
    let few = car(&dag, root, Dups::Kept, 100);
    let many = car(&dag, root, Dups::Kept, 10_000);
    assert!(few.result.is_ok() && many.result.is_ok());
    assert!(many.bytes < 110 * few.bytes && many.bytes / many.reads as u64 <= 4 * KIB, "{} after {}", many.bytes, few.bytes);
}

#[test]
fn a_wide_node_costs_its_links() {
    let mut dag = TestDag::default();
    let leaf = dag.raw(b"leaf");
    let names: Vec<String> = (0..40_000).map(|number| format!("{number:05}")).collect();
    let links: Vec<_> = names.iter().map(|name| (name.as_str(), leaf)).collect();
    let root = dag.dir(&links);
    let block = dag.block(&root).len() as u64;
    let found = walk(&dag, root, "39999");
    assert!(found.result.is_ok() && found.reads <= 2);
    // A link in memory takes about four times its bytes; vectors grow by doubling.
    assert!(found.bytes < 16 * block, "{} bytes for a block of {block}", found.bytes);
    let listed = list(&dag, root);
    assert_eq!((listed.result, listed.reads), (Ok(40_000), 1));
    assert!(listed.bytes < 24 * block, "{} bytes for a block of {block}", listed.bytes);
    let too_wide = dag.dir(&vec![("", leaf); (1 << 16) + 1]);
    assert!(matches!(walk(&dag, too_wide, "x").result, Err(SiteError::Tree(TreeError::TooLarge { .. }))));
}

/// CVE-2026-35480: lengths that are only claimed. CVE-2026-42328: recursion without end.
#[test]
fn cbor_and_json_that_lie_cost_no_more_than_their_bytes() {
    let heads = [0x5b_u8, 0x7b, 0x9b, 0xbb].map(|head| [&[head][..], &[0xff; 8]].concat());
    let mut blocks: Vec<(u64, Vec<u8>)> = heads.into_iter().map(|block| (codec::DAG_CBOR, block)).collect();
    blocks.extend(
        [0x5a_u8, 0x7a, 0x9a, 0xba].map(|head| (codec::DAG_CBOR, [&[head][..], &[0x7f, 0xff, 0xff, 0xff, 1, 2, 3]].concat())),
    );
    blocks.push((codec::DAG_CBOR, [vec![0x81; 1 << 20], vec![0]].concat()));
    blocks.push((codec::DAG_CBOR, [0xa1, 0x61, b'a'].repeat(1 << 18)));
    blocks.push((codec::DAG_CBOR, vec![0xd8; 1 << 20]));
    blocks.push((codec::DAG_JSON, vec![b'['; 1 << 20]));
    blocks.push((codec::DAG_JSON, br#"{"a":"#.repeat(1 << 18)));
    for (codec, block) in blocks {
        let (cid, block) = (cid_v1(codec, [0; 32]), Bytes::from(block));
        let names = vec!["a".to_owned(); 200];
        let (links, bytes) = allocated(|| (ipld::links(&cid, &block).is_err(), ipld::lookup(&cid, &block, &names).is_err()));
        assert_eq!(links, (true, true), "{:02x?}", &block[..block.len().min(12)]);
        assert!(bytes < 64 * KIB + 4 * block.len() as u64, "{bytes} bytes for a block of {}", block.len());
    }
}

#[test]
fn a_car_that_lies_about_lengths_costs_no_more_than_its_bytes() {
    let header = encode_v1_header(&[]);
    let huge = [&[0xff; 8][..], &[0x7f]].concat();
    let long = vec![0xff; 64];
    // A header of 100 roots that claims 2^60.
    let roots = [&[0x1f, 0xa2, 0x65][..], b"roots", &[0x9b, 0x10, 0, 0, 0, 0, 0, 0, 0], &[0; 16]].concat();
    let mut v2 =
        crate::tree::car::V2Header { characteristics: [0; 16], data_offset: 51, data_bytes: u64::MAX / 2, index_offset: 0 }
            .encode();
    let cars: [Vec<u8>; 7] = [
        huge.clone(),
        long.clone(),
        [&header[..], &huge].concat(),
        [&header[..], &long].concat(),
        [&header[..], &[0]].concat(),
        roots,
        {
            v2[27..35].copy_from_slice(&u64::MAX.to_le_bytes());
            v2.to_vec()
        },
    ];
    for car in cars {
        let (failed, bytes) = allocated(|| {
            let mut decoder = CarDecoder::new();
            decoder.push(&car);
            std::iter::repeat_with(|| decoder.next_item()).take(3).any(|item| item.is_err())
        });
        assert!(failed, "{:02x?}", &car[..car.len().min(16)]);
        assert!(bytes < 8 * KIB, "{bytes} bytes for {}", car.len());
    }
}

/// boxo 0.35: identity CIDs without a limit are blocks that anybody makes us keep.
#[test]
fn identity_cids_are_short() {
    let identity = |length: usize| Multihash::wrap(hash::IDENTITY, &vec![7; length]);
    assert!(identity(128).is_ok() && identity(129).is_err());
    let mut bytes = vec![1, codec::RAW as u8, 0];
    crate::address::varint::write(1 << 30, &mut bytes);
    let (refused, taken) = allocated(|| crate::address::read_cid(&bytes).is_err());
    assert!(refused && taken < KIB, "{taken} bytes");
}
