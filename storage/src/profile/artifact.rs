//! Profiles as artifacts attached to an image manifest.

use std::collections::BTreeMap;
use std::time::Duration;

use sluice_format::artifact::{CREATED_ANNOTATION, IMAGE_ID_ANNOTATION, PROFILE_ARTIFACT, PROFILE_DOCUMENT};
use sluice_format::{Digest, Limits, Profile};

use crate::referrers::{Artifact, ArtifactDocument, Referrer, attach_artifact, fetch_artifact};
use crate::{Descriptor, Error, ErrorKind, Repository, WritableRepository};

/// Profiles of one image that are tried, newest first.
const CANDIDATES_MAX: usize = 4;

/// After so long a start has demanded most of what a profile could have told it.
const FIND_TIMEOUT: Duration = Duration::from_secs(10);

/// Attaches a profile to the image manifest `subject`. `created` is the time in the format of RFC 3339, in UTC; of several
/// profiles the newest is found. Gives the digest of the artifact.
///
/// # Errors
/// What hinders writing.
pub async fn push_profile(
    repository: &dyn WritableRepository,
    subject: &Descriptor,
    profile: &Profile,
    created: &str,
) -> Result<Digest, Error> {
    let document = ArtifactDocument {
        media_type: PROFILE_DOCUMENT.to_owned(),
        bytes: profile.encode()?.into(),
        annotations: BTreeMap::new(),
    };
    let annotation = |name: &str, value: String| (name.to_owned(), value);
    let artifact = Artifact {
        artifact_type: PROFILE_ARTIFACT.to_owned(),
        documents: vec![document],
        annotations: BTreeMap::from([
            annotation(IMAGE_ID_ANNOTATION, profile.image_id().to_string()),
            annotation(CREATED_ANNOTATION, created.to_owned()),
        ]),
    };
    attach_artifact(repository, subject, &artifact).await
}

/// The newest valid profile of image `image_id` attached to the manifest `subject`; `None` when there is none.
///
/// # Errors
/// What hinders reading the list; when profiles are listed and none of them can be used, why the newest cannot.
pub async fn fetch_profile(
    repository: &dyn Repository,
    subject: &Digest,
    image_id: &Digest,
    limits: &Limits,
) -> Result<Option<Profile>, Error> {
    let listed = repository.fetch_referrers(subject, PROFILE_ARTIFACT).await?;
    let mut first_error = None;
    for candidate in newest_first(listed, image_id).iter().take(CANDIDATES_MAX) {
        match fetch_candidate(repository, subject, image_id, candidate, limits).await {
            Ok(Some(profile)) => return Ok(Some(profile)),
            Ok(None) => {}
            Err(error) => {
                tracing::debug!(artifact = %candidate.descriptor.digest, %error, "a start-up profile cannot be used");
                first_error.get_or_insert(error);
            }
        }
    }
    first_error.map_or(Ok(None), Err)
}

/// [`fetch_profile`] for a start: never an error, never for long. One round trip when there is nothing.
pub async fn find_profile(
    repository: &dyn Repository,
    subject: &Digest,
    image_id: &Digest,
    limits: &Limits,
) -> Option<Profile> {
    let fetched = fetch_profile(repository, subject, image_id, limits);
    match tokio::time::timeout(FIND_TIMEOUT, fetched).await {
        Ok(Ok(profile)) => profile,
        Ok(Err(error)) => {
            tracing::debug!(manifest = %subject, %error, "no start-up profile");
            None
        }
        Err(_) => {
            tracing::debug!(manifest = %subject, "no start-up profile in time");
            None
        }
    }
}

/// Those that may be for the image, by what their annotations say.
fn newest_first(mut listed: Vec<Referrer>, image_id: &Digest) -> Vec<Referrer> {
    let image_id = image_id.to_string();
    listed.retain(|referrer| {
        let named = referrer.descriptor.annotations.get(IMAGE_ID_ANNOTATION);
        named.is_none_or(|named| *named == image_id)
    });
    // Times of one zone and form sort as text. Of equals, the last one listed was stored last.
    listed.reverse();
    listed.sort_by(|a, b| {
        let created = |referrer: &Referrer| referrer.descriptor.annotations.get(CREATED_ANNOTATION).cloned();
        created(b).cmp(&created(a))
    });
    listed
}

async fn fetch_candidate(
    repository: &dyn Repository,
    subject: &Digest,
    image_id: &Digest,
    candidate: &Referrer,
    limits: &Limits,
) -> Result<Option<Profile>, Error> {
    let fetched = fetch_artifact(repository, subject, PROFILE_ARTIFACT, candidate, limits);
    let Some(manifest) = fetched.await? else {
        return Ok(None);
    };
    let is_document = |descriptor: &&Descriptor| descriptor.media_type == PROFILE_DOCUMENT;
    let Some(document) = manifest.layers.iter().find(is_document) else {
        let message = format!("artifact {} has no document", candidate.descriptor.digest);
        return Err(Error::new(ErrorKind::Corrupt, message));
    };
    let bytes = repository.fetch_blob(document, limits.profile_stored_len).await?;
    let profile = Profile::parse(&bytes, limits)?;
    Ok(Some(profile).filter(|profile| profile.image_id() == *image_id))
}
