//! What runc is told: the image's config as a process, in the surroundings that container engines give.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use oci_spec::image::Config;
use oci_spec::runtime::{
    Capabilities, Capability, LinuxBuilder, LinuxCapabilitiesBuilder, LinuxNamespaceType, Mount,
    MountBuilder, ProcessBuilder, RootBuilder, Spec, SpecBuilder, get_default_mounts, get_default_namespaces,
};
use serde::Deserialize;
use sluice_format::startup::Command;

use super::ContainerOptions;
use super::user;

/// Where programs are looked for when the image does not say.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Name of the container for itself.
const HOSTNAME: &str = "sluice";

/// What names are resolved with, for a container in the network of the host.
const RESOLVER_FILES: [&str; 2] = ["/etc/resolv.conf", "/etc/hosts"];

/// What root may do in a container by default, for containerd and for Docker.
const CAPABILITIES: [Capability; 14] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fsetid,
    Capability::Fowner,
    Capability::Mknod,
    Capability::NetRaw,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setfcap,
    Capability::Setpcap,
    Capability::NetBindService,
    Capability::SysChroot,
    Capability::Kill,
    Capability::AuditWrite,
];

/// The part of an image config that says what runs.
#[derive(Clone, Debug, Default)]
pub(crate) struct RunConfig(Config);

impl RunConfig {
    /// Reads an image config document.
    ///
    /// # Errors
    /// When it is none.
    pub(crate) fn parse(document: &[u8]) -> anyhow::Result<Self> {
        #[derive(Deserialize)]
        struct Document {
            config: Option<Config>,
        }
        let document: Document =
            serde_json::from_slice(document).context("the image config does not say what runs")?;
        Ok(Self(document.config.unwrap_or_default()))
    }

    /// What runs when nobody says otherwise, as far as its files matter.
    pub(crate) fn startup(&self) -> Command {
        let arguments = self.0.entrypoint().iter().chain(self.0.cmd());
        let env = self.env(&ContainerOptions::default());
        let path = env.iter().filter_map(|variable| variable.strip_prefix("PATH="));
        Command::new(
            arguments.flatten().map(String::as_str),
            path.flat_map(|path| path.split(':')),
            self.0.working_dir().as_deref().unwrap_or_default(),
        )
    }

    /// The command line of the container.
    fn command(&self, options: &ContainerOptions) -> anyhow::Result<Vec<String>> {
        let mut command = self.0.entrypoint().clone().unwrap_or_default();
        match options.arguments.is_empty() {
            true => command.extend(self.0.cmd().clone().unwrap_or_default()),
            false => command.extend(options.arguments.iter().cloned()),
        }
        ensure!(
            !command.is_empty(),
            "the image has neither an entry point nor a command; say after \"--\" what is to run"
        );
        Ok(command)
    }

    /// The variables of the environment; a later one of the same name counts.
    fn env(&self, options: &ContainerOptions) -> Vec<String> {
        let mut env: Vec<String> = Vec::new();
        let image = self.0.env().iter().flatten();
        for variable in std::iter::once(&PATH.to_owned()).chain(image).chain(&options.env) {
            let name = variable.split('=').next();
            env.retain(|known| known.split('=').next() != name);
            env.push(variable.clone());
        }
        env
    }
}

/// The whole of what runc is told. `root` is looked at for the names of users.
pub(super) fn spec(config: &RunConfig, options: &ContainerOptions, root: &Path) -> anyhow::Result<Spec> {
    let capabilities = || Capabilities::from(CAPABILITIES);
    let capabilities = LinuxCapabilitiesBuilder::default()
        .bounding(capabilities())
        .effective(capabilities())
        .permitted(capabilities())
        .inheritable([])
        .ambient([])
        .build()?;
    let directory = config.0.working_dir().as_deref().unwrap_or_default();
    let process = ProcessBuilder::default()
        .user(user::find(config.0.user().as_deref().unwrap_or_default(), root)?)
        .args(config.command(options)?)
        .env(config.env(options))
        .cwd(Path::new("/").join(directory))
        .capabilities(capabilities)
        .no_new_privileges(false)
        .build()?;
    let mut namespaces = get_default_namespaces();
    let mut mounts = get_default_mounts();
    if options.net_host {
        namespaces.retain(|namespace| namespace.typ() != LinuxNamespaceType::Network);
        for file in RESOLVER_FILES {
            mounts.push(bind(Path::new(file))?);
        }
    }
    Ok(SpecBuilder::default()
        .root(RootBuilder::default().path(root).readonly(false).build()?)
        .hostname(HOSTNAME)
        .process(process)
        .mounts(mounts)
        .linux(LinuxBuilder::default().namespaces(namespaces).build()?)
        .build()?)
}

/// Shows a file of the host in its place.
fn bind(file: &Path) -> anyhow::Result<Mount> {
    Ok(MountBuilder::default()
        .destination(file)
        .typ("bind")
        .source(PathBuf::from(file))
        .options(["rbind".to_owned(), "ro".to_owned()])
        .build()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = r#"{"architecture":"amd64","config":{
        "Entrypoint":["/bin/app"],"Cmd":["serve"],"Env":["A=1","B=2"],"WorkingDir":"srv","User":"7:8",
        "ExposedPorts":{"80/tcp":{}}
    }}"#;

    fn options(arguments: &[&str]) -> ContainerOptions {
        ContainerOptions {
            arguments: arguments.iter().copied().map(str::to_owned).collect(),
            env: vec!["B=3".to_owned()],
            net_host: false,
        }
    }

    #[test]
    fn the_config_of_an_image_says_what_runs() {
        let config = RunConfig::parse(DOCUMENT.as_bytes()).unwrap();
        let spec = spec(&config, &options(&[]), Path::new("/nowhere")).unwrap();
        let process = spec.process().as_ref().unwrap();
        assert_eq!(process.args().as_ref().unwrap(), &["/bin/app", "serve"]);
        assert_eq!(process.env().as_ref().unwrap(), &[PATH, "A=1", "B=3"]);
        assert_eq!(process.cwd(), Path::new("/srv"));
        assert_eq!((process.user().uid(), process.user().gid()), (7, 8));
    }

    #[test]
    fn arguments_take_the_place_of_the_command() {
        let config = RunConfig::parse(DOCUMENT.as_bytes()).unwrap();
        assert_eq!(config.command(&options(&["test"])).unwrap(), ["/bin/app", "test"]);
        let nothing = RunConfig::parse(b"{}").unwrap();
        assert_eq!(nothing.command(&options(&["test"])).unwrap(), ["test"]);
        assert!(nothing.command(&options(&[])).is_err());
        assert!(RunConfig::parse(b"[]").is_err());
    }

    #[test]
    fn only_a_container_in_the_network_of_the_host_has_its_names() {
        let config = RunConfig::parse(DOCUMENT.as_bytes()).unwrap();
        for net_host in [false, true] {
            let options = ContainerOptions {
                net_host,
                ..options(&[])
            };
            let spec = spec(&config, &options, Path::new("/nowhere")).unwrap();
            let namespaces = spec.linux().as_ref().unwrap().namespaces().clone().unwrap();
            let apart = namespaces
                .iter()
                .any(|namespace| namespace.typ() == LinuxNamespaceType::Network);
            assert_eq!(apart, !net_host);
            let mounts = spec.mounts().as_ref().unwrap();
            let named = mounts
                .iter()
                .any(|mount| mount.destination() == Path::new("/etc/resolv.conf"));
            assert_eq!(named, net_host);
        }
    }
}
