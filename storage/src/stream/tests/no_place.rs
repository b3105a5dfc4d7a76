//! A cache without place for a layer: others make room; what can be read by ranges is; the rest is an error.

use super::*;

/// Long enough that no chunk may hold it, and short when it is stored.
fn one_long_frame() -> (Vec<u8>, Vec<u8>) {
    let plain = entry("long", &pseudo_random(1 << 20).repeat(20));
    let stored = zstd(&plain, usize::MAX);
    (plain, stored)
}

async fn read(fixture: &Fixture, layer: &LazyLayer, range: std::ops::Range<u64>) -> Bytes {
    let fetcher = Fetcher::new(Arc::new(Counters::default()));
    let reader = PlainLayer::new(layer, Some(fixture.cache.layer(&layer.index)), &fetcher);
    reader.read(range).await.unwrap()
}

#[tokio::test]
async fn a_layer_that_can_be_read_by_ranges_is_lazy_then() {
    let repetitive = entry("text", &pseudo_random(10_000).repeat(900));
    for (name, plain, stored) in [
        ("gzip", tar(), gzip(&tar(), 1 << 20)),
        ("zstd frames", tar(), zstd(&tar(), 300_000)),
        ("plain", tar(), tar()),
        ("in mid-stream", repetitive.clone(), gzip(&repetitive, 1 << 20)),
    ] {
        let fixture = Fixture {
            plain: plain.clone(),
            ..Fixture::with_quota(Some(4 << 20))
        };
        let (blob, layer) = fixture.layer(stored);
        let lazy = fixture.stream(&layer).await.unwrap();
        assert!(!lazy.index.is_streamed(), "{name}");
        for below in ["layers/sha256", "streams", "partial"] {
            assert_eq!(fixture.files(below), 0, "{name}: {below}");
        }
        let before = blob.requests().len();
        let last = plain.len() as u64 - 2_000_000;
        let found = read(&fixture, &lazy, last..last + 1000).await;
        assert_eq!(found, plain[last as usize..last as usize + 1000], "{name}");
        let asked = blob.requests()[before..]
            .iter()
            .map(|range| range.end - range.start)
            .sum::<u64>();
        assert!(asked < blob.stored_len() / 2, "{name}: {asked}");
        assert_eq!(
            read(&fixture, &lazy, 0..plain.len() as u64).await,
            plain,
            "{name}"
        );

        let before = blob.requests().len();
        fixture.stream(&layer).await.unwrap();
        assert_eq!(blob.requests().len(), before, "{name}: the index is known");
    }
}

#[tokio::test]
async fn its_index_is_not_taken_for_that_of_another_blob_with_the_same_layer() {
    let fixture = Fixture::with_quota(Some(4 << 20));
    let (_, layer) = fixture.layer(gzip(&fixture.plain, usize::MAX));
    fixture.stream(&layer).await.unwrap();
    let (other_blob, other) = fixture.layer(gzip(&fixture.plain, 1 << 20));
    let lazy = fixture.stream(&other).await.unwrap();
    assert!(!other_blob.requests().is_empty());
    let plain = read(&fixture, &lazy, 0..fixture.plain.len() as u64).await;
    assert_eq!(plain, fixture.plain);
}

#[tokio::test]
async fn a_layer_that_cannot_is_an_error_that_names_the_bound_and_keeps_nothing() {
    let (plain, stored) = one_long_frame();
    for quota in [500_000, 12 << 20] {
        let fixture = Fixture {
            plain: plain.clone(),
            ..Fixture::with_quota(Some(quota))
        };
        let (_, layer) = fixture.layer(stored.clone());
        let text = fixture.refused(&layer, ErrorKind::NoSpace).await;
        assert!(
            text.contains("has no place") && text.contains(&quota.to_string()),
            "{text}"
        );
    }
}

#[tokio::test]
async fn a_wrong_layer_is_refused_without_place_as_well() {
    let fixture = Fixture::with_quota(Some(4 << 20));
    let (_, wrong) = fixture.layer(gzip(&fixture.plain, usize::MAX));
    let wrong = Unindexed {
        diff_id: DiffId(Digest::of(b"another layer")),
        ..wrong
    };
    let text = fixture.refused(&wrong, ErrorKind::Corrupt).await;
    assert!(text.contains("the plain layer is corrupt"), "{text}");
    let (blob, spoilt) = fixture.layer(gzip(&fixture.plain, usize::MAX));
    blob.inject(Fault::FlippedByte { stored_off: 70_000 }, Times::Always);
    fixture.refused(&spoilt, ErrorKind::Corrupt).await;
}

#[tokio::test]
async fn other_layers_make_room_before_one_fails() {
    let (plain, stored) = one_long_frame();
    let fixture = Fixture {
        plain: plain.clone(),
        ..Fixture::with_quota(Some(26 << 20))
    };
    let first = Fixture {
        plain: tar(),
        ..Fixture::new()
    };
    let (_, smaller) = first.layer(gzip(&first.plain, usize::MAX));
    let kept = fixture.stream(&smaller).await.unwrap();
    assert!(fixture.cache.layer(&kept.index).is_complete());
    fixture.cache.flush();
    let (_, layer) = fixture.layer(stored);
    let streamed = fixture.stream(&layer).await.unwrap();
    assert!(fixture.cache.layer(&streamed.index).is_whole());
    assert!(!fixture.cache.layer(&kept.index).is_complete());
}
