//! The greatest of some scores.

/// The places of the `keep` greatest, ascending; of equals the first.
pub(crate) fn greatest(scores: &[f32], keep: usize) -> Vec<usize> {
    let mut places: Vec<usize> = (0..scores.len()).collect();
    places.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    places.truncate(keep);
    places.sort_unstable();
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_greatest_come_in_their_order_and_of_equals_the_first() {
        assert_eq!(greatest(&[1.0, 3.0, 2.0, 3.0, 3.0], 2), [1, 3]);
        assert_eq!(greatest(&[1.0, 3.0, 2.0], 9), [0, 1, 2]);
    }
}
