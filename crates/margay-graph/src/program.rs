//! A program: ops over values and named weights.

use crate::{Dim, GraphError, Op};
use margay_tensor::Shape;

/// A value of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(pub(crate) usize);

impl ValueId {
    /// Index into [`Program::values`].
    pub fn index(self) -> usize {
        self.0
    }
}

/// A weight of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WeightId(pub(crate) usize);

impl WeightId {
    /// Index into [`Program::weights`].
    pub fn index(self) -> usize {
        self.0
    }
}

/// Which part of the answer flow a program is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Pixels to patch features.
    Encode,
    /// Patch features to visual tokens.
    Project,
    /// Tokens to logits (prefill and decode).
    Text,
}

impl Stage {
    /// Every stage, in the order of the flow.
    pub const ALL: [Stage; 3] = [Stage::Encode, Stage::Project, Stage::Text];

    /// Lower-case name: `encode`, `project`, `text`.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Encode => "encode",
            Stage::Project => "project",
            Stage::Text => "text",
        }
    }
}

/// What a weight is for. Recipes and reports speak of roles, never of names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the field's own words")]
pub enum Role {
    TokenEmbedding,
    Output,
    AttentionQ,
    AttentionK,
    AttentionV,
    AttentionOut,
    FfnGate,
    FfnUp,
    FfnDown,
    Router,
    Norm,
    Bias,
    PatchEmbedding,
    PositionEmbedding,
    ClassEmbedding,
    Projector,
    Convolution,
    RopeFactors,
    /// Columns of a matrix that stay in half precision beside it.
    OutlierColumns,
}

impl Role {
    /// Every role.
    pub const ALL: [Role; 19] = [
        Role::TokenEmbedding,
        Role::Output,
        Role::AttentionQ,
        Role::AttentionK,
        Role::AttentionV,
        Role::AttentionOut,
        Role::FfnGate,
        Role::FfnUp,
        Role::FfnDown,
        Role::Router,
        Role::Norm,
        Role::Bias,
        Role::PatchEmbedding,
        Role::PositionEmbedding,
        Role::ClassEmbedding,
        Role::Projector,
        Role::Convolution,
        Role::RopeFactors,
        Role::OutlierColumns,
    ];

    /// Lower-case name, as recipes and reports write it: `attention_q`, `ffn_down`, ...
    pub fn name(self) -> &'static str {
        match self {
            Role::TokenEmbedding => "token_embedding",
            Role::Output => "output",
            Role::AttentionQ => "attention_q",
            Role::AttentionK => "attention_k",
            Role::AttentionV => "attention_v",
            Role::AttentionOut => "attention_out",
            Role::FfnGate => "ffn_gate",
            Role::FfnUp => "ffn_up",
            Role::FfnDown => "ffn_down",
            Role::Router => "router",
            Role::Norm => "norm",
            Role::Bias => "bias",
            Role::PatchEmbedding => "patch_embedding",
            Role::PositionEmbedding => "position_embedding",
            Role::ClassEmbedding => "class_embedding",
            Role::Projector => "projector",
            Role::Convolution => "convolution",
            Role::RopeFactors => "rope_factors",
            Role::OutlierColumns => "outlier_columns",
        }
    }

    /// True for matrices that a linear layer multiplies with, the ones worth quantizing.
    pub fn is_matrix(self) -> bool {
        use Role::*;
        matches!(
            self,
            TokenEmbedding
                | Output
                | AttentionQ
                | AttentionK
                | AttentionV
                | AttentionOut
                | FfnGate
                | FfnUp
                | FfnDown
                | Projector
        )
    }
}

/// Name, shape and purpose of a weight. Its storage format is the weight's own affair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightSpec {
    /// Name in the model file.
    pub name: String,
    /// Outermost size first.
    pub shape: Shape,
    /// What it is for.
    pub role: Role,
}

/// What a value's elements are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Element {
    /// Float32 in meaning; a backend may hold it in less.
    F32,
    /// Token ids, positions, row numbers.
    I32,
}

/// Shape and element type of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// Sizes, outermost first.
    pub dims: Vec<Dim>,
    /// Element type.
    pub element: Element,
}

impl Value {
    /// Size of the innermost dimension, which is always a number.
    pub fn columns(&self) -> usize {
        self.dims.last().and_then(|d| d.fixed()).unwrap_or(1)
    }
}

/// One op with its inputs and its one result.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// What is done.
    pub op: Op,
    /// Values read, in the op's order.
    pub inputs: Vec<ValueId>,
    /// Value written.
    pub output: ValueId,
}

/// One slot of the KV cache that a program keeps between calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheSpec {
    /// K
    pub kv_heads: usize,
    /// D
    pub head_dim: usize,
}

/// A list of ops in an order in which they can run, over values written once.
#[derive(Clone, Debug, PartialEq)]
pub struct Program {
    pub(crate) stage: Stage,
    pub(crate) nodes: Vec<Node>,
    pub(crate) values: Vec<Value>,
    pub(crate) weights: Vec<WeightSpec>,
    pub(crate) inputs: Vec<(String, ValueId)>,
    pub(crate) outputs: Vec<(String, ValueId)>,
    pub(crate) caches: Vec<CacheSpec>,
}

impl Program {
    /// Which part of the answer flow this is.
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// The ops in running order.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// All values, by [`ValueId::index`].
    pub fn values(&self) -> &[Value] {
        &self.values
    }

    /// One value.
    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.0]
    }

    /// All weights, by [`WeightId::index`].
    pub fn weights(&self) -> &[WeightSpec] {
        &self.weights
    }

    /// One weight.
    pub fn weight(&self, id: WeightId) -> &WeightSpec {
        &self.weights[id.0]
    }

    /// Named inputs, in the order in which a call hands them in.
    pub fn inputs(&self) -> &[(String, ValueId)] {
        &self.inputs
    }

    /// Named outputs.
    pub fn outputs(&self) -> &[(String, ValueId)] {
        &self.outputs
    }

    /// Slots of the KV cache.
    pub fn caches(&self) -> &[CacheSpec] {
        &self.caches
    }

    /// For each slot of the KV cache the node that turns its keys by their positions; `None` where they are stored as something
    /// else makes them.
    pub fn key_ropes(&self) -> Vec<Option<usize>> {
        let rope_of = |slot| {
            let appends = |node: &&Node| matches!(&node.op, Op::Attention(a) if a.cache == Some(slot));
            let keys = *self.nodes.iter().find(appends)?.inputs.get(1)?;
            let made = self.nodes.iter().position(|node| node.output == keys)?;
            matches!(self.nodes[made].op, Op::Rope(_)).then_some(made)
        };
        (0..self.caches.len()).map(rope_of).collect()
    }

    /// Numbers that keys and values of so many tokens are, over all layers: 2 x L x K x D x T. What a backend allocates for
    /// them may have scales, whole blocks and filled up heads beside.
    pub fn cache_elements(&self, tokens: usize) -> u64 {
        self.caches.iter().map(|cache| 2 * (cache.kv_heads * cache.head_dim * tokens) as u64).sum()
    }

    /// The input of that name.
    pub fn input(&self, name: &str) -> Option<ValueId> {
        self.inputs.iter().find(|(n, _)| n == name).map(|(_, id)| *id)
    }

    /// The output of that name.
    pub fn output(&self, name: &str) -> Option<ValueId> {
        self.outputs.iter().find(|(n, _)| n == name).map(|(_, id)| *id)
    }

    /// For each value the index of the last node that reads it; outputs are read at `nodes().len()`, values nobody
    /// reads at their own node.
    pub fn last_uses(&self) -> Vec<usize> {
        let mut last = vec![0; self.values.len()];
        for (at, node) in self.nodes.iter().enumerate() {
            last[node.output.0] = at;
            for input in &node.inputs {
                last[input.0] = at;
            }
        }
        for (_, id) in &self.outputs {
            last[id.0] = self.nodes.len();
        }
        last
    }

    /// How many nodes and outputs read each value.
    pub fn use_counts(&self) -> Vec<usize> {
        let mut uses = vec![0; self.values.len()];
        let reads = self.nodes.iter().flat_map(|n| &n.inputs).chain(self.outputs.iter().map(|(_, id)| id));
        for id in reads {
            uses[id.0] += 1;
        }
        uses
    }

    /// Drops outputs that `keep` refuses, for instance the taps that only a trace wants; follow with
    /// [`crate::passes::optimize`].
    ///
    /// # Errors
    /// [`GraphError::Program`] where none is left.
    pub fn with_outputs(&self, keep: impl Fn(&str) -> bool) -> Result<Program, GraphError> {
        let mut program = self.clone();
        program.outputs.retain(|(name, _)| keep(name));
        if program.outputs.is_empty() {
            return Err(GraphError::Program {
                what: format!("no output of the {} program kept", self.stage.name()),
            });
        }
        Ok(program)
    }
}

impl std::fmt::Display for Program {
    /// One line a node: `%5 [T, 64] = linear(%3) blk.0.attn_q.weight`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for node in &self.nodes {
            let dims: Vec<_> = self.value(node.output).dims.iter().map(|d| d.to_string()).collect();
            let inputs: Vec<_> = node.inputs.iter().map(|v| format!("%{}", v.0)).collect();
            let weights: Vec<_> = node.op.weights().iter().map(|w| self.weight(*w).name.as_str()).collect();
            let (out, op) = (node.output.0, node.op.name());
            writeln!(f, "%{out} [{}] = {op}({}) {}", dims.join(", "), inputs.join(", "), weights.join(" "))?;
        }
        Ok(())
    }
}
