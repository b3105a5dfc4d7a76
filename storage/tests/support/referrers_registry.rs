//! A registry in memory with the referrers API, as distribution spec 1.1 has it: pages of a few entries, a filter that it may or may
//! not apply, and `OCI-Subject` in the answer to a manifest with a subject.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::http::{HeaderName, Method, header};
use bytes::Bytes;
use serde_json::{Value, json};
use sluice_format::Digest;
use sluice_format::artifact::OCI_INDEX;

use crate::odd::{Answer, Asked, OddRegistry, answer, part, status};

/// Entries per page.
const PAGE: usize = 2;

#[derive(Debug, Default)]
struct Kept {
    blobs: BTreeMap<String, Bytes>,
    /// By digest and by tag: media type and bytes.
    manifests: BTreeMap<String, (String, Bytes)>,
}

/// Starts one. `filters` says whether it applies `artifactType`.
pub(crate) async fn start(filters: bool) -> OddRegistry {
    let kept = Arc::<Mutex<Kept>>::default();
    OddRegistry::start(move |asked| {
        let mut kept = kept.lock().expect("no test panics while it serves");
        kept.serve(asked, filters)
    })
    .await
}

impl Kept {
    fn serve(&mut self, asked: &Asked, filters: bool) -> Answer {
        let (path, query) = asked.target.split_once('?').unwrap_or((&asked.target, ""));
        let query: BTreeMap<String, String> = url::form_urlencoded::parse(query.as_bytes())
            .into_owned()
            .collect();
        let mut parts = path.trim_start_matches("/v2/").rsplitn(3, '/');
        let (name, kind) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        match (&asked.method, kind, name) {
            (&Method::POST, "uploads", _) => status(202, &[(header::LOCATION, "/v2/a/b/blobs/uploads/1")]),
            (&Method::PUT, "uploads", _) => {
                self.blobs.insert(query["digest"].clone(), asked.body.clone());
                status(201, &[])
            }
            (_, "blobs", digest) => match self.blobs.get(digest) {
                Some(blob) => part(blob, asked),
                None => status(404, &[]),
            },
            (&Method::PUT, "manifests", name) => self.put_manifest(name, asked),
            (_, "manifests", name) => match self.manifests.get(name) {
                Some((media_type, bytes)) => {
                    answer(200, &[(header::CONTENT_TYPE, media_type)], bytes.clone())
                }
                None => status(404, &[]),
            },
            (_, "referrers", subject) => self.list(subject, &query, filters),
            _ => status(404, &[]),
        }
    }

    fn put_manifest(&mut self, name: &str, asked: &Asked) -> Answer {
        let media_type = asked.header(header::CONTENT_TYPE).unwrap_or_default().to_owned();
        let kept = (media_type, asked.body.clone());
        let digest = Digest::of(&asked.body).to_string();
        self.manifests.insert(digest, kept.clone());
        self.manifests.insert(name.to_owned(), kept);
        let document: Value = serde_json::from_slice(&asked.body).unwrap_or_default();
        match document["subject"]["digest"].as_str() {
            Some(subject) => status(201, &[(HeaderName::from_static("oci-subject"), subject)]),
            None => status(201, &[]),
        }
    }

    fn list(&self, subject: &str, query: &BTreeMap<String, String>, filters: bool) -> Answer {
        let by_digest = self
            .manifests
            .iter()
            .filter(|(name, _)| name.starts_with("sha256:"));
        let entries: Vec<Value> = by_digest
            .filter_map(|(digest, (media_type, bytes))| {
                let document: Value = serde_json::from_slice(bytes).ok()?;
                let wanted = !filters || document["artifactType"] == query["artifactType"].as_str();
                (document["subject"]["digest"] == subject && wanted).then(|| {
                    json!({ "mediaType": media_type, "digest": digest, "size": bytes.len(),
                        "artifactType": document["artifactType"], "annotations": document["annotations"] })
                })
            })
            .collect();
        let from: usize = query.get("last").and_then(|last| last.parse().ok()).unwrap_or(0);
        let page: Vec<&Value> = entries.iter().skip(from).take(PAGE).collect();
        let body = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": page }).to_string();
        let mut headers = vec![(header::CONTENT_TYPE, OCI_INDEX.to_owned())];
        if from + PAGE < entries.len() {
            let wanted = &query["artifactType"];
            let next = format!(
                "</v2/a/b/referrers/{subject}?artifactType={wanted}&last={}>; rel=\"next\"",
                from + PAGE
            );
            headers.push((header::LINK, next));
        }
        let headers: Vec<(HeaderName, &str)> = headers
            .iter()
            .map(|(name, value)| (name.clone(), value.as_str()))
            .collect();
        answer(200, &headers, body)
    }
}
