//! The factor that tells how an error in one column is best made up for in the columns after it.

use crate::{Hessian, QuantError, stats::same};

/// Damping tried first, as a part of the mean of the diagonal. Source: `percdamp` of the GPTQ code.
pub const DAMP: f32 = 0.01;

/// Rows factored together, so that a row of the triangle that is read serves that many.
const TILE: usize = 8;

/// The upper triangular U with H⁻¹ = Uᵀ U, of a damped Hessian whose columns may be reordered.
///
/// An error e in column i, divided by `U[i][i]`, costs least where `e / U[i][i] * U[i][j]` is taken from each later
/// column j. Source: GPTQ (arXiv 2210.17323), section 3.3.
#[derive(Clone, Debug)]
pub struct Factor {
    columns: usize,
    /// Row after row, each from its diagonal on.
    upper: Vec<f32>,
    /// Which column of the weight stands at each place.
    order: Vec<usize>,
    /// Columns whose input was always zero: their weights do not matter.
    dead: Vec<bool>,
}

impl Factor {
    /// Factors `hessian`. With `by_importance` the columns with the largest inputs come first, so that their errors are made
    /// up for by the most others. Damping starts at [`DAMP`] and grows tenfold until the factor exists.
    ///
    /// # Errors
    /// [`QuantError::Missing`] where no damping up to the diagonal itself is enough: the Hessian saw no tokens, or its
    /// numbers overflow.
    pub fn new(hessian: &Hessian, by_importance: bool) -> Result<Self, QuantError> {
        let n = hessian.columns();
        // As the mean over tokens, of which the Hessian is twice. Source: `add_batch` of the GPTQ code.
        let scale = 2.0 / hessian.tokens().max(1) as f32;
        let mut diagonal: Vec<f32> = hessian.diagonal().iter().map(|h| scale * h).collect();
        let dead: Vec<bool> = diagonal.iter().map(|&h| h <= 0.0).collect();
        for (h, _) in diagonal.iter_mut().zip(&dead).filter(|(_, dead)| **dead) {
            *h = 1.0;
        }
        let mean = diagonal.iter().map(|&h| f64::from(h)).sum::<f64>() / n.max(1) as f64;
        let mut order: Vec<usize> = (0..n).collect();
        if by_importance {
            order.sort_by(|&a, &b| diagonal[b].total_cmp(&diagonal[a]));
        }
        let mut damp = DAMP;
        while damp <= 1.0 {
            let mut upper = Vec::with_capacity(hessian.upper().len());
            for (place, &i) in order.iter().enumerate() {
                upper.push(diagonal[i] + damp * mean as f32);
                // A dead input was zero with every token, so nothing else stands in its row.
                upper.extend(order[place + 1..].iter().map(|&j| scale * hessian.at(i, j)));
            }
            if decompose(&mut upper, n) {
                invert(&mut upper, n);
                return Ok(Self { columns: n, upper, order, dead });
            }
            damp *= 10.0;
        }
        Err(QuantError::Missing { what: "a Hessian of finite inputs", why: "making up for rounding errors" })
    }

    /// Columns of the weights it is for.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Which column of the weight stands at each place.
    pub fn order(&self) -> &[usize] {
        &self.order
    }

    /// Row `i` from the diagonal on.
    pub(crate) fn row(&self, i: usize) -> &[f32] {
        &self.upper[start(self.columns, i)..][..self.columns - i]
    }

    /// One row of a weight in the factor's order, dead columns zero.
    pub(crate) fn arrange(&self, row: &[f32], out: &mut [f32]) -> Result<(), QuantError> {
        same("columns of a weight and its Hessian", self.columns, row.len())?;
        for (out, &column) in out.iter_mut().zip(&self.order) {
            *out = if self.dead[column] { 0.0 } else { row[column] };
        }
        Ok(())
    }
}

fn start(n: usize, i: usize) -> usize {
    i * n - i * i.saturating_sub(1) / 2
}

/// Rows `i` (to write) and `j > i` (to read) of a triangle.
fn two(upper: &mut [f32], n: usize, i: usize, j: usize) -> (&mut [f32], &[f32]) {
    let (before, after) = upper.split_at_mut(start(n, j));
    (&mut before[start(n, i)..][..n - i], &after[..n - j])
}

/// Turns the upper triangle of H into R with H = R Rᵀ; false where H is not positive definite.
fn decompose(upper: &mut [f32], n: usize) -> bool {
    for tile in (0..n).rev().collect::<Vec<_>>().chunks(TILE) {
        let (first, last) = (tile[tile.len() - 1], tile[0]);
        for j in (first..n).rev() {
            if j <= last {
                let row = &mut upper[start(n, j)..][..n - j];
                let square = row[0] - dot(&row[1..], &row[1..]);
                // A comparison with NaN is false as well.
                if !(square > 0.0 && square.is_finite()) {
                    return false;
                }
                row[0] = square.sqrt();
            }
            for i in first..j.min(last + 1) {
                let (row, later) = two(upper, n, i, j);
                let at = j - i;
                row[at] = (row[at] - dot(&row[at + 1..], &later[1..])) / later[0];
            }
        }
    }
    true
}

/// Turns the upper triangular R into its inverse.
fn invert(upper: &mut [f32], n: usize) {
    let mut factors = vec![0.0; TILE * n];
    for tile in (0..n).rev().collect::<Vec<_>>().chunks(TILE) {
        let (first, last) = (tile[tile.len() - 1], tile[0]);
        for (i, factors) in (first..=last).zip(factors.chunks_mut(n)) {
            let row = &mut upper[start(n, i)..][..n - i];
            let inverse = 1.0 / row[0];
            for (factor, r) in factors[i + 1..].iter_mut().zip(&row[1..]) {
                *factor = -inverse * r;
            }
            row.fill(0.0);
            row[0] = inverse;
        }
        // A row that is done goes into every row of the tile; those within the tile are done from the last on.
        for k in last + 1..n {
            for i in first..=last {
                axpy(upper, n, i, k, factors[(i - first) * n + k]);
            }
        }
        for k in (first + 1..=last).rev() {
            for i in first..k {
                axpy(upper, n, i, k, factors[(i - first) * n + k]);
            }
        }
    }
}

/// Adds `factor` times row `k` of a triangle to row `i`.
fn axpy(upper: &mut [f32], n: usize, i: usize, k: usize, factor: f32) {
    let (row, later) = two(upper, n, i, k);
    for (a, b) in row[k - i..].iter_mut().zip(later) {
        *a += factor * b;
    }
}

/// The sum of products, in as many partial sums as keep a vector unit busy.
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    const WIDTH: usize = 16;
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<WIDTH>(), b.as_chunks::<WIDTH>());
    let mut sums = [0.0; WIDTH];
    for (a, b) in a.iter().zip(b) {
        for i in 0..WIDTH {
            sums[i] += a[i] * b[i];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hessian(n: usize, tokens: usize) -> Hessian {
        let mut hessian = Hessian::new(n);
        let x: Vec<f32> = (0..n * tokens).map(|i| ((i * i) as f32 * 0.37).sin() + 0.2).collect();
        hessian.add(&x, None).unwrap();
        hessian
    }

    #[test]
    fn the_factor_times_itself_inverts_the_damped_hessian() {
        for (n, by_importance) in [(1, false), (5, true), (21, false), (40, true)] {
            let hessian = hessian(n, 2 * n + 3);
            let factor = Factor::new(&hessian, by_importance).unwrap();
            let u = |i: usize, j: usize| if j < i { 0.0 } else { f64::from(factor.row(i)[j - i]) };
            let scale = 2.0 / hessian.tokens() as f64;
            let mean = hessian.diagonal().iter().map(|&h| f64::from(h)).sum::<f64>() * scale / n as f64;
            for i in 0..n {
                for j in 0..n {
                    // Row i of Uᵀ U times column j of H.
                    let product: f64 = (0..n)
                        .map(|k| {
                            let inverse: f64 = (0..n).map(|m| u(m, i) * u(m, k)).sum();
                            let (a, b) = (factor.order[k], factor.order[j]);
                            let damp = if k == j { f64::from(DAMP) * mean } else { 0.0 };
                            inverse * (scale * f64::from(hessian.at(a, b)) + damp)
                        })
                        .sum();
                    let identity = f64::from(u8::from(i == j));
                    assert!((product - identity).abs() < 2e-3, "n {n}: {i} {j} is {product}");
                }
            }
        }
    }

    #[test]
    fn columns_come_by_importance_and_dead_ones_count_as_zero() {
        let mut hessian = Hessian::new(3);
        hessian.add(&[1.0, 0.0, 5.0, -1.0, 0.0, 4.0], None).unwrap();
        let factor = Factor::new(&hessian, true).unwrap();
        assert_eq!(factor.order(), [2, 0, 1]);
        let mut row = [0.0; 3];
        factor.arrange(&[7.0, 8.0, 9.0], &mut row).unwrap();
        assert_eq!(row, [9.0, 7.0, 0.0]);
        assert!(factor.arrange(&[0.0; 2], &mut row).is_err());
    }

    #[test]
    fn numbers_that_overflow_are_an_error() {
        let mut hessian = Hessian::new(2);
        hessian.add(&[f32::MAX, f32::MAX], None).unwrap();
        assert!(matches!(Factor::new(&hessian, false), Err(QuantError::Missing { .. })));
    }
}
