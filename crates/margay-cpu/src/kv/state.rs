//! The KV cache of one conversation.

use super::{
    KvPlan, KvTable, KvType,
    observe::Observed,
    table::{Layouts, Place},
};
use crate::{
    kernels::{Kernels, attention::KEYS},
    lines::Lines,
};
use margay_graph::{BackendError, CacheSpec, Kept, Observe, State};

/// Changes whenever the same keys and values become other bytes.
const FORM: u32 = 2;

/// The KV cache of one conversation.
pub(crate) struct KvState {
    pub(crate) table: KvTable,
    /// See [`crate::ops::attention::partial_floats`].
    pub(crate) partials: Lines<f32>,
    pub(crate) len: usize,
    pub(crate) capacity: usize,
    pub(crate) observed: Observed,
    kernels: Kernels,
}

fn call(what: impl Into<String>) -> BackendError {
    BackendError::Call { what: what.into() }
}

fn no_memory() -> BackendError {
    call("there is no memory for another block of the KV cache")
}

impl KvState {
    /// For up to `capacity` tokens, of which a call appends at most `batch`.
    pub(crate) fn new(
        specs: &[CacheSpec],
        plan: KvPlan,
        (capacity, batch): (usize, usize),
        partials: usize,
        kernels: Kernels,
    ) -> Option<Self> {
        let shapes = specs.iter().map(|s| (s.kv_heads, s.head_dim)).collect();
        let table = KvTable::new(plan, shapes, capacity, batch)?;
        let partials = Lines::try_zeroed(partials)?;
        Some(KvState { table, partials, len: 0, capacity, observed: Observed::default(), kernels })
    }

    fn layouts(&self) -> &Layouts {
        &self.table.layouts
    }

    /// The kinds and masks of blocks in front of their bytes.
    fn head_bytes(blocks: usize) -> usize {
        blocks.next_multiple_of(8) + 8 * blocks
    }

    /// Blocks that hold of every layer and head what `kept` names.
    fn gathered(&mut self, kept: &Kept) -> Option<Vec<(Place, u64)>> {
        let (open, count) = (self.table.plan.open(), kept.count());
        let mut blocks = Vec::with_capacity(count.div_ceil(KEYS));
        let mut panels = vec![];
        for first in (0..count).step_by(KEYS) {
            let end = count.min(first + KEYS);
            // A block that stays as it is, in all heads, is not copied.
            if let Some(at) = kept.whole_block(first, KEYS) {
                blocks.push((self.table.blocks()[at].clone(), self.table.visual()[at]));
                continue;
            }
            let place = [self.table.take(open)?];
            let shapes = self.layouts().shapes.clone();
            let mut visual = u64::MAX;
            for (layer, (heads, d)) in shapes.iter().enumerate() {
                let (mut row, mut scratch) = (vec![0.0; 2 * d], vec![0.0; *d]);
                for head in 0..*heads {
                    let mut held = None;
                    for (token, from) in kept.of(layer, head)[first..end].iter().enumerate() {
                        let from = *from as usize;
                        let of = (layer, head, from);
                        self.table.read(&self.kernels, of, (&mut panels, &mut held), &mut row);
                        let to = self.table.layer_of(&place, layer);
                        // SAFETY: the place was just taken, and this is its only thread.
                        unsafe { to.put(&self.kernels, (head, token), &row[..*d], &row[*d..], &mut scratch) };
                        // A token is a picture's where it is in every head.
                        if self.table.visual()[from / KEYS] >> (from % KEYS) & 1 == 0 {
                            visual &= !(1 << token);
                        }
                    }
                }
            }
            if end - first < KEYS {
                visual &= (1 << (end - first)) - 1;
            }
            let [place] = place;
            blocks.push((place, visual));
        }
        Some(blocks)
    }
}

impl State for KvState {
    fn len(&self) -> usize {
        self.len
    }

    fn capacity(&self) -> usize {
        self.capacity
    }

    fn truncate(&mut self, len: usize) {
        if len < self.len {
            self.len = len;
            self.table.truncate(len);
            self.observed.truncate(len);
        }
    }

    fn size_bytes(&self) -> usize {
        self.table.size_bytes() + self.partials.size_bytes()
    }

    fn used_bytes(&self) -> usize {
        self.table.used_bytes() + self.partials.size_bytes() + self.observed.size_bytes()
    }

    fn form(&self) -> Option<String> {
        let shapes = self.layouts().shapes.iter().map(|(heads, d)| format!("{heads}x{d}"));
        let KvPlan { text, image } = self.table.plan;
        let order = if cfg!(target_endian = "little") { "le" } else { "be" };
        let shapes = shapes.collect::<Vec<_>>().join(" ");
        Some(format!("cpu-{FORM} {} {} {order} {shapes}", text.name(), image.name()))
    }

    fn snapshot(&self, len: usize) -> Vec<u8> {
        let count = len.min(self.len).div_ceil(KEYS);
        let (blocks, visual) = (&self.table.blocks()[..count], &self.table.visual()[..count]);
        let bytes: usize = blocks.iter().map(|place| place.bytes().len()).sum();
        let mut out = Vec::with_capacity(Self::head_bytes(count) + bytes);
        out.extend(blocks.iter().map(|place| place.kind() as u8));
        out.resize(count.next_multiple_of(8), 0);
        out.extend(visual.iter().flat_map(|mask| mask.to_le_bytes()));
        blocks.iter().for_each(|place| out.extend_from_slice(place.bytes()));
        out
    }

    fn restore(&mut self, len: usize, bytes: &[u8]) -> Result<(), BackendError> {
        if len > self.capacity {
            return Err(BackendError::ContextFull { capacity: self.capacity, used: 0, wanted: len });
        }
        let count = len.div_ceil(KEYS);
        let refused = |what: String| call(format!("{len} tokens of a KV cache: {what}"));
        let Some((head, mut rest)) = bytes.split_at_checked(Self::head_bytes(count)) else {
            return Err(refused(format!("{} bytes are too few", bytes.len())));
        };
        let kinds: Vec<KvType> = head[..count]
            .iter()
            .map(|kind| KvType::ALL.get(usize::from(*kind)).copied())
            .map(|kind| kind.filter(|kind| self.table.plan.types().any(|own| own == *kind)))
            .collect::<Option<_>>()
            .ok_or_else(|| refused("it has blocks of types that this one does not keep".to_owned()))?;
        let expected: usize = kinds.iter().map(|kind| self.layouts().stride(*kind)).sum();
        if rest.len() != expected {
            return Err(refused(format!("{expected} bytes are expected, not {}", rest.len())));
        }
        let masks = head[count.next_multiple_of(8)..].as_chunks().0;
        let mut blocks = vec![];
        for (kind, mask) in kinds.into_iter().zip(masks) {
            let mut place = self.table.take(kind).ok_or_else(no_memory)?;
            let (own, others) = rest.split_at(place.bytes().len());
            place.bytes_mut().copy_from_slice(own);
            blocks.push((place, u64::from_le_bytes(*mask)));
            rest = others;
        }
        self.table.replace(blocks);
        self.table.truncate(len);
        self.len = len;
        self.observed.clear(len);
        Ok(())
    }

    fn fork(&self, len: usize) -> Result<Box<dyn State>, BackendError> {
        let mut table = self.table.empty().ok_or_else(no_memory)?;
        let partials = Lines::try_zeroed(self.partials.len()).ok_or_else(no_memory)?;
        let len = len.min(self.len);
        table.share(&self.table, len);
        let observed = Observed::default();
        let (capacity, kernels) = (self.capacity, self.kernels);
        Ok(Box::new(KvState { table, partials, len, capacity, observed, kernels }))
    }

    fn observe(&mut self, what: Observe) -> Result<(), BackendError> {
        self.observed = Observed::new(what, self.len);
        Ok(())
    }

    fn attention(&mut self) -> Result<Vec<Vec<Vec<f32>>>, BackendError> {
        Ok(self.observed.attention(&self.kernels, &self.table, self.len))
    }

    fn retain(&mut self, kept: &Kept) -> Result<(), BackendError> {
        let heads: Vec<usize> = self.layouts().shapes.iter().map(|(heads, _)| *heads).collect();
        kept.check(&heads, self.len)?;
        let blocks = self.gathered(kept).ok_or_else(no_memory)?;
        self.table.replace(blocks);
        self.len = kept.count();
        self.table.truncate(self.len);
        self.observed.retain(kept);
        Ok(())
    }

    fn as_any_mut(&mut self) -> &mut dyn std::any::Any {
        self
    }
}
