//! What a program costs, counted from its ops.

use crate::{Bindings, GraphError, Mask, Node, Op, Program, Sym};

/// Work of one call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Arithmetic operations of matrix products, convolutions and attention: 2 a multiply-add.
    pub operations: u64,
    /// Elements of the weights that are read whole (an embedding table counts the rows looked up).
    pub weight_elements: u64,
    /// Elements of the KV cache that are read.
    pub cache_elements: u64,
}

impl std::ops::AddAssign for Cost {
    fn add_assign(&mut self, other: Cost) {
        self.operations += other.operations;
        self.weight_elements += other.weight_elements;
        self.cache_elements += other.cache_elements;
    }
}

/// Counts the work of one call of `program` under `bindings` (with `past` set where it has a cache).
///
/// # Errors
/// [`GraphError`] where a symbol is unbound.
pub fn cost(program: &Program, bindings: &Bindings) -> Result<Cost, GraphError> {
    let mut cost = Cost::default();
    for node in program.nodes() {
        cost += node_cost(program, node, bindings)?;
    }
    Ok(cost)
}

/// The part of [`cost`] that is one node's.
///
/// # Errors
/// [`GraphError`] where a symbol is unbound.
pub fn node_cost(program: &Program, node: &Node, bindings: &Bindings) -> Result<Cost, GraphError> {
    let mut cost = Cost::default();
    let rows = |id| program.value(id).dims[0].eval(bindings);
    let elements = |id: crate::WeightId| program.weight(id).shape.elements().unwrap_or(usize::MAX) as u64;
    let out_rows = rows(node.output)? as u64;
    for weight in node.op.weights() {
        cost.weight_elements += match node.op {
            Op::Embed { .. } => out_rows * program.value(node.output).columns() as u64,
            // As if no two rows chose one expert: few rows seldom do, and many read all.
            Op::Experts(ref e) => {
                let experts = program.value(node.inputs[1]).columns() as u64;
                elements(weight) / experts.max(1) * experts.min(out_rows * e.used as u64)
            }
            _ => elements(weight),
        };
    }
    cost.operations = match &node.op {
        Op::Linear(l) => 2 * out_rows * elements(l.weight),
        Op::Experts(e) => {
            let experts = program.value(node.inputs[1]).columns() as u64;
            let each = |id| elements(id) / experts.max(1);
            2 * out_rows * e.used as u64 * (each(e.gate) + each(e.up) + each(e.down))
        }
        Op::Conv2d(c) => 2 * out_rows * elements(c.weight),
        Op::Attention(a) => {
            let queries = rows(node.inputs[0])?;
            let keys = match a.cache {
                Some(_) => bindings.get(Sym::Past)? + queries,
                None => rows(node.inputs[1])?,
            };
            let keys = match a.mask {
                Mask::Segments { most } => keys.min(most),
                Mask::Full | Mask::Causal | Mask::Prefix => keys,
            };
            if a.cache.is_some() {
                cost.cache_elements = 2 * (keys * a.kv_heads * a.head_dim) as u64;
            }
            4 * (queries * keys * a.heads * a.head_dim) as u64
        }
        _ => 0,
    };
    Ok(cost)
}
