//! Skynet's vectors (`skynet-vectors/registry_*.json`), and what must not count.

use ed25519_dalek::{Signer as _, SigningKey};
use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::address::test_shared::shared_json;
use crate::names::testing::{mutations, sign_entry};

fn text<'a>(row: &'a Value, key: &str) -> &'a str {
    row[key].as_str().expect("a text")
}

fn bytes<const N: usize>(hex_text: &str) -> [u8; N] {
    hex::decode(hex_text).expect("hex").try_into().expect("the length")
}

/// Revisions stand there as texts or as numbers.
fn revision(row: &Value) -> u64 {
    row["revision"].as_u64().unwrap_or_else(|| text(row, "revision").parse().expect("a number"))
}

fn entry(key: EntryKey, datakey: [u8; 32], row: &Value) -> Entry {
    let entry_type = EntryType::from_number(row["type"].as_u64().expect("a type")).expect("a known type");
    Entry::new(key, datakey, hex::decode(text(row, "data_hex")).expect("hex"), revision(row), entry_type).expect("fits")
}

#[test]
fn hashes_signatures_and_ids() {
    let Some(vectors) = shared_json("skynet-vectors/registry_computed.json") else { return };
    let key = EntryKey::parse(text(&vectors, "publickey")).expect("a key");
    assert_eq!(key.to_string(), text(&vectors, "publickey"));
    let signing = SigningKey::from_bytes(&bytes(text(&vectors, "seed_hex")));
    let rows = vectors["entries"].as_array().expect("rows");
    assert_eq!(rows.len(), 84);
    for row in rows {
        let entry = entry(key, bytes(text(row, "datakey")), row);
        assert_eq!(hex::encode(entry.signed_hash()), text(row, "signed_hash"), "{row}");
        assert_eq!(hex::encode(entry.work_hash()), text(row, "work_hash"), "{row}");
        assert_eq!(hex::encode(signing.sign(&entry.signed_hash()).to_bytes()), text(row, "signature"));
        let signed = SignedEntry { entry, signature: bytes(text(row, "signature")) };
        assert_eq!(signed.verify(), Ok(()), "{row}");
        assert_eq!(SignedEntry::from_body(&signed.to_body()), Ok(signed.clone()));
        assert_eq!(entry_owner_check(&signed.to_record()), Ok(()));
    }
    for row in vectors["ids"].as_array().expect("rows") {
        let id = EntryId::of(&key, &bytes(text(row, "datakey")));
        assert_eq!(id.to_string(), text(row, "entryid"));
        assert_eq!(id.skylink().to_string(), text(row, "skylink_v2"));
        assert_eq!(id.skylink().base32().to_ascii_uppercase(), text(row, "skylink_v2_base32"));
    }
}

#[test]
fn clients_agree() {
    let Some(vectors) = shared_json("skynet-vectors/registry_from_tests.json") else { return };
    for row in vectors["datakey_hash"].as_array().expect("rows") {
        assert_eq!(hex::encode(datakey_of(row[0].as_str().expect("a name"))), row[1].as_str().expect("hex"));
    }
    for row in vectors["entry_hash"].as_array().expect("rows") {
        let data = text(row, "data_utf8").as_bytes().to_vec();
        let datakey = datakey_of(text(row, "datakey"));
        let entry = Entry::new(EntryKey([0; 32]), datakey, data, revision(row), EntryType::Plain).expect("fits");
        assert_eq!(hex::encode(entry.signed_hash()), text(row, "hash"));
    }
    let row = &vectors["sign"];
    let key = EntryKey(bytes(text(row, "publickey")));
    let data = hex::decode(text(row, "data_hex")).expect("hex");
    let entry = Entry::new(key, datakey_of(text(row, "datakey")), data, revision(row), EntryType::Plain).expect("fits");
    assert_eq!(SignedEntry { entry, signature: bytes(text(row, "signature_hex")) }.verify(), Ok(()));
}

/// Of the table's two columns the one without a host key: no host of this gateway has one, so the single row in which
/// they differ (equal work, type 2 on its own host) is refused here.
#[test]
fn replacement() {
    let Some(vectors) = shared_json("skynet-vectors/registry_computed.json") else { return };
    let rows = vectors["update_rules"].as_array().expect("rows");
    assert_eq!(rows.len(), 36);
    for row in rows {
        let datakey = bytes(text(&vectors["ids"][0], "datakey"));
        let (existing, new) = (&row["existing"], &row["new"]);
        let (existing, new) = (entry(EntryKey([0; 32]), datakey, existing), entry(EntryKey([0; 32]), datakey, new));
        let told = new.replaces(&existing);
        assert_eq!(told.err().map_or_else(String::new, |error| error.to_string()), text(&row["no_host_key"], "error"), "{row}");
        assert_eq!(told.is_ok(), row["no_host_key"]["update"].as_bool().expect("a bool"), "{row}");
        // The order of records says the same.
        assert_eq!(told.is_ok(), new.order() > existing.order(), "{row}");
    }
}

/// The vector of `docs/formats.md`.
#[test]
fn body_of_a_record() {
    let signed = sign_entry(1, [7; 32], b"hi", 258);
    let body = signed.to_body();
    let head = "01\
                8a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c\
                0707070707070707070707070707070707070707070707070707070707070707\
                0201000000000000\
                02\
                6869";
    assert_eq!(hex::encode(&body[..body.len() - ENTRY_SIGNATURE_BYTES]), head);
    // Made with an independent program (BLAKE2b of Python's hashlib, RFC 8032).
    let signature = "46d74a96e33ac44c2c8d72bb715a29b36703fa5282ecb078e9d0ba77f31f74bc\
                     23f8b917726779e398ae4b7c957a9b72d5d294e913efab5a965c89e452482604";
    assert_eq!(hex::encode(signed.signature), signature);
    let record = signed.to_record();
    assert_eq!(record.key.text(), "7c6c5f773ac21e0d49109d25dc4b06cab3de8f5de3f6f83a4b5bb450a02bb30a");
    let order = "00000000000001021e175cf33d98584044e6569eff767d1a1918b6d022e624bc5c94477ecc52580e";
    assert_eq!(hex::encode(record.order.as_bytes()), order);
}

#[test]
fn what_is_no_entry() {
    let build = |length: usize, entry_type| Entry::new(EntryKey([1; 32]), [0; 32], vec![0; length], 0, entry_type).map(drop);
    let rows = [
        (build(113, EntryType::Plain), Ok(())),
        (build(114, EntryType::Plain), Err(BadEntry::TooLong(114))),
        (build(20, EntryType::Hosted), Ok(())),
        (build(19, EntryType::Hosted), Err(BadEntry::NoHostKey)),
    ];
    for (told, expect) in rows {
        assert_eq!(told, expect);
    }
    for bad in ["", "ed25519:", "ed25519:00", "secp", &format!("ed25519 {}", "0".repeat(64))] {
        assert_eq!(EntryKey::parse(bad), None, "{bad}");
    }
    let signed = sign_entry(1, [7; 32], b"data", 3);
    let body = signed.to_body();
    let spoiled = |at: usize, byte: u8| {
        let mut bad = body.clone();
        bad[at] = byte;
        SignedEntry::from_body(&bad).and_then(|signed| signed.verify())
    };
    assert_eq!(spoiled(0, 0), Err(BadEntry::Body));
    assert_eq!(spoiled(0, 3), Err(BadEntry::Body));
    assert_eq!(spoiled(0, 2), Err(BadEntry::NoHostKey));
    assert_eq!(spoiled(73, 5), Err(BadEntry::Body));
    assert_eq!(spoiled(73, 200), Err(BadEntry::Body));
    assert_eq!(spoiled(65, 4), Err(BadEntry::Signature));
    assert_eq!(spoiled(74, b'D'), Err(BadEntry::Signature));
    // The neutral element: a key of which everybody can make signatures.
    let mut weak = signed.clone();
    weak.entry.key = EntryKey(bytes(&format!("01{}", "00".repeat(31))));
    weak.signature = bytes(&format!("01{}", "00".repeat(63)));
    assert_eq!(weak.verify(), Err(BadEntry::Signature));
}

/// A record counts only at the place that its body says.
#[test]
fn other_places() {
    let record = sign_entry(1, [7; 32], b"data", 3).to_record();
    assert_eq!(entry_owner_check(&record), Ok(()));
    let others = [sign_entry(2, [7; 32], b"data", 3), sign_entry(1, [8; 32], b"data", 3)].map(|other| other.to_record());
    for other in others {
        let moved = Record::new(other.key, record.order, record.body.clone());
        assert_eq!(entry_owner_check(&moved), Err(BadEntry::OtherPlace("id").to_string()));
    }
    for order in [Order::entry(4, &[0xff; 32]), Order::entry(3, &[0xff; 32])] {
        let moved = Record::new(record.key.clone(), order, record.body.clone());
        assert_eq!(entry_owner_check(&moved), Err(BadEntry::OtherPlace("revision or work").to_string()));
    }
}

#[test]
fn mutated_bodies() {
    for seed in 0..20_000 {
        let good = sign_entry(1, [seed as u8; 32], &[3; 40], seed).to_body();
        // The same bytes for the same seed; a failure prints it.
        let bad = mutations(seed, &good);
        fuzz(&bad);
        let told = SignedEntry::from_body(&bad).and_then(|signed| signed.verify());
        assert_eq!(told.is_ok(), bad == good, "seed {seed}");
    }
}

proptest! {
    #[test]
    fn bodies_round_trip(
        key: [u8; 32], datakey: [u8; 32], data in proptest::collection::vec(any::<u8>(), 20..=113), revision: u64, hosted: bool,
    ) {
        let entry_type = if hosted { EntryType::Hosted } else { EntryType::Plain };
        let entry = Entry::new(EntryKey(key), datakey, data, revision, entry_type).unwrap();
        let signed = SignedEntry { entry, signature: [9; 64] };
        prop_assert_eq!(SignedEntry::from_body(&signed.to_body()), Ok(signed));
    }

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        fuzz(&bytes);
    }
}
