//! The config and manifest of a packed image.

use serde_json::{Map, Value, json};
use sluice_format::artifact::{self, INDEX_ANNOTATION};
use sluice_format::date::rfc3339;
use sluice_format::{BlobDigest, DiffId, Digest, IndexLocation};
use sluice_storage::Platform;

use super::PackOptions;
use crate::Error;

/// The layer of a packed image as its manifest names it.
#[derive(Clone, Copy, Debug)]
pub(super) struct PackedLayer {
    pub(super) media_type: &'static str,
    pub(super) digest: BlobDigest,
    pub(super) stored_len: u64,
    pub(super) diff_id: DiffId,
    pub(super) plain_len: u64,
    pub(super) chunks: usize,
    pub(super) index: Option<IndexLocation>,
}

/// The config: the base document when there is one, changed by the options, with the layer's DiffID.
///
/// # Errors
/// [`Error::Document`] when the base document has another shape.
pub(super) fn config(base: Option<Value>, options: &PackOptions, diff_id: DiffId) -> Result<Value, Error> {
    let has_base = base.is_some();
    let mut document = base.unwrap_or_else(|| Value::Object(Map::new()));
    let fields = document
        .as_object_mut()
        .ok_or_else(|| Error::document("config file", "is not a JSON object"))?;
    fields.insert("created".to_owned(), rfc3339(options.created).into());
    let platform = match (&options.platform, has_base && fields.contains_key("os")) {
        (Some(platform), _) => Some(platform.clone()),
        (None, false) => Some(Platform::host()),
        (None, true) => None,
    };
    if let Some(platform) = platform {
        fields.insert("architecture".to_owned(), platform.architecture.into());
        fields.insert("os".to_owned(), platform.os.into());
        match platform.variant {
            Some(variant) => drop(fields.insert("variant".to_owned(), variant.into())),
            None => drop(fields.shift_remove("variant")),
        }
    }
    let run = fields
        .entry("config")
        .or_insert_with(|| Value::Object(Map::new()));
    if run.is_null() {
        *run = Value::Object(Map::new());
    }
    let run = run
        .as_object_mut()
        .ok_or_else(|| Error::document("config file", "has a \"config\" that is no object"))?;
    set_run_options(run, options);
    fields.insert(
        "rootfs".to_owned(),
        json!({ "type": "layers", "diff_ids": [diff_id.to_string()] }),
    );
    let step = json!({ "created": rfc3339(options.created), "created_by": "sluice pack" });
    fields.insert("history".to_owned(), json!([step]));
    Ok(document)
}

fn set_run_options(run: &mut Map<String, Value>, options: &PackOptions) {
    let mut set = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            run.insert(key.to_owned(), value);
        }
    };
    let list = |items: &[String]| (!items.is_empty()).then(|| json!(items));
    set("User", options.user.clone().map(Value::from));
    set("Entrypoint", list(&options.entrypoint));
    set("Cmd", list(&options.cmd));
    set("WorkingDir", options.workdir.clone().map(Value::from));
    if !options.env.is_empty() {
        let env = run.entry("Env").or_insert_with(|| json!([]));
        merge_env(env, &options.env);
    }
    if !options.labels.is_empty() {
        let labels = run.entry("Labels").or_insert_with(|| json!({}));
        if !labels.is_object() {
            *labels = json!({});
        }
        for (key, value) in &options.labels {
            labels[key] = value.clone().into();
        }
    }
}

/// Adds `KEY=value` settings; one of the same key is replaced.
fn merge_env(env: &mut Value, added: &[String]) {
    let mut merged: Vec<String> = serde_json::from_value(env.take()).unwrap_or_default();
    let key_of = |setting: &str| setting.split('=').next().unwrap_or_default().to_owned();
    for setting in added {
        merged.retain(|old| key_of(old) != key_of(setting));
        merged.push(setting.clone());
    }
    *env = json!(merged);
}

/// The manifest of a config and one layer.
pub(super) fn manifest(config: &[u8], layer: &PackedLayer) -> Value {
    let mut descriptor = json!({
        "mediaType": layer.media_type,
        "digest": layer.digest.to_string(),
        "size": layer.stored_len,
    });
    if let Some(location) = layer.index {
        descriptor["annotations"] = json!({ INDEX_ANNOTATION: location.to_string() });
    }
    json!({
        "schemaVersion": 2,
        "mediaType": artifact::OCI_MANIFEST,
        "config": {
            "mediaType": artifact::OCI_CONFIG,
            "digest": Digest::of(config).to_string(),
            "size": config.len(),
        },
        "layers": [descriptor],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_override_the_base_document_and_keep_what_they_do_not_know() {
        let base = json!({"os": "linux", "architecture": "arm64", "config": {"Env": ["A=1", "B=2"], "Healthcheck": {"Test": ["x"]}}});
        let options = PackOptions {
            env: vec!["A=3".to_owned()],
            cmd: vec!["run".to_owned()],
            ..PackOptions::default()
        };
        let diff_id = DiffId(Digest::of(b""));
        let document = config(Some(base), &options, diff_id).unwrap();
        assert_eq!(document["config"]["Env"], json!(["B=2", "A=3"]));
        assert_eq!(document["config"]["Cmd"], json!(["run"]));
        assert_eq!(document["config"]["Healthcheck"]["Test"], json!(["x"]));
        assert_eq!(document["architecture"], "arm64");
        assert_eq!(document["rootfs"]["diff_ids"], json!([diff_id.to_string()]));
    }
}
