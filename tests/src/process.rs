//! Running commands and ending the daemons that a test started.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How often a condition is looked at again.
const POLL: Duration = Duration::from_millis(20);

/// Runs `command` to its end and gives its standard output.
///
/// # Errors
/// When it cannot be started or ends with an error; the message holds the command line and all that it printed.
pub fn run(command: &mut Command) -> Result<String> {
    let output = output(command)?;
    if !output.status.success() {
        bail!("{}", describe(command, &output));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs `command`, which has to end with an error, and gives all that it printed.
///
/// # Errors
/// When it cannot be started, or succeeds.
pub fn run_refused(command: &mut Command) -> Result<String> {
    let output = output(command)?;
    let text = describe(command, &output);
    if output.status.success() {
        bail!("should have been refused: {text}");
    }
    Ok(text)
}

/// Runs `command` to its end, whatever that is.
///
/// # Errors
/// When it cannot be started.
pub fn output(command: &mut Command) -> Result<Output> {
    command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {command:?}"))
}

/// Command line, exit status and everything printed.
pub fn describe(command: &Command, output: &Output) -> String {
    let mut text = format!("{command:?} ended with {}", output.status);
    for (name, bytes) in [("stdout", &output.stdout), ("stderr", &output.stderr)] {
        let _ = write!(text, "\n--- {name}\n{}", String::from_utf8_lossy(bytes));
    }
    text
}

/// Starts a long-running `command` whose output goes to the file `log`.
///
/// # Errors
/// When the log cannot be written or the command cannot be started.
pub fn spawn_logged(command: &mut Command, log: &Path) -> Result<Child> {
    let file = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    command
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .spawn()
        .with_context(|| format!("cannot start {command:?}"))
}

/// Waits until `condition` holds.
///
/// # Errors
/// After `timeout`; the message says that `what` did not happen.
pub fn wait_until(what: &str, timeout: Duration, mut condition: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + timeout;
    while !condition() {
        if Instant::now() > deadline {
            bail!("{what}: did not happen within {timeout:?}");
        }
        thread::sleep(POLL);
    }
    Ok(())
}

/// Environment variable by which processes are recognised as belonging to a test.
pub const MARK: &str = "SLUICE_TEST_MARK";

/// Processes that were started with [`MARK`] set to `value`, and those that they started.
pub fn marked(value: &OsStr) -> Vec<Pid> {
    let setting = [MARK.as_bytes(), b"=", value.as_bytes()].concat();
    let is_marked = |pid: &i32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment
            .split(|byte| *byte == 0)
            .any(|variable| variable == setting)
    };
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(is_marked).map(Pid::from_raw).collect()
}

/// Sends a signal to a child of ours.
///
/// # Errors
/// When the child is gone.
pub fn signal(child: &Child, signal: Signal) -> Result<()> {
    let pid = Pid::from_raw(i32::try_from(child.id())?);
    kill(pid, signal).with_context(|| format!("cannot send {signal} to process {pid}"))
}

/// Ends a child: SIGTERM, and SIGKILL when it is still there after `patience`.
pub fn end(child: &mut Child, patience: Duration) {
    let asked = signal(child, Signal::SIGTERM).is_ok();
    let ended = asked
        && wait_until("end of the process", patience, || {
            matches!(child.try_wait(), Ok(Some(_)))
        })
        .is_ok();
    if !ended {
        let _ = child.kill();
    }
    let _ = child.wait();
}
