//! Tars by hand: every field of every header is the test's choice, right or wrong.

/// One header block and what follows it.
#[derive(Clone, Debug)]
pub(super) struct Tar {
    block: [u8; 512],
    data: Vec<u8>,
}

/// Header of a regular file without data.
pub(super) fn file(name: &str, data: &[u8]) -> Tar {
    let mut tar = Tar {
        block: [0; 512],
        data: data.to_vec(),
    };
    tar.put(0, name.as_bytes());
    tar.put(257, b"ustar\x0000");
    tar.flag(b'0')
        .mode(0o644)
        .uid(0)
        .gid(0)
        .size(data.len() as u64)
        .mtime(1000)
}

pub(super) fn dir(name: &str) -> Tar {
    file(name, b"").flag(b'5').mode(0o755)
}

pub(super) fn symlink(name: &str, target: &str) -> Tar {
    file(name, b"").flag(b'2').target(target)
}

pub(super) fn hardlink(name: &str, target: &str) -> Tar {
    file(name, b"").flag(b'1').target(target)
}

pub(super) fn device(flag: u8, name: &str, major: u64, minor: u64) -> Tar {
    file(name, b"")
        .flag(flag)
        .raw(329, &octal(8, major))
        .raw(337, &octal(8, minor))
}

/// A PAX header (`x`) with these records.
pub(super) fn pax(records: &[(&str, &[u8])]) -> Tar {
    let data: Vec<u8> = records
        .iter()
        .flat_map(|(key, value)| record(key, value))
        .collect();
    file("PaxHeaders/x", &data).flag(b'x')
}

/// A GNU long name (`L`) or long link target (`K`).
pub(super) fn gnu_long(flag: u8, text: &str) -> Tar {
    file("././@LongLink", format!("{text}\0").as_bytes())
        .flag(flag)
        .gnu()
}

fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
    let mut len = rest.len();
    while len.to_string().len() + rest.len() != len {
        len = len.to_string().len() + rest.len();
    }
    [len.to_string().as_bytes(), &rest].concat()
}

pub(super) fn octal(width: usize, value: u64) -> Vec<u8> {
    format!("{value:0width$o}\0", width = width - 1).into_bytes()
}

impl Tar {
    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.block[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Overwrites bytes of the header.
    pub(super) fn raw(mut self, at: usize, bytes: &[u8]) -> Self {
        self.put(at, bytes);
        self
    }

    pub(super) fn flag(self, flag: u8) -> Self {
        self.raw(156, &[flag])
    }

    pub(super) fn mode(self, mode: u64) -> Self {
        self.raw(100, &octal(8, mode))
    }

    pub(super) fn uid(self, uid: u64) -> Self {
        self.raw(108, &octal(8, uid))
    }

    pub(super) fn gid(self, gid: u64) -> Self {
        self.raw(116, &octal(8, gid))
    }

    pub(super) fn size(self, size: u64) -> Self {
        self.raw(124, &octal(12, size))
    }

    pub(super) fn mtime(self, mtime: u64) -> Self {
        self.raw(136, &octal(12, mtime))
    }

    pub(super) fn target(self, target: &str) -> Self {
        self.raw(157, target.as_bytes())
    }

    pub(super) fn gnu(self) -> Self {
        self.raw(257, b"ustar  \0")
    }

    pub(super) fn v7(self) -> Self {
        self.raw(257, &[0; 243])
    }

    /// Header with its checksum, data, padding.
    pub(super) fn bytes(mut self) -> Vec<u8> {
        self.put(148, b"        ");
        let sum: u64 = self.block.iter().map(|byte| u64::from(*byte)).sum();
        self.put(148, &octal(7, sum));
        let mut bytes = [&self.block[..], &self.data].concat();
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes
    }
}

/// The end of an archive.
pub(super) const END: [u8; 1024] = [0; 1024];

/// An archive with its end.
pub(super) fn archive(entries: impl IntoIterator<Item = Tar>) -> Vec<u8> {
    let mut bytes: Vec<u8> = entries.into_iter().flat_map(Tar::bytes).collect();
    bytes.extend_from_slice(&END);
    bytes
}

/// Bytes that no compression or repetition makes equal by accident.
pub(super) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2) | 1;
    let next = || {
        state = state
            .wrapping_mul(0x5851_f42d_4c95_7f2d)
            .wrapping_add(0x1405_7b7e_f767_814f);
        (state >> 56) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}
