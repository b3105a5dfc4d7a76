//! An image is browsed from its indexes alone.

use futures_util::TryStreamExt;
use sluice_converter::look::FileKind;
use sluice_converter::{ImageBrowser, Silent, convert, inspect};
use sluice_format::Limits;
use sluice_storage::{ErrorKind, Platform};

use crate::images::*;

fn amd64() -> Platform {
    "linux/amd64".parse().unwrap()
}

async fn browser() -> ImageBrowser {
    let links = Tar::new()
        .symlink("loop", "loop")
        .symlink("abs", "/bin/../etc/long")
        .symlink("etc/up", "../../../bin");
    let source = Place::with_layers(&[
        Layer::gzip(&base_tar()),
        Layer::gzip(&upper_tar()),
        Layer::gzip(&links.finish()),
    ])
    .await;
    let (target, _) = converted(&source).await;
    // The directory goes with its place, so the blobs must outlive the test.
    let source = target.source();
    std::mem::forget(target);
    ImageBrowser::open(&source, &amd64(), &Limits::default())
        .await
        .unwrap()
}

async fn content(browser: &ImageBrowser, path: &str) -> Vec<u8> {
    let pieces: Vec<_> = browser.cat(path.as_bytes()).unwrap().try_collect().await.unwrap();
    pieces.concat()
}

#[test]
fn files_are_found_through_links_within_the_image() {
    run(async {
        let browser = browser().await;
        assert_eq!(content(&browser, "/bin/sh").await, text(700_000, 1));
        assert_eq!(content(&browser, "abs").await, text(100, 3));
        assert_eq!(content(&browser, "etc/up/../new").await, b"new\n");
        assert_eq!(content(&browser, "etc/empty").await, b"");
        let kind = |path: &str| browser.cat(path.as_bytes()).map(drop).unwrap_err().kind();
        assert_eq!(kind("etc/hosts"), ErrorKind::NotFound);
        assert_eq!(kind("etc"), ErrorKind::InvalidInput);
        assert_eq!(kind("loop"), ErrorKind::InvalidInput);
    });
}

#[test]
fn listings_are_sorted_and_complete() {
    run(async {
        let browser = browser().await;
        let paths = |path: &str, recursive| {
            let listed = browser.list(path.as_bytes(), recursive).unwrap();
            listed
                .into_iter()
                .map(|file| String::from_utf8(file.path).unwrap())
                .collect::<Vec<_>>()
        };
        assert_eq!(paths("/", false), ["/abs", "/bin", "/etc", "/loop", "/new"]);
        assert_eq!(paths("etc", false), ["/etc/empty", "/etc/long", "/etc/up"]);
        assert_eq!(paths("etc/up", true), ["/bin/same", "/bin/sh", "/bin/tool"]);
        assert_eq!(paths("/", true).len(), 11);
        assert_eq!(paths("new", true), ["/new"]);
    });
}

#[test]
fn attributes_are_those_of_the_tar() {
    run(async {
        let browser = browser().await;
        let tool = browser.stat(b"bin/tool").unwrap();
        assert_eq!(
            (tool.kind, tool.size, tool.permissions, tool.link_count),
            (FileKind::Regular, 700_000, 0o644, 2)
        );
        assert_eq!(tool.mtime_secs, 1_700_000_000);
        let link = browser.stat(b"bin/sh").unwrap();
        assert_eq!(
            (link.kind, link.link.as_deref()),
            (FileKind::Symlink, Some(&b"tool"[..]))
        );
        let root = browser.stat(b"/").unwrap();
        assert_eq!((root.path, root.link_count), (b"/".to_vec(), 4));
    });
}

#[test]
fn an_unconverted_image_is_described_and_not_browsed() {
    run(async {
        let source = Place::with_layers(&[Layer::gzip(&base_tar())]).await;
        let error = ImageBrowser::open(&source.source(), &amd64(), &Limits::default())
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        let report = inspect(&source.source(), None, &Limits::default()).await.unwrap();
        assert!(!report.manifests[0].is_lazy());
        assert_eq!(report.manifests[0].not_convertible, None);
        assert_eq!(report.manifests[0].platform.as_deref(), Some("linux/amd64"));
        let target = Place::new();
        convert(&source.source(), &target.target(), &options(1), &Silent)
            .await
            .unwrap();
        let report = inspect(&target.source(), None, &Limits::default()).await.unwrap();
        assert!(report.manifests[0].is_lazy());
        let index = report.manifests[0].layers[0].index.unwrap();
        assert_eq!(index.plain_len, base_tar().len() as u64);
    });
}
