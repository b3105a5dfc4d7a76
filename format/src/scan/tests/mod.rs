//! What the scanner promises. Behaviour "as containerd" was compared with containerd 1.6.20 unpacking the same archives.

mod cuts;
mod formats;
mod pieces;
mod semantics;
mod sparse_files;
mod tar;

use super::{LayerScanner, ScannedLayer};
use crate::tree::{ExtentSource, FileContent};
use crate::{FormatError, LayerTree, Limits, Node, NodeId, NodeKind, Tree};
use tar::{Tar, archive};

const CHUNK: u32 = 64 << 10;

/// Scans a layer that arrives in pieces of these lengths, the last one repeated.
fn scan_pieces(
    plain: &[u8],
    chunk: u32,
    limits: &Limits,
    pieces: &[usize],
) -> Result<(ScannedLayer, Vec<u64>), FormatError> {
    let mut scanner = LayerScanner::new(chunk, limits.clone())?;
    let mut ends = Vec::new();
    let mut rest = plain;
    let mut lens = pieces.iter().chain(pieces.last().into_iter().cycle());
    while !rest.is_empty() {
        let len = lens.next().map_or(rest.len(), |len| (*len).clamp(1, rest.len()));
        let (piece, behind) = rest.split_at(len);
        scanner.push(piece, &mut ends)?;
        assert!(
            ends.last()
                .is_none_or(|end| *end <= (plain.len() - behind.len()) as u64),
            "an end before its bytes"
        );
        rest = behind;
    }
    let scanned = scanner.finish(&mut ends)?;
    Ok((scanned, ends))
}

fn scan_bytes(plain: &[u8]) -> Result<(ScannedLayer, Vec<u64>), FormatError> {
    scan_pieces(plain, CHUNK, &Limits::default(), &[])
}

fn scan(entries: impl IntoIterator<Item = Tar>) -> Result<LayerTree, FormatError> {
    scan_bytes(&archive(entries)).map(|(scanned, _)| scanned.layer)
}

fn layer(entries: impl IntoIterator<Item = Tar>) -> LayerTree {
    scan(entries).unwrap()
}

/// The message with which an archive is refused.
fn refusal(entries: impl IntoIterator<Item = Tar>) -> String {
    scan(entries).unwrap_err().to_string()
}

fn find(tree: &Tree, path: &str) -> Option<NodeId> {
    let names = path.split('/').filter(|name| !name.is_empty());
    names
        .into_iter()
        .try_fold(NodeId::ROOT, |id, name| tree.child(id, name.as_bytes()))
}

fn node<'a>(layer: &'a LayerTree, path: &str) -> &'a Node {
    let id = find(&layer.tree, path).unwrap_or_else(|| panic!("{path} is missing in {:?}", paths(layer)));
    layer.tree.node(id)
}

/// All paths of the tree, in order.
fn paths(layer: &LayerTree) -> Vec<String> {
    fn walk(tree: &Tree, id: NodeId, path: &str, out: &mut Vec<String>) {
        for (name, child) in tree.directory(id).iter().flat_map(|directory| &directory.entries) {
            let path = format!("{path}/{name}");
            out.push(path.clone());
            walk(tree, *child, &path, out);
        }
    }
    let mut out = Vec::new();
    walk(&layer.tree, NodeId::ROOT, "", &mut out);
    out
}

/// The bytes of a file, read through its extents.
fn read(content: &FileContent, plain: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(content.size).unwrap()];
    let (mut last_end, block) = (0, crate::erofs::BLOCK_SIZE);
    for extent in &content.extents {
        let (from, len) = (
            usize::try_from(extent.file_off).unwrap(),
            usize::try_from(extent.len).unwrap(),
        );
        assert!(
            extent.file_off >= last_end && extent.len > 0,
            "extents are sorted and not empty"
        );
        assert!(extent.file_off % block == 0, "extents begin at blocks");
        last_end = extent.file_off + extent.len;
        assert!(
            extent.len % block == 0 || last_end == content.size,
            "extents are whole blocks"
        );
        let source = match &extent.source {
            ExtentSource::Plain { device: 1, plain_off } if plain_off % block == 0 => {
                &plain[usize::try_from(*plain_off).unwrap()..]
            }
            ExtentSource::Literal(literal) if literal.len() == len => literal,
            other => panic!("unexpected source {other:?}"),
        };
        bytes[from..from + len].copy_from_slice(&source[..len]);
    }
    bytes
}

/// The bytes of the file at `path` of an archive.
fn bytes_of(plain: &[u8], path: &str) -> Vec<u8> {
    let (scanned, _) = scan_bytes(plain).unwrap();
    match &node(&scanned.layer, path).kind {
        NodeKind::Regular(content) => read(content, plain),
        other => panic!("{path} is {other:?}"),
    }
}
