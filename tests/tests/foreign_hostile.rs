//! Promise: a table of contents that lies shows nothing: it is refused with a message that names the layer, and the layer is taken for the
//! ordinary layer that it also is. Where it only lies about bytes, a reader gets an error and never a wrong byte.

use std::fs;
use std::io::ErrorKind;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use sluice_tests::document::{Layout, digest, text};
use sluice_tests::foreign::{TAG, Writer};
use sluice_tests::images::{Entry, ImageBuilder, Layer, LayoutWriter};
use sluice_tests::mounted::Mounting;
use sluice_tests::scratch::Scratch;

const CHECKSUM: &str = "io.containers.zstd-chunked.manifest-checksum";
const POSITION: &str = "io.containers.zstd-chunked.manifest-position";
const LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const FILES: [(&str, &[u8]); 3] = [
    ("one", &[b'1'; 3000]),
    ("two", &[b'2'; 5000]),
    ("three", &[b'3'; 700]),
];

/// An image of one small zstd:chunked layer, and what its manifest and its TOC say.
struct Forgery {
    layout: Layout,
    manifest: Value,
    blob: Vec<u8>,
    toc: Value,
    scratch: Scratch,
}

impl Forgery {
    fn new() -> Result<Self> {
        let scratch = Scratch::new("foreign-hostile")?;
        let layer = Layer::of(FILES.map(|(name, content)| Entry::file(name, content)));
        let image = ImageBuilder::new()
            .layer(layer)
            .write(&scratch.join("source"), "s")?;
        let layout = Writer::Skopeo.write(&image, &scratch.join("foreign"))?;
        let manifest: Value = serde_json::from_slice(&layout.top(TAG)?.1)?;
        let blob = layout.blob(text(&manifest, "/layers/0/digest")?)?;
        let position = manifest["layers"][0]["annotations"][POSITION].as_str();
        let numbers = position.context("no position")?.split(':').map(str::parse);
        let numbers = numbers.collect::<Result<Vec<usize>, _>>()?;
        let toc = zstd::stream::decode_all(&blob[numbers[0]..numbers[0] + numbers[1]])?;
        Ok(Self {
            manifest,
            toc: serde_json::from_slice(&toc)?,
            blob,
            layout,
            scratch,
        })
    }

    fn entries(&mut self) -> Result<&mut Vec<Value>> {
        self.toc["entries"].as_array_mut().context("no entries")
    }

    fn entry(&mut self, name: &str) -> Result<&mut Value> {
        let mut entries = self.entries()?.iter_mut();
        entries
            .find(|entry| entry["name"] == name)
            .context("no such entry")
    }

    /// Changes one field of an entry.
    fn set(&mut self, name: &str, field: &str, value: Value) -> Result<()> {
        self.entry(name)?[field] = value;
        Ok(())
    }

    /// Puts a TOC in place that everything agrees upon: behind the old one, so that the layer stays the same.
    fn put_toc(&mut self, json: &[u8]) -> Result<()> {
        let stored = zstd::bulk::compress(json, 3)?;
        self.blob.extend(0x184D_2A50_u32.to_le_bytes());
        self.blob.extend(u32::try_from(stored.len())?.to_le_bytes());
        let position = format!("{}:{}:{}:1", self.blob.len(), stored.len(), json.len());
        self.annotate(POSITION, &position);
        self.annotate(CHECKSUM, &digest(&stored));
        self.blob.extend(stored);
        Ok(())
    }

    fn annotate(&mut self, name: &str, value: &str) {
        self.manifest["layers"][0]["annotations"][name] = json!(value);
    }

    /// Writes the image; gives its name.
    fn write(&self) -> Result<String> {
        let writer = LayoutWriter::open(&self.layout.directory)?;
        let put = writer.put_blob(LAYER_ZSTD, &self.blob)?;
        let mut manifest = self.manifest.clone();
        for field in ["digest", "size"] {
            manifest["layers"][0][field] = put[field].clone();
        }
        let put = writer.put_blob(MANIFEST, manifest.to_string().as_bytes())?;
        writer.tag(&put, "forged")?;
        Ok(format!("oci:{}:forged", self.layout.directory.display()))
    }

    /// Mounts the image. Every file must have its bytes, and the log must say why the TOC was not used.
    fn assert_refused(&self, what: &str, reason: &str) -> Result<()> {
        let mut mounted = Mounting::new(&self.write()?, "fuse").mount()?;
        for (name, content) in FILES {
            ensure!(
                fs::read(mounted.directory.join(name))? == content,
                "{what}: {name}"
            );
        }
        let shown = fs::read_dir(&mounted.directory)?.count();
        ensure!(shown == FILES.len(), "{what}: {shown} files");
        let kept = fs::read_dir(mounted.cache.join("tocs")).map_or(0, Iterator::count);
        ensure!(kept == 0, "{what}: the table is kept");
        mounted.signal(Signal::SIGTERM)?;
        mounted.wait_end(std::time::Duration::from_secs(20))?;
        let printed = mounted.printed();
        let layer = digest(&self.blob);
        ensure!(
            printed.contains(reason) && printed.contains(&layer),
            "{what}: expected \"{reason}\" and {layer} in:\n{printed}"
        );
        mounted.assert_nothing_left()
    }
}

#[test]
fn privileged_lying_tables_are_refused_and_their_layers_streamed() -> Result<()> {
    type Lie = fn(&mut Forgery) -> Result<()>;
    let lies: [(&str, Lie, &str); 9] = [
        (
            "a name above the root",
            |forgery| forgery.set("one", "name", json!("../one")),
            "climbs above the root",
        ),
        (
            "bytes behind the blob",
            |forgery| forgery.set("two", "offset", json!(1_u64 << 40)),
            "behind the data",
        ),
        (
            "bytes within the table",
            |forgery| forgery.set("two", "offset", json!(forgery.blob.len())),
            "behind the data",
        ),
        (
            "files that overlap",
            |forgery| {
                let offset = forgery.entry("one")?["offset"].clone();
                forgery.set("two", "offset", offset)
            },
            "overlap",
        ),
        (
            "a size beyond all bounds",
            |forgery| forgery.set("two", "size", json!(u64::MAX)),
            "size of all files",
        ),
        (
            "no digest",
            |forgery| forgery.set("two", "digest", json!("")),
            "has no digest",
        ),
        (
            "pieces with a gap",
            |forgery| {
                let digest = forgery.entry("two")?["digest"].clone();
                forgery.set("two", "chunkSize", json!(1000))?;
                forgery.set("two", "chunkDigest", digest)
            },
            "end at byte 1000",
        ),
        (
            "a link to itself",
            |forgery| {
                let link = json!({ "name": "l", "type": "hardlink", "linkName": "l" });
                forgery.entries()?.push(link);
                Ok(())
            },
            "is the link itself",
        ),
        (
            "another version",
            |forgery| {
                forgery.toc["version"] = json!(2);
                Ok(())
            },
            "version 2",
        ),
    ];
    for (what, lie, reason) in lies {
        let mut forgery = Forgery::new()?;
        lie(&mut forgery)?;
        let json = serde_json::to_vec(&forgery.toc)?;
        forgery.put_toc(&json)?;
        forgery.assert_refused(what, reason)?;
    }
    Ok(())
}

#[test]
fn privileged_tables_that_grow_without_bounds_are_refused() -> Result<()> {
    let mut forgery = Forgery::new()?;
    let mut json = serde_json::to_vec(&forgery.toc)?;
    json.resize(200 << 20, b' ');
    forgery.put_toc(&json)?;
    forgery.assert_refused("a decompression bomb", "length of a TOC")?;

    let mut forgery = Forgery::new()?;
    let deep = format!("{{\"version\":1,\"entries\":{}", "[".repeat(1 << 20));
    forgery.put_toc(deep.as_bytes())?;
    forgery.assert_refused("nested without end", "JSON")
}

#[test]
fn privileged_a_table_that_the_manifest_does_not_pin_is_not_used() -> Result<()> {
    let mut forgery = Forgery::new()?;
    let json = serde_json::to_vec(&forgery.toc)?;
    forgery.put_toc(&json)?;
    forgery.annotate(CHECKSUM, &digest(b"another table"));
    forgery.assert_refused("another digest", "is corrupt")?;

    let mut forgery = Forgery::new()?;
    forgery.annotate(POSITION, "0:99999999:10:1");
    forgery.assert_refused("a place outside the blob", "in a blob of")?;

    let mut forgery = Forgery::new()?;
    forgery.annotate(POSITION, "here");
    forgery.assert_refused("no place at all", "is not offset")
}

#[test]
fn privileged_a_table_without_annotations_is_not_looked_for() -> Result<()> {
    let mut forgery = Forgery::new()?;
    forgery.manifest["layers"][0]["annotations"] = json!({});
    let mounted = Mounting::new(&forgery.write()?, "fuse").mount()?;
    for (name, content) in FILES {
        ensure!(fs::read(mounted.directory.join(name))? == content, "{name}");
    }
    let kept = fs::read_dir(mounted.cache.join("tocs")).map_or(0, Iterator::count);
    ensure!(kept == 0, "the table is used");
    mounted.unmount()
}

#[test]
fn privileged_a_wrong_digest_in_a_table_is_an_error_for_the_reader() -> Result<()> {
    let mut forgery = Forgery::new()?;
    forgery.entry("two")?["digest"] = json!(digest(b"other bytes"));
    let one = forgery.entry("one")?["offset"].clone();
    // The bytes of another file, under the digest of this one.
    let three = std::mem::replace(&mut forgery.entry("three")?["offset"], one);
    forgery.entry("one")?["offset"] = three;
    let json = serde_json::to_vec(&forgery.toc)?;
    forgery.put_toc(&json)?;
    let cache = forgery.scratch.directory("cache")?;
    let mounted = Mounting::new(&forgery.write()?, "fuse").cache(&cache).mount()?;
    for (name, _) in FILES {
        match fs::read(mounted.directory.join(name)) {
            Ok(_) => anyhow::bail!("{name} was shown"),
            Err(error) => ensure!(error.kind() != ErrorKind::NotFound, "{name}: {error}"),
        }
    }
    mounted.unmount()
}
