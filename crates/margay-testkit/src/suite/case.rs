//! One program with its calls.

use crate::{
    random::Rng,
    tolerance::Class,
    weights::{MapWeights, random_weights},
};
use margay_graph::{Bindings, Builder, Element, InputData, Program, Sym};
use margay_tensor::DType;

/// An input of a call.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// Row-major float32.
    F32(Vec<f32>),
    /// Ids, positions or row numbers.
    I32(Vec<i32>),
}

impl Input {
    /// As a backend takes it.
    pub fn view(&self) -> InputData<'_> {
        match self {
            Input::F32(values) => InputData::F32(values),
            Input::I32(values) => InputData::I32(values),
        }
    }
}

/// One run of a case's program.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// Every symbol but `past`.
    pub bindings: Bindings,
    /// In the order of the program's inputs.
    pub inputs: Vec<Input>,
    /// Before the call, the state is cut to that many tokens.
    pub truncate: Option<usize>,
}

/// A small program with weights and calls.
#[derive(Clone, Debug)]
pub struct Case {
    /// Name of the op, as [`margay_graph::Op::name`], or `block`.
    pub op: &'static str,
    /// Sizes and types.
    pub name: String,
    /// What is run.
    pub program: Program,
    /// Its weights.
    pub weights: MapWeights,
    /// Greatest size of each symbol over the calls.
    pub limits: Bindings,
    /// Runs, one after the other on the same executable and state.
    pub calls: Vec<Call>,
    /// Tokens the state holds; `None` for a program without a state.
    pub capacity: Option<usize>,
    /// Which tolerance applies.
    pub class: Class,
}

/// Sizes of one call, from which its inputs are drawn.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes(pub(super) Bindings);

impl Sizes {
    pub(super) fn of(sizes: &[(Sym, usize)]) -> Self {
        Sizes(sizes.iter().fold(Bindings::new(), |b, (sym, size)| b.with(*sym, *size)))
    }
}

/// What a case is made from; `finish` draws its weights and inputs.
pub(super) struct Draft {
    pub(super) op: &'static str,
    pub(super) name: String,
    pub(super) dtype: DType,
    pub(super) class: Class,
    /// Whether the passes run before the backend sees the program.
    pub(super) fused: bool,
    /// Weights some of whose columns are kept apart.
    pub(super) outliers: &'static [(&'static str, &'static [usize])],
    pub(super) sizes: Vec<Sizes>,
    pub(super) capacity: Option<usize>,
    /// Standard deviation of float32 inputs.
    pub(super) deviation: f64,
    /// Added to float32 inputs.
    pub(super) offset: f32,
    /// Integer inputs by name and position, where 0..100 does not do: a generator of value number `i` of `n`.
    pub(super) integers: fn(&str, &mut Rng, usize, &Bindings) -> i32,
}

impl Draft {
    pub(super) fn new(op: &'static str, name: String) -> Self {
        Draft {
            op,
            name,
            dtype: DType::F32,
            class: Class::Float,
            fused: false,
            outliers: &[],
            sizes: vec![Sizes::of(&[])],
            capacity: None,
            deviation: 1.0,
            offset: 0.0,
            integers: |_, rng, _, _| rng.below(100) as i32,
        }
    }

    /// One call for each number of rows P.
    pub(super) fn rows(mut self, rows: &[usize]) -> Self {
        self.sizes = rows.iter().map(|r| Sizes::of(&[(Sym::Patches, *r)])).collect();
        self
    }

    pub(super) fn class(self, class: Class) -> Self {
        Draft { class, ..self }
    }

    /// The finished case.
    pub(super) fn finish(self, build: impl FnOnce(&mut Builder) -> Built) -> Case {
        let mut builder = Builder::new(margay_graph::Stage::Text);
        let label = format!("{} {}", self.op, self.name);
        let output = build(&mut builder).unwrap_or_else(|e| panic!("{label}: {e}"));
        builder.output("y", output);
        let mut program = builder.finish().unwrap_or_else(|e| panic!("{label}: {e}"));
        if !self.outliers.is_empty() {
            let columns = self.outliers.iter().map(|(name, columns)| ((*name).to_owned(), columns.to_vec()));
            program = program.with_outliers(&columns.collect()).unwrap_or_else(|e| panic!("{label}: {e}"));
        }
        if self.fused {
            program = margay_graph::passes::optimize(&program);
        }
        let mut rng = Rng::named(&label);
        let weights = random_weights(&program, self.dtype, rng.bits());
        let calls = self.sizes.iter().map(|s| self.call(&program, &mut rng, s.0)).collect();
        let (op, name) = (self.op, self.name);
        let limits = limits(&self.sizes);
        Case { op, name, program, weights, limits, calls, capacity: self.capacity, class: self.class }
    }

    fn call(&self, program: &Program, rng: &mut Rng, bindings: Bindings) -> Call {
        let inputs = program.inputs().iter().map(|(name, id)| {
            let value = program.value(*id);
            let len =
                |d: &margay_graph::Dim| d.eval(&bindings).unwrap_or_else(|e| panic!("input {name}: {e}"));
            let len: usize = value.dims.iter().map(len).product();
            match value.element {
                Element::F32 => Input::F32(
                    rng.normals(len, self.deviation).into_iter().map(|x| x + self.offset).collect(),
                ),
                Element::I32 => {
                    Input::I32((0..len).map(|i| (self.integers)(name, rng, i, &bindings)).collect())
                }
            }
        });
        Call { bindings, inputs: inputs.collect(), truncate: None }
    }
}

pub(super) type Built = Result<margay_graph::ValueId, margay_graph::GraphError>;

/// Greatest size of each symbol.
fn limits(sizes: &[Sizes]) -> Bindings {
    let greatest = |sym: Sym| sizes.iter().filter_map(|s| s.0.get(sym).ok()).max();
    Sym::ALL.iter().fold(Bindings::new(), |b, sym| match greatest(*sym) {
        Some(size) => b.with(*sym, size),
        None => b,
    })
}
