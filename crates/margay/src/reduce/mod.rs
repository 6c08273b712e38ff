//! Fewer visual tokens: which of a tile's projected rows the decoder sees.
//!
//! All methods see only the rows themselves, so that they fit every tower and projector, and keep rows in their order.

mod diverse;
mod even;
mod merge;
mod random;

use crate::Error;

/// A way to leave visual tokens out.
pub struct ReductionEntry {
    /// Short lower-case name.
    pub id: &'static str,
    /// One line for people.
    pub what: &'static str,
    reduce: fn(&Rows<'_>, usize) -> Vec<f32>,
}

/// All of them.
pub static REDUCTIONS: &[ReductionEntry] = &[merge::ENTRY, diverse::ENTRY, even::ENTRY, random::ENTRY];

/// How many visual tokens the decoder sees of each tile, and which.
#[derive(Clone, Debug, PartialEq)]
pub struct Reduction {
    /// Id of an entry of [`REDUCTIONS`].
    pub method: String,
    /// Share that stays, above 0 and at most 1; of each tile at least one.
    pub share: f64,
}

impl Reduction {
    /// Tokens that stay of so many.
    pub fn kept(&self, tokens: usize) -> usize {
        // A share of tokens is far below what a float counts exactly.
        ((tokens as f64 * self.share).round() as usize).clamp(tokens.min(1), tokens)
    }

    /// # Errors
    /// [`Error::Unknown`] for the method, [`Error::Option`] for the share.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if !(self.share > 0.0 && self.share <= 1.0) {
            let what = format!("{} is not above 0 and at most 1", self.share);
            return Err(Error::Option { option: "share of image tokens", what });
        }
        self.entry().map(|_| ())
    }

    fn entry(&self) -> Result<&'static ReductionEntry, Error> {
        REDUCTIONS.iter().find(|entry| entry.id == self.method).ok_or_else(|| Error::Unknown {
            what: "way to leave visual tokens out",
            name: self.method.clone(),
            known: REDUCTIONS.iter().map(|entry| entry.id).collect::<Vec<_>>().join(", "),
        })
    }

    /// The rows that stay of [V, width].
    pub(crate) fn apply(&self, rows: &[f32], width: usize) -> Result<Vec<f32>, Error> {
        let rows = Rows { rows, width };
        let keep = self.kept(rows.count());
        if keep == rows.count() {
            return Ok(rows.rows.to_vec());
        }
        Ok((self.entry()?.reduce)(&rows, keep))
    }
}

/// Visual tokens of a tile, [V, width].
struct Rows<'r> {
    rows: &'r [f32],
    width: usize,
}

impl<'r> Rows<'r> {
    fn count(&self) -> usize {
        self.rows.len() / self.width
    }

    fn row(&self, at: usize) -> &'r [f32] {
        &self.rows[at * self.width..][..self.width]
    }

    fn chosen(&self, chosen: impl IntoIterator<Item = usize>) -> Vec<f32> {
        chosen.into_iter().flat_map(|at| self.row(at)).copied().collect()
    }
}

/// Rows of length 1, so that a product of two is the cosine of their angle; of a row of zeros, zeros.
fn unit_rows(rows: &[f32], width: usize) -> Vec<f32> {
    let mut units = rows.to_vec();
    for row in units.chunks_exact_mut(width) {
        let length = dot(row, row).sqrt();
        if length > 0.0 {
            row.iter_mut().for_each(|x| *x /= length);
        }
    }
    units
}

/// In eight sums, which compilers turn into vectors.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; 8];
    let ((a8, a_rest), (b8, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    for (a, b) in a8.iter().zip(b8) {
        for i in 0..8 {
            sums[i] += a[i] * b[i];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reduced(method: &str, rows: &[f32], width: usize, share: f64) -> Vec<f32> {
        Reduction { method: method.to_owned(), share }.apply(rows, width).unwrap()
    }

    /// Rows of 11 numbers that differ.
    fn rows(count: usize) -> Vec<f32> {
        (0..count * 11).map(|i| ((i * i + 7 * i) as f32 * 0.013).sin()).collect()
    }

    #[test]
    fn as_many_stay_as_asked_for_whatever_the_method() {
        for entry in REDUCTIONS {
            for count in [1, 2, 5, 36, 144] {
                for share in [0.01, 0.1, 0.25, 0.5, 0.75, 0.99, 1.0] {
                    let rows = rows(count);
                    let left = reduced(entry.id, &rows, 11, share);
                    let kept = Reduction { method: entry.id.to_owned(), share }.kept(count);
                    assert_eq!(left.len(), kept * 11, "{} {count} {share}", entry.id);
                    assert!(left.iter().all(|x| x.is_finite()));
                    if kept == count {
                        assert_eq!(left, rows);
                    }
                    assert_eq!(left, reduced(entry.id, &rows, 11, share), "the same every time");
                }
            }
        }
    }

    #[test]
    fn what_is_chosen_are_rows_in_their_order() {
        let all = rows(36);
        for id in ["diverse", "even", "random"] {
            let left = reduced(id, &all, 11, 0.4);
            let place = |row: &[f32]| all.chunks_exact(11).position(|x| x == row).unwrap();
            let places: Vec<usize> = left.chunks_exact(11).map(place).collect();
            assert!(places.is_sorted_by(|a, b| a < b), "{id}: {places:?}");
        }
    }

    #[test]
    fn rows_that_say_the_same_go_first() {
        // Twelve kinds, each three times, a little different.
        let kinds = rows(12);
        let copies = kinds.chunks_exact(11).flat_map(|row| {
            (0..3).map(|copy| row.iter().map(|x| x + copy as f32 * 1e-4).collect::<Vec<f32>>())
        });
        let all: Vec<f32> = copies.flatten().collect();
        for id in ["diverse", "merge"] {
            let left = reduced(id, &all, 11, 1.0 / 3.0);
            let kind = |row: &[f32]| {
                let off = |kind: &[f32]| kind.iter().zip(row).map(|(a, b)| (a - b).abs()).sum::<f32>();
                kinds.chunks_exact(11).position(|kind| off(kind) < 0.01).unwrap_or(99)
            };
            let kept: Vec<usize> = left.chunks_exact(11).map(kind).collect();
            assert_eq!(kept, (0..12).collect::<Vec<_>>(), "{id}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for (method, share) in [("merge", 0.0), ("merge", 1.1), ("merge", f64::NAN), ("nothing", 0.5)] {
            assert!(Reduction { method: method.to_owned(), share }.check().is_err(), "{method} {share}");
        }
    }
}
