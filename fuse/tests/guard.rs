//! What is left when a server dies, is interrupted or is asked to go: nothing.
//!
//! Servers must be processes of their own to be killed, so this binary is three programs: `serve` mounts an image and waits,
//! `guard` is its guardian, anything else runs the tests. It understands as much of libtest's command line as cargo and
//! nextest use.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

#[expect(dead_code, reason = "the front end tests use the rest")]
mod support;

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use sluice_fuse::{
    Error, Front, Guard, MountedImage, PlainSource, find_mount, mountinfo, request_unmount, run_guard,
};
use support::Bench;
use support::sample::{Sample, noise};

/// How long a guardian may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Length of the file whose reads never end.
const SLOW: usize = 100_000;

const TESTS: [(&str, fn()); 7] = [
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
];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("guard") => run_guard().unwrap(),
        Some("serve") => serve(&arguments[1], &arguments[2], &arguments[3]),
        _ => run_tests(&arguments),
    }
}

fn run_tests(arguments: &[String]) {
    let is_set = |flag: &str| arguments.iter().any(|argument| argument == flag);
    let names: Vec<_> = arguments
        .iter()
        .filter(|argument| argument.starts_with("privileged_"))
        .collect();
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
    let sample = small_sample(&directory.join(format!("reference-{}", std::process::id())));
    let [fast, slow] = sample.finish();
    slow.delay_ms.store(3_600_000, Ordering::Relaxed);
    let sources: Vec<Arc<dyn PlainSource>> = vec![fast, slow];
    let request = bench.request(front, &sample.tree, sources);
    let mut image = MountedImage::mount(request, guard.as_mut(), bench.handle()).unwrap();
    say("mounted");
    bench.runtime.block_on(image.wait_unmounted()).unwrap();
    image.unmount(false).unwrap();
    drop(guard);
    // A read that never ends must not hold the process.
    bench.runtime.shutdown_background();
}

fn this_program() -> PathBuf {
    std::env::current_exe().unwrap()
}

/// Names of even length lie in the fast layer, others in the slow one.
fn small_sample(reference: &Path) -> Sample {
    let mut sample = Sample::new(reference.to_owned());
    sample.simple_file("fast", noise(1, 10_000));
    sample.simple_file("slowy", noise(2, SLOW));
    sample
}

/// A running server. Dropping it kills it.
struct Server {
    child: Child,
    directory: PathBuf,
}

impl Server {
    fn start(bench: &Bench, front: &str, guarded: &str) -> Self {
        let directory = bench.scratch.path().to_owned();
        let mut command = Command::new(this_program());
        command
            .arg("serve")
            .arg(&directory)
            .args([front, guarded])
            .stdout(Stdio::piped());
        // A group of its own, as a shell gives to a job.
        let child = command.process_group(0).spawn().unwrap();
        Self { child, directory }
    }

    fn started(bench: &Bench, front: &str, guarded: &str) -> Self {
        let mut server = Self::start(bench, front, guarded);
        let mut line = String::new();
        BufReader::new(server.child.stdout.as_mut().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "mounted\n");
        assert!(fs::read(server.target().join("fast")).unwrap() == noise(1, 10_000));
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
fn assert_soon_clean(bench: &Bench, after: &str) {
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
            let mut server = Server::start(&bench, front, "guarded");
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
        let file = File::open(server.target().join("slowy")).unwrap();
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
