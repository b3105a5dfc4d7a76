//! Promise: however a mount ends, nothing is left: no mount, no process, no file in the run directory; and a reader gets
//! bytes or an error, never a hang.

use std::fs::{self, File, Permissions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::sys::signal::Signal;
use sluice_tests::document::Layout;
use sluice_tests::images::{Entry, ImageBuilder, Layer};
use sluice_tests::mounted::{FRONTS, Mounted, Mounting};
use sluice_tests::registry::{Countdown, CountingRegistry, Fault, FaultSet};
use sluice_tests::scratch::Scratch;
use sluice_tests::{prerequisites, process, sluice};

/// How long an end may take to be complete.
const PATIENCE: Duration = Duration::from_secs(15);

/// How long a reader may wait for a registry that is gone before it gets an error.
const READ_PATIENCE: Duration = Duration::from_secs(120);

const FILES: u64 = 40;
const FILE_LEN: u64 = 1 << 20;

struct Fixture {
    _scratch: Scratch,
    converted: String,
    layout: Layout,
}

fn fixture() -> Result<Fixture> {
    let scratch = Scratch::new("life")?;
    let files = (0..FILES).map(|at| Entry::generated(format!("file-{at:02}"), FILE_LEN, at));
    let image = ImageBuilder::new()
        .layer(Layer::of(files))
        .write(&scratch.join("source"), "life")?;
    let converted = sluice::convert(&image.reference(), &scratch.join("converted"), "life", &[])?;
    Ok(Fixture {
        layout: Layout::open(&scratch.join("converted")),
        converted,
        _scratch: scratch,
    })
}

/// Reads every file of a mount in a thread; the receiver gets how it ended.
fn read_all_files(mounted: &Mounted) -> mpsc::Receiver<std::io::Result<u64>> {
    let directory = mounted.directory.clone();
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let read = |path: PathBuf| fs::read(path).map(|bytes| bytes.len() as u64);
        let paths = (0..FILES).map(|at| directory.join(format!("file-{at:02}")));
        sender.send(paths.map(read).sum())
    });
    receiver
}

#[test]
fn privileged_interrupt_terminate_and_hangup_leave_nothing() -> Result<()> {
    let fixture = fixture()?;
    for front in FRONTS {
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            let mut mounted = Mounting::new(&fixture.converted, front).mount()?;
            fs::read(mounted.directory.join("file-01"))?;
            mounted.signal(signal)?;
            let status = mounted
                .wait_end(PATIENCE)
                .with_context(|| format!("{front} {signal}"))?;
            ensure!(
                status.success(),
                "{front} {signal}: {status} {}",
                mounted.printed()
            );
            mounted
                .assert_nothing_left()
                .with_context(|| format!("{front} {signal}"))?;
        }
    }
    Ok(())
}

#[test]
fn privileged_a_signal_while_mounting_leaves_nothing() -> Result<()> {
    let fixture = fixture()?;
    let slow = FaultSet::none().with(Fault::Latency(Duration::from_millis(40)));
    let registry = CountingRegistry::serve_with(&fixture.layout, slow)?;
    for front in FRONTS {
        for moment in (0..200).step_by(15) {
            let mut mounted = Mounting::new(&registry.reference("life"), front).start()?;
            thread::sleep(Duration::from_millis(moment));
            mounted.signal(Signal::SIGTERM)?;
            mounted
                .wait_end(PATIENCE)
                .with_context(|| format!("{front} after {moment} ms"))?;
            mounted
                .wait_nothing_left(PATIENCE)
                .with_context(|| format!("{front} after {moment} ms"))?;
        }
    }
    Ok(())
}

#[test]
fn privileged_kill_9_at_any_moment_leaves_nothing() -> Result<()> {
    let fixture = fixture()?;
    let slow = FaultSet::none().with(Fault::Latency(Duration::from_millis(30)));
    let registry = CountingRegistry::serve_with(&fixture.layout, slow)?;
    for front in FRONTS {
        // 14 moments for each: from before the first request, through resolving and mounting, into reading.
        for moment in (0..420).step_by(30) {
            let mut mounted = Mounting::new(&registry.reference("life"), front).start()?;
            thread::sleep(Duration::from_millis(moment));
            let reader = mounted.is_mounted()?.then(|| read_all_files(&mounted));
            thread::sleep(Duration::from_millis(moment % 7));
            mounted.signal(Signal::SIGKILL)?;
            mounted.wait_end(PATIENCE)?;
            mounted
                .wait_nothing_left(PATIENCE)
                .with_context(|| format!("{front} after {moment} ms"))?;
            if let Some(reader) = reader {
                // Bytes or an error; which of them depends on the moment.
                let _ = reader
                    .recv_timeout(PATIENCE)
                    .context("a reader hangs after kill -9")?;
            }
        }
    }
    Ok(())
}

#[test]
fn privileged_umount_by_anybody_ends_the_process() -> Result<()> {
    let fixture = fixture()?;
    let umount = prerequisites::command("umount", "mount")?;
    for front in FRONTS {
        let mut mounted = Mounting::new(&fixture.converted, front).mount()?;
        process::run(Command::new(&umount).arg(&mounted.directory))?;
        let status = mounted.wait_end(PATIENCE).with_context(|| front.to_owned())?;
        ensure!(status.success(), "{front}: {status} {}", mounted.printed());
        mounted.assert_nothing_left()?;
    }
    Ok(())
}

/// Runs `sluice umount`.
fn umount(mounted: &Mounted) -> Result<()> {
    let mut command = sluice::command(["umount"])?;
    let directory = command.arg(&mounted.directory);
    process::run(directory.arg("--run-dir").arg(&mounted.run_directory)).map(drop)
}

#[test]
fn privileged_sluice_umount_returns_when_everything_is_gone() -> Result<()> {
    let fixture = fixture()?;
    for front in FRONTS {
        let mut mounted = Mounting::new(&fixture.converted, front).mount()?;
        umount(&mounted)?;
        ensure!(!mounted.is_mounted()?, "{front}: still mounted");
        let status = mounted.wait_end(PATIENCE)?;
        ensure!(status.success(), "{front}: {status} {}", mounted.printed());
        mounted.assert_nothing_left()?;
    }
    Ok(())
}

#[test]
fn privileged_a_detached_mount_stays_when_its_command_has_ended() -> Result<()> {
    let fixture = fixture()?;
    for front in FRONTS {
        let kept = Scratch::new("log")?;
        let log = kept.join("mount.log");
        let mounting = Mounting::new(&fixture.converted, front).option("--detach");
        let mounting = mounting.option("--log-file").option(&log.to_string_lossy());
        let mut mounted = mounting.mount()?;
        let status = mounted.wait_end(PATIENCE)?;
        // Comes back only when nobody holds the command's standard error any more.
        let printed = mounted.printed();
        ensure!(status.success(), "{front}: {status} {printed}");
        let read = fs::read(mounted.directory.join("file-01"))?;
        ensure!(read.len() as u64 == FILE_LEN, "{front}: {}", read.len());
        umount(&mounted)?;
        mounted.wait_nothing_left(PATIENCE)?;
        let said = fs::read_to_string(&log)?;
        ensure!(said.contains("unmounted"), "{front}: the log says {said:?}");
    }
    Ok(())
}

#[test]
fn privileged_a_detached_mount_ends_with_its_command_until_it_is_ready() -> Result<()> {
    let fixture = fixture()?;
    let slow = FaultSet::none().with(Fault::Latency(Duration::from_millis(30)));
    let registry = CountingRegistry::serve_with(&fixture.layout, slow)?;
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        for moment in (0..420).step_by(35) {
            let mounting = Mounting::new(&registry.reference("life"), "erofs").option("--detach");
            let mut mounted = mounting.start()?;
            thread::sleep(Duration::from_millis(moment));
            // It may have ended well by then.
            let _ = mounted.signal(signal);
            mounted.wait_end(PATIENCE)?;
            if mounted.wait_ready().is_ok() {
                umount(&mounted)?;
            }
            mounted
                .wait_nothing_left(PATIENCE)
                .with_context(|| format!("{signal} after {moment} ms"))?;
        }
    }
    Ok(())
}

#[test]
fn privileged_sluice_umount_says_when_nothing_is_mounted() -> Result<()> {
    let scratch = Scratch::new("nothing")?;
    let directory = scratch.directory("empty")?.display().to_string();
    let run = scratch.directory("run")?.display().to_string();
    let text = sluice::refused(["umount", directory.as_str(), "--run-dir", run.as_str()])?;
    ensure!(
        text.contains(&directory),
        "the message does not name the directory: {text}"
    );
    Ok(())
}

#[test]
fn privileged_a_busy_mount_is_refused_and_stays_whole() -> Result<()> {
    let fixture = fixture()?;
    for front in FRONTS {
        let mounted = Mounting::new(&fixture.converted, front).mount()?;
        let mut open = File::open(mounted.directory.join("file-05"))?;
        let mut command = sluice::command(["umount"])?;
        command
            .arg(&mounted.directory)
            .arg("--run-dir")
            .arg(&mounted.run_directory);
        let text = process::run_refused(&mut command)?;
        ensure!(
            text.contains("in use") || text.contains("busy"),
            "{front}: {text}"
        );
        let mut bytes = Vec::new();
        open.read_to_end(&mut bytes)?;
        assert_eq!(bytes.len() as u64, FILE_LEN, "{front}");
        drop(open);
        mounted.unmount()?;
    }
    Ok(())
}

#[test]
fn privileged_a_registry_that_is_gone_gives_errors_and_what_was_read_stays() -> Result<()> {
    let fixture = fixture()?;
    for front in FRONTS {
        let registry = CountingRegistry::serve(&fixture.layout)?;
        let mounted = Mounting::new(&registry.reference("life"), front)
            .option("--read-deadline=3")
            .mount()?;
        let before = fs::read(mounted.directory.join("file-03"))?;
        drop(registry);
        let reader = read_all_files(&mounted);
        assert_eq!(fs::read(mounted.directory.join("file-03"))?, before, "{front}");
        let outcome = reader
            .recv_timeout(READ_PATIENCE)
            .with_context(|| format!("{front}: a reader hangs"))?;
        let error = outcome
            .err()
            .with_context(|| format!("{front}: bytes from nowhere"))?;
        // The kernel makes EIO of everything under EROFS; FUSE says that the registry did not answer.
        let errno = error.raw_os_error().map(Errno::from_raw);
        ensure!(
            matches!(errno, Some(Errno::EIO | Errno::ETIMEDOUT)),
            "{front}: {error}"
        );
        assert_eq!(fs::read(mounted.directory.join("file-03"))?, before, "{front}");
        mounted.unmount()?;
    }
    Ok(())
}

#[test]
fn privileged_a_registry_that_stumbles_is_not_noticed() -> Result<()> {
    let fixture = fixture()?;
    let registry = CountingRegistry::serve(&fixture.layout)?;
    type Stumble = (&'static str, fn() -> Fault);
    let stumbles: [Stumble; 4] = [
        ("503", || status(503)),
        ("500", || status(500)),
        ("429", || status(429)),
        ("cut", || Fault::CutAfter {
            bytes: 5000,
            times: Countdown::times(2),
        }),
    ];
    for front in FRONTS {
        for (at, (name, fault)) in stumbles.iter().enumerate() {
            registry.set_faults(FaultSet::none());
            let mounted = Mounting::new(&registry.reference("life"), front).mount()?;
            registry.set_faults(FaultSet::none().with(fault()));
            let bytes = fs::read(mounted.directory.join(format!("file-{:02}", at + 5)));
            assert_eq!(
                bytes.with_context(|| format!("{front} {name}"))?.len() as u64,
                FILE_LEN
            );
            mounted.unmount()?;
        }
    }
    Ok(())
}

fn status(code: u16) -> Fault {
    Fault::Status {
        class: sluice_tests::registry::Class::Blob,
        code,
        times: Countdown::times(2),
    }
}

#[test]
fn privileged_a_mount_that_cannot_be_says_why_and_leaves_nothing() -> Result<()> {
    let fixture = fixture()?;
    for front in FRONTS {
        let mounting = Mounting::new("oci:/nowhere/at/all:tag", front);
        for mounting in [mounting.clone(), mounting.option("--detach")] {
            let mut mounted = mounting.start()?;
            let error = mounted
                .wait_ready()
                .err()
                .context("mounted an image that does not exist")?;
            ensure!(
                format!("{error:#}").contains("/nowhere/at/all"),
                "{front}: {error:#}"
            );
            mounted.assert_nothing_left()?;
        }

        let mut missing =
            sluice::command(["mount", &fixture.converted, "/nowhere/at/all", "--front", front])?;
        let text = process::run_refused(&mut missing)?;
        ensure!(text.contains("/nowhere/at/all"), "{front}: {text}");
    }
    Ok(())
}

#[test]
fn privileged_two_mounts_of_one_image_share_a_cache_and_end_apart() -> Result<()> {
    let fixture = fixture()?;
    let cache = Scratch::new("shared-cache")?;
    for front in FRONTS {
        let first = Mounting::new(&fixture.converted, front).cache(&cache).mount()?;
        let second = Mounting::new(&fixture.converted, front).cache(&cache).mount()?;
        let bytes = fs::read(first.directory.join("file-07"))?;
        first.unmount()?;
        assert_eq!(fs::read(second.directory.join("file-07"))?, bytes, "{front}");
        assert_eq!(
            fs::read(second.directory.join("file-08"))?.len() as u64,
            FILE_LEN,
            "{front}"
        );
        second.unmount()?;
    }
    Ok(())
}

#[test]
fn privileged_nobody_can_write() -> Result<()> {
    let fixture = fixture()?;
    for front in FRONTS {
        let mounted = Mounting::new(&fixture.converted, front).mount()?;
        let denied = [
            fs::write(mounted.directory.join("new"), b"x"),
            fs::write(mounted.directory.join("file-01"), b"x"),
            fs::remove_file(mounted.directory.join("file-01")),
            fs::create_dir(mounted.directory.join("directory")),
        ];
        for outcome in denied {
            let kind = outcome.err().map(|error| error.kind());
            assert_eq!(kind, Some(ErrorKind::ReadOnlyFilesystem), "{front}");
        }
        mounted.unmount()?;
    }
    Ok(())
}

/// Mounts, reads and unmounts as user 1000, in a mount namespace where `/dev/fuse` has the permissions that udev gives it.
const AS_A_USER: &str = r#"
set -eu
cd "$1"
mknod fuse c 10 229 && chmod 666 fuse && mount --bind fuse /dev/fuse
user() { setpriv --reuid 1000 --regid 1000 --clear-groups "$@"; }
user mkdir root cache run
user ./sluice mount "$2" "$PWD/root" --cache "$PWD/cache" --run-dir "$PWD/run" --json >ready 2>&1 &
for _ in $(seq 200); do grep -q '"ready"' ready && break; sleep 0.05; done
cat ready
user cmp "$3" root/file-02
user ./sluice umount "$PWD/root" --run-dir "$PWD/run"
wait $!
if grep "$PWD/root" /proc/self/mounts; then exit 1; fi
[ -z "$(ls run)" ]
"#;

#[test]
fn privileged_fuse_serves_a_user_who_is_not_root() -> Result<()> {
    prerequisites::root()?;
    prerequisites::fuse()?;
    prerequisites::command("fusermount3", "fuse3")?;
    let unshare = prerequisites::command("unshare", "util-linux")?;
    let fixture = fixture()?;
    // The build may lie where only its owner looks; this user needs a place with open parents.
    let open = tempfile::Builder::new()
        .prefix("sluice-user-")
        .permissions(Permissions::from_mode(0o755))
        .tempdir()?;
    chown(open.path(), Some(1000), Some(1000))?;
    fs::copy(sluice::binary()?, open.path().join("sluice"))?;
    process::run(
        Command::new("cp")
            .arg("-r")
            .arg(&fixture.layout.directory)
            .arg(open.path().join("layout")),
    )?;
    let reference = format!("oci:{}:life", open.path().join("layout").display());
    let expected = open.path().join("expected");
    let mounted = Mounting::new(&fixture.converted, "fuse").mount()?;
    fs::copy(mounted.directory.join("file-02"), &expected)?;
    mounted.unmount()?;
    let mut script = Command::new(unshare);
    script.args([
        "--mount",
        "--propagation",
        "private",
        "bash",
        "-c",
        AS_A_USER,
        "as-a-user",
    ]);
    process::run(script.arg(open.path()).arg(reference).arg(expected)).map(|_| ())
}
