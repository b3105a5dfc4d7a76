//! Odd images that stand apart from the edge image: containerd refuses them, or Sluice knowingly differs.

use std::path::Path;

use anyhow::Result;

use super::edge::sparse_shapes;
use super::entry::Entry;
use super::{Image, ImageBuilder, Layer, SparseEncoding};

/// An image with a hard link to a file of a lower layer, under the tag `lower-hard-link`. containerd refuses it.
///
/// # Errors
/// When it cannot be written.
pub fn lower_hard_link(directory: &Path) -> Result<Image> {
    let low = Layer::of([
        Entry::directory("d", 0o755),
        Entry::file("d/target", b"from below").owner(7, 8),
    ]);
    let high = Layer::of([
        Entry::hard_link("d/name", "d/target"),
        Entry::file("d/other", b"y"),
    ]);
    ImageBuilder::new()
        .layer(low)
        .layer(high)
        .write(directory, "lower-hard-link")
}

/// An image whose upper layer names a file before the directory that it is in. containerd makes the directory from the lower
/// one with its `user` attributes, and the entry that comes later adds to them. Under the tag `described-late`.
///
/// # Errors
/// When it cannot be written.
pub fn described_late(directory: &Path) -> Result<Image> {
    let below = Entry::directory("late", 0o700).owner(1, 2);
    let low = Layer::of([below
        .xattr("user.below", b"stays")
        .xattr("trusted.below", b"goes")]);
    let above = Entry::directory("late", 0o755).xattr("user.above", b"is added");
    let high = Layer::of([Entry::file("late/first", b"x"), above]);
    ImageBuilder::new()
        .layer(low)
        .layer(high)
        .write(directory, "described-late")
}

/// Files by path with the bytes that they have to hold.
pub type NamedContents = Vec<(&'static str, Vec<u8>)>;

/// An image of files with holes in the old GNU encoding, which containerd refuses as an unknown type, with the content
/// that each has to have. Under the tag `old-gnu-sparse`.
///
/// # Errors
/// When it cannot be written.
pub fn old_gnu_sparse(directory: &Path) -> Result<(Image, NamedContents)> {
    let shapes = sparse_shapes(SparseEncoding::OldGnu);
    let contents = shapes
        .iter()
        .map(|(name, sparse)| (*name, sparse.content()))
        .collect();
    let layer = Layer::of(
        shapes
            .into_iter()
            .map(|(name, sparse)| Entry::sparse(name, sparse)),
    );
    Ok((
        ImageBuilder::new()
            .layer(layer)
            .write(directory, "old-gnu-sparse")?,
        contents,
    ))
}

/// An image whose upper layer hides everything below, under the tag `opaque-root`.
///
/// # Errors
/// When it cannot be written.
pub fn opaque_root(directory: &Path) -> Result<Image> {
    let low = Layer::of([
        Entry::directory("d", 0o755),
        Entry::file("d/old", b"old"),
        Entry::file("f", b"old"),
    ]);
    let high = Layer::of([Entry::file(".wh..wh..opq", b""), Entry::file("d/new", b"new")]);
    ImageBuilder::new()
        .layer(low)
        .layer(high)
        .write(directory, "opaque-root")
}

/// An image whose upper layer deletes a directory and makes it anew, under the tag `made-anew`.
///
/// # Errors
/// When it cannot be written.
pub fn made_anew(directory: &Path) -> Result<Image> {
    let low = Layer::of([
        Entry::directory("d", 0o700).owner(1, 2),
        Entry::file("d/old", b"old"),
    ]);
    let high = Layer::of([
        Entry::whiteout("d"),
        Entry::directory("d", 0o755),
        Entry::file("d/new", b"new"),
    ]);
    ImageBuilder::new()
        .layer(low)
        .layer(high)
        .write(directory, "made-anew")
}
