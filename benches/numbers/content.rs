//! Content that follows from a seed, and where its pieces lie on host folders.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use compat_tests::{host_folders, seeded_bytes};

const MIB: usize = 1 << 20;
/// Pieces that hold content itself, of the default redundancy.
const DATA_PIECES: usize = 6;
const SECTOR_BYTES: usize = 4 * MIB;
/// Content is dealt out to the data pieces in rows of this size (`docs/formats.md` 1).
const ROW_BYTES: usize = 64;
const HEADER_BYTES: u64 = 64;
const GRAIN_BYTES: u64 = 4096;

/// Writes a file of seeded bytes, MiB by MiB.
pub fn write_file(path: &Path, seed: u64, length: usize) {
    let mut file = BufWriter::with_capacity(MIB, File::create(path).expect("the file can be made"));
    let block = seeded_bytes(seed, MIB);
    for number in 0..length.div_ceil(MIB) {
        let take = MIB.min(length - number * MIB);
        file.write_all(&numbered(&block, number as u64)[..take]).expect("the disk has room");
    }
    file.flush().expect("the disk has room");
}

/// The same bytes as [`write_file`] writes.
pub fn bytes(seed: u64, length: usize) -> Vec<u8> {
    let block = seeded_bytes(seed, MIB);
    let mut bytes: Vec<u8> = (0..length.div_ceil(MIB)).flat_map(|number| numbered(&block, number as u64)).collect();
    bytes.truncate(length);
    bytes
}

/// One MiB of its own out of a common block: every eight bytes of it differ from those of other numbers, and nothing
/// in it repeats. Much faster than drawing new random bytes.
pub fn numbered(block: &[u8], number: u64) -> Vec<u8> {
    let mix = (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    let mut mixed = block.to_vec();
    for (at, byte) in mixed.iter_mut().enumerate() {
        *byte ^= mix[at % 8];
    }
    mixed
}

/// A folder of files of seeded bytes; names tell their number.
pub fn write_folder(folder: &Path, seed: u64, files: usize, file_bytes: usize) {
    std::fs::create_dir_all(folder).expect("the folder can be made");
    for number in 0..files {
        let content = seeded_bytes(seed << 32 | number as u64, file_bytes);
        std::fs::write(folder.join(file_name(number)), content).expect("the disk has room");
    }
}

pub fn file_name(number: usize) -> String {
    format!("file-{number:05}.bin")
}

/// Moves the first `pieces` data pieces of every slab of this content out of the host folders. Returns where each
/// was and where it is now.
///
/// Which sector is which piece is told by its first row: it stands in the content at a place of its own.
pub fn move_data_pieces(data: &Path, aside: &Path, content: &[u8], pieces: usize) -> Vec<(PathBuf, PathBuf)> {
    let slab_bytes = DATA_PIECES * SECTOR_BYTES;
    let mut first_rows = HashMap::new();
    for slab in content.chunks(slab_bytes) {
        for (piece, row) in slab.chunks(ROW_BYTES).take(DATA_PIECES).enumerate() {
            first_rows.insert(row, piece);
        }
    }
    std::fs::create_dir_all(aside).expect("the folder can be made");
    let mut moved = Vec::new();
    for sector in host_folders(data).iter().flat_map(|host| sector_files(&host.join("sectors"))) {
        let Some(row) = first_row(&sector) else { continue };
        if first_rows.get(&row[..]).is_some_and(|piece| *piece < pieces) {
            let place = aside.join(sector.file_name().expect("a sector file has a name"));
            std::fs::rename(&sector, &place).expect("one file system");
            moved.push((sector, place));
        }
    }
    moved
}

fn sector_files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    paths.flat_map(|path| if path.is_dir() { sector_files(&path) } else { vec![path] }).collect()
}

/// The first row of a sector object's data (`docs/formats.md` 2); `None` if it has no whole one.
fn first_row(sector: &Path) -> Option<[u8; ROW_BYTES]> {
    let mut file = File::open(sector).ok()?;
    let mut header = [0; HEADER_BYTES as usize];
    file.read_exact(&mut header).ok()?;
    let length = u64::from(u32::from_le_bytes(header[16..20].try_into().ok()?));
    file.seek(SeekFrom::Start(HEADER_BYTES + 32 * length.div_ceil(GRAIN_BYTES))).ok()?;
    let mut row = [0; ROW_BYTES];
    file.read_exact(&mut row).ok()?;
    Some(row)
}
