//! Generates a client of Kubernetes' image service, without `protoc`.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=../cli/proto/cri.proto");
    let files = protox::compile(["cri.proto"], ["../cli/proto"])?;
    tonic_prost_build::configure()
        .build_server(false)
        .compile_fds(files)?;
    Ok(())
}
