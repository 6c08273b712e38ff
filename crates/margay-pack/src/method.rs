//! A method as users name it: a scaling, a rounding, or both.

use crate::PackError;
use margay_quant::{
    Needs, ROUNDINGS, Rounding, SCALINGS, Scaling,
    methods::{rounding, scaling},
};
use std::str::FromStr;

/// How values are found for the blocks: `rtn`, `gptq`, `awq` (a scaling, with the rounding its authors use), `awq+gptq`.
#[derive(Clone, Copy)]
pub struct Method {
    /// Moves magnitude between weights first.
    pub scaling: Option<&'static dyn Scaling>,
    /// Turns them into blocks.
    pub rounding: &'static dyn Rounding,
}

impl Method {
    /// Every block by itself.
    pub fn rtn() -> Self {
        Method { scaling: None, rounding: &margay_quant::methods::rtn::Rtn }
    }

    /// As users write it.
    pub fn id(&self) -> String {
        match self.scaling {
            Some(scaling) => format!("{}+{}", scaling.id(), self.rounding.id()),
            None => self.rounding.id().to_owned(),
        }
    }

    /// What it does, in one line.
    pub fn about(&self) -> String {
        match self.scaling {
            Some(scaling) => format!("{}; {}", scaling.about(), self.rounding.about()),
            None => self.rounding.about().to_owned(),
        }
    }

    /// What it has to know of the inputs.
    pub fn needs(&self) -> Needs {
        let (a, b) = (self.rounding.needs(), self.scaling.map_or_else(Needs::default, |s| s.needs()));
        Needs {
            activations: a.activations || b.activations,
            sample: a.sample || b.sample,
            hessian: a.hessian || b.hessian,
            gradients: a.gradients || b.gradients,
        }
    }

    /// Names and lines of all that there are, scalings first.
    pub fn all() -> impl Iterator<Item = (&'static str, &'static str)> {
        let scalings = SCALINGS.iter().map(|s| (s.id(), s.about()));
        scalings.chain(ROUNDINGS.iter().map(|r| (r.id(), r.about())))
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
            Some((first, second)) => Ok(Method {
                scaling: Some(scaling(first).ok_or_else(unknown)?),
                rounding: rounding(second).ok_or_else(unknown)?,
            }),
            None => match scaling(text) {
                Some(scaling) => Ok(Method {
                    scaling: Some(scaling),
                    rounding: rounding(scaling.rounding()).ok_or_else(unknown)?,
                }),
                None => Ok(Method { scaling: None, rounding: rounding(text).ok_or_else(unknown)? }),
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
        for wrong in ["", "nothing", "rtn+rtn", "rtn+"] {
            let error = wrong.parse::<Method>().unwrap_err().to_string();
            assert!(error.contains("rtn"), "{error}");
        }
    }
}
