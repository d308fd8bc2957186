//! IPNS records by a maker of their own (IPNS specification, "Record creation"): ed25519, V2 only.

use ring::signature::{Ed25519KeyPair, KeyPair};

use crate::car::{self, digits};

/// What a record says.
pub struct Says<'a> {
    pub value: &'a str,
    pub sequence: u64,
    /// RFC 3339.
    pub validity: &'a str,
    pub ttl_s: u64,
}

/// A key with its name.
pub struct Key(Ed25519KeyPair);

impl Key {
    pub fn of_seed(seed: u8) -> Key {
        Key(Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).expect("32 bytes are a seed"))
    }

    /// CIDv1 of the codec libp2p-key over the key itself.
    fn cid(&self) -> Vec<u8> {
        [&[1, 0x72, 0, 36, 8, 1, 18, 32], self.0.public_key().as_ref()].concat()
    }

    /// Base36: the form that the gateway has names in.
    pub fn name(&self) -> String {
        format!("k{}", digits(&self.cid(), b"0123456789abcdefghijklmnopqrstuvwxyz"))
    }

    /// Base58: a peer id, as older programs write names.
    pub fn peer_id(&self) -> String {
        digits(&self.cid()[2..], b"123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz")
    }

    /// Base32 with the right codec.
    pub fn as_base32(&self) -> String {
        car::text_of(&self.cid())
    }

    /// Base32, with the codec that names of keys had before they got their own.
    pub fn as_dag_pb(&self) -> String {
        let mut cid = self.cid();
        cid[1] = 0x70;
        car::text_of(&cid)
    }

    pub fn record(&self, says: &Says<'_>) -> Vec<u8> {
        let mut data = vec![0xa5];
        for (key, value) in [
            ("TTL", Cbor::Number(says.ttl_s * 1_000_000_000)),
            ("Value", Cbor::Bytes(says.value)),
            ("Sequence", Cbor::Number(says.sequence)),
            ("Validity", Cbor::Bytes(says.validity)),
            ("ValidityType", Cbor::Number(0)),
        ] {
            cbor_head(&mut data, 3, key.len() as u64);
            data.extend_from_slice(key.as_bytes());
            match value {
                Cbor::Number(number) => cbor_head(&mut data, 0, number),
                Cbor::Bytes(text) => {
                    cbor_head(&mut data, 2, text.len() as u64);
                    data.extend_from_slice(text.as_bytes());
                }
            }
        }
        let signature = self.0.sign(&[b"ipns-signature:", &data[..]].concat());
        let mut record = Vec::new();
        for (number, bytes) in [(8, signature.as_ref()), (9, &data[..])] {
            record.push(number << 3 | 2);
            car::varint(bytes.len(), &mut record);
            record.extend_from_slice(bytes);
        }
        record
    }
}

enum Cbor<'a> {
    Number(u64),
    Bytes(&'a str),
}

fn cbor_head(out: &mut Vec<u8>, kind: u8, number: u64) {
    let kind = kind << 5;
    match number {
        0..24 => out.push(kind | number as u8),
        24..256 => out.extend([kind | 24, number as u8]),
        256..65_536 => {
            out.push(kind | 25);
            out.extend((number as u16).to_be_bytes());
        }
        65_536..0x1_0000_0000 => {
            out.push(kind | 26);
            out.extend((number as u32).to_be_bytes());
        }
        _ => {
            out.push(kind | 27);
            out.extend(number.to_be_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_their_usual_shapes() {
        let key = Key::of_seed(7);
        assert!(key.name().starts_with("k51qzi5uqu5d") && key.name().len() == 62, "{}", key.name());
        assert!(key.peer_id().starts_with("12D3KooW") && key.peer_id().len() == 52, "{}", key.peer_id());
        assert!(key.as_dag_pb().starts_with("bafyaa"), "{}", key.as_dag_pb());
        let says = Says { value: "/ipfs/bafkqaaa", sequence: 1, validity: "2099-01-01T00:00:00Z", ttl_s: 60 };
        assert!(key.record(&says).len() < 256);
    }
}
