//! Bytes with an owner: memory of our own, or a mapped file.

use std::{ops::Range, sync::Arc};

/// What holds bytes: memory, or a mapped file.
pub trait Owner: Send + Sync {
    /// All bytes; always the same ones.
    fn bytes(&self) -> &[u8];

    /// A hint that `range` will not be read soon, so that memory that holds a copy of a file may be given back. The
    /// bytes stay readable.
    fn release(&self, range: Range<usize>) {
        let _ = range;
    }

    /// A hint that `range` will be read again and again from now on, so that a mapped file may be brought into memory.
    fn prefetch(&self, range: Range<usize>) {
        let _ = range;
    }
}

impl Owner for &'static [u8] {
    fn bytes(&self) -> &[u8] {
        self
    }
}

/// A line of memory aligned to 64 bytes, so that an owned buffer suits every vector register.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

struct AlignedBytes {
    lines: Vec<Line>,
    len: usize,
}

impl Owner for AlignedBytes {
    fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }
}

/// Immutable, shared bytes: a view into an owner that lives as long as any view does. Cloning copies no bytes.
#[derive(Clone)]
pub struct Storage {
    owner: Arc<dyn Owner>,
    range: Range<usize>,
}

impl Storage {
    /// All bytes of `owner`, for instance a mapped file.
    pub fn from_owner(owner: Arc<dyn Owner>) -> Self {
        let range = 0..owner.bytes().len();
        Storage { owner, range }
    }

    /// Copies `bytes` into memory aligned to 64 bytes.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        Self::build(bytes.len(), |out| out.copy_from_slice(bytes))
    }

    /// Allocates `len` zero bytes aligned to 64 and lets `fill` write them.
    pub fn build(len: usize, fill: impl FnOnce(&mut [u8])) -> Self {
        let mut lines = vec![Line([0; 64]); len.div_ceil(64)];
        fill(&mut bytemuck::cast_slice_mut(&mut lines)[..len]);
        Self::from_owner(Arc::new(AlignedBytes { lines, len }))
    }

    /// Little-endian bytes of `values`.
    pub fn from_f32(values: &[f32]) -> Self {
        Self::build(values.len() * 4, |out| {
            for (bytes, value) in out.chunks_exact_mut(4).zip(values) {
                bytes.copy_from_slice(&value.to_le_bytes());
            }
        })
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.owner.bytes()[self.range.clone()]
    }

    /// A hint that these bytes will not be read soon: pages of a mapped file leave this process's memory. Reading them
    /// again brings them back.
    pub fn release(&self) {
        self.owner.release(self.range.clone());
    }

    /// A hint that these bytes will be read again and again from now on: those of a mapped file are brought into memory.
    pub fn prefetch(&self) {
        self.owner.prefetch(self.range.clone());
    }

    /// Number of bytes.
    pub fn len(&self) -> usize {
        self.range.len()
    }

    /// True where there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    /// A view of `range` within this one, or `None` where it reaches outside.
    pub fn slice(&self, range: Range<usize>) -> Option<Storage> {
        if range.start > range.end || range.end > self.len() {
            return None;
        }
        let start = self.range.start + range.start;
        Some(Storage { owner: self.owner.clone(), range: start..start + range.len() })
    }
}

impl std::fmt::Debug for Storage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Storage({} bytes)", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Remembers what it was told to release.
    struct Remembering(std::sync::Mutex<Vec<Range<usize>>>);

    impl Owner for Remembering {
        fn bytes(&self) -> &[u8] {
            &[5; 100]
        }

        fn release(&self, range: Range<usize>) {
            self.0.lock().unwrap().push(range);
        }
    }

    #[test]
    fn a_view_releases_its_own_bytes_only() {
        let owner = Arc::new(Remembering(vec![].into()));
        let view = Storage::from_owner(owner.clone()).slice(10..60).unwrap().slice(5..25).unwrap();
        view.release();
        assert_eq!(*owner.0.lock().unwrap(), std::slice::from_ref(&(15..35)));
        assert_eq!(view.as_bytes(), [5; 20]);
    }

    #[test]
    fn owned_bytes_are_aligned_and_views_are_bounded() {
        let s = Storage::from_bytes(&[7; 130]);
        assert_eq!(s.as_bytes().as_ptr() as usize % 64, 0);
        assert_eq!(s.slice(128..130).unwrap().as_bytes(), [7, 7]);
        assert!(s.slice(128..131).is_none());
        let inner = s.slice(10..20).unwrap();
        assert!(inner.slice(0..11).is_none());
        assert_eq!(inner.len(), 10);
    }
}
