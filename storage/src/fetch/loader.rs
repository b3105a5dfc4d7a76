//! What a dynamic loader will read of a program that a reader has just opened.
//!
//! A program shows itself when its first page is read: the magic number stands at the beginning of the range. Its headers tell where the
//! patched data and the section headers lie, and those tell where relocations and symbols lie, and constructors, whose code tells what they touch. All of that is wanted in the
//! readahead lane at once, while the loader is still at the first of its dependencies. So are the libraries that it names, and what those name, if the image is
//! known to have them. Of the program that an image starts, and the libraries it is linked with, all code and constants are wanted as well, with less urgency. See
//! [`sluice_format::program`].

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use bytes::BytesMut;
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, OptionFuture};
use sluice_format::program::{MAGIC, Program, library_name};
use sluice_format::startup::FilePlace;

use super::files::Files;
use super::{Claim, Lane, Source, constructors};
use crate::sync::lock;

/// Files remembered per layer, so that each is looked at once.
const MOST_MET: usize = 50_000;

/// Bytes at the beginning of a library that hold its headers.
pub(super) const HEAD_LEN: u64 = 4096;

/// The files of one layer that were looked into, by their first byte, and how much of their code was asked for.
#[derive(Debug, Default)]
pub(crate) struct Met {
    met: Mutex<HashMap<u64, Code>>,
}

impl Met {
    /// Whether the file that begins there has not been met before.
    pub(crate) fn meet(&self, plain_off: u64) -> bool {
        self.meet_for(plain_off, Code::Touched).is_some()
    }

    /// The program that begins with `head` at a plain offset, when it is one and has not been met before for as much code.
    pub(crate) fn meet_program(&self, plain_off: u64, head: &[u8], code: Code) -> Option<Meeting> {
        if !head.starts_with(MAGIC) {
            return None;
        }
        let program = Program::parse(head)?;
        let is_first = self.meet_for(plain_off, code)?;
        Some(Meeting {
            program,
            code,
            is_first,
        })
    }

    /// Whether the file is met for the first time; `None` when it was met before for as much code.
    fn meet_for(&self, plain_off: u64, code: Code) -> Option<bool> {
        let mut met = lock(&self.met);
        let has_room = met.len() < MOST_MET;
        match met.entry(plain_off) {
            Entry::Vacant(new) if has_room => {
                new.insert(code);
                Some(true)
            }
            Entry::Occupied(mut known) if *known.get() < code => {
                known.insert(code);
                Some(false)
            }
            _ => None,
        }
    }
}

/// Which code of a program is fetched ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Code {
    /// What its constructors touch.
    Touched,
    /// All of it.
    Whole,
}

/// A program that is met for some of its code.
#[derive(Debug)]
pub(crate) struct Meeting {
    program: Program,
    code: Code,
    /// A reader may open the program of an image before the image's config has named it: then all of its code is wanted later, and its
    /// constructors were followed already.
    is_first: bool,
}

/// Has the parts of a program fetched that its loader will read, and those of the libraries that it needs.
pub(crate) fn fetch_ahead(
    opened: Opened,
    files: Option<Arc<Files>>,
    meeting: Meeting,
) -> BoxFuture<'static, ()> {
    let Meeting {
        program,
        code,
        is_first,
    } = meeting;
    async move {
        opened.want(program.data_ranges());
        if let Some((files, place)) = files
            .as_ref()
            .and_then(|files| Some((files, files.places.loader(&program)?)))
        {
            tokio::spawn(fetch_library(files.clone(), place, opened.lane, code));
        }
        let Some(sections) = opened.gather(program.sections()).await else {
            return;
        };
        opened.want(program.table_ranges(&sections));
        if let Some(files) = files.as_ref().filter(|_| code == Code::Whole) {
            let len = |range: &Range<u64>| range.end - range.start;
            let code = program.code_ranges().into_iter();
            let constants = program.constant_ranges().into_iter();
            let ahead = opened.with_lane(Lane::Profile);
            ahead.want(code.filter(|range| files.spend_on_code(len(range))));
            ahead.want(constants.filter(|range| files.spend_on_constants(len(range))));
        }
        let found = program.constructors(&sections).filter(|_| is_first).map(Arc::new);
        let follow = found.map(|found| constructors::follow(&opened, found));
        let follow = OptionFuture::from(follow);
        let look = files.map(|files| look_for(&opened, files, (&program, &sections), code));
        tokio::join!(follow, OptionFuture::from(look));
    }
    .boxed()
}

/// Has the libraries fetched that a program needs and that were not met before for as much code.
async fn look_for(
    opened: &Opened,
    files: Arc<Files>,
    (program, sections): (&Program, &[u8]),
    code: Code,
) -> Option<()> {
    let needed = program.needed(sections)?;
    let dynamic = opened.gather(needed.dynamic()).await?;
    for name in needed.names(program, &dynamic) {
        let bytes = opened.gather(name).await?;
        if let Some(place) = library_name(&bytes).and_then(|name| files.places.library(name)) {
            tokio::spawn(fetch_library(files.clone(), place, opened.lane, code));
        }
    }
    Some(())
}

/// Has the parts of a library fetched that a loader reads, unless it was met before for as much code.
pub(super) async fn fetch_library(files: Arc<Files>, place: FilePlace, lane: Lane, code: Code) -> Option<()> {
    let (opened, met) = files.open(place, lane)?;
    // The section headers are the last of a file, so they come with the first.
    opened.want(std::iter::once(place.len.saturating_sub(1)..place.len));
    let library = met.meet_program(place.plain_off, &opened.gather(0..HEAD_LEN).await?, code)?;
    fetch_ahead(opened, Some(files), library).await;
    Some(())
}

/// A file that is looked into.
#[derive(Clone, Debug)]
pub(crate) struct Opened {
    pub(crate) source: Arc<Source>,
    /// Where it begins in the plain layer.
    pub(crate) plain_off: u64,
    /// In which its parts are fetched.
    pub(crate) lane: Lane,
}

impl Opened {
    pub(super) fn with_lane(&self, lane: Lane) -> Self {
        Self { lane, ..self.clone() }
    }

    /// A range of the file as one of the layer, as far as the layer goes.
    fn in_layer(&self, file: Range<u64>) -> Range<u64> {
        let plain_len = self.source.index.chunks.plain_len();
        let at = |file_off: u64| self.plain_off.saturating_add(file_off).min(plain_len);
        at(file.start)..at(file.end)
    }

    /// The chunks that a range of the file lies in.
    pub(super) fn chunks(&self, file: Range<u64>) -> Range<usize> {
        self.source.index.chunks.covering(self.in_layer(file))
    }

    /// The chunk that a place in the file lies in.
    pub(super) fn chunk_at(&self, file_off: u64) -> Option<usize> {
        self.chunks(file_off..file_off.saturating_add(1)).next()
    }

    /// Has ranges of the file fetched. That a reader touches them tells nothing new then.
    pub(super) fn want(&self, ranges: impl IntoIterator<Item = Range<u64>>) {
        let chunks = ranges.into_iter().flat_map(|range| self.chunks(range));
        let ahead: Vec<_> = chunks.map(|chunk| (chunk, self.lane)).collect();
        ahead
            .iter()
            .for_each(|(chunk, _)| self.source.foresight.expect(*chunk));
        self.source.upstream.want(&self.source, &ahead);
    }

    /// The bytes of a range of the file, fetched as [`Self::want`] does.
    pub(super) async fn gather(&self, file: Range<u64>) -> Option<BytesMut> {
        let (source, plain) = (&self.source, self.in_layer(file.clone()));
        let numbers: Vec<usize> = self.chunks(file).collect();
        numbers.iter().for_each(|chunk| source.foresight.expect(*chunk));
        let claims = source.upstream.claim(source, &numbers, self.lane);
        let mut bytes = BytesMut::new();
        for (chunk, claim) in numbers.into_iter().zip(claims) {
            let range = source.chunk(chunk).plain_range();
            let part = plain.start.max(range.start)..plain.end.min(range.end);
            match claim {
                Claim::Fetched(ticket) => {
                    let whole = ticket.outcome().await.ok()?;
                    let within = part.start - range.start..part.end - range.start;
                    bytes.extend_from_slice(&whole[within.start as usize..within.end as usize]);
                }
                Claim::Kept => {
                    let source = source.clone();
                    let kept = tokio::task::spawn_blocking(move || source.kept_part(chunk, part));
                    bytes.extend_from_slice(&kept.await.ok()??);
                }
            }
        }
        Some(bytes)
    }
}
