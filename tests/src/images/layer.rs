//! A layer: tar entries, how the tar ends, and how it is compressed.

use std::io::{self, Write};

use flate2::write::GzEncoder;
use sha2::{Digest as _, Sha256};

use super::entry::{BLOCK, Entry};

/// How the stored bytes of a layer are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// The plain tar.
    None,
    /// One gzip member.
    Gzip,
    /// A gzip member for every so many plain bytes.
    GzipMembers(usize),
    /// One zstd frame.
    Zstd,
    /// A zstd frame for every so many plain bytes.
    ZstdFrames(usize),
}

impl Compression {
    /// The OCI media type of a layer compressed like this.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::None => "application/vnd.oci.image.layer.v1.tar",
            Self::Gzip | Self::GzipMembers(_) => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd | Self::ZstdFrames(_) => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

/// What a tar consists of.
#[derive(Clone, Debug)]
pub enum Piece {
    /// An entry.
    Entry(Box<Entry>),
    /// Bytes as they are, to write what [`Entry`] cannot.
    Raw(Vec<u8>),
}

/// One layer of an image.
#[derive(Clone, Debug)]
pub struct Layer {
    pieces: Vec<Piece>,
    compression: Compression,
    closing_blocks: usize,
}

impl Default for Layer {
    fn default() -> Self {
        Self::new()
    }
}

impl Layer {
    /// A layer with no entry: two zero blocks, gzip.
    pub fn new() -> Self {
        Self {
            pieces: Vec::new(),
            compression: Compression::Gzip,
            closing_blocks: 2,
        }
    }

    /// A layer of these entries.
    pub fn of(entries: impl IntoIterator<Item = Entry>) -> Self {
        entries.into_iter().fold(Self::new(), Self::entry)
    }

    /// With one more entry.
    #[must_use]
    pub fn entry(mut self, entry: Entry) -> Self {
        self.pieces.push(Piece::Entry(Box::new(entry)));
        self
    }

    /// With bytes as they are.
    #[must_use]
    pub fn raw(mut self, bytes: impl AsRef<[u8]>) -> Self {
        self.pieces.push(Piece::Raw(bytes.as_ref().to_vec()));
        self
    }

    /// With another compression.
    #[must_use]
    pub fn compression(self, compression: Compression) -> Self {
        Self { compression, ..self }
    }

    /// With so many zero blocks at the end. A proper tar has two.
    #[must_use]
    pub fn closing_blocks(self, closing_blocks: usize) -> Self {
        Self {
            closing_blocks,
            ..self
        }
    }

    /// The OCI media type.
    pub fn media_type(&self) -> &'static str {
        self.compression.media_type()
    }

    /// Writes the plain bytes.
    ///
    /// # Errors
    /// What `out` gives.
    pub fn write_plain(&self, out: &mut dyn Write) -> io::Result<()> {
        for piece in &self.pieces {
            match piece {
                Piece::Entry(entry) => entry.write(out)?,
                Piece::Raw(bytes) => out.write_all(bytes)?,
            }
        }
        out.write_all(&vec![0; self.closing_blocks * BLOCK])
    }

    /// The plain bytes.
    ///
    /// # Errors
    /// None in practice: a vector takes everything.
    pub fn plain(&self) -> io::Result<Vec<u8>> {
        let mut plain = Vec::new();
        self.write_plain(&mut plain)?;
        Ok(plain)
    }

    /// Writes the stored bytes to `out`, gives the digest of the plain bytes and their number.
    ///
    /// # Errors
    /// What `out` gives.
    pub fn write_stored(&self, out: &mut dyn Write) -> io::Result<(String, u64)> {
        write_compressed(self.compression, out, |plain| self.write_plain(plain))
    }
}

/// Compresses what `write` writes; gives the digest and the number of the plain bytes.
///
/// # Errors
/// What `out` or `write` give.
pub fn write_compressed(
    compression: Compression,
    out: &mut dyn Write,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<(String, u64)> {
    let mut plain = Plain {
        hasher: Sha256::new(),
        len: 0,
        member: Some(Member::begin(compression, out)?),
        compression,
        in_member: 0,
    };
    write(&mut plain)?;
    plain.take_member()?.finish()?;
    Ok((
        format!("sha256:{}", hex::encode(plain.hasher.finalize())),
        plain.len,
    ))
}

/// Level at which test layers are compressed: they are made often and read a few times. At level 1 this compressor writes a whole layer as one block,
/// as no builder of images does.
const GZIP_LEVEL: u32 = 2;
const ZSTD_LEVEL: i32 = 1;

/// Digests plain bytes on their way into the compressor, and starts a new member where the compression wants one.
struct Plain<'a> {
    hasher: Sha256,
    len: u64,
    /// `None` only while one member follows another.
    member: Option<Member<'a>>,
    compression: Compression,
    in_member: usize,
}

enum Member<'a> {
    Plain(&'a mut dyn Write),
    Gzip(GzEncoder<&'a mut dyn Write>),
    Zstd(zstd::stream::write::Encoder<'static, &'a mut dyn Write>),
}

impl<'a> Member<'a> {
    fn begin(compression: Compression, out: &'a mut dyn Write) -> io::Result<Self> {
        Ok(match compression {
            Compression::None => Self::Plain(out),
            Compression::Gzip | Compression::GzipMembers(_) => {
                Self::Gzip(GzEncoder::new(out, flate2::Compression::new(GZIP_LEVEL)))
            }
            Compression::Zstd | Compression::ZstdFrames(_) => {
                Self::Zstd(zstd::stream::write::Encoder::new(out, ZSTD_LEVEL)?)
            }
        })
    }

    fn finish(self) -> io::Result<&'a mut dyn Write> {
        match self {
            Self::Plain(out) => Ok(out),
            Self::Gzip(encoder) => encoder.finish(),
            Self::Zstd(encoder) => encoder.finish(),
        }
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Plain(out) => out.write_all(bytes),
            Self::Gzip(encoder) => encoder.write_all(bytes),
            Self::Zstd(encoder) => encoder.write_all(bytes),
        }
    }
}

impl<'a> Plain<'a> {
    fn take_member(&mut self) -> io::Result<Member<'a>> {
        self.member
            .take()
            .ok_or_else(|| io::Error::other("the layer ended after an error"))
    }

    fn member_len(&self) -> usize {
        match self.compression {
            Compression::GzipMembers(len) | Compression::ZstdFrames(len) => len,
            _ => usize::MAX,
        }
    }

    fn next_member(&mut self) -> io::Result<()> {
        let out = self.take_member()?.finish()?;
        self.member = Some(Member::begin(self.compression, out)?);
        self.in_member = 0;
        Ok(())
    }
}

impl Write for Plain<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.in_member == self.member_len() {
            self.next_member()?;
        }
        let n = bytes.len().min(self.member_len() - self.in_member);
        self.hasher.update(&bytes[..n]);
        let mut member = self.take_member()?;
        member.write_all(&bytes[..n])?;
        self.member = Some(member);
        self.in_member += n;
        self.len += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
