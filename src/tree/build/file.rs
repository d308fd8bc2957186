//! One file: bytes -> leaves -> the balanced tree over them.

use bytes::Bytes;
use ring::digest::{Context, SHA256};

use super::encode::{Link, put_file_data, wrapping};
use super::profile::LeafForm;
use super::{BlockSink, Built, LeafRow, NodeBlock, Profile, SMALL_LEAF_BYTES};

/// Takes a file's bytes as they come, in pieces of any size, and hands leaves and file nodes to the sink.
///
/// Raw leaves are hashed in place, wrapped ones need one leaf of memory unless a whole leaf stands in one pushed piece
/// (their first bytes tell the leaf's length, which is known only at its end).
pub struct FileBuilder {
    layout: Layout,
    pending: Pending,
    /// Bytes of the leaves already handed on.
    size: u64,
}

impl FileBuilder {
    /// A file with no bytes yet.
    pub fn new(profile: Profile) -> FileBuilder {
        FileBuilder { layout: Layout { profile, levels: Vec::new() }, pending: Pending::new(profile), size: 0 }
    }

    /// The next bytes of the file. Not after a short leaf of [`FileBuilder::push_leaf`], which ends the file.
    pub fn push(&mut self, mut bytes: &[u8], sink: &mut impl BlockSink) {
        let profile = self.layout.profile;
        while !bytes.is_empty() {
            let take = bytes.len().min(profile.chunk_bytes() - self.pending.len);
            let (part, rest) = bytes.split_at(take);
            bytes = rest;
            if take == profile.chunk_bytes() {
                self.place(hash_leaf(profile, part), sink);
                continue;
            }
            self.pending.push(part);
            if self.pending.len == profile.chunk_bytes() {
                let leaf = self.pending.take(profile);
                self.place(leaf, sink);
            }
        }
    }

    /// The next whole leaf, hashed elsewhere (so that several threads can hash one file). Every leaf but the last must be
    /// full.
    ///
    /// # Panics
    /// In the middle of a leaf, after a short leaf, or with a leaf of another profile: the caller lost count.
    pub fn push_leaf(&mut self, leaf: HashedLeaf, sink: &mut impl BlockSink) {
        assert!(self.pending.len == 0, "a whole leaf in the middle of a pushed one");
        assert!(leaf.profile == self.layout.profile, "a leaf of another profile");
        if leaf.data_len > 0 {
            self.place(leaf, sink);
        }
    }

    /// Ends the file. An empty file is one leaf without bytes.
    pub fn finish(mut self, sink: &mut impl BlockSink) -> Built {
        if self.pending.len > 0 || self.size == 0 {
            let leaf = self.pending.take(self.layout.profile);
            self.place(leaf, sink);
        }
        self.layout.finish(sink)
    }

    fn place(&mut self, leaf: HashedLeaf, sink: &mut impl BlockSink) {
        let data_len = leaf.data_len;
        let profile = self.layout.profile;
        assert!(self.size.is_multiple_of(profile.chunk_bytes() as u64), "only a file's last leaf may be short");
        let (prefix, suffix) = match profile.leaf_form() {
            LeafForm::Raw => (Vec::new(), Vec::new()),
            LeafForm::Wrapped => wrapping(data_len as usize),
        };
        let block_bytes = u64::from(data_len) + (prefix.len() + suffix.len()) as u64;
        let cid = profile.leaf_cid(leaf.digest);
        sink.leaf(LeafRow { cid, file_offset: self.size, data_len, prefix, suffix, small: leaf.small });
        self.size += u64::from(data_len);
        self.layout.push(Child { digest: leaf.digest, size: u64::from(data_len), tsize: block_bytes }, sink);
    }
}

/// A leaf that has been hashed and waits for its place in the file.
#[derive(Clone, Debug)]
pub struct HashedLeaf {
    profile: Profile,
    digest: [u8; 32],
    data_len: u32,
    small: Option<Bytes>,
}

/// Hashes one leaf.
///
/// # Panics
/// With more bytes than the profile's leaves have.
pub fn hash_leaf(profile: Profile, data: &[u8]) -> HashedLeaf {
    assert!(data.len() <= profile.chunk_bytes(), "a leaf has at most chunk_bytes");
    let digest = match profile.leaf_form() {
        LeafForm::Raw => sha256(&[data]),
        LeafForm::Wrapped => {
            let (prefix, suffix) = wrapping(data.len());
            sha256(&[&prefix, data, &suffix])
        }
    };
    let small = (data.len() <= SMALL_LEAF_BYTES).then(|| Bytes::copy_from_slice(data));
    HashedLeaf { profile, digest, data_len: data.len() as u32, small }
}

/// SHA-256 of the parts one after another.
pub(super) fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    for part in parts {
        context.update(part);
    }
    digest_of(context)
}

fn digest_of(context: Context) -> [u8; 32] {
    context.finish().as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// The leaf that is being filled by pushes smaller than itself.
struct Pending {
    form: LeafForm,
    /// Raw leaves: hashed so far.
    context: Context,
    /// Raw leaves: the bytes while they may still be a small leaf. Wrapped leaves: all bytes.
    kept: Vec<u8>,
    len: usize,
}

impl Pending {
    fn new(profile: Profile) -> Pending {
        Pending { form: profile.leaf_form(), context: Context::new(&SHA256), kept: Vec::new(), len: 0 }
    }

    fn push(&mut self, part: &[u8]) {
        self.len += part.len();
        match self.form {
            LeafForm::Wrapped => self.kept.extend_from_slice(part),
            LeafForm::Raw => {
                self.context.update(part);
                if self.len <= SMALL_LEAF_BYTES {
                    self.kept.extend_from_slice(part);
                } else {
                    self.kept.clear();
                }
            }
        }
    }

    /// Ends the leaf and begins the next.
    fn take(&mut self, profile: Profile) -> HashedLeaf {
        let data_len = self.len as u32;
        self.len = 0;
        match self.form {
            LeafForm::Wrapped => {
                let leaf = hash_leaf(profile, &self.kept);
                self.kept.clear();
                leaf
            }
            LeafForm::Raw => {
                let context = std::mem::replace(&mut self.context, Context::new(&SHA256));
                let small = (data_len as usize <= SMALL_LEAF_BYTES).then(|| Bytes::copy_from_slice(&self.kept));
                self.kept.clear();
                HashedLeaf { profile, digest: digest_of(context), data_len, small }
            }
        }
    }
}

/// A link that waits for its parent to be full.
struct Child {
    digest: [u8; 32],
    size: u64,
    tsize: u64,
}

/// The balanced layout, built from the left: `levels[0]` holds leaves, `levels[i + 1]` nodes over `levels[i]`. A level that is
/// full becomes a node at once, so no level ever holds more than `links_max` rows. All leaves end at the same depth, as in
/// boxo's balanced builder: the last node of a level may have one link only.
struct Layout {
    profile: Profile,
    levels: Vec<Vec<Child>>,
}

impl Layout {
    fn push(&mut self, leaf: Child, sink: &mut impl BlockSink) {
        let mut child = leaf;
        for level in 0.. {
            if level == self.levels.len() {
                self.levels.push(Vec::new());
            }
            self.levels[level].push(child);
            if self.levels[level].len() < self.profile.links_max() {
                return;
            }
            child = self.close(level, sink);
        }
    }

    fn finish(mut self, sink: &mut impl BlockSink) -> Built {
        let mut level = 0;
        loop {
            let is_top = self.levels[level + 1..].iter().all(Vec::is_empty);
            if is_top && self.levels[level].len() == 1 {
                let root = &self.levels[level][0];
                return Built { cid: self.cid(level, root), size: root.size, tsize: root.tsize };
            }
            if !self.levels[level].is_empty() {
                let node = self.close(level, sink);
                if level + 1 == self.levels.len() {
                    self.levels.push(Vec::new());
                }
                self.levels[level + 1].push(node);
            }
            level += 1;
        }
    }

    /// Makes one node over all that waits on a level.
    fn close(&mut self, level: usize, sink: &mut impl BlockSink) -> Child {
        let children = std::mem::take(&mut self.levels[level]);
        let links: Vec<_> = children.iter().map(|child| self.cid(level, child)).collect();
        let mut bytes = Vec::with_capacity(children.len() * 64);
        for (cid, child) in links.iter().zip(&children) {
            Link { cid: &cid.to_bytes(), name: [b"", b""], tsize: child.tsize }.put(&mut bytes);
        }
        put_file_data(&mut bytes, children.iter().map(|child| child.size));
        let digest = sha256(&[&bytes]);
        let node = Child {
            digest,
            size: children.iter().map(|child| child.size).sum(),
            tsize: bytes.len() as u64 + children.iter().map(|child| child.tsize).sum::<u64>(),
        };
        sink.node(NodeBlock { cid: self.profile.node_cid(digest), bytes, links });
        node
    }

    fn cid(&self, level: usize, child: &Child) -> crate::address::Cid {
        match level {
            0 => self.profile.leaf_cid(child.digest),
            _ => self.profile.node_cid(child.digest),
        }
    }
}
