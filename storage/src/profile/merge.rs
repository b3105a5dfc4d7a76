//! Lays a recording over what earlier starts left.
//!
//! Both are ranges of plain bytes, possibly cut differently, so they are split at each other's ends first. A range that is
//! demanded again is confirmed: it counts one start more, and of both times the earlier one stays, which is the one that waited
//! less for the network. A range that is not demanded ages, and goes when it has missed several starts for each one that saw
//! it: what one odd run touched goes soon, what all of them touch stays for long. Merging a recording twice moves nothing.
//!
//! Of a layer that was not wholly observed only what is new is taken; what is known of it stays as it is.

use std::cmp::Reverse;

use sluice_format::profile::{Demand, ProfileLayer};
use sluice_format::{Digest, Limits, Profile};

use super::recording::{EndReason, LayerDemands, Recording, Touch};
use crate::{Error, ErrorKind};

/// Starts that a range may miss for each start that saw it.
const PATIENCE: u8 = 3;
/// Starts that count at most for that, so that a range which is no longer demanded goes some day.
const SEEN_COUNTED: u8 = 8;
/// A recording that demands less than one part in so many of what is known was no start, but somebody who looked in: nothing
/// ages by it.
const START_SHARE: u64 = 8;
/// Neighbours whose times differ by no more are one demand. Far less than a plan's window.
const JOINED_MS: u32 = 10;
/// Demands of a profile at most: every chunk of four gigabytes at the usual chunk size.
const DEMANDS_MAX: usize = 16_384;

/// The profile after one more start, or `None` when the recording teaches nothing: it is empty, or it ended because everything
/// was read while a profile of a real start is known.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] when the two are of different images.
pub fn merge(old: Option<&Profile>, recording: &Recording) -> Result<Option<Profile>, Error> {
    if let Some(old) = old {
        check_image(old.image_id(), recording.image_id)?;
    }
    let known = old.filter(|old| old.demand_count() > 0);
    let read_all = recording.end == EndReason::TooMuch && known.is_some();
    if recording.is_empty() || read_all {
        return Ok(None);
    }
    let ages = known.is_none_or(|old| is_start(old, recording));
    let layers = recording.layers.iter().map(|new| {
        let same = |layer: &&ProfileLayer| layer.diff_id == new.diff_id;
        let old = known.and_then(|old| old.layers().iter().find(same));
        ProfileLayer {
            diff_id: new.diff_id,
            demands: merge_layer(old.map_or(&[], |old| &old.demands), new, ages),
        }
    });
    let mut layers: Vec<_> = layers.filter(|layer| !layer.demands.is_empty()).collect();
    keep_best(&mut layers, DEMANDS_MAX);
    let runs = old.map_or(0, Profile::runs).saturating_add(1);
    Ok(Some(Profile::new(
        recording.image_id,
        runs,
        layers,
        &Limits::default(),
    )?))
}

fn check_image(known: Digest, recorded: Digest) -> Result<(), Error> {
    if known == recorded {
        return Ok(());
    }
    let message = format!("a recording of image {recorded} does not belong to the profile of {known}");
    Err(Error::new(ErrorKind::InvalidInput, message))
}

/// Whether the recording demands a fair share of what earlier starts demanded, as far as it could see.
fn is_start(old: &Profile, recording: &Recording) -> bool {
    let observed = |layer: &&ProfileLayer| {
        let seen = |new: &LayerDemands| new.observed && new.diff_id == layer.diff_id;
        recording.layers.iter().any(seen)
    };
    let known = old.layers().iter().filter(observed);
    let known_len = known
        .flat_map(|layer| &layer.demands)
        .fold(0u64, |sum, demand| sum.saturating_add(demand.plain_len));
    recording.plain_len() >= known_len / START_SHARE
}

fn merge_layer(old: &[Demand], new: &LayerDemands, ages: bool) -> Vec<Demand> {
    let mut ends: Vec<u64> = old
        .iter()
        .map(Demand::plain_range)
        .chain(new.touches.iter().map(|touch| touch.plain.clone()))
        .flat_map(|plain| [plain.start, plain.end])
        .collect();
    ends.sort_unstable();
    ends.dedup();
    let mut merged = Vec::new();
    let (mut old, mut new, observed) = (old, &new.touches[..], new.observed);
    for pair in ends.windows(2) {
        let (start, end) = (pair[0], pair[1]);
        old = &old[old.partition_point(|demand| demand.plain_range().end <= start)..];
        new = &new[new.partition_point(|touch| touch.plain.end <= start)..];
        let known = old.first().filter(|demand| demand.plain_off <= start);
        let touch = new.first().filter(|touch| touch.plain.start <= start);
        let piece = match known {
            Some(known) if !observed => Some(*known),
            _ => merge_piece(known, touch, ages),
        };
        if let Some(demand) = piece {
            push_joined(
                &mut merged,
                Demand {
                    plain_off: start,
                    plain_len: end - start,
                    ..demand
                },
            );
        }
    }
    merged
}

/// The counters and the time of a piece that both sides cover wholly or not at all.
fn merge_piece(known: Option<&Demand>, touch: Option<&Touch>, ages: bool) -> Option<Demand> {
    match (known, touch) {
        (None, None) => None,
        (None, Some(touch)) => Some(Demand {
            plain_off: 0,
            plain_len: 0,
            first_ms: touch.ms,
            seen: 1,
            missed: 0,
        }),
        (Some(known), Some(touch)) => Some(Demand {
            first_ms: known.first_ms.min(touch.ms),
            seen: known.seen.saturating_add(1),
            missed: 0,
            ..*known
        }),
        (Some(known), None) if !ages => Some(*known),
        (Some(known), None) => {
            let missed = known.missed.saturating_add(1);
            let patience = PATIENCE.saturating_mul(known.seen.min(SEEN_COUNTED));
            (missed < patience).then_some(Demand { missed, ..*known })
        }
    }
}

fn push_joined(demands: &mut Vec<Demand>, next: Demand) {
    if let Some(last) = demands.last_mut() {
        let touches = last.plain_range().end == next.plain_off;
        let alike = (last.seen, last.missed) == (next.seen, next.missed);
        if touches && alike && last.first_ms.abs_diff(next.first_ms) <= JOINED_MS {
            last.plain_len += next.plain_len;
            last.first_ms = last.first_ms.min(next.first_ms);
            return;
        }
    }
    demands.push(next);
}

/// Keeps the `count` demands that most starts saw and that come first.
fn keep_best(layers: &mut Vec<ProfileLayer>, count: usize) {
    let all = layers.iter().map(|layer| layer.demands.len()).sum::<usize>();
    if all <= count {
        return;
    }
    let rank = |demand: &Demand| (Reverse(demand.seen), demand.missed, demand.first_ms);
    let mut ranked: Vec<_> = layers
        .iter()
        .enumerate()
        .flat_map(|(at, layer)| {
            layer
                .demands
                .iter()
                .map(move |demand| (rank(demand), at, demand.plain_off))
        })
        .collect();
    ranked.sort_unstable();
    let kept: std::collections::HashSet<_> = ranked[..count]
        .iter()
        .map(|(_, at, plain_off)| (*at, *plain_off))
        .collect();
    for (at, layer) in layers.iter_mut().enumerate() {
        layer
            .demands
            .retain(|demand| kept.contains(&(at, demand.plain_off)));
    }
    layers.retain(|layer| !layer.demands.is_empty());
}

#[cfg(test)]
mod tests;
