//! Imports of many small blocks: in bounded memory, found again from everywhere, not done twice.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use compat_tests::car::{self, Block, DAG_CBOR, RAW};
use compat_tests::{Gateway, Tier, binary, tier};
use serde_json::{Value, json};

/// Leaves below one node.
const LEAVES_A_NODE: u32 = 1_000;
/// Resident memory of an import, whatever its size.
const RESIDENT_MIB_MAX: u64 = 300;

/// A DAG of raw leaves of 40 bytes below nodes of dag-cbor below one root.
struct Many {
    leaves: u32,
}

impl Many {
    fn leaf(number: u32) -> Block {
        let mut bytes = [7; 40];
        bytes[..4].copy_from_slice(&number.to_le_bytes());
        Block::new(RAW, &bytes)
    }

    /// A list of links.
    fn node<'a>(children: impl ExactSizeIterator<Item = &'a Block>) -> Block {
        let count = u16::try_from(children.len()).expect("fits");
        let mut bytes = vec![0x99];
        bytes.extend(count.to_be_bytes());
        children.for_each(|child| bytes.extend(child.cbor_link()));
        Block::new(DAG_CBOR, &bytes)
    }

    /// Writes the CAR: nodes after their leaves, as a builder makes them, the root last. One leaf is left out, one comes twice.
    fn write(&self, mut out: impl Write) -> (Block, u64) {
        let mut size_bytes = 0;
        let mut put = |out: &mut dyn Write, block: &Block| {
            let frame = car::frame(block);
            out.write_all(&frame).expect("the import takes its CAR");
            size_bytes += block.bytes.len() as u64;
        };
        let nodes: Vec<Block> = (0..self.leaves)
            .step_by(LEAVES_A_NODE as usize)
            .map(|first| {
                let leaves: Vec<Block> = (first..(first + LEAVES_A_NODE).min(self.leaves)).map(Many::leaf).collect();
                let mut node = Many::node(leaves.iter());
                // The bytes of all nodes together are ten times those of what is kept of them here.
                node.bytes = Vec::new();
                node
            })
            .collect();
        let root = Many::node(nodes.iter());
        out.write_all(&car::write(&[&root], &[])).expect("the import takes its CAR");
        for first in (0..self.leaves).step_by(LEAVES_A_NODE as usize) {
            let leaves: Vec<Block> = (first..(first + LEAVES_A_NODE).min(self.leaves)).map(Many::leaf).collect();
            for leaf in leaves.iter().skip(usize::from(first == 0)) {
                put(&mut out, leaf);
            }
            put(&mut out, &Many::node(leaves.iter()));
        }
        put(&mut out, &root);
        out.write_all(&car::frame(&Many::leaf(1))).expect("the import takes its CAR");
        (root, size_bytes)
    }
}

fn resident_peak_mib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a running process has a status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("it has a peak");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") / 1024
}

/// `skygate import -` of a CAR made on the way.
fn import(gateway: &Gateway, many: &Many, key: &str) -> (Value, Block, u64) {
    let mut command = Command::new(binary());
    command.args(["import", "-", "--json", "--idempotency-key", key, "--api", &gateway.admin, "--data"]).arg(&gateway.data);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the binary can be started");
    let (root, size_bytes) = many.write(std::io::BufWriter::with_capacity(1 << 20, child.stdin.take().expect("piped")));
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    (serde_json::from_str(text.lines().last().expect("a line")).expect("JSON"), root, size_bytes)
}

async fn check_blocks(gateway: &Gateway, many: &Many, root: &Block) {
    let found = gateway.get(&format!("/ipfs/{}?format=raw", root.text())).await;
    assert!(found.body == root.bytes, "the root");
    for number in [1, 2, 999, 1_000, many.leaves / 3, many.leaves - 1] {
        let leaf = Many::leaf(number);
        let found = gateway.get(&format!("/ipfs/{}?format=raw", leaf.text())).await;
        assert!(found.body == leaf.bytes, "leaf {number}");
        // Rows of the index and the hash trees beneath them; nothing that grows with the number of blocks.
        assert!(found.rounds() <= 6, "{} rounds for leaf {number}", found.rounds());
    }
}

async fn many_blocks(leaves: u32, folder: &Path) {
    let data = folder.join("data");
    let many = Many { leaves };
    let gateway = Gateway::start(&data);
    let begun = std::time::Instant::now();
    let (answer, root, size_bytes) = import(&gateway, &many, "many");
    let peak = resident_peak_mib(gateway.pid());
    println!("{leaves} leaves imported in {:.1?}, at most {peak} MiB resident", begun.elapsed());
    let blocks = u64::from(leaves - 1 + leaves.div_ceil(LEAVES_A_NODE) + 1);
    let expect = json!({ "roots": [root.text()], "blocks": blocks, "missing": 1, "size_bytes": size_bytes });
    assert_eq!(answer, expect);
    assert!(peak <= RESIDENT_MIB_MAX, "{peak} MiB resident");
    check_blocks(&gateway, &many, &root).await;
    // The one that did not come, and one that never was.
    for absent in [Many::leaf(0), Many::leaf(u32::MAX)] {
        assert_eq!(gateway.get(&format!("/ipfs/{}?format=raw", absent.text())).await.status, 404);
    }
    // Sent again with the same key: the same answer, and nothing is stored.
    let pins = gateway.admin_json("/api/v1/pins").await;
    assert_eq!(import(&gateway, &many, "many").0, expect);
    assert_eq!(gateway.admin_json("/api/v1/pins").await["pins"].as_array().map(Vec::len), pins["pins"].as_array().map(Vec::len));

    // After a restart the index is on the disk; on a node that lost its catalog it comes from the hosts.
    gateway.pins_complete().await;
    assert!(gateway.stop().success());
    let gateway = Gateway::start(&data);
    check_blocks(&gateway, &many, &root).await;
    assert!(gateway.stop().success());
    std::fs::remove_dir_all(data.join("catalog")).expect("there was one");
    let gateway = Gateway::start(&data);
    gateway.catalog_complete().await;
    check_blocks(&gateway, &many, &root).await;
    assert_eq!(gateway.get(&format!("/ipfs/{}?format=raw", Many::leaf(0).text())).await.status, 404);
    let peak = resident_peak_mib(gateway.pid());
    assert!(peak <= RESIDENT_MIB_MAX, "{peak} MiB resident");
}

#[tokio::test]
async fn many_small_blocks_are_imported_in_bounded_memory() {
    let leaves = match tier() {
        Tier::Fast => 20_000,
        Tier::Ci => 300_000,
        Tier::Slow => 10_000_000,
    };
    let folder = tempfile::tempdir().expect("a folder");
    many_blocks(leaves, folder.path()).await;
}
