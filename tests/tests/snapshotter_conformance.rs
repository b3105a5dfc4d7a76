//! Promise: to containerd, Sluice is a snapshotter like any other.
//!
//! The cases of containerd's own suite for snapshotters, one test each, over gRPC and with real mounts. Its names, in its
//! order, and where they are:
//!
//! | case | test |
//! |---|---|
//! | Basic | `privileged_basic` |
//! | StatActive, StatComitted | `privileged_stat_tells_active_and_committed` |
//! | TransitivityTest | `privileged_parents_are_transitive` |
//! | PreareViewFailingtest | `privileged_a_key_is_used_once` |
//! | Update | `privileged_update` |
//! | Remove | `privileged_a_removed_name_can_be_used_again` |
//! | Walk | `privileged_walk_honours_filters` |
//! | LayerFileupdate | `privileged_layer_file_update` |
//! | RemoveDirectoryInLowerLayer | `privileged_remove_directory_in_lower_layer` |
//! | Chown | `privileged_chown` |
//! | DirectoryPermissionOnCommit | `privileged_directory_permission_on_commit` |
//! | RemoveIntermediateSnapshot | `privileged_an_intermediate_snapshot_stays` |
//! | DeletedFilesInChildSnapshot | `privileged_deleted_files_in_child_snapshot` |
//! | MoveFileFromLowerLayer | `privileged_move_file_from_lower_layer` |
//! | ViewReadonly | `privileged_a_view_is_read_only` |
//! | StatInWalk | `privileged_stat_in_walk` |
//! | CloseTwice | none: nobody closes a service over gRPC |
//! | RootPermission | `privileged_root_permission` |
//! | Rename | `privileged_rename`, as for overlayfs: without renaming a directory of a lower layer |
//! | 128LayersMount | `privileged_128_layers` |

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use anyhow::{Result, ensure};
use sluice_snapshotter::proto::snapshots::{Info, Kind};
use sluice_tests::snapshots::changes::{
    Change, apply, assert_same, directory, file, link, owner, remove, rename,
};
use sluice_tests::snapshots::mounting::Mounted;
use sluice_tests::snapshots::suite::{Suite, root_label};
use sluice_tests::snapshots::{Labels, labels};
use tonic::Code;

async fn code<T>(answer: impl Future<Output = Result<T, tonic::Status>>) -> Code {
    answer.await.err().map_or(Code::Ok, |status| status.code())
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_basic() -> Result<()> {
    let mut suite = Suite::start("basic").await?;
    let initial = [
        file("foo", "foo\n", 0o777),
        directory("a", 0o755),
        directory("a/b", 0o755),
        directory("a/b/c", 0o755),
    ];
    let diff = [
        file("bar", "bar\n", 0o777),
        file("foo", "bar\n", 0o777),
        remove("a/b"),
    ];
    let flat = suite.service.scratch.directory("flat")?;
    let client = suite.service.client.clone();

    suite.layer("committed", "", &initial).await?;
    let committed = client.stat("committed").await?;
    assert_eq!(
        (committed.parent.as_str(), committed.kind()),
        ("", Kind::Committed)
    );
    assert_eq!(code(client.stat("committed-prepare")).await, Code::NotFound);

    apply(&flat, &initial)?;
    let next = suite.prepare("next", "committed").await?;
    assert_same(&flat, &next.directory)?;
    apply(&next.directory, &diff)?;
    next.unmount()?;
    let info = client.stat("next").await?;
    assert_eq!((info.parent.as_str(), info.kind()), ("committed", Kind::Active));
    suite.commit("committed-next", "next").await?;
    let next = client.stat("committed-next").await?;
    assert_eq!(
        (next.parent.as_str(), next.kind()),
        ("committed", Kind::Committed)
    );
    assert_eq!(code(client.stat("next")).await, Code::NotFound);
    assert_eq!(client.list(&[]).await?, [committed, next]);

    apply(&flat, &diff)?;
    suite.check("committed-next", &flat).await?;
    let refused = client.remove("committed").await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("remove"));
    client.remove("committed-next").await?;
    client.remove("committed").await?;
    assert_eq!(client.list(&[]).await?, []);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_stat_tells_active_and_committed() -> Result<()> {
    let mut suite = Suite::start("stat").await?;
    let mounted = suite.prepare("preparing", "").await?;
    apply(&mounted.directory, &[file("foo", "foo\n", 0o777)])?;
    let info = suite.service.client.stat("preparing").await?;
    assert_eq!(
        (info.name.as_str(), info.kind(), info.parent.as_str()),
        ("preparing", Kind::Active, "")
    );
    suite.commit("committed", "preparing").await?;
    let info = suite.service.client.stat("committed").await?;
    assert_eq!(
        (info.name.as_str(), info.kind(), info.parent.as_str()),
        ("committed", Kind::Committed, "")
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_parents_are_transitive() -> Result<()> {
    let mut suite = Suite::start("transitivity").await?;
    suite.layer("A", "", &[file("foo", "foo\n", 0o777)]).await?;
    suite.layer("B", "A", &[file("foo", "foo bar\n", 0o777)]).await?;
    let client = &suite.service.client;
    let above = client.stat("B").await?;
    assert_eq!(above.parent, "A");
    assert_eq!(client.stat(&above.parent).await?.parent, "");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_key_is_used_once() -> Result<()> {
    let mut suite = Suite::start("keys").await?;
    suite.layer("A", "", &[]).await?;
    let client = &suite.service.client;
    let none = Labels::new();
    client.prepare("layer", "A", &none).await?;
    assert_eq!(code(client.view("layer", "A", &none)).await, Code::AlreadyExists);
    assert_eq!(
        code(client.prepare("layer", "A", &none)).await,
        Code::AlreadyExists
    );
    client.view("view", "A", &none).await?;
    assert_eq!(code(client.view("view", "A", &none)).await, Code::AlreadyExists);
    assert_eq!(code(client.prepare("A", "A", &none)).await, Code::AlreadyExists);
    // What was refused left no directory.
    let directories = fs::read_dir(suite.service.root().join("snapshots"))?.count();
    assert_eq!(directories, 3);
    Ok(())
}

/// Two committed snapshots, and active ones and views on them and on nothing: kind and parent by name.
async fn base_snapshots(suite: &Suite) -> Result<BTreeMap<&'static str, (Kind, &'static str)>> {
    let client = &suite.service.client;
    let label = root_label();
    client.prepare("c1-a", "", &label).await?;
    suite.commit("c1", "c1-a").await?;
    client.prepare("c2-a", "c1", &label).await?;
    suite.commit("c2", "c2-a").await?;
    client.prepare("a1", "c2", &label).await?;
    client.prepare("a2", "", &label).await?;
    client.view("v1", "c2", &label).await?;
    client.view("v2", "", &label).await?;
    Ok(BTreeMap::from([
        ("c1", (Kind::Committed, "")),
        ("c2", (Kind::Committed, "c1")),
        ("a1", (Kind::Active, "c2")),
        ("a2", (Kind::Active, "")),
        ("v1", (Kind::View, "c2")),
        ("v2", (Kind::View, "")),
    ]))
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_update() -> Result<()> {
    let suite = Suite::start("update").await?;
    let client = &suite.service.client;
    let moment = |time: Option<prost_types::Timestamp>| time.map(|time| (time.seconds, time.nanos));
    let present = || moment(Some(std::time::SystemTime::now().into()));
    let start = present();
    let all = base_snapshots(&suite).await?;
    let end = present();
    for (name, (kind, parent)) in all {
        let info = client.stat(name).await?;
        let created = moment(info.created_at);
        ensure!(
            start <= created && created <= end,
            "{name}: created at {created:?}"
        );
        assert_eq!(created, moment(info.updated_at), "{name}");
        assert_eq!(
            (info.kind(), info.parent.as_str(), info.name.as_str()),
            (kind, parent, name)
        );

        let expected = labels(&[("l1", "v1"), ("l2", "v2"), ("l3", "v3")]);
        let start = present();
        let wanted = Info {
            parent: "doesnotexist".to_owned(),
            labels: expected.clone(),
            ..info
        };
        let info = client.update(wanted, &[]).await?;
        let updated = moment(info.updated_at);
        ensure!(
            start <= updated && updated <= present(),
            "{name}: updated at {updated:?}"
        );
        assert_eq!(moment(info.created_at), created, "{name}");
        assert_eq!(
            (info.kind(), info.parent.as_str(), info.name.as_str()),
            (kind, parent, name)
        );
        assert_eq!(info.labels, expected, "{name}");

        let wanted = Info {
            labels: labels(&[("l1", "updated"), ("l4", "v4")]),
            ..info
        };
        let info = client.update(wanted, &["labels.l1", "labels.l2"]).await?;
        assert_eq!(info.labels, labels(&[("l1", "updated"), ("l3", "v3")]), "{name}");

        let expected = labels(&[("l4", "v4")]);
        let wanted = Info {
            labels: expected.clone(),
            ..info
        };
        let info = client.update(wanted, &["labels"]).await?;
        assert_eq!(info.labels, expected, "{name}");
        assert_eq!(client.stat(name).await?, info);
        assert_eq!(
            code(client.update(info, &["parent"])).await,
            Code::InvalidArgument
        );
    }
    let unknown = Info {
        name: "unknown".to_owned(),
        ..Info::default()
    };
    assert_eq!(code(client.update(unknown, &[])).await, Code::NotFound);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_removed_name_can_be_used_again() -> Result<()> {
    let suite = Suite::start("remove").await?;
    let client = &suite.service.client;
    let label = root_label();
    client.prepare("committed-a", "", &label).await?;
    suite.commit("committed-1", "committed-a").await?;
    client.prepare("reuse-1", "committed-1", &label).await?;
    client.remove("reuse-1").await?;
    client.view("reuse-1", "committed-1", &label).await?;
    client.remove("reuse-1").await?;
    client.prepare("reuse-1", "", &label).await?;
    client.remove("committed-1").await?;
    suite.commit("committed-1", "reuse-1").await?;
    assert_eq!(code(client.remove("reuse-1")).await, Code::NotFound);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_walk_honours_filters() -> Result<()> {
    let suite = Suite::start("walk").await?;
    let client = &suite.service.client;
    let plain = labels(&[("containerd.io/gc.root", "check-walk")]);
    let labelled = |value: &str| labels(&[("containerd.io/gc.root", "check-walk"), ("l", value)]);
    client.prepare("a-np", "", &plain).await?;
    client.prepare("p-tmp", "", &plain).await?;
    client.commit("p", "p-tmp", &plain).await?;
    client.prepare("a", "p", &plain).await?;
    client.view("v", "p", &plain).await?;
    client.prepare("p-wl-tmp", "", &plain).await?;
    client.commit("p-wl", "p-wl-tmp", &labelled("1")).await?;
    client.prepare("a-wl", "p-wl", &labelled("2")).await?;
    client.view("v-wl", "p-wl", &labelled("3")).await?;
    client.prepare("a-np-wl", "", &labelled("2")).await?;

    let root = "labels.\"containerd.io/gc.root\"==check-walk";
    let with_root = |filter: &str| format!("{filter},{root}");
    let cases: [(&[&str], &[&str]); 10] = [
        (
            &["a-np", "p", "a", "v", "p-wl", "a-wl", "v-wl", "a-np-wl"],
            &[root],
        ),
        (&["a-np", "a", "a-wl", "a-np-wl"], &[&with_root("kind==active")]),
        (&["v", "v-wl"], &[&with_root("kind==view")]),
        (&["p", "p-wl"], &[&with_root("kind==committed")]),
        (&["p", "a-np-wl"], &["name==p", "name==a-np-wl"]),
        (&["a-wl"], &["name==a-wl,labels.l"]),
        (&["a", "v"], &["parent==p"]),
        (&["a", "v", "a-wl", "v-wl"], &[&with_root("parent!=\"\"")]),
        (&["p-wl", "a-wl", "v-wl", "a-np-wl"], &["labels.l"]),
        (&["a-wl", "a-np-wl"], &["labels.l==2"]),
    ];
    for (expected, filters) in cases {
        let found: BTreeSet<String> = client
            .list(filters)
            .await?
            .into_iter()
            .map(|info| info.name)
            .collect();
        let expected: BTreeSet<String> = expected.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(found, expected, "{filters:?}");
    }
    assert_eq!(code(client.list(&["name==="])).await, Code::InvalidArgument);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_layer_file_update() -> Result<()> {
    Suite::start("file-update")
        .await?
        .check_layers(&[
            &[
                directory("etc", 0o700),
                file("etc/hosts", "mydomain 10.0.0.1", 0o644),
                file("etc/profile", "PATH=/usr/bin", 0o644),
            ],
            &[
                file("etc/hosts", "mydomain 10.0.0.2", 0o644),
                file("etc/profile", "PATH=/usr/bin", 0o666),
                directory("root", 0o700),
                file("root/.bashrc", "PATH=/usr/sbin:/usr/bin", 0o644),
            ],
        ])
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_remove_directory_in_lower_layer() -> Result<()> {
    Suite::start("remove-directory")
        .await?
        .check_layers(&[
            &[directory("lib", 0o700), file("lib/hidden", "", 0o644)],
            &[
                remove("lib"),
                directory("lib", 0o700),
                file("lib/not-hidden", "", 0o644),
            ],
            &[file("lib/newfile", "", 0o644)],
        ])
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_chown() -> Result<()> {
    Suite::start("chown")
        .await?
        .check_layers(&[
            &[
                directory("opt", 0o700),
                directory("opt/a", 0o700),
                directory("opt/a/b", 0o700),
                file("opt/a/b/file.txt", "hello", 0o644),
            ],
            &[
                owner("opt", 1, 1),
                owner("opt/a", 1, 1),
                owner("opt/a/b", 1, 1),
                owner("opt/a/b/file.txt", 1, 1),
            ],
        ])
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_directory_permission_on_commit() -> Result<()> {
    let mut first: Vec<Change> = (1..=5).map(|at| directory(&format!("dir{at}"), 0o700)).collect();
    first.extend([
        file("dir4/f1", "...", 0o644),
        file("dir5/f1", "...", 0o644),
        owner("dir1", 1, 1),
        owner("dir2", 1, 1),
        owner("dir3", 1, 1),
        owner("dir5", 1, 1),
        owner("dir5/f1", 1, 1),
    ]);
    Suite::start("permission")
        .await?
        .check_layers(&[
            &first,
            &[
                owner("dir2", 0, 0),
                remove("dir3"),
                owner("dir4", 1, 1),
                owner("dir4/f1", 1, 1),
            ],
            &[
                directory("dir3", 0o700),
                owner("dir3", 1, 1),
                remove("dir5"),
                directory("dir5", 0o700),
                owner("dir5", 1, 1),
            ],
        ])
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_an_intermediate_snapshot_stays() -> Result<()> {
    let mut suite = Suite::start("intermediate").await?;
    suite.layer("base", "", &[]).await?;
    suite.layer("middle", "base", &[]).await?;
    let client = &suite.service.client;
    client.prepare("top", "middle", &root_label()).await?;
    assert_eq!(code(client.remove("middle")).await, Code::FailedPrecondition);
    for name in ["top", "middle", "base"] {
        client.remove(name).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_deleted_files_in_child_snapshot() -> Result<()> {
    Suite::start("deleted")
        .await?
        .check_layers(&[
            &[file("foo", "foo\n", 0o777), file("foobar", "foobar\n", 0o777)],
            &[remove("foobar")],
            &[],
        ])
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_move_file_from_lower_layer() -> Result<()> {
    Suite::start("move")
        .await?
        .check_layers(&[
            &[
                directory("dir1", 0o700),
                file("dir1/f1", "Hello", 0o644),
                directory("dir2", 0o700),
                file("dir2/f2", "...", 0o644),
            ],
            &[
                directory("dir3", 0o700),
                file("dir3/f1", "Hello", 0o644),
                remove("dir1"),
                link("dir2/f2", "dir3/f2"),
                remove("dir2/f2"),
            ],
        ])
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_rename() -> Result<()> {
    Suite::start("rename")
        .await?
        .check_layers(&[
            &[
                directory("dir1", 0o700),
                directory("somefiles", 0o700),
                file("somefiles/f1", "was here first!", 0o644),
                file("somefiles/f2", "nothing interesting", 0o644),
            ],
            &[
                file("somefiles/f1-overwrite", "new content 1", 0o644),
                rename("somefiles/f1-overwrite", "somefiles/f1"),
                rename("somefiles/f2", "somefiles/f3"),
            ],
        ])
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_view_is_read_only() -> Result<()> {
    let mut suite = Suite::start("view").await?;
    suite.layer("one", "", &[file("a", "", 0o644)]).await?;
    suite.layer("two", "one", &[]).await?;
    for parent in ["", "one", "two"] {
        let mounts = suite.service.client.view("view", parent, &root_label()).await?;
        let directory = suite.new_directory("view");
        let mounted = Mounted::new(&mounts, directory)?;
        let written = fs::write(mounted.directory.join("testfile"), "testcontent");
        let refused = written.unwrap_err();
        assert_eq!(
            refused.kind(),
            std::io::ErrorKind::ReadOnlyFilesystem,
            "view of {parent:?}"
        );
        mounted.unmount()?;
        suite.service.client.remove("view").await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_stat_in_walk() -> Result<()> {
    let suite = Suite::start("stat-in-walk").await?;
    base_snapshots(&suite).await?;
    for info in suite.service.client.list(&[]).await? {
        assert_eq!(suite.service.client.stat(&info.name).await?, info);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_root_permission() -> Result<()> {
    let mut suite = Suite::start("root").await?;
    let mounted = suite.prepare("preparing", "").await?;
    let mode = fs::metadata(&mounted.directory)?.permissions().mode();
    assert_eq!(mode & 0o7777, 0o755);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_128_layers() -> Result<()> {
    let mut suite = Suite::start("128-layers").await?;
    let flat = suite.service.scratch.directory("flat")?;
    let lowest = vec![
        file("bottom", "way at the bottom\n", 0o777),
        file("overwriteme", "FIRST!\n", 0o777),
        directory("addhere", 0o755),
        directory("onlyme", 0o755),
        file("onlyme/bottom", "bye!\n", 0o777),
    ];
    let others = (1..128).map(|at| {
        vec![
            file("overwriteme", &format!("{at} WAS HERE!\n"), 0o777),
            file(&format!("addhere/file-{at}"), "same\n", 0o755),
            remove("onlyme"),
            directory("onlyme", 0o755),
            file(&format!("onlyme/file-{at}"), "only me!\n", 0o777),
        ]
    });
    let mut parent = String::new();
    for (at, changes) in [lowest].into_iter().chain(others).enumerate() {
        let key = format!("prepare-layer-{at}");
        let mounted = suite.prepare(&key, &parent).await?;
        assert_same(&flat, &mounted.directory)?;
        apply(&flat, &changes)?;
        apply(&mounted.directory, &changes)?;
        assert_same(&flat, &mounted.directory)?;
        mounted.unmount()?;
        parent = format!("committed-{at}");
        suite.commit(&parent, &key).await?;
    }
    suite.check(&parent, &flat).await
}
