//! What both front ends promise: an image mounted over slow, failing or complete layers behaves like a directory.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

mod support;

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use sluice_fuse::erofs_mount::ErofsMount;
use sluice_fuse::{Error, Front, MountedImage, PlainSource, mountinfo};
use support::compare::{assert_same_tree, xattrs};
use support::sample::{CAPABILITY, Sample, noise};
use support::sources::{Memory, Pattern};
use support::{Bench, FRONTS, tree_of_files};

fn sources(layers: &[Arc<Memory>; 2]) -> Vec<Arc<dyn PlainSource>> {
    layers
        .iter()
        .map(|layer| layer.clone() as Arc<dyn PlainSource>)
        .collect()
}

/// A mount of a tree with one of everything.
fn everything(bench: &Bench, front: Front) -> (MountedImage, [Arc<Memory>; 2], Sample) {
    let sample = Sample::everything(bench.path("reference"));
    let layers = sample.finish();
    let image = bench.mount(bench.request(front, &sample.tree, sources(&layers)));
    assert_eq!(image.front(), front);
    (image, layers, sample)
}

#[test]
fn privileged_erofs_shows_an_image_like_a_directory() {
    shows_an_image_like_a_directory(Front::Erofs);
}

#[test]
fn fuse_shows_an_image_like_a_directory() {
    shows_an_image_like_a_directory(Front::Fuse);
}

fn shows_an_image_like_a_directory(front: Front) {
    let bench = Bench::new();
    let (mut image, _layers, sample) = everything(&bench, front);
    assert_eq!(assert_same_tree(&sample.reference, image.target()), 5021);
    // A second look is answered from the kernel's caches.
    assert_same_tree(&sample.reference, image.target());
    let tool = xattrs(&image.target().join("bin/tool"));
    assert_eq!(tool[c"security.capability"], CAPABILITY);
    image.unmount(false).unwrap();
    bench.assert_clean();
}

#[test]
fn privileged_auto_takes_erofs_here() {
    let bench = Bench::new();
    let sample = Sample::new(bench.path("reference"));
    let layers = sample.finish();
    let image = bench.mount(bench.request(Front::Auto, &sample.tree, sources(&layers)));
    assert_eq!(image.front(), Front::Erofs);
}

#[test]
fn privileged_complete_layers_need_no_server() {
    let bench = Bench::new();
    let sample = Sample::everything(bench.path("reference"));
    let mut complete: Vec<Arc<dyn PlainSource>> = Vec::new();
    for (at, bytes) in sample.layers.iter().enumerate() {
        let file = bench.path(&format!("layer-{at}"));
        fs::write(&file, bytes).unwrap();
        complete.push(Arc::new(Memory {
            bytes: bytes.clone().into(),
            file: Some(file),
            ..Memory::default()
        }));
    }
    sample.finish();
    let image = bench.mount(bench.request(Front::Erofs, &sample.tree, complete));
    assert!(!image.is_served());
    assert_same_tree(&sample.reference, image.target());
}

#[test]
fn privileged_waiting_readers_do_not_hold_up_lookups() {
    for front in FRONTS {
        let bench = Bench::new();
        let (image, layers, _sample) = everything(&bench, front);
        for layer in &layers {
            layer.delay_ms.store(3000, Ordering::Relaxed);
        }
        // Every fiftieth file has 49 bytes, so each reader waits for its own.
        let waiting =
            (0..64).map(|reader| image.target().join(format!("many/entry-{:05}", 49 + 50 * reader)));
        let readers: Vec<_> = waiting
            .map(|path| thread::spawn(move || fs::read(path).unwrap()))
            .collect();
        thread::sleep(Duration::from_millis(300));
        let start = Instant::now();
        for number in 0..1000 {
            fs::symlink_metadata(image.target().join(format!("many/entry-{number:05}"))).unwrap();
            assert!(fs::symlink_metadata(image.target().join(format!("many/none-{number:05}"))).is_err());
        }
        let took = start.elapsed();
        assert!(
            took < Duration::from_secs(2),
            "{front:?}: 2000 lookups beside waiting readers took {took:?}"
        );
        for reader in readers {
            reader.join().unwrap();
        }
    }
}

fn fails_once(front: Front, break_source: fn(&Memory, bool)) {
    let bench = Bench::new();
    let (image, layers, sample) = everything(&bench, front);
    for layer in &layers {
        break_source(layer, true);
    }
    let file = File::open(image.target().join("etc/odd")).unwrap();
    let mut bytes = vec![0; 70_001];
    let error = file.read_exact_at(&mut bytes, 0).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO), "{front:?}: {error}");
    for layer in &layers {
        break_source(layer, false);
    }
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes == fs::read(sample.reference.join("etc/odd")).unwrap());
}

#[test]
fn privileged_a_failed_read_gives_eio_and_the_next_one_works() {
    for front in FRONTS {
        fails_once(front, |source, broken| {
            source.fails.store(broken, Ordering::Relaxed)
        });
    }
}

#[test]
fn privileged_a_panic_in_a_read_gives_eio_and_the_next_one_works() {
    for front in FRONTS {
        fails_once(front, |source, broken| {
            source.panics.store(broken, Ordering::Relaxed)
        });
    }
}

#[test]
fn privileged_a_short_answer_gives_eio_and_never_zeros() {
    for front in FRONTS {
        fails_once(front, |source, broken| {
            source.cuts.store(broken, Ordering::Relaxed)
        });
    }
}

#[test]
fn privileged_a_large_file_is_exact_in_any_order() {
    const LEN: u64 = 200 << 20;
    const HEADER: u64 = 512;
    for front in FRONTS {
        let bench = Bench::new();
        let tree = tree_of_files(&[("large", 1, HEADER, LEN)]);
        let source: Arc<dyn PlainSource> = Arc::new(Pattern { len: LEN + HEADER });
        let image = bench.mount(bench.request(front, &tree, vec![source]));
        let mut file = File::open(image.target().join("large")).unwrap();
        let mut state = 42_u64;
        for _ in 0..500 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let len = state % 9000 + 1;
            let at = (state >> 20) % (LEN - len);
            let mut bytes = vec![0; len as usize];
            file.read_exact_at(&mut bytes, at).unwrap();
            assert!(
                bytes == Pattern::bytes(at + HEADER..at + HEADER + len),
                "{front:?}: {len} bytes at {at}"
            );
        }
        file.seek(SeekFrom::Start(0)).unwrap();
        let mut bytes = vec![0; 1 << 20];
        for at in (0..LEN).step_by(bytes.len()) {
            file.read_exact(&mut bytes).unwrap();
            assert!(
                bytes == Pattern::bytes(at + HEADER..at + HEADER + (1 << 20)),
                "{front:?}: at {at}"
            );
        }
        assert_eq!(file.read(&mut bytes).unwrap(), 0);
    }
}

/// A tree with one program of this host.
fn with_program(bench: &Bench, program: &str) -> Sample {
    let mut sample = Sample::new(bench.path("reference"));
    sample.simple_file("data", noise(1, 10_000));
    let bytes = fs::read(program).unwrap();
    sample.file(
        "program",
        &[support::sample::Piece::Plain(bytes)],
        &Sample::attributes("program", 0o755),
    );
    sample
}

#[test]
fn privileged_programs_run_from_a_mount() {
    for front in FRONTS {
        let bench = Bench::new();
        let sample = with_program(&bench, "/bin/cat");
        let layers = sample.finish();
        let image = bench.mount(bench.request(front, &sample.tree, sources(&layers)));
        let output = Command::new(image.target().join("program"))
            .arg(image.target().join("data"))
            .output();
        let output = output.unwrap();
        assert!(output.status.success(), "{front:?}: {output:?}");
        assert!(output.stdout == noise(1, 10_000));
    }
}

/// An overlay with a mount as its only lower directory.
struct Overlay<'a>(&'a Path);

impl<'a> Overlay<'a> {
    fn mount(lower: &Path, upper: &Path, work: &Path, target: &'a Path) -> Self {
        for directory in [upper, work, target] {
            fs::create_dir(directory).unwrap();
        }
        let (lower, upper, work) = (lower.display(), upper.display(), work.display());
        let options = format!("lowerdir={lower},upperdir={upper},workdir={work}");
        nix::mount::mount(
            Some("overlay"),
            target,
            Some("overlay"),
            nix::mount::MsFlags::empty(),
            Some(options.as_str()),
        )
        .unwrap();
        Self(target)
    }
}

impl Drop for Overlay<'_> {
    fn drop(&mut self) {
        nix::mount::umount(self.0).unwrap();
    }
}

#[test]
fn privileged_an_overlay_takes_a_mount_as_its_lower() {
    for front in FRONTS {
        let bench = Bench::new();
        let sample = Sample::everything(bench.path("reference"));
        let layers = sample.finish();
        let image = bench.mount(bench.request(front, &sample.tree, sources(&layers)));
        let target = bench.path("merged");
        let overlay = Overlay::mount(image.target(), &bench.path("upper"), &bench.path("work"), &target);
        assert_same_tree(&sample.reference.join("etc"), &target.join("etc"));
        assert_same_tree(&sample.reference.join("dev"), &target.join("dev"));
        // Copy-up takes content and extended attributes from below.
        File::options()
            .append(true)
            .open(target.join("bin/tool"))
            .unwrap();
        assert_eq!(xattrs(&target.join("bin/tool"))[c"user.mime"], b"text/plain");
        fs::write(target.join("etc/one"), b"changed").unwrap();
        fs::remove_file(target.join("etc/odd")).unwrap();
        fs::rename(target.join("etc/page"), target.join("etc/moved")).unwrap();
        assert!(fs::read(target.join("etc/moved")).unwrap() == noise(4096, 4096));
        assert!(!target.join("etc/odd").exists());
        assert!(fs::read(image.target().join("etc/one")).unwrap() == noise(1, 1));
        drop(overlay);
    }
}

#[test]
fn privileged_permissions_hold_for_other_users() {
    for front in FRONTS {
        let bench = Bench::new();
        let mut sample = Sample::new(bench.path("reference"));
        for (name, mode) in [("public", 0o644), ("private", 0o600)] {
            let mut attributes = Sample::attributes(name, mode);
            (attributes.uid, attributes.gid) = (0, 0);
            sample.file(name, &[support::sample::Piece::Plain(noise(1, 10))], &attributes);
        }
        let mut acl = Sample::attributes("acl", 0o660);
        (acl.uid, acl.gid) = (0, 65_533);
        acl.xattrs
            .insert(b"system.posix_acl_access".to_vec(), group_denied_acl());
        sample.file("acl", &[support::sample::Piece::Plain(noise(1, 10))], &acl);
        let layers = sample.finish();
        let image = bench.mount(bench.request(front, &sample.tree, sources(&layers)));
        assert_eq!(
            xattrs(&image.target().join("acl")),
            xattrs(&sample.reference.join("acl"))
        );
        // The directories above the target are closed to others, so the reader starts inside.
        for (name, readable) in [("public", true), ("private", false), ("acl", false)] {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=65533", "--regid=65533", "--clear-groups", "cat", name]);
            let output = command.current_dir(image.target()).output().unwrap();
            assert_eq!(output.status.success(), readable, "{front:?} {name}: {output:?}");
        }
    }
}

/// `user::rw-, group::---, mask::rw-, other::---`: the mode shows the mask in the place of the group's rights.
fn group_denied_acl() -> Vec<u8> {
    const UNDEFINED: u32 = u32::MAX;
    let mut acl = 2_u32.to_le_bytes().to_vec();
    let entries = [
        (0x01_u16, 6_u16, UNDEFINED),
        (0x04, 0, UNDEFINED),
        (0x08, 6, 1),
        (0x10, 6, UNDEFINED),
        (0x20, 0, UNDEFINED),
    ];
    let mut entries = entries.to_vec();
    // A named group that nobody is in makes the mask count.
    entries[2].2 = 12_345;
    for (tag, rights, id) in entries {
        acl.extend(tag.to_le_bytes());
        acl.extend(rights.to_le_bytes());
        acl.extend(id.to_le_bytes());
    }
    acl
}

#[test]
fn privileged_a_busy_mount_stays_until_it_is_detached() {
    for front in FRONTS {
        let bench = Bench::new();
        let (mut image, _layers, sample) = everything(&bench, front);
        let file = File::open(image.target().join("etc/odd")).unwrap();
        let error = image.unmount(false).unwrap_err();
        assert!(
            matches!(&error, Error::Busy { target } if *target == bench.target()),
            "{error}"
        );
        assert!(mountinfo::topmost_at(&bench.target()).unwrap().is_some());
        image.unmount(true).unwrap();
        bench.assert_clean();
        // Whoever has it open reads on.
        let mut bytes = vec![0; 70_001];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes == fs::read(sample.reference.join("etc/odd")).unwrap());
    }
}

#[test]
fn privileged_dropping_a_mount_unmounts_it() {
    for front in FRONTS {
        let bench = Bench::new();
        let (image, _layers, _sample) = everything(&bench, front);
        drop(image);
        bench.assert_clean();
        let (image, _layers, _sample) = {
            fs::remove_dir_all(bench.path("reference")).unwrap();
            everything(&bench, front)
        };
        let _busy = File::open(image.target().join("etc/odd")).unwrap();
        drop(image);
        bench.assert_clean();
    }
}

#[test]
fn privileged_somebody_elses_unmount_is_noticed() {
    for front in FRONTS {
        let bench = Bench::new();
        let (mut image, _layers, _sample) = everything(&bench, front);
        let gone = bench.runtime.spawn(image.wait_unmounted());
        thread::sleep(Duration::from_millis(100));
        assert!(!gone.is_finished());
        let start = Instant::now();
        nix::mount::umount(&bench.target()).unwrap();
        bench.runtime.block_on(gone).unwrap().unwrap();
        assert!(
            start.elapsed() < Duration::from_millis(1500),
            "{front:?}: noticed after {:?}",
            start.elapsed()
        );
        image.unmount(false).unwrap();
        bench.assert_clean();
    }
}

#[test]
fn privileged_a_mount_never_undoes_somebody_elses() {
    for front in FRONTS {
        let bench = Bench::new();
        let (image, _layers, _sample) = everything(&bench, front);
        nix::mount::umount(&bench.target()).unwrap();
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("other"), &bench.target(), Some("tmpfs"), flags, None::<&str>).unwrap();
        drop(image);
        let left = mountinfo::topmost_at(&bench.target())
            .unwrap()
            .map(|entry| entry.fs_type);
        nix::mount::umount(&bench.target()).unwrap();
        assert_eq!(left.as_deref(), Some("tmpfs"), "{front:?}");
    }
}

#[test]
fn privileged_a_mount_that_fails_leaves_nothing() {
    let bench = Bench::new();
    let sample = Sample::new(bench.path("reference"));
    let layers = sample.finish();
    let mut request = bench.request(Front::Erofs, &sample.tree, sources(&layers));
    let on_tmpfs = tempfile::tempdir_in("/dev/shm").unwrap();
    let moved = on_tmpfs.path().join("tree.erofs");
    fs::copy(&request.tree_file, &moved).unwrap();
    request.tree_file = moved;
    let error = MountedImage::mount(request.clone(), None, bench.handle()).unwrap_err();
    assert!(
        matches!(&error, Error::Unsupported(reason) if reason.contains("tmpfs")),
        "{error}"
    );
    bench.assert_clean();
    let support = sluice_fuse::probe(on_tmpfs.path());
    assert!(!support.file_backed && support.reason.unwrap().contains("tmpfs"));
    request.front = Front::Auto;
    let image = bench.mount(request);
    assert_eq!(image.front(), Front::Fuse);
}

#[test]
fn privileged_wrong_layers_are_refused() {
    let bench = Bench::new();
    let sample = Sample::new(bench.path("reference"));
    let layers = sample.finish();
    let good = bench.request(Front::Erofs, &sample.tree, sources(&layers));
    let mut swapped = good.clone();
    swapped.layers.reverse();
    let mut fewer = good.clone();
    fewer.layers.pop();
    let mut shorter = good;
    shorter.layers[1].source = Memory::new(vec![0; 10]);
    for request in [swapped, fewer, shorter] {
        let error = MountedImage::mount(request, None, bench.handle()).unwrap_err();
        assert!(matches!(error, Error::Layers { .. }), "{error}");
        bench.assert_clean();
    }
}

#[test]
fn fuse_a_tree_file_that_could_change_is_refused() {
    let bench = Bench::new();
    let sample = Sample::new(bench.path("reference"));
    let layers = sample.finish();
    let request = bench.request(Front::Fuse, &sample.tree, sources(&layers));
    let writable = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    fs::set_permissions(&request.tree_file, writable).unwrap();
    let error = MountedImage::mount(request, None, bench.handle()).unwrap_err();
    assert!(matches!(error, Error::TreeFile { .. }), "{error}");
}

#[test]
fn privileged_the_readahead_window_can_be_set() {
    for front in FRONTS {
        let bench = Bench::new();
        let (image, _layers, _sample) = everything(&bench, front);
        image.set_readahead(32).unwrap();
        let windows = fs::read_dir("/sys/class/bdi").unwrap().filter_map(|entry| {
            let file = entry.unwrap().path().join("read_ahead_kb");
            io::read_to_string(File::open(file).ok()?).ok()
        });
        assert!(
            windows.into_iter().any(|window| window.trim() == "32"),
            "{front:?}"
        );
    }
}

#[test]
fn fuse_a_target_is_mounted_once() {
    let bench = Bench::new();
    let sample = Sample::new(bench.path("reference"));
    let layers = sample.finish();
    let request = bench.request(Front::Fuse, &sample.tree, sources(&layers));
    let _image = bench.mount(request.clone());
    let error = MountedImage::mount(request, None, bench.handle()).unwrap_err();
    assert!(matches!(error, Error::AlreadyMounted { .. }), "{error}");
}

#[test]
fn privileged_hundreds_of_layers_are_mounted() {
    const LAYERS: u16 = 300;
    for front in FRONTS {
        let bench = Bench::new();
        let names: Vec<_> = (1..=LAYERS).map(|layer| format!("in-layer-{layer}")).collect();
        let files: Vec<_> = (1..=LAYERS)
            .zip(&names)
            .map(|(layer, name)| (name.as_str(), layer, 512, 700))
            .collect();
        let layers: Vec<Arc<dyn PlainSource>> = (1..=LAYERS)
            .map(|layer| Memory::new(noise(layer.into(), 2048)) as Arc<dyn PlainSource>)
            .collect();
        let image = bench.mount(bench.request(front, &tree_of_files(&files), layers));
        for (layer, name) in (1..=LAYERS).zip(&names) {
            let expected = &noise(layer.into(), 2048)[512..1212];
            assert!(
                fs::read(image.target().join(name)).unwrap() == expected,
                "{front:?}: {name}"
            );
        }
    }
}

#[test]
fn privileged_the_kernels_reason_is_in_the_error() {
    let bench = Bench::new();
    let sample = Sample::new(bench.path("reference"));
    let layers = sample.finish();
    let request = bench.request(Front::Erofs, &sample.tree, sources(&layers));
    // Two devices are in the table of the image.
    let one = [request.tree_file.clone()];
    let error = ErofsMount::mount(&request.tree_file, &one, &bench.target(), None, None).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("extra devices"), "{text}");
}
