//! Generates a client of Kubernetes' image and runtime services, without `protoc`.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=../cli/proto/cri.proto");
    println!("cargo:rerun-if-changed=proto");
    let files = protox::compile(["cri.proto", "cri_runtime.proto"], ["../cli/proto", "proto"])?;
    tonic_prost_build::configure()
        .build_server(false)
        .compile_fds(files)?;
    Ok(())
}
