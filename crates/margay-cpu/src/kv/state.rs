//! The KV cache of one conversation.

use super::{
    KvPlan, KvTable, KvType,
    observe::Observed,
    table::{Layouts, Place},
    turn::{KeyRope, Turned, turned},
};
use crate::{
    kernels::{Kernels, attention::KEYS},
    lines::Lines,
};
use margay_graph::{BackendError, CacheSpec, Kept, Observe, State};
use std::sync::Arc;

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
    /// How each layer turns its keys; `None` where some layer does not.
    ropes: Option<Arc<[KeyRope]>>,
    turned: Turned,
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
        let (observed, turned) = Default::default();
        Some(KvState { table, partials, len: 0, capacity, observed, kernels, ropes: None, turned })
    }

    /// With what turning keys needs.
    pub(crate) fn with_ropes(self, ropes: Option<Vec<KeyRope>>) -> Self {
        KvState { ropes: ropes.map(Arc::from), ..self }
    }

    /// Has turned blocks as they were computed.
    fn unturn(&mut self) {
        let turned = std::mem::take(&mut self.turned);
        self.table.exchange(turned.blocks);
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
            if len <= self.turned.tokens() {
                self.unturn();
            }
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
        // Turned ones belong to what follows them.
        let blocks = self.turned.blocks.get(..count).unwrap_or(&self.table.blocks()[..count]);
        let visual = &self.table.visual()[..count];
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
        self.turned = Turned::default();
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
        let mut turned = Turned::default();
        if len <= self.turned.tokens() {
            table.exchange(self.turned.blocks.iter().cloned());
            table.truncate(len);
        } else {
            turned = self.turned.clone();
            // They keep the type they were turned in.
            let own = self.table.blocks().iter().take(turned.blocks.len());
            table.exchange(own.cloned());
        }
        let (capacity, kernels, ropes) = (self.capacity, self.kernels, self.ropes.clone());
        let observed = Observed::default();
        Ok(Box::new(KvState { table, partials, len, capacity, observed, kernels, ropes, turned }))
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
        if kept.first_dropped() < self.turned.tokens() {
            return Err(call("tokens that are turned stay; cut the state before them instead"));
        }
        let blocks = self.gathered(kept).ok_or_else(no_memory)?;
        self.table.replace(blocks);
        self.len = kept.count();
        self.table.truncate(self.len);
        self.observed.retain(kept);
        // The copies stay as they are.
        self.table.exchange(self.table.blocks()[..self.turned.blocks.len()].to_vec());
        Ok(())
    }

    fn turn(&mut self, tokens: usize, by: i32) -> Result<(), BackendError> {
        if tokens > self.len || !tokens.is_multiple_of(KEYS) {
            let what = format!("{tokens} of {} tokens are to be turned, in whole blocks of {KEYS}", self.len);
            return Err(call(what));
        }
        self.unturn();
        if by == 0 || tokens == 0 {
            return Ok(());
        }
        let ropes = self.ropes.clone();
        let ropes = ropes.ok_or_else(|| call("keys without rotary positions cannot be turned"))?;
        let own = self.table.blocks()[..tokens / KEYS].to_vec();
        let mut copies = Vec::with_capacity(own.len());
        for block in &own {
            let copy = turned(&mut self.table, &self.kernels, &ropes, block, by);
            copies.push(copy.ok_or_else(no_memory)?);
        }
        self.table.exchange(copies);
        self.turned = Turned { blocks: own };
        Ok(())
    }

    fn as_any_mut(&mut self) -> &mut dyn std::any::Any {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CpuBackend, Isa};

    fn state(plan: KvPlan, capacity: usize) -> KvState {
        let specs = [CacheSpec { kv_heads: 2, head_dim: 40 }, CacheSpec { kv_heads: 3, head_dim: 72 }];
        KvState::new(&specs, plan, (capacity, 64), 7, Kernels::of(Isa::Scalar).unwrap()).unwrap()
    }

    /// Each number says where it is.
    fn number(layer: usize, head: usize, token: usize, at: usize) -> f32 {
        (layer * 1000 + head * 300 + token) as f32 + at as f32 / 256.0
    }

    fn fill(state: &mut KvState, tokens: usize) {
        let engine = CpuBackend::new(Default::default()).unwrap().engine(20_000);
        for token in 0..tokens {
            assert!(state.table.prepare(&engine, token, token + 1).unwrap());
            for (layer, (heads, d)) in state.layouts().shapes.clone().into_iter().enumerate() {
                for head in 0..heads {
                    let row: Vec<f32> = (0..2 * d).map(|at| number(layer, head, token, at)).collect();
                    // SAFETY: one thread, and the block was made ready.
                    unsafe {
                        let of = state.table.layer(layer);
                        of.put(&state.kernels, (head, token), &row[..d], &row[d..], &mut vec![0.0; d]);
                    }
                }
            }
            state.len = token + 1;
        }
    }

    #[test]
    fn it_sets_aside_what_its_types_take() {
        for text in KvType::ALL {
            for image in KvType::ALL {
                let state = state(KvPlan { text, image }, 300);
                let bytes = |kind: KvType, tokens| {
                    kind.layer_bytes(2, 40, tokens).unwrap() + kind.layer_bytes(3, 72, tokens).unwrap()
                };
                let open = text.while_open();
                // A call appends a block, and one that was full before it is rewritten.
                let staged = if open == text && open == image { 0 } else { bytes(open, 128) };
                let most = bytes(text, 300).max(bytes(image, 300));
                assert_eq!(state.size_bytes(), most + staged + 7 * 4, "{text:?} {image:?}");
                assert_eq!(state.used_bytes(), 7 * 4);
            }
        }
    }

    #[test]
    fn each_head_keeps_its_own_tokens() {
        let mut state = state(KvPlan { text: KvType::F32, image: KvType::F32 }, 300);
        fill(&mut state, 150);
        // Every head begins elsewhere; one keeps a whole block, which the others do not.
        let tokens = |head: usize| {
            (0..70u32).map(|at| if head == 0 { at + 64 } else { 2 * at + head as u32 - 1 }).collect()
        };
        let of = vec![(0..2).map(tokens).collect(), (0..3).map(tokens).collect()];
        let kept = Kept::new(of).unwrap();
        state.retain(&kept).unwrap();
        assert_eq!((state.len(), kept.first_dropped()), (70, 0));
        let (mut panels, mut held) = (vec![], None);
        for (layer, (heads, d)) in state.layouts().shapes.clone().into_iter().enumerate() {
            let mut row = vec![0.0; 2 * d];
            for head in 0..heads {
                for (at, token) in kept.of(layer, head).iter().enumerate() {
                    let held = (&mut panels, &mut held);
                    state.table.read(&state.kernels, (layer, head, at), held, &mut row);
                    let expected: Vec<f32> =
                        (0..2 * d).map(|at| number(layer, head, *token as usize, at)).collect();
                    assert_eq!(row, expected, "{layer} {head} {at}");
                }
            }
        }
    }

    #[test]
    fn blocks_within_pictures_take_their_type_when_they_are_full_and_a_later_call_begins() {
        let engine = CpuBackend::new(Default::default()).unwrap().engine(20_000);
        let plan = KvPlan { text: KvType::Q8, image: KvType::Q4_0 };
        let mut state = state(plan, 300);
        fill(&mut state, 200);
        // Tokens 60 to 191 are a picture's: two whole blocks, and a part of the first.
        (60..192).for_each(|token| state.table.mark_visual(token));
        let kinds = |state: &KvState| state.table.blocks().iter().map(Place::kind).collect::<Vec<_>>();
        // `fill` began many calls before the marks were set.
        state.table.truncate(0);
        fill(&mut state, 128);
        (60..128).for_each(|token| state.table.mark_visual(token));
        assert_eq!(kinds(&state), [KvType::Q8; 2]);
        assert!(state.table.prepare(&engine, 128, 129).unwrap());
        assert_eq!(kinds(&state), [KvType::Q8, KvType::Q4_0, KvType::Q8]);
        // Cut within the picture, the block is opened again, and stays what it is if the rest is words.
        state.truncate(100);
        assert!(state.table.prepare(&engine, 100, 128).unwrap());
        assert_eq!(kinds(&state), [KvType::Q8; 2]);
        assert!(state.table.prepare(&engine, 128, 129).unwrap());
        assert_eq!(kinds(&state), [KvType::Q8; 3]);
    }
}
