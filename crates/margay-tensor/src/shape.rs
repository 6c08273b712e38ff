//! Sizes of a tensor, outermost dimension first.

/// Sizes of a tensor, outermost first (a `[out, in]` weight as PyTorch writes it). GGUF lists them the other way
/// round; `margay-file` turns them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Shape(Vec<usize>);

impl Shape {
    /// The sizes, outermost first.
    pub fn dims(&self) -> &[usize] {
        &self.0
    }

    /// Number of dimensions; 0 for a scalar.
    pub fn rank(&self) -> usize {
        self.0.len()
    }

    /// Product of all sizes (1 for a scalar), or `None` where it overflows.
    pub fn elements(&self) -> Option<usize> {
        self.0.iter().try_fold(1usize, |n, &d| n.checked_mul(d))
    }

    /// Size of the innermost (contiguous) dimension; 1 for a scalar.
    pub fn row(&self) -> usize {
        self.0.last().copied().unwrap_or(1)
    }

    /// Number of rows: the product of all but the innermost size, or `None` where it overflows.
    pub fn rows(&self) -> Option<usize> {
        let outer = self.0.split_last().map_or(&[][..], |(_, outer)| outer);
        outer.iter().try_fold(1usize, |n, &d| n.checked_mul(d))
    }
}

impl From<Vec<usize>> for Shape {
    fn from(dims: Vec<usize>) -> Self {
        Shape(dims)
    }
}

impl From<&[usize]> for Shape {
    fn from(dims: &[usize]) -> Self {
        Shape(dims.to_vec())
    }
}

impl<const N: usize> From<[usize; N]> for Shape {
    fn from(dims: [usize; N]) -> Self {
        Shape(dims.to_vec())
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_are_checked() {
        assert_eq!(Shape::from([usize::MAX, 2]).elements(), None);
        assert_eq!(Shape::from([]).elements(), Some(1));
        assert_eq!(Shape::from([4, 3, 2]).rows(), Some(12));
        assert_eq!(Shape::from([4, 0]).elements(), Some(0));
    }
}
