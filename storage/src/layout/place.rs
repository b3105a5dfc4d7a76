//! Where a layout is that is read over the network.

use std::fmt;

use url::Url;

use crate::{Error, ErrorKind};

/// Kinds of servers that hold layouts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Service {
    /// A web server that is reached over TLS.
    Https,
    /// A web server.
    Http,
    /// S3, and whatever speaks its protocol.
    S3,
    /// Alibaba Cloud OSS.
    Oss,
    /// Google Cloud Storage.
    Gcs,
    /// Azure Blob Storage.
    Azblob,
}

impl Service {
    const ALL: [Self; 6] = [
        Self::Https,
        Self::Http,
        Self::S3,
        Self::Oss,
        Self::Gcs,
        Self::Azblob,
    ];

    /// The scheme of its URLs.
    pub fn scheme(self) -> &'static str {
        match self {
            Self::Https => "https",
            Self::Http => "http",
            Self::S3 => "s3",
            Self::Oss => "oss",
            Self::Gcs => "gcs",
            Self::Azblob => "azblob",
        }
    }

    pub(crate) fn from_scheme(scheme: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|service| service.scheme() == scheme)
    }

    pub(crate) fn is_web(self) -> bool {
        matches!(self, Self::Https | Self::Http)
    }
}

/// A directory of a web server, or a bucket and a prefix in it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RemotePlace {
    service: Service,
    /// Host and port, or bucket.
    authority: String,
    /// Without a slash at either end.
    path: String,
}

impl RemotePlace {
    /// `location` is `host[:port][/path]` or `bucket[/prefix]`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for a location that is neither. One with a password or a query is refused, because names
    /// are printed and logged.
    pub fn new(service: Service, location: &str) -> Result<Self, Error> {
        let (authority, path) = location.split_once('/').unwrap_or((location, ""));
        let place = Self {
            service,
            authority: authority.to_owned(),
            path: path.trim_matches('/').to_owned(),
        };
        let reason = if location.contains(['?', '#', '@', '\\']) {
            Some("must have no password, query or fragment")
        } else if place.path.split('/').any(|part| matches!(part, "." | "..")) {
            Some("must not have . or .. in its path")
        } else if authority.is_empty() || place.url().is_none_or(|url| !url.has_host()) {
            Some("is not a host, or a bucket, and a path")
        } else {
            None
        };
        match reason {
            None => Ok(place),
            Some(reason) => Err(Error::new(
                ErrorKind::InvalidInput,
                format!("\"{}://{location}\" {reason}", service.scheme()),
            )),
        }
    }

    /// What serves it.
    pub fn service(&self) -> Service {
        self.service
    }

    /// Host and port, or bucket.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// Directory or prefix, without a slash at either end.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Its URL, without a slash at the end of the path.
    pub(crate) fn url(&self) -> Option<Url> {
        Url::parse(&format!(
            "{}://{}/{}",
            self.service.scheme(),
            self.authority,
            self.path
        ))
        .ok()
    }
}

impl fmt::Display for RemotePlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "oci+{}://{}", self.service.scheme(), self.authority)?;
        match self.path.is_empty() {
            true => Ok(()),
            false => write!(f, "/{}", self.path),
        }
    }
}
