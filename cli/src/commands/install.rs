//! `sluice install`: containerd's configuration and the systemd unit.

use serde_json::{Value, json};

use crate::args::InstallArgs;
use crate::install::{self, Action, FileChange, UNIT};
use crate::output;

pub(super) fn run(args: &InstallArgs) -> anyhow::Result<()> {
    let changes = install::plan(args)?;
    if args.print {
        return changes.iter().try_for_each(|change| print(args, change));
    }
    for change in &changes {
        change.make()?;
        if args.json {
            output::json(&document(change))?;
        } else {
            output::line(sentence(change))?;
        }
    }
    if !args.json {
        next_steps(args, &changes)?;
    }
    Ok(())
}

fn print(args: &InstallArgs, change: &FileChange) -> anyhow::Result<()> {
    if args.json {
        let mut document = document(change);
        document["text"] = change.text.as_str().into();
        return output::json(&document);
    }
    output::line(format!(
        "### {}\n{}",
        change.path.display(),
        change.text.trim_end()
    ))
}

fn document(change: &FileChange) -> Value {
    json!({ "path": change.path, "action": change.action, "backup": change.backup() })
}

fn sentence(change: &FileChange) -> String {
    let path = change.path.display();
    match (change.action, change.backup()) {
        (Action::Create, _) => format!("wrote {path}"),
        (Action::Change, Some(backup)) => {
            format!("changed {path}; what was there is in {}", backup.display())
        }
        (Action::Change, None) => format!("changed {path}"),
        (Action::Keep, _) => format!("{path} stays as it is"),
        (Action::Remove, _) => format!("removed {path}"),
    }
}

fn next_steps(args: &InstallArgs, changes: &[FileChange]) -> anyhow::Result<()> {
    if args.uninstall {
        output::line("now: stop containers that run on Sluice, and then")?;
        if !args.no_unit {
            output::line(format!(
                "  systemctl disable --now {UNIT}; systemctl daemon-reload"
            ))?;
        }
        return output::line("  systemctl restart containerd");
    }
    let changed = changes.iter().any(|change| change.action != Action::Keep);
    if changed {
        output::line("now:")?;
        if !args.no_unit {
            output::line(format!(
                "  systemctl daemon-reload && systemctl enable --now {UNIT}"
            ))?;
        }
        output::line("  systemctl restart containerd    # running containers go on")?;
    }
    if args.cri {
        output::line(format!(
            "for credentials of Kubernetes, give kubelet imageServiceEndpoint: unix://{}",
            args.socket.display()
        ))?;
    }
    output::line("to see whether everything is right: sluice doctor")
}
