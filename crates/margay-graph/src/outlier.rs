//! Linear layers some of whose input columns have a matrix of their own.
//!
//! `W x` becomes `W x_rest + W_kept x_kept`: the columns named are taken out of the input of the matrix itself, and a second,
//! narrow matrix multiplies them. So the few columns that are far larger than the others neither share a scale with them
//! in the matrix nor, where a backend rounds rows, in the input.
//! Source: LLM.int8() (arXiv 2208.07339), section 3.2.

use crate::{
    GraphError, Linear, Node, Op, Program, Role, Value, ValueId, WeightId, WeightSpec, builder::ascending,
};
use margay_tensor::Shape;
use std::collections::BTreeMap;

/// Name of the matrix of the kept columns beside the matrix `name`: `blk.3.ffn_down.weight` has
/// `blk.3.ffn_down.outlier.weight`.
pub fn outlier_name(name: &str) -> String {
    format!("{}.outlier.weight", name.strip_suffix(".weight").unwrap_or(name))
}

impl Program {
    /// The program where each linear layer whose weight `columns` names reads those columns (ascending) through a second
    /// weight, [`outlier_name`] `[out, kept]`. The program must not be fused yet.
    ///
    /// # Errors
    /// [`GraphError::Shape`] for columns that are none of the weight's, or not ascending; [`GraphError::Program`] for a weight
    /// that something else than one linear layer reads.
    pub fn with_outliers(&self, columns: &BTreeMap<String, Vec<usize>>) -> Result<Program, GraphError> {
        let kept: Vec<Option<&Vec<usize>>> =
            self.weights.iter().map(|spec| columns.get(&spec.name)).collect();
        if kept.iter().all(Option::is_none) {
            return Ok(self.clone());
        }
        self.check_outliers(&kept)?;
        let mut made = Rewriting { program: Program { nodes: vec![], ..self.clone() }, parted: vec![] };
        let mut at = 0;
        while let Some(node) = self.nodes.get(at) {
            let run = self.run_of_layers(at, &kept);
            if run == 0 {
                made.program.nodes.push(node.clone());
            } else {
                made.layers(&self.nodes[at..at + run], &kept);
            }
            at += run.max(1);
        }
        Ok(made.program)
    }

    fn check_outliers(&self, kept: &[Option<&Vec<usize>>]) -> Result<(), GraphError> {
        let mut readers = vec![vec![]; self.weights.len()];
        for node in &self.nodes {
            node.op.weights().iter().for_each(|id| readers[id.index()].push(node));
        }
        for (at, spec) in self.weights.iter().enumerate() {
            let Some(columns) = kept[at] else { continue };
            ascending(&format!("outlier columns of {}", spec.name), columns, spec.shape.row())?;
            let plain = |node: &Node| match &node.op {
                Op::Linear(l) => l.weight.index() == at && l.activation.is_none() && !l.residual,
                _ => false,
            };
            if !matches!(&readers[at][..], [node] if plain(node)) {
                let what = format!(
                    "{} is not read by one linear layer alone, so that none of its columns can be kept apart",
                    spec.name
                );
                return Err(GraphError::Program { what });
            }
        }
        Ok(())
    }

    /// From node `at` on, how many linear layers with kept columns follow each other, none of which reads another: queries,
    /// keys and values stay side by side.
    fn run_of_layers(&self, at: usize, kept: &[Option<&Vec<usize>>]) -> usize {
        let mut outputs = vec![];
        for node in &self.nodes[at..] {
            let layer = matches!(&node.op, Op::Linear(l) if kept[l.weight.index()].is_some());
            if !layer || node.inputs.iter().any(|input| outputs.contains(input)) {
                break;
            }
            outputs.push(node.output);
        }
        outputs.len()
    }
}

/// A program that grows node by node.
struct Rewriting {
    program: Program,
    /// Values whose columns were parted already: the value, its columns, what is left of it, and the columns.
    parted: Vec<(ValueId, Vec<usize>, ValueId, ValueId)>,
}

impl Rewriting {
    /// Layers that do not read one another.
    fn layers(&mut self, nodes: &[Node], kept: &[Option<&Vec<usize>>]) {
        let mut layers = vec![];
        for node in nodes {
            if let Op::Linear(linear) = &node.op
                && let Some(columns) = kept[linear.weight.index()]
            {
                layers.push((node, linear, self.parts(node.inputs[0], columns)));
            }
        }
        // The matrices themselves first and side by side, so that backends can still run them as one.
        let mut sums = vec![];
        for (node, linear, (rest, _)) in &layers {
            let value = self.program.value(node.output).clone();
            sums.push(self.push(Op::Linear((*linear).clone()), vec![*rest], value));
        }
        for ((node, linear, (_, columns)), sum) in layers.iter().zip(sums) {
            let spec = self.program.weight(linear.weight);
            let (name, out) = (outlier_name(&spec.name), spec.shape.rows().unwrap_or(0));
            let width = self.program.value(*columns).columns();
            let shape = Shape::from([out, width]);
            self.program.weights.push(WeightSpec { name, shape, role: Role::OutlierColumns });
            let weight = WeightId(self.program.weights.len() - 1);
            let op = Op::Linear(Linear { weight, bias: None, activation: None, residual: true });
            self.program.nodes.push(Node { op, inputs: vec![*columns, sum], output: node.output });
        }
    }

    /// `x` without `columns`, and those columns.
    fn parts(&mut self, x: ValueId, columns: &[usize]) -> (ValueId, ValueId) {
        let known = self.parted.iter().find(|(value, some, ..)| *value == x && some == columns);
        if let Some((_, _, rest, some)) = known {
            return (*rest, *some);
        }
        let value = self.program.value(x).clone();
        let mut narrow = value.clone();
        if let Some(last) = narrow.dims.last_mut() {
            *last = columns.len().into();
        }
        let rest = self.push(Op::ZeroColumns { columns: columns.to_vec() }, vec![x], value);
        let some = self.push(Op::SelectColumns { columns: columns.to_vec() }, vec![x], narrow);
        self.parted.push((x, columns.to_vec(), rest, some));
        (rest, some)
    }

    fn push(&mut self, op: Op, inputs: Vec<ValueId>, value: Value) -> ValueId {
        let output = ValueId(self.program.values.len());
        self.program.values.push(value);
        self.program.nodes.push(Node { op, inputs, output });
        output
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Activation, Builder, Stage, Sym, passes::optimize};

    fn program() -> Program {
        let mut b = Builder::new(Stage::Text);
        let x = b.input_f32("x", [Sym::Tokens.into(), 8.into()]);
        let [gate, up] = ["gate.weight", "up.weight"].map(|n| b.weight(n, [16, 8], Role::FfnUp));
        let down = b.weight("down.weight", [8, 16], Role::FfnDown);
        let bias = b.weight("up.bias", [16], Role::Bias);
        let g = b.linear(x, gate, None).unwrap();
        let u = b.linear(x, up, Some(bias)).unwrap();
        let g = b.activation(g, Activation::Silu).unwrap();
        let h = b.mul(g, u).unwrap();
        let h = b.linear(h, down, None).unwrap();
        let y = b.add(x, h).unwrap();
        b.output("y", y);
        b.finish().unwrap()
    }

    fn columns(of: &[(&str, &[usize])]) -> BTreeMap<String, Vec<usize>> {
        of.iter().map(|(name, columns)| ((*name).to_owned(), columns.to_vec())).collect()
    }

    #[test]
    fn layers_of_one_value_part_it_once_and_stay_side_by_side() {
        let columns = columns(&[("gate.weight", &[1, 5]), ("up.weight", &[1, 5])]);
        let program = program().with_outliers(&columns).unwrap();
        let ops: Vec<_> = program.nodes().iter().map(|n| n.op.name()).collect();
        let expected = [
            "input",
            "zero_columns",
            "select_columns",
            "linear",
            "linear",
            "linear",
            "linear",
            "activation",
            "mul",
            "linear",
            "add",
        ];
        assert_eq!(ops, expected, "{program}");
        let names: Vec<_> = program.weights().iter().map(|w| w.name.as_str()).collect();
        assert!(names.contains(&"gate.outlier.weight") && names.contains(&"up.outlier.weight"), "{names:?}");
        let kept = program.weights().iter().find(|w| w.name == "up.outlier.weight").unwrap();
        assert_eq!((kept.shape.dims(), kept.role), (&[16, 2][..], Role::OutlierColumns));
        // The gate no longer ends in its layer, so that it is not fused with it, but what follows is.
        let fused: Vec<_> = optimize(&program).nodes().iter().map(|n| n.op.name()).collect();
        assert_eq!(fused[7..], ["glu", "linear"]);
        // The bias stays with the matrix, and each sum is what the layer gave.
        assert_eq!(program.output("y"), self::program().output("y"));
        let bias = |n: &&Node| matches!(&n.op, Op::Linear(l) if l.bias.is_some());
        assert_eq!(program.nodes().iter().position(|n| bias(&n)), Some(4));
    }

    #[test]
    fn columns_that_differ_are_parted_apart_and_none_change_nothing() {
        let plain = program();
        assert_eq!(plain.with_outliers(&BTreeMap::new()).unwrap(), plain);
        assert_eq!(plain.with_outliers(&columns(&[("other", &[1])])).unwrap(), plain);
        let both = columns(&[("gate.weight", &[1]), ("up.weight", &[2]), ("down.weight", &[15])]);
        let program = plain.with_outliers(&both).unwrap();
        let parts = program.nodes().iter().filter(|n| matches!(n.op, Op::ZeroColumns { .. })).count();
        assert_eq!(parts, 3, "{program}");
    }

    #[test]
    fn columns_that_are_none_and_weights_that_others_read_are_refused() {
        for (wrong, expected) in [
            (&[8][..], "outlier columns of gate.weight: column 8 of 8, counted from 0"),
            (&[], "outlier columns of gate.weight: no columns"),
            (&[1, 1], "outlier columns of gate.weight: column 1 follows 1; columns ascend, each comes once"),
        ] {
            let error = program().with_outliers(&columns(&[("gate.weight", wrong)])).unwrap_err();
            assert_eq!(error.to_string(), expected);
        }
        let error = program().with_outliers(&columns(&[("up.bias", &[0])])).unwrap_err().to_string();
        assert!(error.starts_with("up.bias is not read by one linear layer alone"), "{error}");
    }
}
