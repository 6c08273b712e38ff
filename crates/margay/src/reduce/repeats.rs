//! Patches of a tile that look like an earlier one.

use std::collections::HashSet;

/// Which patches are encoded, of [P, width] values: all but those that look like one before them. `levels` is by how much the
/// pixels of two may differ, each of them, in the same unit as the values; 0 takes only patches that are equal to the bit. P^2
/// width comparisons at most, where `levels` is above 0.
pub(crate) fn first_of_each(patches: &[f32], width: usize, levels: f32) -> Vec<usize> {
    let rows = patches.chunks_exact(width);
    if levels <= 0.0 {
        let mut seen = HashSet::new();
        let bits = |row: &[f32]| row.iter().map(|x| x.to_bits()).collect::<Vec<u32>>();
        return rows.enumerate().filter(|(_, row)| seen.insert(bits(row))).map(|(at, _)| at).collect();
    }
    let mut kept: Vec<usize> = vec![];
    for (at, row) in rows.enumerate() {
        let like = |other: &&usize| {
            let other = &patches[**other * width..][..width];
            other.iter().zip(row).all(|(a, b)| (a - b).abs() <= levels)
        };
        if !kept.iter().any(|other| like(&other)) {
            kept.push(at);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_patches_that_look_alike_stays() {
        let patches = [0.0, 1.0, 5.0, 5.0, 0.0, 1.0, 0.25, 1.0, 5.0, 5.0, 5.0, 5.5];
        assert_eq!(first_of_each(&patches, 2, 0.0), [0, 1, 3, 5]);
        assert_eq!(first_of_each(&patches, 2, 0.25), [0, 1, 5]);
        assert_eq!(first_of_each(&patches, 2, 9.0), [0]);
        assert!(first_of_each(&[], 2, 0.0).is_empty());
    }
}
