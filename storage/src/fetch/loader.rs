//! What a dynamic loader will read of a program that a reader has just opened.
//!
//! A program shows itself when its first page is read: the magic number stands at the beginning of the range. Its headers tell where the
//! patched data and the section headers lie, and those tell where relocations and symbols lie, and constructors, whose code tells what they touch. All of that is wanted in the
//! readahead lane at once, while the loader is still at the first of its dependencies. So are the libraries that it names, and what those name, if the image is
//! known to have them. See [`sluice_format::program`].

use std::collections::HashSet;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use bytes::BytesMut;
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, OptionFuture};
use sluice_format::program::{Constructors, MAGIC, MOST_BYTES, Program, library_name};

use super::libraries::Libraries;
use super::{Claim, Lane, Source};
use crate::sync::lock;

/// Programs remembered per layer, so that each is looked at once.
const MOST_PROGRAMS: usize = 10_000;

/// Bytes at the beginning of a library that hold its headers.
const HEAD_LEN: u64 = 4096;
/// Bytes of code that are looked at together.
const PIECE_LEN: u64 = 256 << 10;
/// Plain bytes that the constructors of one program may cause to be fetched: those of PyTorch's largest library touch 75 MB.
const MOST_TOUCHED: u64 = 2 * MOST_BYTES;

/// The programs of one layer that readers have opened.
#[derive(Debug, Default)]
pub(crate) struct Programs {
    met: Mutex<HashSet<u64>>,
}

impl Programs {
    /// The program that begins with `head` at a plain offset, when it is one and has not been met before.
    pub(crate) fn meet(&self, plain_off: u64, head: &[u8]) -> Option<Program> {
        if !head.starts_with(MAGIC) {
            return None;
        }
        let program = Program::parse(head)?;
        let mut met = lock(&self.met);
        (met.len() < MOST_PROGRAMS && met.insert(plain_off)).then_some(program)
    }
}

/// Has the parts of a program fetched that its loader will read, and those of the libraries that it needs. `plain_off` is where its file begins.
pub(crate) fn fetch_ahead(
    source: Arc<Source>,
    libraries: Option<Arc<Libraries>>,
    plain_off: u64,
    program: Program,
) -> BoxFuture<'static, ()> {
    async move {
        want(&source, plain_off, program.data_ranges());
        let sections = in_layer(&source, plain_off, program.sections());
        let Some(sections) = gather(&source, sections).await else {
            return;
        };
        want(&source, plain_off, program.table_ranges(&sections));
        let constructors = program.constructors(&sections).map(Arc::new);
        let follow = OptionFuture::from(constructors.map(|found| follow(&source, plain_off, found)));
        let look = OptionFuture::from(
            libraries.map(|libraries| look_for(&source, libraries, plain_off, &program, &sections)),
        );
        tokio::join!(follow, look);
    }
    .boxed()
}

/// Has the libraries fetched that a program needs and that were not met before.
async fn look_for(
    source: &Arc<Source>,
    libraries: Arc<Libraries>,
    plain_off: u64,
    program: &Program,
    sections: &[u8],
) -> Option<()> {
    let needed = program.needed(sections)?;
    let dynamic = gather(source, in_layer(source, plain_off, needed.dynamic())).await?;
    for name in needed.names(program, &dynamic) {
        let bytes = gather(source, in_layer(source, plain_off, name)).await?;
        let found = library_name(&bytes).and_then(|name| libraries.find(name));
        let Some((source, programs, library_off)) = found else {
            continue;
        };
        let libraries = libraries.clone();
        tokio::spawn(async move {
            let head = gather(&source, in_layer(&source, library_off, 0..HEAD_LEN)).await?;
            let library = programs.meet(library_off, &head)?;
            fetch_ahead(source, Some(libraries), library_off, library).await;
            Some(())
        });
    }
    Some(())
}

/// Has fetched what constructors touch. Ends early when something cannot be had.
async fn follow(source: &Arc<Source>, plain_off: u64, constructors: Arc<Constructors>) -> Option<()> {
    let addresses = in_layer(source, plain_off, constructors.addresses());
    let mut code = constructors.code(&gather(source, addresses).await?);
    if code.is_empty() {
        let relocations = in_layer(source, plain_off, constructors.relocations());
        code = constructors.code(&constructors.relocated(&gather(source, relocations).await?));
    }
    want(source, plain_off, code.clone());
    let (mut asked, mut left) = (HashSet::new(), MOST_TOUCHED);
    for piece in code.into_iter().flat_map(pieces) {
        let bytes = gather(source, in_layer(source, plain_off, piece.clone())).await?;
        let constructors = constructors.clone();
        let targets = tokio::task::spawn_blocking(move || constructors.targets(piece.start, &bytes));
        let mut ahead = Vec::new();
        for target in targets.await.ok()? {
            let place = in_layer(source, plain_off, target..target + 1);
            for chunk in source
                .index
                .chunks
                .covering(place)
                .filter(|chunk| asked.insert(*chunk))
            {
                left = left.checked_sub(source.chunk(chunk).plain_len.into())?;
                ahead.push((chunk, Lane::Readahead));
            }
        }
        source.upstream.want(source, &ahead);
    }
    Some(())
}

/// A range in pieces of at most [`PIECE_LEN`].
fn pieces(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let starts = range.clone().step_by(PIECE_LEN as usize);
    starts.map(move |start| start..start.saturating_add(PIECE_LEN).min(range.end))
}

/// A range of the file as one of the layer, as far as the layer goes.
fn in_layer(source: &Source, plain_off: u64, file: Range<u64>) -> Range<u64> {
    let plain_len = source.index.chunks.plain_len();
    let at = |file_off: u64| plain_off.saturating_add(file_off).min(plain_len);
    at(file.start)..at(file.end)
}

fn want(source: &Arc<Source>, plain_off: u64, ranges: impl IntoIterator<Item = Range<u64>>) {
    let ahead: Vec<_> = ranges
        .into_iter()
        .flat_map(|range| source.index.chunks.covering(in_layer(source, plain_off, range)))
        .map(|chunk| (chunk, Lane::Readahead))
        .collect();
    source.upstream.want(source, &ahead);
}

/// The bytes of `plain`, fetched ahead.
async fn gather(source: &Arc<Source>, plain: Range<u64>) -> Option<BytesMut> {
    let numbers: Vec<usize> = source.index.chunks.covering(plain.clone()).collect();
    let claims = source.upstream.claim(source, &numbers, Lane::Readahead);
    let mut bytes = BytesMut::new();
    for (chunk, claim) in numbers.into_iter().zip(claims) {
        let whole = match claim {
            Claim::Fetched(ticket) => ticket.outcome().await.ok()?,
            Claim::Kept => {
                let source = source.clone();
                let kept = tokio::task::spawn_blocking(move || source.kept(chunk));
                kept.await.ok()??
            }
        };
        let range = source.chunk(chunk).plain_range();
        let start = plain.start.max(range.start) - range.start;
        let end = plain.end.min(range.end) - range.start;
        bytes.extend_from_slice(&whole[start as usize..end as usize]);
    }
    Some(bytes)
}
