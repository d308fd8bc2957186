//! Placeholder of the `build` branch; the room comes with the `sector` branch and replaces this file.

/// Bytes of a sector.
pub const SECTOR_BYTES: usize = 4 << 20;
