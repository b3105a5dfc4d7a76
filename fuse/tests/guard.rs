//! What is left when a server dies, is interrupted or is asked to go: nothing.
//!
//! Servers must be processes of their own to be killed, so this binary is several programs: `serve` mounts an image and waits,
//! `guard` is its guardian, `mount-helper` waits for its mounts, anything else runs the tests. It understands as much of libtest's command line as cargo and
//! nextest use.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

#[expect(dead_code, reason = "the front end tests use the rest")]
mod support;

use std::fs::{self, File, Permissions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use sluice_fuse::erofs_mount::ErofsMount;
use sluice_fuse::{
    Error, Front, Guard, MountHelper, MountedImage, PlainSource, find_mount, mountinfo, request_unmount,
    run_guard, run_mount_helper,
};
use support::sample::noise;
use support::sources::Memory;
use support::{Bench, tree_of_files};

/// How long a guardian may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Length of the file that is read at once.
const FAST: usize = 10_000;

/// Length of the file whose reads never end.
const SLOW: usize = 100_000;

/// Argument that makes this program the mount helper.
const MOUNT_HELPER: &str = "mount-helper";

const TESTS: [(&str, fn()); 10] = [
    (
        "privileged_a_killed_server_leaves_nothing",
        a_killed_server_leaves_nothing,
    ),
    (
        "privileged_a_server_killed_at_any_moment_leaves_nothing",
        a_server_killed_at_any_moment_leaves_nothing,
    ),
    (
        "privileged_ctrl_c_reaches_the_server_only",
        ctrl_c_reaches_the_server_only,
    ),
    (
        "privileged_readers_of_a_killed_server_get_an_error",
        readers_of_a_killed_server_get_an_error,
    ),
    (
        "privileged_a_requested_unmount_ends_the_server",
        a_requested_unmount_ends_the_server,
    ),
    (
        "privileged_a_busy_mount_is_not_unmounted_unless_lazily",
        a_busy_mount_is_not_unmounted_unless_lazily,
    ),
    (
        "privileged_what_an_unguarded_server_left_is_cleaned_up_on_request",
        what_an_unguarded_server_left_is_cleaned_up,
    ),
    (
        "privileged_a_killed_mount_helper_is_started_again",
        a_killed_mount_helper_is_started_again,
    ),
    (
        "privileged_a_mount_helper_tells_why_a_mount_is_refused",
        a_mount_helper_tells_why_a_mount_is_refused,
    ),
    (
        "fuse_users_other_than_root_mount_with_the_helper",
        users_other_than_root_mount_with_the_helper,
    ),
];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("guard") => run_guard().unwrap(),
        Some(MOUNT_HELPER) => run_mount_helper().unwrap(),
        Some("unmount") => {
            let directory = Path::new(&arguments[1]);
            request_unmount(&directory.join("run"), &directory.join("target"), false).unwrap();
        }
        Some("serve") => serve(&arguments[1], &arguments[2], &arguments[3]),
        _ => run_tests(&arguments),
    }
}

fn run_tests(arguments: &[String]) {
    let is_set = |flag: &str| arguments.iter().any(|argument| argument == flag);
    let known = |argument: &&String| TESTS.iter().any(|(name, _)| name == argument);
    let names: Vec<_> = arguments.iter().filter(known).collect();
    let wanted = |name: &str| names.is_empty() || names.iter().any(|wanted| *wanted == name);
    for (name, test) in TESTS.iter().filter(|(name, _)| wanted(name)) {
        match (is_set("--list"), is_set("--ignored")) {
            (true, false) => say(&format!("{name}: test")),
            (false, false) => {
                test();
                say(&format!("{name}: ok"));
            }
            (_, true) => {}
        }
    }
}

fn say(line: &str) {
    let mut stdout = io::stdout();
    writeln!(stdout, "{line}").and_then(|()| stdout.flush()).unwrap();
}

/// The program of a server: mounts, says so, and serves until somebody unmounts.
fn serve(directory: &str, front: &str, guarded: &str) {
    let directory = Path::new(directory);
    let front = if front == "erofs" {
        Front::Erofs
    } else {
        Front::Fuse
    };
    let bench = Bench {
        runtime: support::runtime(),
        scratch: directory,
    };
    let mut guard = (guarded == "guarded").then(|| Guard::spawn(&this_program(), &["guard"]).unwrap());
    let (fast, slow) = (Memory::new(noise(1, FAST)), Memory::new(noise(2, SLOW)));
    slow.delay_ms.store(3_600_000, Ordering::Relaxed);
    let tree = tree_of_files(&[("fast", 1, 0, FAST as u64), ("slow", 2, 0, SLOW as u64)]);
    let sources: Vec<Arc<dyn PlainSource>> = vec![fast, slow];
    let mut request = bench.request(front, &tree, sources);
    request.helper = Some(helper());
    let mut image = MountedImage::mount(request, guard.as_mut(), bench.handle()).unwrap();
    say("mounted");
    bench.runtime.block_on(image.wait_unmounted()).unwrap();
    image.unmount(false).unwrap();
    drop(guard);
    // A read that never ends must not hold the process.
    bench.runtime.shutdown_background();
}

fn helper() -> Arc<MountHelper> {
    Arc::new(MountHelper::spawn(&this_program(), &[MOUNT_HELPER]).unwrap())
}

fn this_program() -> PathBuf {
    std::env::current_exe().unwrap()
}

/// A running server. Dropping it kills it.
struct Server {
    child: Child,
    directory: PathBuf,
}

impl Server {
    fn run(mut command: Command, directory: &Path, front: &str, guarded: &str) -> Self {
        command
            .arg("serve")
            .arg(directory)
            .args([front, guarded])
            .stdout(Stdio::piped());
        // A group of its own, as a shell gives to a job.
        let child = command.process_group(0).spawn().unwrap();
        let directory = directory.to_owned();
        Self { child, directory }
    }

    fn wait_mounted(&mut self) {
        let mut line = String::new();
        BufReader::new(self.child.stdout.as_mut().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "mounted\n");
    }

    fn started(bench: &Bench, front: &str, guarded: &str) -> Self {
        let command = Command::new(this_program());
        let mut server = Self::run(command, bench.scratch.path(), front, guarded);
        server.wait_mounted();
        assert!(fs::read(server.target().join("fast")).unwrap() == noise(1, FAST));
        server
    }

    fn target(&self) -> PathBuf {
        self.directory.join("target")
    }

    fn run_dir(&self) -> PathBuf {
        self.directory.join("run")
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    fn kill(&mut self) {
        kill(self.pid(), Signal::SIGKILL).unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until nothing is mounted and no record is left.
fn assert_soon_clean<P: AsRef<Path>>(bench: &Bench<P>, after: &str) {
    let end = Instant::now() + PATIENCE;
    let is_clean = || {
        mountinfo::topmost_at(&bench.target()).unwrap().is_none()
            && fs::read_dir(bench.path("run")).unwrap().count() == 0
    };
    while !is_clean() {
        assert!(
            Instant::now() < end,
            "{after}: something is left after {PATIENCE:?}"
        );
        thread::sleep(Duration::from_millis(5));
    }
    bench.assert_clean();
}

fn a_killed_server_leaves_nothing() {
    for front in ["erofs", "fuse"] {
        let bench = Bench::new();
        let mut server = Server::started(&bench, front, "guarded");
        assert!(
            find_mount(&server.run_dir(), &server.target())
                .unwrap()
                .unwrap()
                .alive
        );
        server.kill();
        assert_soon_clean(&bench, front);
    }
}

fn a_server_killed_at_any_moment_leaves_nothing() {
    for front in ["erofs", "fuse"] {
        let bench = Bench::new();
        // The whole start takes about 50 ms.
        for step in 0..30_u64 {
            let mut command = Command::new(this_program());
            // A guardian that is still busy must not hold the pipes of this test.
            command.stderr(Stdio::null());
            let mut server = Server::run(command, bench.scratch.path(), front, "guarded");
            thread::sleep(Duration::from_micros(step * 2500));
            server.kill();
            assert_soon_clean(&bench, &format!("{front}, step {step}"));
        }
    }
}

fn ctrl_c_reaches_the_server_only() {
    for front in ["erofs", "fuse"] {
        let bench = Bench::new();
        let mut server = Server::started(&bench, front, "guarded");
        killpg(server.pid(), Signal::SIGINT).unwrap();
        server.child.wait().unwrap();
        assert_soon_clean(&bench, front);
    }
}

fn readers_of_a_killed_server_get_an_error() {
    for front in ["erofs", "fuse"] {
        let bench = Bench::new();
        let mut server = Server::started(&bench, front, "guarded");
        let file = File::open(server.target().join("slow")).unwrap();
        let reader = thread::spawn(move || file.read_exact_at(&mut vec![0; SLOW], 0));
        thread::sleep(Duration::from_millis(200));
        assert!(!reader.is_finished());
        server.kill();
        assert!(reader.join().unwrap().is_err());
        assert_soon_clean(&bench, front);
    }
}

fn a_requested_unmount_ends_the_server() {
    for front in ["erofs", "fuse"] {
        let bench = Bench::new();
        let mut server = Server::started(&bench, front, "guarded");
        request_unmount(&server.run_dir(), &server.target(), false).unwrap();
        bench.assert_clean();
        assert!(server.child.wait().unwrap().success());
        let again = request_unmount(&server.run_dir(), &server.target(), false);
        assert!(matches!(again, Err(Error::NotMounted { .. })), "{again:?}");
    }
}

fn a_busy_mount_is_not_unmounted_unless_lazily() {
    for front in ["erofs", "fuse"] {
        let bench = Bench::new();
        let mut server = Server::started(&bench, front, "guarded");
        let file = File::open(server.target().join("fast")).unwrap();
        let busy = request_unmount(&server.run_dir(), &server.target(), false);
        assert!(matches!(busy, Err(Error::Busy { .. })), "{busy:?}");
        assert!(
            find_mount(&server.run_dir(), &server.target())
                .unwrap()
                .unwrap()
                .alive
        );
        request_unmount(&server.run_dir(), &server.target(), true).unwrap();
        bench.assert_clean();
        drop(file);
        assert!(server.child.wait().unwrap().success());
    }
}

fn what_an_unguarded_server_left_is_cleaned_up() {
    for front in ["erofs", "fuse"] {
        let bench = Bench::new();
        let mut server = Server::started(&bench, front, "alone");
        server.kill();
        let found = find_mount(&server.run_dir(), &server.target()).unwrap().unwrap();
        assert!(!found.alive);
        assert!(mountinfo::topmost_at(&bench.target()).unwrap().is_some());
        request_unmount(&server.run_dir(), &server.target(), false).unwrap();
        bench.assert_clean();
    }
}

/// The processes that this one has started and not waited for.
fn children() -> Vec<Pid> {
    let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
    let lists = tasks.map(|task| fs::read_to_string(task.path().join("children")).unwrap_or_default());
    let numbers: Vec<_> = lists
        .flat_map(|list| list.split_whitespace().map(str::parse).collect::<Vec<_>>())
        .collect();
    numbers
        .into_iter()
        .map(|number| Pid::from_raw(number.unwrap()))
        .collect()
}

fn a_killed_mount_helper_is_started_again() {
    let bench = Bench::new();
    let tree = tree_of_files(&[("fast", 1, 0, FAST as u64)]);
    let mut request = bench.request(Front::Erofs, &tree, vec![Memory::new(noise(1, FAST))]);
    let before = children();
    request.helper = Some(helper());
    for _ in 0..3 {
        let mut image = bench.mount(request.clone());
        assert!(fs::read(image.target().join("fast")).unwrap() == noise(1, FAST));
        image.unmount(false).unwrap();
        let started: Vec<_> = children()
            .into_iter()
            .filter(|pid| !before.contains(pid))
            .collect();
        let [helper] = started[..] else {
            panic!("{started:?}")
        };
        kill(helper, Signal::SIGKILL).unwrap();
        // It has ended when its socket has.
        let ended = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
        waitid(Id::Pid(helper), ended).unwrap();
    }
    drop(request);
    assert_eq!(children(), before);
}

fn a_mount_helper_tells_why_a_mount_is_refused() {
    let bench = Bench::new();
    let tree = tree_of_files(&[("fast", 1, 0, FAST as u64)]);
    let request = bench.request(Front::Erofs, &tree, vec![Memory::new(noise(1, FAST))]);
    let (helper, none) = (helper(), [bench.path("none")]);
    let mount = |helper| ErofsMount::mount(&request.tree_file, &none, &bench.target(), None, helper);
    let (through, here) = (mount(Some(&*helper)).unwrap_err(), mount(None).unwrap_err());
    let (Error::Mount { source, messages, .. }, Error::Mount { source: same, .. }) = (&through, &here) else {
        panic!("{through:?}, {here:?}")
    };
    assert_eq!(source.raw_os_error(), same.raw_os_error());
    assert_eq!(source.kind(), io::ErrorKind::NotFound, "{messages:?}");
    bench.assert_clean();
}

/// `nobody`: the helper wants a user with a name.
const OTHER_USER: u32 = 65_534;

fn as_other_user(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    let user = OTHER_USER.to_string();
    command
        .args(["--reuid", &user, "--regid", &user, "--clear-groups"])
        .arg(program)
        .current_dir("/");
    command
}

/// `/dev/fuse` as udev makes it, open to everybody; put back by drop. Hosts without udev keep it for root.
struct OpenDevice(Permissions);

impl OpenDevice {
    const PATH: &str = "/dev/fuse";

    fn new() -> Self {
        let before = fs::metadata(Self::PATH).unwrap().permissions();
        fs::set_permissions(Self::PATH, Permissions::from_mode(0o666)).unwrap();
        Self(before)
    }
}

impl Drop for OpenDevice {
    fn drop(&mut self) {
        fs::set_permissions(Self::PATH, self.0.clone()).unwrap();
    }
}

fn users_other_than_root_mount_with_the_helper() {
    support::require_root_and_fuse();
    let _device = OpenDevice::new();
    // The user must reach the place and this program, wherever the build directory is.
    let place = tempfile::tempdir().unwrap();
    let place = fs::canonicalize(place.path()).unwrap();
    let program = place.join("program");
    fs::copy(this_program(), &program).unwrap();
    for directory in ["target", "run", ""] {
        let directory = place.join(directory);
        fs::create_dir_all(&directory).unwrap();
        chown(&directory, Some(OTHER_USER), Some(OTHER_USER)).unwrap();
    }
    let theirs = Bench {
        runtime: support::runtime(),
        scratch: place.as_path(),
    };
    for killed in [true, false] {
        let mut server = Server::run(as_other_user(&program), &place, "fuse", "guarded");
        server.wait_mounted();
        let output = as_other_user(Path::new("cat"))
            .arg(server.target().join("fast"))
            .output()
            .unwrap();
        assert!(output.stdout == noise(1, FAST), "{:?}", output.stderr);
        if killed {
            server.kill();
            assert_soon_clean(&theirs, "killed server of another user");
        } else {
            let status = as_other_user(&program)
                .arg("unmount")
                .arg(&place)
                .status()
                .unwrap();
            assert!(status.success());
            theirs.assert_clean();
            assert!(server.child.wait().unwrap().success());
        }
    }
}
