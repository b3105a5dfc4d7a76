//! `sluice doctor`: what is in the way of lazy starts on this host.

use crate::args::DoctorArgs;
use crate::doctor::{self, Finding, State};
use crate::{output, wiring};

/// Something is in the way, and was printed.
#[derive(Debug, thiserror::Error)]
#[error("containers do not start lazily on this host")]
pub(super) struct NotLazy;

pub(super) fn run(args: &DoctorArgs) -> anyhow::Result<()> {
    let findings = wiring::run(doctor::examine(args))?;
    for finding in &findings {
        if args.common.json {
            output::json(finding)?;
        } else {
            print(finding)?;
        }
    }
    if findings.iter().any(|finding| finding.state == State::Problem) {
        return Err(NotLazy.into());
    }
    Ok(())
}

fn print(finding: &Finding) -> anyhow::Result<()> {
    let state = match finding.state {
        State::Good => "good   ",
        State::Warning => "warning",
        State::Problem => "PROBLEM",
    };
    output::line(format!("{state} {:<11} {}", finding.check, finding.what))?;
    for (name, text) in [("why", finding.why), ("do", finding.remedy.as_deref())] {
        if let Some(text) = text {
            output::line(format!("        {name}: {text}"))?;
        }
    }
    Ok(())
}
