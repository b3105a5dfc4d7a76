//! What readers want next is there when they come to it, and what was fetched for nobody is bounded.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use sluice_format::inode::Attributes;
use sluice_format::program::{Program, function_at};
use sluice_format::startup::{Command, ImageFiles};
use sluice_format::tree::{Extent, ExtentSource, FileContent};
use sluice_format::{EntryName, Node, NodeId, NodeKind, Tree};
use sluice_storage::testing::{Fault, SampleLayer, Times};
use sluice_storage::{FAULT_WINDOW, PlainLayer, PlainLayerOptions, ReadObserver};
use tokio::time::sleep;

use crate::bench::{Bench, settle};

/// Stored bytes that may be guessed wrongly before any guess was right.
const WRONG_BYTES: u64 = 256 << 10;
/// Wrong guesses beyond that, in percent of what was touched.
const WRONG_PERCENT: u64 = 100;
/// Stored bytes between two chunks that are asked for with them, also when they are here.
const BRIDGED: u64 = 192 << 10;

#[derive(Debug, Default)]
struct Waits {
    count: AtomicUsize,
    last_chunk: AtomicUsize,
}

impl ReadObserver for Waits {
    fn touched(&self, _layer: usize, _plain: &Range<u64>, _chunks: Range<usize>) {}

    fn waited(&self, _layer: usize, chunks: Range<usize>, _wait: Duration) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.last_chunk.fetch_max(chunks.start, Ordering::Relaxed);
    }
}

fn counting() -> (Arc<Waits>, PlainLayerOptions) {
    let waits = Arc::new(Waits::default());
    let options = PlainLayerOptions {
        observers: vec![waits.clone()],
        ..PlainLayerOptions::default()
    };
    (waits, options)
}

#[tokio::test(start_paused = true)]
async fn a_sequential_reader_waits_seldom_and_every_byte_comes_once() {
    let bench = Bench::new(400, 64 << 10, 0);
    bench
        .blob
        .inject(Fault::Latency(Duration::from_millis(100)), Times::Always);
    let (waits, options) = counting();
    let layer = bench.layer_with(options);
    for chunk in 0..400 {
        bench.read(&layer, chunk).await;
        // A reader that does something with its bytes: 6.5 MB/s.
        sleep(Duration::from_millis(10)).await;
    }
    // The window has to become ten chunks long before it covers the latency.
    let (count, last) = (
        waits.count.load(Ordering::Relaxed),
        waits.last_chunk.load(Ordering::Relaxed),
    );
    assert!(
        count <= 60 && last <= 120,
        "{count} waits, the last at chunk {last}"
    );
    bench.assert_asked_once();
    settle().await;
    bench.assert_asked_once();
    let requests = bench.asked().len();
    assert!(requests <= 80, "{requests} requests for 25 MiB");
}

#[tokio::test(start_paused = true)]
async fn scattered_readers_fetch_in_vain_no_more_than_the_bound() {
    const LEN: usize = 100_000;
    const TOUCHED: usize = 40;
    // Chunks longer than the gap that is bridged, so that none comes along unasked.
    let bench = Bench::new(400, LEN, 0);
    let layer = bench.layer();
    for at in 0..TOUCHED {
        bench.read(&layer, at * 157 % 400).await;
    }
    settle().await;
    let touched = bench.stored(1).end - bench.stored(1).start;
    let touched = touched * TOUCHED as u64 + 100 * TOUCHED as u64;
    let most = touched + WRONG_BYTES + touched / 100 * WRONG_PERCENT + LEN as u64 + 100;
    assert!(bench.asked_len() <= most, "{} of {most}", bench.asked_len());
    bench.assert_asked_once();
}

/// Where the parts of a 64-bit little-endian ELF file lie that a loader reads: section headers, dynamic symbols, their
/// strings, and relocations with addends, as the System V ABI lays them out; and the beginning of each constructor, whose addresses are offsets in this file too.
fn loader_tables(elf: &[u8]) -> Vec<Range<usize>> {
    let word = |at: usize| u64::from_le_bytes(elf[at..at + 8].try_into().expect("eight bytes")) as usize;
    let short = |at: usize| usize::from(u16::from_le_bytes([elf[at], elf[at + 1]]));
    let (headers, header_len, count) = (word(0x28), short(0x3a), short(0x3c));
    let mut tables = Vec::from([(headers, header_len * count)]);
    for header in (0..count).map(|at| headers + at * header_len) {
        let kind = u32::from_le_bytes(elf[header + 4..header + 8].try_into().expect("four bytes"));
        let is_loaded = word(header + 8) & 2 != 0;
        let (file_off, len) = (word(header + 0x18), word(header + 0x20));
        if is_loaded && [3, 4, 11].contains(&kind) {
            tables.push((file_off, len));
        }
        if is_loaded && kind == 14 {
            let addresses = (file_off..file_off + len).step_by(8).map(word);
            tables.extend(addresses.map(|constructor| (constructor, 16)));
        }
    }
    let range = |(file_off, len)| file_off..file_off + len;
    tables.into_iter().map(range).collect()
}

/// A tree with files and links in its root directory. Each file is known by where it lies in the one layer.
pub(crate) fn tree_of(files: &[(&str, Range<u64>)], links: &[(&str, &str)]) -> Tree {
    let file = |plain: &Range<u64>| {
        let len = plain.end - plain.start;
        NodeKind::Regular(FileContent {
            size: len,
            extents: vec![Extent {
                file_off: 0,
                len,
                source: ExtentSource::Plain {
                    device: 1,
                    plain_off: plain.start,
                },
            }],
        })
    };
    let files = files.iter().map(|(name, plain)| (*name, file(plain)));
    let links = links
        .iter()
        .map(|(name, target)| (*name, NodeKind::Symlink(target.as_bytes().to_vec())));
    let mut tree = Tree::new();
    for (name, kind) in files.chain(links) {
        let attributes = Attributes::default();
        let id = tree.add(Node { kind, attributes });
        let name = EntryName::new(name.as_bytes()).expect("a name");
        let root = tree.directory_mut(NodeId::ROOT).expect("a root");
        root.entries.insert(name, id);
    }
    tree
}

/// bash needs libtinfo, which needs libc, as everything does.
#[tokio::test(start_paused = true)]
async fn libraries_come_when_the_head_of_a_program_that_needs_them_is_read() {
    const CHUNK_LEN: usize = 8 << 10;
    const LIBRARIES: &str = "/lib/x86_64-linux-gnu";
    const APART: usize = 1 << 20;
    let mut plain = Vec::new();
    let mut place = |path: &str| {
        // Far enough from the file before that none comes along with its neighbour.
        let at = (plain.len() + APART).next_multiple_of(512);
        plain.resize(at, 0x55);
        plain.extend(std::fs::read(path).unwrap_or_else(|error| panic!("{path}: {error}")));
        at
    };
    let names = ["libtinfo.so.6", "libc.so.6", "libm.so.6"];
    let program = place("/bin/bash");
    let libraries = names.map(|name| place(&format!("{LIBRARIES}/{name}")));
    plain.resize(plain.len().next_multiple_of(512) + 1024, 0);
    let [tinfo, libc, other] = libraries;
    let files = [
        ("libtinfo.so.6.4", tinfo),
        ("libc.so.6", libc),
        ("libm.so.6", other),
    ]
    .map(|(name, at)| (name, at as u64..at as u64 + 512));
    let tree = tree_of(&files, &[("libtinfo.so.6", "libtinfo.so.6.4")]);
    let bench = Bench::of(SampleLayer::of_plain(plain, CHUNK_LEN, 0));
    let layer = bench.layer();
    let files = ImageFiles::of(&tree, &Command::default());
    PlainLayer::foresee(std::slice::from_ref(&layer), files);
    let head = |at: usize| at as u64..at as u64 + 4096;
    layer.read(head(program)).await.expect("the head is read");
    settle().await;
    for library in [tinfo, libc] {
        let elf = &bench.sample.plain[library..];
        for table in loader_tables(elf) {
            let plain = (library + table.start) as u64..(library + table.end) as u64;
            assert!(
                layer.read_cached(plain).is_some(),
                "{table:?} of the library at {library}"
            );
        }
    }
    assert!(
        layer.read_cached(head(other)).is_none(),
        "a library that nothing needs"
    );
}

#[tokio::test(start_paused = true)]
async fn tables_and_constructors_of_a_program_come_when_its_head_is_read() {
    const CHUNK_LEN: usize = 8 << 10;
    /// Behind a tar header and some other file.
    const PLAIN_OFF: usize = 512 * 37;
    let program = std::fs::read("/bin/bash").expect("bash is installed");
    let tables = loader_tables(&program);
    assert!(tables.len() > 3, "{tables:?}");
    let mut plain = vec![0x55; PLAIN_OFF];
    plain.extend_from_slice(&program);
    plain.resize(plain.len().next_multiple_of(512) + 1024, 0);
    let bench = Bench::of(SampleLayer::of_plain(plain, CHUNK_LEN, 0));
    let layer = bench.layer();
    let head = PLAIN_OFF as u64..PLAIN_OFF as u64 + 4096;
    layer.read(head).await.expect("the head is read");
    settle().await;
    for table in &tables {
        let plain = (PLAIN_OFF + table.start) as u64..(PLAIN_OFF + table.end) as u64;
        let bytes = layer.read_cached(plain.clone());
        let bytes = bytes.unwrap_or_else(|| panic!("table {table:?} did not come"));
        assert_eq!(
            bytes,
            bench.sample.plain[plain.start as usize..plain.end as usize]
        );
    }
    assert!(!layer.is_complete(), "other code is not fetched ahead");
    let requests = bench.blob.requests();
    for (at, one) in requests.iter().enumerate() {
        for other in &requests[..at] {
            let (start, end) = (one.start.max(other.start), one.end.min(other.end));
            assert!(
                end.saturating_sub(start) <= BRIDGED,
                "asked for twice: {one:?} {other:?}"
            );
        }
    }
}

/// What constructors of libstdc++ call, also through stubs, and what those functions call.
fn called_by_constructors(elf: &[u8]) -> BTreeSet<u64> {
    let part = |range: Range<u64>| &elf[range.start as usize..range.end as usize];
    let program = Program::parse(&elf[..4096]).expect("a program");
    let constructors = program
        .constructors(part(program.sections()))
        .expect("it has some");
    let linkage = constructors.linkage();
    let links = linkage.links(part(linkage.relocations()), part(linkage.symbols()));
    let calls = |file_off, code: &[u8]| {
        let targets = constructors.targets(file_off, code).into_iter();
        let called = targets.filter(|target| target.is_called);
        let functions = called.filter_map(|target| constructors.function(target.file_off, &links));
        functions.collect::<BTreeSet<u64>>()
    };
    let code = constructors.code(part(constructors.addresses()));
    let first: BTreeSet<u64> = code
        .into_iter()
        .flat_map(|range| calls(range.start, part(range)))
        .collect();
    let next = first.iter().flat_map(|function| {
        let body = function_at(*function, &elf[*function as usize..]);
        calls(*function, body)
    });
    let next = BTreeSet::from_iter(next);
    assert!(
        first.len() > 5 && next.difference(&first).count() > 5,
        "{first:?} {next:?}"
    );
    first.union(&next).copied().collect()
}

#[tokio::test(start_paused = true)]
async fn what_constructors_call_comes_with_all_that_a_page_fault_reads() {
    const CHUNK_LEN: usize = 8 << 10;
    const PLAIN_OFF: u64 = 1024;
    let library = std::fs::read("/usr/lib/x86_64-linux-gnu/libstdc++.so.6").expect("libstdc++ is installed");
    let mut plain = vec![0x55; PLAIN_OFF as usize];
    plain.extend_from_slice(&library);
    plain.resize(plain.len().next_multiple_of(512) + 1024, 0);
    let bench = Bench::of(SampleLayer::of_plain(plain, CHUNK_LEN, 0));
    let layer = bench.layer();
    layer
        .read(PLAIN_OFF..PLAIN_OFF + 4096)
        .await
        .expect("the head is read");
    settle().await;
    for function in called_by_constructors(&library) {
        let page = function & !4095;
        let window =
            page.saturating_sub(FAULT_WINDOW / 2)..(page + FAULT_WINDOW / 2).min(library.len() as u64);
        let plain = PLAIN_OFF + window.start..PLAIN_OFF + window.end;
        assert!(
            layer.read_cached(plain).is_some(),
            "around the function at {function:#x}"
        );
    }
    assert!(!layer.is_complete(), "other code is not fetched ahead");
}
