//! How a prompt is cut into what the decoder computes together.

use std::ops::Range;

/// The batches of a prompt, in order.
///
/// `ids`: as in [`crate::PromptInputs`], negative for visual rows. `most`: tokens of a batch at most, at least 1. The first
/// `prefix` tokens, which see one another, stay together. `apart`: batches end where a picture begins or ends.
pub fn prompt_batches(
    ids: &[i32],
    most: usize,
    prefix: usize,
    apart: bool,
) -> impl Iterator<Item = Range<usize>> + '_ {
    let mut from = 0;
    std::iter::from_fn(move || {
        let range = from..batch_end(ids, from, most, prefix, apart);
        from = range.end;
        (!range.is_empty()).then_some(range)
    })
}

/// Where the batch ends that begins at `from`.
pub(crate) fn batch_end(ids: &[i32], from: usize, most: usize, prefix: usize, apart: bool) -> usize {
    let least = if from == 0 { prefix } else { 0 };
    let to = ids.len().min(from + most.max(least).max(1));
    if !apart || from >= to {
        return to;
    }
    let visual = ids[from] < 0;
    let alike = ids[from..to].iter().take_while(|id| (**id < 0) == visual).count();
    to.min(from + alike.max(least))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(ids: &[i32], most: usize, prefix: usize, apart: bool) -> Vec<Range<usize>> {
        prompt_batches(ids, most, prefix, apart).collect()
    }

    #[test]
    fn batches_hold_every_token_once_and_apart_no_two_kinds() {
        let ids = [1, 2, -1, -2, -3, 3, -4, 4, 5];
        assert_eq!(cut(&ids, 4, 0, false), [0..4, 4..8, 8..9]);
        assert_eq!(cut(&ids, 2, 0, true), [0..2, 2..4, 4..5, 5..6, 6..7, 7..9]);
        assert_eq!(cut(&ids, 512, 0, true), [0..2, 2..5, 5..6, 6..7, 7..9]);
        // Tokens that see one another are not cut, whatever they are.
        assert_eq!(cut(&ids, 2, 4, true), [0..4, 4..5, 5..6, 6..7, 7..9]);
        assert!(cut(&[], 4, 0, true).is_empty());
    }
}
