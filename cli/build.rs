//! Generates messages and clients of containerd's services from `proto/`, without `protoc`.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = protox::compile(
        [
            "content.proto",
            "cri.proto",
            "diff.proto",
            "images.proto",
            "introspection.proto",
            "leases.proto",
            "version.proto",
        ],
        ["proto", "../snapshotter/proto"],
    )?;
    tonic_prost_build::configure()
        .btree_map(".")
        .build_server(false)
        // Written by hand, without the secrets.
        .skip_debug([".runtime.v1.AuthConfig"])
        .extern_path(
            ".containerd.types.Mount",
            "::sluice_snapshotter::proto::types::Mount",
        )
        .compile_fds(files)?;
    Ok(())
}
