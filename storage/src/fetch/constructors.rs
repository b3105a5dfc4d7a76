//! What the constructors of a library touch, fetched before they run.
//!
//! What their code refers to is wanted as soon as the code is here; behind it, with less urgency, what the functions call that they call. A page fault does not
//! read one page: the kernel reads a window around it, and waits for all of it. So what is wanted of a place is what such a window covers. See
//! [`sluice_format::program::Constructors`].

use std::collections::{BTreeSet, HashSet};
use std::ops::Range;
use std::sync::Arc;

use sluice_format::program::{Constructors, Links, MOST_BYTES, Target, function_at};
use tokio::task::spawn_blocking;

use super::Lane;
use super::loader::Opened;

/// Bytes that the kernel reads around a page fault in a mount that is not complete, half of them before it: a wider window fetches chunks that nobody reads.
pub const FAULT_WINDOW: u64 = 64 << 10;

const PAGE_LEN: u64 = 4096;
/// Bytes of code that are looked at together.
const PIECE_LEN: u64 = 256 << 10;
/// Plain bytes that the constructors of one program may cause to be fetched: those of PyTorch's largest library touch 75 MB.
const MOST_TOUCHED: u64 = 2 * MOST_BYTES;

/// Has fetched what constructors touch. Ends early when something cannot be had.
pub(super) async fn follow(opened: &Opened, constructors: Arc<Constructors>) -> Option<()> {
    let mut code = constructors.code(&opened.gather(constructors.addresses()).await?);
    if code.is_empty() {
        let relocations = opened.gather(constructors.relocations()).await?;
        code = constructors.code(&constructors.relocated(&relocations));
    }
    opened.want(code.clone());
    let mut reach = Reach::new(opened);
    let mut called = BTreeSet::new();
    for piece in code.into_iter().flat_map(pieces) {
        let bytes = opened.gather(piece.clone()).await?;
        let constructors = constructors.clone();
        let targets = spawn_blocking(move || constructors.targets(piece.start, &bytes));
        let targets = targets.await.ok()?;
        reach.want(targets.iter().map(|target| target.file_off), opened.lane)?;
        called.extend(calls(targets));
    }
    let links = Arc::new(links(opened, &constructors).await?);
    let functions = called
        .into_iter()
        .filter_map(|call| constructors.function(call, &links));
    let functions: BTreeSet<u64> = functions.collect();
    reach.want(functions.iter().copied(), opened.lane)?;
    let functions = Vec::from_iter(functions);
    for together in functions.chunk_by(|one, next| opened.chunk_at(*one) == opened.chunk_at(*next)) {
        let further = callees(opened, constructors.clone(), links.clone(), together.to_vec()).await?;
        reach.want(further, Lane::Profile.max(opened.lane))?;
    }
    Some(())
}

/// What lies behind the stubs of a program.
async fn links(opened: &Opened, constructors: &Constructors) -> Option<Links> {
    let linkage = constructors.linkage();
    let relocations = opened.gather(linkage.relocations()).await?;
    let symbols = opened.gather(linkage.symbols()).await?;
    Some(linkage.links(&relocations, &symbols))
}

/// The functions that some functions of one chunk call.
async fn callees(
    opened: &Opened,
    constructors: Arc<Constructors>,
    links: Arc<Links>,
    functions: Vec<u64>,
) -> Option<Vec<u64>> {
    let (first, last) = (*functions.first()?, *functions.last()?);
    let chunk = opened.source.chunk(opened.chunk_at(last)?).plain_range();
    let end = chunk.end.saturating_sub(opened.plain_off);
    let bytes = opened.gather(first..end).await?;
    let look = move || {
        let callees = functions.into_iter().flat_map(|function| {
            let body = function_at(
                function,
                bytes.get((function - first) as usize..).unwrap_or_default(),
            );
            calls(constructors.targets(function, body))
        });
        let callees = callees.filter_map(|call| constructors.function(call, &links));
        callees.collect()
    };
    spawn_blocking(look).await.ok()
}

fn calls(targets: Vec<Target>) -> impl Iterator<Item = u64> {
    let called = targets.into_iter().filter(|target| target.is_called);
    called.map(|target| target.file_off)
}

/// A range in pieces of at most [`PIECE_LEN`].
fn pieces(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let starts = range.clone().step_by(PIECE_LEN as usize);
    starts.map(move |start| start..start.saturating_add(PIECE_LEN).min(range.end))
}

/// Places in a file that are fetched, each chunk once.
struct Reach<'a> {
    opened: &'a Opened,
    asked: HashSet<usize>,
    /// Plain bytes that may be asked for.
    left: u64,
}

impl<'a> Reach<'a> {
    fn new(opened: &'a Opened) -> Self {
        Self {
            opened,
            asked: HashSet::new(),
            left: MOST_TOUCHED,
        }
    }

    /// Has fetched what page faults at these places read. `None` when that is too much.
    fn want(&mut self, places: impl IntoIterator<Item = u64>, lane: Lane) -> Option<()> {
        let source = &self.opened.source;
        let mut ahead = Vec::new();
        for place in places {
            let page = place - place % PAGE_LEN;
            let window = page.saturating_sub(FAULT_WINDOW / 2)..page.saturating_add(FAULT_WINDOW / 2);
            for chunk in self
                .opened
                .chunks(window)
                .filter(|chunk| self.asked.insert(*chunk))
            {
                self.left = self.left.checked_sub(source.chunk(chunk).plain_len.into())?;
                ahead.push((chunk, lane));
            }
        }
        source.upstream.want(source, &ahead);
        Some(())
    }
}
