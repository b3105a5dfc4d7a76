//! Harness for tests that drive the real `sluice` binary on real images, registries and kernels.
//!
//! [`images`] writes OCI layouts with full control over every tar header; [`debian`] has real images made from Debian
//! packages; [`foreign`] has other tools make theirs of them; [`registry`] serves them, counts what is asked for and injects faults; [`web_server`] publishes directories; [`containerd`] is a private
//! containerd to compare with, and [`cri`] and [`pods`] speak to it as kubelet does; [`host`] is one with `sluice snapshotter`; [`mounted`] runs `sluice mount`; [`installed`] is a host after `sluice install`, [`crowd`] one with many
//! images, [`machine`] one that was just installed;
//! [`snapshots`] runs the snapshots service and speaks to it as containerd does; [`workload`] is what containers do while they must notice
//! nothing; [`tree_compare`] says how two mounted trees differ.
//! What a test needs from the machine is asked for through [`prerequisites`], which fails loudly and names the package.

pub mod containerd;
pub mod cri;
pub mod crowd;
pub mod debian;
pub mod document;
pub mod erofs_tools;
pub mod foreign;
pub mod host;
pub mod images;
pub mod installed;
pub mod machine;
pub mod mounted;
pub mod mountinfo;
pub mod numbers;
pub mod pods;
pub mod prerequisites;
pub mod process;
pub mod registry;
pub mod scratch;
pub mod sluice;
pub mod snapshots;
pub mod systemd;
pub mod takeover;
pub mod tree_compare;
pub mod web_server;
pub mod workload;
