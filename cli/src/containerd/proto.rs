//! Messages and clients that `build.rs` generates from `proto/`, in modules that mirror the packages.

#![expect(unused_qualifications, unreachable_pub, reason = "generated code")]

pub(crate) use containerd::services::{content, diff, images, introspection, leases, version};
pub(crate) use containerd::types;

mod containerd {
    pub mod types {
        tonic::include_proto!("containerd.types");
    }

    pub mod services {
        pub mod content {
            pub mod v1 {
                tonic::include_proto!("containerd.services.content.v1");
            }
        }
        pub mod diff {
            pub mod v1 {
                tonic::include_proto!("containerd.services.diff.v1");
            }
        }
        pub mod images {
            pub mod v1 {
                tonic::include_proto!("containerd.services.images.v1");
            }
        }
        pub mod introspection {
            pub mod v1 {
                tonic::include_proto!("containerd.services.introspection.v1");
            }
        }
        pub mod version {
            pub mod v1 {
                tonic::include_proto!("containerd.services.version.v1");
            }
        }
        pub mod leases {
            pub mod v1 {
                tonic::include_proto!("containerd.services.leases.v1");
            }
        }
    }
}
