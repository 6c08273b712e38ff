//! What each patch is looked at in the tower, from the queries and keys of one of its blocks.

use super::dot;

/// Queries and keys of the block whose output is the features, and where visual tokens come from.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Attention {
    /// [N, C], the class token's row first where there is one.
    pub queries: Vec<f32>,
    /// [N, C]
    pub keys: Vec<f32>,
    /// C
    pub width: usize,
    /// H
    pub heads: usize,
    /// Whether a class token stands first.
    pub class_token: bool,
    /// Patches in a row of the tile; that of patches that were picked out of it does not matter.
    pub columns: usize,
    /// Side of the square of patches that a visual token comes from.
    pub square: usize,
}

impl Attention {
    /// What each visual token receives, [V]: the sum, over `heads` heads of equal width and over the patches it comes from, of
    /// the class token's attention, or where there is none of the mean over all patches.
    pub(crate) fn received(&self, heads: usize) -> Vec<f32> {
        let (width, class) = (self.width, usize::from(self.class_token));
        let (count, head) = (self.keys.len() / width, width / heads.max(1));
        let looking = if self.class_token { 0..1 } else { 0..count };
        let share = 1.0 / looking.len().max(1) as f32;
        let scale = (head as f32).powf(-0.5);
        let mut received = vec![0.0; count];
        let mut scores = vec![0.0; count];
        for (query, from) in looking.flat_map(|query| (0..heads).map(move |at| (query, at * head))) {
            let q = &self.queries[query * width + from..][..head];
            let mut most = f32::NEG_INFINITY;
            for (at, score) in scores.iter_mut().enumerate() {
                *score = dot(q, &self.keys[at * width + from..][..head]) * scale;
                most = most.max(*score);
            }
            scores.iter_mut().for_each(|score| *score = (*score - most).exp());
            let sum: f32 = scores.iter().sum();
            for (received, score) in received.iter_mut().zip(&scores) {
                *received += score / sum * share;
            }
        }
        self.pooled(&received[class..], 1)
    }

    /// The keys behind each visual token, [V, C / heads]: their mean over so many heads, summed over its patches.
    pub(crate) fn mean_keys(&self, heads: usize) -> Vec<f32> {
        let (width, class) = (self.width, usize::from(self.class_token));
        let head = width / heads.max(1);
        let mean = |row: &[f32]| {
            (0..head).map(|i| row[i..].iter().step_by(head).sum::<f32>() / heads as f32).collect::<Vec<f32>>()
        };
        let keys: Vec<f32> = self.keys.chunks_exact(width).skip(class).flat_map(mean).collect();
        self.pooled(&keys, head)
    }

    /// Sums over the square of patches behind each token, of [P, width].
    fn pooled(&self, values: &[f32], width: usize) -> Vec<f32> {
        if self.square == 1 {
            return values.to_vec();
        }
        let columns = self.columns / self.square;
        let rows = values.len() / width / self.columns.max(1) / self.square;
        let mut sums = vec![0.0; rows * columns * width];
        for (at, patch) in values.chunks_exact(width).enumerate() {
            let (row, column) = (at / self.columns / self.square, at % self.columns / self.square);
            let sum = &mut sums[(row * columns + column) * width..][..width];
            sum.iter_mut().zip(patch).for_each(|(sum, x)| *sum += x);
        }
        sums
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attention(class_token: bool, square: usize) -> Attention {
        let rows = 16 + usize::from(class_token);
        let numbers = |seed: f32| (0..rows * 6).map(|i| (i as f32 * seed).sin() * 3.0).collect::<Vec<f32>>();
        let (queries, keys) = (numbers(0.7), numbers(1.3));
        Attention { queries, keys, width: 6, heads: 2, class_token, columns: 4, square }
    }

    /// Shares of a softmax row: all that patches receive, with what the class token gives itself, is 1 a head.
    #[test]
    fn what_is_received_adds_up_to_one_a_head() {
        let without = attention(false, 1);
        for heads in [1, 2, 3] {
            let sum: f32 = without.received(heads).iter().sum();
            assert!((sum - heads as f32).abs() < 1e-5, "{sum}");
            let with: f32 = attention(true, 1).received(heads).iter().sum();
            assert!(with < heads as f32 && with > 0.0);
        }
        let pooled = attention(false, 2).received(2);
        assert_eq!(pooled.len(), 4);
        let plain = without.received(2);
        let first = plain[0] + plain[1] + plain[4] + plain[5];
        assert!((pooled[0] - first).abs() < 1e-6 && (pooled.iter().sum::<f32>() - 2.0).abs() < 1e-5);
    }

    #[test]
    fn keys_are_means_over_heads_and_sums_over_patches() {
        let keys = attention(true, 1).mean_keys(2);
        let raw = attention(true, 1).keys;
        assert_eq!(keys.len(), 16 * 3);
        assert_eq!(keys[0], (raw[6] + raw[9]) / 2.0);
        assert_eq!(attention(true, 1).mean_keys(1), raw[6..]);
    }
}
