//! `hosts.toml`: what a user says about the hosts of one registry.
//!
//! ```toml
//! server = "https://registry.example.com"      # the origin, asked last
//! [host."https://mirror.example.com"]          # asked before it, in the order of the file
//!   capabilities = ["pull", "resolve"]         # default: these and "push"
//!   ca = "mirror.pem"                          # or a list; relative to the directory of the file
//!   client = [["mirror.cert", "mirror.key"]]   # or a file with both
//!   skip_verify = false
//!   override_path = false                      # true: the URL's path is the API's, nothing is appended
//!   dial_timeout = "2s"
//!   [host."https://mirror.example.com".header]
//!     x-team = "a"                             # or a list
//! ```
//!
//! The keys of a host may also stand at the top, for the origin. Keys that are not known are left out with a warning. Source:
//! containerd, "Registry Configuration".

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;
use url::Url;

use crate::{Error, ErrorKind};

/// What a host may be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::registry) struct Capabilities {
    /// Manifests by digest, and blobs.
    pub(in crate::registry) pull: bool,
    /// Manifests by tag.
    pub(in crate::registry) resolve: bool,
    /// Uploads.
    pub(in crate::registry) push: bool,
}

impl Capabilities {
    pub(in crate::registry) const ALL: Self = Self {
        pull: true,
        resolve: true,
        push: true,
    };
}

/// One host of a registry.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::registry) struct HostConfig {
    /// Where it is; `None` for the registry's own address.
    pub(in crate::registry) server: Option<Url>,
    pub(in crate::registry) capabilities: Capabilities,
    /// Certificates to trust besides those of the system.
    pub(in crate::registry) ca: Vec<PathBuf>,
    /// Files with a client certificate and its key; without a second file the first has both.
    pub(in crate::registry) client: Vec<(PathBuf, Option<PathBuf>)>,
    pub(in crate::registry) skip_verify: bool,
    /// The path of `server` is that of the API: no `/v2` is appended.
    pub(in crate::registry) override_path: bool,
    pub(in crate::registry) headers: HeaderMap,
    pub(in crate::registry) dial_timeout: Option<Duration>,
}

impl Default for HostConfig {
    fn default() -> Self {
        Self {
            server: None,
            capabilities: Capabilities::ALL,
            ca: Vec::new(),
            client: Vec::new(),
            skip_verify: false,
            override_path: false,
            headers: HeaderMap::new(),
            dial_timeout: None,
        }
    }
}

#[derive(Deserialize)]
struct FileDocument {
    server: Option<String>,
    /// Ordered as in the file.
    #[serde(default)]
    host: toml::Table,
    #[serde(flatten)]
    origin: HostDocument,
}

#[derive(Deserialize)]
struct HostDocument {
    #[serde(default)]
    capabilities: Vec<String>,
    #[serde(default)]
    ca: Words,
    client: Option<Clients>,
    #[serde(default)]
    skip_verify: bool,
    #[serde(default)]
    override_path: bool,
    #[serde(default)]
    header: BTreeMap<String, Words>,
    dial_timeout: Option<String>,
    #[serde(flatten)]
    unknown: BTreeMap<String, toml::Value>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Words {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Clients {
    One(String),
    Many(Vec<Words>),
}

impl Default for Words {
    fn default() -> Self {
        Self::Many(Vec::new())
    }
}

impl Words {
    fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(word) => vec![word],
            Self::Many(words) => words,
        }
    }
}

/// The hosts that the text of `file` lists, in the order in which they are asked; the origin is the last.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] for a file that is not understood.
pub(in crate::registry) fn parse(text: &str, file: &Path) -> Result<Vec<HostConfig>, Error> {
    let place = Place { file };
    let document: FileDocument = toml::from_str(text).map_err(|error| place.refuse(error.message()))?;
    let mut hosts = Vec::new();
    for (url, host) in document.host {
        let host: HostDocument = host
            .try_into()
            .map_err(|error: toml::de::Error| place.refuse(format!("host {url}: {}", error.message())))?;
        hosts.push(place.host(Some(&url), host)?);
    }
    hosts.push(place.host(document.server.as_deref(), document.origin)?);
    Ok(hosts)
}

/// The file that is parsed, for messages and relative paths.
struct Place<'a> {
    file: &'a Path,
}

impl Place<'_> {
    fn host(&self, server: Option<&str>, document: HostDocument) -> Result<HostConfig, Error> {
        let shown = server.unwrap_or("the server");
        for key in document.unknown.keys() {
            tracing::warn!(file = %self.file.display(), host = shown, key, "a key of hosts.toml is not known");
        }
        Ok(HostConfig {
            server: server
                .filter(|server| !server.is_empty())
                .map(|server| self.url(server))
                .transpose()?,
            capabilities: self.capabilities(shown, &document.capabilities)?,
            ca: self.paths(document.ca),
            client: self.clients(shown, document.client)?,
            skip_verify: document.skip_verify,
            override_path: document.override_path,
            headers: self.headers(shown, document.header)?,
            dial_timeout: document
                .dial_timeout
                .map(|text| self.duration(shown, &text))
                .transpose()?,
        })
    }

    /// A URL; `https` goes without saying.
    fn url(&self, text: &str) -> Result<Url, Error> {
        let whole = match text.starts_with("http") {
            true => text.to_owned(),
            false => format!("https://{text}"),
        };
        let url = Url::parse(&whole)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        url.ok_or_else(|| self.refuse(format!("\"{text}\" is not the URL of a host")))
    }

    fn capabilities(&self, host: &str, listed: &[String]) -> Result<Capabilities, Error> {
        if listed.is_empty() {
            return Ok(Capabilities::ALL);
        }
        let mut found = Capabilities {
            pull: false,
            resolve: false,
            push: false,
        };
        for capability in listed {
            match capability.to_ascii_lowercase().as_str() {
                "pull" => found.pull = true,
                "resolve" => found.resolve = true,
                "push" => found.push = true,
                _ => return Err(self.refuse(format!("{host} has the unknown capability \"{capability}\""))),
            }
        }
        Ok(found)
    }

    fn clients(
        &self,
        host: &str,
        clients: Option<Clients>,
    ) -> Result<Vec<(PathBuf, Option<PathBuf>)>, Error> {
        let pairs = match clients {
            None => return Ok(Vec::new()),
            Some(Clients::One(file)) => vec![Words::One(file)],
            Some(Clients::Many(pairs)) => pairs,
        };
        let pair = |words: Words| match &words.into_vec()[..] {
            [both] => Ok((self.path(both), None)),
            [certificate, key] => Ok((self.path(certificate), (!key.is_empty()).then(|| self.path(key)))),
            _ => Err(self.refuse(format!("{host} has a client that is not a certificate and a key"))),
        };
        pairs.into_iter().map(pair).collect()
    }

    fn headers(&self, host: &str, listed: BTreeMap<String, Words>) -> Result<HeaderMap, Error> {
        let mut headers = HeaderMap::new();
        for (name, values) in listed {
            let invalid = || self.refuse(format!("{host} has the header \"{name}\", which is not valid"));
            let header = HeaderName::from_bytes(name.as_bytes()).map_err(|_| invalid())?;
            for value in values.into_vec() {
                let mut value = HeaderValue::from_str(&value).map_err(|_| invalid())?;
                // It may be a password.
                value.set_sensitive(true);
                headers.append(header.clone(), value);
            }
        }
        Ok(headers)
    }

    fn duration(&self, host: &str, text: &str) -> Result<Duration, Error> {
        parse_duration(text).ok_or_else(|| {
            self.refuse(format!(
                "{host} has the dial_timeout \"{text}\", which is no duration such as \"2s\" or \"1m30s\""
            ))
        })
    }

    fn paths(&self, words: Words) -> Vec<PathBuf> {
        words.into_vec().iter().map(|word| self.path(word)).collect()
    }

    /// A path that the file names, which may be relative to its directory.
    fn path(&self, path: &str) -> PathBuf {
        self.file.parent().unwrap_or(Path::new("")).join(path)
    }

    fn refuse(&self, reason: impl std::fmt::Display) -> Error {
        Error::new(
            ErrorKind::InvalidInput,
            format!("{}: {reason}", self.file.display()),
        )
    }
}

/// A duration as Go writes it: numbers with units, as in `1m30s` or `1.5s`.
fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut sum = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit_end = rest
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(rest.len());
        let unit = match &rest[..unit_end] {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        sum = sum.checked_add(Duration::try_from_secs_f64(number * unit).ok()?)?;
        rest = &rest[unit_end..];
    }
    (!text.is_empty()).then_some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_text(text: &str) -> Result<Vec<HostConfig>, Error> {
        parse(text, Path::new("/certs.d/example.com/hosts.toml"))
    }

    #[test]
    fn hosts_keep_the_order_of_the_file_and_the_origin_is_last() {
        let hosts = parse_text(
            r#"
            server = "https://origin.example"
            capabilities = ["push"]
            [host."http://z.example:8080"]
            capabilities = ["pull", "Resolve"]
            [host."https://a.example/some/path"]
            override_path = true
            skip_verify = true
            dial_timeout = "1m1.5s"
            [host."m.example"]
            "#,
        )
        .unwrap();
        let servers: Vec<String> = hosts
            .iter()
            .map(|host| host.server.as_ref().unwrap().to_string())
            .collect();
        assert_eq!(
            servers,
            [
                "http://z.example:8080/",
                "https://a.example/some/path",
                "https://m.example/",
                "https://origin.example/"
            ]
        );
        let first = &hosts[0].capabilities;
        assert!(first.pull && first.resolve && !first.push);
        assert!(hosts[1].override_path && hosts[1].skip_verify);
        assert_eq!(hosts[1].dial_timeout, Some(Duration::from_millis(61_500)));
        assert_eq!(hosts[2].capabilities, Capabilities::ALL);
        assert!(!hosts[3].capabilities.pull && hosts[3].capabilities.push);
    }

    #[test]
    fn certificates_and_headers_take_every_form_of_containerd() {
        let hosts = parse_text(
            r#"
            ca = "own.pem"
            client = "/abs/both.pem"
            [host."https://m"]
            ca = ["a.pem", "/b.pem"]
            client = [["c.cert", "c.key"], ["d.pem", ""]]
            [host."https://m".header]
            x-one = "1"
            x-two = ["2", "3"]
            "#,
        )
        .unwrap();
        let dir = Path::new("/certs.d/example.com");
        assert_eq!(hosts[0].ca, [dir.join("a.pem"), "/b.pem".into()]);
        assert_eq!(
            hosts[0].client,
            [
                (dir.join("c.cert"), Some(dir.join("c.key"))),
                (dir.join("d.pem"), None)
            ]
        );
        assert_eq!(hosts[0].headers.get_all("x-two").iter().count(), 2);
        assert_eq!(hosts[1].server, None);
        assert_eq!(hosts[1].ca, [dir.join("own.pem")]);
        assert_eq!(hosts[1].client, [("/abs/both.pem".into(), None)]);
    }

    #[test]
    fn unknown_keys_are_left_out() {
        let hosts =
            parse_text("rewrite = 1\n[host.\"https://m\"]\nnew = [\"x\"]\n[plugin]\na = 1\n").unwrap();
        assert_eq!(hosts.len(), 2);
    }

    #[test]
    fn refusals_name_the_file_and_what_is_wrong() {
        for (text, expected) in [
            ("server = ", "hosts.toml: "),
            ("server = 1", "hosts.toml: "),
            ("[host.\"https://\"]", "not the URL"),
            ("[host.\"ftp://x\"]\ncapabilities = [\"fly\"]", "\"fly\""),
            ("[host.\"https://x\"]\ndial_timeout = \"2\"", "\"2\""),
            ("[host.\"https://x\"]\nskip_verify = \"yes\"", "https://x"),
            ("[host.\"https://x\".header]\n\"a b\" = \"1\"", "\"a b\""),
            ("client = [[\"a\", \"b\", \"c\"]]", "a certificate and a key"),
        ] {
            let error = parse_text(text).expect_err(text);
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            let shown = error.to_string();
            assert!(
                shown.starts_with("/certs.d/example.com/hosts.toml: ") && shown.contains(expected),
                "{text}: {shown}"
            );
        }
    }
}
