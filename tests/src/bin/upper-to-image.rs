//! Turns overlayfs upper directories into the layers of an OCI layout; used by `images/build-debian.sh`.
//!
//! `upper-to-image layer LAYOUT UPPER RECORD` stores one layer and writes what it is to the file RECORD.
//! `upper-to-image image LAYOUT TAG COMMAND RECORD...` stores an image of such layers that runs COMMAND.

use std::env;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::json;
use sluice_tests::images::entry::DEFAULT_MTIME;
use sluice_tests::images::{
    Compression, ImageBuilder, LayerRecord, LayoutWriter, write_compressed, write_upper,
};

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["layer", layout, upper, record] => layer(Path::new(layout), Path::new(upper), Path::new(record)),
        ["image", layout, tag, command, records @ ..] => image(Path::new(layout), tag, command, records),
        _ => bail!("usage: upper-to-image layer LAYOUT UPPER RECORD | image LAYOUT TAG COMMAND RECORD..."),
    }
}

fn layer(layout: &Path, upper: &Path, record: &Path) -> Result<()> {
    let compression = Compression::Gzip;
    let stored = LayoutWriter::open(layout)?.put_layer_from(compression.media_type(), |out| {
        write_compressed(compression, out, |plain| {
            write_upper(upper, DEFAULT_MTIME, plain)?;
            plain.write_all(&[0; 1024])
        })
    })?;
    fs::write(record, serde_json::to_vec(&stored)?)
        .with_context(|| format!("cannot write {}", record.display()))
}

fn image(layout: &Path, tag: &str, command: &str, records: &[&str]) -> Result<()> {
    let layers = records
        .iter()
        .map(|record| Ok(serde_json::from_slice(&fs::read(record)?)?))
        .collect::<Result<Vec<LayerRecord>>>()?;
    let writer = LayoutWriter::open(layout)?;
    let words: Vec<&str> = command.split(' ').collect();
    ImageBuilder::new()
        .config("/config/Cmd", json!(words))
        .write_with(&writer, layers, tag)?;
    Ok(())
}
