//! Promise: a mounted image has the tree that containerd's overlayfs unpack of the unconverted image has, in both front
//! ends, whatever odd things its layers do, and whether it was converted, or has indexes attached or is streamed as it is.

use std::collections::BTreeSet;

use anyhow::Result;
use sluice_tests::containerd::Containerd;
use sluice_tests::document::Layout;
use sluice_tests::foreign::{self, Writer};
use sluice_tests::images::{Compression, Entry, Image, ImageBuilder, Layer, apart, edge, large};
use sluice_tests::mounted::{FRONTS, Mounting};
use sluice_tests::registry::CountingRegistry;
use sluice_tests::scratch::Scratch;
use sluice_tests::tree_compare::{Exceptions, compare};
use sluice_tests::{debian, sluice};

/// Compares containerd's view of an unconverted image with `converted` in both front ends, and the front ends with each
/// other.
fn assert_same_tree(layout: &Layout, tag: &str, converted: &str, exceptions: &Exceptions) -> Result<()> {
    let registry = CountingRegistry::serve(layout)?;
    let containerd = Containerd::start()?;
    let reference = format!("{}/test:{tag}", registry.address());
    containerd.pull(&reference)?;
    let view = containerd.view(&reference, "view")?;
    let mounts = FRONTS.map(|front| Mounting::new(converted, front).mount());
    let [erofs, fuse] = mounts;
    let (erofs, fuse) = (erofs?, fuse?);
    let against_erofs = compare(&view.directory, &erofs.directory, exceptions)?;
    let against_fuse = compare(&view.directory, &fuse.directory, exceptions)?;
    anyhow::ensure!(
        against_erofs.is_none() && against_fuse.is_none(),
        "erofs: {against_erofs}\nfuse: {against_fuse}"
    );
    let between = Exceptions {
        contents: true,
        ..Exceptions::none()
    };
    compare(&erofs.directory, &fuse.directory, &between)?.assert_none()?;
    erofs.unmount()?;
    fuse.unmount()
}

fn assert_same_tree_converted_now(image: &Image, scratch: &Scratch, exceptions: &Exceptions) -> Result<()> {
    let converted = sluice::convert(&image.reference(), &scratch.join("converted"), "c", &[])?;
    assert_same_tree(&image.layout, &image.tag, &converted, exceptions)
}

fn by_containerd() -> Exceptions {
    Exceptions::of_containerd(&[], &[])
}

#[test]
fn privileged_every_odd_tar_entry_looks_as_containerd_unpacks_it() -> Result<()> {
    let scratch = Scratch::new("edge")?;
    let image = edge::write(&scratch.join("source"))?;
    let exceptions = Exceptions::of_containerd(&edge::IMPLIED_DIRECTORIES, &edge::LOST_A_NAME);
    assert_same_tree_converted_now(&image, &scratch, &exceptions)
}

/// The one place where Sluice knowingly differs: containerd lets `user` attributes of the lower directory shine through when
/// a child comes before the directory's own entry. The entry describes the directory; where it stands in the tar does not.
#[test]
fn privileged_a_directory_described_after_its_children_has_the_attributes_of_its_entry() -> Result<()> {
    let scratch = Scratch::new("late")?;
    let image = apart::described_late(&scratch.join("source"))?;
    let exceptions = Exceptions {
        lossy: [b"late".to_vec()].into(),
        ..by_containerd()
    };
    assert_same_tree_converted_now(&image, &scratch, &exceptions)
}

#[test]
fn privileged_an_opaque_root_hides_every_lower_layer() -> Result<()> {
    let scratch = Scratch::new("opaque-root")?;
    let image = apart::opaque_root(&scratch.join("source"))?;
    let exceptions = Exceptions::of_containerd(&["d"], &[]);
    assert_same_tree_converted_now(&image, &scratch, &exceptions)
}

#[test]
fn privileged_a_directory_deleted_and_made_anew_in_one_layer_is_the_same() -> Result<()> {
    let scratch = Scratch::new("anew")?;
    let image = apart::made_anew(&scratch.join("source"))?;
    assert_same_tree_converted_now(&image, &scratch, &by_containerd())
}

#[test]
fn privileged_old_gnu_sparse_files_have_the_content_that_gnu_tar_gives_them() -> Result<()> {
    let scratch = Scratch::new("old-gnu")?;
    let (image, contents) = apart::old_gnu_sparse(&scratch.join("source"))?;
    let converted = sluice::convert(&image.reference(), &scratch.join("converted"), "c", &[])?;
    for front in FRONTS {
        let mounted = Mounting::new(&converted, front).mount()?;
        for (name, content) in &contents {
            anyhow::ensure!(
                std::fs::read(mounted.directory.join(name))? == *content,
                "{front}: {name}"
            );
        }
        mounted.unmount()?;
    }
    Ok(())
}

#[test]
fn privileged_a_hard_link_to_a_lower_layer_is_one_file_with_its_target() -> Result<()> {
    let scratch = Scratch::new("lower-link")?;
    let image = apart::lower_hard_link(&scratch.join("source"))?;
    let converted = sluice::convert(&image.reference(), &scratch.join("converted"), "c", &[])?;
    for front in FRONTS {
        let mounted = Mounting::new(&converted, front).mount()?;
        let (target, name) = (
            mounted.directory.join("d/target"),
            mounted.directory.join("d/name"),
        );
        assert_eq!(std::fs::read(&name)?, b"from below", "{front}");
        use std::os::unix::fs::MetadataExt;
        let (target, name) = (std::fs::metadata(target)?, std::fs::metadata(name)?);
        assert_eq!((target.ino(), target.nlink()), (name.ino(), 2), "{front}");
        assert_eq!((name.uid(), name.gid()), (7, 8), "{front}");
        mounted.unmount()?;
    }
    Ok(())
}

#[test]
fn privileged_sixty_layers_stack_as_in_containerd() -> Result<()> {
    let scratch = Scratch::new("many-layers")?;
    let image = large::many_layers(&scratch.join("source"), 60)?;
    assert_same_tree_converted_now(&image, &scratch, &by_containerd())
}

#[test]
fn privileged_a_directory_of_a_hundred_thousand_entries_is_whole() -> Result<()> {
    let scratch = Scratch::new("wide")?;
    let image = large::wide_directory(&scratch.join("source"), 100_000)?;
    assert_same_tree_converted_now(&image, &scratch, &by_containerd())
}

#[test]
fn privileged_every_odd_tar_entry_looks_the_same_when_the_image_is_streamed() -> Result<()> {
    let scratch = Scratch::new("edge-streamed")?;
    let image = edge::write(&scratch.join("source"))?;
    let exceptions = Exceptions::of_containerd(&edge::IMPLIED_DIRECTORIES, &edge::LOST_A_NAME);
    assert_same_tree(&image.layout, &image.tag, &image.reference(), &exceptions)
}

/// A layer of every compression, and two that are empty.
fn every_compression(scratch: &Scratch) -> Result<Image> {
    let all = [
        Compression::None,
        Compression::Gzip,
        Compression::GzipMembers(70_000),
        Compression::Zstd,
        Compression::ZstdFrames(90_000),
    ];
    let layer = |(at, compression): (u64, Compression)| {
        let own = Entry::generated(format!("of-{at}"), 700_000 + at, at);
        let shared = Entry::generated("of-all", 200_000 - at, 100 + at);
        Layer::of([own, shared, Entry::directory("d", 0o755)]).compression(compression)
    };
    let layers = (0..).zip(all).map(layer);
    ImageBuilder::new()
        .layers(layers)
        .layer(Layer::new())
        .layer(Layer::new().closing_blocks(0))
        .write(&scratch.join("source"), "all")
}

#[test]
fn privileged_layers_of_every_compression_are_streamed_alike() -> Result<()> {
    let scratch = Scratch::new("compressions")?;
    let image = every_compression(&scratch)?;
    assert_same_tree(&image.layout, &image.tag, &image.reference(), &by_containerd())
}

#[test]
fn privileged_layers_of_every_compression_are_indexed_alike() -> Result<()> {
    let scratch = Scratch::new("compressions-indexed")?;
    let image = every_compression(&scratch)?;
    sluice::run(["index", &image.reference()])?;
    assert_same_tree(&image.layout, &image.tag, &image.reference(), &by_containerd())
}

#[test]
fn privileged_every_odd_tar_entry_looks_the_same_when_the_image_is_indexed() -> Result<()> {
    let scratch = Scratch::new("edge-indexed")?;
    let image = edge::write(&scratch.join("source"))?;
    sluice::run(["index", &image.reference()])?;
    let exceptions = Exceptions::of_containerd(&edge::IMPLIED_DIRECTORIES, &edge::LOST_A_NAME);
    assert_same_tree(&image.layout, &image.tag, &image.reference(), &exceptions)
}

/// Every kind of entry, as far as the tools that write other lazy formats take it: they refuse or lose most of the odd ones.
fn kinds_of_entries(scratch: &Scratch) -> Result<Image> {
    let long = format!("d/{}/{}", "n".repeat(120), "long");
    let mut holes = vec![b'x'; 70_000];
    holes.resize(400_000, 0);
    holes.extend([b'y'; 5_000]);
    let lower = [
        Entry::directory("d", 0o2750)
            .owner(7, 8)
            .xattr("user.d", "of a directory"),
        Entry::file("d/gone", b"gone"),
        Entry::file("d/changed", b"below"),
        Entry::directory("e", 0o755),
        Entry::file("e/hidden", b"hidden"),
        Entry::directory("s", 0o1777),
        Entry::symlink("s/link", "../d/changed"),
    ];
    let upper = [
        Entry::directory("d", 0o2750)
            .owner(7, 8)
            .xattr("user.d", "of a directory"),
        Entry::whiteout("d/gone"),
        Entry::file("d/changed", b"above").mode(0o4755).owner(70_000, 3),
        Entry::generated("d/pieces", 9_000_000, 3),
        Entry::file("d/holes", &holes),
        Entry::zeros("d/zeros", 1_000_000),
        Entry::file("d/empty", b""),
        Entry::file("d/Grüße <&> \"quoted\"", "ähm"),
        Entry::directory(format!("d/{}", "n".repeat(120)), 0o755),
        Entry::file(long, b"a long name"),
        Entry::file("d/linked", b"two names").xattr("user.a", [0, 255, 10]),
        Entry::hard_link("d/other-name", "d/linked").xattr("user.a", [0, 255, 10]),
        Entry::directory("e", 0o711),
        Entry::opaque("e"),
        Entry::file("e/new", b"new"),
        Entry::directory("s", 0o1777),
        Entry::char_device("s/char", 5, 1),
        Entry::block_device("s/block", 259, 70_000),
        Entry::fifo("s/fifo").mode(0o622),
        Entry::file("d/capable", b"#!").xattr("security.capability", CAPABILITY),
    ];
    let many = (0..400).map(|at| Entry::generated(format!("m-{at}"), 100 + at * 7, at));
    ImageBuilder::new()
        .layer(Layer::of(lower))
        .layer(Layer::of(upper.into_iter().chain(many)))
        .write(&scratch.join("source"), "kinds")
}

/// `cap_net_raw=ep`.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn assert_same_tree_in_foreign_format(writer: Writer) -> Result<()> {
    let scratch = Scratch::new("foreign-kinds")?;
    let image = kinds_of_entries(&scratch)?;
    assert_same_tree_written_by(writer, &image, &scratch)
}

fn assert_same_tree_written_by(writer: Writer, image: &Image, scratch: &Scratch) -> Result<()> {
    let layout = writer.write(image, &scratch.join("foreign"))?;
    let reference = format!("oci:{}:{}", layout.directory.display(), foreign::TAG);
    let mounted = Mounting::new(&reference, "fuse").mount()?;
    let used = std::fs::read_dir(mounted.cache.join("tocs"))?.count();
    mounted.unmount()?;
    let layers: BTreeSet<String> = layout.image(foreign::TAG)?.layer_digests()?.into_iter().collect();
    anyhow::ensure!(
        used == layers.len(),
        "{writer:?}: {used} of {} layers are read as they are",
        layers.len()
    );
    assert_same_tree(&layout, foreign::TAG, &reference, &by_containerd())
}

#[test]
fn privileged_every_kind_of_entry_is_the_same_in_zstd_chunked_of_skopeo() -> Result<()> {
    assert_same_tree_in_foreign_format(Writer::Skopeo)
}

#[test]
fn privileged_every_kind_of_entry_is_the_same_in_zstd_chunked_of_a_recent_skopeo() -> Result<()> {
    assert_same_tree_in_foreign_format(Writer::RecentSkopeo)
}

#[test]
fn privileged_every_kind_of_entry_is_the_same_in_zstd_chunked_of_stargz() -> Result<()> {
    assert_same_tree_in_foreign_format(Writer::StargzZstd)
}

#[test]
fn privileged_every_kind_of_entry_is_the_same_in_estargz() -> Result<()> {
    assert_same_tree_in_foreign_format(Writer::Estargz)
}

#[test]
fn privileged_every_kind_of_entry_is_the_same_in_estargz_with_common_members() -> Result<()> {
    assert_same_tree_in_foreign_format(Writer::EstargzShared)
}

#[test]
fn privileged_every_kind_of_entry_is_the_same_in_estargz_with_its_table_apart() -> Result<()> {
    assert_same_tree_in_foreign_format(Writer::EstargzApart)
}

#[test]
fn privileged_fractions_of_seconds_are_the_same_in_zstd_chunked() -> Result<()> {
    let source = Scratch::new("foreign-times")?;
    let entries = [
        Entry::file("f", b"f").mtime(1_700_000_000, 123_456_789),
        Entry::directory("d", 0o755).mtime(1_700_000_001, 5),
        Entry::file("old", b"").mtime(0, 0),
    ];
    let image = ImageBuilder::new()
        .layer(Layer::of(entries))
        .write(&source.join("source"), "times")?;
    for writer in [Writer::Skopeo, Writer::RecentSkopeo] {
        assert_same_tree_written_by(writer, &image, &Scratch::new("foreign-times")?)?;
    }
    Ok(())
}

/// A small real image as another tool writes it.
fn real(writer: Writer) -> Result<()> {
    let (layout, scratch) = (debian::layout()?, Scratch::new("foreign-real")?);
    let image = Image {
        digest: layout.top(debian::SMALL)?.0,
        layout,
        tag: debian::SMALL.to_owned(),
        layers: Vec::new(),
    };
    assert_same_tree_written_by(writer, &image, &scratch)
}

#[test]
fn privileged_a_small_real_image_is_the_same_in_zstd_chunked() -> Result<()> {
    real(Writer::RecentSkopeo)
}

#[test]
fn privileged_a_small_real_image_is_the_same_in_estargz() -> Result<()> {
    real(Writer::Estargz)
}

#[test]
fn privileged_a_small_real_image_is_the_same_when_it_is_streamed() -> Result<()> {
    let layout = debian::layout()?;
    let reference = format!("oci:{}:{}", layout.directory.display(), debian::SMALL);
    assert_same_tree(&layout, debian::SMALL, &reference, &by_containerd())
}

#[test]
fn privileged_a_small_real_image_is_the_same() -> Result<()> {
    assert_same_tree(
        &debian::layout()?,
        debian::SMALL,
        &debian::converted(debian::SMALL)?,
        &by_containerd(),
    )
}

#[test]
fn privileged_a_gigabyte_real_image_is_the_same() -> Result<()> {
    assert_same_tree(
        &debian::layout()?,
        debian::LARGE,
        &debian::converted(debian::LARGE)?,
        &by_containerd(),
    )
}

#[test]
fn privileged_heavy_holes_beyond_4_gib_are_the_same() -> Result<()> {
    let scratch = Scratch::new("holes")?;
    let image = large::holes_over_4_gib(&scratch.join("source"))?;
    assert_same_tree_converted_now(&image, &scratch, &by_containerd())
}

#[test]
#[ignore = "slow: writes and reads more than 4 GiB several times; CI runs it with --run-ignored all"]
fn privileged_heavy_bytes_beyond_4_gib_are_the_same() -> Result<()> {
    let scratch = Scratch::new("bytes")?;
    let image = large::bytes_over_4_gib(&scratch.join("source"))?;
    assert_same_tree_converted_now(&image, &scratch, &by_containerd())
}
