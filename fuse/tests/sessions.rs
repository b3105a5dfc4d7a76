//! What sessions promise that serve more than one image: flat layers and trees that come and go.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

#[expect(dead_code, reason = "the front end tests use the rest")]
mod support;

use std::fs;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use sluice_format::{ChainId, Digest, Limits};
use sluice_fuse::plain::LayerDirectory;
use sluice_fuse::trees::{ImageTree, TreeDirectory};
use sluice_fuse::{Front, PlainSource, Session, SessionOptions, mountinfo};
use support::compare::assert_same_tree;
use support::sample::{Sample, noise};
use support::sources::Memory;
use support::{Bench, name_layers, tree_of_files};

#[test]
fn fuse_flat_layers_bypass_the_page_cache() {
    let bench = Bench::new();
    let source = Memory::new(noise(1, 300_000));
    let layer = name_layers(vec![source.clone()]).remove(0);
    let directory = Arc::new(LayerDirectory::new());
    let options = SessionOptions::default();
    let session = Session::mount(directory.clone(), &bench.target(), &options, bench.handle()).unwrap();
    let file = session.root().join(LayerDirectory::path_of(layer.diff_id));
    assert!(!file.exists());
    // A name that was not there a moment ago must be found at once: a mount follows an insert.
    directory.insert(layer.clone()).unwrap();
    let expected = [noise(1, 300_000), vec![0; 32]].concat();
    assert!(fs::read(&file).unwrap() == expected);
    let reads = source.reads.load(Ordering::Relaxed);
    assert!(fs::read(&file).unwrap() == expected);
    assert_eq!(source.reads.load(Ordering::Relaxed), 2 * reads);
    let names: Vec<_> = fs::read_dir(session.root().join("plain"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    assert_eq!(names, std::slice::from_ref(&file));
    directory.remove(layer.diff_id);
    let end = Instant::now() + Duration::from_secs(5);
    while file.exists() {
        assert!(Instant::now() < end, "a removed layer keeps its name");
        thread::sleep(Duration::from_millis(50));
    }
    drop(session);
    assert_eq!(mountinfo::topmost_at(&bench.target()).unwrap(), None);
}

#[test]
fn fuse_one_session_shows_many_trees() {
    let bench = Bench::new();
    let sample = Sample::everything(bench.path("reference"));
    let [a, b] = sample.finish();
    let request = bench.request(Front::Fuse, &sample.tree, vec![a, b]);
    let everything = ImageTree::open(&request.tree_file, request.layers, &Limits::default()).unwrap();
    let source: Arc<dyn PlainSource> = Memory::new(noise(7, 5000));
    let request = bench.request(
        Front::Fuse,
        &tree_of_files(&[("file", 1, 1024, 3000)]),
        vec![source],
    );
    let small = ImageTree::open(&request.tree_file, request.layers, &Limits::default()).unwrap();

    let directory = Arc::new(TreeDirectory::new());
    let [first, second] = [b"first", b"other"].map(|name| ChainId(Digest::of(name)));
    directory.insert(first, Arc::new(everything)).unwrap();
    let options = SessionOptions::default();
    let session = Session::mount(directory.clone(), &bench.target(), &options, bench.handle()).unwrap();
    let root = session.root();
    let path = |chain_id| root.join(TreeDirectory::path_of(chain_id));
    assert_same_tree(&sample.reference, &path(first));
    assert!(!path(second).exists());
    directory.insert(second, Arc::new(small)).unwrap();
    assert!(fs::read(path(second).join("file")).unwrap() == noise(7, 5000)[1024..4024]);
    assert_eq!(fs::read_dir(root.join("trees")).unwrap().count(), 2);
    assert_eq!(fs::read_dir(&root).unwrap().count(), 1);
    directory.remove(second);
    thread::sleep(Duration::from_millis(1100));
    assert!(!path(second).exists());
    assert_same_tree(&sample.reference.join("etc"), &path(first).join("etc"));
}

#[test]
fn privileged_a_hidden_session_is_in_no_mount_table() {
    let bench = Bench::new();
    let layer = name_layers(vec![Memory::new(noise(1, 512))]).remove(0);
    let directory = Arc::new(LayerDirectory::new());
    directory.insert(layer.clone()).unwrap();
    let before = mountinfo::read().unwrap();
    let session = Session::hidden(directory, &SessionOptions::default(), bench.handle()).unwrap();
    let file = session.root().join(LayerDirectory::path_of(layer.diff_id));
    assert!(fs::read(&file).unwrap() == noise(1, 512));
    let ours = |mounts: Vec<mountinfo::MountEntry>| {
        mounts.into_iter().filter(|m| m.fs_type == "fuse.sluice").count()
    };
    assert!(ours(mountinfo::read().unwrap()) <= ours(before));
    drop(session);
    assert!(!file.exists());
}
