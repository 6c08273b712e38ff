//! The KV cache of a decoder whose deeper layers do not see every token.

use margay_graph::{BackendError, Observe, State};
use std::{any::Any, ops::Range, sync::Arc};

fn call(what: String) -> BackendError {
    BackendError::Call { what }
}

/// The cache of the first layers, which holds every token, and that of the others, which lacks some of them. Places are
/// those of tokens in the conversation.
///
/// While a prompt is computed the first layers are ahead: their tokens count as held ([`State::len`]) only once they went
/// through all layers, or were left out.
pub(crate) struct SplitState {
    pub(super) head: Box<dyn State>,
    pub(super) tail: Box<dyn State>,
    /// Places that only `head` holds, ascending, all below [`State::len`].
    dropped: Vec<u32>,
    /// Hidden rows behind the first layers, of tokens that the others have not seen. [N, E]
    ahead: Vec<f32>,
    width: usize,
    /// Their places, once it is known which of them stay; the first `passed` of them went through.
    kept: Option<Vec<u32>>,
    passed: usize,
    /// Bytes that `ahead` ever took.
    touched_bytes: usize,
    form: Arc<str>,
}

impl SplitState {
    /// `form` tells states apart that drop other tokens.
    pub(super) fn new(head: Box<dyn State>, tail: Box<dyn State>, width: usize, form: Arc<str>) -> Self {
        let (dropped, ahead) = (vec![], vec![]);
        SplitState { head, tail, dropped, ahead, width, kept: None, passed: 0, touched_bytes: 0, form }
    }

    /// # Errors
    /// [`BackendError::Call`] for a state of another kind.
    pub(crate) fn of(state: &mut dyn State) -> Result<&mut SplitState, BackendError> {
        let own = state.as_any_mut().downcast_mut::<SplitState>();
        own.ok_or_else(|| {
            call("the state was made for a decoder that sees every token in all layers".to_owned())
        })
    }

    /// Tokens that only the first layers hold.
    pub(crate) fn dropped(&self) -> usize {
        self.dropped.len()
    }

    /// Tokens among the first `len` that the deeper layers hold, or will.
    pub(super) fn in_tail(&self, len: usize) -> usize {
        let held = len.min(self.len());
        let coming = match &self.kept {
            Some(kept) => kept[self.passed..].iter().filter(|place| (**place as usize) < len).count(),
            None => len - held,
        };
        held - self.dropped_before(held).len() + coming
    }

    /// Takes hidden rows of tokens that the first layers have just seen, [N, E].
    pub(super) fn take_ahead(&mut self, rows: &[f32]) -> Result<(), BackendError> {
        if self.ahead.is_empty() {
            let room = (self.capacity() - self.len()).saturating_mul(self.width);
            let no_memory = |_| call("there is no memory for the hidden rows of a prompt".to_owned());
            // Once, so that it is never copied; what is not written takes no memory.
            self.ahead.try_reserve_exact(room).map_err(no_memory)?;
        }
        self.ahead.extend_from_slice(rows);
        self.touched_bytes = self.touched_bytes.max(size_of_val(self.ahead.as_slice()));
        Ok(())
    }

    /// Has the first layers note that attention from now on.
    pub(crate) fn observe_head(&mut self, what: Observe) -> Result<(), BackendError> {
        self.head.observe(what)
    }

    /// The attention that was noted in the last layer that sees all, summed over heads, for each token that it holds; from
    /// now on none is noted.
    pub(crate) fn last_attention(&mut self) -> Result<Vec<f32>, BackendError> {
        let layers = self.head.attention()?;
        self.head.observe(Observe::Nothing)?;
        let mut sums = vec![0.0; self.head.len()];
        for head in layers.last().into_iter().flatten() {
            sums.iter_mut().zip(head).for_each(|(sum, one)| *sum += one);
        }
        Ok(sums)
    }

    /// Rows of all tokens that the first layers saw and the others did not, [N, E], and their places.
    pub(crate) fn ahead(&self) -> (&[f32], Range<usize>) {
        (&self.ahead, self.len()..self.head.len())
    }

    /// Only those of them stay: numbers of rows, ascending, the last among them.
    pub(crate) fn keep_ahead(&mut self, rows: &[usize]) -> Result<(), BackendError> {
        let (start, count) = (self.len(), self.head.len() - self.len());
        if rows.last().is_none_or(|last| last + 1 != count) || !rows.is_sorted_by(|a, b| a < b) {
            return Err(call(format!("of {count} tokens others should stay, and the last")));
        }
        for (to, from) in rows.iter().enumerate() {
            self.ahead.copy_within(from * self.width..(from + 1) * self.width, to * self.width);
        }
        self.ahead.truncate(rows.len() * self.width);
        let kept: Vec<u32> = rows.iter().map(|row| (start + row) as u32).collect();
        self.dropped.extend(start as u32..kept[0]);
        (self.kept, self.passed) = (Some(kept), 0);
        Ok(())
    }

    /// Places of the tokens that are still to go through the deeper layers.
    pub(crate) fn waiting(&self) -> &[u32] {
        self.kept.as_ref().map_or(&[], |kept| &kept[self.passed..])
    }

    /// The deeper layers' cache, and the hidden rows of the next tokens that they are to see, [count, E].
    pub(super) fn next(&mut self, count: usize) -> (&mut dyn State, &[f32]) {
        let rows = &self.ahead[self.passed * self.width..][..count * self.width];
        (self.tail.as_mut(), rows)
    }

    /// So many of them went through.
    pub(super) fn pass(&mut self, count: usize) {
        let Some(kept) = &self.kept else { return };
        let first = self.passed;
        self.passed += count;
        // What lies between two that stay is dropped.
        let known = &kept[first..kept.len().min(self.passed + 1)];
        self.dropped.extend(known.windows(2).flat_map(|pair| pair[0] + 1..pair[1]));
        if self.passed == kept.len() {
            self.forget_ahead();
        }
    }

    /// As if the first layers had seen no more than the others.
    pub(super) fn forget_ahead(&mut self) {
        (self.ahead, self.kept, self.passed) = (vec![], None, 0);
        let len = self.len();
        self.head.truncate(len);
    }

    /// Dropped tokens among the first `len`.
    fn dropped_before(&self, len: usize) -> &[u32] {
        &self.dropped[..self.dropped.partition_point(|place| (*place as usize) < len)]
    }
}

impl State for SplitState {
    fn len(&self) -> usize {
        self.tail.len() + self.dropped.len()
    }

    fn capacity(&self) -> usize {
        self.head.capacity()
    }

    fn truncate(&mut self, len: usize) {
        let len = len.min(self.len());
        let dropped = self.dropped_before(len).len();
        self.dropped.truncate(dropped);
        self.tail.truncate(len - dropped);
        self.forget_ahead();
    }

    fn size_bytes(&self) -> usize {
        let ahead = self.capacity().saturating_mul(self.width).saturating_mul(size_of::<f32>());
        (self.head.size_bytes() + self.tail.size_bytes()).saturating_add(ahead)
    }

    fn used_bytes(&self) -> usize {
        self.head.used_bytes() + self.tail.used_bytes() + self.touched_bytes
    }

    fn form(&self) -> Option<String> {
        Some(format!("{} | {} | {}", self.form, self.head.form()?, self.tail.form()?))
    }

    /// The number of dropped tokens (u64), their places (u32), the bytes of the first layers' cache (u64) and they, the
    /// others' cache.
    fn snapshot(&self, len: usize) -> Vec<u8> {
        let len = len.min(self.len());
        let dropped = self.dropped_before(len);
        let (head, tail) = (self.head.snapshot(len), self.tail.snapshot(len - dropped.len()));
        let mut out = Vec::with_capacity(16 + 4 * dropped.len() + head.len() + tail.len());
        out.extend((dropped.len() as u64).to_le_bytes());
        out.extend(dropped.iter().flat_map(|place| place.to_le_bytes()));
        out.extend((head.len() as u64).to_le_bytes());
        out.extend_from_slice(&head);
        out.extend_from_slice(&tail);
        out
    }

    fn restore(&mut self, len: usize, bytes: &[u8]) -> Result<(), BackendError> {
        let refused = |what: &str| call(format!("{len} tokens of a KV cache: {what}"));
        let short = || refused("bytes are missing");
        let number = |bytes: &[u8; 8]| usize::try_from(u64::from_le_bytes(*bytes)).unwrap_or(usize::MAX);
        let (count, rest) = bytes.split_first_chunk().ok_or_else(short)?;
        let places = number(count).checked_mul(4).and_then(|bytes| rest.split_at_checked(bytes));
        let (places, rest) = places.ok_or_else(short)?;
        let dropped: Vec<u32> = places.as_chunks().0.iter().map(|place| u32::from_le_bytes(*place)).collect();
        let within = dropped.last().is_none_or(|last| (*last as usize) < len);
        if !within || !dropped.is_sorted_by(|a, b| a < b) {
            return Err(refused("the tokens that were left out are none of them"));
        }
        let (count, rest) = rest.split_first_chunk().ok_or_else(short)?;
        let (head, tail) = rest.split_at_checked(number(count)).ok_or_else(short)?;
        self.truncate(0);
        let restored =
            self.head.restore(len, head).and_then(|()| self.tail.restore(len - dropped.len(), tail));
        match restored {
            Ok(()) => self.dropped = dropped,
            Err(_) => {
                self.head.truncate(0);
                self.tail.truncate(0);
            }
        }
        restored
    }

    fn fork(&self, len: usize) -> Result<Box<dyn State>, BackendError> {
        let len = len.min(self.len());
        let dropped = self.dropped_before(len).to_vec();
        let (head, tail) = (self.head.fork(len)?, self.tail.fork(len - dropped.len())?);
        Ok(Box::new(SplitState { dropped, ..SplitState::new(head, tail, self.width, self.form.clone()) }))
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}
