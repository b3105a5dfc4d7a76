//! What is put into a configuration can be taken out again, and nothing else is touched.

use super::*;

const RELEASES: [(u32, i64); 3] = [(1, 2), (2, 2), (2, 3)];

fn settings(major: u32, config_version: i64) -> Settings {
    Settings {
        release: Release { major, minor: 6 },
        config_version,
        socket: "/run/s.sock".to_owned(),
        cache: "/var/cache/s".to_owned(),
        platform: "linux/amd64".to_owned(),
        cri: true,
    }
}

fn parse(text: &str) -> DocumentMut {
    text.parse().unwrap()
}

/// Configurations as users have them.
const FOUND: [&str; 5] = [
    "",
    "# ours\nversion = 2\n\n[plugins]\n  [plugins.\"io.containerd.grpc.v1.cri\"]\n    sandbox_image = \"p\" # why\n",
    "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd]\nsnapshotter = \"overlayfs\" # was so\n\
     disable_snapshot_annotations = true\n",
    "version = 3\n[proxy_plugins.other]\ntype = \"snapshot\"\naddress = \"/o\"\n\
     [[plugins.\"io.containerd.transfer.v1.local\".unpack_config]]\nplatform = \"linux/arm64\"\nsnapshotter = \"other\"\n",
    "plugins = { \"io.containerd.transfer.v1.local\" = { unpack_config = [{ platform = \"linux/amd64\", snapshotter = \"o\" }] } }\n",
];

#[test]
fn what_was_put_in_comes_out_again() {
    for found in FOUND {
        for (major, version) in RELEASES {
            let settings = settings(major, version);
            let mut document = parse(found);
            settings.apply(&mut document, &settings.parts()).unwrap();
            assert!(document.to_string().contains("/run/s.sock"));
            settings.retract(&mut document, &parse(found));
            assert_eq!(
                document.to_string(),
                found,
                "containerd {major}, version {version}"
            );
        }
    }
}

#[test]
fn putting_it_in_twice_changes_nothing() {
    for found in FOUND {
        for (major, version) in RELEASES {
            let settings = settings(major, version);
            let mut document = parse(found);
            settings.apply(&mut document, &settings.parts()).unwrap();
            let once = document.to_string();
            settings.apply(&mut document, &settings.parts()).unwrap();
            assert_eq!(document.to_string(), once);
        }
    }
}

#[test]
fn what_was_changed_since_stays() {
    let settings = settings(1, 2);
    let mut document = parse("");
    settings.apply(&mut document, &settings.parts()).unwrap();
    let changed = document.to_string().replace("/run/s.sock", "/run/mine.sock");
    let mut document = parse(&changed);
    settings.retract(&mut document, &parse(""));
    assert_eq!(
        document.to_string().trim(),
        "[proxy_plugins.sluice]\naddress = \"/run/mine.sock\""
    );
}

#[test]
fn the_transfer_service_keeps_its_own_snapshotter_first() {
    let settings = settings(2, 3);
    let mut document = parse("");
    settings.apply(&mut document, &settings.parts()).unwrap();
    let list = get(document.as_table(), &["plugins", TRANSFER, UNPACK]).unwrap();
    let names: Vec<_> = entries(list)
        .filter_map(|entry| entry.get("snapshotter")?.as_str())
        .collect();
    assert_eq!(names, [OVERLAYFS, NAME]);
}

#[test]
fn documents_that_cannot_be_extended_are_refused() {
    let mut of_version_1 = settings(1, 1);
    let error = of_version_1
        .apply(&mut parse(""), &of_version_1.parts())
        .unwrap_err();
    assert!(error.to_string().contains("config migrate"), "{error}");
    of_version_1.cri = false;
    of_version_1.apply(&mut parse(""), &of_version_1.parts()).unwrap();
    for bad in [
        "proxy_plugins = 1\n",
        "[proxy_plugins]\nsluice = \"x\"\n",
        "[proxy_plugins.sluice.address]\nx = 1\n",
        "[plugins.\"io.containerd.transfer.v1.local\"]\nunpack_config = \"x\"\n",
    ] {
        let settings = settings(2, 3);
        assert!(
            settings.apply(&mut parse(bad), &settings.parts()).is_err(),
            "{bad}"
        );
    }
}
