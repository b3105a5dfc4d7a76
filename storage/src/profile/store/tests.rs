use sluice_format::profile::{Demand, ProfileLayer};
use sluice_format::{DiffId, Digest};

use super::*;

fn profile(image: &str, runs: u32) -> Profile {
    let demand = Demand {
        plain_off: 512,
        plain_len: 4096,
        first_ms: 3,
        seen: 1,
        missed: 0,
    };
    let layer = ProfileLayer {
        diff_id: DiffId(Digest::of(b"layer")),
        demands: vec![demand],
    };
    let image_id = Digest::of(image.as_bytes());
    Profile::new(image_id, runs, vec![layer], &Limits::default()).unwrap()
}

fn store() -> (tempfile::TempDir, ProfileStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = ProfileStore::new(&dir.path().join("cache"));
    (dir, store)
}

fn image_ids(store: &ProfileStore) -> Vec<Digest> {
    let list = store.list().unwrap();
    list.iter().map(|stored| stored.profile.image_id()).collect()
}

#[test]
fn profiles_are_kept_by_image_replaced_and_removed() {
    let (_dir, store) = store();
    let (a, b) = (profile("a", 1), profile("b", 1));
    assert_eq!(store.load(&a.image_id()), None);
    assert!(store.list().unwrap().is_empty());
    store.save(&a).unwrap();
    store.save(&b).unwrap();
    let newer = profile("a", 2);
    store.save(&newer).unwrap();
    assert_eq!(store.load(&a.image_id()), Some(newer));
    let mut both = vec![a.image_id(), b.image_id()];
    both.sort();
    assert_eq!(image_ids(&store), both);
    assert!(store.remove(&a.image_id()).unwrap());
    assert!(!store.remove(&a.image_id()).unwrap());
    assert_eq!(store.load(&a.image_id()), None);
    assert_eq!(image_ids(&store), [b.image_id()]);
}

#[test]
fn damaged_and_foreign_files_count_as_absent_until_they_are_replaced() {
    let (_dir, store) = store();
    let (good, a) = (profile("good", 1), profile("a", 1));
    store.save(&good).unwrap();
    store.save(&a).unwrap();
    let path = store.path(&a.image_id());
    let whole = std::fs::read(&path).unwrap();
    let foreign = profile("other", 1).encode().unwrap();
    let huge = vec![0; (1 << 20) + 10];
    let flipped: Vec<u8> = whole.iter().map(|byte| byte ^ 1).collect();
    for bytes in [
        &whole[..50],
        &whole[..whole.len() - 1],
        b"",
        b"hello",
        &foreign,
        &huge,
        &flipped,
    ] {
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(store.load(&a.image_id()), None, "{} bytes", bytes.len());
        assert_eq!(image_ids(&store), [good.image_id()]);
    }
    store.save(&a).unwrap();
    assert_eq!(store.load(&a.image_id()), Some(a));
}

#[test]
fn other_files_and_interrupted_writes_are_passed_over() {
    let (_dir, store) = store();
    let a = profile("a", 1);
    store.save(&a).unwrap();
    std::fs::write(store.dir.join(".profile-x1y2"), "half").unwrap();
    std::fs::write(store.dir.join("README"), "words").unwrap();
    std::fs::create_dir(store.dir.join(Digest::of(b"directory").to_hex())).unwrap();
    assert_eq!(image_ids(&store), [a.image_id()]);
}

#[test]
fn readers_and_writers_at_once_see_whole_profiles() {
    let (_dir, store) = store();
    let image_id = profile("a", 0).image_id();
    store.save(&profile("a", 0)).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let store = &store;
            scope.spawn(move || {
                for run in 0..50 {
                    store.save(&profile("a", thread * 100 + run)).unwrap();
                    assert!(store.load(&image_id).is_some());
                }
            });
        }
    });
    assert!(!store.said_damaged.load(Ordering::Relaxed));
}
