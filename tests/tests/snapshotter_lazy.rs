//! Promise: a layer that the engine serves is never unpacked, whatever lies above and below it; its trees are mounted once
//! and go away with the last snapshot that needs them.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sluice_snapshotter::Options;
use sluice_snapshotter::images::IdleTree;
use sluice_snapshotter::labels::{STARGZ_DIGEST, STARGZ_REFERENCE, TARGET, UID_MAPPING};
use sluice_snapshotter::proto::snapshots::{Info, Kind};
use sluice_snapshotter::testing::LAYER_USAGE;
use sluice_tests::snapshots::images::TestImage;
use sluice_tests::snapshots::mounting::Mounted;
use sluice_tests::snapshots::{Client, Labels, Service, labels};
use sluice_tests::{mountinfo, process};
use tonic::Code;

/// Asks for every layer as containerd's unpacker does, unpacks those that are not served, and gives the name of the
/// topmost snapshot.
async fn pull(client: &Client, image: &TestImage, namespace: &str, scratch: &Path) -> Result<String> {
    let mut parent = String::new();
    for at in 0..image.layers.len() {
        let labels = image.labels(at);
        let key = format!("{namespace}/extract-{at} {}", image.chain_id(at + 1));
        match client.prepare(&key, &parent, &labels).await {
            Ok(mounts) => {
                let mounted = Mounted::new(&mounts, scratch.join(format!("{namespace}-unpack-{at}")))?;
                TestImage::fill(&mounted.directory, at)?;
                mounted.unmount()?;
                parent = format!("{namespace}/{}", image.chain_id(at + 1));
                client.commit(&parent, &key, &labels).await?;
            }
            Err(status) if status.code() == Code::AlreadyExists => {
                parent = claimed(client, &image.chain_id(at + 1), &parent).await?.name;
            }
            Err(status) => return Err(status.into()),
        }
    }
    Ok(parent)
}

/// What containerd asks after `AlreadyExists`.
async fn claimed(client: &Client, target: &str, parent: &str) -> Result<Info> {
    let filter = format!("labels.\"{TARGET}\"==\"{target}\",parent==\"{parent}\"");
    let found = client.list(&[&filter]).await?;
    ensure!(found.len() == 1, "{filter}: {found:?}");
    let info = found.into_iter().next().context("just counted")?;
    ensure!(info.kind() == Kind::Committed, "{info:?}");
    Ok(info)
}

fn shown(directory: &Path) -> Result<Vec<String>> {
    let names = fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    Ok(names.collect::<Result<BTreeSet<_>>>()?.into_iter().collect())
}

/// Mounts a container's root file system, checks it, writes to it.
async fn run_container(
    client: &Client,
    key: &str,
    parent: &str,
    depth: usize,
    scratch: &Path,
) -> Result<Mounted> {
    let mounts = client.prepare(key, parent, &Labels::new()).await?;
    let mounted = Mounted::new(&mounts, scratch.join(key.replace('/', "-")))?;
    ensure!(
        shown(&mounted.directory)? == TestImage::shown(depth),
        "{:?}",
        shown(&mounted.directory)?
    );
    fs::write(mounted.directory.join("top"), "written")?;
    fs::remove_file(mounted.directory.join(format!("layer-{}", depth - 1)))?;
    Ok(mounted)
}

fn trees(service: &Service) -> Result<usize> {
    Ok(mountinfo::mounts_under(&service.root())?.len())
}

/// Removes everything and checks that nothing is left.
async fn remove_all(service: &Service) -> Result<()> {
    let client = &service.client;
    loop {
        let names = client.names().await?;
        if names.is_empty() {
            break;
        }
        let mut removed = 0;
        for name in names {
            match client.remove(&name).await {
                Ok(()) => removed += 1,
                Err(status) if status.code() == Code::FailedPrecondition => {}
                Err(status) => return Err(status.into()),
            }
        }
        ensure!(removed > 0, "nothing can be removed");
    }
    client.cleanup().await?;
    mountinfo::assert_nothing_under(&service.root())?;
    let left = fs::read_dir(service.root().join("snapshots"))?.count();
    ensure!(left == 0, "{left} directories are left");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_served_image_is_one_mount_for_all_containers() -> Result<()> {
    let service = Service::start("served").await?;
    let client = &service.client;
    let image = TestImage::add(&service.engine, "a", &[true; 4])?;
    let top = pull(client, &image, "default", &service.scratch).await?;
    assert_eq!(trees(&service)?, 0, "a pull mounts nothing");

    let one = run_container(client, "c1", &top, 4, &service.scratch).await?;
    let two = run_container(client, "c2", &top, 4, &service.scratch).await?;
    assert_eq!(trees(&service)?, 1);
    assert_eq!(service.engine.calls().mounted.len(), 1);
    assert_eq!(service.engine.calls().prepared, ["c1", "c2"]);
    assert_eq!(fs::read_to_string(one.directory.join("top"))?, "written");
    let mounts = client.mounts("c1").await?;
    let lowers = mounts[0]
        .options
        .iter()
        .find(|option| option.starts_with("lowerdir="))
        .context("no lowers")?;
    assert!(!lowers.contains(':'), "{lowers}");
    one.unmount()?;
    two.unmount()?;
    client.remove("c1").await?;
    client.cleanup().await?;
    assert_eq!(trees(&service)?, 1, "the other container needs it");
    client.remove("c2").await?;
    client.cleanup().await?;
    assert_eq!(trees(&service)?, 0);
    remove_all(&service).await?;
    assert_eq!(service.engine.calls().forgotten.len(), 4);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_served_and_unpacked_layers_lie_on_each_other_in_any_order() -> Result<()> {
    let service = Service::start("mixed").await?;
    for pattern in 0..16_u32 {
        let lazy: Vec<bool> = (0..4).map(|at| pattern & (1 << at) != 0).collect();
        let image = TestImage::add(&service.engine, &format!("m{pattern}"), &lazy)?;
        let namespace = format!("n{pattern}");
        let top = pull(&service.client, &image, &namespace, &service.scratch).await?;
        let key = format!("container-{pattern}");
        let mounted = run_container(&service.client, &key, &top, 4, &service.scratch).await?;
        mounted.unmount()?;
        // Every layer of it can be looked at alone.
        let mut name = top;
        for depth in (1..=4).rev() {
            let view = format!("view-{pattern}-{depth}");
            let mounts = service.client.view(&view, &name, &Labels::new()).await?;
            let mounted = Mounted::new(&mounts, service.scratch.join(&view))?;
            assert_eq!(
                shown(&mounted.directory)?,
                TestImage::shown(depth),
                "pattern {lazy:?} depth {depth}"
            );
            assert_eq!(
                fs::read_to_string(mounted.directory.join("top"))?,
                format!("{}", depth - 1)
            );
            mounted.unmount()?;
            name = service.client.stat(&name).await?.parent;
        }
    }
    remove_all(&service).await
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_the_same_image_in_two_namespaces_is_resolved_and_mounted_once() -> Result<()> {
    let service = Service::start("namespaces").await?;
    let image = TestImage::add(&service.engine, "a", &[true; 3])?;
    let other = Client::connect(&service.socket(), "sluice", "other").await?;
    let top = pull(&service.client, &image, "default", &service.scratch).await?;
    assert_eq!(pull(&other, &image, "other", &service.scratch).await?, top);
    assert_eq!(service.engine.calls().resolved.len(), 3);
    let one = run_container(&service.client, "default/c", &top, 3, &service.scratch).await?;
    let two = run_container(&other, "other/c", &top, 3, &service.scratch).await?;
    assert_eq!(service.engine.calls().mounted.len(), 1);
    one.unmount()?;
    two.unmount()?;
    remove_all(&service).await
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_client_without_a_reference_gets_directories() -> Result<()> {
    let service = Service::start("no-reference").await?;
    let image = TestImage::add(&service.engine, "a", &[true])?;
    let target = labels(&[(TARGET, &image.chain_id(1))]);
    let client = &service.client;
    client.prepare("one", "", &target).await?;
    assert_eq!(service.engine.calls().resolved, []);
    client.commit("ordinary", "one", &target).await?;
    // The target is there, but unpacked by somebody: another client unpacks its own.
    client.prepare("two", "", &target).await?;
    // Once it is served, it is found without a reference as well.
    assert_eq!(
        client
            .prepare("three", "", &image.labels(0))
            .await
            .unwrap_err()
            .code(),
        Code::AlreadyExists
    );
    assert_eq!(
        client.prepare("four", "", &target).await.unwrap_err().code(),
        Code::AlreadyExists
    );
    // A reference without a target is a container.
    let reference = labels(&[(STARGZ_REFERENCE, &image.reference)]);
    client.prepare("five", "", &reference).await?;
    remove_all(&service).await
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_labels_of_stargz_clients_are_understood() -> Result<()> {
    let service = Service::start("stargz").await?;
    let image = TestImage::add(&service.engine, "a", &[true])?;
    let labels = labels(&[
        (TARGET, &image.chain_id(1)),
        (STARGZ_REFERENCE, &image.reference),
        (STARGZ_DIGEST, &image.layers[0].to_string()),
    ]);
    let status = service.client.prepare("k", "", &labels).await.unwrap_err();
    assert_eq!(status.code(), Code::AlreadyExists);
    claimed(&service.client, &image.chain_id(1), "").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_an_engine_that_fails_costs_laziness_and_nothing_else() -> Result<()> {
    let service = Service::start("failing").await?;
    let unknown = TestImage {
        reference: "registry.example/unknown:1".to_owned(),
        layers: TestImage::add(&service.engine, "a", &[true; 2])?.layers,
    };
    let top = pull(&service.client, &unknown, "default", &service.scratch).await?;
    assert_eq!(service.engine.calls().resolved.len(), 2);
    let mounted = run_container(&service.client, "c", &top, 2, &service.scratch).await?;
    assert_eq!(trees(&service)?, 0);
    mounted.unmount()?;
    remove_all(&service).await
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_usage_counts_cached_bytes_of_served_layers_and_files_of_others() -> Result<()> {
    let service = Service::start("usage").await?;
    let client = &service.client;
    let image = TestImage::add(&service.engine, "a", &[true])?;
    let top = pull(client, &image, "default", &service.scratch).await?;
    let usage = client.usage(&top).await?;
    assert_eq!(
        (usage.size, usage.inodes),
        (
            i64::try_from(LAYER_USAGE.bytes)?,
            i64::try_from(LAYER_USAGE.inodes)?
        )
    );

    let mounts = client.prepare("a", &top, &Labels::new()).await?;
    let mounted = Mounted::new(&mounts, service.scratch.join("a"))?;
    let empty = client.usage("a").await?;
    fs::write(mounted.directory.join("new"), vec![7; 1 << 20])?;
    process::run(
        std::process::Command::new("sync")
            .arg("-f")
            .arg(&mounted.directory),
    )?;
    mounted.unmount()?;
    let full = client.usage("a").await?;
    assert_eq!((empty.inodes, full.inodes), (1, 2));
    ensure!(full.size - empty.size >= 1 << 20, "{empty:?} {full:?}");
    client.commit("committed", "a", &Labels::new()).await?;
    assert_eq!(client.usage("committed").await?, full);
    client.view("v", "committed", &Labels::new()).await?;
    let view = client.usage("v").await?;
    assert_eq!((view.size, view.inodes), (0, 0));
    assert_eq!(client.usage("absent").await.unwrap_err().code(), Code::NotFound);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_reboot_brings_trees_back_and_a_restart_adopts_them() -> Result<()> {
    let mut service = Service::start("reboot").await?;
    let image = TestImage::add(&service.engine, "a", &[true, false, true])?;
    let top = pull(&service.client, &image, "default", &service.scratch).await?;
    let mounted = run_container(&service.client, "c", &top, 3, &service.scratch).await?;
    let before = service.client.mounts("c").await?;

    service.stop().await?;
    assert_eq!(
        fs::read_to_string(mounted.directory.join("layer-1"))?,
        "1",
        "mounts outlive the service"
    );
    service.start_again().await?;
    let calls = service.engine.calls();
    assert_eq!(
        (calls.adopted.len(), calls.mounted.len(), calls.unmounted.len()),
        (2, 0, 0)
    );

    service.stop().await?;
    mounted.unmount()?;
    mountinfo::detach_all_under(&service.scratch);
    service.start_again().await?;
    let calls = service.engine.calls();
    assert_eq!((calls.adopted.len(), calls.mounted.len()), (0, 2));
    assert_eq!(calls.resolved, [], "nothing is asked of a registry");
    assert_eq!(service.client.mounts("c").await?, before);
    let mounted = Mounted::new(&before, service.scratch.join("again"))?;
    assert_eq!(fs::read_to_string(mounted.directory.join("top"))?, "written");
    assert_eq!(shown(&mounted.directory)?, ["layer-1", "top"]);
    mounted.unmount()?;
    remove_all(&service).await
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_tree_that_cannot_be_mounted_costs_only_its_own_snapshots() -> Result<()> {
    let mut service = Service::start("broken").await?;
    let image = TestImage::add(&service.engine, "a", &[true])?;
    let top = pull(&service.client, &image, "default", &service.scratch).await?;
    service.client.prepare("lazy", &top, &Labels::new()).await?;
    service.client.prepare("ordinary", "", &Labels::new()).await?;
    service.stop().await?;
    mountinfo::detach_all_under(&service.scratch);
    service.engine.break_mounts(true)?;
    service.start_again().await?;

    let client = &service.client;
    assert_eq!(client.mounts("lazy").await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(
        client
            .prepare("more", &top, &Labels::new())
            .await
            .unwrap_err()
            .code(),
        Code::Unavailable
    );
    assert_eq!(client.stat("lazy").await?.parent, top);
    client.mounts("ordinary").await?;
    assert_eq!(client.stat("more").await.unwrap_err().code(), Code::NotFound);
    service.engine.break_mounts(false)?;
    client.mounts("lazy").await?;
    assert_eq!(trees(&service)?, 1);
    // A tree that vanishes while the service runs comes back with the next use.
    mountinfo::detach_all_under(&service.root());
    client.mounts("lazy").await?;
    assert_eq!(trees(&service)?, 1);
    remove_all(&service).await
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_leftovers_of_a_crash_are_collected_at_the_start() -> Result<()> {
    let mut service = Service::start("leftovers").await?;
    let image = TestImage::add(&service.engine, "a", &[true])?;
    let top = pull(&service.client, &image, "default", &service.scratch).await?;
    service.client.prepare("gone", &top, &Labels::new()).await?;
    service.client.prepare("kept", "", &Labels::new()).await?;
    // Removed, and not cleaned up: the tree lingers and the service ends.
    service.client.remove("gone").await?;
    service.stop().await?;
    let snapshots = service.root().join("snapshots");
    fs::create_dir_all(snapshots.join("977/fs/deep"))?;
    fs::write(snapshots.join("977/fs/deep/file"), "left")?;
    assert_eq!(trees(&service)?, 1);

    service.start_again().await?;
    assert_eq!(trees(&service)?, 0);
    let left: Vec<_> = fs::read_dir(&snapshots)?.collect();
    assert_eq!(left.len(), 1, "{left:?}");
    // IDs go on above everything that was there.
    let mounts = service.client.prepare("new", "", &Labels::new()).await?;
    assert!(mounts[0].source.ends_with("/978/fs"), "{mounts:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_idle_trees_go_away_by_themselves() -> Result<()> {
    let service = Service::start_with_linger("idle", Duration::ZERO).await?;
    let image = TestImage::add(&service.engine, "a", &[true])?;
    let top = pull(&service.client, &image, "default", &service.scratch).await?;
    service.client.prepare("c", &top, &Labels::new()).await?;
    assert_eq!(trees(&service)?, 1);
    service.client.remove("c").await?;
    let none_left = || trees(&service).is_ok_and(|trees| trees == 0);
    tokio::task::block_in_place(|| process::wait_until("the tree to go", Duration::from_secs(30), none_left))
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_tree_is_kept_for_the_next_container_until_its_image_is_gone() -> Result<()> {
    let service = Service::start_with_linger("kept", Duration::ZERO).await?;
    service.engine.advise(IdleTree::Keep);
    let image = TestImage::add(&service.engine, "a", &[true, true])?;
    let top = pull(&service.client, &image, "default", &service.scratch).await?;
    for key in ["c", "d"] {
        service.client.prepare(key, &top, &Labels::new()).await?;
        service.client.remove(key).await?;
        service.client.cleanup().await?;
        assert_eq!(trees(&service)?, 1, "after {key}");
    }
    assert_eq!(service.engine.calls().mounted.len(), 1);
    service.engine.advise(IdleTree::Renew);
    service.client.cleanup().await?;
    assert_eq!(trees(&service)?, 1);
    assert!(service.engine.calls().mounted.len() > 1, "mounted anew");
    service.engine.advise(IdleTree::Keep);
    remove_all(&service).await?;
    assert_eq!(trees(&service)?, 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_trees_are_kept_as_far_as_there_is_place() -> Result<()> {
    let options = Options {
        tree_linger: Duration::ZERO,
        idle_trees: 1,
        ..Options::default()
    };
    let service = Service::start_with("kept-last", options).await?;
    service.engine.advise(IdleTree::Keep);
    for name in ["a", "b"] {
        let image = TestImage::add(&service.engine, name, &[true])?;
        let top = pull(&service.client, &image, "default", &service.scratch).await?;
        service.client.prepare(name, &top, &Labels::new()).await?;
    }
    service.client.remove("a").await?;
    service.client.remove("b").await?;
    service.client.cleanup().await?;
    let calls = service.engine.calls();
    assert_eq!((trees(&service)?, calls.mounted.len()), (1, 2));
    let kept = service.root().join("snapshots").join(&calls.mounted[1]);
    assert!(
        !calls.unmounted.contains(&kept),
        "the one used last stays: {calls:?}"
    );
    service.engine.advise(IdleTree::GiveUp);
    service.client.cleanup().await?;
    assert_eq!(trees(&service)?, 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_id_maps_are_passed_on_or_refused() -> Result<()> {
    let service = Service::start("id-maps").await?;
    let client = &service.client;
    let map = labels(&[
        (UID_MAPPING, "0:100000:65536"),
        ("containerd.io/snapshot/gidmapping", "0:200000:65536"),
    ]);
    let mounts = client.prepare("a", "", &map).await?;
    assert_eq!(
        mounts[0].options[..2],
        ["uidmap=0:100000:65536", "gidmap=0:200000:65536"]
    );
    let owner = fs::metadata(&mounts[0].source)?;
    use std::os::unix::fs::MetadataExt as _;
    assert_eq!((owner.uid(), owner.gid()), (100_000, 200_000));
    let half = labels(&[(UID_MAPPING, "0:100000:65536")]);
    assert_eq!(
        client.prepare("b", "", &half).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    let image = TestImage::add(&service.engine, "a", &[true])?;
    let top = pull(client, &image, "default", &service.scratch).await?;
    let refused = client.prepare("c", &top, &map).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("remap-ids"), "{refused}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_long_list_comes_in_pages() -> Result<()> {
    let service = Service::start("pages").await?;
    for at in 0..205 {
        service
            .client
            .prepare(&format!("key-{at}"), "", &Labels::new())
            .await?;
    }
    let pages: Vec<usize> = service
        .client
        .list_pages(&[])
        .await?
        .iter()
        .map(Vec::len)
        .collect();
    assert_eq!(pages, [100, 100, 5]);
    assert_eq!(
        service.client.list_pages(&["kind==view"]).await?,
        Vec::<Vec<Info>>::new()
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn privileged_many_clients_at_once_leave_nothing_behind() -> Result<()> {
    const CLIENTS: usize = 64;
    let service = Service::start_with_linger("parallel", Duration::from_millis(1)).await?;
    let images = [
        TestImage::add(&service.engine, "lazy", &[true; 3])?,
        TestImage::add(&service.engine, "mixed", &[true, false, true])?,
        TestImage::add(&service.engine, "ordinary", &[false; 3])?,
    ];
    let mut tops = Vec::new();
    for (at, image) in images.iter().enumerate() {
        tops.push(pull(&service.client, image, &format!("n{at}"), &service.scratch).await?);
    }
    let tasks: Vec<_> = (0..CLIENTS)
        .map(|at| {
            let (client, top, image) = (
                service.client.clone(),
                tops[at % tops.len()].clone(),
                images[at % images.len()].clone(),
            );
            tokio::spawn(async move {
                for round in 0..4 {
                    let key = format!("c-{at}-{round}");
                    client.prepare(&key, &top, &Labels::new()).await?;
                    let twice = client.prepare(&key, &top, &Labels::new()).await;
                    ensure!(twice.unwrap_err().code() == Code::AlreadyExists);
                    // A pull that runs meanwhile: whether the layer is served or not, it never fails.
                    let extract = format!("extract-{at}-{round}");
                    match client.prepare(&extract, "", &image.labels(0)).await {
                        Ok(_) => client.remove(&extract).await?,
                        Err(status) => ensure!(status.code() == Code::AlreadyExists, "{status}"),
                    }
                    let mounts = client.mounts(&key).await?;
                    ensure!(mounts.len() == 1);
                    client.remove(&key).await?;
                    client.cleanup().await?;
                }
                Ok(())
            })
        })
        .collect();
    for task in tasks {
        task.await??;
    }
    let layers = service.client.list(&["kind!=committed"]).await?;
    assert_eq!(layers, []);
    remove_all(&service).await
}
