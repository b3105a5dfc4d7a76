//! Promise: only its owner reaches the snapshots service, it never takes a socket from a living process, and an operation
//! that was started ends even if its caller goes away.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;

use anyhow::Result;
use sluice_snapshotter::{ErrorKind, socket};
use sluice_tests::scratch::Scratch;
use sluice_tests::snapshots::{Labels, Service};

#[tokio::test]
async fn a_socket_is_for_its_owner_alone() -> Result<()> {
    let scratch = Scratch::new("mode")?;
    let path = scratch.join("run/sluice/s.sock");
    let _listener = socket::bind(&path).await?;
    assert_eq!(fs::metadata(&path)?.permissions().mode() & 0o7777, 0o600);
    let names = fs::read_dir(scratch.join("run/sluice"))?.count();
    assert_eq!(names, 1, "the name it was made under is gone");
    Ok(())
}

#[tokio::test]
async fn a_socket_that_nobody_listens_on_is_replaced() -> Result<()> {
    let scratch = Scratch::new("stale")?;
    let path = scratch.join("s.sock");
    drop(UnixListener::bind(&path)?);
    drop(socket::bind(&path).await?);
    let _listener = socket::bind(&path).await?;
    assert!(tokio::net::UnixStream::connect(&path).await.is_ok());
    Ok(())
}

#[tokio::test]
async fn a_socket_in_use_and_a_file_are_left_alone() -> Result<()> {
    let scratch = Scratch::new("used")?;
    let path = scratch.join("s.sock");
    let listener = UnixListener::bind(&path)?;
    let refused = socket::bind(&path).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::FailedPrecondition);
    assert!(
        refused.to_string().contains("another process listens"),
        "{refused}"
    );
    drop(listener);
    let file = scratch.join("file");
    fs::write(&file, "precious")?;
    let refused = socket::bind(&file).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::FailedPrecondition);
    assert_eq!(fs::read(&file)?, b"precious");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_an_operation_ends_without_its_caller() -> Result<()> {
    let mut service = Service::start("gone").await?;
    for at in 0..50 {
        let key = format!("k{at}");
        let none = Labels::new();
        let asked = service.client.prepare(&key, "", &none);
        // Gone at any moment between sending and answer.
        let _ = tokio::time::timeout(std::time::Duration::from_micros(at * 100), asked).await;
    }
    service.stop().await?;
    service.start_again().await?;
    let names = service.client.names().await?;
    for name in &names {
        let mounts = service.client.mounts(name).await?;
        assert!(std::path::Path::new(&mounts[0].source).is_dir(), "{name}");
    }
    let directories = fs::read_dir(service.root().join("snapshots"))?.count();
    assert_eq!(directories, names.len());
    Ok(())
}
