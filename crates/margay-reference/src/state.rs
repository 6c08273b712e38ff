//! The KV cache, in float32.

use crate::{backend::call, run::Caches};
use candle_core::Tensor;
use margay_graph::{BackendError, CacheSpec, State, StateOptions};
use std::any::Any;

/// Keys and values of every cache slot.
pub(crate) struct ReferenceState {
    specs: Vec<CacheSpec>,
    capacity: usize,
    len: usize,
    /// Keys and values of each slot, `[len, K*D]` each; `None` while empty.
    slots: Vec<Option<(Tensor, Tensor)>>,
}

impl ReferenceState {
    pub(crate) fn new(specs: &[CacheSpec], options: StateOptions) -> Result<Self, BackendError> {
        let row_bytes = specs
            .iter()
            .try_fold(0usize, |n, s| s.kv_heads.checked_mul(s.head_dim)?.checked_mul(8)?.checked_add(n));
        if row_bytes.and_then(|row| row.checked_mul(options.capacity)).is_none() {
            return Err(call(format!("a KV cache of {} tokens overflows the memory", options.capacity)));
        }
        Ok(Self {
            specs: specs.to_vec(),
            capacity: options.capacity,
            len: 0,
            slots: specs.iter().map(|_| None).collect(),
        })
    }

    pub(crate) fn specs(&self) -> &[CacheSpec] {
        &self.specs
    }

    /// What a run starts from.
    pub(crate) fn caches(&self) -> Caches {
        Caches { past: self.len, capacity: Some(self.capacity), slots: self.slots.clone() }
    }

    /// Takes over what a successful run leaves. The first `len` rows of every slot are those of before.
    pub(crate) fn commit(&mut self, caches: Caches) {
        let rows = caches.slots.iter().flatten().filter_map(|(k, _)| k.dim(0).ok()).max();
        self.len = rows.unwrap_or(self.len);
        self.slots = caches.slots;
    }
}

impl State for ReferenceState {
    fn len(&self) -> usize {
        self.len
    }

    fn capacity(&self) -> usize {
        self.capacity
    }

    fn truncate(&mut self, len: usize) {
        if len >= self.len {
            return;
        }
        self.len = len;
        for slot in &mut self.slots {
            *slot = slot.take().filter(|_| len > 0).and_then(|(k, v)| {
                // Narrowing to fewer rows than there are cannot fail.
                Some((k.narrow(0, 0, len).ok()?, v.narrow(0, 0, len).ok()?))
            });
        }
    }

    fn size_bytes(&self) -> usize {
        let row: usize = self.specs.iter().map(|s| s.kv_heads * s.head_dim * 2 * size_of::<f32>()).sum();
        row * self.len
    }

    fn fork(&self, len: usize) -> Result<Box<dyn State>, BackendError> {
        // Tensors are shared by themselves.
        let (specs, slots) = (self.specs.clone(), self.slots.clone());
        let mut fork = Self { specs, capacity: self.capacity, len: self.len, slots };
        fork.truncate(len);
        Ok(Box::new(fork))
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}
