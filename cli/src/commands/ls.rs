//! `sluice ls`.

use std::os::unix::ffi::OsStrExt as _;

use sluice_converter::look::{FileKind, FileStat};
use sluice_converter::{ImageBrowser, Source};
use sluice_format::Limits;

use crate::args::LsArgs;
use crate::{output, wiring};

pub(super) fn run(args: &LsArgs) -> anyhow::Result<()> {
    let entries = wiring::run(work(args))?;
    if args.look.common.json {
        output::json(&entries)
    } else {
        entries.iter().try_for_each(|entry| output::line(describe(entry)))
    }
}

async fn work(args: &LsArgs) -> anyhow::Result<Vec<FileStat>> {
    let registries = wiring::registries(&args.look.common);
    let source = Source::open(&args.look.source, &registries).await?;
    let platform = wiring::platform(args.look.platform.as_deref())?;
    let browser = ImageBrowser::open(&source, &platform, &Limits::default()).await?;
    Ok(browser.list(args.path.as_os_str().as_bytes(), args.recursive)?)
}

/// One line as `ls -l` shows it, with the mtime as seconds after the epoch.
fn describe(entry: &FileStat) -> String {
    let size = match entry.device {
        Some((major, minor)) => format!("{major},{minor}"),
        None => entry.size.to_string(),
    };
    let arrow = match (&entry.link, entry.kind) {
        (Some(link), FileKind::Symlink) => format!(" -> {}", String::from_utf8_lossy(link)),
        _ => String::new(),
    };
    format!(
        "{}{} {:>3} {:>5} {:>5} {size:>12} {:>10}.{:09} {}{arrow}",
        letter(entry.kind),
        permissions(entry.permissions),
        entry.link_count,
        entry.uid,
        entry.gid,
        entry.mtime_secs,
        entry.mtime_nanos,
        String::from_utf8_lossy(&entry.path),
    )
}

fn letter(kind: FileKind) -> char {
    match kind {
        FileKind::Directory => 'd',
        FileKind::Regular => '-',
        FileKind::Symlink => 'l',
        FileKind::CharDevice => 'c',
        FileKind::BlockDevice => 'b',
        FileKind::Fifo => 'p',
        FileKind::Socket => 's',
    }
}

/// "rwxr-xr-x", with s, S, t and T for the special bits.
fn permissions(bits: u16) -> String {
    let triple = |shift: u16, special: bool, (set, unset): (char, char)| {
        let on = |bit: u16, letter| if bits >> shift & bit != 0 { letter } else { '-' };
        let last = match (special, bits >> shift & 1 != 0) {
            (true, true) => set,
            (true, false) => unset,
            (false, true) => 'x',
            (false, false) => '-',
        };
        [on(4, 'r'), on(2, 'w'), last]
    };
    let user = triple(6, bits & 0o4000 != 0, ('s', 'S'));
    let group = triple(3, bits & 0o2000 != 0, ('s', 'S'));
    let other = triple(0, bits & 0o1000 != 0, ('t', 'T'));
    user.into_iter().chain(group).chain(other).collect()
}

#[cfg(test)]
mod tests {
    use super::permissions;

    #[test]
    fn special_bits_show_as_in_ls() {
        assert_eq!(permissions(0o755), "rwxr-xr-x");
        assert_eq!(permissions(0o4711), "rws--x--x");
        assert_eq!(permissions(0o2644), "rw-r-Sr--");
        assert_eq!(permissions(0o1777), "rwxrwxrwt");
    }
}
