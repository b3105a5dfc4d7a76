//! Promise: killed at any moment, the snapshots service comes back with a consistent state: every record has its files,
//! nothing is there without a record, and what was answered stays true.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use sluice_snapshotter::proto::snapshots::Kind;
use sluice_snapshotter::testing::DirectoryImages;
use sluice_tests::scratch::Scratch;
use sluice_tests::snapshots::images::TestImage;
use sluice_tests::snapshots::mounting::Mounted;
use sluice_tests::snapshots::{Client, Labels, Process};
use sluice_tests::{mountinfo, prerequisites};
use tonic::Code;

/// How often the service is killed.
const KILLS: u64 = 12;
/// Clients at work meanwhile.
const CLIENTS: usize = 8;

/// What a client was told for sure.
#[derive(Debug, Default)]
struct Told {
    /// Committed and not asked to be removed since.
    committed: BTreeSet<String>,
    /// Removed.
    removed: BTreeSet<String>,
}

/// Prepares, commits and removes until the service is gone.
async fn work(client: Client, image: TestImage, name: String, stop: Arc<AtomicBool>) -> Told {
    let mut told = Told::default();
    for round in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let (key, committed, container) = (
            format!("{name}-{round}-a"),
            format!("{name}-{round}-c"),
            format!("{name}-{round}-x"),
        );
        let steps = async {
            let target = client.prepare(&key, "", &image.labels(0)).await;
            let code = target.err().map(|status| status.code());
            if code != Some(Code::AlreadyExists) {
                return Err(());
            }
            client.prepare(&key, "", &Labels::new()).await.map_err(|_| ())?;
            client
                .commit(&committed, &key, &Labels::new())
                .await
                .map_err(|_| ())?;
            told.committed.insert(committed.clone());
            client
                .prepare(&container, &committed, &Labels::new())
                .await
                .map_err(|_| ())?;
            client.remove(&container).await.map_err(|_| ())?;
            told.removed.insert(container);
            if round % 2 == 0 {
                told.committed.remove(&committed);
                client.remove(&committed).await.map_err(|_| ())?;
                told.removed.insert(committed);
            }
            Ok(())
        };
        if steps.await.is_err() {
            break;
        }
    }
    told
}

/// Everything that a record promises is there, and nothing else.
async fn check(client: &Client, root: &Path, told: &[Told]) -> Result<()> {
    let all = client.list(&[]).await?;
    let names: BTreeSet<&str> = all.iter().map(|info| info.name.as_str()).collect();
    for told in told {
        for name in &told.committed {
            ensure!(names.contains(name.as_str()), "{name} was committed and is gone");
        }
        for name in &told.removed {
            ensure!(!names.contains(name.as_str()), "{name} was removed and is back");
        }
    }
    let mut directories = BTreeSet::new();
    for info in &all {
        ensure!(
            info.parent.is_empty() || names.contains(info.parent.as_str()),
            "{info:?} lost its parent"
        );
        if info.kind() == Kind::Committed {
            client.usage(&info.name).await?;
            continue;
        }
        let mounts = client.mounts(&info.name).await?;
        let own = mounts[0]
            .options
            .iter()
            .find_map(|option| option.strip_prefix("upperdir="));
        let own = own.unwrap_or(&mounts[0].source).to_owned();
        ensure!(Path::new(&own).is_dir(), "{info:?} lost {own}");
        directories.insert(own);
    }
    let ordinary = all
        .iter()
        .filter(|info| !info.name.starts_with("@sluice/"))
        .count();
    let on_disk = fs::read_dir(root.join("snapshots"))?
        .filter(|entry| {
            entry
                .as_ref()
                .is_ok_and(|entry| !entry.file_name().to_string_lossy().starts_with("tree-"))
        })
        .count();
    ensure!(
        on_disk == ordinary,
        "{on_disk} directories for {ordinary} snapshots"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn privileged_a_killed_service_comes_back_consistent() -> Result<()> {
    prerequisites::root()?;
    let scratch = Scratch::new("crash")?;
    let home = scratch.join("engine");
    let engine = DirectoryImages::open(&home)?;
    let image = TestImage::add(&engine, "a", &[true, true])?;
    let root = scratch.join("root");

    let mut service = Process::start(&scratch, Some(&home)).await?;
    let client = service.connect().await?;
    let mut parent = String::new();
    for at in 0..2 {
        let answer = client.prepare("pull", &parent, &image.labels(at)).await;
        assert_eq!(answer.unwrap_err().code(), Code::AlreadyExists);
        let target = format!(
            "labels.\"containerd.io/snapshot.ref\"==\"{}\"",
            image.chain_id(at + 1)
        );
        parent = client.list(&[&target]).await?.remove(0).name;
    }
    let mounts = client.prepare("container", &parent, &Labels::new()).await?;
    let container = Mounted::new(&mounts, scratch.join("container"))?;

    for kill in 0..KILLS {
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = Vec::new();
        for at in 0..CLIENTS {
            let client = service.connect().await?;
            let name = format!("k{kill}-{at}");
            tasks.push(tokio::spawn(work(client, image.clone(), name, Arc::clone(&stop))));
        }
        tokio::time::sleep(Duration::from_millis(20 + kill * 37)).await;
        service.kill()?;
        stop.store(true, Ordering::Relaxed);
        let mut told = Vec::new();
        for task in tasks {
            told.push(task.await?);
        }
        assert_eq!(
            fs::read_to_string(container.directory.join("top"))?,
            "1",
            "the container lives on"
        );
        service = Process::start(&scratch, Some(&home)).await?;
        check(&service.connect().await?, &root, &told).await?;
        assert_eq!(mountinfo::mounts_under(&root)?.len(), 1, "the container's tree");
    }
    container.unmount()?;
    Ok(())
}
