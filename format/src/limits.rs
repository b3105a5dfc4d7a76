//! Bounds on hostile input.

/// What a parser accepts at most. The defaults pass every image seen in practice with a wide margin and keep the
/// memory that one layer can claim far below a gigabyte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Entries (tar) or inodes and directory entries (EROFS) in one layer.
    pub entries: u64,
    /// Length of a full path in bytes.
    pub path_len: usize,
    /// Directories between the root and an entry.
    pub depth: usize,
    /// Bytes of all extended attributes of one inode, names and values.
    pub xattr_bytes: usize,
    /// Extended attributes of one inode.
    pub xattr_count: usize,
    /// Length of one PAX or GNU extension record block in a tar, in bytes.
    pub tar_extension_bytes: u64,
    /// Sparse segments of one file.
    pub sparse_segments: usize,
    /// Bytes that a layer may keep in its tree because no 512-byte block of the plain layer holds them in place.
    pub literal_bytes: u64,
    /// Chunks in one layer.
    pub chunks: usize,
    /// Plain length of one chunk in bytes.
    pub chunk_plain_len: u32,
    /// Plain length of one layer in bytes.
    pub layer_plain_len: u64,
    /// Stored length of a layer index in bytes.
    pub index_stored_len: u64,
    /// Decoded length of one section of a layer index in bytes.
    pub section_len: u64,
    /// Stored length of another tool's table of contents in bytes.
    pub toc_stored_len: u64,
    /// Decoded length of another tool's table of contents in bytes.
    pub toc_len: u32,
    /// Layers in one image.
    pub layers: usize,
    /// Deferred hard links in one layer.
    pub deferred_links: usize,
    /// Length of an image manifest, image index or image config in bytes.
    pub manifest_len: u64,
    /// Stored length of a start-up profile in bytes.
    pub profile_stored_len: u64,
    /// Demands in a start-up profile.
    pub profile_demands: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            entries: 4_000_000,
            path_len: 4096,
            depth: 1024,
            xattr_bytes: 128 << 10,
            xattr_count: 1024,
            tar_extension_bytes: 1 << 20,
            sparse_segments: 1 << 16,
            literal_bytes: 64 << 20,
            chunks: 16_000_000,
            // A chunk of a gzip layer ends with a deflate block, and a block of zlib's with its largest memory level holds up to 8 MiB.
            chunk_plain_len: 16 << 20,
            layer_plain_len: 1 << 40,
            index_stored_len: 512 << 20,
            section_len: 1 << 30,
            // Three hundred thousand entries as eStargz writes them, indented.
            toc_stored_len: 64 << 20,
            toc_len: 128 << 20,
            layers: 512,
            deferred_links: 100_000,
            manifest_len: 8 << 20,
            profile_stored_len: 1 << 20,
            profile_demands: 100_000,
        }
    }
}
