//! What a pull's `AuthConfig` means, as containerd reads it.
//!
//! One that names a server counts for that server only. An identity token goes before name and password, which go before both in one
//! field. A registry token is of no use to a process that has to ask for longer than the token lives.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sluice_storage::Reference;
use sluice_storage::registry::Credential;

use super::proto::AuthConfig;

/// Names of Docker Hub.
const DOCKER_HUB: [&str; 3] = ["docker.io", "index.docker.io", "registry-1.docker.io"];

/// The credentials for the registry of `reference`. `None` when there are none for it.
///
/// # Errors
/// Why they cannot be used, without showing them.
pub(super) fn credential(
    auth: AuthConfig,
    reference: &Reference,
) -> Result<Option<Credential>, &'static str> {
    if !auth.server_address.is_empty() && !is_same_host(&auth.server_address, reference.registry()) {
        return Ok(None);
    }
    if !auth.identity_token.is_empty() {
        return Ok(Some(Credential::IdentityToken(auth.identity_token)));
    }
    if !auth.username.is_empty() {
        return Ok(Some(Credential::Password {
            user: auth.username,
            password: auth.password,
        }));
    }
    if !auth.auth.is_empty() {
        return both(&auth.auth)
            .map(Some)
            .ok_or("name and password cannot be decoded");
    }
    if !auth.registry_token.is_empty() {
        return Err("a registry token cannot be renewed");
    }
    Ok(None)
}

/// `name:password` in base64. Docker pads the password with zero bytes.
fn both(encoded: &str) -> Option<Credential> {
    let text = String::from_utf8(STANDARD.decode(encoded).ok()?).ok()?;
    let (user, password) = text.split_once(':')?;
    Some(Credential::Password {
        user: user.to_owned(),
        password: password.trim_end_matches('\0').to_owned(),
    })
}

fn is_same_host(address: &str, registry: &str) -> bool {
    let without_scheme = address.split_once("://").map_or(address, |(_, rest)| rest);
    let host = without_scheme.split('/').next().unwrap_or_default();
    host == registry || [host, registry].iter().all(|name| DOCKER_HUB.contains(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(auth: AuthConfig, image: &str) -> Result<Option<Credential>, &'static str> {
        credential(auth, &image.parse().unwrap())
    }

    fn password(user: &str, password: &str) -> Option<Credential> {
        Some(Credential::Password {
            user: user.to_owned(),
            password: password.to_owned(),
        })
    }

    fn named(server_address: &str) -> AuthConfig {
        AuthConfig {
            username: "u".into(),
            password: "p".into(),
            server_address: server_address.into(),
            ..AuthConfig::default()
        }
    }

    #[test]
    fn credentials_count_for_the_server_that_they_name() {
        for (server, image) in [
            ("", "r.io/a"),
            ("r.io", "r.io/a"),
            ("https://r.io:5000/v2/", "r.io:5000/a"),
            ("https://index.docker.io/v1/", "busybox"),
        ] {
            assert_eq!(of(named(server), image), Ok(password("u", "p")), "{server}");
        }
        for (server, image) in [
            ("other.io", "r.io/a"),
            ("r.io", "r.io:5000/a"),
            ("docker.io", "r.io/a"),
        ] {
            assert_eq!(of(named(server), image), Ok(None), "{server}");
        }
    }

    #[test]
    fn every_form_is_read() {
        let auth = |auth: &str| AuthConfig {
            auth: STANDARD.encode(auth),
            ..AuthConfig::default()
        };
        assert_eq!(of(auth("u:p:q\0\0"), "r.io/a"), Ok(password("u", "p:q")));
        assert!(of(auth("no colon"), "r.io/a").is_err());
        let token = AuthConfig {
            identity_token: "t".into(),
            ..named("")
        };
        assert_eq!(
            of(token, "r.io/a"),
            Ok(Some(Credential::IdentityToken("t".into())))
        );
        let registry_token = AuthConfig {
            registry_token: "t".into(),
            ..AuthConfig::default()
        };
        assert!(of(registry_token, "r.io/a").is_err());
        assert_eq!(of(AuthConfig::default(), "r.io/a"), Ok(None));
    }

    #[test]
    fn nothing_is_shown() {
        let request = super::super::proto::PullImageRequest {
            auth: Some(named("s3cret")),
            ..Default::default()
        };
        assert!(!format!("{request:?}").contains("s3cret"));
    }
}
