//! The factor that tells how an error in one column is best made up for in the columns after it.

use crate::{
    Hessian, QuantError,
    stats::same,
    triangle::{PANEL, Triangle, behind, each, front, part},
};
use ndarray::{Array2, ArrayView2, Axis, linalg::general_mat_mul};

/// Damping tried first, as a part of the mean of the diagonal. Source: `percdamp` of the GPTQ code.
pub const DAMP: f32 = 0.01;

/// Columns that a thread takes at a time of a product with a triangle.
const STRIPE: usize = 512;

/// The upper triangular U with H⁻¹ = Uᵀ U, of a damped Hessian whose columns may be reordered.
///
/// An error e in column i, divided by `U[i][i]`, costs least where `e / U[i][i] * U[i][j]` is taken from each later
/// column j. Source: GPTQ (arXiv 2210.17323), section 3.3.
#[derive(Clone, Debug, PartialEq)]
pub struct Factor {
    upper: Triangle,
    /// Which column of the weight stands at each place.
    order: Vec<usize>,
    /// Mean of x² of each column's input, not damped.
    mean_squares: Vec<f32>,
}

impl Factor {
    /// Factors `hessian`, in its place: nothing as large is allocated. With `by_importance` the columns with the largest
    /// inputs come first, so that their errors are made up for by the most others. Damping starts at [`DAMP`] and grows
    /// tenfold until the factor exists.
    ///
    /// # Errors
    /// [`QuantError::Missing`] where no damping up to the diagonal itself is enough: the Hessian saw no tokens, or its
    /// numbers overflow.
    pub fn new(hessian: Hessian, by_importance: bool) -> Result<Self, QuantError> {
        let (n, threads) = (hessian.columns(), hessian.threads());
        let tokens = hessian.tokens().max(1) as f32;
        let mean_squares: Vec<f32> = hessian.diagonal().iter().map(|sum| sum / tokens).collect();
        let mut upper = hessian.into_upper();
        // As the mean over tokens, of which the Hessian is twice. Source: `add_batch` of the GPTQ code.
        let scale = 2.0 / tokens;
        upper.numbers_mut().iter_mut().for_each(|h| *h *= scale);
        let diagonal: Vec<f32> = (0..n).map(|i| upper.at(i, i)).collect();
        for i in (0..n).filter(|&i| diagonal[i] <= 0.0) {
            // A dead input was zero with every token, so nothing else stands in its row.
            *upper.at_mut(i, i) = 1.0;
        }
        let mean = (0..n).map(|i| f64::from(upper.at(i, i))).sum::<f64>() / n.max(1) as f64;
        let mut order: Vec<usize> = (0..n).collect();
        if by_importance {
            let square = |i: usize| upper.at(i, i);
            order.sort_by(|&a, &b| square(b).total_cmp(&square(a)));
            reorder(&mut upper, &order);
        }
        let (mut damp, mut damped) = (DAMP, 0.0);
        while damp <= 1.0 {
            for i in 0..n {
                *upper.at_mut(i, i) += (damp - damped) * mean as f32;
            }
            for b in 0..upper.panels() {
                upper.mirror(b);
            }
            match decompose(&mut upper, threads) {
                Ok(()) => {
                    invert(&mut upper, threads);
                    return Ok(Self { upper, order, mean_squares });
                }
                Err(at) => recompose(&mut upper, at + 1, threads),
            }
            (damped, damp) = (damp, damp * 10.0);
        }
        Err(QuantError::Missing { what: "a Hessian of finite inputs", why: "making up for rounding errors" })
    }

    /// Columns of the weights it is for.
    pub fn columns(&self) -> usize {
        self.upper.size()
    }

    /// Which column of the weight stands at each place.
    pub fn order(&self) -> &[usize] {
        &self.order
    }

    /// Mean of x² of each column's input.
    pub fn mean_squares(&self) -> &[f32] {
        &self.mean_squares
    }

    /// Row `i` from the diagonal on.
    pub(crate) fn row(&self, i: usize) -> &[f32] {
        self.upper.row(i)
    }

    /// The rows of batch `b` of [`PANEL`] columns, in the columns behind the batch.
    pub(crate) fn behind(&self, b: usize) -> ArrayView2<'_, f32> {
        behind(self.upper.panel(b))
    }

    /// One row of a weight in the factor's order, dead columns zero: those whose input was always zero, so that their
    /// weights do not matter.
    pub(crate) fn arrange(&self, row: &[f32], out: &mut [f32]) -> Result<(), QuantError> {
        same("columns of a weight and its Hessian", self.columns(), row.len())?;
        for (out, &column) in out.iter_mut().zip(&self.order) {
            *out = if self.mean_squares[column] <= 0.0 { 0.0 } else { row[column] };
        }
        Ok(())
    }
}

/// Brings row and column `order[i]` to place i, for every i.
fn reorder(upper: &mut Triangle, order: &[usize]) {
    let mut stands: Vec<usize> = (0..order.len()).collect();
    let mut place = stands.clone();
    for (to, &column) in order.iter().enumerate() {
        let from = place[column];
        upper.exchange(to, from);
        stands.swap(to, from);
        (place[stands[from]], place[column]) = (from, to);
    }
}

/// Turns the upper triangle of H into R with H = R Rᵀ, panel by panel from the last on; else the panel at which H turned out
/// not to be positive definite, and those behind it hold R, those up to it what was left of H.
///
/// Panels hold their mirror images where they hold H, and zeros below the diagonal where they hold R.
fn decompose(upper: &mut Triangle, threads: usize) -> Result<(), usize> {
    for b in (0..upper.panels()).rev() {
        let Some(root) = root(&front(upper.panel(b))) else { return Err(b) };
        let inverse = inverse(&root);
        put_front(upper, b, &root);
        // R[i][b] = H[i][b] R[b][b]^-T, for the rows i of all panels before.
        let above = column(upper, b);
        let mut solved = Array2::zeros(above.raw_dim());
        general_mat_mul(1.0, &above, &single(&inverse).t(), 0.0, &mut solved);
        put_column(upper, b, &solved.view(), threads);
        outer(upper, b, &solved.view(), -1.0, threads);
    }
    Ok(())
}

/// Undoes [`decompose`] from panel `first` on.
fn recompose(upper: &mut Triangle, first: usize, threads: usize) {
    for b in first..upper.panels() {
        let solved = column(upper, b);
        outer(upper, b, &solved.view(), 1.0, threads);
        let root = front(upper.panel(b)).to_owned();
        let mut above = Array2::zeros(solved.raw_dim());
        general_mat_mul(1.0, &solved, &root.t(), 0.0, &mut above);
        put_column(upper, b, &above.view(), threads);
        let whole = root.dot(&root.t()).mapv(f64::from);
        put_front(upper, b, &whole);
    }
}

/// Turns the upper triangular R into its inverse.
fn invert(upper: &mut Triangle, threads: usize) {
    for b in (0..upper.panels()).rev() {
        let inverse = inverse(&front(upper.panel(b)).mapv(f64::from));
        // U[b][k] = -R[b][b]^-1 (sum over m of R[b][m] U[m][k]), for the columns k of all panels behind.
        let factors = behind(upper.panel(b)).to_owned();
        let mut sums = Array2::<f32>::zeros(factors.raw_dim());
        let stripes: Vec<_> = sums.axis_chunks_iter_mut(Axis(1), STRIPE).enumerate().collect();
        let done = &*upper;
        each(threads, stripes, |(s, mut stripe)| {
            let (first, end, rows) = (s * STRIPE, s * STRIPE + stripe.ncols(), stripe.nrows());
            for m in 0..end.div_ceil(PANEL) {
                let panel = done.panel(b + 1 + m);
                let (height, from) = (panel.nrows(), first.max(m * PANEL));
                let factor = part(factors.view(), 0..rows, m * PANEL..m * PANEL + height);
                let panel = part(panel, 0..height, from - m * PANEL..end - m * PANEL);
                let mut sums = part(stripe.view_mut(), 0..rows, from - first..end - first);
                general_mat_mul(1.0, &factor, &panel, 1.0, &mut sums);
            }
        });
        general_mat_mul(-1.0, &single(&inverse), &sums, 0.0, &mut behind(upper.panel_mut(b)));
        put_front(upper, b, &inverse);
    }
}

/// The rows before panel `b` of its columns, `[b * PANEL, rows]`.
fn column(upper: &Triangle, b: usize) -> Array2<f32> {
    let mut column = Array2::zeros((b * PANEL, upper.rows(b)));
    for (i, mut rows) in column.axis_chunks_iter_mut(Axis(0), PANEL).enumerate() {
        let first = (b - i) * PANEL;
        rows.assign(&part(upper.panel(i), 0..PANEL, first..first + upper.rows(b)));
    }
    column
}

fn put_column(upper: &mut Triangle, b: usize, column: &ArrayView2<'_, f32>, threads: usize) {
    each(threads, upper.panels_mut(b), |(i, panel)| {
        let first = (b - i) * PANEL;
        let rows = part(*column, i * PANEL..(i + 1) * PANEL, 0..column.ncols());
        part(panel, 0..PANEL, first..first + column.ncols()).assign(&rows);
    });
}

/// Adds `sign` times `column` times its transpose to the panels before panel `b`.
fn outer(upper: &mut Triangle, b: usize, column: &ArrayView2<'_, f32>, sign: f32, threads: usize) {
    each(threads, upper.panels_mut(b), |(i, panel)| {
        let left = part(*column, i * PANEL..(i + 1) * PANEL, 0..column.ncols());
        let right = part(*column, i * PANEL..b * PANEL, 0..column.ncols());
        let mut before = part(panel, 0..PANEL, 0..(b - i) * PANEL);
        general_mat_mul(sign, &left, &right.t(), 1.0, &mut before);
    });
}

fn put_front(upper: &mut Triangle, b: usize, square: &Array2<f64>) {
    front(upper.panel_mut(b)).assign(&single(square));
}

fn single(square: &Array2<f64>) -> Array2<f32> {
    square.mapv(|x| x as f32)
}

/// The upper triangular R with `square` = R Rᵀ; `None` where that is not positive definite.
fn root(square: &ArrayView2<'_, f32>) -> Option<Array2<f64>> {
    let n = square.nrows();
    let mut root = square.mapv(f64::from);
    for j in (0..n).rev() {
        let beyond = (j + 1..n).map(|k| root[[j, k]] * root[[j, k]]).sum::<f64>();
        let rest = root[[j, j]] - beyond;
        // A comparison with NaN is false as well.
        if !(rest > 0.0 && rest.is_finite()) {
            return None;
        }
        root[[j, j]] = rest.sqrt();
        for i in 0..j {
            let beyond = (j + 1..n).map(|k| root[[i, k]] * root[[j, k]]).sum::<f64>();
            root[[i, j]] = (root[[i, j]] - beyond) / root[[j, j]];
            root[[j, i]] = 0.0;
        }
    }
    Some(root)
}

/// The inverse of an upper triangular matrix.
fn inverse(root: &Array2<f64>) -> Array2<f64> {
    let n = root.nrows();
    let mut inverse = Array2::<f64>::zeros((n, n));
    for i in (0..n).rev() {
        inverse[[i, i]] = 1.0 / root[[i, i]];
        for k in i + 1..n {
            let sum = (i + 1..=k).map(|m| root[[i, m]] * inverse[[m, k]]).sum::<f64>();
            inverse[[i, k]] = -sum * inverse[[i, i]];
        }
    }
    inverse
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

    /// The largest difference from the identity of Uᵀ U times the Hessian, damped so much, in the factor's order.
    fn distance(factor: &Factor, hessian: &Hessian, damp: f64) -> f64 {
        let n = hessian.columns();
        let u = |i: usize, j: usize| if j < i { 0.0 } else { f64::from(factor.row(i)[j - i]) };
        let upper = Array2::from_shape_fn((n, n), |(i, j)| u(i, j));
        let scale = 2.0 / hessian.tokens() as f64;
        let diagonal = hessian.diagonal();
        let mean = diagonal.iter().map(|&h| f64::from(h)).sum::<f64>() * scale / n as f64;
        let damped = Array2::from_shape_fn((n, n), |(i, j)| {
            let (a, b) = (factor.order[i], factor.order[j]);
            scale * f64::from(hessian.at(a, b)) + if i == j { damp * mean } else { 0.0 }
        });
        let product = upper.t().dot(&upper).dot(&damped);
        (&product - &Array2::<f64>::eye(n)).iter().fold(0.0, |most: f64, x| most.max(x.abs()))
    }

    #[test]
    fn the_factor_times_itself_inverts_the_damped_hessian() {
        for (n, by_importance) in [(1, false), (5, true), (21, false), (40, true), (PANEL, true), (300, true)]
        {
            let hessian = hessian(n, 2 * n + 3);
            let factor = Factor::new(hessian.clone(), by_importance).unwrap();
            let off = distance(&factor, &hessian, f64::from(DAMP));
            assert!(off < 2e-3, "n {n}: {off}");
            let mut shared = Hessian::by(n, 3);
            shared.merge(&hessian).unwrap();
            assert_eq!(Factor::new(shared, by_importance).unwrap(), factor, "by three threads");
        }
    }

    #[test]
    fn where_the_first_damping_is_not_enough_the_next_one_is_taken() {
        // Unit inputs, and one difference that counts against: an eigenvalue of 1 - 0.52 * 2.
        let n = 300;
        for pair in [(3, 7), (3, 290), (280, 290)] {
            let mut hessian = Hessian::new(n);
            for i in 0..n {
                let mut unit = vec![0.0; n];
                unit[i] = 1.0;
                hessian.add(&unit, None).unwrap();
            }
            let mut difference = vec![0.0; n];
            (difference[pair.0], difference[pair.1]) = (1.0, -1.0);
            hessian.add(&difference, Some(&[-0.52])).unwrap();
            let factor = Factor::new(hessian.clone(), true).unwrap();
            let off = distance(&factor, &hessian, 10.0 * f64::from(DAMP));
            assert!(off < 2e-3, "{pair:?}: {off}");
        }
    }

    #[test]
    fn columns_come_by_importance_and_dead_ones_count_as_zero() {
        let mut hessian = Hessian::new(3);
        hessian.add(&[1.0, 0.0, 5.0, -1.0, 0.0, 4.0], None).unwrap();
        let factor = Factor::new(hessian.clone(), true).unwrap();
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
        assert!(matches!(Factor::new(hessian.clone(), false), Err(QuantError::Missing { .. })));
    }
}
