use proptest::prelude::*;

use super::*;

/// A document as the first version wrote it. Later versions must read it.
const GOLDEN: &[u8] = include_bytes!("testdata/version-1.profile");

fn diff_id(name: &str) -> DiffId {
    DiffId(Digest::of(name.as_bytes()))
}

fn demand(plain_off: u64, plain_len: u64, first_ms: u32) -> Demand {
    Demand {
        plain_off,
        plain_len,
        first_ms,
        seen: 1,
        missed: 0,
    }
}

fn profile(layers: Vec<ProfileLayer>) -> Result<Profile, FormatError> {
    Profile::new(Digest::of(b"image"), 3, layers, &Limits::default())
}

fn layer(name: &str, demands: &[Demand]) -> ProfileLayer {
    ProfileLayer {
        diff_id: diff_id(name),
        demands: demands.to_vec(),
    }
}

fn sample() -> Profile {
    let often = Demand {
        seen: 255,
        missed: 7,
        ..demand(1 << 39, 1, u32::MAX)
    };
    profile(vec![
        layer("upper", &[demand(0, 512, 0), demand(512, 262_144, 20), often]),
        layer("lower", &[demand(1_000_000, 4096, 127)]),
    ])
    .unwrap()
}

#[test]
fn documents_round_trip() {
    let profile = sample();
    let parsed = Profile::parse(&profile.encode().unwrap(), &Limits::default()).unwrap();
    assert_eq!(parsed, profile);
    assert_eq!((parsed.runs(), parsed.demand_count()), (3, 4));
    assert_eq!(parsed.plain_len(), 512 + 262_144 + 1 + 4096);
    let empty = profile_of_nothing();
    assert_eq!(
        Profile::parse(&empty.encode().unwrap(), &Limits::default()).unwrap(),
        empty
    );
}

fn profile_of_nothing() -> Profile {
    profile(Vec::new()).unwrap()
}

#[test]
fn the_first_version_is_read_and_written_as_ever() {
    assert_eq!(Profile::parse(GOLDEN, &Limits::default()).unwrap(), sample());
    let written = sample().encode().unwrap();
    // The body is what this zstd makes of it; the header and what the body decodes to are fixed.
    assert_eq!(written[..64], GOLDEN[..64]);
}

#[test]
fn every_flipped_byte_and_every_truncation_is_refused() {
    let bytes = sample().encode().unwrap();
    for at in 0..bytes.len() {
        let mut flipped = bytes.clone();
        flipped[at] ^= 0x20;
        assert!(Profile::parse(&flipped, &Limits::default()).is_err(), "byte {at}");
        assert!(
            Profile::parse(&bytes[..at], &Limits::default()).is_err(),
            "{at} bytes"
        );
    }
    let mut longer = bytes;
    longer.push(0);
    assert!(Profile::parse(&longer, &Limits::default()).is_err());
}

#[test]
fn a_newer_version_or_an_unknown_incompatible_feature_is_named() {
    let bytes = sample().encode().unwrap();
    for at in [8, 16] {
        let mut newer = bytes.clone();
        newer[at] |= 0x80;
        let error = Profile::parse(&newer, &Limits::default()).unwrap_err();
        assert!(matches!(error, FormatError::Unsupported { .. }), "{error}");
    }
}

#[test]
fn limits_are_named() {
    let bytes = sample().encode().unwrap();
    for limits in [
        Limits {
            profile_stored_len: 90,
            ..Limits::default()
        },
        Limits {
            profile_demands: 3,
            ..Limits::default()
        },
        Limits {
            layers: 1,
            ..Limits::default()
        },
        Limits {
            layer_plain_len: 1 << 39,
            ..Limits::default()
        },
    ] {
        let error = Profile::parse(&bytes, &limits).unwrap_err();
        assert!(matches!(error, FormatError::Limit { .. }), "{error}");
    }
}

#[test]
fn contradictions_are_refused() {
    let unseen = Demand {
        seen: 0,
        ..demand(0, 1, 0)
    };
    for bad in [
        vec![layer("a", &[])],
        vec![layer("a", &[demand(0, 0, 0)])],
        vec![layer("a", &[unseen])],
        vec![layer("a", &[demand(0, 10, 0), demand(9, 1, 0)])],
        vec![layer("a", &[demand(10, 10, 0), demand(0, 1, 0)])],
        vec![layer("a", &[demand(u64::MAX, 1, 0)])],
        vec![layer("a", &[demand(0, 1, 0)]), layer("a", &[demand(5, 1, 0)])],
    ] {
        assert!(profile(bad.clone()).is_err(), "{bad:?}");
    }
}

#[test]
fn numbers_have_one_form() {
    let one = [layer("a", &[demand(0, 300, 5)])];
    let good = columns::encode(&one);
    assert_eq!(columns::parse(&good, 1, 1).unwrap(), one);
    let at = 36;
    assert_eq!(good[at..], [0, 0xac, 0x02, 5, 1, 0]);
    for bad in [
        &[0x80, 0, 0xac, 0x02, 5, 1, 0][..],
        &[0, 0xac, 0x82, 0, 5, 1, 0],
        &[0, 0xac, 0x02, 0xff, 0xff, 0xff, 0xff, 0x1f, 1, 0],
        &[
            0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02, 5, 1, 0,
        ],
        &[0, 0xac, 0x02, 5, 1],
        &[0, 0xac, 0x02, 5, 1, 0, 0],
    ] {
        let bytes = [&good[..at], bad].concat();
        assert!(columns::parse(&bytes, 1, 1).is_err(), "{bad:?}");
    }
}

/// A start of an image of four gigabytes: every third chunk of 256 KiB somewhere in it, one every four milliseconds.
#[test]
fn a_large_start_takes_a_few_kilobytes() {
    let mut state = 1u64;
    let mut next = |bound: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) % bound
    };
    let mut plain_off = 0;
    let mut demands = Vec::new();
    for _ in 0..1300 {
        plain_off += 512 * next(8000);
        let plain_len = match next(3) {
            0 => 262_144,
            _ => 131_072 + 512 * next(256),
        };
        demands.push(demand(plain_off, plain_len, next(5200) as u32));
        plain_off += plain_len;
    }
    let bytes = profile(vec![layer("a", &demands)]).unwrap().encode().unwrap();
    assert!(bytes.len() < 12 << 10, "{} bytes", bytes.len());
}

fn any_layer() -> impl Strategy<Value = Vec<Demand>> {
    let any_demand = (0..1u64 << 30, 1..1u64 << 20, any::<u32>(), 1..=255u8, any::<u8>());
    prop::collection::vec(any_demand, 1..40).prop_map(|raw| {
        let mut next = 0;
        let mut demands = Vec::new();
        for (gap, plain_len, first_ms, seen, missed) in raw {
            let plain_off = next + gap;
            next = plain_off + plain_len;
            demands.push(Demand {
                plain_off,
                plain_len,
                first_ms,
                seen,
                missed,
            });
        }
        demands
    })
}

proptest! {
    #[test]
    fn any_profile_round_trips(layers in prop::collection::vec(any_layer(), 0..4)) {
        let layers = layers.into_iter().enumerate().map(|(at, demands)| ProfileLayer {
            diff_id: diff_id(&at.to_string()),
            demands,
        });
        let profile = profile(layers.collect()).unwrap();
        let bytes = profile.encode().unwrap();
        prop_assert_eq!(Profile::parse(&bytes, &Limits::default()).unwrap(), profile);
    }
}
