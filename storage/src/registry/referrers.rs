//! The referrers API of a registry, and the tag that stands in for it.
//!
//! Many registries have no referrers API. To find nothing must not cost two round trips there, so the tag is asked for at the
//! same time as the API, and what it says counts only when there is no API. When a manifest with a subject is stored, the registry's
//! answer tells whether it keeps the list; if not, the list under the tag is extended.

use bytes::Bytes;
use futures_util::future::{Either, select};
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderName, LINK};
use reqwest::{Method, StatusCode};
use sluice_format::Digest;
use sluice_format::artifact::OCI_INDEX;
use url::Url;

use super::answer::Answer;
use super::repository::RegistryRepository;
use super::retry::Failure;
use super::transport::Request;
use crate::referrers::{REFERRERS_MAX, Referrer, fetch_tagged, list_tagged, parse_list};
use crate::{Error, ErrorKind, ManifestName};

/// Pages of a list that are read. Registries put hundreds of entries on a page.
const PAGES_MAX: usize = 32;

/// In the answer to a stored manifest: the registry keeps the list of this subject's referrers.
const OCI_SUBJECT: HeaderName = HeaderName::from_static("oci-subject");

/// The referrers of `subject` that are of this type.
pub(super) async fn fetch(
    repository: &RegistryRepository,
    subject: &Digest,
    artifact_type: &str,
) -> Result<Vec<Referrer>, Error> {
    let listed = Box::pin(fetch_listed(repository, subject, artifact_type));
    let tagged = Box::pin(fetch_tagged(repository, subject, artifact_type));
    match select(listed, tagged).await {
        Either::Left((listed, tagged)) => match listed? {
            Some(listed) => Ok(listed),
            None => tagged.await,
        },
        Either::Right((tagged, listed)) => listed.await?.map_or(tagged, Ok),
    }
}

/// Stores the manifest of a referrer, and lists it where the registry does not.
pub(super) async fn put(
    repository: &RegistryRepository,
    subject: &Digest,
    referrer: &Referrer,
    bytes: Bytes,
) -> Result<(), Error> {
    let listed = repository.retry(|| try_put(repository, referrer, &bytes)).await?;
    if listed {
        return Ok(());
    }
    list_tagged(repository, subject, referrer).await
}

/// What the API lists; `None` when the registry has none.
async fn fetch_listed(
    repository: &RegistryRepository,
    subject: &Digest,
    artifact_type: &str,
) -> Result<Option<Vec<Referrer>>, Error> {
    let mut listed = Vec::new();
    let mut next = Some(repository.endpoint.referrers(subject, artifact_type));
    for page in 0..PAGES_MAX {
        let Some(url) = next else { break };
        let fetched = repository
            .retry(|| try_fetch_page(repository, &url, subject, artifact_type))
            .await;
        let (entries, link) = match fetched {
            Err(error) if page == 0 && means_no_api(&error) => return Ok(None),
            fetched => fetched?,
        };
        listed.extend(entries);
        next = link.filter(|_| listed.len() < REFERRERS_MAX);
    }
    listed.truncate(REFERRERS_MAX);
    Ok(Some(listed))
}

/// Without the API a registry says "not found", but old ones also that the path or the method is wrong, or that nobody may go
/// there.
fn means_no_api(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::NotFound | ErrorKind::Unsupported | ErrorKind::InvalidInput | ErrorKind::Denied
    )
}

/// One page and the URL of the next one.
async fn try_fetch_page(
    repository: &RegistryRepository,
    url: &Url,
    subject: &Digest,
    artifact_type: &str,
) -> Result<(Vec<Referrer>, Option<Url>), Failure> {
    let what = format!("referrers of {subject} in {}", repository.endpoint);
    let request = Request::new(Method::GET, what).header(ACCEPT, OCI_INDEX);
    let answer = repository.send_pull(&request, url).await?;
    if answer.status() != StatusCode::OK {
        return Err(answer.refuse().await);
    }
    let next = next_page(&answer);
    let limits = repository.limits();
    let bytes = answer.bytes(limits.manifest_len).await?;
    Ok((parse_list(&bytes, artifact_type, limits)?, next))
}

/// Where the answer's `Link` header says that the list goes on. Only within the same registry.
fn next_page(answer: &Answer) -> Option<Url> {
    let link = answer.header(LINK)?;
    let next = link.split(',').find(|link| {
        let mut parameters = link.split(';').skip(1).map(str::trim);
        parameters.any(|parameter| matches!(parameter, "rel=next" | "rel=\"next\""))
    })?;
    let target = next.split_once('<')?.1.split_once('>')?.0;
    let target = answer.url.join(target).ok()?;
    (target.origin() == answer.url.origin()).then_some(target)
}

/// Whether the registry lists the referrer.
async fn try_put(
    repository: &RegistryRepository,
    referrer: &Referrer,
    bytes: &Bytes,
) -> Result<bool, Failure> {
    let what = format!("storing an artifact of {}", repository.endpoint);
    let request = Request::new(Method::PUT, what)
        .header(CONTENT_TYPE, &referrer.descriptor.media_type)
        .body(bytes.clone());
    let name = ManifestName::Digest(referrer.descriptor.digest.0);
    let url = repository.endpoint.manifest(&name);
    let answer = repository.send_push(&request, &url, None).await?;
    match answer.status().is_success() {
        true => Ok(answer.header(OCI_SUBJECT).is_some()),
        false => Err(answer.refuse().await),
    }
}
