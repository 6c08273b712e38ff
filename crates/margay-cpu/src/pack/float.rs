//! Float matrices in panels of 16 rows.

use crate::{
    lines::{Arena, Lines},
    threads::Pool,
};
use margay_graph::BackendError;
use margay_tensor::{DType, Storage, Tensor};

/// Outputs (rows of the weight) that a panel interleaves.
pub(crate) const FLOAT_PANEL: usize = 16;
/// Columns of k that packing interleaves at a time.
const PIECE: usize = 64;

/// How the numbers of a packed float matrix are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FloatType {
    F32,
    F16,
    Bf16,
}

impl FloatType {
    pub(crate) fn bytes(self) -> usize {
        match self {
            FloatType::F32 => 4,
            FloatType::F16 | FloatType::Bf16 => 2,
        }
    }
}

/// A `[n, k]` matrix as `[n / 16][k][16]`, the last panel filled up with zeros.
#[derive(Debug)]
pub(crate) struct FloatMatrix {
    pub(crate) n: usize,
    pub(crate) k: usize,
    pub(crate) kind: FloatType,
    bytes: Storage,
}

impl FloatMatrix {
    /// How the numbers of a packed matrix of that format are stored.
    pub(super) fn kind_of(dtype: DType) -> FloatType {
        match dtype {
            DType::F16 => FloatType::F16,
            DType::BF16 => FloatType::Bf16,
            _ => FloatType::F32,
        }
    }

    /// Bytes of the packed matrix.
    pub(super) fn packed_bytes(n: usize, k: usize, kind: FloatType) -> usize {
        n.next_multiple_of(FLOAT_PANEL) * k * kind.bytes()
    }

    /// The matrix over bytes that [`FloatMatrix::pack`] made earlier: [`FloatMatrix::packed_bytes`] of them.
    pub(super) fn over(n: usize, k: usize, kind: FloatType, bytes: Storage) -> Self {
        FloatMatrix { n, k, kind, bytes }
    }

    /// The packed bytes.
    pub(super) fn storage(&self) -> &Storage {
        &self.bytes
    }

    /// Packs `tensor`, a matrix of any format: F16 and BF16 keep their type, everything else becomes F32.
    pub(crate) fn pack(
        name: &str,
        tensor: &Tensor,
        pool: &Pool,
        arena: &Arena,
    ) -> Result<Self, BackendError> {
        let kind = Self::kind_of(tensor.dtype());
        if kind == FloatType::F32 {
            let values = crate::weights::decode(name, tensor)?;
            return Ok(Self::from_f32(&values, tensor.shape().row(), arena));
        }
        let bytes: &[[u8; 2]] = tensor.bytes().as_chunks().0;
        let (n, k) = (tensor.shape().rows().unwrap_or(0), tensor.shape().row());
        let mut packed = Self::empty(n, k, kind, arena);
        let panel_bytes = k * FLOAT_PANEL * 2;
        let out = SharedBytes(packed.as_mut_ptr());
        let body = |_: usize, panel: usize| {
            // SAFETY: each task writes its own panel, which lies inside `bytes`.
            let out = unsafe { std::slice::from_raw_parts_mut(out.at(panel * panel_bytes), panel_bytes) };
            // A piece of all rows at a time: what it becomes stays in the cache until it is whole.
            for (piece, out) in out.chunks_mut(PIECE * FLOAT_PANEL * 2).enumerate() {
                for (column, row) in (panel * FLOAT_PANEL..n.min((panel + 1) * FLOAT_PANEL)).enumerate() {
                    let row = &bytes[row * k..][..k][piece * PIECE..];
                    for (out, value) in out.as_chunks_mut::<{ FLOAT_PANEL * 2 }>().0.iter_mut().zip(row) {
                        out[column * 2..][..2].copy_from_slice(value);
                    }
                }
            }
        };
        pool.run(n.div_ceil(FLOAT_PANEL), &body).map_err(|e| BackendError::Call { what: e.to_string() })?;
        Ok(FloatMatrix { n, k, kind, bytes: packed.into() })
    }

    /// Packs float32 rows of `k`.
    pub(crate) fn from_f32(values: &[f32], k: usize, arena: &Arena) -> Self {
        let n = values.len().checked_div(k).unwrap_or(0);
        let mut packed = Self::empty(n, k, FloatType::F32, arena);
        let out = packed.as_chunks_mut::<4>().0;
        for (row, values) in values.chunks_exact(k.max(1)).enumerate() {
            let (panel, column) = (row / FLOAT_PANEL, row % FLOAT_PANEL);
            for (i, value) in values.iter().enumerate() {
                out[(panel * k + i) * FLOAT_PANEL + column] = value.to_ne_bytes();
            }
        }
        FloatMatrix { n, k, kind: FloatType::F32, bytes: packed.into() }
    }

    /// First byte of a panel's column `k`.
    pub(crate) fn at(&self, panel: usize, k: usize) -> *const u8 {
        self.bytes.as_bytes()[(panel * self.k + k) * FLOAT_PANEL * self.kind.bytes()..].as_ptr()
    }

    pub(crate) fn size_bytes(&self) -> usize {
        self.bytes.len()
    }

    fn empty(n: usize, k: usize, kind: FloatType, arena: &Arena) -> Lines<u8> {
        arena.zeroed(Self::packed_bytes(n, k, kind))
    }
}

/// A pointer that tasks share to write disjoint parts.
#[derive(Clone, Copy)]
pub(super) struct SharedBytes(pub(super) *mut u8);
// SAFETY: whoever dereferences it keeps the parts disjoint.
unsafe impl Send for SharedBytes {}
// SAFETY: as above.
unsafe impl Sync for SharedBytes {}
impl SharedBytes {
    /// # Safety
    /// `offset` lies inside the allocation.
    pub(super) unsafe fn at(self, offset: usize) -> *mut u8 {
        // SAFETY: the caller's promise.
        unsafe { self.0.add(offset) }
    }
}
