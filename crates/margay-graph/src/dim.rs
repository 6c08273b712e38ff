//! Symbolic sizes.

use crate::GraphError;

/// A size that is known only when a program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sym {
    /// T: rows of this call of a text program (prompt tokens in prefill, 1 in decode).
    Tokens,
    /// Rows already in the KV cache before this call.
    Past,
    /// V: visual tokens handed to this call.
    Visual,
    /// Rows that are asked for: those whose logits are wanted, places of a stitched map.
    Outputs,
    /// P: patches of one picture, where the family lets it vary.
    Patches,
    /// Tokens at the start of the context that see one another, under [`crate::Mask::Prefix`]; 0 where none do.
    Prefix,
}

impl Sym {
    /// Every symbol.
    pub const ALL: [Sym; 6] = [Sym::Tokens, Sym::Past, Sym::Visual, Sym::Outputs, Sym::Patches, Sym::Prefix];

    /// The letter used in shapes: `T`, `past`, `V`, `R`, `P`, `prefix`.
    pub fn name(self) -> &'static str {
        match self {
            Sym::Tokens => "T",
            Sym::Past => "past",
            Sym::Visual => "V",
            Sym::Outputs => "R",
            Sym::Patches => "P",
            Sym::Prefix => "prefix",
        }
    }
}

/// The value of each symbol in one call; unset symbols are an error when asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bindings([Option<usize>; Sym::ALL.len()]);

impl Bindings {
    /// No symbol set.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same with `sym` set.
    #[must_use]
    pub fn with(mut self, sym: Sym, size: usize) -> Self {
        self.0[sym as usize] = Some(size);
        self
    }

    /// The value of `sym`.
    ///
    /// # Errors
    /// [`GraphError::Unbound`] where it is not set.
    pub fn get(&self, sym: Sym) -> Result<usize, GraphError> {
        self.0[sym as usize].ok_or(GraphError::Unbound { sym: sym.name() })
    }
}

/// A size: a number, or `sym * num / den + add`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Dim {
    sym: Option<Sym>,
    num: usize,
    den: usize,
    add: usize,
}

impl Dim {
    /// The number, where no symbol is involved.
    pub fn fixed(self) -> Option<usize> {
        self.sym.is_none().then_some(self.add)
    }

    /// This size plus `rows`.
    #[must_use]
    pub fn plus(self, rows: usize) -> Dim {
        Dim { add: self.add + rows, ..self }
    }

    /// This size divided by `by` (a symbol's value must then be a multiple of it).
    ///
    /// # Errors
    /// [`GraphError::Shape`] where a fixed size is no multiple, or a symbolic one has an offset.
    pub fn divided(self, by: usize) -> Result<Dim, GraphError> {
        match self.sym {
            None if by > 0 && self.add.is_multiple_of(by) => Ok(Dim::from(self.add / by)),
            Some(_) if by > 0 && self.add == 0 => Ok(Dim { den: self.den * by, ..self }),
            _ => Err(GraphError::shape(format!("{self} cannot be divided by {by}"))),
        }
    }

    /// The size under `bindings`.
    ///
    /// # Errors
    /// [`GraphError`] where a symbol is unbound, does not divide or overflows.
    pub fn eval(self, bindings: &Bindings) -> Result<usize, GraphError> {
        let Some(sym) = self.sym else { return Ok(self.add) };
        let size = bindings.get(sym)?;
        let scaled = size.checked_mul(self.num).filter(|s| s.is_multiple_of(self.den));
        scaled
            .and_then(|s| (s / self.den).checked_add(self.add))
            .ok_or_else(|| GraphError::shape(format!("{self} with {} = {size} is no size", sym.name())))
    }
}

impl From<usize> for Dim {
    fn from(size: usize) -> Self {
        Dim { sym: None, num: 1, den: 1, add: size }
    }
}

impl From<Sym> for Dim {
    fn from(sym: Sym) -> Self {
        Dim { sym: Some(sym), num: 1, den: 1, add: 0 }
    }
}

impl std::fmt::Display for Dim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Some(sym) = self.sym else { return write!(f, "{}", self.add) };
        f.write_str(sym.name())?;
        if self.num != 1 {
            write!(f, "*{}", self.num)?;
        }
        if self.den != 1 {
            write!(f, "/{}", self.den)?;
        }
        if self.add != 0 {
            write!(f, "+{}", self.add)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_follow_their_symbol() {
        let d = Dim::from(Sym::Patches).divided(4).unwrap().plus(1);
        assert_eq!(d.to_string(), "P/4+1");
        assert_eq!(d.eval(&Bindings::new().with(Sym::Patches, 16)).unwrap(), 5);
        assert!(d.eval(&Bindings::new().with(Sym::Patches, 15)).is_err());
        assert!(d.eval(&Bindings::new()).is_err());
        assert!(Dim::from(7).divided(2).is_err());
    }
}
