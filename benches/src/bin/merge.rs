//! Time from layer indexes to an image tree: decode each layer's tree, merge, write the EROFS image. And how long it takes to find the
//! files in it that a start may come to, all of them modules of Python.
//!
//! `merge [LAYERS] [FILES]`, 60 and 100,000 unless told otherwise. Each layer adds its share of the files to directories that all
//! layers have, replaces some files of the layer below, and deletes one.

use std::time::Instant;

use anyhow::Context as _;
use sluice_benches::table::{Table, mb, say};
use sluice_format::erofs::{DeviceSlot, write_image};
use sluice_format::inode::Attributes;
use sluice_format::startup::{Command, ImageFiles};
use sluice_format::tree::{Directory, Extent, ExtentSource, FileContent};
use sluice_format::{
    ChunkDigest, ChunkRef, ChunkTable, DiffId, Digest, EntryName, LayerIndex, LayerTree, Limits, Node,
    NodeId, NodeKind, compression::Codec, merge::merge,
};

const ROUNDS: usize = 9;

/// Files per directory: about what package trees have.
const FILES_PER_DIRECTORY: usize = 20;

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1).map(|arg| arg.parse::<usize>());
    let layers = args
        .next()
        .transpose()
        .context("LAYERS is a number")?
        .unwrap_or(60);
    let files = args
        .next()
        .transpose()
        .context("FILES is a number")?
        .unwrap_or(100_000);
    let indexes = (0..layers)
        .map(|at| index_of(at, files / layers))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let limits = Limits::default();
    let (mut decode, mut stack, mut write, mut total, mut image_len) = (vec![], vec![], vec![], vec![], 0);
    let mut look = vec![];
    for _ in 0..ROUNDS {
        let start = Instant::now();
        let trees = indexes
            .iter()
            .map(|index| index.layer_tree(&limits))
            .collect::<Result<Vec<_>, _>>()?;
        decode.push(start.elapsed().as_secs_f64());
        let tree = merge(trees, &limits)?;
        stack.push(start.elapsed().as_secs_f64() - decode[decode.len() - 1]);
        let devices: Vec<_> = indexes
            .iter()
            .map(|index| DeviceSlot {
                diff_id: index.diff_id,
                plain_len: index.plain_len(),
            })
            .collect();
        let image = write_image(&tree, &devices)?;
        total.push(start.elapsed().as_secs_f64());
        write.push(total[total.len() - 1] - decode[decode.len() - 1] - stack[stack.len() - 1]);
        image_len = image.bytes.len() as u64;
        let start = Instant::now();
        std::hint::black_box(ImageFiles::of(&tree, &Command::default()));
        look.push(start.elapsed().as_secs_f64());
    }
    let ms = |values: &[f64]| format!("{:.1}", sluice_benches::median(values) * 1e3);
    say(format!(
        "{layers} layers, {files} files, {ROUNDS} rounds, medians"
    ))?;
    let mut table = Table::new(&[
        "decode trees ms",
        "merge ms",
        "write image ms",
        "total ms",
        "image MB",
        "look into files ms",
    ]);
    table.row([
        ms(&decode),
        ms(&stack),
        ms(&write),
        ms(&total),
        mb(image_len),
        ms(&look),
    ]);
    table.print()
}

fn index_of(layer: usize, files: usize) -> anyhow::Result<LayerIndex> {
    let mut content = LayerTree::default();
    let plain_len = (files as u64 + 1) * 1024;
    for directory in 0..files.div_ceil(FILES_PER_DIRECTORY) {
        let usr = child_directory(&mut content, NodeId::ROOT, "usr")?;
        let parent = child_directory(&mut content, usr, &format!("share{:03}", directory % 100))?;
        let parent = child_directory(&mut content, parent, &format!("package{directory:05}"))?;
        for file in 0..FILES_PER_DIRECTORY.min(files - directory * FILES_PER_DIRECTORY) {
            let plain_off = (directory * FILES_PER_DIRECTORY + file) as u64 * 1024 + 512;
            add_file(
                &mut content,
                parent,
                &format!("layer{layer:02}-file{file:02}.py"),
                plain_off,
            )?;
        }
        add_file(&mut content, parent, "replaced-by-every-layer", 512)?;
    }
    if layer > 0 {
        let name = EntryName::new(format!("layer{:02}-file00.py", layer - 1).as_bytes())?;
        let usr = child_directory(&mut content, NodeId::ROOT, "usr")?;
        let parent = child_directory(&mut content, usr, "share000")?;
        let parent = child_directory(&mut content, parent, "package00000")?;
        add(&mut content, parent, name, NodeKind::Whiteout)?;
    }
    let digest = Digest::of(&layer.to_le_bytes());
    let plain_len = plain_len.max(1024);
    let chunks = (0..plain_len.div_ceil(1 << 18))
        .map(|at| ChunkRef {
            plain_off: at << 18,
            plain_len: (plain_len - (at << 18)).min(1 << 18) as u32,
            stored_off: at * 1000,
            stored_len: 1000,
            codec: Codec::Zstd,
            digest: ChunkDigest(digest),
        })
        .collect();
    Ok(LayerIndex::new(
        DiffId(digest),
        ChunkTable::new(chunks, plain_len, &Limits::default())?,
        &content,
    )?)
}

fn child_directory(layer: &mut LayerTree, parent: NodeId, name: &str) -> anyhow::Result<NodeId> {
    match layer.tree.child(parent, name.as_bytes()) {
        Some(id) => Ok(id),
        None => add(
            layer,
            parent,
            EntryName::new(name.as_bytes())?,
            NodeKind::Directory(Directory::default()),
        ),
    }
}

fn add_file(layer: &mut LayerTree, parent: NodeId, name: &str, plain_off: u64) -> anyhow::Result<NodeId> {
    let extent = Extent {
        file_off: 0,
        len: 300,
        source: ExtentSource::Plain { device: 1, plain_off },
    };
    let kind = NodeKind::Regular(FileContent {
        size: 300,
        extents: vec![extent],
    });
    add(layer, parent, EntryName::new(name.as_bytes())?, kind)
}

fn add(layer: &mut LayerTree, parent: NodeId, name: EntryName, kind: NodeKind) -> anyhow::Result<NodeId> {
    let attributes = Attributes {
        permissions: 0o755,
        ..Attributes::default()
    };
    let id = layer.tree.add(Node { kind, attributes });
    let directory = layer
        .tree
        .directory_mut(parent)
        .context("parents are directories")?;
    directory.entries.insert(name, id);
    Ok(id)
}
