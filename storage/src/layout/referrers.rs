//! Referrers in a layout: entries of `index.json` whose manifests have a subject.

use sluice_format::Digest;
use sluice_format::artifact::OCI_MANIFEST;

use super::Layout;
use crate::referrers::{ArtifactManifest, REFERRERS_MAX, Referrer};
use crate::{Error, ManifestName};

/// The referrers of `subject` that are of this type. Entries that cannot be read are passed over. Blocks on the disk.
pub(super) fn load(layout: &Layout, subject: &Digest, artifact_type: &str) -> Result<Vec<Referrer>, Error> {
    let candidates = layout.names()?.into_iter().filter(|entry| {
        let typed = entry.artifact_type.as_deref();
        entry.descriptor.media_type == OCI_MANIFEST && typed.is_none_or(|typed| typed == artifact_type)
    });
    let mut found = Vec::new();
    for entry in candidates.take(REFERRERS_MAX) {
        let name = ManifestName::Digest(entry.descriptor.digest.0);
        let loaded = layout.load_manifest(&name);
        let parsed = loaded.and_then(|manifest| ArtifactManifest::parse(&manifest.bytes, &layout.limits));
        match parsed {
            Ok(manifest) if manifest.belongs(artifact_type, subject) => {
                let mut descriptor = entry.descriptor;
                descriptor.annotations = manifest.annotations;
                found.push(Referrer {
                    descriptor,
                    artifact_type: manifest.artifact_type,
                });
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(%name, %error, "an entry of the layout cannot be read"),
        }
    }
    Ok(found)
}
