//! Passwords and identity tokens from the files of docker and podman.
//!
//! The files are read, and credential helpers run, whenever a token is needed, which is seldom; nothing is kept, so a login
//! or a renewed helper password is seen at once. The first file that has something for the registry wins: the one that
//! was named or that `REGISTRY_AUTH_FILE` names, and no other; else podman's, then docker's. A helper that fails means no
//! credentials from there, because public images must stay readable without it; the note about it goes into the message when
//! access is denied.

use std::env;
use std::fmt;
use std::path::{Path, PathBuf};

use docker_credential::{CredentialRetrievalError, DockerCredential};

use crate::{Error, blocking};

/// Key of Docker Hub in docker's config and for its helpers.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";
/// Hosts that are Docker Hub.
const DOCKER_HUB_HOSTS: [&str; 3] = ["registry-1.docker.io", "index.docker.io", "docker.io"];
/// Longest file that is read, in bytes.
const FILE_LEN: u64 = 4 << 20;

/// A secret for one registry.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    /// A name with its password.
    Password {
        /// The name.
        user: String,
        /// Its password.
        password: String,
    },
    /// A refresh token, exchanged for access tokens.
    IdentityToken(String),
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credential(hidden)")
    }
}

/// What the files had for a registry.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) credential: Option<Credential>,
    /// Where it came from, or where it was looked for, for messages.
    pub(super) origin: String,
}

/// The files to look into.
#[derive(Clone, Debug)]
pub(super) struct CredentialFiles {
    files: Vec<PathBuf>,
}

impl CredentialFiles {
    /// `only`, or the usual files of this user.
    pub(super) fn new(only: Option<&Path>) -> Self {
        let path_in = |variable| {
            env::var_os(variable)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        let only = only.map(Path::to_owned).or_else(|| path_in("REGISTRY_AUTH_FILE"));
        if let Some(only) = only {
            return Self { files: vec![only] };
        }
        let home = path_in("HOME");
        let in_home = |path: &str| home.as_ref().map(|home| home.join(path));
        let podman = path_in("XDG_RUNTIME_DIR").map(|dir| dir.join("containers/auth.json"));
        let podman_config = path_in("XDG_CONFIG_HOME")
            .map(|dir| dir.join("containers/auth.json"))
            .or_else(|| in_home(".config/containers/auth.json"));
        let docker = path_in("DOCKER_CONFIG")
            .map(|dir| dir.join("config.json"))
            .or_else(|| in_home(".docker/config.json"));
        Self {
            files: [podman, podman_config, docker].into_iter().flatten().collect(),
        }
    }

    /// Looks for credentials for a repository of a registry.
    pub(super) async fn find(&self, registry: &str, repository: &str) -> Result<Found, Error> {
        let (files, registry, repository) = (self.files.clone(), registry.to_owned(), repository.to_owned());
        let look = move || Ok(find_in(&files, &registry, &repository));
        blocking::run("look for credentials", look).await
    }
}

fn find_in(files: &[PathBuf], registry: &str, repository: &str) -> Found {
    let mut notes = Vec::new();
    for file in files {
        let Some(text) = load(file, &mut notes) else {
            continue;
        };
        for key in keys(&text, registry, repository) {
            match docker_credential::get_credential_from_reader(text.as_bytes(), &key) {
                Ok(DockerCredential::UsernamePassword(user, password))
                    if user.is_empty() && password.is_empty() => {}
                Ok(found) => {
                    return Found {
                        credential: Some(found.into()),
                        origin: format!("with credentials from {}", file.display()),
                    };
                }
                Err(error) => notes.extend(note(&error).map(|note| format!("{note} of {}", file.display()))),
            }
        }
    }
    let looked: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
    let mut origin = format!("without credentials: none for it in {}", looked.join(", "));
    for note in notes {
        origin = format!("{origin}; {note}");
    }
    Found {
        credential: None,
        origin,
    }
}

impl From<DockerCredential> for Credential {
    fn from(found: DockerCredential) -> Self {
        match found {
            DockerCredential::IdentityToken(token) => Self::IdentityToken(token),
            DockerCredential::UsernamePassword(user, password) => Self::Password { user, password },
        }
    }
}

fn load(file: &Path, notes: &mut Vec<String>) -> Option<String> {
    let is_short = |len| len <= FILE_LEN;
    match std::fs::metadata(file) {
        Ok(metadata) if is_short(metadata.len()) => {}
        Ok(_) => {
            notes.push(format!("{} is too long", file.display()));
            return None;
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
        Err(error) => {
            notes.push(format!("{}: {error}", file.display()));
            return None;
        }
    }
    std::fs::read_to_string(file)
        .map_err(|error| notes.push(format!("{}: {error}", file.display())))
        .ok()
}

/// The keys under which a file may know the registry, the most specific first. Podman's files may name a repository or a part
/// of its path; those keys are tried only where the file has them, because every key may run a helper.
fn keys(text: &str, registry: &str, repository: &str) -> Vec<String> {
    let is_hub = DOCKER_HUB_HOSTS.contains(&registry);
    let base = if is_hub { "docker.io" } else { registry };
    let document: serde_json::Value = serde_json::from_str(text).unwrap_or_default();
    let listed =
        |key: &str| document["auths"].get(key).is_some() || document["credHelpers"].get(key).is_some();
    let mut keys = Vec::new();
    let mut path = format!("{base}/{repository}");
    while path.len() > base.len() {
        if listed(&path) {
            keys.push(path.clone());
        }
        path.truncate(path.rfind('/').unwrap_or_default());
    }
    if is_hub {
        keys.extend(
            DOCKER_HUB_HOSTS
                .iter()
                .filter(|host| listed(host))
                .map(|host| (*host).to_owned()),
        );
        keys.push(DOCKER_HUB_KEY.to_owned());
    } else {
        keys.push(registry.to_owned());
    }
    keys
}

/// What is worth telling about a failed look-up. Never what a helper printed: that may be a secret.
fn note(error: &CredentialRetrievalError) -> Option<String> {
    match error {
        CredentialRetrievalError::NoCredentialConfigured => None,
        CredentialRetrievalError::HelperFailure { stdout, .. }
            if stdout.contains("credentials not found") =>
        {
            None
        }
        CredentialRetrievalError::HelperFailure { helper, .. } => {
            Some(format!("the helper {helper} failed, it is that"))
        }
        CredentialRetrievalError::HelperCommunicationError => {
            Some("the credential helper cannot be run, it is that".into())
        }
        CredentialRetrievalError::MalformedHelperResponse => {
            Some("the credential helper gave no valid answer, it is that".into())
        }
        _ => Some("not understood: the entry for it".into()),
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;

    use super::*;

    fn file(dir: &Path, name: &str, text: &str) -> PathBuf {
        let path = dir.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn auth(user: &str) -> String {
        base64::engine::general_purpose::STANDARD.encode(format!("{user}:secret"))
    }

    fn user_of(found: &Found) -> Option<&str> {
        match found.credential.as_ref()? {
            Credential::Password { user, .. } => Some(user),
            Credential::IdentityToken(token) => Some(token),
        }
    }

    #[test]
    fn the_most_specific_key_of_the_first_file_wins() {
        let dir = tempfile::tempdir().unwrap();
        let (host, path, other) = (auth("host"), auth("path"), auth("other"));
        let first = file(
            dir.path(),
            "a",
            &format!(r#"{{"auths":{{"r.io":{{"auth":"{host}"}},"r.io/team":{{"auth":"{path}"}}}}}}"#),
        );
        let second = file(
            dir.path(),
            "b",
            &format!(r#"{{"auths":{{"r.io":{{"auth":"{other}"}}}}}}"#),
        );
        let files = [dir.path().join("missing"), first, second];
        assert_eq!(user_of(&find_in(&files, "r.io", "team/app")), Some("path"));
        assert_eq!(user_of(&find_in(&files, "r.io", "teamwork/app")), Some("host"));
        assert_eq!(user_of(&find_in(&files[2..], "r.io", "team/app")), Some("other"));
        let none = find_in(&files, "r.io:5000", "team/app");
        assert!(
            none.credential.is_none() && none.origin.contains("/missing"),
            "{}",
            none.origin
        );
    }

    #[test]
    fn docker_hub_is_known_by_its_old_key() {
        let dir = tempfile::tempdir().unwrap();
        let hub = auth("hub");
        for key in ["https://index.docker.io/v1/", "docker.io", "index.docker.io"] {
            let file = file(
                dir.path(),
                "c",
                &format!(r#"{{"auths":{{"{key}":{{"auth":"{hub}"}}}}}}"#),
            );
            let found = find_in(&[file], "registry-1.docker.io", "library/busybox");
            assert_eq!(user_of(&found), Some("hub"), "{key}");
        }
    }

    #[test]
    fn identity_tokens_are_told_from_passwords_and_nothing_is_shown() {
        let dir = tempfile::tempdir().unwrap();
        let file = file(dir.path(), "c", r#"{"auths":{"r.io":{"identitytoken":"t0ken"}}}"#);
        let found = find_in(&[file], "r.io", "a");
        assert_eq!(found.credential, Some(Credential::IdentityToken("t0ken".into())));
        assert!(!format!("{found:?}").contains("t0ken"));
    }

    #[test]
    fn a_missing_helper_is_noted_not_fatal() {
        let dir = tempfile::tempdir().unwrap();
        let file = file(dir.path(), "c", r#"{"credsStore":"sluice-no-such-helper"}"#);
        let found = find_in(&[file], "r.io", "a");
        assert!(found.credential.is_none());
        assert!(found.origin.contains("helper cannot be run"), "{}", found.origin);
    }
}
