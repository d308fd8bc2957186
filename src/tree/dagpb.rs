//! dag-pb: the outer shape of UnixFS blocks, links and a string of bytes (IPLD `dag-pb` specification).
//!
//! Strict where the specification is: no unknown fields, each link's fields in order, links in one piece, every link with a
//! CID. Two leniencies, both of which other readers share: data may stand before the links (old writers), and links may be
//! in any order of names (file nodes are).

use bytes::Bytes;

use super::proto::{Fields, Value, put_bytes, put_number, put_varint};
use super::{NODE_BYTES_MAX, NODE_LINKS_MAX, TreeError};
use crate::address::{Cid, parse_cid_bytes};

const FORMAT: &str = "dag-pb";

/// One block's worth of links and data.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PbNode {
    /// The bytes, if the field is there at all.
    pub data: Option<Bytes>,
    /// Links in the order of the block.
    pub links: Vec<PbLink>,
}

/// A named link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PbLink {
    /// Where it leads.
    pub cid: Cid,
    /// Bytes of the name: UTF-8 in all but the oddest trees; empty in file nodes.
    pub name: Bytes,
    /// Bytes of all blocks below, as the writer says. Never verified; for display only.
    pub tsize: u64,
}

/// Decodes a block. Names and data share the block's memory.
pub fn decode(block: &Bytes) -> Result<PbNode, TreeError> {
    TreeError::check_limit("bytes of a node", block.len(), NODE_BYTES_MAX)?;
    let mut fields = Fields::new(FORMAT, block, 0..block.len());
    let mut node = PbNode::default();
    let mut links_closed = false;
    while let Some((number, value)) = fields.next()? {
        match (number, value) {
            (1, Value::Bytes(range)) => {
                if node.data.is_some() {
                    return Err(malformed("data stands there twice"));
                }
                links_closed = !node.links.is_empty();
                node.data = Some(block.slice(range));
            }
            (2, Value::Bytes(range)) => {
                if links_closed {
                    return Err(malformed("links stand before and after the data"));
                }
                TreeError::check_limit("links of a node", node.links.len() + 1, NODE_LINKS_MAX)?;
                node.links.push(decode_link(block, range)?);
            }
            _ => return Err(malformed("a node has an unknown field")),
        }
    }
    Ok(node)
}

fn decode_link(block: &Bytes, range: std::ops::Range<usize>) -> Result<PbLink, TreeError> {
    let mut fields = Fields::new(FORMAT, block, range);
    let (mut cid, mut name, mut tsize) = (None, None, None);
    let mut last_number = 0;
    while let Some((number, value)) = fields.next()? {
        if number <= last_number {
            return Err(malformed("a link's fields are out of order or stand there twice"));
        }
        last_number = number;
        match (number, value) {
            (1, Value::Bytes(range)) => {
                let found = parse_cid_bytes(&block[range])
                    .map_err(|error| TreeError::malformed(FORMAT, format!("a link's CID: {error}")))?;
                cid = Some(found);
            }
            (2, Value::Bytes(range)) => name = Some(block.slice(range)),
            (3, Value::Varint(value)) => tsize = Some(value),
            _ => return Err(malformed("a link has an unknown field")),
        }
    }
    let cid = cid.ok_or_else(|| malformed("a link has no CID"))?;
    Ok(PbLink { cid, name: name.unwrap_or_default(), tsize: tsize.unwrap_or(0) })
}

/// Encodes in the canonical form: links first, in the order given (a directory's caller sorts them by name), then data.
/// Name and Tsize are always written, as all importers do.
pub fn encode(node: &PbNode) -> Vec<u8> {
    let links_bytes: usize = node.links.iter().map(|link| link.cid.encoded_len() + link.name.len() + 24).sum();
    let mut out = Vec::with_capacity(links_bytes + node.data.as_ref().map_or(0, |data| data.len() + 11));
    let mut link_bytes = Vec::new();
    for link in &node.links {
        link_bytes.clear();
        put_bytes(1, &link.cid.to_bytes(), &mut link_bytes);
        put_bytes(2, &link.name, &mut link_bytes);
        put_number(3, link.tsize, &mut link_bytes);
        out.push(2 << 3 | 2);
        put_varint(link_bytes.len() as u64, &mut out);
        out.extend_from_slice(&link_bytes);
    }
    if let Some(data) = &node.data {
        put_bytes(1, data, &mut out);
    }
    out
}

fn malformed(why: &'static str) -> TreeError {
    TreeError::malformed(FORMAT, why)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::address::{cid_v1, codec};

    fn link(name: &str, tsize: u64) -> PbLink {
        PbLink { cid: cid_v1(codec::RAW, [name.len() as u8; 32]), name: Bytes::copy_from_slice(name.as_bytes()), tsize }
    }

    fn decode_hex(text: &str) -> Result<PbNode, TreeError> {
        decode(&Bytes::from(hex::decode(text.replace(' ', "")).unwrap()))
    }

    #[test]
    fn round_trip() {
        let rows = [
            PbNode::default(),
            PbNode { data: Some(Bytes::new()), links: vec![] },
            PbNode { data: Some(Bytes::from_static(b"x")), links: vec![link("", 0), link("b", 1), link("a", u64::MAX)] },
            PbNode { data: None, links: vec![link("only", 300)] },
        ];
        for node in rows {
            assert_eq!(decode(&Bytes::from(encode(&node))), Ok(node));
        }
    }

    // `01 55 00 00` is the CID of the empty raw block by identity: 6 bytes with its field, the shortest there is.
    #[test]
    fn accepted_oddities() {
        let data_first = decode_hex("0a0161 1206 0a0401550000").unwrap();
        assert_eq!((data_first.data, data_first.links.len()), (Some(Bytes::from_static(b"a")), 1));
        let bare_link = decode_hex("1206 0a0401550000").unwrap();
        assert_eq!((bare_link.links[0].name.len(), bare_link.links[0].tsize), (0, 0));
        let negative_tsize = decode_hex("1211 0a0401550000 18ffffffffffffffffff01").unwrap();
        assert_eq!(negative_tsize.links[0].tsize, u64::MAX);
        let name_not_utf8 = decode_hex("120a 0a0401550000 1202fffe").unwrap();
        assert_eq!(&name_not_utf8.links[0].name[..], &[0xff, 0xfe]);
    }

    #[test]
    fn attacks() {
        let rows = [
            ("0a", "it ends inside a number"),
            ("0a05 61", "a length points past the end"),
            // Lengths of -1, of i64::MIN and of 2^32: all far past the end, none allocated.
            ("0a ffffffffffffffffff01", "a length points past the end"),
            ("0a 80808080808080808001", "a length points past the end"),
            ("12 8080808010", "a length points past the end"),
            ("0a ffffffffffffffffff02", "a number has more than 64 bits"),
            ("0a ffffffffffffffffffffffff01", "a number has more than 64 bits"),
            ("0a0161 0a0161", "data stands there twice"),
            ("1206 0a0401550000 0a0161 1206 0a0401550000", "links stand before and after the data"),
            ("08 01", "a node has an unknown field"),
            ("1a 00", "a node has an unknown field"),
            ("0f 00", "a field has an unknown wire type"),
            ("0b 0c", "a field has an unknown wire type"),
            ("02 00", "a field number is out of range"),
            ("1200", "a link has no CID"),
            ("1202 1200", "a link has no CID"),
            ("1208 1200 0a0401550000", "a link's fields are out of order or stand there twice"),
            ("120c 0a0401550000 0a0401550000", "a link's fields are out of order or stand there twice"),
            ("1208 0a0401550000 2001", "a link has an unknown field"),
            ("1208 0a0401550000 1001", "a link has an unknown field"),
            ("1202 0a00", "a link's CID: the CID's bytes are malformed: it ends inside a number"),
            // An identity CID that claims 129 bytes (boxo 0.35, IPIP-0512).
            ("1207 0a050155008101", "a link's CID: the CID's digest has 129 bytes, more than 128"),
            ("1207 0a050155000000", "a link's CID: the CID's bytes are malformed: bytes are left over after it"),
            // The name's length would fit into the node, but not into its link.
            ("1208 0a0401550000 1205 0a056162636465", "a length points past the end"),
        ];
        for (text, expect) in rows {
            match decode_hex(text) {
                Err(TreeError::Malformed { format: "dag-pb", why }) if why == expect => {}
                other => panic!("{text}: {other:?}, not {expect}"),
            }
        }
    }

    #[test]
    fn bombs_are_stopped_before_they_cost() {
        let big = Bytes::from(vec![0u8; NODE_BYTES_MAX + 1]);
        assert!(matches!(decode(&big), Err(TreeError::TooLarge { what: "bytes of a node", .. })));
        let one_link = hex::decode("12060a0401550000").unwrap();
        let full = Bytes::from(one_link.repeat(NODE_LINKS_MAX));
        assert_eq!(decode(&full).unwrap().links.len(), NODE_LINKS_MAX);
        let over = Bytes::from(one_link.repeat(NODE_LINKS_MAX + 1));
        assert!(matches!(decode(&over), Err(TreeError::TooLarge { what: "links of a node", .. })));
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode(&Bytes::from(bytes));
        }

        #[test]
        fn damaged_nodes_never_panic(at in 0usize..120, byte in any::<u8>(), cut in 0usize..140) {
            let node = PbNode { data: Some(Bytes::from_static(b"data")), links: vec![link("one", 1), link("two", 1 << 40)] };
            let mut bytes = encode(&node);
            let last = bytes.len() - 1;
            bytes[at.min(last)] = byte;
            bytes.truncate(cut);
            // What decodes also encodes (CVE-2022-23495 was a node that did not), and means the same again.
            if let Ok(node) = decode(&Bytes::from(bytes)) {
                prop_assert_eq!(decode(&Bytes::from(encode(&node))), Ok(node));
            }
        }
    }
}
