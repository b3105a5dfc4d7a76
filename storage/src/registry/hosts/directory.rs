//! Finding what the user says about a registry: containerd's `certs.d` layout.
//!
//! A registry has a directory of its name, in which a port is written `_5000_` or `:5000`; `_default` is for those that have
//! none. In it is a `hosts.toml`, or, as Docker has it, only certificates: `*.crt` to trust, `*.cert` with `*.key` to show.

use std::io::ErrorKind as IoErrorKind;
use std::path::{Path, PathBuf};

use super::config::{self, HostConfig};
use crate::Error;

const HOSTS_FILE: &str = "hosts.toml";
/// Directory for registries that have none.
const DEFAULT_DIRECTORY: &str = "_default";

/// The hosts of `registry` in the order in which they are asked. Without a directory for it: the registry itself. Blocks on the
/// disk for a moment.
///
/// # Errors
/// What hinders reading a file that is there; [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) for one that is not
/// understood.
pub(in crate::registry) fn load(root: &Path, registry: &str) -> Result<Vec<HostConfig>, Error> {
    let Some(dir) = find(root, registry) else {
        return Ok(vec![HostConfig::default()]);
    };
    let file = dir.join(HOSTS_FILE);
    match std::fs::read_to_string(&file) {
        Ok(text) if !text.is_empty() => config::parse(&text, &file),
        Ok(_) => certificates(&dir),
        Err(error) if error.kind() == IoErrorKind::NotFound => certificates(&dir),
        Err(error) => Err(Error::io(format!("read {}", file.display()), error)),
    }
}

fn find(root: &Path, registry: &str) -> Option<PathBuf> {
    let with_port = match registry.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => Some(format!("{host}_{port}_")),
        _ => None,
    };
    let names = with_port
        .iter()
        .map(String::as_str)
        .chain([registry, DEFAULT_DIRECTORY]);
    names.map(|name| root.join(name)).find(|dir| dir.is_dir())
}

/// The registry itself with the certificates that lie in `dir`.
fn certificates(dir: &Path) -> Result<Vec<HostConfig>, Error> {
    let mut host = HostConfig::default();
    let what = |error| Error::io(format!("list {}", dir.display()), error);
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(what)? {
        paths.push(entry.map_err(what)?.path());
    }
    paths.sort();
    for path in paths {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => host.ca.push(path),
            Some("cert") => {
                let key = path.with_extension("key");
                let key = key.is_file().then_some(key);
                host.client.push((path, key));
            }
            _ => {}
        }
    }
    Ok(vec![host])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    #[test]
    fn the_directory_of_a_port_goes_before_that_of_the_host() {
        let root = tempfile::tempdir().unwrap();
        let found = |registry: &str| {
            let dir = find(root.path(), registry)?;
            Some(dir.file_name()?.to_str()?.to_owned())
        };
        assert_eq!(found("r.example"), None);
        for (made, registry) in [
            ("_default", "r.example:5000"),
            ("r.example:5000", "r.example:5000"),
            ("r.example_5000_", "r.example:5000"),
            ("r.example", "r.example"),
            ("[::1]_5000_", "[::1]:5000"),
        ] {
            std::fs::create_dir(root.path().join(made)).unwrap();
            assert_eq!(found(registry).as_deref(), Some(made));
        }
        assert_eq!(found("[::1]").as_deref(), Some("_default"));
    }

    #[test]
    fn certificates_alone_are_for_the_registry_itself() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("r.example");
        std::fs::create_dir(&dir).unwrap();
        for name in ["ca.crt", "client.cert", "client.key", "both.cert", "other.txt"] {
            std::fs::write(dir.join(name), "").unwrap();
        }
        let hosts = load(root.path(), "r.example").unwrap();
        let expected = HostConfig {
            ca: vec![dir.join("ca.crt")],
            client: vec![
                (dir.join("both.cert"), None),
                (dir.join("client.cert"), Some(dir.join("client.key"))),
            ],
            ..HostConfig::default()
        };
        assert_eq!(hosts, [expected]);
        std::fs::write(dir.join("hosts.toml"), "server = 1").unwrap();
        let error = load(root.path(), "r.example").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    }
}
