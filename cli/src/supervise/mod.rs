//! A service manager for one process, for hosts without systemd.
//!
//! It starts a command, starts it again when it dies, and keeps the descriptors that the command hands over meanwhile, with
//! the protocol of sd_notify(3) and sd_listen_fds(3). One thread waits for three things: signals, messages, and the end of
//! the child. Nothing here knows what the descriptors are.
//!
//! | state of the child | signal or event | what follows |
//! |---|---|---|
//! | running | SIGTERM, SIGINT | it gets SIGTERM; when it has ended, so does the supervisor |
//! | running | SIGHUP, SIGUSR2 | it gets SIGTERM; when it has ended, it is started again from the file of that name |
//! | running | ends with status 0 | the supervisor ends |
//! | running | dies | it is started again: at once after it was ready, else after a growing pause |
//! | running | no sign of life for the watchdog's time | it gets SIGABRT |
//! | told to end | does not end within the stop timeout | it gets SIGKILL |
//! | pause | SIGTERM, SIGINT | the supervisor ends |
//! | pause | SIGHUP, SIGUSR2, end of the pause | it is started |
//!
//! When the supervisor itself is killed, the child goes on with its own descriptors, but nobody restarts it.

mod child;
mod notification;
mod socket;
mod store;

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

pub(crate) use self::child::become_command;
use self::child::{Child, Start};
use self::socket::{Message, NotifySocket};
use self::store::Store;

/// Signals that the supervisor acts on.
const SIGNALS: [Signal; 4] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGUSR2];

/// First pause before a child is started again that died before it was ready; it doubles with every such death.
const PAUSE_FIRST: Duration = Duration::from_millis(100);

/// Longest pause.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// A child that lived this long counts as one that was ready, whether it said so or not.
const STEADY: Duration = Duration::from_secs(1);

/// What is to be supervised, and how.
#[derive(Debug)]
pub(crate) struct Options {
    /// The command and its arguments.
    pub(crate) command: Vec<OsString>,
    /// Longest time between two signs of life; `None` asks for none.
    pub(crate) watchdog: Option<Duration>,
    /// How long a child may take to end.
    pub(crate) stop_timeout: Duration,
}

/// What happens when the child ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Keep,
    Restart,
    Stop,
}

struct Supervisor {
    options: Options,
    signals: SignalFd,
    socket: NotifySocket,
    store: Store,
    child: Option<Child>,
    wish: Wish,
    /// When the child is killed that was told to end.
    kill_at: Option<Instant>,
    /// When a child is started again, while there is none.
    start_at: Option<Instant>,
    failures: u32,
}

/// Supervises until the command is to run no more; gives how it ended, or `None` when it was not running.
pub(crate) fn run(options: Options, run_dir: &Path) -> anyhow::Result<Option<ExitStatus>> {
    let store = Store::new()?;
    let mut set = SigSet::empty();
    for signal in SIGNALS {
        set.add(signal);
    }
    set.thread_block().context("blocking signals")?;
    let signals = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .context("asking for signals")?;
    let mut supervisor = Supervisor {
        options,
        signals,
        socket: NotifySocket::bind(run_dir)?,
        store,
        child: None,
        wish: Wish::Keep,
        kill_at: None,
        start_at: None,
        failures: 0,
    };
    supervisor.start()?;
    loop {
        supervisor.wait()?;
        if let Some(end) = supervisor.step()? {
            return Ok(end);
        }
    }
}

impl Supervisor {
    fn start(&mut self) -> anyhow::Result<()> {
        self.start_at = None;
        let start = Start {
            command: &self.options.command,
            notify_socket: self.socket.path(),
            watchdog: self.options.watchdog,
        };
        self.child = Some(Child::start(&start, &self.store)?);
        Ok(())
    }

    /// Sleeps until something happens or a time is reached.
    fn wait(&self) -> anyhow::Result<()> {
        let mut sources = vec![
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.socket.as_fd(), PollFlags::POLLIN),
        ];
        if let Some(child) = &self.child {
            sources.push(PollFd::new(child.as_fd(), PollFlags::POLLIN));
        }
        let timeout = self.next_time().map_or(PollTimeout::NONE, |at| {
            // Rounded up, so that the time has come when the sleep ends.
            let left = at.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut sources, timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno).context("waiting for the child"),
        }
    }

    fn next_time(&self) -> Option<Instant> {
        let watchdog = self.watchdog_at().filter(|_| self.kill_at.is_none());
        [self.kill_at, self.start_at, watchdog]
            .into_iter()
            .flatten()
            .min()
    }

    fn watchdog_at(&self) -> Option<Instant> {
        let child = self.child.as_ref()?;
        Some(child.last_sign + self.options.watchdog?)
    }

    /// Handles everything that has happened. Gives the end, when this is it.
    fn step(&mut self) -> anyhow::Result<Option<Option<ExitStatus>>> {
        while let Some(signal) = self.signals.read_signal().context("reading signals")? {
            let number = i32::try_from(signal.ssi_signo).unwrap_or_default();
            if let Ok(signal) = Signal::try_from(number) {
                self.on_signal(signal);
            }
        }
        // Before the end of the child: what it said last still counts.
        let ended = match &mut self.child {
            Some(child) => child.try_wait()?,
            None => None,
        };
        self.take_messages()?;
        if let Some(status) = ended
            && self.on_end(status)
        {
            return Ok(Some(Some(status)));
        }
        if self.child.is_none() && self.wish == Wish::Stop {
            return Ok(Some(None));
        }
        self.on_time()?;
        Ok(None)
    }

    fn on_signal(&mut self, signal: Signal) {
        self.wish = match signal {
            Signal::SIGHUP | Signal::SIGUSR2 if self.wish != Wish::Stop => Wish::Restart,
            Signal::SIGHUP | Signal::SIGUSR2 => return,
            _ => Wish::Stop,
        };
        tracing::info!(%signal, wish = ?self.wish, "got a signal");
        match &self.child {
            Some(child) => {
                child.signal(Signal::SIGTERM);
                self.kill_at
                    .get_or_insert(Instant::now() + self.options.stop_timeout);
            }
            None => self.start_at = Some(Instant::now()),
        }
    }

    fn take_messages(&mut self) -> anyhow::Result<()> {
        while let Some(Message {
            sender,
            notification,
            descriptors,
        }) = self.socket.receive()?
        {
            let Some(child) = self.child.as_mut().filter(|child| child.pid() == sender) else {
                tracing::warn!(
                    sender,
                    "a message from a process that is not the child is ignored"
                );
                continue;
            };
            child.ready |= notification.ready;
            if notification.alive {
                child.last_sign = Instant::now();
            }
            if notification.remove {
                self.store.remove(&notification.name);
            }
            if notification.store {
                self.store.put(&notification.name, descriptors);
            }
        }
        Ok(())
    }

    /// Whether the supervisor's work is done.
    fn on_end(&mut self, status: ExitStatus) -> bool {
        let Some(child) = self.child.take() else {
            return false;
        };
        self.kill_at = None;
        let wish = std::mem::replace(&mut self.wish, Wish::Keep);
        if wish == Wish::Stop || (wish == Wish::Keep && status.success()) {
            return true;
        }
        let good = child.ready || child.started.elapsed() >= STEADY;
        self.failures = if good || wish == Wish::Restart {
            0
        } else {
            self.failures.saturating_add(1)
        };
        let pause = pause(self.failures);
        tracing::warn!(%status, pause_ms = pause.as_millis(), "the command ended; it is started again");
        self.start_at = Some(Instant::now() + pause);
        false
    }

    fn on_time(&mut self) -> anyhow::Result<()> {
        let now = Instant::now();
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if due(self.start_at) {
            self.wish = Wish::Keep;
            self.start()?;
        }
        let Some(child) = &self.child else { return Ok(()) };
        if due(self.kill_at) {
            tracing::warn!("the command does not end; it is killed");
            child.signal(Signal::SIGKILL);
            self.kill_at = Some(now + self.options.stop_timeout);
        } else if self.kill_at.is_none() && due(self.watchdog_at()) {
            tracing::warn!("the command gives no sign of life; it is aborted");
            child.signal(Signal::SIGABRT);
            self.kill_at = Some(now + self.options.stop_timeout);
        }
        Ok(())
    }
}

/// How long to wait before the next start after so many failures in a row.
fn pause(failures: u32) -> Duration {
    match failures.checked_sub(1) {
        None => Duration::ZERO,
        Some(doublings) => PAUSE_FIRST
            .saturating_mul(1_u32.checked_shl(doublings).unwrap_or(u32::MAX))
            .min(PAUSE_MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound() {
        assert_eq!(pause(0), Duration::ZERO);
        assert_eq!(pause(1), PAUSE_FIRST);
        assert_eq!(pause(3), 4 * PAUSE_FIRST);
        assert_eq!(pause(20), PAUSE_MAX);
        assert_eq!(pause(u32::MAX), PAUSE_MAX);
    }
}
