//! A method as users name it: a scaling, a rounding, or both; or outlier columns kept apart, and a rounding for the rest.

use crate::PackError;
use margay_quant::{
    Needs, ROUNDINGS, Rounding, SCALINGS, Scaling,
    methods::{rounding, rtn::Rtn, scaling},
};
use std::str::FromStr;

/// The name of keeping outlier columns apart, and what it does.
const OUTLIER: (&str, &str) = (
    "outlier",
    "columns whose inputs are 3 sigma above the others stay f16 beside the rest; only Margay reads the file",
);

/// How values are found for the blocks: `rtn`, `gptq`, `awq` (a scaling, with the rounding its authors use), `awq+gptq`,
/// `outlier` (the rest rounded to nearest), `outlier+gptq`.
#[derive(Clone, Copy)]
pub struct Method {
    /// Keeps the columns of a matrix whose inputs are far larger than the others in half precision beside it. What is
    /// written then is no file for other runtimes.
    pub outliers: bool,
    /// Moves magnitude between weights first.
    pub scaling: Option<&'static dyn Scaling>,
    /// Turns them into blocks.
    pub rounding: &'static dyn Rounding,
}

impl Method {
    /// Every block by itself.
    pub fn rtn() -> Self {
        Method { outliers: false, scaling: None, rounding: &Rtn }
    }

    /// As users write it.
    pub fn id(&self) -> String {
        match (self.outliers, self.scaling) {
            (true, _) if self.rounding.id() == Rtn.id() => OUTLIER.0.to_owned(),
            (true, _) => format!("{}+{}", OUTLIER.0, self.rounding.id()),
            (false, Some(scaling)) => format!("{}+{}", scaling.id(), self.rounding.id()),
            (false, None) => self.rounding.id().to_owned(),
        }
    }

    /// What it does, in one line.
    pub fn about(&self) -> String {
        let first = if self.outliers { Some(OUTLIER.1) } else { self.scaling.map(|scaling| scaling.about()) };
        match first {
            Some(first) => format!("{first}; {}", self.rounding.about()),
            None => self.rounding.about().to_owned(),
        }
    }

    /// What it has to know of the inputs.
    pub fn needs(&self) -> Needs {
        let (a, b) = (self.rounding.needs(), self.scaling.map_or_else(Needs::default, |s| s.needs()));
        Needs {
            activations: a.activations || b.activations || self.outliers,
            sample: a.sample || b.sample,
            hessian: a.hessian || b.hessian,
            gradients: a.gradients || b.gradients,
        }
    }

    /// Names and lines of all that there are, those that can stand before a rounding first.
    pub fn all() -> impl Iterator<Item = (&'static str, &'static str)> {
        let scalings = SCALINGS.iter().map(|s| (s.id(), s.about()));
        std::iter::once(OUTLIER).chain(scalings).chain(ROUNDINGS.iter().map(|r| (r.id(), r.about())))
    }
}

impl std::fmt::Debug for Method {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.id())
    }
}

impl FromStr for Method {
    type Err = PackError;

    fn from_str(text: &str) -> Result<Self, PackError> {
        let unknown = || PackError::Method {
            name: text.to_owned(),
            known: Method::all().map(|(id, _)| id).collect::<Vec<_>>().join(", "),
        };
        match text.split_once('+') {
            Some((first, second)) if first == OUTLIER.0 => {
                Ok(Method { outliers: true, scaling: None, rounding: rounding(second).ok_or_else(unknown)? })
            }
            None if text == OUTLIER.0 => Ok(Method { outliers: true, ..Method::rtn() }),
            Some((first, second)) => Ok(Method {
                outliers: false,
                scaling: Some(scaling(first).ok_or_else(unknown)?),
                rounding: rounding(second).ok_or_else(unknown)?,
            }),
            None => match scaling(text) {
                Some(scaling) => Ok(Method {
                    outliers: false,
                    scaling: Some(scaling),
                    rounding: rounding(scaling.rounding()).ok_or_else(unknown)?,
                }),
                None => Ok(Method {
                    outliers: false,
                    scaling: None,
                    rounding: rounding(text).ok_or_else(unknown)?,
                }),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_a_method_and_others_list_them() {
        for (id, _) in Method::all() {
            let method: Method = id.parse().unwrap();
            assert!(method.id() == id || method.id().starts_with(&format!("{id}+")));
        }
        for (name, id) in
            [("outlier", "outlier"), ("outlier+rtn", "outlier"), ("outlier+gptq", "outlier+gptq")]
        {
            let method: Method = name.parse().unwrap();
            assert!(method.outliers && method.id() == id);
        }
        for wrong in ["", "nothing", "rtn+rtn", "rtn+", "outlier+", "outlier+awq", "awq+outlier"] {
            let error = wrong.parse::<Method>().unwrap_err().to_string();
            assert!(error.contains("rtn"), "{error}");
        }
    }
}
