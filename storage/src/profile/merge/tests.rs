use std::ops::Range;

use proptest::prelude::*;
use sluice_format::DiffId;

use super::*;

fn image_id() -> Digest {
    Digest::of(b"image")
}

fn diff_id(name: &str) -> DiffId {
    DiffId(Digest::of(name.as_bytes()))
}

fn demands(diff: &str, touches: &[(Range<u64>, u32)]) -> LayerDemands {
    LayerDemands {
        diff_id: diff_id(diff),
        observed: true,
        touches: touches
            .iter()
            .map(|(plain, ms)| Touch {
                plain: plain.clone(),
                ms: *ms,
            })
            .collect(),
    }
}

fn recording(touches: &[(Range<u64>, u32)]) -> Recording {
    Recording::new(image_id(), EndReason::Quiet, vec![demands("a", touches)])
}

fn merged(old: Option<&Profile>, recording: &Recording) -> Profile {
    merge(old, recording).unwrap().expect("something was learnt")
}

/// Range, time, seen and missed of the lowest layer.
fn shown(profile: &Profile) -> Vec<(Range<u64>, u32, u8, u8)> {
    let demands = profile.layers().first().map_or(&[][..], |layer| &layer.demands);
    demands
        .iter()
        .map(|demand| (demand.plain_range(), demand.first_ms, demand.seen, demand.missed))
        .collect()
}

#[test]
fn a_first_start_is_taken_as_it_is_with_neighbours_joined() {
    let profile = merged(
        None,
        &recording(&[(100..200, 5), (0..100, 10), (200..300, 40), (400..500, 40)]),
    );
    assert_eq!(
        shown(&profile),
        [(0..200, 5, 1, 0), (200..300, 40, 1, 0), (400..500, 40, 1, 0)]
    );
    assert_eq!(profile.runs(), 1);
}

#[test]
fn ranges_cut_differently_are_split_where_they_differ() {
    let old = merged(None, &recording(&[(0..1000, 500)]));
    let new = merged(Some(&old), &recording(&[(250..500, 700), (750..1250, 30)]));
    assert_eq!(
        shown(&new),
        [
            (0..250, 500, 1, 1),
            (250..500, 500, 2, 0),
            (500..750, 500, 1, 1),
            (750..1000, 30, 2, 0),
            (1000..1250, 30, 1, 0),
        ]
    );
}

#[test]
fn what_one_start_touched_goes_after_three_without_it_and_what_all_touched_stays_longer() {
    let all: Range<u64> = 0..100;
    let mut profile = merged(None, &recording(&[(all.clone(), 0), (500..600, 9)]));
    let mut missed = Vec::new();
    for _ in 0..3 {
        profile = merged(Some(&profile), &recording(&[(all.clone(), 0)]));
        missed.push(shown(&profile).get(1).map(|odd| odd.3));
    }
    assert_eq!(missed, [Some(1), Some(2), None]);
    let mut starts = 0;
    while shown(&profile).first().is_some_and(|first| first.0.start == 0) {
        profile = merged(Some(&profile), &recording(&[(1000..1200, 0)]));
        starts += 1;
    }
    assert_eq!(starts, 4 * 3, "three for each of the four starts that saw it");
}

#[test]
fn looking_into_an_image_ages_nothing() {
    let old = merged(None, &recording(&[(0..8000, 0)]));
    let looked = merged(Some(&old), &recording(&[(9000..9500, 3)]));
    assert_eq!(shown(&looked), [(0..8000, 0, 1, 0), (9000..9500, 3, 1, 0)]);
    let started = merged(Some(&old), &recording(&[(9000..10_000, 3)]));
    assert_eq!(shown(&started)[0].3, 1);
}

#[test]
fn a_layer_that_was_not_observed_keeps_what_is_known_of_it() {
    let both = |observed, touches: &[(Range<u64>, u32)]| {
        let hidden = LayerDemands {
            observed,
            ..demands("b", touches)
        };
        Recording::new(
            image_id(),
            EndReason::Quiet,
            vec![demands("a", &[(0..10, 1)]), hidden],
        )
    };
    let old = merged(None, &both(true, &[(0..10_000, 2)]));
    let new = merged(Some(&old), &both(false, &[]));
    let kept: Vec<_> = new
        .layers()
        .iter()
        .map(|layer| (layer.demands[0].seen, layer.demands[0].missed))
        .collect();
    assert_eq!(kept, [(2, 0), (1, 0)]);
}

#[test]
fn recordings_that_teach_nothing_change_nothing() {
    let old = merged(None, &recording(&[(0..100, 0)]));
    assert_eq!(merge(Some(&old), &recording(&[])).unwrap(), None);
    assert_eq!(merge(None, &recording(&[])).unwrap(), None);
    let read_all = Recording {
        end: EndReason::TooMuch,
        ..recording(&[(0..5000, 0)])
    };
    assert_eq!(merge(Some(&old), &read_all).unwrap(), None);
    assert!(
        merge(None, &read_all).unwrap().is_some(),
        "better than no profile"
    );
    let other = Recording {
        image_id: Digest::of(b"other"),
        ..recording(&[(0..100, 0)])
    };
    let error = merge(Some(&old), &other).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}

#[test]
fn the_size_is_bounded_by_what_fewest_starts_saw_last() {
    let apart = |at: u64, ms| (at * 1000..at * 1000 + 1, ms);
    let often: Vec<_> = (0..10).map(|at| apart(at, 1_000_000)).collect();
    let mut profile = merged(None, &recording(&often));
    let many: Vec<_> = (0..DEMANDS_MAX as u64 + 100)
        .map(|at| apart(at, at as u32))
        .collect();
    profile = merged(Some(&profile), &recording(&many));
    assert_eq!(profile.demand_count(), DEMANDS_MAX);
    let last = shown(&profile).last().unwrap().0.start / 1000;
    assert_eq!(last, DEMANDS_MAX as u64 - 1);
    assert!(profile.encode().unwrap().len() < 200_000);
}

fn any_touches() -> impl Strategy<Value = Vec<(Range<u64>, u32)>> {
    prop::collection::vec((0..50u64, 1..50u64, 0..200u32), 0..20).prop_map(|raw| {
        let mut next = 0;
        raw.into_iter()
            .map(|(gap, len, ms)| {
                let start = next + gap;
                next = start + len;
                (start..next, ms)
            })
            .collect()
    })
}

/// Seen, time and missed per byte.
fn bytes(profile: &Profile) -> std::collections::BTreeMap<u64, (u8, u32, u8)> {
    shown(profile)
        .into_iter()
        .flat_map(|(range, ms, seen, missed)| range.map(move |at| (at, (seen, ms, missed))))
        .collect()
}

proptest! {
    /// Byte by byte the result is what the rules say, whatever the cuts.
    #[test]
    fn merging_agrees_with_a_model_of_single_bytes(starts in prop::collection::vec(any_touches(), 1..6)) {
        let mut profile: Option<Profile> = None;
        let mut model = std::collections::BTreeMap::<u64, (u8, u8)>::new();
        for touches in &starts {
            let recording = recording(touches);
            let ages = profile.as_ref().is_none_or(|old| is_start(old, &recording));
            let Some(next) = merge(profile.as_ref(), &recording).unwrap() else { continue };
            let touched = |at: u64| touches.iter().any(|(range, _)| range.contains(&at));
            model.retain(|at, (seen, missed)| {
                if touched(*at) {
                    (*seen, *missed) = (*seen + 1, 0);
                    return true;
                }
                *missed += u8::from(ages);
                !ages || *missed < 3 * *seen
            });
            for at in touches.iter().flat_map(|(range, _)| range.clone()) {
                model.entry(at).or_insert((1, 0));
            }
            let found: Vec<_> = bytes(&next).into_iter().map(|(at, (seen, _, missed))| (at, (seen, missed))).collect();
            prop_assert_eq!(found, model.clone().into_iter().collect::<Vec<_>>());
            profile = Some(next);
        }
    }

    #[test]
    fn the_same_start_again_moves_nothing(touches in any_touches()) {
        prop_assume!(!touches.is_empty());
        let once = merged(None, &recording(&touches));
        let twice = merged(Some(&once), &recording(&touches));
        let places = |profile: &Profile| shown(profile).into_iter().map(|(range, ms, ..)| (range, ms)).collect::<Vec<_>>();
        prop_assert_eq!(places(&once), places(&twice));
    }
}
