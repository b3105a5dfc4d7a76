//! A file tree with one of everything, as an image over two plain layers and as a directory to compare with.

use std::ffi::CString;
use std::fs;
use std::os::unix::fs::{PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};
use sluice_format::inode::{Attributes, Device, Timestamp};
use sluice_format::tree::{Directory, Extent, ExtentSource, FileContent};
use sluice_format::{EntryName, Node, NodeId, NodeKind, Tree};

use super::sources::Memory;
use std::sync::Arc;

/// Block that plain layers are aligned to.
const BLOCK: usize = 512;

/// A valid `security.capability`: version 2, `cap_net_raw` permitted and effective.
pub(crate) const CAPABILITY: &[u8] = &[1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// A piece of a file.
pub(crate) enum Piece {
    /// Bytes that lie in a plain layer.
    Plain(Vec<u8>),
    /// Bytes that lie in the image tree.
    Literal(Vec<u8>),
    /// Zeros.
    Hole(usize),
}

/// A tree under construction, with its two plain layers and its copy on disk.
pub(crate) struct Sample {
    pub(crate) tree: Tree,
    pub(crate) layers: [Vec<u8>; 2],
    pub(crate) reference: PathBuf,
    late_times: Vec<(PathBuf, Timestamp)>,
}

/// Bytes that follow from a seed.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(|_| next()).collect()
}

impl Sample {
    pub(crate) fn new(reference: PathBuf) -> Self {
        fs::create_dir(&reference).unwrap();
        let mut sample = Self {
            tree: Tree::new(),
            layers: [vec![0; BLOCK], vec![0; 3 * BLOCK]],
            reference,
            late_times: Vec::new(),
        };
        let root = sample.reference.clone();
        sample.dress(&root, &Attributes::default_directory(), true);
        sample
    }

    /// Attributes that differ from one path to the next.
    pub(crate) fn attributes(path: &str, permissions: u16) -> Attributes {
        let seed = path
            .bytes()
            .fold(7_u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
        Attributes {
            permissions,
            uid: seed % 3 * 1000,
            gid: seed % 70_000,
            mtime: Timestamp {
                secs: 1_600_000_000 + u64::from(seed % 1000),
                nanos: seed % 1_000_000_000,
            },
            ..Attributes::default()
        }
    }

    fn parent(&self, path: &str) -> (NodeId, EntryName) {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let mut node = NodeId::ROOT;
        for part in parent.split('/').filter(|part| !part.is_empty()) {
            node = self
                .tree
                .child(node, part.as_bytes())
                .expect("parents are added first");
        }
        (node, EntryName::new(name.as_bytes()).unwrap())
    }

    fn add_node(&mut self, path: &str, kind: NodeKind, attributes: &Attributes) -> NodeId {
        let attributes = attributes.clone();
        let node = self.tree.add(Node { kind, attributes });
        self.name(path, node);
        node
    }

    fn name(&mut self, path: &str, node: NodeId) {
        let (parent, name) = self.parent(path);
        self.tree
            .directory_mut(parent)
            .unwrap()
            .entries
            .insert(name, node);
    }

    /// Gives a file on disk its attributes. Times of directories wait until their children are there.
    fn dress(&mut self, path: &Path, attributes: &Attributes, is_directory: bool) {
        lchown(path, Some(attributes.uid), Some(attributes.gid)).unwrap();
        if !path.is_symlink() {
            fs::set_permissions(path, PermissionsExt::from_mode(attributes.permissions.into())).unwrap();
        }
        for (name, value) in &attributes.xattrs {
            let name = CString::new(name.clone()).unwrap();
            rustix::fs::lsetxattr(path, &name, value, XattrFlags::empty()).unwrap();
        }
        if is_directory {
            self.late_times.push((path.to_owned(), attributes.mtime));
        } else {
            set_time(path, attributes.mtime);
        }
    }

    pub(crate) fn directory(&mut self, path: &str, attributes: &Attributes) {
        self.add_node(path, NodeKind::Directory(Directory::default()), attributes);
        let disk = self.reference.join(path);
        fs::create_dir(&disk).unwrap();
        self.dress(&disk, attributes, true);
    }

    pub(crate) fn symlink(&mut self, path: &str, target: &str, attributes: &Attributes) {
        self.add_node(path, NodeKind::Symlink(target.as_bytes().to_vec()), attributes);
        let disk = self.reference.join(path);
        symlink(target, &disk).unwrap();
        self.dress(&disk, attributes, false);
    }

    pub(crate) fn special(&mut self, path: &str, kind: NodeKind, attributes: &Attributes) {
        let (file_type, device) = match kind {
            NodeKind::CharDevice(device) => (FileType::CharacterDevice, device),
            NodeKind::BlockDevice(device) => (FileType::BlockDevice, device),
            NodeKind::Fifo => (FileType::Fifo, Device::default()),
            _ => (FileType::Socket, Device::default()),
        };
        let disk = self.reference.join(path);
        let number = rustix::fs::makedev(device.major, device.minor);
        rustix::fs::mknodat(CWD, &disk, file_type, Mode::RUSR, number).unwrap();
        self.add_node(path, kind, attributes);
        self.dress(&disk, attributes, false);
    }

    pub(crate) fn hard_link(&mut self, path: &str, target: &str) {
        let (parent, name) = self.parent(target);
        let node = self.tree.child(parent, name.as_bytes()).unwrap();
        self.name(path, node);
        fs::hard_link(self.reference.join(target), self.reference.join(path)).unwrap();
    }

    pub(crate) fn file(&mut self, path: &str, pieces: &[Piece], attributes: &Attributes) {
        let mut content = FileContent::default();
        let mut bytes = Vec::new();
        for piece in pieces {
            let file_off = bytes.len() as u64;
            let extent = |len: usize, source| Extent {
                file_off,
                len: len as u64,
                source,
            };
            match piece {
                Piece::Hole(len) => bytes.resize(bytes.len() + len, 0),
                Piece::Literal(literal) => {
                    content
                        .extents
                        .push(extent(literal.len(), ExtentSource::Literal(literal.clone())));
                    bytes.extend_from_slice(literal);
                }
                Piece::Plain(plain) => {
                    let source = self.store(path.len() % 2, plain);
                    content.extents.push(extent(plain.len(), source));
                    bytes.extend_from_slice(plain);
                }
            }
        }
        content.size = bytes.len() as u64;
        self.add_node(path, NodeKind::Regular(content), attributes);
        let disk = self.reference.join(path);
        fs::write(&disk, bytes).unwrap();
        self.dress(&disk, attributes, false);
    }

    pub(crate) fn simple_file(&mut self, path: &str, bytes: Vec<u8>) {
        let pieces = if bytes.is_empty() {
            vec![]
        } else {
            vec![Piece::Plain(bytes)]
        };
        self.file(path, &pieces, &Self::attributes(path, 0o644));
    }

    /// Puts bytes behind a header block of a layer, as a tar does.
    fn store(&mut self, layer: usize, bytes: &[u8]) -> ExtentSource {
        let plain = &mut self.layers[layer];
        plain.extend_from_slice(&[0xaa; BLOCK]);
        let plain_off = plain.len() as u64;
        plain.extend_from_slice(bytes);
        plain.resize(plain.len().next_multiple_of(BLOCK), 0);
        ExtentSource::Plain {
            device: layer as u16 + 1,
            plain_off,
        }
    }

    /// Both layers as sources, and the times of directories on disk.
    pub(crate) fn finish(&self) -> [Arc<Memory>; 2] {
        for (path, time) in self.late_times.iter().rev() {
            set_time(path, *time);
        }
        [
            Memory::new(self.layers[0].clone()),
            Memory::new(self.layers[1].clone()),
        ]
    }

    /// One of everything.
    pub(crate) fn everything(reference: PathBuf) -> Self {
        let mut sample = Self::new(reference);
        let of = Self::attributes;
        sample.directory("etc", &of("etc", 0o755));
        for (name, len) in [
            ("empty", 0),
            ("one", 1),
            ("block", 512),
            ("page", 4096),
            ("odd", 70_001),
        ] {
            let path = format!("etc/{name}");
            sample.simple_file(&path, noise(len as u64, len));
        }
        let sparse = [
            Piece::Hole(8192),
            Piece::Plain(noise(1, 1024)),
            Piece::Hole(512),
            Piece::Literal(noise(2, 512)),
            Piece::Plain(noise(3, 600)),
        ];
        sample.file("etc/sparse", &sparse, &of("sparse", 0o600));
        sample.file("etc/hole", &[Piece::Hole(100_000)], &of("hole", 0o600));
        sample.hard_link("etc/again", "etc/page");
        sample.symlink("etc/link", "../bin/tool", &of("link", 0o777));
        sample.symlink("etc/long", &"x/".repeat(2000), &of("long", 0o777));
        sample.directory("bin", &of("bin", 0o1777));
        sample.simple_file("bin/päth with blank\n", noise(9, 33));
        let mut tool = of("tool", 0o4755);
        tool.xattrs
            .insert(b"security.capability".to_vec(), CAPABILITY.to_vec());
        tool.xattrs.insert(b"user.empty".to_vec(), Vec::new());
        tool.xattrs.insert(b"user.mime".to_vec(), b"text/plain".to_vec());
        tool.xattrs.insert(b"trusted.note".to_vec(), noise(4, 300));
        sample.file("bin/tool", &[Piece::Plain(noise(5, 5000))], &tool);
        sample.directory("dev", &of("dev", 0o700));
        let device = Device {
            major: 259,
            minor: 70_000,
        };
        sample.special("dev/char", NodeKind::CharDevice(device), &of("char", 0o620));
        sample.special("dev/block", NodeKind::BlockDevice(device), &of("block", 0o660));
        sample.special("dev/fifo", NodeKind::Fifo, &of("fifo", 0o644));
        sample.special("dev/socket", NodeKind::Socket, &of("socket", 0o755));
        sample.directory("many", &of("many", 0o755));
        for number in 0..5000 {
            sample.simple_file(
                &format!("many/entry-{number:05}"),
                noise(number, number as usize % 50),
            );
        }
        sample
    }
}

fn set_time(path: &Path, time: Timestamp) {
    let time = Timespec {
        tv_sec: time.secs as i64,
        tv_nsec: time.nanos.into(),
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}
