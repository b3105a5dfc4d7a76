//! Promise: after `sluice install`, containerd 1.6 and 2.x know the snapshotter with every setting that lazy pulls need; other
//! settings stay; and `--uninstall` takes back what was written and nothing else.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use sluice_tests::containerd::{Containerd, Release};
use sluice_tests::scratch::Scratch;
use sluice_tests::{process, sluice};

const BOTH: [Release; 2] = [Release::One, Release::Two];

/// Configurations as they are found on hosts.
const FOUND: [&str; 4] = [
    // Debian's.
    "version = 2\n\n[plugins]\n  [plugins.\"io.containerd.grpc.v1.cri\"]\n    [plugins.\"io.containerd.grpc.v1.cri\".cni]\n      \
     bin_dir = \"/usr/lib/cni\" # Debian's place\n      conf_dir = \"/etc/cni/net.d\"\n",
    "version = 2\nimports = [\"@/conf.d/*.toml\"]\n",
    "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd]\nsnapshotter = \"native\"\n\
     [proxy_plugins.other]\ntype = \"snapshot\"\naddress = \"/run/other.sock\"\n",
    "",
];

struct Etc {
    scratch: Scratch,
    release: Release,
}

impl Etc {
    /// A directory with this configuration of containerd.
    fn new(release: Release, config: &str) -> Result<Self> {
        let scratch = Scratch::new("install")?;
        scratch.directory("conf.d")?;
        let config = config.replace('@', &scratch.display().to_string());
        fs::write(scratch.join("config.toml"), config)?;
        Ok(Self { scratch, release })
    }

    fn config(&self) -> PathBuf {
        self.scratch.join("config.toml")
    }

    fn install(&self, options: &[&str]) -> Result<String> {
        install(&self.config(), &self.scratch, self.release, options)
    }

    /// What containerd makes of the configuration, without indentation and in one kind of quotes.
    fn dump(&self) -> Result<String> {
        let mut command = Command::new(self.release.program()?);
        let text = process::run(
            command
                .arg("--config")
                .arg(self.config())
                .args(["config", "dump"]),
        )?;
        let lines = text.lines().map(|line| line.trim().replace('\'', "\""));
        Ok(lines.collect::<Vec<_>>().join("\n"))
    }

    /// Every file and its text.
    fn files(&self) -> Result<Vec<(PathBuf, String)>> {
        let mut files = Vec::new();
        for directory in [self.scratch.to_path_buf(), self.scratch.join("conf.d")] {
            for entry in fs::read_dir(directory)? {
                let path = entry?.path();
                if path.is_file() {
                    files.push((path.clone(), fs::read_to_string(path)?));
                }
            }
        }
        files.sort();
        Ok(files)
    }
}

fn install(config: &Path, unit_dir: &Path, release: Release, options: &[&str]) -> Result<String> {
    let mut command = sluice::command(["install", "--containerd-config"])?;
    command.arg(config).arg("--unit-dir").arg(unit_dir);
    command.arg("--containerd").arg(release.program()?).args(options);
    process::run(&mut command)
}

/// The lines of a table in a dump, without those of tables in it.
fn table<'a>(dump: &'a str, name: &str) -> Vec<&'a str> {
    let header = format!("[{name}]");
    let lines = dump.lines().skip_while(|line| *line != header).skip(1);
    lines.take_while(|line| !line.starts_with('[')).collect()
}

fn assert_known(dump: &str, release: Release) -> Result<()> {
    let proxy = table(dump, "proxy_plugins.sluice");
    for line in [
        "type = \"snapshot\"",
        "address = \"/run/sluice/snapshotter.sock\"",
    ] {
        ensure!(proxy.contains(&line), "{line} is missing: {dump}");
    }
    let cri = match release {
        Release::One => table(dump, "plugins.\"io.containerd.grpc.v1.cri\".containerd"),
        Release::Two => table(dump, "plugins.\"io.containerd.cri.v1.images\""),
    };
    for line in ["snapshotter = \"sluice\"", "disable_snapshot_annotations = false"] {
        ensure!(cri.contains(&line), "{line} is missing: {dump}");
    }
    if release == Release::Two {
        let exports = table(dump, "proxy_plugins.sluice.exports");
        for line in [
            "enable_remote_snapshot_annotations = \"true\"",
            "root = \"/var/cache/sluice\"",
        ] {
            ensure!(exports.contains(&line), "{line} is missing: {dump}");
        }
        let list = "[[plugins.\"io.containerd.transfer.v1.local\".unpack_config]]";
        let entries: Vec<_> = dump.split(list).skip(1).collect();
        ensure!(entries.len() == 2, "{dump}");
        ensure!(entries[0].contains("snapshotter = \"overlayfs\""), "{dump}");
        ensure!(entries[1].contains("snapshotter = \"sluice\""), "{dump}");
    }
    Ok(())
}

#[test]
fn containerd_reads_what_was_installed_and_nothing_else_has_changed() -> Result<()> {
    for release in BOTH {
        for found in FOUND {
            let etc = Etc::new(release, found)?;
            etc.install(&["--cri"])?;
            let dump = etc.dump()?;
            assert_known(&dump, release).with_context(|| format!("{release:?}, {found}"))?;
            for kept in ["/usr/lib/cni", "/run/other.sock", "Debian's place"] {
                let text = fs::read_to_string(etc.config())?;
                ensure!(!found.contains(kept) || text.contains(kept), "{kept} is gone");
            }
        }
    }
    Ok(())
}

#[test]
fn installing_again_changes_nothing_and_uninstalling_restores_everything() -> Result<()> {
    for release in BOTH {
        for found in FOUND {
            let etc = Etc::new(release, found)?;
            let before = etc.files()?;
            etc.install(&["--cri"])?;
            let installed = etc.files()?;
            assert_ne!(installed, before);
            let said = etc.install(&["--cri"])?;
            ensure!(
                said.contains("stays as it is") && !said.contains("wrote"),
                "{said}"
            );
            assert_eq!(etc.files()?, installed);
            etc.install(&["--uninstall"])?;
            assert_eq!(etc.files()?, before, "{release:?}, {found}");
        }
    }
    Ok(())
}

#[test]
fn a_host_without_configuration_gets_one_and_loses_it_again() -> Result<()> {
    for release in BOTH {
        let etc = Etc::new(release, "")?;
        fs::remove_file(etc.config())?;
        etc.install(&["--cri"])?;
        assert_known(&etc.dump()?, release)?;
        etc.install(&["--uninstall"])?;
        assert_eq!(etc.files()?, []);
    }
    Ok(())
}

#[test]
fn what_others_wrote_is_kept_beside_and_their_later_changes_stay() -> Result<()> {
    let etc = Etc::new(Release::Two, FOUND[1])?;
    let unit = etc.scratch.join("sluice-snapshotter.service");
    let (drop_in, mine) = (etc.scratch.join("conf.d/sluice.toml"), "# mine\nversion = 3\n");
    fs::write(&unit, "# mine\n")?;
    fs::write(&drop_in, mine)?;
    let said = etc.install(&[])?;
    ensure!(said.contains("sluice.toml.sluice-backup"), "{said}");
    assert_eq!(
        fs::read_to_string(drop_in.with_file_name("sluice.toml.sluice-backup"))?,
        mine
    );
    let text = fs::read_to_string(etc.config())?;
    fs::write(etc.config(), format!("{text}[debug]\nlevel = \"warn\"\n"))?;
    etc.install(&["--uninstall"])?;
    assert_eq!(fs::read_to_string(&unit)?, "# mine\n");
    assert_eq!(fs::read_to_string(&drop_in)?, mine);
    ensure!(fs::read_to_string(etc.config())?.ends_with("level = \"warn\"\n"));
    // Nothing of ours is there any more, so nothing is taken away.
    etc.install(&["--uninstall"])?;
    assert_eq!(fs::read_to_string(&unit)?, "# mine\n");
    Ok(())
}

#[test]
fn printing_changes_nothing_and_bad_files_are_named() -> Result<()> {
    let etc = Etc::new(Release::Two, FOUND[0])?;
    let before = etc.files()?;
    let printed = etc.install(&["--print"])?;
    ensure!(
        printed.contains("[proxy_plugins.sluice]") && printed.contains("ExecStart="),
        "{printed}"
    );
    assert_eq!(etc.files()?, before);
    for (text, expected) in [
        ("version = \n", "config.toml is not valid TOML"),
        ("disabled_plugins = [\"cri\"]\n", "config migrate"),
        ("version = 2\nproxy_plugins = 3\n", "proxy_plugins is not a table"),
    ] {
        fs::write(etc.config(), text)?;
        let config = etc.config();
        let config = config.to_str().context("the path is not UTF-8")?;
        let said = sluice::refused([
            "install",
            "--containerd-version",
            "2.1.0",
            "--no-unit",
            "--containerd-config",
            config,
        ])?;
        ensure!(said.contains(expected), "{said}");
        assert_eq!(fs::read_to_string(config)?, text);
    }
    Ok(())
}

#[test]
fn privileged_containerd_starts_with_what_was_installed() -> Result<()> {
    for release in BOTH {
        let units = Scratch::new("units")?;
        let containerd = Containerd::start_changed(release, |config| {
            install(config, &units, release, &["--cri"]).map(|_| ())
        })?;
        let plugins = process::run(&mut containerd.ctr(["plugins", "ls"]))?;
        let state = |id: &str| {
            let mut lines = plugins.lines().map(str::split_ascii_whitespace);
            lines.find_map(|line| {
                let words: Vec<_> = line.collect();
                (words.get(1) == Some(&id)).then(|| words.last().map(|word| (*word).to_owned()))
            })
        };
        assert_eq!(state("sluice").flatten().as_deref(), Some("ok"), "{plugins}");
        assert_eq!(
            state("cri").flatten().as_deref(),
            Some("ok"),
            "{plugins}\n{}",
            containerd.log()
        );
    }
    Ok(())
}
