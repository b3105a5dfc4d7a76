//! Promise: an image made to do harm is refused with a message that says what is wrong, without a panic, a hang, a byte
//! outside of its target, or memory that grows with what it claims.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use serde_json::json;
use sluice_tests::images::{
    Compression, Entry, Image, ImageBuilder, Layer, LayoutWriter, Sparse, SparseEncoding, entry, header,
};
use sluice_tests::mounted::{FRONTS, Mounting};
use sluice_tests::scratch::Scratch;
use sluice_tests::sluice;

/// Longest time that any refusal here may take.
const PROMPT: Duration = Duration::from_secs(30);

fn image_of(scratch: &Scratch, name: &str, layers: impl IntoIterator<Item = Layer>) -> Result<Image> {
    ImageBuilder::new()
        .layers(layers)
        .write(&scratch.join(name), "hostile")
}

/// Converts an image that has to be refused, gives the message.
fn refusal(scratch: &Scratch, name: &str, image: &Image) -> Result<String> {
    let target = format!("oci:{}:c", scratch.join(format!("{name}-converted")).display());
    let began = Instant::now();
    let said = sluice::refused(["convert", &image.reference(), &target]).with_context(|| name.to_owned())?;
    ensure!(
        began.elapsed() < PROMPT,
        "{name}: refused only after {:?}",
        began.elapsed()
    );
    Ok(said)
}

/// Checks that one layer of these entries is refused with a message that holds one of the `words`.
fn assert_refused(name: &str, layer: Layer, words: &[&str]) -> Result<()> {
    let scratch = Scratch::new("hostile")?;
    let image = image_of(&scratch, name, [layer])?;
    let said = refusal(&scratch, name, &image)?;
    ensure!(
        words.iter().any(|word| said.contains(word)),
        "{name}: none of {words:?} in: {said}"
    );
    Ok(())
}

#[test]
fn a_tar_cut_anywhere_is_refused_or_read_as_far_as_entries_are_whole() -> Result<()> {
    let scratch = Scratch::new("cut")?;
    let entries = [
        Entry::directory("d", 0o755),
        Entry::file("d/first", vec![b'1'; 700]).xattr("user.a", b"b"),
        Entry::file("d/second", vec![b'2'; 512]),
    ];
    let plain = Layer::of(entries).plain()?;
    // Where the headers (the second one of PAX records) and the contents begin and end. Outside of them only padding or
    // whole entries are lost, which Go's reader and so containerd take as the end of the archive.
    let headers = [0..512, 512..1024, 1536..2048, 3072..3584];
    let contents = [2048..2748, 3584..4096];
    for len in (0..plain.len()).step_by(128) {
        let name = format!("cut-{len}");
        let cut = Layer::new().raw(&plain[..len]).closing_blocks(0);
        let image = image_of(&scratch, &name, [cut])?;
        let target = format!("oci:{}:c", scratch.join(format!("{name}-taken")).display());
        let taken = sluice::run(["convert", &image.reference(), &target]).is_ok();
        let in_header = headers
            .iter()
            .any(|header| header.contains(&len) && header.start != len);
        let in_content = contents.iter().any(|content| content.contains(&len));
        if in_header || in_content || !taken {
            refusal(&scratch, &name, &image)?;
        } else {
            sluice::run(["check", &target, "--against", &image.reference()])?;
        }
    }
    Ok(())
}

#[test]
fn a_file_that_claims_more_than_there_is_is_refused() -> Result<()> {
    for claimed in [10_000, 1 << 33, u64::MAX / 2] {
        let entry = Entry::file("f", b"few bytes").claimed_len(claimed).gnu();
        assert_refused(
            &format!("claims-{claimed}"),
            Layer::of([entry]),
            &["tar", "limit", "end"],
        )?;
    }
    Ok(())
}

#[test]
fn stored_bytes_that_end_early_or_go_on_are_refused() -> Result<()> {
    let scratch = Scratch::new("streams")?;
    for compression in [Compression::Gzip, Compression::Zstd] {
        let layer = Layer::of([Entry::generated("f", 200_000, 1)]).compression(compression);
        let mut stored = Vec::new();
        let (diff_id, plain_len) = layer.write_stored(&mut stored)?;
        for (name, bytes) in [
            ("half", stored[..stored.len() / 2].to_vec()),
            ("without-its-end", stored[..stored.len() - 3].to_vec()),
            (
                "with-garbage",
                [stored.as_slice(), b"garbage that is no member"].concat(),
            ),
            ("twice", [stored.as_slice(), stored.as_slice()].concat()),
        ] {
            let name = format!("{name}-{compression:?}");
            let writer = LayoutWriter::open(&scratch.join(&name))?;
            let record = writer.put_layer_from(compression.media_type(), |out| {
                out.write_all(&bytes)?;
                Ok((diff_id.clone(), plain_len))
            })?;
            let image = ImageBuilder::new().write_with(&writer, vec![record], "hostile")?;
            refusal(&scratch, &name, &image)?;
        }
    }
    Ok(())
}

#[test]
fn a_layer_with_another_diff_id_is_refused_by_name() -> Result<()> {
    let scratch = Scratch::new("diff-id")?;
    let writer = LayoutWriter::open(&scratch.join("source"))?;
    let mut record = writer.put_layer(&Layer::of([Entry::file("f", b"x")]))?;
    let wrong = format!("sha256:{}", "ab".repeat(32));
    record.diff_id.clone_from(&wrong);
    let image = ImageBuilder::new().write_with(&writer, vec![record], "hostile")?;
    let said = refusal(&scratch, "diff-id", &image)?;
    ensure!(said.contains(&wrong), "the expected DiffID is not named: {said}");
    Ok(())
}

#[test]
fn hard_links_that_lead_nowhere_are_refused() -> Result<()> {
    let cases = [
        (
            "cycle",
            vec![Entry::hard_link("a", "b"), Entry::hard_link("b", "a")],
        ),
        ("itself", vec![Entry::hard_link("a", "a")]),
        ("missing", vec![Entry::hard_link("a", "nothing/here")]),
        (
            "directory",
            vec![Entry::directory("d", 0o755), Entry::hard_link("a", "d")],
        ),
        ("outside", vec![Entry::hard_link("a", "../../../../etc/hostname")]),
    ];
    for (name, entries) in cases {
        assert_refused(name, Layer::of(entries), &["link", "path traversal"])?;
    }
    Ok(())
}

#[test]
fn loops_of_symbolic_links_are_refused() -> Result<()> {
    let looping = [
        Entry::symlink("a", "b"),
        Entry::symlink("b", "a"),
        Entry::file("a/f", b"x"),
    ];
    assert_refused("loop", Layer::of(looping), &["link"])?;
    let itself = [Entry::symlink("a", "a"), Entry::file("a/f", b"x")];
    assert_refused("itself", Layer::of(itself), &["link"])
}

#[test]
fn limits_are_named_with_their_values() -> Result<()> {
    let deep = vec!["d"; 3000].join("/");
    assert_refused("path", Layer::of([Entry::file(deep, b"x")]), &["limit of"])?;
    let component = vec![b'n'; 300];
    assert_refused("name", Layer::of([Entry::file(component, b"x")]), &["255"])?;
    let record = Entry::file("f", b"x").record("comment", vec![b'x'; 5 << 20]);
    assert_refused("record", Layer::of([record]), &["limit of"])?;
    let many = (0..2000).fold(Entry::file("f", b"x"), |file, at| {
        file.xattr(&format!("user.{at}"), b"v")
    });
    assert_refused("attributes", Layer::of([many]), &["limit of"])?;
    let segments = (0..70_000).map(|at| (at * 1024, vec![1; 512])).collect();
    let sparse = Sparse {
        encoding: SparseEncoding::Pax10,
        segments,
        real_len: 70_000 * 1024,
    };
    assert_refused("segments", Layer::of([Entry::sparse("f", sparse)]), &["limit of"])
}

#[test]
fn names_that_no_directory_can_hold_are_refused() -> Result<()> {
    let nul = Entry::file("placeholder", b"x").record("path", b"a\0b");
    assert_refused("nul", Layer::of([nul]), &["tar", "name"])?;
    for name in [".wh.", ".wh..", ".wh...", "d/.wh.", "d/.wh..."] {
        assert_refused(
            "whiteout",
            Layer::of([Entry::file(name, b"")]),
            &["whiteout", "name"],
        )?;
    }
    Ok(())
}

#[test]
fn wrong_sparse_maps_are_refused() -> Result<()> {
    let sparse = |encoding, segments: Vec<(u64, Vec<u8>)>, real_len| {
        let sparse = Sparse {
            encoding,
            segments,
            real_len,
        };
        Layer::of([Entry::sparse("f", sparse)])
    };
    for (encoding, _) in SparseEncoding::PAX {
        assert_refused(
            "overlap",
            sparse(encoding, vec![(0, vec![1; 1024]), (512, vec![2; 512])], 4096),
            &["sparse"],
        )?;
        assert_refused(
            "beyond",
            sparse(encoding, vec![(4096, vec![1; 512])], 1000),
            &["sparse"],
        )?;
        assert_refused(
            "backwards",
            sparse(encoding, vec![(4096, vec![1; 512]), (0, vec![2; 512])], 8192),
            &["sparse"],
        )?;
    }
    let missing = Entry::file("f", b"x")
        .record("GNU.sparse.major", b"1")
        .record("GNU.sparse.minor", b"0");
    assert_refused("no-map", Layer::of([missing]), &["sparse"])
}

#[test]
fn a_header_with_a_wrong_checksum_is_refused() -> Result<()> {
    let mut plain = Layer::of([Entry::file("f", b"x")]).plain()?;
    plain[0] = b'g';
    assert_refused(
        "checksum",
        Layer::new().raw(plain).closing_blocks(0),
        &["checksum"],
    )?;
    let noise: Vec<u8> = (0..4096u32).map(|at| (at * 31 % 251) as u8).collect();
    assert_refused("noise", Layer::new().raw(noise).closing_blocks(0), &["tar"])?;
    let mut negative = [0; entry::BLOCK];
    negative[..1].copy_from_slice(b"f");
    negative[124..136].fill(0xff);
    negative[156] = b'0';
    header::put_checksum(&mut negative);
    assert_refused("negative-length", Layer::new().raw(negative), &["tar"])
}

/// Peak resident memory of the children that have ended, in bytes.
fn peak_memory_of_children() -> Result<u64> {
    Ok(u64::try_from(getrusage(UsageWho::RUSAGE_CHILDREN)?.max_rss())? * 1024)
}

/// Memory that converting may take whatever a layer expands to; the design promises 200 MB to optimised builds.
const MEMORY_MAX: u64 = 400 << 20;

#[test]
fn a_gigabyte_of_zeros_in_a_megabyte_takes_no_gigabyte_of_memory() -> Result<()> {
    let scratch = Scratch::new("bomb")?;
    for compression in [Compression::Gzip, Compression::Zstd] {
        let layer = Layer::of([Entry::zeros("zeros", 1 << 30)]).compression(compression);
        let image = image_of(&scratch, &format!("{compression:?}"), [layer])?;
        let converted = sluice::convert(
            &image.reference(),
            &scratch.join(format!("c-{compression:?}")),
            "c",
            &[],
        )?;
        sluice::run(["check", &converted])?;
        let peak = peak_memory_of_children()?;
        ensure!(peak < MEMORY_MAX, "{compression:?}: {} MiB", peak >> 20);
    }
    Ok(())
}

#[test]
fn a_zstd_frame_that_asks_for_a_window_of_gigabytes_does_not_get_it() -> Result<()> {
    let scratch = Scratch::new("window")?;
    // Magic, a descriptor without content size, a window of 2^41 bytes, and an empty last block.
    let frame = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 31 << 3, 0x01, 0x00, 0x00];
    let writer = LayoutWriter::open(&scratch.join("source"))?;
    let empty = sluice_tests::document::digest(b"");
    let record = writer.put_layer_from(Compression::Zstd.media_type(), |out| {
        out.write_all(&frame)?;
        Ok((empty, 0))
    })?;
    let image = ImageBuilder::new().write_with(&writer, vec![record], "hostile")?;
    refusal(&scratch, "window", &image)?;
    ensure!(peak_memory_of_children()? < MEMORY_MAX);
    Ok(())
}

#[test]
fn documents_beyond_the_limits_are_refused() -> Result<()> {
    let scratch = Scratch::new("documents")?;
    let layers = (0..600).map(|at| Layer::of([Entry::file(format!("f{at}"), b"x")]));
    let image = image_of(&scratch, "many-layers", layers)?;
    let said = refusal(&scratch, "many-layers", &image)?;
    ensure!(said.contains("limit of 512"), "{said}");

    let padding = json!({"org.example.padding": "x".repeat(9 << 20)});
    let layer = Layer::of([Entry::file("f", b"x")]);
    let large = ImageBuilder::new().layer(layer.clone()).annotations(padding);
    let said = refusal(
        &scratch,
        "large-manifest",
        &large.write(&scratch.join("large"), "hostile")?,
    )?;
    ensure!(said.contains("limit") || said.contains("larger"), "{said}");

    let fewer = ImageBuilder::new()
        .layer(layer)
        .config("/rootfs/diff_ids", json!([]));
    refusal(
        &scratch,
        "fewer-diff-ids",
        &fewer.write(&scratch.join("fewer"), "hostile")?,
    )?;
    Ok(())
}

/// A path that climbs out is refused, or leads to a place inside, as containerd has it; each is an image of its own.
#[test]
fn privileged_paths_that_climb_out_stay_inside() -> Result<()> {
    let scratch = Scratch::new("climb")?;
    let below_root = [
        (
            "climbed",
            vec![Entry::file("../../../../../../climbed", b"inside")],
        ),
        (
            "beside",
            vec![
                Entry::directory("d", 0o755),
                Entry::file("d/../../beside", b"inside"),
            ],
        ),
        ("absolute", vec![Entry::file("/absolute", b"inside")]),
        (
            "through-link",
            vec![
                Entry::symlink("out", "/../../../.."),
                Entry::file("out/through-link", b"inside"),
            ],
        ),
        (
            "linked",
            vec![
                Entry::file("f", b"inside"),
                Entry::hard_link("linked", "/../../f"),
            ],
        ),
    ];
    for (name, entries) in below_root {
        let image = image_of(&scratch, name, [Layer::of(entries)])?;
        let Ok(converted) = sluice::convert(&image.reference(), &scratch.join(format!("{name}-c")), "c", &[])
        else {
            let said = refusal(&scratch, name, &image)?;
            ensure!(said.contains("path traversal"), "{said}");
            continue;
        };
        for front in FRONTS {
            let mounted = Mounting::new(&converted, front).mount()?;
            let content =
                fs::read(mounted.directory.join(name)).with_context(|| format!("{front}: {name}"))?;
            assert_eq!(content, b"inside", "{front}: {name}");
            mounted.unmount()?;
        }
        ensure!(!Path::new("/").join(name).exists(), "/{name} was written");
    }
    Ok(())
}
