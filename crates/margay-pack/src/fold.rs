//! Scales that move from one weight to another and leave the model's numbers as they are.
//!
//! Dividing the columns of a value by positive numbers and multiplying the same columns of the weights that read it
//! changes nothing, where what makes the value can be divided: a norm, or the rows of the linear layer before it. Which
//! values these are follows from the program, whatever the family.
//! Source: SmoothQuant and AWQ, which find them by the names of modules.

use margay_graph::{Activation, Node, NormKind, Op, Program, ValueId, WeightId};
use std::collections::BTreeMap;

/// Linear layers that read one value, whose columns can be divided where they are made.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// Columns of the value.
    pub columns: usize,
    /// Names of the weights that read it: their columns are multiplied.
    pub readers: Vec<String>,
    /// Names of the weights that make it: numbers of a norm, rows of a layer, and biases, which are divided.
    pub makers: Vec<String>,
}

/// Every group of a program that is not fused.
pub fn groups(program: &Program) -> Vec<Group> {
    let uses = program.use_counts();
    let mut makers: Vec<Option<usize>> = vec![None; program.values().len()];
    let mut readers: Vec<Vec<&Node>> = vec![vec![]; program.values().len()];
    let mut weight_uses = vec![0usize; program.weights().len()];
    for (at, node) in program.nodes().iter().enumerate() {
        makers[node.output.index()] = Some(at);
        node.inputs.iter().for_each(|id| readers[id.index()].push(node));
        node.op.weights().iter().for_each(|id| weight_uses[id.index()] += 1);
    }
    let graph = Graph { program, makers, uses: &uses, weight_uses: &weight_uses };
    let mut groups = vec![];
    for (at, nodes) in readers.iter().enumerate() {
        let all_linear = nodes.iter().map(|node| graph.reader(node)).collect::<Option<Vec<_>>>();
        // What else reads the value, a tap or an op, would see it divided.
        let Some(linears) = all_linear.filter(|l| !l.is_empty() && l.len() == uses[at]) else { continue };
        let Some(maker) = graph.makers[at] else { continue };
        let columns = program.values()[at].columns();
        if let Some(makers) = graph.made_by(&program.nodes()[maker], columns) {
            let name = |id: &WeightId| program.weight(*id).name.clone();
            groups.push(Group {
                columns,
                readers: linears.iter().map(name).collect(),
                makers: makers.iter().map(name).collect(),
            });
        }
    }
    groups
}

struct Graph<'a> {
    program: &'a Program,
    makers: Vec<Option<usize>>,
    uses: &'a [usize],
    weight_uses: &'a [usize],
}

impl Graph<'_> {
    /// The weight of a node that does nothing but multiply the value with it.
    fn reader(&self, node: &Node) -> Option<WeightId> {
        match &node.op {
            Op::Linear(linear) if !linear.residual && self.own(linear.weight) => Some(linear.weight),
            _ => None,
        }
    }

    /// The weights whose numbers, or rows, are the columns of what the node makes, one for one.
    fn made_by(&self, node: &Node, columns: usize) -> Option<Vec<WeightId>> {
        match &node.op {
            Op::Norm(norm) => {
                let known = matches!(norm.kind, NormKind::Rms | NormKind::Layer);
                let whole = self.program.weight(norm.weight).shape.elements() == Some(columns);
                self.all_own(std::iter::once(norm.weight).chain(norm.bias).collect())
                    .filter(|_| known && whole)
            }
            Op::Linear(linear) if linear.activation.is_none() && !linear.residual => {
                self.all_own(std::iter::once(linear.weight).chain(linear.bias).collect())
            }
            Op::Mul if self.same_size(node) => {
                [1, 0].iter().find_map(|at| self.behind(node.inputs[*at], columns))
            }
            Op::Glu(_) => self.behind(node.inputs[1], columns),
            Op::Scale(_) | Op::Activation(Activation::Relu) => self.behind(node.inputs[0], columns),
            // A head of values makes as many heads of the result as share it.
            Op::Attention(attention) if attention.heads == attention.kv_heads => {
                self.behind(node.inputs[2], columns)
            }
            _ => None,
        }
    }

    /// The same of the node that makes an input which nothing else reads.
    fn behind(&self, value: ValueId, columns: usize) -> Option<Vec<WeightId>> {
        let alone = self.uses[value.index()] == 1 && self.program.value(value).columns() == columns;
        let maker = self.makers[value.index()].filter(|_| alone)?;
        let node = &self.program.nodes()[maker];
        // A norm between two layers is a group of its own.
        if matches!(node.op, Op::Norm(_)) { None } else { self.made_by(node, columns) }
    }

    fn same_size(&self, node: &Node) -> bool {
        let dims = |at: usize| &self.program.value(node.inputs[at]).dims;
        dims(0) == dims(1) && node.inputs[0] != node.inputs[1]
    }

    fn own(&self, weight: WeightId) -> bool {
        self.weight_uses[weight.index()] == 1
    }

    fn all_own(&self, weights: Vec<WeightId>) -> Option<Vec<WeightId>> {
        weights.iter().all(|id| self.own(*id)).then_some(weights)
    }
}

/// What becomes of one weight.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Fold {
    /// Each column is multiplied by its number.
    columns: Option<Vec<f32>>,
    /// Each row, or number of a vector, is divided by its number.
    rows: Option<Vec<f32>>,
}

impl Fold {
    /// Changes `values`, whole rows of `width` numbers from row `first` on. A vector is a column.
    pub fn apply(&self, values: &mut [f32], width: usize, first: usize) {
        for (at, row) in values.chunks_exact_mut(width.max(1)).enumerate() {
            if let Some(columns) = &self.columns {
                row.iter_mut().zip(columns).for_each(|(value, scale)| *value *= scale);
            }
            if let Some(rows) = &self.rows {
                row.iter_mut().for_each(|value| *value /= rows[first + at]);
            }
        }
    }
}

/// What becomes of each weight that is changed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Folds(BTreeMap<String, Fold>);

impl Folds {
    /// Divides the columns of the group's value by `scales`, all of them positive.
    ///
    /// # Panics
    /// Where there are not as many as the value has columns.
    pub fn add(&mut self, group: &Group, scales: &[f32]) {
        assert_eq!(scales.len(), group.columns, "a scale for each column");
        for name in &group.readers {
            self.0.entry(name.clone()).or_default().columns = Some(scales.to_vec());
        }
        for name in &group.makers {
            self.0.entry(name.clone()).or_default().rows = Some(scales.to_vec());
        }
    }

    /// What becomes of that weight.
    pub fn get(&self, name: &str) -> Option<&Fold> {
        self.0.get(name)
    }

    /// What the columns of that weight's input are divided by.
    pub fn input_scales(&self, name: &str) -> Option<&[f32]> {
        self.0.get(name)?.columns.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use margay::{Model, ModelSource};
    use std::path::Path;

    fn found(program: &Program) -> Vec<String> {
        groups(program).iter().map(|g| format!("{} > {}", g.makers.join(" "), g.readers.join(" "))).collect()
    }

    #[test]
    fn groups_of_a_decoder_are_those_that_its_authors_name() {
        let program = Model::nano_source().unwrap().config.programs().unwrap().text;
        let found = found(&program);
        for wanted in [
            "blk.0.attn_norm.weight > blk.0.attn_q.weight blk.0.attn_k.weight blk.0.attn_v.weight",
            "blk.0.ffn_norm.weight > blk.0.ffn_gate.weight blk.0.ffn_up.weight",
            "blk.0.ffn_up.weight > blk.0.ffn_down.weight",
        ] {
            assert!(found.iter().any(|group| group == wanted), "{wanted} in {found:#?}");
        }
    }

    #[test]
    fn queries_that_share_keys_are_left_alone_and_a_tower_has_no_way_through_gelu() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
        let source = ModelSource::open(&golden.join("llava"), None).unwrap();
        let programs = source.config.programs().unwrap();
        let text = found(&programs.text);
        let shares = source.config.text.heads != source.config.text.kv_heads;
        assert_eq!(text.iter().any(|group| group.starts_with("blk.0.attn_v.weight >")), !shares, "{text:#?}");
        let encode = found(programs.encode.as_ref().unwrap());
        assert!(
            encode.contains(&"v.blk.0.attn_v.weight v.blk.0.attn_v.bias > v.blk.0.attn_out.weight".into())
        );
        assert!(!encode.iter().any(|group| group.contains("ffn_down")), "{encode:#?}");
    }

    #[test]
    fn rows_and_columns_are_scaled_from_any_row_on() {
        let fold = Fold { columns: Some(vec![2.0, 4.0]), rows: Some(vec![1.0, 2.0, 4.0]) };
        let mut values = [1.0, 1.0, 1.0, 1.0];
        fold.apply(&mut values, 2, 1);
        assert_eq!(values, [1.0, 2.0, 0.5, 1.0]);
    }
}
