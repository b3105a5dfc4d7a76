//! A packed directory comes out of the image as it went in, and the same tree gives the same image.

use std::collections::BTreeMap;
use std::fs::{self, File, FileTimes, Permissions};
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;
use std::time::{Duration, SystemTime};

use rustix::fs::{FileType, Mode, XattrFlags};
use serde_json::{Value, json};
use sluice_converter::report::PackReport;
use sluice_converter::{Error, PackFormat, PackOptions, Progress, Silent, pack};
use sluice_format::artifact;

use crate::images::*;

fn set_mtime(path: &Path, secs: u64, nanos: u32) {
    let time = SystemTime::UNIX_EPOCH + Duration::new(secs, nanos);
    File::open(path)
        .unwrap()
        .set_times(FileTimes::new().set_modified(time))
        .unwrap();
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A tree with one of everything.
fn fill(dir: &Path) {
    fs::create_dir_all(dir.join("deep/er")).unwrap();
    fs::write(dir.join("deep/er/file"), text(300_000, 5)).unwrap();
    fs::write(dir.join("empty"), b"").unwrap();
    fs::hard_link(dir.join("deep/er/file"), dir.join("deep/zlink")).unwrap();
    symlink("../x".repeat(60), dir.join("long-link")).unwrap();
    fs::write(dir.join("n".repeat(220)), b"long name").unwrap();
    fs::write(dir.join("ümläut"), b"x").unwrap();
    fs::write(dir.join("setuid"), b"#!").unwrap();
    fs::set_permissions(dir.join("setuid"), Permissions::from_mode(0o4755)).unwrap();
    let sparse = File::create(dir.join("sparse")).unwrap();
    sparse.set_len(3 << 20).unwrap();
    rustix::fs::setxattr(dir.join("empty"), "user.note", b"\0binary\n", XattrFlags::empty()).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, dir.join("fifo"), Mode::from_raw_mode(0o600)).unwrap();
    if is_root() {
        let device = rustix::fs::makedev(5, 1);
        let mode = Mode::from_raw_mode(0o620);
        rustix::fs::mknodat(
            rustix::fs::CWD,
            dir.join("device"),
            FileType::CharacterDevice,
            mode,
            device,
        )
        .unwrap();
        std::os::unix::fs::chown(dir.join("setuid"), Some(3_000_000), Some(7)).unwrap();
        fs::set_permissions(dir.join("setuid"), Permissions::from_mode(0o4755)).unwrap();
    }
    for (path, nanos) in [
        ("empty", 123_456_789),
        ("deep/er/file", 0),
        ("deep/er", 1),
        ("deep", 2),
    ] {
        set_mtime(&dir.join(path), 1_600_000_000, nanos);
    }
}

/// What a reader sees of a tree, by path.
fn described(dir: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut first_names = BTreeMap::new();
    let mut pending = vec![dir.to_owned()];
    while let Some(path) = pending.pop() {
        let mut names: Vec<_> = fs::read_dir(&path)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        names.sort();
        for path in names {
            let m = fs::symlink_metadata(&path).unwrap();
            let relative = path.strip_prefix(dir).unwrap().to_owned();
            let content = match m.file_type() {
                t if t.is_file() => format!("{:?}", sluice_format::Digest::of(&fs::read(&path).unwrap())),
                t if t.is_symlink() => format!("{:?}", fs::read_link(&path).unwrap()),
                t if t.is_char_device() => format!("{}", m.rdev()),
                _ => String::new(),
            };
            let note = rustix::fs::lgetxattr(&path, "user.note", &mut [0_u8; 100][..]).ok();
            // Times of links cannot be set by every tar.
            let mtime = (!m.is_symlink()).then(|| (m.mtime(), m.mtime_nsec()));
            let owner = is_root().then(|| (m.uid(), m.gid()));
            let first = first_names
                .entry(m.ino())
                .or_insert_with(|| relative.clone())
                .clone();
            let line = format!(
                "{:o} {owner:?} {mtime:?} {content} {note:?} {first:?} {}",
                m.mode(),
                m.len()
            );
            let is_dir = m.is_dir();
            found.insert(
                relative,
                if is_dir {
                    line.rsplit_once(' ').unwrap().0.to_owned()
                } else {
                    line
                },
            );
            if is_dir {
                pending.push(path);
            }
        }
    }
    found
}

async fn packed(dir: &Path, options: &PackOptions) -> (Place, PackReport) {
    let place = Place::new();
    let report = pack(dir, &place.target(), options, &Silent).await.unwrap();
    (place, report)
}

fn unpack(tar: &[u8], to: &Path) {
    let file = to.with_extension("tar");
    fs::write(&file, tar).unwrap();
    fs::create_dir(to).unwrap();
    let status = Command::new("tar")
        .args(["--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpf"])
        .arg(&file)
        .arg("-C")
        .arg(to)
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
fn a_packed_tree_unpacks_to_the_same_tree() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let (root, copy) = (dir.path().join("root"), dir.path().join("copy"));
        fill(&root);
        let (place, report) = packed(&root, &PackOptions::default()).await;
        let (_, manifest) = place.manifest().await;
        let blob = place.blob(manifest["layers"][0]["digest"].as_str().unwrap());
        unpack(&unzstd(&blob), &copy);
        let (before, after) = (described(&root), described(&copy));
        assert_eq!(before.len() as u64, report.entries);
        for (path, line) in &before {
            assert_eq!(after.get(path), Some(line), "{}", path.display());
        }
        assert_eq!(before.len(), after.len());
        assert_sound(&place.source(), None).await;
    });
}

#[test]
fn the_same_tree_gives_the_same_image_in_every_format() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        fill(dir.path());
        let mut diff_ids = Vec::new();
        for (format, media_type) in [
            (PackFormat::Sluice, artifact::OCI_LAYER_ZSTD),
            (PackFormat::Gzip, artifact::OCI_LAYER_GZIP),
            (PackFormat::Tar, artifact::OCI_LAYER_TAR),
        ] {
            let options = PackOptions {
                format,
                ..PackOptions::default()
            };
            let (place, first) = packed(dir.path(), &options).await;
            let (_, second) = packed(dir.path(), &options).await;
            assert_eq!(first.digest, second.digest);
            assert_eq!(place.manifest().await.1["layers"][0]["mediaType"], media_type);
            diff_ids.push((first.diff_id, first.image_id));
            // Converting what other tools would have built gives what packing gives at once.
            let (target, _) = converted_with_defaults(&place).await;
            assert_sound(&target.source(), Some(&place.source())).await;
        }
        diff_ids.dedup();
        assert_eq!(diff_ids.len(), 1);
    });
}

async fn converted_with_defaults(source: &Place) -> (Place, sluice_converter::ConvertReport) {
    let target = Place::new();
    let options = sluice_converter::ConvertOptions::default();
    let report = sluice_converter::convert(&source.source(), &target.target(), &options, &Silent)
        .await
        .unwrap();
    (target, report)
}

#[test]
fn options_are_in_the_config() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        fs::write(
            dir.path().join("base.json"),
            json!({"config": {"Env": ["A=1"]}, "author": "me"}).to_string(),
        )
        .unwrap();
        let root = dir.path().join("root");
        fs::create_dir(&root).unwrap();
        let options = PackOptions {
            entrypoint: vec!["/bin/app".to_owned()],
            cmd: vec!["serve".to_owned()],
            env: vec!["B=2".to_owned()],
            workdir: Some("/srv".to_owned()),
            user: Some("1000:1000".to_owned()),
            labels: [("k".to_owned(), "v".to_owned())].into(),
            platform: Some("linux/arm64/v8".parse().unwrap()),
            config_file: Some(dir.path().join("base.json")),
            created: 1_709_251_199,
            ..PackOptions::default()
        };
        let (place, report) = packed(&root, &options).await;
        let config: Value = serde_json::from_slice(&place.blob(&report.image_id.to_string())).unwrap();
        assert_eq!(config["created"], "2024-02-29T23:59:59Z");
        assert_eq!(config["author"], "me");
        assert_eq!(
            [&config["architecture"], &config["os"], &config["variant"]],
            ["arm64", "linux", "v8"]
        );
        let run = &config["config"];
        assert_eq!(run["Env"], json!(["A=1", "B=2"]));
        assert_eq!(run["Entrypoint"], json!(["/bin/app"]));
        assert_eq!([&run["WorkingDir"], &run["User"]], ["/srv", "1000:1000"]);
        assert_eq!(run["Labels"], json!({"k": "v"}));
    });
}

#[test]
fn sockets_are_left_out_with_a_warning() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let _listener = UnixListener::bind(dir.path().join("socket")).unwrap();
        let (_, report) = packed(dir.path(), &PackOptions::default()).await;
        assert_eq!(report.entries, 0);
        assert!(report.warnings[0].contains("socket"), "{:?}", report.warnings);
    });
}

#[test]
fn names_that_would_delete_are_refused() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(".wh.x"), b"").unwrap();
        let place = Place::new();
        let error = pack(dir.path(), &place.target(), &PackOptions::default(), &Silent)
            .await
            .unwrap_err();
        assert!(error.to_string().contains(".wh.x"), "{error}");
        assert!(place.is_untouched().await);
    });
}

/// Appends to a file when the first bytes have been packed.
#[derive(Debug)]
struct Disturb(PathBuf, Once);

impl Progress for Disturb {
    fn packed(&self, _plain_bytes: u64) {
        self.1.call_once(|| {
            File::options()
                .append(true)
                .open(&self.0)
                .unwrap()
                .write_all(b"more")
                .unwrap();
        });
    }
}

#[test]
fn a_file_that_changes_while_it_is_read_is_an_error_that_names_it() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("growing");
        // Longer than all queues together, so that the reader is still in the middle of it.
        File::create(&path).unwrap().set_len(256 << 20).unwrap();
        for format in [PackFormat::Sluice] {
            let place = Place::new();
            let options = PackOptions {
                format,
                ..PackOptions::default()
            };
            let disturb = Disturb(path.clone(), Once::new());
            let error: Error = pack(dir.path(), &place.target(), &options, &disturb)
                .await
                .unwrap_err();
            assert!(error.to_string().contains("growing changed"), "{error}");
            assert!(place.is_untouched().await);
        }
    });
}

#[test]
fn a_missing_directory_is_refused() {
    run(async {
        let error = pack(
            Path::new("/nonexistent"),
            &Place::new().target(),
            &PackOptions::default(),
            &Silent,
        )
        .await;
        assert!(error.unwrap_err().to_string().contains("/nonexistent"));
    });
}
