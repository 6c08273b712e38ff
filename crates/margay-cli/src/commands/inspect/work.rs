//! How much a model computes, counted from its programs.

use margay::rooms::{
    graph::{Bindings, Program, Sym, cost},
    model::ModelPrograms,
};
use serde::Serialize;

/// Arithmetic operations, 2 a multiply-add, of matrix products, convolutions and attention.
#[derive(Debug, Serialize)]
pub(super) struct Work {
    encode_operations: Option<u64>,
    project_operations: Option<u64>,
    /// Of the first token of a prompt, the output head counted.
    token_operations: u64,
}

impl Work {
    /// Of a tower whose grid varies, for a picture of such sizes.
    pub(super) fn count(programs: &ModelPrograms, picture: &Bindings) -> anyhow::Result<Self> {
        let of = |program: &Option<Program>| {
            program.as_ref().map(|p| cost(p, picture)).transpose().map(|c| c.map(|c| c.operations))
        };
        let visual = usize::from(programs.encode.is_some());
        let one = Bindings::new()
            .with(Sym::Tokens, 1)
            .with(Sym::Past, 0)
            .with(Sym::Outputs, 1)
            .with(Sym::Visual, visual);
        Ok(Work {
            encode_operations: of(&programs.encode)?,
            project_operations: of(&programs.project)?,
            token_operations: cost(&programs.text, &one)?.operations,
        })
    }

    /// For people.
    pub(super) fn describe(&self) -> String {
        let mut text = "work, operations (2 a multiply-add)\n".to_owned();
        let rows = [
            ("encode", self.encode_operations, "a picture"),
            ("project", self.project_operations, "a picture"),
            ("text", Some(self.token_operations), "a token, at an empty context"),
        ];
        for (stage, operations, each) in rows {
            if let Some(operations) = operations {
                text += &format!("  {stage:<17}{:>8.3} G  {each}\n", operations as f64 / 1e9);
            }
        }
        text
    }
}
