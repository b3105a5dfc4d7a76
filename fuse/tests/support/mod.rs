//! What the tests of mounts share: images with a directory to compare them with, sources that are slow or fail, and the
//! prerequisites, whose absence is a failure and not a silent pass.

pub(crate) mod compare;
pub(crate) mod sample;
pub(crate) mod sources;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sample::Sample;
use sluice_format::erofs::{DeviceSlot, write_image};
use sluice_format::tree::{Extent, ExtentSource, FileContent};
use sluice_format::{DiffId, Digest, EntryName, Node, NodeId, NodeKind, Tree};
use sluice_fuse::trees::write_tree_file;
use sluice_fuse::{Front, Layer, MountRequest, MountedImage, PlainSource, SessionOptions, mountinfo};
use tempfile::TempDir;
use tokio::runtime::{Builder, Handle, Runtime};

/// Fails the test when this host cannot run it.
pub(crate) fn require_root_and_fuse() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "this test mounts: run it as root (nextest profile without `privileged_` and `fuse_` elsewhere)"
    );
    let device = fs::File::options().read(true).write(true).open("/dev/fuse");
    assert!(device.is_ok(), "this test needs /dev/fuse: {:?}", device.err());
}

/// Fails the test when this host has no file-backed EROFS.
pub(crate) fn require_erofs(directory: &Path) {
    let support = sluice_fuse::probe(directory);
    assert!(
        support.file_backed,
        "this test needs file-backed EROFS (Linux 6.12): {:?}",
        support.reason
    );
}

/// A place on a real disk with a runtime and a directory to mount on; `P` owns the place or borrows another process's.
pub(crate) struct Bench<P = TempDir> {
    pub(crate) runtime: Runtime,
    pub(crate) scratch: P,
}

impl Bench {
    pub(crate) fn new() -> Self {
        require_root_and_fuse();
        let scratch = tempfile::Builder::new()
            .prefix("fuse-")
            .tempdir_in(env!("CARGO_TARGET_TMPDIR"))
            .unwrap();
        for directory in ["target", "run"] {
            fs::create_dir(scratch.path().join(directory)).unwrap();
        }
        require_erofs(scratch.path());
        Self {
            runtime: runtime(),
            scratch,
        }
    }
}

pub(crate) fn runtime() -> Runtime {
    Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

impl<P: AsRef<Path>> Bench<P> {
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.scratch.as_ref().join(name)
    }

    pub(crate) fn target(&self) -> PathBuf {
        self.path("target")
    }

    pub(crate) fn handle(&self) -> &Handle {
        self.runtime.handle()
    }

    /// A request to mount `tree` over `sources` on the target.
    pub(crate) fn request(
        &self,
        front: Front,
        tree: &Tree,
        sources: Vec<Arc<dyn PlainSource>>,
    ) -> MountRequest {
        let layers = name_layers(sources);
        let slots: Vec<_> = layers
            .iter()
            .map(|layer| DeviceSlot {
                diff_id: layer.diff_id,
                plain_len: layer.source.plain_len(),
            })
            .collect();
        let tree_file = self.path("tree.erofs");
        write_tree_file(&tree_file, &write_image(tree, &slots).unwrap().bytes).unwrap();
        MountRequest {
            front,
            tree_file,
            layers,
            target: self.target(),
            run_dir: self.path("run"),
            image: "example.org/app:1".to_owned(),
            read_ahead_kib: Some(128),
            session: SessionOptions::default(),
            helper: None,
        }
    }

    pub(crate) fn mount(&self, request: MountRequest) -> MountedImage {
        MountedImage::mount(request, None, self.handle()).unwrap()
    }

    /// Nothing of a mount is left: neither in the mount table nor in the directory of records.
    pub(crate) fn assert_clean(&self) {
        assert_eq!(mountinfo::topmost_at(&self.target()).unwrap(), None);
        let left: Vec<_> = fs::read_dir(self.path("run"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        assert!(left.is_empty(), "left in the run directory: {left:?}");
    }
}

/// Gives every source a name of its own.
pub(crate) fn name_layers(sources: Vec<Arc<dyn PlainSource>>) -> Vec<Layer> {
    let named = sources.into_iter().enumerate().map(|(at, source)| Layer {
        diff_id: DiffId(Digest::of(format!("layer {at}").as_bytes())),
        source,
    });
    named.collect()
}

/// A tree of files that lie in plain layers: name, device, offset in the plain layer, length.
pub(crate) fn tree_of_files(files: &[(&str, u16, u64, u64)]) -> Tree {
    let mut tree = Tree::new();
    for &(name, device, plain_off, len) in files {
        let extent = Extent {
            file_off: 0,
            len,
            source: ExtentSource::Plain { device, plain_off },
        };
        let content = FileContent {
            size: len,
            extents: vec![extent],
        };
        let node = tree.add(Node {
            kind: NodeKind::Regular(content),
            attributes: Sample::attributes(name, 0o644),
        });
        let name = EntryName::new(name.as_bytes()).unwrap();
        tree.directory_mut(NodeId::ROOT)
            .unwrap()
            .entries
            .insert(name, node);
    }
    tree
}

/// Both ways to show an image.
pub(crate) const FRONTS: [Front; 2] = [Front::Erofs, Front::Fuse];
