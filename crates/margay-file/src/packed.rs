//! Packed files: weights in the layout that a backend computes with, kept beside the model they were made from.
//!
//! ```text
//! magic, version                                      16 bytes, filled up to a page
//! the parts of each weight, each at 64 bytes, each weight at a page
//! table: layout, origin, for each weight name, form, checksum and where its parts lie
//! where the table begins, checksum of head and table, closing magic
//! ```
//!
//! All numbers are little-endian. The table stands behind the weights so that they can be written one at a time. A packed
//! file is a copy of what its model says: one that is damaged, foreign or older than its model is refused, and whoever
//! asked packs anew.

use std::{
    collections::BTreeMap,
    ops::Range,
    path::{Path, PathBuf},
    time::UNIX_EPOCH,
};

use crc32fast::Hasher;
use margay_tensor::Storage;

use crate::{
    FileError, Gguf,
    atomic::AtomicFile,
    cursor::Cursor,
    error::{Quoted, clip},
    limits,
    mmap::map_file_in_huge_pages,
};

const FORMAT: &str = "packed file";
const MAGIC: [u8; 8] = *b"MARGAYPK";
const CLOSING_MAGIC: [u8; 4] = *b"KPYM";
const VERSION: u32 = 1;

/// Magic, version, and four bytes for later.
const HEAD_BYTES: usize = 16;
/// Where the table begins, the checksum, the closing magic.
const TAIL_BYTES: usize = 8 + 4 + 4;
/// Weights begin at pages, so that advice to the system about one concerns no other.
const PAGE_BYTES: u64 = 4096;
/// Parts begin at cache lines.
const PART_ALIGNMENT: u64 = 64;
/// Bytes handed to the system at a time. Multiples of 2 MiB at multiples of 2 MiB let it keep the file in huge pages
/// (Linux 6.16 and later on ext4, earlier on XFS), which it then also maps as such: at 785 MB, mapping takes 7 ms
/// rather than 50 and reading goes at the speed of memory of our own.
const WRITE_BYTES: usize = 8 << 20;

/// Between two samples of a model's data.
const SAMPLE_STRIDE_BYTES: usize = 1 << 20;
/// Samples taken before their pages are given back: where the system keeps the file in huge pages, a sample brings one.
const SAMPLES_HELD: usize = 16;
/// Bytes of a sample.
const SAMPLE_BYTES: usize = 4096;

/// What tells one state of a model file from another at little cost: size, time of change, everything before the first
/// tensor, and 4 KiB of each MiB behind it. A guard against mistakes: whoever can write beside a model and means harm
/// can write the model as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    size_bytes: u64,
    modified_ns: u64,
    head: u32,
    samples: u32,
}

impl Origin {
    /// Looks at an open file.
    ///
    /// # Errors
    /// [`FileError::Io`] where the system does not say when it was changed, or it is in memory only.
    pub fn of(file: &Gguf) -> Result<Self, FileError> {
        let path = file.path().unwrap_or(Path::new("the model in memory"));
        Self::of_bytes(path, file.bytes(), file.head_bytes())
    }

    /// Looks at an open file whose tensors begin behind `head_bytes`.
    pub(crate) fn of_bytes(path: &Path, storage: &Storage, head_bytes: usize) -> Result<Self, FileError> {
        let modified = std::fs::metadata(path).and_then(|meta| meta.modified());
        let modified = modified.map_err(|e| FileError::io("read the time of change of", path, e))?;
        // In 2554 it wraps; a file from before 1970 counts as one from then.
        let modified_ns = modified.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
        let (head, data) = storage.as_bytes().split_at(head_bytes);
        let mut samples = Hasher::new();
        for (i, strides) in data.chunks(SAMPLE_STRIDE_BYTES * SAMPLES_HELD).enumerate() {
            for stride in strides.chunks(SAMPLE_STRIDE_BYTES) {
                samples.update(&stride[..stride.len().min(SAMPLE_BYTES)]);
            }
            // The pages around the samples need not stay.
            let start = head_bytes + i * SAMPLE_STRIDE_BYTES * SAMPLES_HELD;
            storage.slice(start..start + strides.len()).iter().for_each(Storage::release);
        }
        Ok(Origin {
            size_bytes: storage.len() as u64,
            modified_ns,
            head: crc32fast::hash(head),
            samples: samples.finalize(),
        })
    }

    /// What the model has changed in since, if anything.
    fn change(&self, now: &Origin) -> Option<&'static str> {
        let changes = [
            (self.size_bytes != now.size_bytes, "another size"),
            (self.head != now.head, "another head"),
            (self.samples != now.samples, "other weights"),
            (self.modified_ns != now.modified_ns, "another time of change"),
        ];
        changes.into_iter().find_map(|(changed, what)| changed.then_some(what))
    }
}

/// `MODEL.TARGET.packed` beside the model.
pub fn packed_path(model: &Path, target: &str) -> PathBuf {
    let name = model.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    model.with_file_name(format!("{name}.{target}.packed"))
}

/// An open packed file: mapped, its weights read where they lie.
#[derive(Debug)]
pub struct PackedFile {
    bytes: Storage,
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    form: String,
    parts: Vec<Range<usize>>,
    checksum: u32,
}

impl PackedFile {
    /// Maps the file at `path`, made in `layout` from the model that `origin` tells. Head and table are checked, the
    /// weights are not touched: see [`PackedFile::verify`].
    ///
    /// # Errors
    /// [`FileError`] where it cannot be opened, breaks the format, or was made in another layout or from another model.
    pub fn open(path: &Path, layout: &str, origin: &Origin) -> Result<Self, FileError> {
        Self::from_bytes(map_file_in_huge_pages(path)?, layout, origin).map_err(|e| e.in_file(path))
    }

    /// As [`PackedFile::open`], for bytes at hand.
    ///
    /// # Errors
    /// As [`PackedFile::open`].
    pub fn from_bytes(bytes: Storage, layout: &str, origin: &Origin) -> Result<Self, FileError> {
        let entries = read(bytes.as_bytes(), layout, origin)?;
        Ok(PackedFile { bytes, entries })
    }

    /// The parts of the weight of that name, or `None` where the file does not hold it.
    ///
    /// # Errors
    /// [`FileError::Unsupported`] where it is of another form or its parts have other sizes.
    pub fn parts(
        &self,
        name: &str,
        form: &str,
        part_bytes: &[usize],
    ) -> Result<Option<Vec<Storage>>, FileError> {
        let Some(entry) = self.entries.get(name) else { return Ok(None) };
        let fits = entry.form == form && entry.parts.iter().map(Range::len).eq(part_bytes.iter().copied());
        if !fits {
            let why = format!("is {}, expected {form}", Quoted(&entry.form));
            return Err(unsupported(format!("weight {}", Quoted(name)), 0, why));
        }
        let part = |at: &Range<usize>| {
            self.bytes.slice(at.clone()).expect("invariant: ranges were checked on opening")
        };
        Ok(Some(entry.parts.iter().map(part).collect()))
    }

    /// Names of the weights, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Size of the whole file.
    pub fn size_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Reads all weights and compares them with the checksums that were written with them.
    ///
    /// # Errors
    /// [`FileError::Malformed`] for the first that is damaged.
    pub fn verify(&self) -> Result<(), FileError> {
        for (name, entry) in &self.entries {
            let mut hasher = Hasher::new();
            let first = entry.parts.first().map_or(0, |part| part.start);
            for part in &entry.parts {
                hasher.update(&self.bytes.as_bytes()[part.clone()]);
            }
            if hasher.finalize() != entry.checksum {
                let why = "differs from its checksum: the file is damaged";
                return Err(malformed(format!("weight {}", Quoted(name)), first as u64, why));
            }
        }
        Ok(())
    }
}

fn malformed(field: impl Into<String>, offset: u64, why: impl Into<String>) -> FileError {
    FileError::Malformed { format: FORMAT, field: field.into(), offset, why: why.into() }
}

fn unsupported(field: impl Into<String>, offset: u64, why: impl Into<String>) -> FileError {
    FileError::Unsupported { format: FORMAT, field: field.into(), offset, why: why.into() }
}

/// The table of a file whose layout and origin are these.
fn read(bytes: &[u8], layout: &str, origin: &Origin) -> Result<BTreeMap<String, Entry>, FileError> {
    let mut cursor = Cursor::new(FORMAT, bytes);
    if cursor.take(8, format_args!("magic"))? != MAGIC {
        return Err(malformed("magic", 0, "is not that of a packed file"));
    }
    let version = cursor.u32(format_args!("version"))?;
    if version != VERSION {
        return Err(unsupported("version", 8, format!("is {version}; this program reads {VERSION}")));
    }
    let table = find_table(bytes)?;
    // Offsets in messages count from the start of the file.
    let mut cursor = Cursor::new(FORMAT, &bytes[..table.end]);
    cursor.take(table.start as u64, format_args!("weights"))?;
    let at = cursor.at() as u64;
    let made = text(&mut cursor, limits::MAX_PACKED_TEXT_BYTES, format_args!("layout"))?;
    if made != layout {
        return Err(unsupported("layout", at, format!("is {}, this program uses {layout:?}", Quoted(&made))));
    }
    let at = cursor.at() as u64;
    let of = format_args!("origin");
    let made = Origin {
        size_bytes: cursor.u64(of)?,
        modified_ns: cursor.u64(of)?,
        head: cursor.u32(of)?,
        samples: cursor.u32(of)?,
    };
    if let Some(change) = made.change(origin) {
        return Err(unsupported("origin", at, format!("was made from a model with {change} than this one")));
    }
    let at = cursor.at() as u64;
    let count = cursor.u32(format_args!("number of weights"))?;
    if u64::from(count) > limits::MAX_TENSORS {
        return Err(malformed(
            "number of weights",
            at,
            format!("is {count}, the limit is {}", limits::MAX_TENSORS),
        ));
    }
    let mut entries = BTreeMap::new();
    for i in 0..count {
        let at = cursor.at() as u64;
        let (name, entry) = read_entry(&mut cursor, i, table.start as u64)?;
        if let Some(double) = entries.insert(name, entry) {
            return Err(malformed(
                format!("name of weight {i}"),
                at,
                format!("occurs twice ({})", double.form),
            ));
        }
    }
    if cursor.remaining() > 0 {
        let why = format!("{} bytes stand behind the last weight", cursor.remaining());
        return Err(malformed("table", cursor.at() as u64, why));
    }
    Ok(entries)
}

/// Where the table lies, after a look at its checksum.
fn find_table(bytes: &[u8]) -> Result<Range<usize>, FileError> {
    let tail_at = bytes.len().saturating_sub(TAIL_BYTES);
    let mut cursor = Cursor::new(FORMAT, bytes);
    cursor.take(tail_at as u64, format_args!("weights"))?;
    let start = cursor.u64(format_args!("place of the table"))?;
    let sum = cursor.u32(format_args!("checksum"))?;
    if cursor.take(4, format_args!("closing magic"))? != CLOSING_MAGIC {
        let at = (bytes.len() - CLOSING_MAGIC.len()) as u64;
        return Err(malformed("closing magic", at, "is absent (is the file cut off?)"));
    }
    if start < HEAD_BYTES as u64 || start > tail_at as u64 {
        return Err(malformed("place of the table", tail_at as u64, format!("is {start}, outside the file")));
    }
    // At most the length of a slice, hence it fits usize.
    let table = start as usize..tail_at;
    if table.len() as u64 > limits::MAX_PACKED_TABLE_BYTES {
        let why = format!("has {} bytes, the limit is {}", table.len(), limits::MAX_PACKED_TABLE_BYTES);
        return Err(malformed("table", start, why));
    }
    if sum != checksum(&bytes[..HEAD_BYTES], &bytes[table.clone()], start) {
        return Err(malformed("checksum", tail_at as u64 + 8, "is not that of head and table"));
    }
    Ok(table)
}

fn checksum(head: &[u8], table: &[u8], table_at: u64) -> u32 {
    let mut hasher = Hasher::new();
    hasher.update(head);
    hasher.update(table);
    hasher.update(&table_at.to_le_bytes());
    hasher.finalize()
}

fn read_entry(cursor: &mut Cursor<'_>, i: u32, end: u64) -> Result<(String, Entry), FileError> {
    let name = text(cursor, limits::MAX_PACKED_TEXT_BYTES, format_args!("name of weight {i}"))?;
    let form = text(cursor, limits::MAX_PACKED_TEXT_BYTES, format_args!("form of weight {i}"))?;
    let checksum = cursor.u32(format_args!("checksum of weight {i}"))?;
    let at = cursor.at() as u64;
    let count = cursor.u8(format_args!("number of parts of weight {i}"))?;
    if count > limits::MAX_PACKED_PARTS {
        let why = format!("is {count}, the limit is {}", limits::MAX_PACKED_PARTS);
        return Err(malformed(format!("number of parts of weight {i}"), at, why));
    }
    let mut parts = vec![];
    for _ in 0..count {
        let at = cursor.at() as u64;
        let part = format_args!("part of weight {i}");
        let (start, len) = (cursor.u64(part)?, cursor.u64(part)?);
        let stop = start.checked_add(len).filter(|stop| *stop <= end);
        let Some(stop) = stop.filter(|_| start >= HEAD_BYTES as u64 && start.is_multiple_of(PART_ALIGNMENT))
        else {
            let why = format!("is {len} bytes at {start}: outside the weights, or between two cache lines");
            return Err(malformed(format!("part of weight {i}"), at, why));
        };
        // Within the bytes at hand, hence both fit usize.
        parts.push(start as usize..stop as usize);
    }
    Ok((name, Entry { form, parts, checksum }))
}

/// Text with its length, two bytes, before it.
fn text(cursor: &mut Cursor<'_>, limit: u16, field: std::fmt::Arguments<'_>) -> Result<String, FileError> {
    let at = cursor.at() as u64;
    let len = cursor.u16(format_args!("length of {field}"))?;
    if len > limit {
        return Err(malformed(field.to_string(), at, format!("has {len} bytes, the limit is {limit}")));
    }
    let bytes = cursor.take(len.into(), field)?;
    let text = std::str::from_utf8(bytes)
        .map_err(|e| malformed(field.to_string(), at, format!("is no UTF-8 ({e})")))?;
    Ok(text.to_owned())
}

/// Writes a packed file, one weight after the other.
///
/// The file appears under its name only by [`PackedWriter::finish`]: before that, or after an error, nothing is left and
/// a former file of that name is as it was. Of several that write at once each writes a whole file, and the last stays.
#[derive(Debug)]
pub struct PackedWriter {
    file: AtomicFile,
    path: PathBuf,
    /// What is not handed to the system yet.
    waiting: Vec<u8>,
    at: u64,
    /// Layout and origin.
    front: Vec<u8>,
    entries: Vec<u8>,
    count: u32,
}

impl PackedWriter {
    /// Starts a file at `path` for weights in `layout` of the model that `origin` tells.
    ///
    /// # Errors
    /// [`FileError`] where it cannot be created, or the layout's name is too long.
    pub fn create(path: &Path, layout: &str, origin: &Origin) -> Result<Self, FileError> {
        let mut front = vec![];
        push_text(&mut front, layout)?;
        front.extend(origin.size_bytes.to_le_bytes());
        front.extend(origin.modified_ns.to_le_bytes());
        front.extend(origin.head.to_le_bytes());
        front.extend(origin.samples.to_le_bytes());
        let mut writer = PackedWriter {
            file: AtomicFile::create(path)?,
            path: path.to_owned(),
            waiting: Vec::with_capacity(WRITE_BYTES),
            at: 0,
            front,
            entries: vec![],
            count: 0,
        };
        writer.write(&head())?;
        Ok(writer)
    }

    /// Appends a weight. Names must differ.
    ///
    /// # Errors
    /// [`FileError::Io`] where the disk refuses, [`FileError::NotWritable`] beyond the limits of the format.
    pub fn add(&mut self, name: &str, form: &str, parts: &[Storage]) -> Result<(), FileError> {
        let too_many =
            parts.len() > limits::MAX_PACKED_PARTS.into() || u64::from(self.count) >= limits::MAX_TENSORS;
        if too_many {
            let why = "more weights or parts than the reader accepts".to_owned();
            return Err(FileError::NotWritable { what: clip(name), why });
        }
        self.align(PAGE_BYTES)?;
        let mut hasher = Hasher::new();
        parts.iter().for_each(|part| hasher.update(part.as_bytes()));
        push_text(&mut self.entries, name)?;
        push_text(&mut self.entries, form)?;
        self.entries.extend(hasher.finalize().to_le_bytes());
        self.entries.push(parts.len() as u8);
        for part in parts {
            self.align(PART_ALIGNMENT)?;
            self.entries.extend(self.at.to_le_bytes());
            self.entries.extend((part.len() as u64).to_le_bytes());
            self.write(part.as_bytes())?;
        }
        self.count += 1;
        Ok(())
    }

    /// Completes the file, makes sure it is on the disk, and gives it its name; says how many bytes it has.
    ///
    /// # Errors
    /// [`FileError::Io`] where the disk refuses.
    pub fn finish(mut self) -> Result<u64, FileError> {
        self.align(PAGE_BYTES)?;
        let mut table = std::mem::take(&mut self.front);
        table.extend(self.count.to_le_bytes());
        table.append(&mut self.entries);
        if table.len() as u64 > limits::MAX_PACKED_TABLE_BYTES {
            let why = "its table is larger than the reader accepts".to_owned();
            return Err(FileError::NotWritable { what: self.path.display().to_string(), why });
        }
        let at = self.at;
        let sum = checksum(&head(), &table, at);
        self.write(&table)?;
        self.write(&at.to_le_bytes())?;
        self.write(&sum.to_le_bytes())?;
        self.write(&CLOSING_MAGIC)?;
        self.file.write(&self.waiting)?;
        self.file.commit()?;
        Ok(self.at)
    }

    fn align(&mut self, to: u64) -> Result<(), FileError> {
        const ZEROS: [u8; PAGE_BYTES as usize] = [0; PAGE_BYTES as usize];
        // Less than a page.
        let missing = (self.at.next_multiple_of(to) - self.at) as usize;
        self.write(&ZEROS[..missing])
    }

    fn write(&mut self, mut bytes: &[u8]) -> Result<(), FileError> {
        self.at += bytes.len() as u64;
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(WRITE_BYTES - self.waiting.len()));
            self.waiting.extend_from_slice(now);
            if self.waiting.len() == WRITE_BYTES {
                self.file.write(&self.waiting)?;
                self.waiting.clear();
            }
            bytes = later;
        }
        Ok(())
    }
}

fn head() -> [u8; HEAD_BYTES] {
    let mut head = [0; HEAD_BYTES];
    head[..8].copy_from_slice(&MAGIC);
    head[8..12].copy_from_slice(&VERSION.to_le_bytes());
    head
}

fn push_text(out: &mut Vec<u8>, text: &str) -> Result<(), FileError> {
    let len = u16::try_from(text.len()).ok().filter(|len| *len <= limits::MAX_PACKED_TEXT_BYTES);
    let len = len.ok_or_else(|| FileError::NotWritable {
        what: clip(text),
        why: format!("is longer than {} bytes", limits::MAX_PACKED_TEXT_BYTES),
    })?;
    out.extend(len.to_le_bytes());
    out.extend(text.as_bytes());
    Ok(())
}
