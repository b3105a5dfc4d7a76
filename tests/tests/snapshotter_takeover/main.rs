//! Promise: containers do not notice that `sluice snapshotter` is killed, upgraded or started anew, nor that containerd is;
//! after the host was started anew they start again without the registry; and when all is removed, nothing is left.

mod host;

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use sluice_tests::containerd::Release;
use sluice_tests::registry::Class;
use sluice_tests::{mountinfo, process, systemd};

use self::host::{Host, Keeper, LARGE_CACHE, PATIENCE, SMALL_CACHE, dice, now};

/// How often the snapshotter is killed.
const KILLS: u64 = 50;

/// How often it is upgraded.
const UPGRADES: usize = 6;

/// Stored bytes that are fetched while the snapshotter is killed, at least.
const FETCHED_MIN: u64 = 16 << 20;

/// Kills the service again and again under containers that read and write. Gives also what they did.
fn kill_often(keeper: Keeper, release: Release) -> Result<(Host, String)> {
    let mut host = Host::start(keeper, release, SMALL_CACHE)?;
    host.work_all()?;
    host.registry.traffic().clear();
    let (mut seed, mut gaps) = (7, Vec::new());
    for _ in 0..KILLS {
        thread::sleep(Duration::from_millis(dice(&mut seed, 600)));
        let server = host.wait_server(None)?;
        let began = now()?;
        kill(server, Signal::SIGKILL).context("killing the snapshotter")?;
        host.wait_server(Some(server))?;
        gaps.push((began, now()?));
        host.ensure_at_work()?;
    }
    host.wait_listening()?;
    host.ensure_going_on()?;
    let fetched = host.registry.traffic().bytes(Class::Blob);
    let done = format!(
        "{} reads, {} records and {fetched} fetched bytes during {KILLS} kills, median pause {:?}",
        host.reads()?.len(),
        host.acknowledged()?,
        host.median_pause(&gaps)?
    );
    ensure!(
        fetched >= FETCHED_MIN,
        "only {fetched} bytes were fetched meanwhile"
    );
    let (adopted, created) = host.sessions();
    ensure!(
        created == 1 && adopted > 0,
        "{adopted} adopted, {created} created\n{}",
        host.log()
    );
    Ok((host, done))
}

fn containers_do_not_notice_kills(release: Release) -> Result<String> {
    let (mut host, done) = kill_often(Keeper::Supervisor, release)?;
    host.finish()?;
    host.end()?;
    Ok(done)
}

#[test]
fn privileged_containers_of_containerd_1_do_not_notice_kills() -> Result<()> {
    println!("{}", containers_do_not_notice_kills(Release::One)?);
    Ok(())
}

#[test]
fn privileged_containers_of_containerd_2_do_not_notice_kills() -> Result<()> {
    println!("{}", containers_do_not_notice_kills(Release::Two)?);
    Ok(())
}

#[test]
fn privileged_containers_do_not_notice_kills_under_systemd() -> Result<()> {
    if let Some(printed) = systemd::enter("privileged_containers_do_not_notice_kills_under_systemd")? {
        print!("{printed}");
        return Ok(());
    }
    let (mut host, done) = kill_often(Keeper::Systemd, Release::One)?;
    println!("{done}");
    host.upgrade()?;
    host.ensure_going_on()?;
    let (_, created) = host.sessions();
    ensure!(created == 1, "a session was lost\n{}", host.log());
    host.finish()?;
    host.end()
}

#[test]
fn privileged_containers_do_not_notice_upgrades_nor_restarts_of_containerd_1() -> Result<()> {
    println!(
        "{}",
        containers_do_not_notice_upgrades_nor_restarts(Release::One)?
    );
    Ok(())
}

#[test]
fn privileged_containers_do_not_notice_upgrades_nor_restarts_of_containerd_2() -> Result<()> {
    println!(
        "{}",
        containers_do_not_notice_upgrades_nor_restarts(Release::Two)?
    );
    Ok(())
}

fn containers_do_not_notice_upgrades_nor_restarts(release: Release) -> Result<String> {
    let mut host = Host::start(Keeper::Supervisor, release, SMALL_CACHE)?;
    host.work_all()?;
    let mut gaps = Vec::new();
    for at in 0..UPGRADES {
        // An upgrade needs no registry; reads of bytes that are nowhere else wait until there is one.
        let unreachable = at % 2 == 1;
        host.install()?;
        if unreachable {
            host.registry.vanish();
        }
        let gap = host.upgrade()?;
        if unreachable {
            host.registry.come_back()?;
        } else {
            gaps.push(gap);
        }
        host.containerd
            .as_mut()
            .context("no containerd runs")?
            .restart()?;
        host.ensure_going_on()?;
    }
    let done = format!(
        "{UPGRADES} upgrades, median pause {:?}",
        host.median_pause(&gaps)?
    );
    let sessions = host.sessions();
    ensure!(
        sessions == (UPGRADES, 1),
        "{sessions:?} adopted and created\n{}",
        host.log()
    );
    host.finish()?;
    host.end()?;
    Ok(done)
}

#[test]
fn privileged_containers_start_again_without_the_registry_after_a_reboot() -> Result<()> {
    let mut host = Host::start(Keeper::Supervisor, Release::One, LARGE_CACHE)?;
    host.read_whole()?;
    host.work_all()?;
    host.reboot()?;
    host.registry.vanish();
    host.start_service()?;
    host.containerd.as_mut().context("no containerd runs")?.reboot()?;
    host.wait_connected()?;
    for name in ["reader-1.reads", "reader-2.reads"] {
        fs::remove_file(host.out().join(name))?;
    }
    for id in &host.containers {
        host.ctr(&["tasks", "start", "--detach", id])?;
    }
    process::wait_until("reads", PATIENCE, || {
        host.reads().is_ok_and(|reads| reads.len() > 2)
    })
    .with_context(|| host.log())?;
    host.ensure_going_on()?;
    host.finish()?;
    host.end()
}

#[test]
fn privileged_a_service_that_was_stopped_starts_over_what_it_left() -> Result<()> {
    let mut host = Host::start(Keeper::Supervisor, Release::One, SMALL_CACHE)?;
    host.work_all()?;
    host.finish()?;
    host.work("idle", &["write", "idle"])?;
    host.stop_service()?;
    let left = mountinfo::mounts_under(&host.directory)?;
    ensure!(left.len() == 1, "the tree of a container stays: {left:?}");
    host.start_service()?;
    let mounted = mountinfo::mounts_under(&host.directory)?;
    ensure!(
        mounted.len() == 1,
        "the tree was mounted again in its place: {mounted:?}"
    );
    host.wait_connected()?;
    host.remove_containers()?;
    host.end()
}
