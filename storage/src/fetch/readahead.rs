//! What the readers of a layer will want next.
//!
//! Readers leave tracks: chunks touched one after the other. A track that goes on forward is a sequential reader, and its window ahead
//! doubles with every step, so that a program that reads a file from end to end soon waits for nothing. Several tracks are kept, because
//! programs read several files at once and a loader walks two sections of a library side by side. A touch that continues no track is a
//! lone miss: some chunks beside it are worth fetching while the link is idle, as many as earlier guesses of this kind turned out right.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Mutex;

use super::Lane;
use crate::sync::lock;

/// Tracks that are remembered: more than a busy program reads side by side.
const TRACKS: usize = 32;
/// Chunks that a reader may leap over and still be on its track: headers and padding between files are never touched.
const LEAP: usize = 1;

/// Bounds on what is fetched ahead, in plain bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Window of a sequential reader at its longest.
    pub(crate) longest: u64,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { longest: 16 << 20 }
    }
}

/// One sequence of touches.
#[derive(Clone, Copy, Debug)]
struct Track {
    /// The chunk touched last.
    last: usize,
    /// First chunk that has not been asked for ahead.
    ahead: usize,
    /// Chunks to be ahead of the reader.
    window: usize,
}

/// The tracks in one layer.
#[derive(Debug, Default)]
pub(crate) struct Tracks {
    /// The one used last comes last.
    tracks: Mutex<VecDeque<Track>>,
}

/// What to fetch ahead after a touch.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ahead {
    pub(crate) chunks: Range<usize>,
    pub(crate) lane: Lane,
}

impl Tracks {
    /// Notes that chunks were touched in a layer of `count` chunks of about `chunk_len` plain bytes, and tells what to fetch ahead.
    pub(crate) fn touch(
        &self,
        touched: Range<usize>,
        count: usize,
        chunk_len: u64,
        bounds: Bounds,
    ) -> Option<Ahead> {
        let mut tracks = lock(&self.tracks);
        let last = touched.end.checked_sub(1)?;
        let on_track = |track: &Track| touched.start <= track.last + 1 + LEAP && last >= track.last;
        let Some(at) = tracks.iter().rposition(on_track) else {
            if tracks.len() == TRACKS {
                tracks.pop_front();
            }
            let fresh = Track {
                last,
                ahead: touched.end,
                window: 1,
            };
            tracks.push_back(fresh);
            return None;
        };
        let mut track = tracks.remove(at)?;
        if last == track.last {
            tracks.push_back(track);
            return None;
        }
        track.last = last;
        track.window = (track.window * 2).min((bounds.longest / chunk_len.max(1)).max(1) as usize);
        let from = track.ahead.max(touched.end);
        let to = (touched.end + track.window).min(count);
        // Asked for in halves of the window, so that ranges are long.
        let due = to.saturating_sub(from) * 2 >= track.window || from == touched.end;
        if due && from < to {
            track.ahead = to;
        }
        tracks.push_back(track);
        (due && from < to).then_some(Ahead {
            chunks: from..to,
            lane: Lane::Readahead,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: u64 = 256 << 10;

    fn touch(tracks: &Tracks, chunk: usize) -> Option<Range<usize>> {
        let ahead = tracks.touch(chunk..chunk + 1, 1000, CHUNK, Bounds::default());
        ahead.map(|ahead| ahead.chunks)
    }

    #[test]
    fn a_sequential_reader_is_run_ahead_of_and_gaps_are_not_left() {
        let tracks = Tracks::default();
        let mut asked = Vec::new();
        for chunk in 0..200 {
            if let Some(ahead) = touch(&tracks, chunk) {
                assert!(
                    ahead.start <= ahead.end && ahead.end <= chunk + 1 + 64,
                    "{chunk}: {ahead:?}"
                );
                asked.push(ahead);
            }
        }
        assert_eq!(asked[0], 2..4);
        assert!(
            asked.windows(2).all(|pair| pair[0].end == pair[1].start),
            "{asked:?}"
        );
        assert!(asked.last().unwrap().end >= 230);
        assert!(asked.len() < 30, "asked in long steps");
    }

    #[test]
    fn readers_side_by_side_have_tracks_of_their_own() {
        let tracks = Tracks::default();
        for step in 0..20 {
            for reader in 0..8 {
                let ahead = touch(&tracks, reader * 100 + step);
                assert!(step == 0 || ahead.is_none_or(|ahead| ahead.start > reader * 100 + step));
            }
        }
        assert!(touch(&tracks, 900).is_none());
    }

    #[test]
    fn scattered_touches_fetch_nothing_and_the_end_is_kept() {
        let tracks = Tracks::default();
        for chunk in [5, 500, 50, 700, 3, 640] {
            assert_eq!(touch(&tracks, chunk), None);
        }
        assert_eq!(touch(&tracks, 998), None);
        assert_eq!(touch(&tracks, 999), None);
    }
}
