//! What stands between this host and lazily started containers.
//!
//! A pull that is not lazy does not fail: it fetches everything, and nobody notices. So every link of the chain is looked
//! at by itself, from the kernel to the registry, and each finding says what to do. Where a live process can be asked, it is asked;
//! a configuration file is read only for what no process tells. Nothing is changed.

mod cache;
mod config;
mod containerd;
mod finding;
mod image;
mod kernel;
mod service;

pub(crate) use self::finding::{Finding, State};
use crate::args::DoctorArgs;

/// Looks at everything.
///
/// # Errors
/// When the doctor itself cannot work. What is wrong with the host is a finding.
pub(crate) async fn examine(args: &DoctorArgs) -> anyhow::Result<Vec<Finding>> {
    let mut findings = kernel::examine(&args.cache).await?;
    findings.extend(cache::examine(&args.cache).await?);
    findings.extend(service::examine(&args.socket).await);
    let release = containerd::examine(&args.containerd_address, &mut findings).await;
    findings.extend(config::examine(
        &args.containerd,
        &args.containerd_config,
        &args.socket,
        release,
    ));
    if let Some(reference) = &args.image {
        findings.extend(image::examine(args, reference).await?);
    }
    Ok(findings)
}
