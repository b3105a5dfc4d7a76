//! Messages, client and service that `build.rs` generates from `proto/`, in modules that mirror the packages.

#![expect(
    unused_qualifications,
    unreachable_pub,
    clippy::allow_attributes,
    reason = "generated code"
)]

pub use containerd::services::snapshots::v1 as snapshots;
pub use containerd::types;

mod containerd {
    pub mod types {
        tonic::include_proto!("containerd.types");
    }

    pub mod services {
        pub mod snapshots {
            pub mod v1 {
                tonic::include_proto!("containerd.services.snapshots.v1");
            }
        }
    }
}
