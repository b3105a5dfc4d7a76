//! Which manifest of an image index suits a machine.
//!
//! Operating system and architecture must be equal; variants follow containerd: a machine runs older variants of its own
//! architecture too, and the newest that it can run wins. A manifest that names no variant means the architecture's usual
//! one.

use std::fmt;
use std::str::FromStr;

use crate::documents::{ImageIndex, ImageIndexEntry};
use crate::{Error, ErrorKind};

/// Operating system, architecture and variant, in Go's words (`linux`, `amd64`, `v8`).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Platform {
    /// Operating system.
    pub os: String,
    /// Architecture.
    pub architecture: String,
    /// Variant; `None` for the architecture's usual one.
    pub variant: Option<String>,
}

impl Platform {
    /// The platform of this host's containers.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "x86" => "386",
            "aarch64" => "arm64",
            "powerpc64" => "ppc64le",
            "loongarch64" => "loong64",
            other => other,
        };
        Self {
            os: std::env::consts::OS.to_owned(),
            architecture: architecture.to_owned(),
            variant: None,
        }
    }

    /// The entry of an image index that suits this platform best. The only entry of an image index is taken when it does not
    /// say what it is for.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] listing the platforms that there are.
    pub fn choose<'a>(&self, index: &'a ImageIndex) -> Result<&'a ImageIndexEntry, Error> {
        if let [only] = &index.manifests[..]
            && only.platform.is_none()
        {
            return Ok(only);
        }
        let suitable = index
            .manifests
            .iter()
            .filter_map(|entry| Some((self.rank(entry.platform.as_ref()?)?, entry)));
        // Of equals the first wins, as in containerd; `max_by_key` would take the last.
        let best = suitable.reduce(|best, next| if next.0 > best.0 { next } else { best });
        best.map(|(_, entry)| entry).ok_or_else(|| self.not_found(index))
    }

    /// How well `offered` suits: higher is better, `None` is not at all.
    fn rank(&self, offered: &Self) -> Option<u32> {
        if self.os != offered.os || self.architecture != offered.architecture {
            return None;
        }
        let wanted = self.variant_number();
        let found = offered.variant_number();
        match (wanted, found) {
            (Some(wanted), Some(found)) if found <= wanted => Some(found),
            (Some(_), Some(_)) => None,
            // Variants that are not numbers must be equal.
            _ => (self.variant == offered.variant).then_some(0),
        }
    }

    /// `8` of `v8`, or of no variant the number that the architecture usually means.
    fn variant_number(&self) -> Option<u32> {
        match (&self.variant, self.architecture.as_str()) {
            (Some(variant), _) => variant.strip_prefix('v')?.parse().ok(),
            (None, "arm64") => Some(8),
            (None, "arm") => Some(7),
            (None, _) => Some(1),
        }
    }

    fn not_found(&self, index: &ImageIndex) -> Error {
        let available: Vec<String> = index
            .manifests
            .iter()
            .filter_map(|entry| entry.platform.as_ref())
            .filter(|platform| platform.os != "unknown")
            .map(ToString::to_string)
            .collect();
        let available = match available.is_empty() {
            true => "none".to_owned(),
            false => available.join(", "),
        };
        let message = format!("the image has no manifest for {self}; available: {available}");
        Error::new(ErrorKind::NotFound, message)
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant
            .as_ref()
            .map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

impl FromStr for Platform {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let parts: Vec<&str> = text.split('/').collect();
        let (os, architecture, variant) = match parts[..] {
            [os, architecture] => (os, architecture, None),
            [os, architecture, variant] => (os, architecture, Some(variant)),
            _ => ("", "", None),
        };
        if os.is_empty() || architecture.is_empty() || variant.is_some_and(str::is_empty) {
            let message = format!("platform \"{text}\" is not of the form os/architecture[/variant]");
            return Err(Error::new(ErrorKind::InvalidInput, message));
        }
        Ok(Self {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.map(str::to_owned),
        })
    }
}

#[cfg(test)]
mod tests {
    use sluice_format::{BlobDigest, Digest};

    use super::*;
    use crate::Descriptor;

    fn index(platforms: &[&str]) -> ImageIndex {
        let manifests = platforms
            .iter()
            .map(|text| ImageIndexEntry {
                descriptor: Descriptor {
                    media_type: String::new(),
                    digest: BlobDigest(Digest::of(text.as_bytes())),
                    size: 1,
                    annotations: Default::default(),
                },
                platform: text.parse().ok(),
            })
            .collect();
        ImageIndex { manifests }
    }

    fn chosen(wanted: &str, offered: &[&str]) -> Result<String, Error> {
        let wanted: Platform = wanted.parse().unwrap();
        let index = index(offered);
        let entry = wanted.choose(&index)?;
        Ok(entry.platform.as_ref().unwrap().to_string())
    }

    #[test]
    fn the_newest_variant_that_runs_wins() {
        let offered = ["linux/arm/v5", "linux/arm/v7", "linux/arm/v6", "linux/arm64/v8"];
        assert_eq!(chosen("linux/arm/v6", &offered).unwrap(), "linux/arm/v6");
        assert_eq!(chosen("linux/arm", &offered).unwrap(), "linux/arm/v7");
        assert_eq!(chosen("linux/arm64", &offered).unwrap(), "linux/arm64/v8");
        let amd64 = ["linux/amd64", "linux/amd64/v2", "linux/amd64/v3"];
        assert_eq!(chosen("linux/amd64", &amd64).unwrap(), "linux/amd64");
        assert_eq!(chosen("linux/amd64/v2", &amd64).unwrap(), "linux/amd64/v2");
        assert_eq!(chosen("linux/amd64/v3", &amd64[..2]).unwrap(), "linux/amd64/v2");
    }

    #[test]
    fn a_missing_platform_lists_the_others() {
        let offered = ["linux/amd64", "unknown/unknown", "windows/amd64", "no-platform"];
        let error = chosen("linux/s390x", &offered).unwrap_err();
        let text = error.to_string();
        assert!(
            text.ends_with("linux/s390x; available: linux/amd64, windows/amd64"),
            "{text}"
        );
        assert_eq!(error.kind(), ErrorKind::NotFound);
    }

    #[test]
    fn an_only_entry_needs_no_platform() {
        let mut only = index(&["no-platform"]);
        assert!(Platform::host().choose(&only).is_ok());
        only.manifests.extend(index(&["no-platform"]).manifests);
        assert!(Platform::host().choose(&only).is_err());
    }

    #[test]
    fn malformed_platforms_are_refused() {
        for bad in ["", "linux", "linux/", "/amd64", "linux/arm/", "a/b/c/d"] {
            assert!(bad.parse::<Platform>().is_err(), "{bad}");
        }
        assert!(Platform::host().to_string().starts_with("linux/"));
    }
}
