use sluice_format::{BlobDigest, DiffId, Digest};

use super::*;
use crate::images::RemoteLayer;

struct Scratch {
    store: Store,
    _directory: tempfile::TempDir,
}

fn scratch() -> Scratch {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("records")).unwrap();
    Scratch {
        store,
        _directory: directory,
    }
}

fn claim(id: u64, target: &str, parent: &str) -> NewClaim {
    let digest = Digest::of(target.as_bytes());
    NewClaim {
        id,
        name: format!("@{id}"),
        parent: parent.to_owned(),
        labels: LabelMap::new(),
        claim: Claim {
            target: target.to_owned(),
            layer: RemoteLayer {
                reference: "example.com/a:1".to_owned(),
                manifest_digest: digest,
                layer_digest: BlobDigest(digest),
                plain_layer: DiffId(digest),
            },
        },
    }
}

fn active(id: u64, key: &str) -> NewSnapshot {
    NewSnapshot {
        id,
        kind: Kind::Active,
        key: key.to_owned(),
        parent: None,
        labels: LabelMap::new(),
    }
}

fn commit(name: &str, key: &str, parent: &str) -> NewCommit {
    NewCommit {
        name: name.to_owned(),
        key: key.to_owned(),
        parent: parent.to_owned(),
        labels: LabelMap::new(),
    }
}

async fn all(store: &Store) -> Vec<String> {
    let all = store.list(Filter::parse(&[]).unwrap()).await.unwrap();
    all.into_iter().map(|named| named.name).collect()
}

#[tokio::test]
async fn a_target_is_claimed_once_per_parent_until_it_is_removed() {
    let Scratch { store, _directory } = scratch();
    store.claim(claim(1, "t", "")).await.unwrap();
    store.claim(claim(2, "t", "")).await.unwrap();
    assert_eq!(all(&store).await, ["@1"]);
    store.claim(claim(3, "t", "@1")).await.unwrap();
    assert!(store.is_claimed("t", "@1").await.unwrap());
    store.remove("@3").await.unwrap();
    assert!(!store.is_claimed("t", "@1").await.unwrap());
    assert!(store.is_claimed("t", "").await.unwrap());
    store.claim(claim(4, "t", "@1")).await.unwrap();
    assert_eq!(all(&store).await, ["@1", "@4"]);
}

#[tokio::test]
async fn the_target_of_a_claimed_layer_stays_in_its_labels() {
    let Scratch { store, _directory } = scratch();
    store.claim(claim(1, "t", "")).await.unwrap();
    let labels = LabelMap::from([("a".to_owned(), "b".to_owned())]);
    let record = store.update("@1", labels, LabelMask::All).await.unwrap();
    assert_eq!(record.labels[TARGET], "t");
    assert_eq!(record.labels["a"], "b");
    let keys = LabelMask::Keys(vec![TARGET.to_owned()]);
    let record = store.update("@1", LabelMap::new(), keys).await.unwrap();
    assert_eq!(record.labels[TARGET], "t");
}

#[tokio::test]
async fn a_removed_snapshot_is_garbage_until_it_is_cleaned_up() {
    let Scratch { store, _directory } = scratch();
    store.claim(claim(1, "t", "")).await.unwrap();
    store.create(active(2, "a")).await.unwrap();
    store.remove("@1").await.unwrap();
    store.remove("a").await.unwrap();
    let garbage = store.garbage().await.unwrap();
    let ids: Vec<_> = garbage
        .iter()
        .map(|(id, left)| (*id, left.remote.is_some()))
        .collect();
    assert_eq!(ids, [(1, true), (2, false)]);
    store.clear_garbage(vec![1, 2]).await.unwrap();
    assert_eq!(store.garbage().await.unwrap(), []);
}

#[tokio::test]
async fn a_parent_that_was_replaced_is_not_the_parent() {
    let Scratch { store, _directory } = scratch();
    store.create(active(1, "a")).await.unwrap();
    store.commit(commit("c", "a", "")).await.unwrap();
    let seen = store.chain("c").await.unwrap().remove(0);
    store.remove("c").await.unwrap();
    store.create(active(2, "a")).await.unwrap();
    store.commit(commit("c", "a", "")).await.unwrap();
    let mut late = active(3, "b");
    late.parent = Some(seen);
    assert_eq!(store.create(late).await.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn a_commit_can_give_a_parent_to_a_snapshot_without_one() {
    let Scratch { store, _directory } = scratch();
    for (id, key) in [(1, "a"), (2, "b"), (3, "c"), (4, "d")] {
        store.create(active(id, key)).await.unwrap();
    }
    store.commit(commit("A", "a", "")).await.unwrap();
    store.commit(commit("B", "b", "A")).await.unwrap();
    assert_eq!(
        store.remove("A").await.unwrap_err().kind(),
        ErrorKind::FailedPrecondition
    );
    let kind = |error: Error| error.kind();
    assert_eq!(
        store.commit(commit("C", "c", "x")).await.map_err(kind),
        Err(ErrorKind::NotFound)
    );
    assert_eq!(
        store.commit(commit("C", "c", "d")).await.map_err(kind),
        Err(ErrorKind::FailedPrecondition)
    );
    assert_eq!(
        store.commit(commit("C", "B", "")).await.map_err(kind),
        Err(ErrorKind::FailedPrecondition)
    );
    assert_eq!(
        store.commit(commit("A", "c", "")).await.map_err(kind),
        Err(ErrorKind::AlreadyExists)
    );
    assert_eq!(
        store.commit(commit("C", "x", "")).await.map_err(kind),
        Err(ErrorKind::NotFound)
    );
    let mut on_b = active(5, "e");
    on_b.parent = store.chain("B").await.unwrap().into_iter().next();
    store.create(on_b).await.unwrap();
    assert_eq!(
        store.commit(commit("E", "e", "A")).await.map_err(kind),
        Err(ErrorKind::InvalidArgument)
    );
    store.commit(commit("E", "e", "B")).await.unwrap();
    let chain: Vec<_> = store
        .chain("E")
        .await
        .unwrap()
        .into_iter()
        .map(|named| named.name)
        .collect();
    assert_eq!(chain, ["E", "B", "A"]);
}

#[tokio::test]
async fn usage_is_kept_for_the_snapshot_it_was_counted_for() {
    let Scratch { store, _directory } = scratch();
    store.create(active(1, "a")).await.unwrap();
    store.commit(commit("c", "a", "")).await.unwrap();
    let usage = Usage { bytes: 5, inodes: 2 };
    store.set_usage("c", 9, usage).await.unwrap();
    store.set_usage("absent", 1, usage).await.unwrap();
    assert_eq!(store.get("c").await.unwrap().usage, None);
    store.set_usage("c", 1, usage).await.unwrap();
    assert_eq!(store.get("c").await.unwrap().usage, Some(usage));
}

#[tokio::test]
async fn children_of_one_parent_are_found_without_the_others() {
    let Scratch { store, _directory } = scratch();
    for (id, target, parent) in [(1, "t", ""), (2, "u", "@1"), (3, "v", "@1"), (4, "w", "")] {
        store.claim(claim(id, target, parent)).await.unwrap();
    }
    let list = |filter: &str| {
        let filter = Filter::parse(&[filter.to_owned()]).unwrap();
        let store = store.clone();
        async move {
            let found = store.list(filter).await.unwrap();
            found.into_iter().map(|named| named.name).collect::<Vec<_>>()
        }
    };
    assert_eq!(list("parent==@1").await, ["@2", "@3"]);
    assert_eq!(list("parent==\"\"").await, ["@1", "@4"]);
    assert_eq!(
        list("labels.\"containerd.io/snapshot.ref\"==u,parent==@1").await,
        ["@2"]
    );
    assert_eq!(list("parent==@2").await, [""; 0]);
}

#[tokio::test]
async fn records_are_there_after_opening_again_and_for_one_process_only() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("records");
    let store = Store::open(&path).unwrap();
    store.claim(claim(1, "t", "")).await.unwrap();
    assert!(Store::open(&path).is_err());
    drop(store);
    let store = Store::open(&path).unwrap();
    assert_eq!(
        store.get("@1").await.unwrap().remote,
        Some(claim(1, "t", "").claim)
    );
}
