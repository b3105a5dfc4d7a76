//! Messages that `build.rs` generates from `proto/cri.proto`.

#![expect(unused_qualifications, unreachable_pub, reason = "generated code")]

use std::fmt;

tonic::include_proto!("runtime.v1");

impl fmt::Debug for AuthConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AuthConfig(hidden)")
    }
}
