//! Images at the edge of what is large: many layers, a wide directory, files beyond 4 GiB.

use std::path::Path;

use anyhow::Result;

use super::entry::Entry;
use super::{Compression, Image, ImageBuilder, Layer, Sparse, SparseEncoding};

/// One byte more than 32 bits can count, and an odd tail.
const OVER_4_GIB: u64 = (4 << 30) + 12_345;

/// An image of `count` layers under the tag `many-layers`, each of which adds, replaces and deletes.
///
/// # Errors
/// When it cannot be written.
pub fn many_layers(directory: &Path, count: u64) -> Result<Image> {
    let layers = (0..count).map(|at| {
        let mut entries = vec![
            Entry::directory("every", 0o755).mtime(1_700_000_000 + i64::try_from(at).unwrap_or(0), 0),
            Entry::file(format!("every/added-{at:03}"), format!("layer {at}")),
            Entry::file("every/replaced", format!("by layer {at}")).owner(at, at),
            Entry::directory(
                format!("own-{}", at % 7),
                0o700 + u32::try_from(at % 8).unwrap_or(0),
            ),
            Entry::generated(format!("own-{}/bytes-{at}", at % 7), 3000 * at, at),
        ];
        if at > 0 {
            entries.push(Entry::whiteout(&format!("every/marker-{:03}", at - 1)));
        }
        entries.push(Entry::file(
            format!("every/marker-{at:03}"),
            b"until the next layer",
        ));
        let compression = if at % 2 == 0 {
            Compression::Gzip
        } else {
            Compression::Zstd
        };
        Layer::of(entries).compression(compression)
    });
    ImageBuilder::new().layers(layers).write(directory, "many-layers")
}

/// An image with a directory of `count` entries, a few of them deleted and added above, under the tag `wide`.
///
/// # Errors
/// When it cannot be written.
pub fn wide_directory(directory: &Path, count: u32) -> Result<Image> {
    let content = |at: u32| {
        if at.is_multiple_of(10) {
            at.to_string()
        } else {
            String::new()
        }
    };
    let files = (0..count).map(|at| Entry::file(format!("wide/entry-{at:06}"), content(at)));
    let low = Layer::of([Entry::directory("wide", 0o755)].into_iter().chain(files));
    let gone = (0..count)
        .step_by(1000)
        .map(|at| Entry::whiteout(&format!("wide/entry-{at:06}")));
    let new = (0..100).map(|at| Entry::file(format!("wide/new-{at:02}"), b"new"));
    let high = Layer::of(
        [Entry::directory("wide", 0o755)]
            .into_iter()
            .chain(gone)
            .chain(new),
    );
    ImageBuilder::new()
        .layer(low)
        .layer(high)
        .write(directory, "wide")
}

/// An image with a file of more than 4 GiB, nearly all holes, under the tag `holes`. Data lies in pages, as file systems
/// give it out.
///
/// # Errors
/// When it cannot be written.
pub fn holes_over_4_gib(directory: &Path) -> Result<Image> {
    let at_the_end = OVER_4_GIB - 12_345;
    let sparse = Sparse {
        encoding: SparseEncoding::Pax10,
        segments: vec![
            (0, vec![b'a'; 4096]),
            (3 << 30, vec![b'b'; 8192]),
            (at_the_end, vec![b'c'; 12_345]),
        ],
        real_len: OVER_4_GIB,
    };
    let layer = Layer::of([Entry::sparse("holes", sparse)]);
    ImageBuilder::new().layer(layer).write(directory, "holes")
}

/// An image with a file of more than 4 GiB of real bytes and a file after it, under the tag `bytes`.
///
/// # Errors
/// When it cannot be written.
pub fn bytes_over_4_gib(directory: &Path) -> Result<Image> {
    let entries = [
        Entry::generated("large", OVER_4_GIB, 4),
        Entry::generated("after", 100_000, 5),
    ];
    let layer = Layer::of(entries).compression(Compression::Zstd);
    ImageBuilder::new().layer(layer).write(directory, "bytes")
}
